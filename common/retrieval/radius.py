"""Range search: every gallery row above a similarity, exact, however many there are."""

from __future__ import annotations

import torch

from common.retrieval import tiles
from common.retrieval.order import check, key, neighbors_of, place_of, ranked, rounding, self_rows
from common.retrieval.tiles import Vectors
from common.types import Neighbors

_CELLS = 2**21  # float64 values at a time


def range_search(
    queries: Vectors,
    gallery: Vectors,
    *,
    threshold: float = 0.5,
    exclude_self: bool = False,
    most: int = 2**26,
    device: torch.device | str | None = None,
) -> Neighbors:
    """All gallery rows whose inner product with the query is at least `threshold`, best first.

    Scores, order and errors are those of `search`; rows shorter than the longest are padded, K is
    0 when nothing is near. faiss's range search gives its sets unsorted and takes > for >=.

    Args:
        queries: `(Q, D)` float32 or float16.
        gallery: `(N, D)`, or `Stored`, which is read block by block.
        threshold: smallest score that counts, as a float32.
        exclude_self: leave out the row with the query's own id; for tensors, row i for query i.
        most: pairs, and cells of the padded answer, that may be held (24 bytes each).
        device: where to compute, the gallery's device by default; the result is on the queries'.

    Raises:
        ValueError: more than `most` neighbors, a threshold that is no finite number, and what
            `search` refuses.
    """
    q = tiles.tensor(queries)
    check("range_search", q, gallery)
    place = place_of(gallery, device)
    limit = torch.full((), threshold, dtype=torch.float32, device=place)
    if not bool(limit.isfinite()):
        raise ValueError(f"range_search needs a finite threshold, got {threshold}.")
    order, rank = ranked(gallery)
    own = self_rows(queries, gallery, order).to(place) if exclude_self else None
    rank = rank.to(place)
    rows, keys, held = [rank.new_empty(0)], [rank.new_empty(0)], 0
    with torch.no_grad(), tiles.full_precision(place):
        norms = tiles.finite_norms(q, "queries", queries, 0).to(place)
        for first, block in tiles.blocks(gallery):
            largest = (
                tiles.finite_norms(block, "gallery", gallery, first).max() if len(block) else 0
            )
            least = (limit.double() - rounding(q.shape[1]) * largest * norms.double())[:, None]
            # One step lower: `above` leaves out what equals the bound.
            least = least.float().nextafter(limit.new_full((), -torch.inf))
            for start, row, tile, _ in tiles.products(q, block, place):
                query, column, _ = tiles.above(tile, least[start : start + len(tile)])
                query, column = query + start, column + row
                score = _scores(q, block, query, column)
                keep = score >= limit
                if own is not None:
                    keep &= column + first != own[query]
                rows.append(query[keep])
                keys.append(key(score[keep], rank[column[keep] + first]))
                held += len(rows[-1])
                _bound(held, most, threshold)
    query, found = torch.cat(rows), torch.cat(keys)
    by_key = found.argsort(descending=True)
    by_row = by_key[query[by_key].argsort(stable=True)]
    query, found = query[by_row], found[by_row]
    ends = torch.bincount(query, minlength=len(q)).cumsum(0)
    count = ends.diff(prepend=ends.new_zeros(1))
    widest = int(count.max()) if len(q) else 0
    _bound(widest * len(q), most, threshold)
    nothing = key(norms.new_full((1,), -torch.inf), rank.new_zeros(1))
    padded = nothing.repeat(len(q), widest)
    padded[query, torch.arange(len(query), device=place) - (ends - count)[query]] = found
    return neighbors_of(padded.to(q.device), order.to(q.device), widest)


def _scores(
    q: torch.Tensor, g: torch.Tensor, query: torch.Tensor, row: torch.Tensor
) -> torch.Tensor:
    """Scores `(M,)` float32 of pairs: float64 inner products, rounded once."""
    score = torch.empty(len(query), device=query.device)
    step = max(1, _CELLS // q.shape[1])
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        one = q.index_select(0, query[part].to(q.device)).to(query.device, torch.float64)
        one *= g.index_select(0, row[part].to(g.device)).to(query.device, torch.float64)
        score[part] = one.sum(-1)
    return score


def _bound(cells: int, most: int, threshold: float) -> None:
    if cells > most:
        raise ValueError(
            f"range_search: at least {cells} cells of neighbors are above {threshold}, more than "
            f"most={most}: raise the threshold, search the queries in parts, or use knn."
        )
