"""A seller's picture of a product: background, one or several of it, badges, light, recompression.

Everything that listings of one product may differ in, so that only the product itself is common.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from common.data.sample import (
    Image,
    degrade,
    encode_jpeg,
    paste,
    relight,
    resize,
    shadow,
    smooth_noise,
    tint,
    trim,
)

SIDE = 200  # pixels of a square picture
SLOGANS = (
    "SALE", "PROMO", "COD", "-50%", "ORI", "NEW", "HOT", "READY", "GRATIS", "BEST", "1+1", "100%",
)  # fmt: skip
PACKS = {1: 0.78, 2: 0.1, 3: 0.05, 4: 0.07}  # how many of the product a picture shows, as shares


def picture(sprite: Image, gift: Callable[[], Image], rng: np.random.Generator) -> bytes:
    """The JPEG file of a listing.

    Args:
        sprite: the product, larger than it will be.
        gift: gives another product, of which some pictures have a small one in a corner.
        rng: the picture's random stream.
    """
    height = SIDE if rng.random() < 0.7 else int(rng.integers(160, 264))
    canvas = background((height, SIDE), rng)
    sprite = trim(sprite)
    if rng.random() < 0.12:
        sprite = np.ascontiguousarray(sprite[:, ::-1])
    sprite = _turned(sprite, float(rng.normal(0, 9)))
    _arrange(canvas, sprite, int(rng.choice([*PACKS], p=[*PACKS.values()])), rng)
    if rng.random() < 0.1:
        small = trim(gift())
        small = resize(small, 0.26 * SIDE / max(small.shape))
        x, y = SIDE * rng.choice([0.16, 0.84]), height * rng.choice([0.3, 0.96])
        paste(canvas, small, x, y)
    if rng.random() < 0.38:
        _badges(canvas, rng)
    image = np.clip(canvas, 0, 1)
    if rng.random() < 0.55:  # a photograph; the others come from the maker's catalogue
        image = degrade(relight(image, rng, strength=0.45), rng, blur=0.8, noise=0.012)
    for _ in range(int(rng.integers(0, 3))):  # saved by one seller after the other
        data = np.frombuffer(encode_jpeg(image, int(rng.integers(45, 90))), np.uint8)
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.float32)
        image /= 255
    return encode_jpeg(image, int(rng.integers(66, 84)))


def background(shape: tuple[int, int], rng: np.random.Generator) -> Image:
    """A `(H, W, 3)` canvas: white, one color, a gradient, cloth, stripes, dots or a table."""
    height, width = shape
    one, two = np.array(_color(rng)), np.array(_color(rng))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    mix, kind = np.zeros(shape), rng.random()
    if kind < 0.42:
        one = np.full(3, rng.uniform(0.93, 1.0))
    elif 0.55 < kind < 0.68:
        far = np.hypot(rows / height - 0.5, columns / width - 0.5)
        mix = rows / height if rng.random() < 0.5 else far
    elif 0.68 < kind < 0.8:
        mix = smooth_noise(shape, rng.uniform(8, 60), rng) + rng.normal(0, 0.05, shape)
    elif 0.8 < kind < 0.86:
        angle, step = rng.uniform(0, np.pi), rng.uniform(10, 30)
        wave = np.sin((np.cos(angle) * rows + np.sin(angle) * columns) * 2 * np.pi / step)
        mix = (wave > 0) * rng.uniform(0.3, 1)
    elif 0.86 < kind < 0.9:
        step = rng.uniform(14, 34)
        near = np.hypot(rows % step - step / 2, columns % step - step / 2) < 0.28 * step
        mix = near * rng.uniform(0.4, 1)
    elif kind > 0.9:
        table = rows > height * rng.uniform(0.5, 0.8)
        mix = table * (0.8 + 0.2 * smooth_noise(shape, 12, rng))
    return np.asarray(one * (1 - mix[..., None]) + two * mix[..., None], np.float32)


def _arrange(canvas: Image, sprite: Image, pack: int, rng: np.random.Generator) -> None:
    """Draw `pack` of the sprite on the canvas, some cut off by its border."""
    height, width = canvas.shape[:2]
    scale = rng.uniform(0.5, 0.86) if pack == 1 else rng.uniform(0.4, 0.5)
    if pack == 1 and rng.random() < 0.12:
        scale = rng.uniform(0.95, 1.25)
    cast = rng.random() < 0.4
    cells = [(0.5, 0.5)] if pack == 1 else [(0.29, 0.3), (0.71, 0.7), (0.71, 0.3), (0.29, 0.7)]
    sprite = tint(
        resize(sprite, scale * min(height, width) / max(sprite.shape)), rng, strength=0.08
    )
    slope = float(rng.uniform(-0.6, 0.6))
    for x, y in cells[:pack]:
        middle = np.array([x, y]) + rng.normal(0, 0.05 if pack == 1 else 0.025, 2)
        foot = middle[1] * height + sprite.shape[0] / 2
        if cast:
            dark = shadow(sprite, slope=slope, length=0.35, darkness=0.3)
            paste(canvas, dark, middle[0] * width + slope * 12, foot + 2)
        paste(canvas, sprite, middle[0] * width, foot)


def _badges(canvas: Image, rng: np.random.Generator) -> None:
    """Draw a frame, a ribbon or a round sticker with a slogan."""
    height, width = canvas.shape[:2]
    color = _color(rng, vivid=True)
    words, kind = str(rng.choice(SLOGANS)), rng.random()
    if kind < 0.25:
        cv2.rectangle(canvas, (0, 0), (width - 1, height - 1), color, int(rng.integers(5, 13)))
    elif kind < 0.65:
        tall = int(rng.integers(20, 34))
        top = 0 if rng.random() < 0.4 else height - tall
        cv2.rectangle(canvas, (0, top), (width, top + tall), color, -1)
        words = f"{words} {rng.choice(SLOGANS)}"
        _write(canvas, words, (width // 2, top + tall // 2), 0.032 * tall)
    else:
        radius = int(rng.integers(20, 30))
        x = radius + 3 if rng.random() < 0.5 else width - radius - 3
        y = radius + 3 if rng.random() < 0.6 else height - radius - 3
        cv2.circle(canvas, (x, y), radius, color, -1, cv2.LINE_AA)
        _write(canvas, words, (x, y), 0.4)


def _write(canvas: Image, text: str, middle: tuple[int, int], scale: float) -> None:
    """Write a word in white, around `middle`."""
    font, mask = cv2.FONT_HERSHEY_SIMPLEX, np.zeros(canvas.shape[:2], np.uint8)
    (wide, tall), _ = cv2.getTextSize(text, font, scale, 2)
    place = middle[0] - wide // 2, middle[1] + tall // 2
    cv2.putText(mask, text, place, font, scale, 255, 2, cv2.LINE_AA)  # bytes are all it draws on
    np.maximum(canvas, mask[..., None] / np.float32(255), out=canvas)


def _color(rng: np.random.Generator, *, vivid: bool = False) -> tuple[float, float, float]:
    """A color: pale or dull for a background, strong for a badge."""
    hue = rng.uniform(0, 360)
    strength, light = (
        (rng.uniform(0.6, 1), rng.uniform(0.5, 0.9))
        if vivid
        else (rng.uniform(0, 0.45), rng.uniform(0.45, 1))
    )
    pixel = np.array([[[hue, strength, light]]], np.float32)
    blue, green, red = cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red


def _turned(sprite: Image, degrees: float) -> Image:
    """The sprite rotated about its middle."""
    height, width = sprite.shape[:2]
    side = int(np.ceil(np.hypot(height, width)))
    warp = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    warp[:, 2] += (side - width) / 2, (side - height) / 2
    return trim(np.asarray(cv2.warpAffine(sprite, warp, (side, side)), np.float32))
