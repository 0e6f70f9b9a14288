"""Whether two images show the same thing: matched local features that one homography explains.

`verify(a, b)` for one pair; `common.rerank.local` for the candidates of many queries. Robust
estimation is OpenCV's USAC with MAGSAC++ scoring (Barath et al., CVPR 2020); LightGlue:
Lindenberger et al. (ICCV 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from common.rerank.features import LocalFeatures, check_features, extract, load
from common.rerank.networks import lightglue

MATCHERS = ("mutual", "lightglue")
MODELS = ("homography", "fundamental")
# Ratio test and smallest cosine of mutual matching. SIFT: Lowe's ratio; XFeat: its authors' cosine.
_MUTUAL = {"sift": (0.8, -1.0), "disk": (0.95, -1.0), "aliked": (0.95, -1.0), "xfeat": (1.0, 0.82)}


@dataclass
class Verification:
    """What speaks for two images showing the same object.

    Attributes:
        inliers: matches that agree with the model.
        matches: matches before the geometry.
        ratio: inliers / matches, 0 without matches. Look at both: no number of inliers separates
            same from different for every kind of features, so calibrate it per kind.
        model: `(3, 3)` homography from a's pixels to b's, or fundamental matrix; None without one.
        points: `(inliers, 4)` x, y in a and x, y in b, in pixels of the images as given.
    """

    inliers: int
    matches: int
    ratio: float
    model: np.ndarray | None
    points: np.ndarray


@dataclass(frozen=True)
class Settings:
    """How pairs are matched; every field changes the result, so a cache is keyed by all of them."""

    features: str = "sift"
    matcher: str = "mutual"
    keypoints: int = 1000
    size: int = 512
    model: str = "homography"
    threshold: float = 4.0
    ratio: float = 0.0

    def __post_init__(self) -> None:
        check_features(self.features)
        if self.matcher not in MATCHERS:
            raise ValueError(f"No matcher {self.matcher!r}; known: {', '.join(MATCHERS)}.")
        if self.matcher == "lightglue" and self.features == "sift":
            raise ValueError(
                "No LightGlue weights for sift: use matcher mutual, or other features."
            )
        if self.model not in MODELS:
            raise ValueError(f"No model {self.model!r}; known: {', '.join(MODELS)}.")
        if self.keypoints < 4 or self.size < 32 or self.threshold <= 0 or self.ratio < 0:
            raise ValueError(
                "Local verification needs keypoints >= 4, size >= 32, threshold > 0 and ratio >= 0 "
                f"(0: the features' own), got {self}."
            )


def verify(
    image_a: str | bytes | Path | np.ndarray,
    image_b: str | bytes | Path | np.ndarray,
    features: str = "sift",
    *,
    matcher: str = "mutual",
    keypoints: int = 1000,
    size: int = 512,
    model: str = "homography",
    threshold: float = 4.0,
    ratio: float = 0.0,
    device: str = "cpu",
) -> Verification:
    """Matches between two images that one homography (or fundamental matrix) explains.

    Deterministic: the same images and settings give the same numbers on each call.

    Args:
        image_a: a path, or an `(H, W, 3)` or `(H, W)` uint8 RGB array.
        image_b: the other one.
        features: `sift` (RootSIFT), `disk`, `aliked` or `xfeat`; all but the first need weights.
        matcher: `mutual` nearest neighbors with ratio test, or `lightglue` (LighterGlue for XFeat).
        keypoints: at most so many per image, the strongest.
        size: the long side that images are shrunk to.
        model: `homography` (planar scenes, facades; the stronger evidence) or `fundamental`.
        threshold: largest error of an inlier in pixels of the shrunk images.
        ratio: largest ratio of the distances to the nearest and the second; 0: the features' own.
        device: where the networks run.

    Raises:
        ImageError: a file that gives no picture.
        ValueError: an array of another kind, or an unknown setting.
        FileNotFoundError: weights are not installed.
    """
    settings = Settings(features, matcher, keypoints, size, model, threshold, ratio)
    found, shrink = [], []
    for image in (image_a, image_b):
        whole = load(image, None)
        small = load(whole, size)
        found.append(extract(small, features, keypoints=keypoints, device=device))
        # Sides are whole pixels, so x and y shrink differently; pixel centres lie at .5.
        x, y = np.divide(small.shape[1::-1], whole.shape[1::-1])
        shrink.append(np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1.0]]))
    matched = match(found[0], found[1], settings, device)
    matrix, inlying = estimate(found[0].points[matched[0]], found[1].points[matched[1]], settings)
    points = [
        (f.points[rows][inlying] - to[:2, 2]) / to.diagonal()[:2]
        for f, rows, to in zip(found, matched, shrink, strict=True)
    ]
    if matrix is not None:
        left = np.linalg.inv(shrink[1]) if model == "homography" else shrink[1].T
        matrix = left @ matrix @ shrink[0]
        matrix /= matrix[2, 2] if model == "homography" else np.linalg.norm(matrix)
    total, inliers = len(matched[0]), int(inlying.sum())
    return Verification(inliers, total, inliers / max(total, 1), matrix, np.concatenate(points, 1))


def match(
    a: LocalFeatures, b: LocalFeatures, settings: Settings, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a and rows of b that belong together, `(M,)` int64 each."""
    if len(a) == 0 or len(b) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if settings.matcher == "lightglue":
        return _lightglue(a, b, settings.features, device)
    ratio, cosine = _MUTUAL[settings.features]
    return mutual_nearest(a.unit(), b.unit(), ratio=settings.ratio or ratio, cosine=cosine)


def mutual_nearest(
    a: np.ndarray, b: np.ndarray, *, ratio: float = 1.0, cosine: float = -1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are each other's nearest, the second nearest in b farther by 1 / ratio.

    `(N, D)`, `(M, D)` float32 unit rows -> two `(P,)` int64. One product instead of two searches:
    three times as fast as OpenCV's matcher at 1000 rows. The ratio is one of Euclidean distances
    (Lowe 2004, section 7.1); a b of a single row has no second and passes.
    """
    similarity = a @ b.T
    rows = np.arange(len(a))
    nearest = similarity.argmax(1)
    best = similarity[rows, nearest]
    keep = (best >= similarity.max(0)[nearest]) & (best >= cosine)
    if ratio < 1 and len(b) > 1:
        similarity[rows, nearest] = -np.inf
        second = similarity.max(1)
        keep &= (1 - best) < ratio**2 * (1 - second)  # squared distances are 2 - 2 * cosine
    kept = np.flatnonzero(keep)
    return kept, nearest[kept]


def estimate(
    points_a: np.ndarray, points_b: np.ndarray, settings: Settings
) -> tuple[np.ndarray | None, np.ndarray]:
    """The model that most matches agree with, and which do: `(3, 3)` or None, `(M,)` bool."""
    none = np.zeros(len(points_a), dtype=bool)
    homography = settings.model == "homography"
    if len(points_a) < (4 if homography else 8):
        return None, none
    fit = cv2.findHomography if homography else cv2.findFundamentalMat
    cv2.setRNGSeed(0)  # of this thread
    try:
        matrix, mask = fit(
            points_a,
            points_b,
            cv2.USAC_MAGSAC,
            settings.threshold,
            confidence=0.999,
            maxIters=10000,
        )
    except cv2.error:  # degenerate points, such as all on one spot
        return None, none
    # Some degenerate cases give several fundamental matrices, one below the other.
    if matrix is None or mask is None or matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        return None, none
    return matrix, mask.ravel().astype(bool)


def _lightglue(
    a: LocalFeatures, b: LocalFeatures, features: str, device: str
) -> tuple[np.ndarray, np.ndarray]:
    data = {
        f"image{side}": {
            "keypoints": torch.from_numpy(found.points)[None].to(device),
            "descriptors": torch.from_numpy(found.unit())[None].to(device),
            "image_size": torch.tensor([found.size], device=device),
        }
        for side, found in enumerate((a, b))
    }
    with torch.inference_mode():
        pairs = lightglue(features, device)(data)["matches"][0].cpu().numpy()
    return pairs[:, 0], pairs[:, 1]
