"""Pictures composed from sprites, for the small samples that travel with the repository.

Everything random comes from one numpy Generator per picture (`stream`), so that a picture depends
on its own key only: not on its neighbors, not on the order of work. Images are float32 in [0, 1],
channels in OpenCV's order (blue, green, red); a sprite has a fourth channel, alpha, and its colors
are premultiplied by it, which keeps resizing free of dark fringes.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


def build_command(
    arguments: list[str],
    description: str | None,
    source: tuple[str, str],
    home: Path,
    build: Callable[[Path, Path], Mapping[str, int]],
) -> None:
    """The command line of a sample's builder: build, print the numbers.

    Args:
        arguments: of the command line.
        description: of the builder.
        source: name and help of the argument that says where the art is.
        home: where the sample goes unless `--out` says otherwise.
        build: from these two folders to the numbers that the sample's README names.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar=source[0], type=Path, help=source[1])
    parser.add_argument("--out", type=Path, default=home, help="where the sample goes")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    for name, value in build(options.source, options.out).items():
        print(f"{name}: {value}")


def digest(*key: object, digits: int = 16) -> str:
    """`digits` hex characters that depend on every part of `key` and on nothing else."""
    text = "\x1f".join(str(part) for part in key)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def stream(*key: object) -> np.random.Generator:
    """The random stream that belongs to `key`."""
    return np.random.default_rng(int(digest(*key, digits=32), 16))


def read_sprite(path: str | Path) -> Image:
    """The `(H, W, 4)` premultiplied sprite of an image file; without alpha it is opaque.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or every pixel is transparent.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No sprite at {path}: is the art unpacked there?")
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{path} cannot be decoded as an image: unpack the art again.")
    try:
        return as_sprite(pixels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def as_sprite(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> Image:
    """The `(H, W, 4)` premultiplied sprite of decoded pixels: grey, color, or color and alpha.

    Raises:
        ValueError: every pixel is transparent.
    """
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    sprite = np.ones((*pixels.shape[:2], 4), np.float32)
    sprite[..., : pixels.shape[2]] = pixels / np.float32(np.iinfo(pixels.dtype).max)
    sprite[..., :3] *= sprite[..., 3:]
    if not sprite[..., 3].any():
        raise ValueError("The sprite is transparent everywhere: nothing to paste.")
    return sprite


def over(top: Image, bottom: Image) -> Image:
    """`top` laid over `bottom`, two sprites of one shape."""
    if top.shape != bottom.shape:
        raise ValueError(f"Sprites of shapes {top.shape} and {bottom.shape} cannot be stacked.")
    return top + bottom * (1 - top[..., 3:])


def trim(sprite: Image, *, threshold: float = 0.1) -> Image:
    """The smallest rectangle that holds every pixel with alpha above `threshold`."""
    rows = np.flatnonzero((sprite[..., 3] > threshold).any(1))
    columns = np.flatnonzero((sprite[..., 3] > threshold).any(0))
    if not len(rows):
        raise ValueError(f"No pixel of the sprite has alpha above {threshold}.")
    return sprite[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def resize(image: Image, scale: float) -> Image:
    """`image` at `scale`, at least one pixel on each side; area averaging when it shrinks."""
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=method), np.float32)


def paste(canvas: Image, sprite: Image, x: float, y: float) -> tuple[slice, slice]:
    """Draw `sprite` on `canvas` in place, its bottom centre at `(x, y)`, cut off at the borders.

    Returns the rows and columns of the canvas that the sprite's rectangle landed on, maybe none.
    """
    left, top = round(x - sprite.shape[1] / 2), round(y - sprite.shape[0])
    spans = []
    for start, length, limit in zip((top, left), sprite.shape, canvas.shape, strict=False):
        first = min(max(start, 0), limit)
        spans.append(slice(first, max(min(start + length, limit), first)))
    rows, columns = spans
    part = sprite[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    canvas[rows, columns] *= 1 - part[..., 3:]
    canvas[rows, columns] += part[..., : canvas.shape[2]]
    return rows, columns


def tint(sprite: Image, rng: np.random.Generator, *, strength: float) -> Image:
    """The sprite with its brightness moved by about `strength` and its color balance by a third."""
    gain = np.exp(rng.normal(0, strength / 3, 3) + rng.normal(0, strength)).astype(np.float32)
    shaded = sprite.copy()
    shaded[..., :3] = np.minimum(sprite[..., :3] * gain, sprite[..., 3:])
    return shaded


def shadow(sprite: Image, *, slope: float, length: float, darkness: float) -> Image:
    """The sprite's cast shadow: sheared by `slope`, flattened to `length` of its height, soft."""
    height, width = sprite.shape[:2]
    tall, lean = max(2, round(height * length)), round(abs(slope) * height)
    start = lean if slope < 0 else 0
    source = np.array([[0, 0], [0, height], [width, height]], np.float32)
    foot = np.array([[start, tall], [start + width, tall]], np.float32)
    head = np.array([[start + slope * height, 0]], np.float32)
    warp = cv2.getAffineTransform(source, np.concatenate([head, foot]))
    alpha = cv2.warpAffine(np.ascontiguousarray(sprite[..., 3]), warp, (width + lean, tall))
    cast = np.zeros((tall, width + lean, 4), np.float32)
    cast[..., 3] = cv2.GaussianBlur(alpha, (0, 0), 1.5) * darkness
    return cast


@dataclass
class Prop:
    """A sprite and where its bottom centre stands on the canvas, in pixels."""

    sprite: Image
    x: float
    y: float


def compose(
    canvas: Image, props: Sequence[Prop], subject: Prop | None = None, *, max_hidden: float = 0.35
) -> float:
    """Draw props and the subject on `canvas` in place, far ones first, and return the hidden share.

    The hidden share is the part of the subject's alpha that later props cover, 0 to 1. A prop
    that would lift it above `max_hidden` is left out.
    """
    mask = np.zeros((*canvas.shape[:2], 1), np.float32)
    hidden, share = np.zeros_like(mask), 0.0
    for prop in sorted([*props, *([subject] if subject else [])], key=lambda prop: prop.y):
        if prop is subject:
            paste(mask, _silhouette(prop.sprite), prop.x, prop.y)
        elif mask.any():
            after = hidden.copy()
            paste(after, _silhouette(prop.sprite), prop.x, prop.y)
            covered = float((after * mask).sum() / mask.sum())
            if covered > max_hidden:
                continue
            share, hidden = covered, after
        paste(canvas, prop.sprite, prop.x, prop.y)
    return share


def _silhouette(sprite: Image) -> Image:
    """The sprite in white: pasted on a canvas of one channel, it accumulates alpha."""
    return np.repeat(sprite[..., 3:], 4, axis=2)


def smooth_noise(shape: tuple[int, int], cell: float, rng: np.random.Generator) -> Image:
    """`(H, W)` noise in [0, 1] whose hills are about `cell` pixels wide."""
    grid = [max(2, round(side / cell) + 2) for side in shape]
    coarse = rng.random((grid[0], grid[1]), dtype=np.float32)
    fine = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(fine, 0, 1), np.float32)


def view(
    canvas_size: tuple[int, int],
    center: tuple[float, float],
    size: tuple[float, float],
    rng: np.random.Generator,
    *,
    roll: float = 6.0,
    tilt: float = 0.08,
) -> NDArray[np.float32]:
    """Four corners `(4, 2)` of a picture's view on the canvas, clockwise from the top left.

    A `size` (width, height) rectangle around `center`, rolled by up to `roll` degrees, its
    corners moved by up to `tilt` of its sides (perspective), shifted and if need be shrunk so
    that it never leaves the canvas of `canvas_size` (width, height).
    """
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64) / 2
    corners = (corners + rng.uniform(-tilt, tilt, (4, 2))) * size
    angle = np.deg2rad(rng.uniform(-roll, roll))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = corners @ turn
    room = np.array(canvas_size, np.float64) - 1
    corners *= min(1.0, float((room / np.ptp(corners, axis=0)).min()))
    corners += np.clip(center, -corners.min(0), room - corners.max(0))
    return np.asarray(np.clip(corners, 0, room), np.float32)


def photograph(canvas: Image, corners: NDArray[np.float32], size: tuple[int, int]) -> Image:
    """The view inside `corners` as a `(height, width, 3)` picture of `size` (width, height)."""
    inside = (corners >= 0).all() and (corners <= np.array(canvas.shape[1::-1]) - 1).all()
    if not inside:
        raise ValueError(f"The view {corners.tolist()} leaves the canvas {canvas.shape[1::-1]}.")
    frame = np.array([[0, 0], [size[0], 0], [size[0], size[1]], [0, size[1]]], np.float32)
    shrink = float(np.linalg.norm(corners[0] - corners[2]) / np.hypot(*size))
    if shrink > 1.2:  # a low-pass first, or fine texture turns into moire
        canvas = cv2.GaussianBlur(canvas, (0, 0), 0.4 * shrink)
    warp = cv2.getPerspectiveTransform(corners, frame)
    return np.asarray(
        cv2.warpPerspective(canvas, warp, size, borderMode=cv2.BORDER_REPLICATE), np.float32
    )


def relight(image: Image, rng: np.random.Generator, *, strength: float = 1.0) -> Image:
    """The picture at another hour: color of the light, its fall-off, clouds, haze, exposure."""
    height, width = image.shape[:2]
    gray = image.mean(2, keepdims=True)
    image = gray + (image - gray) * np.float32(np.exp(rng.normal(-0.1, 0.25 * strength)))
    warmth = rng.normal(0, 0.12 * strength)
    balance = np.exp(np.array([-warmth, rng.normal(0, 0.03 * strength), warmth]))
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3 * strength)
    light = 1 + slope * (np.cos(angle) * columns + np.sin(angle) * rows)
    light -= rng.uniform(0, 0.2 * strength) * (rows**2 + columns**2)
    clouds = smooth_noise((height, width), max(height, width) / rng.uniform(1, 4), rng)
    light *= 1 - rng.uniform(0, 0.5 * strength) * (clouds > rng.uniform(0.4, 0.9))
    light = cv2.GaussianBlur(light, (0, 0), 4)
    image = image * light[..., None] * balance
    haze = rng.uniform(0, 0.35 * strength) * rng.random() * np.clip(0.6 - 0.4 * rows, 0, 1)
    image = image * (1 - haze[..., None]) + haze[..., None] * rng.uniform(0.6, 0.95, 3)
    image = np.clip(image, 0, 1)
    # The camera's automatic exposure: a gamma that brings the mean near a target of its own.
    target, mean = rng.uniform(0.45 - 0.12 * strength, 0.45 + 0.1 * strength), float(image.mean())
    if 0 < mean < 1:
        image = image ** np.clip(np.log(target) / np.log(mean), 0.5, 1.6)
    image = (image - target) * np.exp(rng.normal(0.05, 0.15 * strength)) + target
    return np.clip(image, 0, 1).astype(np.float32)


def degrade(
    image: Image, rng: np.random.Generator, *, blur: float = 0.9, noise: float = 0.02
) -> Image:
    """The picture through a cheap camera: out of focus or shaken, then sensor noise."""
    sigma = rng.uniform(0.2, blur)
    if rng.random() < 0.25:
        length, angle = int(rng.integers(3, 6)), rng.uniform(0, np.pi)
        kernel = np.zeros((7, 7), np.float32)
        end = (3 + length / 2 * np.cos(angle), 3 + length / 2 * np.sin(angle))
        start = (6 - end[0], 6 - end[1])
        cv2.line(kernel, _pixel(start), _pixel(end), 1.0)
        image = cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    image = cv2.GaussianBlur(image, (0, 0), sigma)
    grain = rng.normal(0, rng.uniform(0, noise), image.shape)
    return np.clip(image + grain, 0, 1).astype(np.float32)


def encode_jpeg(image: Image, quality: int) -> bytes:
    """The JPEG file of a picture; no EXIF, no time, so equal pictures give equal bytes."""
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"A picture of shape {image.shape} cannot be encoded as JPEG.")
    return bytes(data)


def _pixel(point: tuple[float, float]) -> tuple[int, int]:
    return round(point[0]), round(point[1])
