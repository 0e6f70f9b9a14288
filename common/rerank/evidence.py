"""What the geometry of a pair of images says beside the number of inliers.

The eight free values of the homography and statistics of its inliers, in units that do not depend
on the size of the images; `common.rerank.plausible` learns from them which homographies are real.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from common.rerank.geometry import Comparison, Settings

# Columns of `Evidence.shape`; h33 is 1.
SHAPE = (
    "h11", "h12", "h13", "h21", "h22", "h23", "h31", "h32",
    "error", "cover_a", "cover_b",
)  # fmt: skip
NAMES = ("inliers", "matches", "ratio", *SHAPE)
_LARGEST = 1e3  # a homography that sends the middle to infinity has values without bound


@dataclass
class Evidence:
    """Evidence of P pairs.

    Attributes:
        counts: `(P, 2)` int32, inliers and matches.
        shape: `(P, 11)` float32, the columns of `SHAPE`; NaN without a homography.
    """

    counts: np.ndarray
    shape: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def inliers(self) -> np.ndarray:
        """`(P,)` int32."""
        return np.asarray(self.counts[:, 0])

    @property
    def ratio(self) -> np.ndarray:
        """Inliers / matches, `(P,)` float32; 0 without matches."""
        return np.asarray(self.counts[:, 0] / np.maximum(self.counts[:, 1], 1), np.float32)

    def values(self) -> np.ndarray:
        """All columns of `NAMES`, `(P, 14)` float32."""
        return np.column_stack([self.counts.astype(np.float32), self.ratio, self.shape])


def describe(
    seen: Comparison, size_a: tuple[int, int], size_b: tuple[int, int], settings: Settings
) -> np.ndarray:
    """The columns of `SHAPE` for one pair, `(11,)` float32.

    The homography maps frames whose longer side is [-1, 1], so that an upright copy of an image has
    the identity whatever the pixels. `error` is the inliers' median distance in thresholds, `cover`
    the share of each image inside the box around its inliers.
    """
    values = np.full(len(SHAPE), np.nan, np.float32)
    points_a, points_b = seen.points_a[seen.inlying], seen.points_b[seen.inlying]
    if seen.model is None or not len(points_a):
        return values
    if settings.model == "homography":
        matrix = np.linalg.inv(_frame(size_b)) @ seen.model @ _frame(size_a)
        with np.errstate(divide="ignore", invalid="ignore"):
            flat = (matrix / matrix[2, 2]).ravel()[:8]
        values[:8] = np.nan_to_num(flat, nan=_LARGEST).clip(-_LARGEST, _LARGEST)
        moved = _moved(points_a, seen.model)
        error = np.linalg.norm(moved - points_b, axis=1)
        if seen.second is not None:
            other = np.linalg.norm(_moved(points_a, seen.second) - points_b, axis=1)
            error = np.minimum(error, other)
    else:
        ones = np.ones((len(points_a), 1))
        lines = np.hstack([points_a, ones]) @ seen.model.T
        away = np.abs((np.hstack([points_b, ones]) * lines).sum(1))
        error = away / np.maximum(np.hypot(lines[:, 0], lines[:, 1]), 1e-12)
    values[8] = min(float(np.median(error)) / settings.threshold, _LARGEST)
    for place, points, size in ((9, points_a, size_a), (10, points_b, size_b)):
        values[place] = np.prod(np.ptp(points, axis=0)) / (size[0] * size[1])
    return values


def _frame(size: tuple[int, int]) -> np.ndarray:
    """From [-1, 1] along the longer side to pixels."""
    half = max(size) / 2
    return np.array([[half, 0, (size[0] - 1) / 2], [0, half, (size[1] - 1) / 2], [0, 0, 1.0]])


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.perspectiveTransform(points[None].astype(np.float64), matrix)[0])
