"""Pictures aligned by points: each one's parallelogram in which the points lie as on average.

layout = mean_layout(points); table.frames = frames(points, layout, margin=0.1)

Humpback 2019, third place, aligned flukes by an affine transform to four points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.data.images import Frame

LARGEST = 8192  # side of an aligned picture in pixels, for points that lie absurdly far apart
STRETCH = 4.0  # of one direction against the other from which points are taken for wrong


@dataclass
class Layout:
    """Where the points lie in the aligned picture.

    Attributes:
        points: `(P, 2)` x, y, in units in which the points' box around them starts at 0, 0.
        size: `(2,)` width and height of that box.
    """

    points: np.ndarray
    size: np.ndarray


def mean_layout(points: np.ndarray) -> Layout:
    """The mean shape of the pictures that have all points, each moved and scaled to one size.

    Args:
        points: `(N, P, 2)` x, y in pixels, NaN where a point is missing; P at least 3.

    Raises:
        ValueError: fewer than 3 points, no picture that has all, or a mean of points on a line.
    """
    if points.ndim != 3 or points.shape[1] < 3:
        raise ValueError(f"An affine alignment needs at least 3 points, got {points.shape[1]}.")
    whole = points[np.isfinite(points).all((1, 2))]
    shapes = whole - whole.mean(1, keepdims=True)
    spread = np.sqrt((shapes**2).sum((1, 2)))
    shapes = shapes[spread > 0] / spread[spread > 0][:, None, None]
    if not len(shapes):
        raise ValueError("No train image has all points: there is nothing to align to.")
    mean = shapes.mean(0)
    narrow = np.linalg.svd(mean, compute_uv=False)
    if narrow[1] < 0.05 * narrow[0]:
        raise ValueError(
            "The points lie on a line on average: name them in the same order in every image."
        )
    low = mean.min(0)
    return Layout(mean - low, mean.max(0) - low)


def frames(points: np.ndarray, layout: Layout, *, margin: float) -> np.ndarray:
    """`(N, 8)` float64: matrix by rows, width and height of each picture's `Frame`; or zeros.

    The affine transform with the least squares between the layout's points and the picture's. A row
    is zeros where it cannot be trusted: fewer than 3 points, points on a line, mirrored (a mirrored
    fluke is another whale), or stretched by more than 4 in one direction.

    Args:
        points: `(N, P, 2)` x, y in pixels, NaN where a point is missing.
        layout: what they are aligned to.
        margin: share of the layout's box added on each side.
    """
    known = np.isfinite(points).all(2)
    target = np.concatenate([layout.points, np.ones((len(layout.points), 1))], 1)
    weighted = known[..., None] * target  # (N, P, 3)
    gram = np.einsum("npi,pj->nij", weighted, target)
    right = np.einsum("npi,npd->nid", weighted, np.where(known[..., None], points, 0.0))
    # Three of the points must not lie on a line in the layout either.
    fits = np.linalg.det(gram) > 1e-6 * layout.size.prod() ** 2
    gram[~fits] = np.eye(3)
    matrix = np.linalg.solve(gram, right).transpose(0, 2, 1)  # (N, 2, 3), of layout units
    wide = np.linalg.svd(matrix[:, :, :2], compute_uv=False)
    turned = np.linalg.det(matrix[:, :, :2]) > 0
    fits &= turned & (wide[:, 0] <= STRETCH * wide[:, 1]) & (wide[:, 1] > 0)
    length = np.linalg.norm(matrix[:, :, :2], axis=1)  # pixels per unit, (N, 2)
    start, size = -margin * layout.size, (1 + 2 * margin) * layout.size
    sides = np.clip(np.round(length * size), 1, LARGEST)
    fits &= (length * size >= 1).all(1)
    matrix[:, :, 2] += matrix[:, :, :2] @ start
    matrix[:, :, :2] *= (size / sides)[:, None]
    flat = np.concatenate([matrix.reshape(-1, 6), sides], 1)
    return np.asarray(np.where(fits[:, None], flat, 0.0))


def frame_of(row: np.ndarray) -> Frame | None:
    """The frame of a row that `frames` made; None for zeros."""
    if not row.any():
        return None
    return Frame(row[:6].reshape(2, 3).astype(np.float64), int(row[6]), int(row[7]))
