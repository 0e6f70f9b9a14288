"""Any picture file as an (H, W, 3) uint8 RGB array, or one clear error.

What winners read with `cv2.imread`, decoded at a reduced scale where the caller needs no more.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

# Corrupt files are reported through ImageError, once; OpenCV would log each of them as well.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Pillow reads headers only: its remarks on pixel counts and metadata do not matter here.
warnings.filterwarnings("ignore", module=r"PIL\.")

Box = tuple[int, int, int, int]


class Frame(NamedTuple):
    """A parallelogram of a picture that is to become a rectangle.

    Attributes:
        matrix: `(2, 3)`; `matrix @ (u, v, 1)` is where a point of the rectangle lies, in pixels of
            the whole upright picture. Both are measured from the corner, so that the middle of the
            first pixel is at 0.5.
        width: of the rectangle, in its own pixels.
        height: the same.
    """

    matrix: np.ndarray
    width: int
    height: int


_ORIENTATION = 274  # the EXIF tag
_REDUCED = {  # IMREAD_REDUCED_COLOR_* without its BGR bit: BGR and RGB cannot be asked for together
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
}


class ImageError(ValueError):
    """A file that gives no picture; the message names the file and the reason."""


def read_image(
    path: str | bytes | Path,
    *,
    size: int | None = None,
    box: Box | None = None,
    frame: Frame | None = None,
    max_pixels: int = 100_000_000,
) -> np.ndarray:
    """The picture as `(H, W, 3)` uint8 RGB, of the box only when there is one.

    Grey, CMYK, palette and 16-bit files become 8-bit RGB, alpha is dropped, an animation gives its
    first frame. The picture is upright: an EXIF orientation is applied, as by `cv2.imread`, which
    most winners used. A truncated file is an error, also when half of it could be shown: the grey
    rest would become part of the embedding.

    Args:
        path: the file.
        size: the smallest short side, in pixels, that the caller needs of the picture or the box.
            A JPEG is decoded at 1/2, 1/4 or 1/8 scale as long as that much is left (libjpeg scales
            in the DCT, which is an area average); other formats come whole. None: whole.
        box: `x0, y0, x1, y1` in pixels of the whole upright picture, x1 and y1 excluded; what lies
            outside of the picture is ignored.
        frame: what is wanted in place of a box: the rectangle that it describes, black where it
            leaves the picture, and smaller than it says where the JPEG was decoded at a reduced
            scale.
        max_pixels: pictures above are refused before they are decoded (decompression bombs).

    Raises:
        ImageError: missing, empty, truncated, too large, not an image, nothing left of the box, or
            the middle of the frame is outside of the picture.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{_name(path)}: {reason}") from None
    if not data:
        raise ImageError(f"{_name(path)}: empty file")
    width, height, scalable = _header(path, data)
    if width * height > max_pixels:
        raise ImageError(
            f"{_name(path)}: {width} x {height} pixels, more than max_pixels={max_pixels}"
        )
    short = min(width, height)
    if box is not None:  # which of the two is the width depends on EXIF, not known yet
        x0, y0, x1, y1 = np.clip(box, 0, max(width, height)).tolist()
        short = min(short, x1 - x0, y1 - y0)
    if frame is not None:
        short = min(short, frame.width, frame.height)
    flags = _flags(short, size) if scalable else cv2.IMREAD_COLOR_RGB
    try:
        image: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{_name(path)}: {error.err or error}") from None
    if image is None:
        raise ImageError(f"{_name(path)}: truncated or corrupt ({len(data)} bytes)")
    if box is None and frame is None:
        return image
    rows, columns = image.shape[:2]
    # An EXIF rotation swaps the sides that the header names.
    if (rows > columns) != (height > width) and rows != columns:
        width, height = height, width
    if frame is not None:
        return _warp(path, image, frame, width, height)
    assert box is not None
    return _crop(path, image, box, width, height)


def picture_size(path: str | bytes | Path) -> tuple[int, int]:
    """Width and height of the upright picture, from the file's header.

    Raises:
        ImageError: missing, or not an image.
    """
    try:
        with Image.open(os.fsdecode(path)) as file:
            width, height = file.size
            turned = file.getexif().get(_ORIENTATION, 1) > 4  # by 90 degrees when shown
    except Exception as error:  # parsers of broken files raise anything
        raise ImageError(f"{_name(path)}: {error}") from None
    return (height, width) if turned else (width, height)


def _header(path: str | bytes | Path, data: bytes) -> tuple[int, int, bool]:
    """Width and height before any rotation, and whether the file can be decoded at reduced scale.

    Pillow only parses the header here, 1 % of what the decoding takes.
    """
    try:
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
            return width, height, header.format in ("JPEG", "MPO")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{_name(path)}: {error}") from None
    except Exception:  # parsers of broken files raise anything from struct.error to KeyError
        raise ImageError(f"{_name(path)}: not an image that can be read") from None


def _flags(short: int, size: int | None) -> int:
    if size is not None:
        for scale, flags in _REDUCED.items():
            if short // scale >= size:
                return flags
    return cv2.IMREAD_COLOR_RGB


def _crop(
    path: str | bytes | Path, image: np.ndarray, box: Box, width: int, height: int
) -> np.ndarray:
    """The box, given in full-size pixels, cut out of a picture that may be of reduced scale."""
    rows, columns = image.shape[:2]
    x0, y0 = max(box[0], 0) * columns / width, max(box[1], 0) * rows / height
    x1, y1 = min(box[2], width) * columns / width, min(box[3], height) * rows / height
    if x1 <= x0 or y1 <= y0:
        raise ImageError(f"{_name(path)}: box {tuple(box)} holds no pixel of {width} x {height}")
    cut = image[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)]
    return cut.copy()  # so that the rest of the picture is freed


def _warp(
    path: str | bytes | Path, image: np.ndarray, frame: Frame, width: int, height: int
) -> np.ndarray:
    """The frame's rectangle out of a picture of `width` x `height` that may be of reduced scale."""
    x, y = frame.matrix @ (frame.width / 2, frame.height / 2, 1)
    if not (0 <= x < width and 0 <= y < height):
        raise ImageError(f"{_name(path)}: a frame around {x:.0f}, {y:.0f} of {width} x {height}")
    scale = np.array([image.shape[1] / width, image.shape[0] / height])
    size = [max(1, round(side * scale.mean())) for side in (frame.width, frame.height)]
    # OpenCV counts from the middle of the first pixel, on both sides.
    stretch = np.array([frame.width / size[0], frame.height / size[1]])
    matrix = frame.matrix * scale[:, None]
    matrix[:, :2] *= stretch
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    warped: np.ndarray = cv2.warpAffine(
        image, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    return warped


def _name(path: str | bytes | Path) -> str:
    return os.fsdecode(path)
