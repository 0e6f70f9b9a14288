"""Iterative neighborhood blending and the rule "at least two": Shopee's winners on one page.

    - {name: inb, thresholds: [0.8, 0.7], second: 0.5, k: 50}
    - {name: knn, k: 51}
    - {name: min2, threshold: 0.7, second: 0.4}

1st place of Shopee - Price Match Guarantee (2021). The write-up's thresholds are not known: these
are examples, to be tuned on groups as large as the test set's.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from common.rerank.voting import check_rows
from common.retrieval.search import search
from common.retrieval.sums import weighted_sum
from common.types import Embeddings, Neighbors

NO_THRESHOLDS = (
    "inb: set thresholds, one similarity per stage, for example thresholds: [0.8, 0.7]; they "
    "depend on the model and on the size of the set."
)


def neighborhood_blending(
    queries: Embeddings,
    gallery: Embeddings,
    *,
    thresholds: list[float] | tuple[float, ...] = (),
    second: float | None = None,
    k: int = 50,
    own_weight: float = 1.0,
    device: torch.device | None = None,
) -> tuple[Embeddings, Embeddings]:
    """Queries and gallery blended with their gallery neighbors above a threshold, stage by stage.

    At each stage x becomes normalize(own_weight * x + sum_j s_j x_j) over its at most `k` nearest
    other images with similarity s_j above that stage's threshold; similarities are those of the
    stage before. Queries move towards the gallery, never it towards them, and a query that is in
    the gallery (same id) ends where its gallery row does. Inputs stay as they are.

    Args:
        queries: `(Q, D)` unit rows; zero rows stay zero.
        gallery: `(N, D)` unit rows, ids once each.
        thresholds: one similarity per stage. Later stages need their own: images get closer.
        second: min2, the lower threshold above which an image's nearest is taken when nothing
            passes; None leaves such an image as it is.
        k: more than the largest group has others, or the blend is cut short (a warning).
        own_weight: weight of the image itself; with 0, and no neighbor, it stays as it is.
        device: where to compute.

    Raises:
        ValueError: no thresholds, k < 1, negative own_weight, ids that repeat, NaN.
    """
    if not thresholds:
        raise ValueError(NO_THRESHOLDS)
    if not own_weight >= 0:
        raise ValueError(f"inb: own_weight must be at least 0, got {own_weight}.")
    kinds = {(part.vectors.dtype, part.vectors.device) for part in (queries, gallery)}
    one_set = (
        len(kinds) == 1
        and np.array_equal(queries.ids, gallery.ids)
        and torch.equal(queries.vectors, gallery.vectors)
    )
    full = 0
    for threshold in thresholds:
        moved, cut = _blended(gallery, gallery, threshold, second, k, own_weight, device)
        if not one_set:
            queries, _ = _blended(queries, gallery, threshold, second, k, own_weight, device)
        gallery, full = moved, max(full, cut)
    if full:
        warnings.warn(
            f"inb: {full} of {len(gallery)} images have all k={k} neighbors above the threshold: "
            "raise k above the size of the largest group, or raise the thresholds.",
            stacklevel=2,
        )
    if one_set:
        queries = Embeddings(queries.ids, gallery.vectors, dict(queries.card))
    return queries, gallery


def min2(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    *,
    threshold: float = 0.5,
    second: float = 0.3,
) -> Neighbors:
    """Matches: neighbors above `threshold`, or else the nearest one if it is above `second`.

    For tasks where every image has at least one other match. The query's own row (same id) is
    always a match and does not count as the other one. The rest becomes padding. Both thresholds
    depend on the model: tune them.

    Raises:
        ValueError: `second` above `threshold`, neighbors of another gallery.
    """
    if not second <= threshold:
        raise ValueError(f"min2: second={second} must not be above threshold={threshold}.")
    check_rows(neighbors.index, len(gallery), "min2", "the gallery")
    index, score = neighbors.index, neighbors.score
    own = torch.from_numpy(gallery.find(queries.ids)).to(index.device)[:, None]
    real = index >= 0
    other = real & (index != own)
    first = other & (other.cumsum(1) == 1)
    above = other & (score > threshold)
    kept = above | (first & (score > second) & ~above.any(1, keepdim=True)) | (real & ~other)
    return Neighbors(index.masked_fill(~kept, -1), score.masked_fill(~kept, -torch.inf)).sorted()


inb = neighborhood_blending


def _blended(
    vectors: Embeddings,
    gallery: Embeddings,
    threshold: float,
    second: float | None,
    k: int,
    own_weight: float,
    device: torch.device | None,
) -> tuple[Embeddings, int]:
    """One stage, and how many rows have as many neighbors as `k` allows."""
    near = search(vectors, gallery, k, exclude_self=True, device=device)
    passed = near.score > threshold
    full = int(passed.all(1).sum()) if k < len(gallery) - 1 else 0
    if second is not None:
        alone = ~passed.any(1)
        passed[:, 0] |= alone & (near.score[:, 0] > second)
    weights = near.score.clamp(min=0) * passed
    return weighted_sum(vectors, gallery, near, weights, own_weight), full
