"""Exact nearest neighbors of sparse rows, such as TF-IDF: in blocks, on every core, bounded memory.

Scores are float64 inner products, rounded to float32 once; ties go by id ascending. So the answers
are those of `common.retrieval.search` on the same rows written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from common.types import Neighbors

_CELLS = 2**21  # of the product per thread: 16 bytes each where all are filled


@dataclass
class SparseEmbeddings:
    """Sparse vectors with the ids they belong to.

    Attributes:
        ids: `(N,)` numpy unicode array, each id once.
        matrix: `(N, D)` scipy CSR matrix of non-negative numbers; rows have norm 1, or 0 for a text
            without a known term (it then ties last with everything).

    Raises:
        ValueError: shapes that do not fit, or a value that is negative or not finite.
    """

    ids: np.ndarray
    matrix: sparse.csr_matrix

    def __post_init__(self) -> None:
        self.ids = np.asarray(self.ids, dtype=np.str_)
        self.matrix = sparse.csr_matrix(self.matrix)
        if len(self.ids) != self.matrix.shape[0]:
            raise ValueError(
                f"SparseEmbeddings need (N,) ids and (N, D) rows, got {len(self.ids)} ids and "
                f"{self.matrix.shape[0]} rows."
            )
        if not (self.matrix.data >= 0).all() or np.isinf(self.matrix.data).any():
            raise ValueError("SparseEmbeddings hold a value that is negative, NaN or infinite.")

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, ids: np.ndarray) -> SparseEmbeddings:
        """The rows of `ids`, in that order; KeyError names the first id that is not here."""
        rows = _rows(self.ids, ids)
        if len(missing := np.flatnonzero(rows < 0)):
            raise KeyError(
                f"{len(missing)} ids have no row, the first is {str(ids[missing[0]])!r}."
            )
        return SparseEmbeddings(self.ids[rows], self.matrix[rows])


def sparse_search(
    queries: SparseEmbeddings, gallery: SparseEmbeddings, k: int, *, exclude_self: bool = False
) -> Neighbors:
    """The `k` gallery rows of largest inner product for each query, best first.

    Ties, also at 0, go by id ascending; with fewer than `k` rows the rest is padding, -1 and -inf.
    The time grows with the sum over all terms of queries having it times rows having it: a term
    that every text has costs most and says least.

    Args:
        queries: `(Q, D)`.
        gallery: `(N, D)`.
        k: neighbors per query.
        exclude_self: leave out the row with the query's own id.

    Raises:
        ValueError: k < 1 or different D.
    """
    _check(queries, gallery)
    if k < 1:
        raise ValueError(f"sparse_search needs k >= 1, got {k}.")
    # In the order of the ids a tie is decided by the column alone.
    order = np.argsort(gallery.ids, kind="stable")
    terms = sparse.csr_matrix(gallery.matrix[order].T, dtype=np.float64)
    rows = sparse.csr_matrix(queries.matrix, dtype=np.float64)
    own = _rows(gallery.ids[order], queries.ids) if exclude_self else np.full(len(queries), -1)
    index = np.full((len(queries), k), -1, np.int64)
    score = np.full((len(queries), k), -np.inf, np.float32)

    def block(start: int, stop: int) -> None:
        found = rows[start:stop] @ terms
        data = found.data.astype(np.float32)
        for row in range(start, stop):
            part = slice(*found.indptr[row - start : row - start + 2])
            columns, values = _best(found.indices[part], data[part], len(order), k, own[row])
            index[row, : len(columns)] = order[columns]
            score[row, : len(columns)] = values

    step = max(1, _CELLS // max(1, len(gallery)))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # scipy's products hold no lock
        starts = range(0, len(queries) if len(gallery) else 0, step)
        for done in [pool.submit(block, s, min(s + step, len(queries))) for s in starts]:
            done.result()
    return Neighbors(torch.from_numpy(index), torch.from_numpy(score))


def sparse_scores(
    queries: SparseEmbeddings, gallery: SparseEmbeddings, index: torch.Tensor
) -> torch.Tensor:
    """Inner products `(Q, K)` float32 of query i with the rows `index[i]`; -inf where that is -1.

    For pairs that something else has found: what the titles say of neighbors by image.

    Raises:
        ValueError: different D, or another number of queries.
    """
    _check(queries, gallery)
    if len(index) != len(queries):
        raise ValueError(f"{len(queries)} queries, but an index of {len(index)} rows.")
    score = torch.full(index.shape, -torch.inf)
    flat, pairs = score.view(-1), index.reshape(-1).numpy()
    asking = np.repeat(np.arange(len(queries)), index.shape[1])
    for some in _pieces(np.flatnonzero(pairs >= 0)):
        left, right = queries.matrix[asking[some]], gallery.matrix[pairs[some]]
        product = left.astype(np.float64).multiply(right).sum(1)
        flat[torch.from_numpy(some)] = torch.from_numpy(np.asarray(product)).flatten().float()
    return score


def _best(
    columns: np.ndarray, values: np.ndarray, count: int, k: int, own: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of `count` columns, of which the given ones, in any order, are not 0.

    Best first, ties by column, without column `own`.
    """
    real = (values > 0) & (columns != own)  # a product can be too small for float32
    if not real.all():
        columns, values = columns[real], values[real]
    if len(values) > k:
        last = np.partition(values, len(values) - k)[len(values) - k]
        columns, values = columns[values >= last], values[values >= last]
    elif len(values) < k:
        # The first columns of 0 fill up; k + 1 hold enough of them, as one may be self.
        first = np.arange(min(count, k + 1))
        first = first[~np.isin(first, columns) & (first != own)]
        columns = np.concatenate([columns, first])
        values = np.concatenate([values, np.zeros(len(first), np.float32)])
    best = np.lexsort((columns, -values))[:k]
    return columns[best], values[best]


def _rows(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Row numbers of ids among the known ones, -1 for an id that is not there."""
    wanted = np.asarray(ids, dtype=np.str_)
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(known, kind="stable")
    place = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
    return np.where(known[place] == wanted, place, -1).astype(np.int64)


def _pieces(pairs: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(pairs), 2**16):
        yield pairs[start : start + 2**16]


def _check(queries: SparseEmbeddings, gallery: SparseEmbeddings) -> None:
    if queries.matrix.shape[1] != gallery.matrix.shape[1]:
        raise ValueError(
            f"Queries have {queries.matrix.shape[1]} terms, the gallery {gallery.matrix.shape[1]}: "
            "transform both by one fitted vocabulary."
        )
