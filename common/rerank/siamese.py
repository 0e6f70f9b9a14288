"""Candidates compared again by the head that a siamese network learned.

loss: [{name: siamese}]
ranking:
  - {name: knn, k: 100}
  - {name: siamese, top: 50, weight: 0.5}
"""

from __future__ import annotations

import torch

from common.rerank.candidates import blocks, rescored
from common.rerank.pair_scores import PairScores
from common.rerank.voting import check_rows
from common.types import Embeddings, Neighbors


def siamese(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    pair_head: PairScores | None,
    *,
    top: int = 50,
    weight: float = 0.5,
    device: torch.device | None = None,
) -> Neighbors:
    """The first `top` neighbors by (1 - weight) * score + weight * the learned probability.

    Of a run whose `loss:` has `siamese`. Origin: humpback whale identification 4th place, after
    Piotte's kernel, where it compares every pair (weight 1): 50 candidates of the cosine cost a
    hundredth of that. The others stay behind. The vectors must be those that the backbone makes:
    put the step before what turns, shortens or expands them.

    Args:
        neighbors: `(Q, K)` rows of the gallery.
        queries: Q embeddings.
        gallery: G embeddings.
        pair_head: the run's trained head.
        top: candidates per query that are compared.
        weight: of the probability; 1 leaves the earlier score out.
        device: where pairs are compared, some queries at a time.

    Raises:
        ValueError: a run without such a head, vectors of another length, an argument out of range.
    """
    if top < 1 or not 0 < weight <= 1:
        raise ValueError(f"siamese: top at least 1 and weight in (0, 1], got {top} and {weight}.")
    if pair_head is None:
        raise ValueError(
            "siamese: this run has learned no comparison of pairs: train with {name: siamese} in "
            "loss:, or leave the step out."
        )
    if queries.vectors.shape[1] != pair_head.dim or gallery.vectors.shape[1] != pair_head.dim:
        raise ValueError(
            f"siamese: compares vectors of {pair_head.dim} numbers, these have "
            f"{queries.vectors.shape[1]} and {gallery.vectors.shape[1]}: put the step before what "
            "changes the vectors."
        )
    check_rows(neighbors.index, len(gallery), "siamese", "the gallery")
    place = neighbors.index.device if device is None else device
    asked, parts = pair_head.to(place), []
    for _, mine, theirs, _ in blocks(neighbors, queries, gallery, top, place, copies=asked.cost):
        shape = theirs.shape
        both = mine[:, None].expand(shape).reshape(-1, shape[2]), theirs.reshape(-1, shape[2])
        parts.append(asked.probability(*both).view(shape[:2]))
    if not parts:
        return neighbors
    said = torch.cat(parts).to(neighbors.score)
    before = neighbors.score[:, :top]
    return rescored(neighbors, torch.lerp(before, said, weight))
