"""A picture of one individual: ground, things around, then light, tilt and a cheap camera."""

from __future__ import annotations

from collections import defaultdict
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
    tint,
    trim,
    view,
)

GROUNDS = (
    "grass/green", "grass/dry", "grass/semi-dry", "grass/leaf-litter", "flat/dirt",
    "flat/dirt-dark", "flat/desert-road", "flat/road", "flat/stone-path", "sand/beach",
    "sand/desert", "frozen/ice", "frozen/snow", "cave/floor", "cave/earthy-floor",
    "cave/flagstones-dark", "interior/stone-regular", "interior/wood-regular",
)  # fmt: skip
THINGS = (
    "terrain/embellishments/desert-plant", "terrain/embellishments/flowers-mixed-small",
    "terrain/embellishments/mushroom", "terrain/embellishments/rocks",
    "terrain/embellishments/stones-small", "terrain/swamp/reed", "scenery/rock",
    "scenery/rubble", "scenery/signpost",
)  # fmt: skip
HEX = 72  # pixels of a ground tile; columns of hexagons stand 54 pixels apart
CANVAS = 400


class Land:
    """Ground tiles and the things that may stand on them."""

    def __init__(self, images: Path) -> None:
        self.grounds = _numbered(images / "terrain", GROUNDS)
        self.things = _numbered(images, THINGS)
        if not self.grounds:
            raise FileNotFoundError(f"No terrain below {images}: give data/core/images.")

    def ground(self, rng: np.random.Generator) -> Image:
        """A canvas of one kind of ground, sometimes of two."""
        names = sorted(self.grounds)
        kinds = [names[i] for i in rng.integers(len(names), size=2)]
        edge, lean = rng.uniform(-0.2, 1.2) * CANVAS, rng.uniform(-1, 1)
        canvas = np.zeros((CANVAS + 2 * HEX, CANVAS + 2 * HEX, 3), np.float32)
        for column in range(-1, CANVAS // 54 + 3):
            for row in range(-1, CANVAS // HEX + 3):
                x, y = 54 * column, HEX * row + HEX // 2 * (column % 2)
                tiles = self.grounds[kinds[int(x + lean * y > edge)]]
                paste(canvas, _sprite(tiles[rng.integers(len(tiles))]), x + HEX / 2, y + HEX)
        return np.ascontiguousarray(canvas[HEX : HEX + CANVAS, HEX : HEX + CANVAS])

    def around(self, rng: np.random.Generator) -> list[Prop]:
        """Up to seven plants, stones and the like."""
        names, props = sorted(self.things), []
        for _ in range(int(rng.integers(0, 8))):
            drawings = self.things[names[rng.integers(len(names))]]
            thing = trim(_sprite(drawings[rng.integers(len(drawings))]))
            x, y = rng.uniform(0.1, 0.9, 2) * CANVAS
            props.append(Prop(tint(resize(thing, rng.uniform(1, 1.8)), rng, strength=0.1), x, y))
        return props


def picture(
    land: Land, sprite: Image, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image, tuple[int, int, int, int], np.ndarray]:
    """The picture `(H, W, 3)` of an individual, the box `(x0, y0, x1, y1)` around it, and points.

    The points `(4, 2)` are the corners of its drawing, the upper left one first, clockwise: where
    the camera sees them, outside of the picture too.

    Args:
        land: what it stands on and among.
        sprite: the individual's drawing.
        size: (width, height) of the picture.
        rng: the picture's random stream.
    """
    canvas = land.ground(rng)
    height = rng.uniform(110, 170)  # the individual's on the canvas, before the camera
    scale = min(height / sprite.shape[0], 1.4 * height / sprite.shape[1])
    sprite, drawn = _turned(tint(resize(sprite, scale), rng, strength=0.12), rng.uniform(-16, 16))
    x, y = rng.uniform(0.38, 0.62) * CANVAS, rng.uniform(0.6, 0.75) * CANVAS
    slope = float(rng.uniform(-0.9, 0.9))
    paste(canvas, shadow(sprite, slope=slope, length=0.45, darkness=0.35), x + slope * 25, y)
    compose(canvas, land.around(rng), Prop(sprite, x, y), max_hidden=0.25)
    middle = np.array([x, y - sprite.shape[0] / 2])
    wide = 1.15 * max(sprite.shape[1], sprite.shape[0] * size[0] / size[1]) * rng.uniform(1, 1.5)
    corners = view(
        (CANVAS, CANVAS),
        tuple(middle + rng.uniform(-0.08, 0.08, 2) * wide),
        (wide, wide * size[1] / size[0]),
        rng,
        roll=10,
        tilt=0.05,
    )
    image = photograph(np.clip(canvas, 0, 1), corners, size)
    place = np.array([x - sprite.shape[1] / 2, y - sprite.shape[0]])  # of its upper left corner
    seen = _seen(_rectangle(sprite) + place, corners, size)
    points = _seen(drawn + place, corners, size)
    return degrade(relight(image, rng, strength=0.8), rng), _box(seen, size), points


def _rectangle(sprite: Image) -> np.ndarray:
    """`(4, 2)` corners of a sprite, the upper left one first, clockwise."""
    height, width = sprite.shape[:2]
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)


def _seen(points: np.ndarray, corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`(P, 2)` where the picture of these corners of the canvas shows points of the canvas."""
    frame = np.array([[0, 0], [size[0], 0], [size[0], size[1]], [0, size[1]]], np.float32)
    warp = cv2.getPerspectiveTransform(corners.astype(np.float32), frame)
    return np.asarray(cv2.perspectiveTransform(points[None].astype(np.float32), warp)[0])


def _box(seen: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The upright box around points, cut at the border of the picture."""
    low = np.clip(np.floor(seen.min(0)), 0, np.array(size) - 1).astype(int)
    high = np.clip(np.ceil(seen.max(0)), low + 1, size).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _turned(sprite: Image, degrees: float) -> tuple[Image, np.ndarray]:
    """The sprite rotated about its middle, and where its corners `(4, 2)` are in the result."""
    height, width = sprite.shape[:2]
    side = int(np.ceil(np.hypot(height, width)))
    warp = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    warp[:, 2] += (side - width) / 2, (side - height) / 2
    turned = np.asarray(cv2.warpAffine(sprite, warp, (side, side)), np.float32)
    trimmed = trim(turned)
    # OpenCV counts from the middle of the first pixel, we from its corner.
    corners = (_rectangle(sprite) - 0.5) @ warp[:, :2].T + warp[:, 2] + 0.5
    seen = turned[..., 3] > 0.1  # as `trim` has it
    start = np.array([np.flatnonzero(seen.any(0))[0], np.flatnonzero(seen.any(1))[0]])
    return trimmed, corners - start


@lru_cache(maxsize=1024)
def _sprite(path: Path) -> Image:
    return read_sprite(path)


def _numbered(root: Path, names: tuple[str, ...]) -> dict[str, list[Path]]:
    """The drawings `name.png`, `name2.png`, ... of each name that has some."""
    found = defaultdict(list)
    for name in names:
        for path in sorted((root / name).parent.glob(f"{Path(name).name}*.png")):
            if path.stem.removeprefix(Path(name).name).isdigit() or path.stem == Path(name).name:
                found[name].append(path)
    return dict(found)
