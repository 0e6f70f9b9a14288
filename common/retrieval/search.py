"""Exact nearest neighbors by inner product, in tiles: memory is bounded, the answer is unique.

The answer does not depend on machine, backend, tile sizes or threads. Every matrix product rounds
in its own way, so it only proposes candidates; their scores are computed again (float64, rounded to
float32 once), and a query for which rounding may have hidden a neighbor is searched once more in
float64. Ties are ordered: score descending, then id ascending.
"""

from __future__ import annotations

from typing import Any

import torch

from common.retrieval import tiles
from common.retrieval.faiss_top import BACKENDS
from common.retrieval.order import (
    block_keys,
    check,
    key,
    neighbors_of,
    pair_scores,
    place_of,
    ranked,
    rounding,
    score_of,
    self_rows,
    top_keys,
)
from common.retrieval.tiles import Vectors
from common.types import Embeddings, Neighbors

_EXACT_QUERIES = 128  # per float64 block


def search(
    queries: Vectors,
    gallery: Vectors,
    k: int,
    *,
    backend: str = "auto",
    exclude_self: bool = False,
    query_block: int | None = None,
    gallery_block: int | None = None,
    device: torch.device | str | None = None,
) -> Neighbors:
    """The `k` gallery rows of largest inner product for each query, best first.

    Ties go by id ascending (`Embeddings`, in whatever order the rows are) or by row (tensors). With
    fewer than `k` rows the rest is padding, -1 and -inf. Memory beyond inputs and result: one tile
    of `query_block * gallery_block` floats, and one gallery block when it has to be converted.

    Args:
        queries: `(Q, D)` float32 or float16; products accumulate in float32 or better.
        gallery: `(N, D)`, or `Stored`, which is read block by block.
        k: neighbors per query.
        backend: `torch`, `faiss` (same answers), or `auto`: faiss on a GPU that faiss can use, and
            on a CPU where a trial of some 0.1 s shows it to be faster; else torch.
        exclude_self: leave out the row with the query's own id; for tensors, row i for query i.
        query_block: queries per tile; None: what is fast (on a CPU a tile of 32 MB).
        gallery_block: gallery rows per tile; None: what is fast.
        device: where to compute, the gallery's device by default; the result is on the queries'.

    Raises:
        ValueError: k < 1, different D, a NaN or infinite value (names row and id), or
            `exclude_self` for inputs that do not say who is self.
    """
    q = tiles.tensor(queries)
    check("search", q, gallery)
    _check(k, backend, query_block, gallery_block)
    place = place_of(gallery, device)
    order, rank = ranked(gallery)
    own = self_rows(queries, gallery, order).to(place) if exclude_self else None
    order, rank = order.to(q.device), rank.to(place)
    keys = rank.new_empty(len(q), 0)
    with torch.no_grad(), tiles.full_precision(place):
        norms = tiles.finite_norms(q, "queries", queries, 0).to(place)
        if len(q):
            largest = 0.0
            for start, block in tiles.blocks(gallery):
                if not len(block):
                    continue
                here = tiles.finite_norms(block, "gallery", gallery, start)
                largest = max(largest, float(here.max()))
                keys = _joined(
                    keys,
                    q,
                    block,
                    k,
                    rank[start : start + len(block)],
                    None if own is None else own - start,
                    rounding(q.shape[1]) * largest * norms.double(),
                    backend=backend,
                    device=place,
                    query_block=query_block,
                    gallery_block=gallery_block,
                )
        return neighbors_of(keys.to(q.device), order, k)


def knn(
    queries: Embeddings,
    gallery: Embeddings,
    *,
    k: int = 100,
    exclude_self: bool = False,
    backend: str = "auto",
    device: torch.device | None = None,
) -> Neighbors:
    """The `k` nearest gallery images of each query, exact, best first.

    `search` as a step: arguments, ties, padding and errors are its own.
    """
    return search(queries, gallery, k, backend=backend, exclude_self=exclude_self, device=device)


def _joined(
    keys: torch.Tensor,
    q: torch.Tensor,
    block: torch.Tensor,
    k: int,
    rank: torch.Tensor,
    own: torch.Tensor | None,
    slack: torch.Tensor,
    **how: Any,
) -> torch.Tensor:
    """Keys of the `k` best of what is known and of one gallery block, largest first."""
    # Spare candidates keep the k-th score clear of what is left out: few rows need the slow way.
    width = min(len(block), k + k // 16 + 8 + (own is not None))
    full = keys.shape[1] == k
    floor = (score_of(keys[:, -1]).double() - 2 * slack).float() if full else None
    rough, index = tiles.candidates(q, block, width, floor=floor, **how)
    if not index.shape[1]:
        return keys
    near = k - 1 + (own is not None)
    if near < index.shape[1]:
        # What is below the k-th rounded score by twice its error cannot be among the k best.
        needed = rough.double() >= (rough[:, near].double() - 2 * slack)[:, None]
        index = index[:, : int((needed & (index >= 0)).sum(1).max())]
    score = pair_scores(q, block, index)
    if own is not None:
        score[index == own[:, None]] = -torch.inf
    found = key(score, rank[index])
    best = top_keys(keys, found, k)
    if width < len(block):
        left = rough[:, -1] if rough.shape[1] == width else torch.full_like(slack, -torch.inf)
        left = left if floor is None else torch.maximum(left.float(), floor)
        hidden = left.double() + slack >= score_of(best[:, -1]).double()
        again = hidden.nonzero().squeeze(1)
        for start in range(0, len(again), _EXACT_QUERIES):
            part = again[start : start + _EXACT_QUERIES]
            mine = None if own is None else own[part]
            exact = block_keys(q[part.to(q.device)], block, k, rank, mine)
            best[part] = top_keys(keys[part], exact, k)
    return best


def _check(k: int, backend: str, query_block: int | None, gallery_block: int | None) -> None:
    if min(k, query_block or 1, gallery_block or 1) < 1 or 0 in (query_block, gallery_block):
        raise ValueError(
            f"k and the block sizes must be at least 1, got k={k}, query_block={query_block}, "
            f"gallery_block={gallery_block}."
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
