"""The unknown identity as one of the answers: new_whale in a list of five.

search:
  - {name: knn, k: 100}
  - {name: vote, top: 100, power: 1.0, reduce: max}
  - {name: insert_unknown, share: 0.276}
"""

from __future__ import annotations

import numpy as np
import torch

from common.rerank.curves import margins, refused_listings
from common.rerank.thresholds import quantile_threshold, share_threshold
from common.types import Neighbors


def insert_unknown(
    neighbors: Neighbors,
    gallery_labels: torch.Tensor,
    *,
    unknown: int | None = None,
    threshold: float | None = None,
    share: float | None = None,
    quantile: float | None = None,
    single: float = 0.0,
    accept: int = 0,
    top: int = 5,
) -> Neighbors:
    """`top` classes per query, the unknown identity before the first one that scores too low.

    In label space, after `vote`. Every row lists `top` different classes: rows that are short are
    filled up with the most frequent ones (ties: lower class), as an empty place cannot gain.
    Origins, Humpback 2019: threshold by validation (1st, 2nd place), or such that new_whale leads
    in 27.6 % of the queries (3rd); classes with one image on their own terms, read from the
    transposed matrix (4th; how is ours).

    Args:
        neighbors: `(Q, K)` classes, best first, each once in a row.
        gallery_labels: `(G,)` class of each gallery image, -1 unknown: says how many images classes
            have.
        unknown: class of the unknown identity; null: the one after the last. Where it is listed
            already it is taken out first.
        threshold: candidates that score below it come after the unknown identity. Give one of
            threshold, share and quantile.
        share: the threshold with which this share of the queries has it first (`share_threshold`).
        quantile: the threshold is this quantile of the first scores.
        single: added to the threshold of classes with one image: their best of one image is lower
            than a best of many (`search_offset` finds it).
        accept: a class with one image passes only for the `accept` queries that score it highest,
            whatever they score: read along its column, not along the query's row; 0: for any.
        top: entries per query.

    Raises:
        ValueError: not exactly one rule, `top` below 1, a class listed twice, a NaN score.
    """
    if top < 1:
        raise ValueError(f"insert_unknown: top must be at least 1, got {top}.")
    index, score, counts, fresh = _classes(neighbors, gallery_labels, unknown)
    offset, margin = _passing(index, score, counts, single, accept)
    wall = _wall(margin, accept, threshold, share, quantile)
    place = np.minimum((margin[:, :top] >= np.float32(wall)).sum(1), top)
    index, score = _insert(index, score, place, fresh, wall, offset, top)
    index, score = _fill(index, score, counts, fresh, top)
    home = neighbors.index.device
    return Neighbors(torch.from_numpy(index).to(home), torch.from_numpy(score).to(home))


def unknown_threshold(
    neighbors: Neighbors,
    gallery_labels: torch.Tensor,
    *,
    unknown: int | None = None,
    threshold: float | None = None,
    share: float | None = None,
    quantile: float | None = None,
    single: float = 0.0,
    accept: int = 0,
) -> float:
    """The threshold that `insert_unknown` takes with these arguments.

    Raises:
        ValueError: see there.
    """
    index, score, counts, _ = _classes(neighbors, gallery_labels, unknown)
    return _wall(
        _passing(index, score, counts, single, accept)[1], accept, threshold, share, quantile
    )


def _classes(
    neighbors: Neighbors, gallery_labels: torch.Tensor, unknown: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Classes and scores without the unknown identity, images of each class, and its label."""
    labels = gallery_labels.cpu().numpy()
    counts = np.bincount(labels[labels >= 0])
    fresh = len(counts) if unknown is None else unknown
    index, score = _without(neighbors, fresh)
    _check(index, score)
    size = max(int(index.max(initial=-1)), fresh, len(counts) - 1) + 1
    return index, score, np.pad(counts, (0, size - len(counts))), fresh


def _passing(
    index: np.ndarray, score: np.ndarray, counts: np.ndarray, single: float, accept: int
) -> tuple[np.ndarray, np.ndarray]:
    """`(C,)` what is added to the threshold of each class, and `margins`."""
    offset = np.where(counts == 1, single, 0.0).astype(np.float32)
    refused = refused_listings(index, score, counts, accept)
    return offset, margins(np.where(refused, -np.inf, score), index, offset)


def _wall(
    margin: np.ndarray,
    accept: int,
    threshold: float | None,
    share: float | None,
    quantile: float | None,
) -> float:
    """The threshold by the one rule that is given."""
    given = [rule for rule in (threshold, share, quantile) if rule is not None]
    if len(given) != 1 or accept < 0:
        raise ValueError(
            "insert_unknown: give one of threshold, share and quantile, and accept of at least 0; "
            f"got {threshold}, {share}, {quantile} and {accept}."
        )
    first = margin[:, 0] if margin.shape[1] else np.full(len(margin), -np.inf, np.float32)
    if share is not None and len(first):
        return share_threshold(first, share)
    if quantile is not None and len(first):
        return quantile_threshold(first, quantile)
    return 0.0 if threshold is None else threshold


def _without(neighbors: Neighbors, unknown: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes and scores without the unknown identity, padding last."""
    index = neighbors.index.cpu().numpy().copy()
    score = neighbors.score.cpu().numpy().astype(np.float32)
    index[index == unknown] = -1
    order = np.argsort(index < 0, axis=1, kind="stable")
    index, score = np.take_along_axis(index, order, 1), np.take_along_axis(score, order, 1)
    return index, np.where(index < 0, -np.inf, score).astype(np.float32)


def _check(index: np.ndarray, score: np.ndarray) -> None:
    if np.isnan(score).any():
        raise ValueError(f"insert_unknown: {int(np.isnan(score).sum())} scores are NaN.")
    ordered = np.sort(index, 1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row = int(twice.any(1).argmax())
        raise ValueError(
            f"insert_unknown: query {row} lists a class twice: it comes after vote, in label space."
        )


def _insert(
    index: np.ndarray,
    score: np.ndarray,
    place: np.ndarray,
    unknown: int,
    wall: float,
    offset: np.ndarray,
    top: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The first `top` with the unknown identity at `place`, scored so that the row descends."""
    rows = np.arange(len(index))
    short = max(0, top + 1 - index.shape[1])
    index = np.pad(index, ((0, 0), (0, short)), constant_values=-1)
    score = np.pad(score, ((0, 0), (0, short)), constant_values=-np.inf)
    before = np.where(place > 0, score[rows, place - 1], np.inf)
    after = score[rows, np.minimum(place, index.shape[1] - 1)]
    own = wall + np.where(index[rows, place] >= 0, offset[index[rows, place]], 0.0)
    own = np.clip(own.astype(np.float32), after, before).astype(np.float32)
    column = np.arange(top)
    source = column - (column > place[:, None])
    out_index = np.take_along_axis(index, source, 1)
    out_score = np.take_along_axis(score, source, 1)
    here = column == place[:, None]
    return (
        np.where(here, unknown, out_index),
        np.where(here, own[:, None], out_score).astype(np.float32),
    )


def _fill(
    index: np.ndarray, score: np.ndarray, counts: np.ndarray, unknown: int, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Short rows filled up with the most frequent classes that they do not list."""
    order = np.argsort(-counts, kind="stable")
    order = order[(counts[order] > 0) & (order != unknown)][: 2 * top]
    for row in np.flatnonzero((index < 0).any(1)).tolist():
        free = np.flatnonzero(index[row] < 0)
        new = order[~np.isin(order, index[row])][: len(free)]
        low = score[row][index[row] >= 0].min(initial=0.0)
        index[row, free[: len(new)]] = new
        score[row, free[: len(new)]] = low - np.arange(1, len(new) + 1)
    return index, score
