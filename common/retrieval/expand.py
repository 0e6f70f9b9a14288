"""Query expansion and database augmentation: each embedding moves towards its nearest neighbors.

Chum et al., "Total Recall" (ICCV 2007); the alpha form is Radenovic et al. (TPAMI 2018).
"""

from __future__ import annotations

import torch

from common.retrieval.search import search
from common.retrieval.sums import V, weighted_sum
from common.types import Neighbors

_LOGSPACE_END = -1.5  # bestfitting, Landmark Recognition 2020, 2nd place
_RULES = ("similarity", "equal", "linear", "logspace")


def alpha_query_expansion(
    queries: V,
    gallery: V,
    *,
    k: int = 10,
    alpha: float = 3.0,
    own_weight: float = 1.0,
    exclude_self: bool = False,
    device: torch.device | None = None,
) -> V:
    """Queries `normalize(own_weight * q + sum_i max(s_i, 0)^alpha x_i)` over their `k` neighbors.

    Radenovic et al. (TPAMI 2018) with alpha 3 and k 50 on Oxford; competitions use k of 3 to 10.

    Args:
        queries: `(Q, D)` unit rows; the same type and dtype comes back.
        gallery: `(N, D)` unit rows.
        k: neighbors; more than the gallery has means all of it.
        alpha: power of the similarity; any value >= 0. Negative similarities weigh 0 (with alpha 0
            every neighbor weighs 1).
        own_weight: weight of the query itself.
        exclude_self: leave the query's own id out of its neighbors (for tensors, its own row). Set
            it where queries are searched in their own set, or each counts twice.
        device: where to compute.

    A zero row (an image that could not be read) stays zero.

    Raises:
        ValueError: negative alpha or own_weight, k < 1, NaN in an embedding.
    """
    _check(alpha, own_weight)
    neighbors = search(queries, gallery, k, exclude_self=exclude_self, device=device)
    weights = _weights(neighbors, "similarity", alpha)
    return weighted_sum(queries, gallery, neighbors, weights, own_weight)


def average_query_expansion(
    queries: V,
    gallery: V,
    *,
    k: int = 5,
    weights: str = "equal",
    exclude_self: bool = False,
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
        exclude_self: as in `alpha_query_expansion`.
        device: where to compute.

    Raises:
        ValueError: unknown weights, k < 1, NaN in an embedding.
    """
    if weights == "similarity":
        raise ValueError("average_query_expansion weighs by rank: use alpha_query_expansion.")
    neighbors = search(queries, gallery, k, exclude_self=exclude_self, device=device)
    return weighted_sum(queries, gallery, neighbors, _weights(neighbors, weights, 0.0), 1.0)


def decayed_query_expansion(
    queries: V,
    gallery: V,
    *,
    k: int = 10,
    exclude_self: bool = False,
    device: torch.device | None = None,
) -> V:
    """Queries plus their `k` neighbors, weighted (k - i) / k from the first (i = 0), normalised.

    AQEwD of Gordo et al. (IJCV 2017): `average_query_expansion` with `weights="linear"`, whose
    arguments and errors it shares. The last neighbor weighs 1 / k.
    """
    return average_query_expansion(
        queries, gallery, k=k, weights="linear", exclude_self=exclude_self, device=device
    )


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
    return weighted_sum(gallery, gallery, neighbors, _weights(neighbors, weights, alpha), 1.0)


alpha_qe = alpha_query_expansion
aqe = average_query_expansion
aqewd = decayed_query_expansion
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


def _check(alpha: float, own_weight: float) -> None:
    if not alpha >= 0 or not own_weight >= 0:
        raise ValueError(f"alpha and own_weight must be >= 0, got {alpha} and {own_weight}.")
