"""Local features of one image: SIFT by OpenCV; DISK, ALIKED and XFeat by kornia with given weights.

Lowe (IJCV 2004) with the root of Arandjelovic and Zisserman (CVPR 2012); Tyszkiewicz et al.
(NeurIPS 2020); Zhao et al. (TIM 2023); Potje et al. (CVPR 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from common.data.images import read_image
from common.rerank.networks import detector

FEATURES = ("sift", "disk", "aliked", "xfeat")
_ROOTS = np.sqrt(np.arange(256, dtype=np.float32))
_DIMENSIONS = {"sift": 128, "disk": 128, "aliked": 128, "xfeat": 64}
_SMALLEST = 32  # pixels of the short side; below, the networks' feature maps are empty


@dataclass
class LocalFeatures:
    """Keypoints of one image.

    Attributes:
        points: `(N, 2)` float32, x and y in pixels of the (resized) image.
        descriptors: `(N, D)`, uint8 as SIFT counts them, else float16 unit rows: what a cache
            holds.
        size: width and height of that image.
    """

    points: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.points)

    def unit(self) -> np.ndarray:
        """Descriptors as `(N, D)` float32 unit rows; SIFT as RootSIFT."""
        if self.descriptors.dtype != np.uint8:
            return self.descriptors.astype(np.float32, copy=False)
        # sqrt of L1-normalised counts has L2 norm 1; the table is sqrt of every possible count.
        rows = _ROOTS[self.descriptors]
        total = self.descriptors.sum(1, dtype=np.float32, keepdims=True)
        return np.asarray(rows / np.sqrt(np.maximum(total, 1e-12)))


def load(image: str | bytes | Path | np.ndarray, size: int | None) -> np.ndarray:
    """The image as `(H, W, 3)` uint8 RGB with a long side of at most `size`.

    Raises:
        ImageError: a file that gives no picture.
        ValueError: an array that is not uint8 `(H, W)` or `(H, W, 3)`.
    """
    if not isinstance(image, np.ndarray):
        # The long side is to be `size`; the short side that takes is not known, but is no larger.
        image = read_image(image, size=size)
    elif image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"An image must be uint8 (H, W) or (H, W, 3) RGB, got {image.dtype} {image.shape}."
        )
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    long = max(image.shape[:2])
    if size is None or long <= size:
        return image
    factor = size / long
    shape = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    return np.asarray(cv2.resize(image, shape, interpolation=cv2.INTER_AREA))


def extract(
    image: np.ndarray, features: str, *, keypoints: int = 1000, device: str = "cpu"
) -> LocalFeatures:
    """Up to `keypoints` features of an `(H, W, 3)` uint8 RGB image; none of a tiny or blank one.

    Raises:
        ValueError: an unknown kind of features.
        FileNotFoundError: its weights are not installed.
    """
    check_features(features)
    height, width = image.shape[:2]
    if min(height, width) < _SMALLEST:
        return _pack(np.zeros((0, 2)), None, features, (width, height))
    if features == "sift":
        # One detector per call: they are cheap, and not meant for several threads at once.
        sift: Any = cv2.SIFT.create(nfeatures=keypoints)
        found, descriptors = sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
        points = np.asarray(cv2.KeyPoint.convert(found)) if found else np.zeros((0, 2))
        # OpenCV keeps all that tie with the last one.
        points, descriptors = points[:keypoints], descriptors if found else None
        return _pack(points, descriptors, features, (width, height))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(device).float() / 255
    with torch.inference_mode():
        points, descriptors = detector(features, device)(pixels, keypoints)
    return _pack(points, descriptors, features, (width, height))


def check_features(features: str) -> None:
    """Raise ValueError for a kind of features that is not here."""
    if features not in FEATURES:
        raise ValueError(f"No local features {features!r}; known: {', '.join(FEATURES)}.")


def _pack(
    points: np.ndarray, descriptors: np.ndarray | None, features: str, size: tuple[int, int]
) -> LocalFeatures:
    kind = np.uint8 if features == "sift" else np.float16
    if descriptors is None:
        descriptors = np.zeros((0, _DIMENSIONS[features]), kind)
    return LocalFeatures(
        np.asarray(points, np.float32).reshape(-1, 2),
        np.asarray(descriptors[: len(points)], dtype=kind),
        size,
    )
