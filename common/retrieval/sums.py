"""Vectors moved towards their neighbors: what expansion and neighborhood blending share."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F

from common.retrieval import tiles
from common.types import Embeddings, Neighbors

V = TypeVar("V", Embeddings, torch.Tensor)

_CELLS = 2**20  # floats gathered at once: they stay in a CPU's cache
_GPU_CELLS = 2**26


def weighted_sum(
    vectors: V, gallery: V, neighbors: Neighbors, weights: torch.Tensor, own_weight: float
) -> V:
    """`normalize(own_weight * v + sum_i w_i x_i)` in float32, back in the type of `vectors`.

    Args:
        vectors: `(Q, D)` rows to move; zero rows stay zero.
        gallery: `(N, D)` rows that `neighbors` names.
        neighbors: `(Q, K)`.
        weights: `(Q, K)` float32, 0 at padding. A row whose sum is zero stays as it is.
        own_weight: weight of the row itself.
    """
    old, base = tiles.tensor(vectors), tiles.tensor(gallery)
    if not len(base):
        base = base.new_zeros(1, base.shape[1])  # all neighbors are padding and weigh 0
    new = torch.empty_like(old)
    cells = _CELLS if old.device.type == "cpu" else _GPU_CELLS
    step = max(1, cells // max(1, weights.shape[1] * old.shape[1]))
    for start in range(0, len(old), step):
        index = neighbors.index[start : start + step].clamp(min=0)
        own = old[start : start + step].float()
        total = own_weight * own + _sum(base, index, weights[start : start + step], old.device)
        # Nothing to move towards: the row stays. A zero row has no neighbors, only ties.
        total = torch.where(total.any(dim=1, keepdim=True), total, own)
        total *= own.any(dim=1, keepdim=True)
        new[start : start + step] = F.normalize(total)
    if isinstance(vectors, Embeddings):
        return Embeddings(vectors.ids, new, dict(vectors.card))
    return new


def _sum(
    base: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, place: torch.device
) -> torch.Tensor:
    """`sum_i w_i base[index_i]`, `(B, D)` float32 on `place`."""
    weights = weights.to(place, torch.float32)
    if base.dtype == torch.float32 and base.device == place:  # gathers nothing: 5 times as fast
        return F.embedding_bag(index.to(place), base, mode="sum", per_sample_weights=weights)
    # embedding_bag sums float16 rows in float16 (errors of 4e-3).
    near = base.index_select(0, index.reshape(-1).to(base.device)).to(place, torch.float32)
    return (weights[:, None] @ near.view(*index.shape, -1)).squeeze(1)
