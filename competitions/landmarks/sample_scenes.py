"""Scenes of the bundled sample: buildings and empty places on isometric ground, seen by a bad camera.

Art: Unknown Horizons (see `make_sample.py`); composition: `common/data/sample.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from common.data.sample import (
    Image,
    Prop,
    compose,
    degrade,
    paste,
    photograph,
    read_sprite,
    relight,
    resize,
    shadow,
    smooth_noise,
    tint,
    trim,
    view,
)

TILE = 64  # a ground tile is a diamond, 64 wide and 32 high
ROTATIONS = ("45", "135", "225", "315")  # also the sides a shore looks to: +j, +i, -j, -i
ASPECTS = (16 / 9, 3 / 2, 4 / 3, 4 / 3, 1.0, 3 / 4, 3 / 4, 2 / 3)
# How hard the sample is: share of the picture that a building's box covers, strength of the light's
# changes, blur in pixels, sensor noise, degrees of roll, perspective, hidden share of a building.
SHARE, LIGHT, BLUR, NOISE, ROLL, TILT, HIDDEN = (0.35, 0.7), 0.6, 0.6, 0.012, 6.0, 0.07, 0.2
SHORE = ("ts_grass-beach0", "ts_beach0", "ts_beach-shallow0", "ts_shallow0", "ts_shallow-deep0")
GROUPS = {  # what may stand in a picture besides a building; the folder under gfx and what to take
    "trees": "terrain/trees/as_*/idle_full/*/*.png",
    "bushes": "terrain/trees/as_*/work/*/*.png",
    "stones": "terrain/ambient/as_*/*/*/*.png",
    "deposits": "terrain/resources/as_[cs]*/idle/*/*.png",
    "mountains": "terrain/mountains/as_mountain*/idle/*/*.png",
    "animals": "units/animals/as_*/*/*/*.png",
    "people": "units/*/as_*unit0/*/*/*.png|units/*/as_[chp]*0/*/*/*.png|units/inhabitant/*/as_*/*/*/*.png",
    "ships": "units/ships/*/as_*/idle/*/*.png",
    "walls": "buildings/*/wall/as_*/*/*/*.png",
}


@lru_cache(maxsize=4096)
def _sprite(path: Path) -> Image:
    return read_sprite(path)


@lru_cache(maxsize=4096)
def _trimmed(path: Path) -> Image:
    return trim(_sprite(path))


@dataclass
class Art:
    """The drawings that scenes are made of.

    Attributes:
        tiles: ground tiles by (set, shape, rotation).
        streets: street tiles by (set, shape, rotation).
        groups: drawings by group and species; a species is one kind of tree, ship, soldier, ...
    """

    tiles: dict[tuple[str, str, str], Path]
    streets: dict[tuple[str, str, str], Path]
    groups: dict[str, dict[str, list[Path]]] = field(default_factory=dict)

    @classmethod
    def read(cls, content: Path) -> Art:
        """The art in an unpacked content folder.

        Raises:
            FileNotFoundError: the folder is not the game's content, naming what is missing.
        """
        gfx = Path(content) / "gfx"
        tiles = _tiles(gfx.glob("base/moderate/ts_*/*/*/*.png"))
        if not any(name.startswith("ts_grass") for name, _, _ in tiles):
            raise FileNotFoundError(
                f"No ground tiles gfx/base/moderate/ts_grass*/straight/45/*.png under {content}: "
                "give the folder usr/share/unknown-horizons/content of the unpacked package."
            )
        groups: dict[str, dict[str, list[Path]]] = {}
        for name, patterns in GROUPS.items():
            found = {path for pattern in patterns.split("|") for path in gfx.glob(pattern)}
            for path in sorted(found):
                groups.setdefault(name, {}).setdefault(path.parents[2].name, []).append(path)
        return cls(tiles, _tiles(gfx.glob("buildings/*/streets/as_*/*/*/*.png")), groups)

    def half(self, number: int) -> Art:
        """The art with every other species of each group (0 or 1); a lone species is in half 1."""
        halves = {
            name: {kind: species[kind] for kind in sorted(species)[1 - number :: 2]}
            for name, species in self.groups.items()
        }
        return Art(self.tiles, self.streets, halves)

    def species(self, group: str, rng: np.random.Generator) -> list[Path]:
        """All drawings of one species of the group; none when the art has no such group."""
        kinds = self.groups.get(group) or {"": []}
        return kinds[sorted(kinds)[rng.integers(len(kinds))]]

    def pick(self, group: str, rng: np.random.Generator) -> Path | None:
        """One drawing of the group; None when the art has no such group."""
        drawings = self.species(group, rng)
        return drawings[rng.integers(len(drawings))] if drawings else None


def _tiles(paths: Sequence[Path] | object) -> dict[tuple[str, str, str], Path]:
    found: dict[tuple[str, str, str], Path] = {}
    for path in sorted(paths):  # type: ignore[call-overload]
        found.setdefault((path.parents[2].name, path.parents[1].name, path.parent.name), path)
    return found


@dataclass
class Ground:
    """A painted ground and whether a point of it is under water."""

    canvas: Image
    wet: Callable[[float, float], bool]


def paint_ground(
    art: Art, size: tuple[int, int], rng: np.random.Generator, *, kind: str, clear: float
) -> Ground:
    """Ground of `kind` (meadow, sand, shore, road, paved, sea) on a canvas of `size` (width, height).

    A shore stays `clear` tiles away from the centre, so that a building there stands on land.
    """
    width, height = size
    canvas = np.full((height, width, 3), 0.3, np.float32)
    names = sorted({name for name, _, _ in art.tiles})
    grass = [name for name in names if name.startswith("ts_grass") and "-" not in name]
    side, corner = int(rng.integers(4)), int(rng.integers(3))
    edge = (
        clear + rng.uniform(0, 3) if kind == "shore" else {"sand": -1.6, "sea": -9.0}.get(kind, 1e6)
    )
    beach = int(rng.integers(1, 3)) if kind == "shore" else 40 if kind == "sand" else 1
    edges = (edge, edge + rng.uniform(-2, 2)) if kind == "shore" else (edge, edge)

    def away(i: float, j: float) -> tuple[float, str, str]:
        steps = [(j, i, -j, -i)[(side + turn) % 4] - edges[turn] for turn in (0, 1)]
        first, second = (int(np.floor(step)) for step in steps)
        if corner == 0 or kind != "shore":
            return first, "straight", ROTATIONS[side]
        depth = max(first, second) if corner == 1 else min(first, second)
        if first == second:
            shape = "curve_out" if corner == 1 else "curve_in"
            return depth, shape, ROTATIONS[(side + 1) % 4]
        return depth, "straight", ROTATIONS[(side + (depth == second)) % 4]

    def tile(i: int, j: int) -> tuple[str, str, str]:
        depth, shape, rotation = away(i, j)
        plain = ROTATIONS[rng.integers(4)]
        if depth < 0 or SHORE[0] not in names or SHORE[-1] not in names:
            return grass[rng.integers(len(grass))], "straight", plain
        if 0 < depth <= beach:
            return SHORE[1], "straight", plain
        place = depth - max(beach, 0) + 1 if depth else 0
        if place in (0, 2, 4):
            return SHORE[place], shape, rotation
        return (SHORE[3] if place == 3 else "ts_deep0"), "straight", plain

    # Cell (i, j) has its middle at ((i - j) / 2, (i + j) / 4) tiles from the centre; far rows first.
    across, down = int(width / TILE) + 2, int(2 * height / TILE) + 2
    for total in range(-down, down + 1):
        for shift in range(-across, across + 1):
            if (total + shift) % 2 == 0:
                place = tile((total + shift) // 2, (total - shift) // 2)
                x, y = (width + shift * TILE) / 2, height / 2 + total * TILE / 4
                _lay(canvas, _tile_sprite(art, place), x, y)
    if kind in ("road", "paved"):
        _lay_street(canvas, art, rng, wide=kind == "paved")
    return Ground(
        _weather(canvas, rng, dry=kind not in ("shore", "sea")),
        lambda x, y: (
            away(
                (x - width / 2) / TILE + (y - height / 2) * 2 / TILE,
                (y - height / 2) * 2 / TILE - (x - width / 2) / TILE,
            )[0]
            > beach + 1
        ),
    )


def _tile_sprite(art: Art, key: tuple[str, str, str]) -> Image:
    for choice in (key, (key[0], "straight", "45"), ("ts_shallow0", "straight", "45")):
        if choice in art.tiles:
            sprite = _sprite(art.tiles[choice])
            break
    else:
        sprite = _sprite(next(iter(art.tiles.values())))
    if sprite.shape[1] > TILE:  # deep water is drawn on a huge diamond: cut a tile from its middle
        top, left = sprite.shape[0] // 2 - TILE // 4, (sprite.shape[1] - TILE) // 2
        rows, columns = np.mgrid[-1:1:32j, -1:1:64j]
        piece = sprite[top : top + TILE // 2, left : left + TILE]
        return np.asarray(piece * (abs(rows) + abs(columns) <= 1.05)[..., None], np.float32)
    return sprite


def _lay(canvas: Image, sprite: Image, x: float, y: float) -> None:
    """Lay a tile with its middle at (x, y)."""
    paste(canvas, sprite, x, y + sprite.shape[0] / 2)


def _lay_street(canvas: Image, art: Art, rng: np.random.Generator, *, wide: bool) -> None:
    """One street through the picture or, when `wide`, a paved place around its centre."""
    kinds = sorted({name for name, _, _ in art.streets})
    if not kinds:
        return
    name, height, width = kinds[rng.integers(len(kinds))], *canvas.shape[:2]
    turn, shift, radius = int(rng.integers(2)), int(rng.integers(-3, 4)), int(rng.integers(2, 5))
    reach = int(width / TILE + 2 * height / TILE) + 3
    span = range(-radius, radius + 1) if wide else range(-reach, reach)
    shape = "abcdefgh" if wide else "ac"
    cells = [(i, j) for i in span for j in (span if wide else [shift])]
    key = (name, shape, ROTATIONS[turn])
    if key in art.streets:
        for i, j in cells:
            i, j = (j, i) if turn else (i, j)
            _lay(
                canvas,
                _sprite(art.streets[key]),
                width / 2 + (i - j) * 32,
                height / 2 + (i + j) * 16,
            )


def _weather(canvas: Image, rng: np.random.Generator, *, dry: bool) -> Image:
    """Dry, lush or snowed-in: the same ground tiles in another season."""
    shape = canvas.shape[:2]
    gain = np.exp(rng.normal(0, [0.12, 0.1, 0.16]) + rng.normal(0, 0.12))
    patches = 0.75 + 0.5 * smooth_noise(shape, rng.uniform(20, 120), rng)
    canvas = canvas * gain * patches[..., None]
    season = rng.random()
    if season < 0.3 and dry:  # bare earth shows through
        soil = np.array([0.25, 0.38, 0.5]) * rng.uniform(0.6, 1.2)
        bare = np.clip(2 * smooth_noise(shape, rng.uniform(30, 90), rng) - 0.7, 0, 0.8)[..., None]
        canvas = canvas * (1 - bare) + bare * soil * (0.7 + canvas)
    elif season > 0.88 and dry:
        snow = np.clip(1.6 * smooth_noise(shape, rng.uniform(15, 60), rng), 0.2, 0.85)[..., None]
        canvas = canvas * (1 - snow) + snow * np.array([0.95, 0.9, 0.87])
    return np.clip(canvas, 0, 1).astype(np.float32)


def _with_shadow(prop: Prop, slope: float, darkness: float) -> list[Prop]:
    cast = shadow(prop.sprite, slope=slope, length=0.35, darkness=darkness)
    lean = slope * prop.sprite.shape[0] / 2
    return [Prop(cast, prop.x + lean, prop.y - 0.01), prop]


def scatter(
    art: Art,
    ground: Ground,
    rng: np.random.Generator,
    groups: dict[str, float],
    *,
    footprint: tuple[float, float, float] | None = None,
) -> list[Prop]:
    """Things that stand about: `groups` says how many of each per 100 x 100 pixels, on average.

    Land things avoid water, ships avoid land, and all avoid the diamond `footprint` (x, y, half width).
    """
    height, width = ground.canvas.shape[:2]
    slope, darkness = rng.uniform(-0.8, 0.8), rng.uniform(0.1, 0.4)
    props: list[Prop] = []
    for group, density in groups.items():
        kinds = [art.species(group, rng) for _ in range(int(rng.integers(1, 4)))]
        for _ in range(int(rng.poisson(density * height * width / 1e4))):
            x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height * 1.1))
            drawings = kinds[rng.integers(len(kinds))]
            if not drawings or ground.wet(x, y) != (group == "ships"):
                continue
            if footprint is not None:
                x0, y0, half = footprint
                if abs(x - x0) / (half + 10) + 2 * abs(y - y0) / (half + 14) < 1:
                    continue
            path = drawings[rng.integers(len(drawings))]
            sprite = resize(_trimmed(path), float(np.exp(rng.normal(0, 0.15))))
            props += _with_shadow(Prop(tint(sprite, rng, strength=0.1), x, y), slope, darkness)
    return props


def _take(
    canvas: Image, center: tuple[float, float], size: tuple[float, float], rng: np.random.Generator
) -> Image:
    """The finished picture of a view, its longest side 160 to 192 pixels."""
    longest = int(rng.integers(160, 193))
    scale = longest / max(size)
    shape = (max(64, round(size[0] * scale)), max(64, round(size[1] * scale)))
    corners = view((canvas.shape[1], canvas.shape[0]), center, size, rng, roll=ROLL, tilt=TILT)
    picture = relight(photograph(canvas, corners, shape), rng, strength=LIGHT)
    return degrade(picture, rng, blur=BLUR, noise=NOISE)


def _view_size(area: float, aspect: float) -> tuple[float, float]:
    return float(np.sqrt(area * aspect)), float(np.sqrt(area / aspect))


def landmark_scene(art: Art, frame: Image, rng: np.random.Generator) -> Image:
    """A picture of the building in `frame` that covers 25 to 70 % of it, among other things."""
    building = tint(trim(frame), rng, strength=0.06)
    high, wide = building.shape[:2]
    share, aspect = rng.uniform(*SHARE), ASPECTS[rng.integers(len(ASPECTS))]
    size = _view_size(high * wide / share, aspect)
    grow = max(1.0, 0.9 * wide / size[0], 0.9 * high / size[1])  # at most a tenth is cut off
    size = (size[0] * grow, size[1] * grow)
    width, height = round(size[0] * 1.5 + 60), round(size[1] * 1.5 + 60)
    kind = ("meadow", "meadow", "shore", "shore", "road", "paved", "sand")[rng.integers(7)]
    ground = paint_ground(art, (width, height), rng, kind=kind, clear=wide / TILE / 2 + 0.5)
    x, y = (
        width / 2,
        height / 2 + wide / 4,
    )  # its foot; the footprint is a diamond around the centre
    near = {"trees": rng.choice([0, 0.5, 1.5, 3]), "stones": 0.8, "people": rng.choice([0, 1, 2])}
    near |= {"animals": 0.2, "bushes": 0.5, "ships": 0.5, "walls": rng.choice([0, 0, 0, 0.7])}
    props = scatter(art, ground, rng, near, footprint=(x, height / 2, wide / 2))
    props += occluders(art, rng, x, y, building.shape[:2], height)
    subject = Prop(building, x, y)
    cast = _with_shadow(subject, rng.uniform(-0.6, 0.6), rng.uniform(0, 0.35))[0]
    compose(ground.canvas, [cast, *props], subject, max_hidden=HIDDEN)
    center = (x + rng.normal(0, 0.09) * size[0], y - high / 2 + rng.normal(0, 0.09) * size[1])
    return _take(ground.canvas, center, size, rng)


def occluders(
    art: Art, rng: np.random.Generator, x: float, y: float, shape: tuple[int, ...], bottom: float
) -> list[Prop]:
    """Things between the camera and the building: some at its walls, some near and out of focus."""
    props = []
    for _ in range(int(rng.integers(0, 4))):
        path = art.pick(("trees", "trees", "people", "walls", "bushes")[rng.integers(5)], rng)
        if path is not None:
            sprite = resize(tint(_trimmed(path), rng, strength=0.1), rng.uniform(0.8, 1.4))
            place = x + rng.uniform(-0.55, 0.55) * shape[1]
            props.append(Prop(sprite, place, y + rng.uniform(0, 0.35) * shape[0]))
    path = art.pick("trees", rng)
    if path is not None and rng.random() < 0.25:
        sprite = np.pad(resize(_trimmed(path), rng.uniform(1.8, 2.6)), ((8, 8), (8, 8), (0, 0)))
        soft = cv2.GaussianBlur(sprite, (0, 0), rng.uniform(1.5, 3))
        place = x + rng.choice([-1, 1]) * rng.uniform(0.5, 0.8) * shape[1]
        props.append(Prop(np.asarray(soft, np.float32), place, min(bottom, y + 0.8 * shape[0])))
    return props


EMPTY = {  # a place without a building: ground, the thing looked at, what else is there
    "forest": ("meadow", "trees", {"trees": 9.0, "bushes": 1.0, "stones": 0.5}),
    "grove": ("road", "trees", {"trees": 3.0, "people": 1.0, "stones": 1.0}),
    "ship": ("sea", "ships", {"ships": 0.3}),
    "harbor": ("shore", "ships", {"ships": 1.5, "trees": 1.0, "people": 0.5}),
    "mountain": ("meadow", "mountains", {"trees": 2.0, "stones": 1.0}),
    "crowd": ("paved", "people", {"people": 8.0}),
    "animal": ("meadow", "animals", {"animals": 2.0, "trees": 1.0}),
    "deposit": ("meadow", "deposits", {"trees": 1.5, "stones": 2.0}),
    "wall": ("road", "walls", {"walls": 1.5, "people": 1.0, "trees": 1.0}),
    "beach": ("sand", "stones", {"stones": 4.0, "trees": 0.3, "people": 0.5}),
    "road": ("paved", "people", {"trees": 1.0, "people": 1.0, "stones": 1.0}),
}


def empty_scene(art: Art, rng: np.random.Generator) -> Image:
    """A picture without a landmark: a forest, ships, people, animals, a mountain, a road, a shore."""
    kinds = [kind for kind, (_, group, _) in EMPTY.items() if art.groups.get(group)]
    kind, group, around = EMPTY[kinds[rng.integers(len(kinds))]] if kinds else ("meadow", "", {})
    path = art.pick(group, rng)
    focus = _trimmed(path) if path else np.zeros((60, 60, 4), np.float32)
    focus = tint(focus, rng, strength=0.08)
    high, wide = focus.shape[:2]
    area = max(high * wide / rng.uniform(0.15, 0.6), 70.0**2)
    size = _view_size(area, ASPECTS[rng.integers(len(ASPECTS))])
    grow = max(1.0, 0.8 * wide / size[0], 0.8 * high / size[1])
    size = (size[0] * grow, size[1] * grow)
    width, height = round(size[0] * 1.5 + 60), round(size[1] * 1.5 + 60)
    ground = paint_ground(art, (width, height), rng, kind=kind, clear=rng.uniform(-1, 2))
    x, y = width / 2, height / 2 + high / 2
    props = scatter(art, ground, rng, around)
    stands = Prop(focus, x, y)
    if ground.wet(x, y) == (group == "ships"):
        props += _with_shadow(stands, rng.uniform(-0.6, 0.6), rng.uniform(0, 0.3))
    compose(ground.canvas, props)
    center = (x + rng.normal(0, 0.12) * size[0], y - high / 2 + rng.normal(0, 0.12) * size[1])
    return _take(ground.canvas, center, size, rng)
