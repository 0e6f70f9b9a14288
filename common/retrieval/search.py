"""Exact nearest neighbors by inner product, in tiles: memory is bounded, the answer is unique.

The answer does not depend on machine, backend, tile sizes or threads. Every matrix product rounds
in its own way, so it only proposes candidates; their scores are computed again (float64, rounded to
float32 once), and a query for which rounding may have hidden a neighbor is searched once more in
float64. Ties are ordered: score descending, then id ascending.
"""

from __future__ import annotations

import numpy as np
import torch

from common.retrieval import tiles
from common.retrieval.tiles import Vectors
from common.types import Embeddings, Neighbors

_EXACT_BLOCK = 16_384  # gallery rows per float64 tile
_RANKS = 2**32


def search(
    queries: Vectors,
    gallery: Vectors,
    k: int,
    *,
    backend: str = "auto",
    exclude_self: bool = False,
    query_block: int = 128,
    gallery_block: int = 65_536,
    device: torch.device | str | None = None,
) -> Neighbors:
    """The `k` gallery rows of largest inner product for each query, best first.

    Ties go by id ascending (`Embeddings`, in whatever order the rows are) or by row (tensors). With
    fewer than `k` rows the rest is padding, -1 and -inf. Memory beyond inputs and result: one tile
    of `query_block * gallery_block` floats, and one gallery block when it has to be converted.

    Args:
        queries: `(Q, D)` float32 or float16; products accumulate in float32 or better.
        gallery: `(N, D)`.
        k: neighbors per query.
        backend: `torch`, `faiss` (same answers), or `auto`: faiss on a GPU that faiss can use, else
            torch. Which is faster on a CPU depends on the CPU: `python -m tests.bench.search`.
        exclude_self: leave out the row with the query's own id; for tensors, row i for query i.
        query_block: queries per tile.
        gallery_block: gallery rows per tile.
        device: where to compute, the gallery's device by default; the result is on the queries'.

    Raises:
        ValueError: k < 1, different D, a NaN or infinite value (names row and id), or
            `exclude_self` for inputs that do not say who is self.
    """
    q, g = tiles.tensor(queries), tiles.tensor(gallery)
    _check(q, g, k, backend, query_block, gallery_block)
    place = torch.device(device) if device is not None else g.device
    order = _id_order(gallery)
    self_row = _self_rows(queries, gallery, order).to(place) if exclude_self else None
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    order, rank = order.to(q.device), rank.to(place)
    # Spare candidates keep the k-th score clear of what is left out: few rows need the slow way.
    width = min(len(g), k + k // 8 + 16 + exclude_self)
    with torch.no_grad(), tiles.full_precision(place):
        norms = tiles.finite_norms(q, "queries", queries, 0).to(place)
        if not len(q) or not len(g):
            return _neighbors(order.new_empty(len(q), 0), order, k)
        rough, index, largest = tiles.candidates(
            queries,
            gallery,
            width,
            backend=backend,
            device=place,
            query_block=query_block,
            gallery_block=gallery_block,
        )
        score = _rescore(q, g, index)
        if self_row is not None:
            score[index == self_row[:, None]] = -torch.inf
        keys = _key(score, rank[index]).topk(min(k, width)).values
        if width < len(g):
            # |rounded - exact| <= D * 2^-24 * |q| * |x| for any order of summation.
            slack = (q.shape[1] + 8) * 2.0**-24 * largest * norms.double()
            hidden = rough[:, -1].double() + slack >= _score(keys[:, -1]).double()
            again = hidden.nonzero().squeeze(1)
            for start in range(0, len(again), query_block):
                part = again[start : start + query_block]
                own = None if self_row is None else self_row[part]
                keys[part] = _exact_keys(q[part.to(q.device)], g, k, rank, own)
        return _neighbors(keys.to(q.device), order, k)


def knn(
    queries: Embeddings,
    gallery: Embeddings,
    *,
    k: int = 100,
    exclude_self: bool = False,
    backend: str = "auto",
    device: torch.device | None = None,
) -> Neighbors:
    """The `k` nearest gallery images of each query, exact, best first."""
    return search(queries, gallery, k, backend=backend, exclude_self=exclude_self, device=device)


def _rescore(q: torch.Tensor, g: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Scores of the pairs `(Q, M)`: float64 accumulation, rounded to float32."""
    device = index.device
    score = torch.empty(index.shape, device=device)
    # Two megabytes of float64 stay in a CPU's cache: several times faster than large pieces.
    cells = 2**18 if device.type == "cpu" else 2**25
    step = max(1, cells // (index.shape[1] * g.shape[1]))
    for start in range(0, len(q), step):
        rows = index[start : start + step]
        near = g.index_select(0, rows.reshape(-1).to(g.device)).to(device, torch.float64)
        near = near.view(*rows.shape, -1)
        near *= q[start : start + step, None].to(device, torch.float64)
        score[start : start + step] = near.sum(-1)
    return score


def _exact_keys(
    q: torch.Tensor, g: torch.Tensor, k: int, rank: torch.Tensor, self_row: torch.Tensor | None
) -> torch.Tensor:
    """Keys of the `k` best of all rows for one block of queries, products in float64."""
    wide = q.to(rank.device, torch.float64)
    best = rank.new_empty(len(q), 0)
    for start in range(0, len(g), _EXACT_BLOCK):
        block = g[start : start + _EXACT_BLOCK].to(rank.device, torch.float64)
        score = (wide @ block.T).float()
        if self_row is not None:
            column = self_row - start
            mine = ((column >= 0) & (column < len(block))).nonzero().squeeze(1)
            score[mine, column[mine]] = -torch.inf
        keys = _key(score, rank[start : start + len(block)])
        best = torch.cat([best, keys.topk(min(k, len(block))).values], 1)
        best = best.topk(min(k, best.shape[1])).values
    return best


def _key(score: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """int64 ordered like (score, -rank): no two are equal, so any top-k of keys is exact."""
    bits = (score + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # now ordered like the floats
    return bits.long() * _RANKS + (_RANKS - 1 - rank)


def _score(keys: torch.Tensor) -> torch.Tensor:
    bits = (keys >> 32).int()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)


def _neighbors(keys: torch.Tensor, order: torch.Tensor, k: int) -> Neighbors:
    """Keys, best first, as rows and scores, padded to `k` columns."""
    score = _score(keys)
    index = torch.where(score == -torch.inf, -1, order[_RANKS - 1 - (keys & (_RANKS - 1))])
    missing = (0, k - keys.shape[1])
    return Neighbors(
        torch.nn.functional.pad(index, missing, value=-1),
        torch.nn.functional.pad(score, missing, value=-torch.inf),
    )


def _id_order(gallery: Vectors) -> torch.Tensor:
    """Rows by id ascending, `(N,)` int64."""
    if isinstance(gallery, torch.Tensor) or bool((gallery.ids[:-1] <= gallery.ids[1:]).all()):
        return torch.arange(len(gallery))
    return torch.from_numpy(np.argsort(gallery.ids, kind="stable"))


def _self_rows(queries: Vectors, gallery: Vectors, order: torch.Tensor) -> torch.Tensor:
    """The gallery row of each query, `(Q,)` int64, -1 where the gallery does not have it."""
    if isinstance(queries, Embeddings) and isinstance(gallery, Embeddings):
        ids = gallery.ids[order.numpy()]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if len(twice):
            name = str(ids[twice[0]])
            raise ValueError(f"exclude_self needs unique ids, the gallery has {name!r} twice.")
        if not len(ids):
            return torch.full((len(queries),), -1)
        place = np.minimum(np.searchsorted(ids, queries.ids), len(ids) - 1)
        return torch.where(torch.from_numpy(ids[place] == queries.ids), order[place], -1)
    tensors = isinstance(queries, torch.Tensor) and isinstance(gallery, torch.Tensor)
    if tensors and len(queries) == len(gallery):
        return torch.arange(len(queries))
    raise ValueError(
        "exclude_self needs Embeddings on both sides (self has the same id) or two tensors of one "
        f"length (self has the same row), got {len(queries)} queries, {len(gallery)} gallery rows."
    )


def _check(
    q: torch.Tensor, g: torch.Tensor, k: int, backend: str, query_block: int, gallery_block: int
) -> None:
    if q.ndim != 2 or g.ndim != 2 or q.shape[1] != g.shape[1] or not q.shape[1]:
        raise ValueError(
            f"search needs queries (Q, D) and gallery (N, D) of one D, got {tuple(q.shape)} and "
            f"{tuple(g.shape)}."
        )
    if min(k, query_block, gallery_block) < 1:
        raise ValueError(
            f"k and the block sizes must be at least 1, got k={k}, query_block={query_block}, "
            f"gallery_block={gallery_block}."
        )
    if backend not in tiles.BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(tiles.BACKENDS)}, got {backend!r}.")
