"""Query expansion and database augmentation: each embedding moves towards its nearest neighbors.

Chum et al., "Total Recall" (ICCV 2007); the alpha form is Radenovic et al. (TPAMI 2018).
"""

from __future__ import annotations

import warnings

import torch

from common.notes import Notes
from common.retrieval import attention
from common.retrieval.lists import products
from common.retrieval.search import search
from common.retrieval.sums import V, weighted_sum
from common.types import Embeddings, Neighbors

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


def attention_query_expansion(
    queries: Embeddings,
    gallery: Embeddings,
    train: Embeddings | None,
    train_labels: torch.Tensor,
    *,
    k: int = 8,
    alpha: float = 3.0,
    epochs: int = 20,
    lr: float = 2e-3,
    most: int = 2_000,
    seed: int = 0,
    device: torch.device | None = None,
    notes: Notes | None = None,
) -> Embeddings:
    """Queries plus their `k` neighbors with learned weights, normalised.

    The weights are learned here, in seconds to a minute on a CPU, from the labelled train images:
    an expanded one shall be nearer to those of its label than to others (InfoNCE over its 100
    nearest). Four models, each without a quarter of the labels, weigh together. If their mAP on
    the labels they have not seen is not above that of alpha query expansion, alpha query expansion
    is what is done, with a warning. The figures are in the notes. Deterministic by seed. A query's
    own id is never its neighbor.

    Args:
        queries: `(Q, D)` unit rows; zero rows stay zero.
        gallery: `(N, D)` unit rows.
        train: `(T, D)` embeddings of labelled images, of the same model.
        train_labels: `(T,)` int64; rows of label -1 are left out.
        k: neighbors.
        alpha: power of the similarity in the weights that it starts from.
        epochs: passes over the train images.
        lr: peak learning rate.
        most: train images that are used as queries.
        seed: of the network and the order of the images.
        device: where to compute.
        notes: gets the out-of-fold mAP of no, alpha and learned expansion.

    Raises:
        ValueError: no train embeddings, too few labels, k, epochs or alpha out of range.
    """
    if k < 1 or epochs < 1 or not alpha >= 0:
        raise ValueError(
            f"attention_qe: k and epochs must be at least 1, alpha at least 0, got {k}, {epochs}, "
            f"{alpha}."
        )
    place = torch.device("cpu") if device is None else torch.device(device)
    model, figures = attention.learn(
        train, train_labels, k=k, alpha=alpha, epochs=epochs, lr=lr, most=most, seed=seed,
        device=place,
    )  # fmt: skip
    if notes is not None:
        for name, value in figures.items():
            notes.numbers[f"attention_qe: out-of-fold mAP@{attention.POOL}, {name}"] = value
    learned = figures["learned weights"] > figures["alpha expansion"]
    if not learned:
        warnings.warn(
            f"attention_qe: on unseen labels the learned weights reach mAP "
            f"{figures['learned weights']:.4f}, alpha expansion {figures['alpha expansion']:.4f}: "
            "alpha expansion is used.",
            stacklevel=2,
        )
    near = search(queries, gallery, k, exclude_self=True, device=device)
    weights = torch.empty_like(near.score)
    for start in range(0, len(near), 4096):
        rows = slice(start, start + 4096)
        index = near.index[rows]
        gram = products(queries.vectors[rows], gallery.vectors, index, k, place)
        real = (index >= 0).to(place)
        with torch.no_grad():
            found = model(gram, real) if learned else attention.alpha_weights(gram, real, alpha)
        weights[rows] = found.to(weights)
    return weighted_sum(queries, gallery, near, weights, 1.0)


alpha_qe = alpha_query_expansion
aqe = average_query_expansion
aqewd = decayed_query_expansion
dba = database_augmentation
attention_qe = attention_query_expansion


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
