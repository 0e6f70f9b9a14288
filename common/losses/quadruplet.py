"""Quadruplet loss over every quadruplet of the batch, B^4 of them, by sorting B^2 distances.

loss = QuadrupletLoss(adaptive=True)(embeddings, labels)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.losses.batch import BatchLoss, Pairs, check_positive, distances, mean


class QuadrupletLoss(BatchLoss):
    """Quadruplet loss: triplets, and any positive pair nearer than any pair of two other classes.

    Chen et al., CVPR 2017, eq. 6: max(0, D_ij^2 - D_ik^2 + m1) over triplets and
    max(0, D_ij^2 - D_lk^2 + m2) over pairs l, k of two classes other than that of i, j; each is a
    mean here. Every quadruplet of the batch counts, by sorting: no tensor is larger than (B, B).
    A batch of two classes has no l, k. For larger gaps between classes than triplets leave.

    Args:
        margin: m1. Usual fixed values are 1.0 and 0.5.
        second_margin: m2, at most m1.
        adaptive: both are factors on the batch's mean of D^2 over negatives minus that over
            positives, without gradient: the paper's w, with 1 and 0.5.
        active_only: the means are over those with a loss, else over all.
        normalize: rows are scaled to length 1 first.

    Raises:
        ValueError: not 0 < second_margin <= margin.
    """

    def __init__(
        self,
        margin: float = 1.0,
        second_margin: float = 0.5,
        *,
        adaptive: bool = False,
        active_only: bool = True,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        check_positive(margin=margin, second_margin=second_margin)
        if second_margin > margin:
            raise ValueError(f"second_margin must be at most {margin}, got {second_margin}")
        self.margins, self.adaptive = (margin, second_margin), adaptive
        self.active_only, self.normalize = active_only, normalize

    def _loss(self, rows: Tensor, labels: Tensor) -> Tensor:
        distance = distances(rows, squared=True)
        pairs = Pairs(labels, labels, own=True)
        near, far = pairs.near, pairs.far
        unit = (mean(distance[far]) - mean(distance[near])).detach() if self.adaptive else 1.0
        code = torch.unique(labels, return_inverse=True)[1]
        i, j = near.nonzero(as_tuple=True)
        k, m = far.nonzero(as_tuple=True)
        inner, outer = distance[i, j], distance[k, m]
        first = _hinges(inner + self.margins[0] * unit, outer, [(1, i, k)])
        # All pairs k, m of two classes, without those of which one row is of the class of i, j.
        second = _hinges(
            inner + self.margins[1] * unit,
            outer,
            [(1, 0 * i, 0 * k), (-1, code[i], code[k]), (-1, code[i], code[m])],
        )
        parts = [
            total / (active if self.active_only else every).clamp_min(1)
            for total, active, every in (first, second)
        ]
        return (parts[0] + parts[1]).to(rows.dtype)


def _hinges(
    reach: Tensor, values: Tensor, groups: Sequence[tuple[int, Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of max(0, reach_p - value_n) over couples (p, n), how many are above 0, and how many.

    The set of active couples is constant around a point. So sum and gradient follow from how often
    each reach and each value is in one, which sorting tells.

    Args:
        reach: (P,).
        values: (N,).
        groups: sign, group of each p (P,), group of each n (N,): the couples that share a group,
            added (1) or taken away (-1).
    """
    ranks = torch.unique(torch.cat([reach, values]).detach(), return_inverse=True)[1]
    size = len(ranks)
    high, low = ranks[: len(reach)], ranks[len(reach) :]
    of_reach, of_value, every = torch.zeros_like(high), torch.zeros_like(low), 0 * ranks.sum()
    for sign, p, n in groups:
        of_reach += sign * _count_below(n * size + low, p * size + high, p * size)
        of_value += sign * _count_below(p * size - high, n * size - low, (n - 1) * size + 1)
        every = every + sign * _count_below(n, p + 1, p).sum()
    # In float64: two large sums leave a small difference.
    total = (of_reach * reach.double()).sum() - (of_value * values.double()).sum()
    return total, of_reach.sum(), every


def _count_below(keys: Tensor, end: Tensor, start: Tensor) -> Tensor:
    """How many keys lie in [start, end), for each of both."""
    keys = keys.sort().values
    return torch.searchsorted(keys, end) - torch.searchsorted(keys, start)
