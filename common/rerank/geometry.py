"""Whether two images show the same thing: matched local features that one homography explains.

`verify(a, b)` for one pair; `common.rerank.local` for the candidates of many queries. Robust
estimation is OpenCV's USAC with MAGSAC++ scoring (Barath et al., CVPR 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.rerank.features import PAIRED, LocalFeatures, extract, load
from common.rerank.matching import Settings as Settings
from common.rerank.matching import match, match_mutual, match_near, match_pixels

_LEAST = 8  # inliers of a second homography that is believed: any four matches fit some


@dataclass
class Verification:
    """What speaks for two images showing the same object.

    Attributes:
        inliers: matches that agree with the model, or with the second one.
        matches: matches before the geometry.
        ratio: inliers / matches, 0 without matches. Look at both: no number of inliers separates
            same from different for every kind of features, so calibrate it per kind.
        model: `(3, 3)` homography from a's pixels to b's, or fundamental matrix; None without one.
        points: `(inliers, 4)` x, y in a and x, y in b, in pixels of the images as given.
        rejected: `(matches - inliers, 4)`, the other matches.
        second: `(3, 3)` homography of another plane, where `second="rest"` found one.
    """

    inliers: int
    matches: int
    ratio: float
    model: np.ndarray | None
    points: np.ndarray
    rejected: np.ndarray
    second: np.ndarray | None = None


@dataclass
class Comparison:
    """Matches of two images and the geometry they agree on, in pixels of the shrunk images.

    Attributes:
        points_a: `(M, 2)` of the first image.
        points_b: `(M, 2)`, what they match.
        model: `(3, 3)` or None.
        inlying: `(M,)` bool, of the model or the second.
        second: `(3, 3)` or None.
    """

    points_a: np.ndarray
    points_b: np.ndarray
    model: np.ndarray | None
    inlying: np.ndarray
    second: np.ndarray | None = None


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
    second: str = "none",
    votes: int = 6,
    weights: str = "",
    matcher_weights: str = "",
    device: str = "cpu",
) -> Verification:
    """Matches between two images that one homography (or fundamental matrix) explains.

    Deterministic: the same images and settings give the same numbers on each call. Images are paths
    or `(H, W, 3)` or `(H, W)` uint8 RGB arrays; the other arguments are the fields of `Settings`,
    and where the nets run.

    Raises:
        ImageError: a file that gives no picture.
        ValueError: an array of another kind, or an unknown setting.
        FileNotFoundError: weights are not installed, or not given.
    """
    settings = Settings(
        features, matcher, keypoints, size, model, threshold, ratio, second, votes, weights,
        matcher_weights,
    )  # fmt: skip
    found, shrink = [], []
    for image in (image_a, image_b):
        whole = load(image, None)
        small = load(whole, size)
        found.append(extract(small, features, keypoints=keypoints, device=device, weights=weights))
        # Sides are whole pixels, so x and y shrink differently; pixel centres lie at .5.
        x, y = np.divide(small.shape[1::-1], whole.shape[1::-1])
        shrink.append(np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1.0]]))
    seen = compare(found[0], found[1], settings, device)
    places = [
        (points - to[:2, 2]) / to.diagonal()[:2]
        for points, to in zip((seen.points_a, seen.points_b), shrink, strict=True)
    ]

    def grown(matrix: np.ndarray | None) -> np.ndarray | None:
        if matrix is None:
            return None
        left = np.linalg.inv(shrink[1]) if model == "homography" else shrink[1].T
        matrix = left @ matrix @ shrink[0]
        return np.asarray(matrix / (matrix[2, 2] if model == "homography" else _norm(matrix)))

    pairs = np.concatenate(places, 1)
    total, inliers = len(pairs), int(seen.inlying.sum())
    return Verification(
        inliers,
        total,
        inliers / max(total, 1),
        grown(seen.model),
        pairs[seen.inlying],
        pairs[~seen.inlying],
        grown(seen.second),
    )


def compare(
    a: LocalFeatures, b: LocalFeatures, settings: Settings, device: str = "cpu"
) -> Comparison:
    """Matches of two images' features and the model that most of them agree with."""
    if settings.features in PAIRED:
        points_a, points_b = match_pixels(a, b, settings, device)
    elif _hopeless(a, b, settings):
        points_a = points_b = np.zeros((0, 2), np.float32)
    else:
        rows, columns = match(a, b, settings, device)
        points_a, points_b = a.points[rows], b.points[columns]
    model, inlying = estimate(points_a, points_b, settings)
    if model is None or settings.second == "none":
        return Comparison(points_a, points_b, model, inlying)
    if settings.second == "guided":
        rows, columns = match_near(a, b, model, settings)
        again, agreeing = estimate(a.points[rows], b.points[columns], settings)
        if again is not None and agreeing.sum() > inlying.sum():
            return Comparison(a.points[rows], b.points[columns], again, agreeing)
        return Comparison(points_a, points_b, model, inlying)
    rest = np.flatnonzero(~inlying)
    other, agreeing = estimate(points_a[rest], points_b[rest], settings)
    if agreeing.sum() < _LEAST:
        return Comparison(points_a, points_b, model, inlying)
    inlying[rest[agreeing]] = True
    return Comparison(points_a, points_b, model, inlying, other)


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
            # Finds a quarter of inliers among the matches with confidence .999; 10000 cost a pair
            # of two scenes four times as much and told pairs apart no better.
            maxIters=2000,
        )
    except cv2.error:  # degenerate points, such as all on one spot
        return None, none
    # Some degenerate cases give several fundamental matrices, one below the other.
    if matrix is None or mask is None or matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        return None, none
    return matrix, mask.ravel().astype(bool)


def _hopeless(a: LocalFeatures, b: LocalFeatures, settings: Settings) -> bool:
    """Whether too few mutual matches fit a homography for LightGlue to be worth its price."""
    if settings.matcher != "lightglue" or not settings.votes or not len(a) or not len(b):
        return False
    rows, columns = match_mutual(a, b, settings)
    _, agreeing = estimate(a.points[rows], b.points[columns], settings)
    return int(agreeing.sum()) < settings.votes


def _norm(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix))
