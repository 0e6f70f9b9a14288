"""What label steps and blends share: scores grouped by index, and labels predicted from train.

A row of candidates may name an index several times (one class by several neighbors, one image by
several models); `group` turns it into `Neighbors` that name it once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from common.retrieval.search import search
from common.types import Embeddings, Neighbors

BUDGET = 1 << 25  # float32 elements of one block: 128 MiB, whatever the number of queries
IMAGES = 1 << 17  # embeddings copied at once: 256 MiB of 512 floats


def group(index: torch.Tensor, score: torch.Tensor, *, reduce: str = "sum") -> Neighbors:
    """Each index of a row once, with the sum (or max) of its scores, best first; -1 is left out.

    `(Q, T)` int64 and float32 -> `Neighbors` `(Q, T)`, padded. Sums run in the order of the columns
    on every device, so the result is the same on each run.
    """
    rows, columns = index.shape
    if rows == 0 or columns == 0:
        return Neighbors(index, score)
    order = index.argsort(dim=1, stable=True)
    index, score = index.gather(1, order), score.gather(1, order)
    first = torch.ones_like(index, dtype=torch.bool)
    first[:, 1:] = index[:, 1:] != index[:, :-1]
    lengths = torch.bincount(first.flatten().cumsum(0) - 1)
    totals = torch.segment_reduce(score.flatten(), reduce, lengths=lengths)
    row, column = first.nonzero(as_tuple=True)
    place = (first.cumsum(1) - 1)[first]
    once = torch.full_like(index, -1)
    once[row, place] = index[row, column]
    total = torch.full_like(score, -torch.inf)
    total[row, place] = totals
    return Neighbors(once, total.masked_fill(once < 0, -torch.inf)).sorted()


def row_range(neighbors: Neighbors) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest score of each row without its padding, `(Q,)` each; 0 for an empty row."""
    if not neighbors.index.shape[1]:
        zeros = neighbors.score.new_zeros(len(neighbors))
        return zeros, zeros
    real = neighbors.index >= 0
    low = neighbors.score.masked_fill(~real, torch.inf).amin(1)
    high = neighbors.score.masked_fill(~real, -torch.inf).amax(1)
    some = real.any(1)
    return low.where(some, 0.0), high.where(some, 0.0)


def stack(parts: list[Neighbors], like: Neighbors) -> Neighbors:
    """The blocks one below the other; without any, an empty result on the device of `like`."""
    if not parts:
        return Neighbors(like.index[:0], like.score[:0])
    return Neighbors(torch.cat([p.index for p in parts]), torch.cat([p.score for p in parts]))


def blocks(images: Embeddings, rows: torch.Tensor | None) -> Iterator[Embeddings]:
    """The images of `rows`, some at a time: all at once could be a second gallery; None: as is."""
    if rows is None:
        yield images
        return
    for part in torch.split(rows, IMAGES):
        some = part.to(images.vectors.device)
        yield Embeddings(images.ids[part.cpu().numpy()], images.vectors[some])


def check_rows(index: torch.Tensor, size: int, step: str, what: str) -> None:
    """Raise ValueError when `index` names a row that `what`, of `size` rows, does not have."""
    highest = int(index.max()) if index.numel() else -1
    if highest >= size:
        raise ValueError(
            f"{step}: neighbors name row {highest} but {what} has {size}: "
            "they belong to another gallery, or this step is in the wrong place."
        )


def voters(
    index: torch.Tensor, score: torch.Tensor, labels: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and scores of a row's `top` best labelled neighbors; label -1 and score 0 behind."""
    if not len(labels):
        return index[:, :top], torch.zeros_like(score[:, :top])
    found = torch.where(index < 0, -1, labels[index.clamp(min=0)])
    order = (found < 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :top]
    found = found.gather(1, order)
    return found, score.gather(1, order).masked_fill(found < 0, 0.0)


def predict_labels(
    images: Embeddings,
    train: Embeddings | None,
    train_labels: torch.Tensor,
    *,
    voting: int = 3,
    rows: torch.Tensor | None = None,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Label, confidence and nearest cosine of each image by its `voting` nearest train images.

    The label with the largest summed similarity wins, the lower one at a tie; confidence is that
    sum / voting; the cosine is to the nearest train image of that label. `(N,)` each. Origin:
    landmark retrieval 2019 1st place (arXiv 1906.04087). An image of train does not vote for
    itself; nobody's vote is label -1. With `rows`, of these images only; `device` searches.

    Raises:
        ValueError: `train` is None, empty, or has no label.
    """
    if train is None or not len(train) or not bool((train_labels >= 0).any()):
        raise ValueError(
            "Label re-ranking needs labelled train embeddings and this pipeline has none: "
            "remove the step or run infer with the train split."
        )
    if len(train_labels) != len(train):
        raise ValueError(f"{len(train)} train embeddings but {len(train_labels)} train_labels.")
    if bool((train_labels < 0).any()):  # a copy, but only of the labelled rows
        known = torch.nonzero(train_labels >= 0)[:, 0].cpu()
        train = Embeddings(train.ids[known.numpy()], train.vectors[known.to(train.vectors.device)])
        train_labels = train_labels[known.to(train_labels.device)]
    parts = [
        search(part, train, min(voting, len(train)), exclude_self=True, device=device)
        for part in blocks(images, rows)
    ]
    near = stack(parts, parts[0])
    labels, scores = voters(
        near.index, near.score, train_labels.to(near.index.device), near.index.shape[1]
    )
    winner = group(labels, scores).top(1)
    cosine = torch.where(labels == winner.index, scores, -torch.inf).amax(1)
    return winner.index[:, 0], winner.score[:, 0] / voting, cosine


def scores_of(index: torch.Tensor, neighbors: Neighbors) -> torch.Tensor:
    """What `neighbors` score the candidates `index` `(Q, K)`, in its order; NaN for others."""
    if not neighbors.index.shape[1] or not index.shape[1]:
        return torch.full(index.shape, torch.nan, device=index.device)
    listed, order = neighbors.index.to(index.device).sort(dim=1)
    at = torch.searchsorted(listed, index.contiguous()).clamp(max=listed.shape[1] - 1)
    score = neighbors.score.to(index.device).gather(1, order).gather(1, at)
    return score.masked_fill((listed.gather(1, at) != index) | (index < 0), torch.nan)
