"""Pictures with a known homography between them."""

import cv2
import numpy as np


def texture(seed, height=360, width=480):
    """Random discs and bars: corners and blobs everywhere, as on a facade."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120, np.uint8)
    for _ in range(260):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            cv2.circle(image, (x, y), int(rng.integers(3, 16)), color, -1)
        else:
            w, h = rng.integers(4, 30, 2).tolist()
            cv2.rectangle(image, (x, y), (x + w, y + h), color, -1)
    return cv2.GaussianBlur(image, (0, 0), 0.8)


def turned(image, angle=12, scale=0.9, bend=2e-4):
    """The image seen from elsewhere, and the homography that did it."""
    height, width = image.shape[:2]
    matrix = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale), [0, 0, 1]])
    matrix = np.array([[1, 0, 0], [0, 1, 0], [bend, bend / 2, 1]]) @ matrix
    return cv2.warpPerspective(image, matrix, (width, height), borderValue=(90, 90, 90)), matrix
