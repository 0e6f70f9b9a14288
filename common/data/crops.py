"""One of several boxes of an image at each draw: box-mix augmentation (Happywhale 2022, 1st)."""

from __future__ import annotations

import numpy as np


class BoxMix:
    """What an image is looked at through, drawn anew each time.

    A box that an image lacks leaves its share to the image's others; without any the whole picture
    is looked at.

    Args:
        boxes: `(N, M, 4)` x0, y0, x1, y1 in pixels, zeros where that kind of box is missing.
        shares: how often each kind is wanted, `(M,)`; their sum may be below 1.
        whole: how often the whole picture is.

    Raises:
        ValueError: shares that are negative, all zero, or of another number.
    """

    def __init__(self, boxes: np.ndarray, shares: np.ndarray, whole: float = 0.0) -> None:
        shares = np.asarray(shares, np.float64)
        if boxes.ndim != 3 or boxes.shape[1:] != (len(shares), 4):
            raise ValueError(f"{len(shares)} shares need (N, {len(shares)}, 4) boxes")
        if not (shares >= 0).all() or whole < 0 or shares.sum() + whole <= 0:
            raise ValueError(f"shares must be positive, got {shares.tolist()} and {whole} of none")
        self.boxes, self.shares, self.whole = boxes, shares, whole

    def take(self, rows: np.ndarray) -> BoxMix:
        """The same choice for some rows, in their order; a row may be there twice."""
        return BoxMix(self.boxes[rows], self.shares, self.whole)

    def draw(self, row: int, chance: float) -> np.ndarray:
        """`(4,)` the box that a number in [0, 1) picks, zeros for the whole picture."""
        there = np.append(np.where(self.boxes[row].any(1), self.shares, 0.0), self.whole)
        if not there.any():
            return np.zeros(4)
        place = int(np.searchsorted(np.cumsum(there), chance * there.sum(), side="right"))
        place = min(place, int(np.flatnonzero(there)[-1]))  # rounding
        return np.zeros(4) if place == len(self.shares) else np.asarray(self.boxes[row, place])
