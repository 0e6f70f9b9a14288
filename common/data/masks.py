"""The mask of a picture, cut out as the picture was: from a file of its size, or from a box.

Humpback 2019, first place: a fourth channel, zeroed half of the time in training.
"""

from __future__ import annotations

import cv2
import numpy as np

from common.data.images import Box, Frame, ImageError, picture_size, read_image


def mask_of(
    source: np.ndarray | bytes,
    path: bytes,
    shape: tuple[int, ...],
    *,
    box: Box | None,
    frame: Frame | None,
) -> np.ndarray:
    """`(H, W)` uint8, 255 inside and 0 outside; 0 throughout where there is no mask.

    Args:
        source: the mask's file (bytes), of the same pixels as the picture; or `(4,)` x0, y0, x1, y1
            in pixels of the picture. Empty or zeros: none.
        path: the picture's file.
        shape: `(H, W, ...)` of what was cut out of the picture.
        box: what was cut out, or None.
        frame: the same, or None.
    """
    size = shape[1], shape[0]
    if not np.any(source if isinstance(source, np.ndarray) else len(source)):
        return np.zeros(shape[:2], np.uint8)
    try:
        if isinstance(source, bytes):
            found = read_image(source, box=box, frame=frame)[..., 0]
            return np.asarray(cv2.resize(found, size, interpolation=cv2.INTER_AREA))
        width, height = picture_size(path)
    except ImageError:
        return np.zeros(shape[:2], np.uint8)
    x0, y0, x1, y1 = source
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if frame is not None:
        matrix = frame.matrix
        corners = np.linalg.solve(matrix[:, :2], (corners - matrix[:, 2]).T).T
        whole = np.array([frame.width, frame.height])
    else:
        low, high = np.zeros(2), np.array([width, height])
        if box is not None:
            low, high = np.maximum(box[:2], 0), np.minimum(box[2:], high)
        corners, whole = corners - low, high - low
    # OpenCV counts from the middle of the first pixel; 4 more bits for parts of pixels.
    points = np.round((corners * size / whole - 0.5) * 16).astype(np.int32)
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, points, 255, shift=4)
    return mask
