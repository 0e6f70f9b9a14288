"""Retrieval helped by labels: images of the query's predicted class move up, or are added.

Discriminative re-ranking of the landmark retrieval winners: 2019 1st place (Ozaki and Yokoo, arXiv
1906.04087) sorts and inserts, 2021 1st place (Henkel, arXiv 2110.03786) adds to the score.
"""

from __future__ import annotations

import torch

from common.rerank.voting import (
    BUDGET,
    check_rows,
    predict_labels,
    row_range,
    stack,
)
from common.types import Embeddings, Neighbors


def label_rerank(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    train: Embeddings | None,
    train_labels: torch.Tensor,
    *,
    same: float = 1.0,
    other: float = 0.1,
    voting: int = 3,
    device: torch.device | None = None,
) -> Neighbors:
    """Neighbors of the predicted label rise by same * cos(i, train), others fall by other * it.

    Origin: landmark retrieval 2021 1st place (soft re-rank; weights 1 and .1). Labels are predicted
    by the `voting` nearest train images. Ours, where the write-up is silent: cos(i, train) is the
    cosine of image i to the nearest train image of its own predicted label.

    Raises:
        ValueError: there is no labelled train set.
    """
    equal, cosine = _agreement(neighbors, queries, gallery, train, train_labels, voting, device)
    bonus = torch.where(equal, same * cosine, -other * cosine)
    return Neighbors(neighbors.index, neighbors.score + bonus).sorted()


def sort_step(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    train: Embeddings | None,
    train_labels: torch.Tensor,
    *,
    voting: int = 3,
    device: torch.device | None = None,
) -> Neighbors:
    """Neighbors of the query's predicted label first, the order otherwise unchanged.

    Origin: landmark retrieval 2019 1st place, sort step (arXiv 1906.04087, discriminative
    re-ranking). Scores of those that move up are raised by the row's range + 1, so that scores
    still descend.

    Raises:
        ValueError: there is no labelled train set.
    """
    equal, _ = _agreement(neighbors, queries, gallery, train, train_labels, voting, device)
    return _lift(neighbors, equal)


def insert_step(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    train: Embeddings | None,
    train_labels: torch.Tensor,
    *,
    voting: int = 3,
    threshold: float = 0.6,
    device: torch.device | None = None,
) -> Neighbors:
    """The sort step, then gallery images of that label that the search missed, behind the sorted.

    Origin: landmark retrieval 2019 1st place: images whose confidence and the query's sum to more
    than `threshold` are inserted, the most confident first; confidence is the winning label's
    summed similarity / voting (voting 3, threshold .6). The list keeps its length: the tail falls
    off. Unlike the original, the query itself (same id) is never inserted. Predicts a label for the
    whole gallery.

    Raises:
        ValueError: there is no labelled train set.
    """
    home, width = neighbors.index.device, neighbors.index.shape[1]
    check_rows(neighbors.index, len(gallery), "insert_step", "the gallery")
    if not len(gallery):
        return neighbors
    (asked, asked_sure, _), (label, sure, _) = (
        tuple(
            t.to(home)
            for t in predict_labels(images, train, train_labels, voting=voting, device=device)
        )
        for images in (queries, gallery)
    )
    asked = asked.masked_fill(asked < 0, -2)  # no label is nobody's label
    equal = (asked[:, None] == label[neighbors.index.clamp(min=0)]) & (neighbors.index >= 0)
    lifted, (_, high) = _lift(neighbors, equal), row_range(neighbors)
    # Gallery by label, then most confident first, then row: a label's images are one run.
    order = torch.argsort(sure, descending=True, stable=True)
    order = order[torch.argsort(label[order], stable=True)]
    begin = torch.searchsorted(label[order], asked)
    end = torch.searchsorted(label[order], asked, right=True)
    own = torch.from_numpy(gallery.find(queries.ids)).to(home)
    parts = []
    block = max(1, BUDGET // (6 * width + 2))
    for start in range(0, len(neighbors), block):
        rows = slice(start, start + block)
        # `width` of a run are listed already and one is the query: twice as many cover the rest.
        place = begin[rows, None] + torch.arange(2 * width + 1, device=home)
        found = order[place.clamp(max=len(order) - 1)]
        new = (place < end[rows, None]) & (found != own[rows, None])
        new &= ~_contains(neighbors.index[rows], found)
        new &= asked_sure[rows, None] + sure[found] > threshold
        # Between the lifted (at least high + 1) and the rest (at most high).
        score = high[rows, None] + 0.25 + 0.5 * sure[found].clamp(0, 1)
        merged = Neighbors(
            torch.cat([lifted.index[rows], found.masked_fill(~new, -1)], 1),
            torch.cat([lifted.score[rows], score.masked_fill(~new, -torch.inf)], 1),
        )
        parts.append(merged.sorted().top(width))
    return stack(parts, neighbors)


def _agreement(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    train: Embeddings | None,
    train_labels: torch.Tensor,
    voting: int,
    device: torch.device | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether a neighbor's predicted label is the query's, and its cosine to train, `(Q, K)` each.

    Only the gallery images that are somebody's neighbor get a label.
    """
    check_rows(neighbors.index, len(gallery), "label re-ranking", "the gallery")
    home, real = neighbors.index.device, neighbors.index >= 0
    used = torch.unique(neighbors.index[real])
    asked, _, _ = predict_labels(queries, train, train_labels, voting=voting, device=device)
    found, _, nearest = predict_labels(
        gallery, train, train_labels, voting=voting, rows=used, device=device
    )
    label = torch.full((len(gallery) + 1,), -1, device=home)
    label[used] = found.to(home)
    cosine = torch.zeros(len(gallery) + 1, device=home)
    cosine[used] = nearest.to(home)
    label = label[neighbors.index]
    equal = (asked.to(home)[:, None] == label) & (label >= 0) & real
    return equal, cosine[neighbors.index]


def _lift(neighbors: Neighbors, chosen: torch.Tensor) -> Neighbors:
    """The chosen neighbors above all others, their order kept, scores descending."""
    low, high = row_range(neighbors)
    offset = (high - low + 1)[:, None]
    return Neighbors(
        neighbors.index, torch.where(chosen, neighbors.score + offset, neighbors.score)
    ).sorted()


def _contains(index: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Whether each of `wanted` `(B, T)` is in the same row of `index` `(B, K)`."""
    if not index.shape[1]:
        return torch.zeros_like(wanted, dtype=torch.bool)
    listed = index.sort(dim=1).values
    at = torch.searchsorted(listed, wanted).clamp(max=index.shape[1] - 1)
    return listed.gather(1, at) == wanted
