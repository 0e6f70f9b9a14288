"""The ground of a scene: grass, sand, water and streets as isometric tiles, in some season."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.data.sample import Image, paste, smooth_noise

from .art import Art, sprite

TILE = 64  # a ground tile is a diamond, 64 wide and 32 high
# Cell (i, j) has its middle at ((i - j) / 2, (i + j) / 4) tiles from the middle of the canvas. A
# shore tile of rotation 45 has its water at +j, 135 at +i, 225 at -j, 315 at -i.
ROTATIONS = ("45", "135", "225", "315")
EDGE, BEACH, SURF, SHALLOW, SLOPE, DEEP = (
    *("ts_grass-beach0", "ts_beach0", "ts_beach-shallow0"),
    *("ts_shallow0", "ts_shallow-deep0", "ts_deep0"),
)
KINDS = ("meadow", "shore", "sand", "road", "paved", "sea")


@dataclass
class Shore:
    """Where land ends: a line, a headland or a bay that looks to one or two of the four sides.

    Attributes:
        side: the side (a place in ROTATIONS) that the first shore looks to.
        form: "straight", "headland" (the next side is a shore too) or "bay" (water in a corner).
        edges: cells from the middle of the canvas to the first shore and to the second one.
        beach: cells of sand before the water.
    """

    side: int
    form: str
    edges: tuple[float, float]
    beach: int

    def place(self, i: float, j: float) -> tuple[int, str, str]:
        """How many cells (i, j) lies behind the edge of the grass, and the tile's shape there."""
        outward = (j, i, -j, -i)
        first = int(np.floor(outward[self.side] - self.edges[0]))
        second = int(np.floor(outward[(self.side + 1) % 4] - self.edges[1]))
        if self.form == "straight":
            return first, "straight", ROTATIONS[self.side]
        depth = max(first, second) if self.form == "headland" else min(first, second)
        if first == second:
            shape = "curve_out" if self.form == "headland" else "curve_in"
            return depth, shape, ROTATIONS[(self.side + 1) % 4]
        return depth, "straight", ROTATIONS[(self.side + (depth == second)) % 4]

    def tile(self, i: int, j: int, rng: np.random.Generator) -> tuple[str, str, str] | None:
        """The tile of cell (i, j); None where grass grows."""
        depth, shape, rotation = self.place(i, j)
        behind = depth - self.beach
        if depth < 0:
            return None
        if depth == 0 or behind in (1, 3):
            return {0: EDGE}.get(depth, SURF if behind == 1 else SLOPE), shape, rotation
        name = BEACH if behind < 1 else SHALLOW if behind == 2 else DEEP
        return name, "straight", ROTATIONS[rng.integers(4)]


@dataclass
class Ground:
    """A painted ground, `(H, W, 3)`, and where its water is."""

    canvas: Image
    shore: Shore

    def wet(self, x: float, y: float) -> bool:
        """Whether the pixel (x, y) is under water."""
        height, width = self.canvas.shape[:2]
        across, down = (x - width / 2) / TILE, 2 * (y - height / 2) / TILE
        return self.shore.place(down + across, down - across)[0] > self.shore.beach + 1


def paint_ground(
    art: Art, size: tuple[int, int], rng: np.random.Generator, *, kind: str, clear: float
) -> Ground:
    """Ground of one of KINDS on a canvas of `size` (width, height).

    A shore stays `clear` cells away from the middle, so that a building there stands on land.
    """
    if kind not in KINDS:
        raise ValueError(f"No ground {kind!r}: there are {', '.join(KINDS)}.")
    width, height = size
    canvas = np.full((height, width, 3), 0.3, np.float32)
    shore = _shore(rng, kind, clear)
    grass = sorted({name for name, _, _ in art.tiles if name.startswith("ts_grass")} - {EDGE})
    across, down = int(width / TILE) + 2, int(2 * height / TILE) + 2
    for total in range(-down, down + 1):  # far rows first
        for shift in range(-across, across + 1):
            if (total + shift) % 2 == 0:
                i, j = (total + shift) // 2, (total - shift) // 2
                lawn = (grass[rng.integers(len(grass))], "straight", ROTATIONS[rng.integers(4)])
                _lay(canvas, _tile(art, shore.tile(i, j, rng) or lawn), i, j)
    if kind in ("road", "paved"):
        _lay_street(canvas, art, rng, wide=kind == "paved")
    return Ground(_weather(canvas, rng, dry=kind not in ("shore", "sea")), shore)


def _shore(rng: np.random.Generator, kind: str, clear: float) -> Shore:
    side, form = int(rng.integers(4)), ("straight", "headland", "bay")[rng.integers(3)]
    edge = clear + rng.uniform(0, 3)
    if kind == "shore":
        other = clear + rng.uniform(0, 3)
        return Shore(side, form, (edge, other), int(rng.integers(1, 3)))
    edge, beach = {"sand": (-1.6, 99), "sea": (-9.0, 1)}.get(kind, (1e6, 1))
    return Shore(side, "straight", (edge, edge), beach)


def _tile(art: Art, key: tuple[str, str, str]) -> Image:
    """The drawing of a tile, or of the nearest thing that the art has."""
    stand_ins = [key, (key[0], "straight", ROTATIONS[0]), next(iter(art.tiles))]
    drawing = sprite(art.tiles[next(name for name in stand_ins if name in art.tiles)])
    if drawing.shape[1] <= TILE:
        return drawing
    # Deep water is drawn on a huge diamond: cut a tile from its middle.
    top, left = drawing.shape[0] // 2 - TILE // 4, (drawing.shape[1] - TILE) // 2
    rows, columns = np.mgrid[-1 : 1 : (TILE // 2) * 1j, -1 : 1 : TILE * 1j]
    piece = drawing[top : top + TILE // 2, left : left + TILE]
    return np.asarray(piece * (abs(rows) + abs(columns) <= 1.05)[..., None], np.float32)


def _lay(canvas: Image, tile: Image, i: int, j: int) -> None:
    height, width = canvas.shape[:2]
    x, y = (width + (i - j) * TILE) / 2, height / 2 + (i + j) * TILE / 4
    paste(canvas, tile, x, y + tile.shape[0] / 2)


def _lay_street(canvas: Image, art: Art, rng: np.random.Generator, *, wide: bool) -> None:
    """One street through the picture or, when `wide`, a paved place around its middle."""
    names = sorted({name for name, _, _ in art.streets})
    if not names:
        return
    name, turn = names[rng.integers(len(names))], int(rng.integers(2))
    shift, radius = int(rng.integers(-3, 4)), int(rng.integers(2, 5))
    # The letters name the neighbors that a tile joins: a and c face each other, all eight is full.
    key = (name, "abcdefgh" if wide else "ac", ROTATIONS[turn])
    reach = radius if wide else int(max(canvas.shape) * 3 / TILE) + 2
    for i in range(-reach, reach + 1):
        for j in range(-radius, radius + 1) if wide else [shift]:
            if key in art.streets:
                _lay(canvas, sprite(art.streets[key]), *((j, i) if turn else (i, j)))


def _weather(canvas: Image, rng: np.random.Generator, *, dry: bool) -> Image:
    """The same tiles in another season: lush, parched, worn down to the soil or snowed in."""
    shape = (canvas.shape[0], canvas.shape[1])
    gain = np.exp(rng.normal(0, [0.12, 0.1, 0.16]) + rng.normal(0, 0.12))
    patches = 0.75 + 0.5 * smooth_noise(shape, rng.uniform(20, 120), rng)
    canvas = canvas * gain * patches[..., None]
    season = rng.random() if dry else 0.5
    if season < 0.3:
        soil = np.array([0.25, 0.38, 0.5]) * rng.uniform(0.6, 1.2)
        bare = np.clip(2 * smooth_noise(shape, rng.uniform(30, 90), rng) - 0.7, 0, 0.8)[..., None]
        canvas = canvas * (1 - bare) + bare * soil * (0.7 + canvas)
    elif season > 0.88:
        snow = np.clip(1.6 * smooth_noise(shape, rng.uniform(15, 60), rng), 0.2, 0.85)[..., None]
        canvas = canvas * (1 - snow) + snow * np.array([0.95, 0.9, 0.87])
    return np.clip(canvas, 0, 1).astype(np.float32)
