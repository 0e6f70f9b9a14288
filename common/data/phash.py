"""DCT hashes of pictures, 16 hex digits each, as in Shopee's column `image_phash`.

    hashes, readable = dct_hashes(paths)
    pairs = near_duplicates(hashes, distance=6)     # common.data.dedupe: rows within 6 bits

Source: C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010,
3.2.1 (pHash); in the form that is common in Python: 32 x 32 grey cells, the 8 x 8 lowest
frequencies with the constant one among them, each against their median.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.data.images import ImageError, read_image

Array = np.ndarray

CELLS = 32
LOWEST = 8
_HEX = re.compile("[0-9a-fA-F]{16}")
# Rows of the cosine transform of the second kind, not normalised (scipy's default): with the factor
# 1/sqrt(2) of the orthonormal one in row 0, values would come to the other side of the median.
_COSINES = np.cos(np.pi / CELLS * np.outer(np.arange(LOWEST), np.arange(CELLS) + 0.5))


def dct_hash(image: Array) -> np.uint64:
    """64-bit DCT hash of an image; bit 63 is the constant frequency, rows follow one another.

    Survives resizing, recompression, brightness and a little blur; not crops, flips or rotation.
    An image of one color is 8000000000000000, a black one 0.

    Args:
        image: `(H, W, 3)` uint8 RGB.
    """
    return np.uint64(_bits(_cells(image)[None])[0])


def dct_hashes(paths: Sequence[str | bytes] | Array, *, workers: int = 0) -> tuple[Array, Array]:
    """`(N,)` uint64 hashes of image files and `(N,)` bool: which of them could be read.

    Args:
        paths: image files; an unreadable one gets hash 0 and False.
        workers: threads (decoding releases the interpreter lock); 0 is one per CPU core.
    """

    def chunk(start: int) -> tuple[Array, Array]:
        part = paths[start : start + 256]
        cells, readable = np.zeros((len(part), CELLS, CELLS)), np.ones(len(part), bool)
        for row, path in enumerate(part):
            try:
                cells[row] = _cells(read_image(path))
            except ImageError:
                readable[row] = False
        return np.where(readable, _bits(cells), np.uint64(0)), readable

    starts = range(0, len(paths), 256)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        bar = tqdm(pool.map(chunk, starts), "hash", len(starts), unit_scale=256, disable=None)
        chunks = [(np.empty(0, np.uint64), np.empty(0, bool)), *bar]
    return np.concatenate([h for h, _ in chunks]), np.concatenate([ok for _, ok in chunks])


def hash_text(value: np.uint64 | int) -> str:
    """16 hex digits of a hash."""
    return f"{int(value):016x}"


def hash_values(texts: Sequence[str] | Array) -> Array:
    """`(N,)` uint64 of hashes written as 16 hex digits.

    Raises:
        ValueError: a text that is something else; names its row.
    """
    for row, text in enumerate(texts):
        if not _HEX.fullmatch(text):  # int() would also take a sign, 0x and underscores
            raise ValueError(f"Hash {text!r} in row {row} is not 16 hex digits.")
    return np.array([int(text, 16) for text in texts], np.uint64)


def hash_distance(hashes: Array, pairs: Array) -> Array:
    """`(P,)` uint8 bits in which the hashes of two rows differ.

    Args:
        hashes: `(N,)` uint64.
        pairs: `(P, 2)` rows.
    """
    return np.asarray(np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]), np.uint8)


def _cells(image: Array) -> Array:
    """`(32, 32)` grey levels of an image, by Pillow: its filter is what made Shopee's column."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"Need an (H, W, 3) uint8 RGB image, got {image.shape} {image.dtype}.")
    grey = Image.fromarray(image).convert("L")
    return np.asarray(grey.resize((CELLS, CELLS), Image.Resampling.LANCZOS), np.float64)


def _bits(cells: Array) -> Array:
    """`(N,)` uint64: the low frequencies of `(N, 32, 32)` above the median of each 64."""
    low = (_COSINES @ cells @ _COSINES.T).reshape(len(cells), LOWEST * LOWEST)
    low = low.round(6)  # what is zero but for rounding is below the median, not a bit at random
    above = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(above, axis=1).view(">u8").reshape(-1).astype(np.uint64)
