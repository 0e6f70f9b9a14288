"""Query expansion and database augmentation: each embedding moves towards its nearest neighbors.

Chum et al., "Total Recall" (ICCV 2007); the alpha form is Radenovic et al. (TPAMI 2018).
"""

from __future__ import annotations

from typing import TypeVar

import torch

from common.retrieval import tiles
from common.retrieval.search import search
from common.types import Embeddings, Neighbors

V = TypeVar("V", Embeddings, torch.Tensor)

_LOGSPACE_END = -1.5  # bestfitting, Landmark Recognition 2020, 2nd place
_RULES = ("similarity", "equal", "linear", "logspace")


def alpha_query_expansion(
    queries: V,
    gallery: V,
    *,
    k: int = 10,
    alpha: float = 3.0,
    own_weight: float = 1.0,
    device: torch.device | None = None,
) -> V:
    """Queries `normalize(own_weight * q + sum_i max(s_i, 0)^alpha x_i)` over their `k` neighbors.

    Radenovic et al. (TPAMI 2018) with alpha 3 and k 50 on Oxford; competitions use k of 3 to 10.

    Args:
        queries: `(Q, D)` unit rows; the same type and dtype comes back.
        gallery: `(N, D)` unit rows; in the queries' own set each image is its first neighbor.
        k: neighbors; more than the gallery has means all of it.
        alpha: power of the similarity; any value >= 0. Negative similarities weigh 0 (with alpha 0
            every neighbor weighs 1).
        own_weight: weight of the query itself.
        device: where to compute.

    A zero row (an image that could not be read) stays zero.

    Raises:
        ValueError: negative alpha or own_weight, k < 1, NaN in an embedding.
    """
    _check(alpha, own_weight)
    neighbors = search(queries, gallery, k, device=device)
    return _moved(queries, gallery, neighbors, _weights(neighbors, "similarity", alpha), own_weight)


def average_query_expansion(
    queries: V,
    gallery: V,
    *,
    k: int = 5,
    weights: str = "equal",
    device: torch.device | None = None,
) -> V:
    """Queries plus the sum of their `k` neighbors, weighted by rank, normalised.

    Args:
        queries: `(Q, D)` unit rows; the same type and dtype comes back.
        gallery: `(N, D)` unit rows.
        k: neighbors; the query itself weighs 1.
        weights: `equal` (Chum et al., ICCV 2007), `linear`: (k - i) / k for rank i = 0... (Gordo et
            al., IJCV 2017), or `logspace`: 10^0 for the query down to 10^-1.5 for the last neighbor
            (bestfitting, Landmark Recognition 2020).
        device: where to compute.

    Raises:
        ValueError: unknown weights, k < 1, NaN in an embedding.
    """
    if weights == "similarity":
        raise ValueError("average_query_expansion weighs by rank: use alpha_query_expansion.")
    neighbors = search(queries, gallery, k, device=device)
    return _moved(queries, gallery, neighbors, _weights(neighbors, weights, 0.0), 1.0)


def database_augmentation(
    gallery: V,
    *,
    k: int = 10,
    alpha: float = 3.0,
    weights: str = "similarity",
    device: torch.device | None = None,
) -> V:
    """The gallery with each row moved towards its `k` nearest other rows, normalised.

    Every row weighs 1 in its own sum and is left out of its neighbors by id, so that duplicates do
    not take its place. Arandjelovic and Zisserman (CVPR 2012); alpha form as in
    `alpha_query_expansion`.

    Args:
        gallery: `(N, D)` unit rows; the same type and dtype comes back.
        k: neighbors besides the row itself.
        alpha: power of the similarity, for `weights: similarity`.
        weights: `similarity`, or by rank `equal`, `linear`, `logspace` as in
            `average_query_expansion`. bestfitting's ten weights, self included: k=9, `logspace`.
        device: where to compute.

    Raises:
        ValueError: negative alpha, unknown weights, k < 1, NaN in an embedding.
    """
    _check(alpha, 1.0)
    neighbors = search(gallery, gallery, k, exclude_self=True, device=device)
    return _moved(gallery, gallery, neighbors, _weights(neighbors, weights, alpha), 1.0)


alpha_qe = alpha_query_expansion
aqe = average_query_expansion
dba = database_augmentation


def _weights(neighbors: Neighbors, rule: str, alpha: float) -> torch.Tensor:
    """Weights `(Q, K)` float32 of the neighbors; 0 at padding."""
    if rule not in _RULES:
        raise ValueError(f"weights must be one of {', '.join(_RULES)}, got {rule!r}.")
    k = neighbors.score.shape[1]
    if rule == "similarity":
        weights = neighbors.score.clamp(min=0.0) ** alpha
    elif rule == "equal":
        weights = torch.ones_like(neighbors.score)
    elif rule == "linear":
        weights = (k - torch.arange(k)) / k
    else:
        weights = torch.logspace(0, _LOGSPACE_END, k + 1)[1:]
    return weights.to(neighbors.score).expand_as(neighbors.score) * (neighbors.index >= 0)


def _moved(
    vectors: V, gallery: V, neighbors: Neighbors, weights: torch.Tensor, own_weight: float
) -> V:
    """`normalize(own_weight * v + sum_i w_i x_i)` in float32, back in the type of `vectors`."""
    old, base = tiles.tensor(vectors), tiles.tensor(gallery)
    if not len(base):
        base = base.new_zeros(1, base.shape[1])  # all neighbors are padding and weigh 0
    new = torch.empty_like(old)
    # embedding_bag would be one call, but it sums float16 rows in float16 (errors of 4e-3).
    step = max(1, 2**20 // max(1, weights.shape[1] * old.shape[1]))
    for start in range(0, len(old), step):
        index = neighbors.index[start : start + step].clamp(min=0)
        near = base.index_select(0, index.reshape(-1).to(base.device)).to(old.device, torch.float32)
        near = near.view(*index.shape, -1)
        own = old[start : start + step].float()
        total = own_weight * own + (weights[start : start + step, None] @ near).squeeze(1)
        # Nothing to move towards: the row stays. A zero row has no neighbors, only ties.
        total = torch.where(total.any(dim=1, keepdim=True), total, own)
        total *= own.any(dim=1, keepdim=True)
        new[start : start + step] = torch.nn.functional.normalize(total)
    if isinstance(vectors, Embeddings):
        return Embeddings(vectors.ids, new, dict(vectors.card))
    return new


def _check(alpha: float, own_weight: float) -> None:
    if not alpha >= 0 or not own_weight >= 0:
        raise ValueError(f"alpha and own_weight must be >= 0, got {alpha} and {own_weight}.")
