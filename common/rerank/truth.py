"""What is known of held-out listings: who belongs together, who is asked, and F1 of an answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from common.rerank.curves import Curve, f1_curve
from common.types import Neighbors

Array = np.ndarray


@dataclass
class Truth:
    """Groups of N listings of which some are asked; a listing is never its own neighbor.

    Attributes:
        labels: `(N,)` int64 group of each.
        asked: `(N,)` bool; the others only stand by as false matches.
        crowd: how many times more others the real test has: false matches count so often.
    """

    labels: Array
    asked: Array
    crowd: float = 1.0

    @property
    def totals(self) -> Array:
        """`(A,)` members of the group of each asked listing, itself included."""
        _, code, count = np.unique(self.labels, return_inverse=True, return_counts=True)
        return np.asarray(count[code][self.asked])

    def hits(self, index: torch.Tensor) -> Array:
        """`(A, K)` bool, which neighbors of the asked listings are of their group."""
        rows = index.cpu().numpy()[self.asked]
        mine = self.labels[self.asked]
        return np.asarray((self.labels[rows] == mine[:, None]) & (rows >= 0))

    def curve(self, neighbors: Neighbors, false_weight: float | None = None) -> Curve:
        """Mean F1 of the asked listings by threshold, exact.

        Args:
            neighbors: `(N, K)`.
            false_weight: of false matches; None: `crowd`.

        Raises:
            ValueError: nothing is listed.
        """
        score = neighbors.score.cpu().numpy()[self.asked]
        weight = self.crowd if false_weight is None else false_weight
        return f1_curve(score, self.hits(neighbors.index), self.totals, false_weight=weight)

    def best(self, neighbors: Neighbors) -> tuple[float, float]:
        """The threshold of highest F1, and that; where nothing is listed 0 and F1 of nothing."""
        if not bool((neighbors.index[torch.from_numpy(self.asked)] >= 0).any()):
            return 0.0, float((2 / (1 + self.totals)).mean())
        curve = self.curve(neighbors)
        return curve.threshold, curve.value

    def row_f1(self, kept: Neighbors) -> Array:
        """`(A,)` plain F1 of each asked listing that answers with itself and all that is listed."""
        hits = self.hits(kept.index)
        count = (kept.index.cpu().numpy()[self.asked] >= 0).sum(1)
        return np.asarray(2 * (hits.sum(1) + 1) / (count + 1 + self.totals))
