"""The search inside the facility-location loss: which wrong clustering scores best.

Song et al., CVPR 2017, Algorithms 1 (greedy choice of medoids) and 2 (swaps inside each cluster).
"""

from __future__ import annotations

import torch
from torch import Tensor


def worst_clustering(
    distance: Tensor, code: Tensor, count: int, *, gamma: float, swaps: int
) -> tuple[Tensor, Tensor]:
    """Medoids (count,) with the largest score found, and the scalar NMI of their clustering.

    The score is -sum_i min_j D_ij + gamma * (1 - NMI), j over the medoids; a local search.

    Args:
        distance: (B, B).
        code: (B,) classes.
        count: of medoids, at most B.
        gamma: weight of the second part.
        swaps: rounds of swapping at most, after the greedy choice.
    """
    rows = torch.arange(len(code), device=code.device)
    nearest = torch.full_like(distance[0], torch.inf)
    medoids = rows[:0]
    for _ in range(count):
        score = -torch.minimum(nearest, distance).sum(1)
        score = score + gamma * (1 - _nmi(_assign_each(distance, medoids, rows), code))
        best = score.index_fill(0, medoids, -torch.inf).argmax()
        medoids = torch.cat([medoids, best[None]])
        nearest = torch.minimum(nearest, distance[best])
    for _ in range(swaps):
        cluster = _assign(distance, medoids)
        before = medoids.clone()
        for i, medoid in enumerate(before):
            members = rows[cluster == medoid]
            others = torch.cat([medoids[:i], medoids[i + 1 :]])
            score = -distance[members][:, members].sum(1)
            score = score + gamma * (1 - _nmi(_assign_each(distance, others, members), code))
            medoids[i] = members[score.argmax()]
        if torch.equal(medoids, before):
            break
    mutual = _nmi(_assign(distance, medoids)[None], code)[0]
    return medoids, mutual.to(distance.dtype)


def _assign(distance: Tensor, medoids: Tensor) -> Tensor:
    """(B,) medoid nearest to each row; a medoid is its own, whatever lies in the same place."""
    nearest = medoids[distance[medoids].argmin(0)]
    return nearest.index_copy(0, medoids, medoids)


def _assign_each(distance: Tensor, medoids: Tensor, candidates: Tensor) -> Tensor:
    """(M, B) medoid nearest to each row if a candidate joined the medoids, for M candidates."""
    each = candidates[:, None].expand(-1, len(distance))
    if not len(medoids):
        return each
    nearest, which = distance[medoids].min(0)
    joined = torch.where(distance[candidates] < nearest, each, medoids[which])
    joined[:, medoids] = medoids
    return joined.scatter(1, candidates[:, None], candidates[:, None])


def _nmi(clusters: Tensor, code: Tensor) -> Tensor:
    """(M,) normalised mutual information of (M, B) clusterings with the classes (B,)."""
    own, true = _entropy(clusters), _entropy(code[None])
    mutual = (own + true - _entropy(clusters * len(code) + code)).clamp_min(0)
    scale = (own * true).sqrt()
    return torch.where(scale > 0, mutual / scale, (own == true).to(scale))


def _entropy(codes: Tensor) -> Tensor:
    """(M,) float64 entropy of each row of (M, B) codes, in O(B log B) whatever their number."""
    ordered, codes = codes.sort(1).values, codes.contiguous()
    count = torch.searchsorted(ordered, codes, right=True) - torch.searchsorted(ordered, codes)
    return -(count.double() / codes.shape[1]).log().mean(1)
