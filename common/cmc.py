"""Identification by the Market-1501 protocol: CMC, mAP and mINP, same-camera images left out.

Zheng et al., "Scalable person re-identification: a benchmark" (ICCV 2015); mINP: Ye et al. (TPAMI
2021). Only the scores of the true matches are ranked: one block of scores is sorted by value, no
index is, and nothing of size Q x G is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common.types import Embeddings

Array = npt.NDArray[Any]

_CELLS = 2**23  # scores of one block
_ROWS = 32  # queries per task of a thread


@dataclass
class Identification:
    """What `cmc_map` measured.

    Attributes:
        cmc: `(ranks,)` share of the queries with a match among their first 1, 2, ... images.
        map: mean over queries of the mean precision at their matches.
        minp: mean over queries of matches / rank of the last match.
        queries: how many have a match and count.
    """

    cmc: Array
    map: float
    minp: float
    queries: int


def cmc_map(
    scores: Array | torch.Tensor,
    query_labels: Array | torch.Tensor,
    gallery_labels: Array | torch.Tensor,
    query_cameras: Array | torch.Tensor | None = None,
    gallery_cameras: Array | torch.Tensor | None = None,
    *,
    ranks: int = 50,
    largest: bool = True,
) -> Identification:
    """CMC, mAP and mINP of a `(Q, G)` matrix of similarities (or distances: `largest=False`).

    For each query the gallery images of the same label and the same camera, and those of label -1
    (junk), are left out; the others are ranked. Queries without a match do not count. Average
    precision is the finite sum (not the trapezoids of the first Matlab code). Ties go by gallery
    row: neither optimistic nor pessimistic, and the order of `common.retrieval.search`.

    Args:
        scores: finite floats; one block of it is copied at a time.
        query_labels: `(Q,)` integers; -1 has no match.
        gallery_labels: `(G,)` integers.
        query_cameras: `(Q,)`, with `gallery_cameras` `(G,)`; None: nothing but junk is left out.
        gallery_cameras: see `query_cameras`.
        ranks: length of the CMC curve.
        largest: whether large is near.

    Raises:
        ValueError: shapes that do not fit, ranks < 1, or a score that is not finite (names it).
    """
    if scores.ndim != 2:
        raise ValueError(f"cmc_map needs scores (Q, G), got {tuple(scores.shape)}.")

    def blocks() -> Iterator[tuple[int, Array]]:
        step = max(1, _CELLS // max(1, scores.shape[1]))
        for start in range(0, scores.shape[0], step):
            yield start, _array(scores[start : start + step])

    pairs = _Pairs(
        (scores.shape[0], scores.shape[1]),
        query_labels,
        gallery_labels,
        query_cameras,
        gallery_cameras,
    )
    return pairs.measured(blocks(), ranks, largest)


def cmc_map_embeddings(
    queries: Embeddings | torch.Tensor,
    gallery: Embeddings | torch.Tensor,
    query_labels: Array | torch.Tensor,
    gallery_labels: Array | torch.Tensor,
    query_cameras: Array | torch.Tensor | None = None,
    gallery_cameras: Array | torch.Tensor | None = None,
    *,
    ranks: int = 50,
) -> Identification:
    """`cmc_map` of the inner products of `(Q, D)` and `(G, D)` embeddings, block by block."""
    q, g = (x.vectors if isinstance(x, Embeddings) else x for x in (queries, gallery))
    if q.ndim != 2 or g.ndim != 2 or q.shape[1] != g.shape[1]:
        raise ValueError(
            f"cmc_map_embeddings needs (Q, D) and (G, D), got {tuple(q.shape)}, {tuple(g.shape)}."
        )

    def blocks() -> Iterator[tuple[int, Array]]:
        near = g.detach().float().T
        step = max(1, _CELLS // max(1, len(g)))
        for start in range(0, len(q), step):
            yield start, _array(q[start : start + step].detach().to(g.device).float() @ near)

    pairs = _Pairs((len(q), len(g)), query_labels, gallery_labels, query_cameras, gallery_cameras)
    return pairs.measured(blocks(), ranks, True)


class _Pairs:
    """The pairs of one label: matches, and those that the protocol leaves out."""

    def __init__(
        self, shape: tuple[int, int], query_labels: Any, gallery_labels: Any, *cameras: Any
    ) -> None:
        query, known = _array(query_labels), _array(gallery_labels)
        if (cameras[0] is None) != (cameras[1] is None):
            raise ValueError(
                "cmc_map needs the cameras of both queries and gallery, or of neither."
            )
        given = [query, known, *(_array(camera) for camera in cameras if camera is not None)]
        if [a.shape for a in given] != [(shape[i % 2],) for i in range(len(given))]:
            raise ValueError(
                f"cmc_map: scores {shape} need labels and cameras {(shape[0],)} and {(shape[1],)}, "
                f"got {', '.join(str(a.shape) for a in given)}."
            )
        order = np.argsort(known, kind="stable")  # rows of a label ascending
        first, last = (np.searchsorted(known[order], query, side) for side in ("left", "right"))
        count = np.where(query >= 0, last - first, 0)
        self.query = np.repeat(np.arange(shape[0]), count)
        inside = np.arange(len(self.query)) - np.repeat(count.cumsum() - count, count)
        self.row = order[np.repeat(first, count) + inside]
        out = np.zeros(len(self.query), bool)
        if len(given) == 4:
            out = given[2][self.query] == given[3][self.row]
        self.out, self.out_row = self.query[out], self.row[out]
        self.query, self.row = self.query[~out], self.row[~out]
        self.junk = np.flatnonzero(known < 0)
        self.shape = shape

    def measured(
        self, blocks: Iterator[tuple[int, Array]], ranks: int, largest: bool
    ) -> Identification:
        if ranks < 1:
            raise ValueError(f"cmc_map needs ranks >= 1, got {ranks}.")
        score = np.empty(len(self.query))
        ahead = np.empty(len(self.query), np.int64)  # images that are left in and score more
        level = np.empty(len(self.query), np.int64)  # that score the same, itself included
        lower = np.zeros(len(self.query), np.int64)  # unmatched ones among those, of smaller row
        for start, block in blocks:
            self._count(start, block, largest, score, ahead, level, lower)
        return self._summary(score, ahead, level, lower, ranks)

    def _count(
        self,
        start: int,
        block: Array,
        largest: bool,
        score: Array,
        ahead: Array,
        level: Array,
        lower: Array,
    ) -> None:
        """Fill in the matches of one block of queries; sorting releases the GIL."""

        def part(low: int) -> None:
            high = min(low + _ROWS, len(block))
            mine = slice(*np.searchsorted(self.query, (start + low, start + high)))
            away = slice(*np.searchsorted(self.out, (start + low, start + high)))
            kept = np.array(block[low:high], dtype=np.result_type(block.dtype, np.float32))
            if not largest:
                np.negative(kept, out=kept)
            kept[self.out[away] - start - low, self.out_row[away]] = -np.inf
            kept[:, self.junk] = -np.inf
            left_out = np.bincount(self.out[away] - start - low, minlength=high - low)
            left_out += len(self.junk)
            row, column = self.query[mine] - start - low, self.row[mine]
            value = kept[row, column]
            score[mine] = value
            ordered = np.sort(kept, axis=1)
            self._finite(ordered, left_out, start + low)
            ends = np.searchsorted(row, np.arange(high - low + 1))
            for i in range(high - low):
                some = slice(ends[i], ends[i + 1])
                above = np.searchsorted(ordered[i], value[some], "right")
                ahead[mine][some] = self.shape[1] - above
                level[mine][some] = above - np.searchsorted(ordered[i], value[some], "left")
            # Ties are rare: only there the places of equal scores are looked at.
            for i in np.flatnonzero(level[mine] > 1).tolist():
                equal = np.flatnonzero(kept[row[i], : column[i]] == value[i])
                matches = column[ends[row[i]] : ends[row[i] + 1]]
                lower[mine][i] = len(np.setdiff1d(equal, matches, assume_unique=True))

        with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), os.cpu_count() or 1))) as pool:
            list(pool.map(part, range(0, len(block), _ROWS)))

    def _finite(self, ordered: Array, left_out: Array, start: int) -> None:
        if not self.shape[1]:
            return
        lowest = ordered[np.arange(len(ordered)), np.minimum(left_out, self.shape[1] - 1)]
        wrong = ~np.isfinite(ordered[:, -1]) | ~np.isfinite(lowest)
        wrong &= left_out < self.shape[1]
        if wrong.any():
            raise ValueError(
                f"cmc_map: the scores of query {start + int(wrong.argmax())} are not all finite."
            )

    def _summary(
        self, score: Array, ahead: Array, level: Array, lower: Array, ranks: int
    ) -> Identification:
        """Metrics from the counts: within a query matches are numbered by score, then row."""
        order = np.lexsort((self.row, -score, self.query))
        query, score = self.query[order], score[order]
        new = np.r_[True, query[1:] != query[:-1]] if len(query) else np.zeros(0, bool)
        first = np.flatnonzero(new)
        count = np.diff(np.r_[first, len(query)])
        number = np.arange(len(query)) - np.repeat(first, count)
        # Of the images that score more, `better` are matches themselves.
        other = np.r_[True, score[1:] != score[:-1]] | new if len(query) else new
        better = number[np.maximum.accumulate(np.where(other, np.arange(len(query)), 0))]
        rank = number + 1 + (ahead[order] - better) + lower[order]
        if not len(first):
            return Identification(np.zeros(ranks), 0.0, 0.0, 0)
        precision = np.add.reduceat((number + 1) / rank, first) / count
        found = np.bincount(np.minimum(rank[first], ranks + 1), minlength=ranks + 2)
        cmc = found[1 : ranks + 1].cumsum() / len(first)
        minp = float((count / rank[first + count - 1]).mean())
        return Identification(cmc, float(precision.mean()), minp, len(first))


def _array(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
