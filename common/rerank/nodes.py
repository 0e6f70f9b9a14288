"""Queries and gallery as the nodes of one neighbor graph: what the re-ranking on graphs shares.

Every image is one node: a query that is also in the gallery (same id, same vector) is not its own
neighbor. Images that could not be read (zero vectors) are no nodes, and rank behind everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from common.retrieval import tiles
from common.types import Embeddings, Neighbors

CELLS = 1 << 24  # float32 elements of one tile: 64 MiB, whatever the number of images
_ROUNDING = 1e-6  # similarities nearer to each other may be in the wrong order: float32 products
_DARK = 1e-12  # norm of an image that could not be read
_ROWS = 1024  # of a tile; more makes the matrix product no faster


@dataclass
class Nodes:
    """Nodes of the graph: gallery images first, then queries that are not among them.

    Attributes:
        vectors: `(n, D)` float32 unit rows, where the work is done.
        rows: `(m,)` gallery row of each of the first `m` nodes, ascending.
        asked: `(q,)` node of each readable query.
        place: `(q,)` query row of each readable query.
        codes: same number, same id: `(m,)` of the gallery's nodes and `(q,)` of the queries.
    """

    vectors: torch.Tensor
    rows: torch.Tensor
    asked: torch.Tensor
    place: torch.Tensor
    codes: tuple[torch.Tensor, torch.Tensor]

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def gallery(self) -> torch.Tensor:
        """Vectors `(m, D)` of the gallery's nodes, a view."""
        return self.vectors[: len(self.rows)]


def nodes_of(
    queries: Embeddings, gallery: Embeddings, step: str, device: torch.device | str | None = None
) -> Nodes:
    """The nodes of both sets, on `device` (the gallery's by default), scaled to norm 1.

    Raises:
        ValueError: an empty gallery, different D, or a NaN or infinite value (row and id named).
    """
    if not len(gallery):
        raise ValueError(f"{step}: the gallery is empty, there is nothing to rank.")
    if queries.vectors.shape[1] != gallery.vectors.shape[1]:
        raise ValueError(
            f"{step} needs queries and gallery of one D, got {queries.vectors.shape[1]} and "
            f"{gallery.vectors.shape[1]}."
        )
    place = torch.device(device) if device is not None else gallery.vectors.device
    first = len(gallery)  # row of the first query
    vectors = torch.empty(first + len(queries), gallery.vectors.shape[1], device=place)
    vectors[:first], vectors[first:] = gallery.vectors.detach(), queries.vectors.detach()
    norm = torch.cat(
        [
            tiles.finite_norms(vectors[:first], f"{step}, gallery", gallery, 0),
            tiles.finite_norms(vectors[first:], f"{step}, queries", queries, 0),
        ]
    )
    vectors /= norm.clamp(min=_DARK)[:, None]
    node, code = _merged(np.concatenate([gallery.ids, queries.ids]), vectors, first)
    readable = norm > _DARK
    kept = readable & (node == torch.arange(len(node), device=place))
    number = kept.cumsum(0) - 1  # of each row that is kept, its node
    asked = readable[first:].nonzero().squeeze(1)
    rows = kept[:first].nonzero().squeeze(1)
    return Nodes(
        vectors if bool(kept.all()) else vectors[kept],
        rows,
        number[node[first + asked]],
        asked,
        (code[rows], code[first + asked]),
    )


def _merged(
    ids: np.ndarray, vectors: torch.Tensor, first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The row that stands for each row, and a number for its id, `(n,)` each.

    A query stands behind the first row of its id when both have the same vector. A query that was
    expanded has another one, and remains an image of its own.
    """
    _, earliest, codes = np.unique(ids, return_index=True, return_inverse=True)
    node = torch.from_numpy(earliest[codes]).to(vectors.device)
    row = torch.arange(len(ids), device=vectors.device)
    again = (first + (node[first:] != row[first:]).nonzero()).squeeze(1)
    equal = (vectors[again] == vectors[node[again]]).all(1)
    row[again[equal]] = node[again[equal]]
    return row, torch.from_numpy(codes).to(vectors.device)


def nearest(vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row's `k` nearest other rows (all, when there are fewer), and its lowest similarity.

    Index int64 and similarity `(n, min(k, n - 1))`, best first, ties by row; lowest `(n,)`. The
    lists are exact, so they do not depend on the machine or on tiles: rows with similarities that
    rounding may have swapped, some percent, are done again in float64. Time N^2 D, memory one tile
    and N k.
    """
    number = len(vectors)
    k = min(k, number - 1)
    index = torch.empty(number, k, dtype=torch.int64, device=vectors.device)
    score = torch.empty(number, k, device=vectors.device)
    lowest = torch.empty(number, device=vectors.device)
    unsure: list[torch.Tensor] = []
    with torch.no_grad(), tiles.full_precision(vectors.device):
        for rows, tile in products(vectors, vectors):
            lowest[rows] = tile.amin(1)
            tile.diagonal(rows.start).fill_(-torch.inf)
            found = best(tile, min(k + 1, number - 1))  # one more: the order at the edge counts
            gap = found.score[:, :-1] - found.score[:, 1:]
            index[rows], score[rows] = found.index[:, :k], found.score[:, :k]
            unsure.append(rows.start + (gap < _ROUNDING).any(1).nonzero().squeeze(1))
        step = max(1, min(_ROWS, CELLS // (2 * number)))
        for again in torch.split(torch.cat(unsure), step) if unsure else ():
            index[again], score[again] = _exact(vectors, again, k)
    return index, score, lowest


def _exact(vectors: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` nearest other rows of some rows by float64 products, and their similarities."""
    tile = torch.empty(len(rows), len(vectors), dtype=torch.float64, device=vectors.device)
    asked = vectors[rows].double()
    step = max(1, CELLS // (8 * vectors.shape[1]))
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step].double()
        torch.mm(asked, block.T, out=tile[:, start : start + step])
    # Beyond float32 and short of float64's own rounding: copies of an image tie, others do not.
    tile.mul_(2.0**40).round_().mul_(2.0**-40)
    tile.scatter_(1, rows[:, None], -torch.inf)
    found = best(tile, k)
    return found.index, found.score.float()


def products(queries: torch.Tensor, gallery: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Blocks of query rows and their similarities `(B, N)`, in one buffer that is used again."""
    step = max(1, min(_ROWS, CELLS // max(1, len(gallery)), len(queries)))
    buffer = torch.empty(step, len(gallery), device=gallery.device)
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        tile = buffer[: rows.stop - start]
        torch.mm(queries[rows], gallery.T, out=tile)
        yield rows, tile


def best(tile: torch.Tensor, k: int) -> Neighbors:
    """The `k` largest of each row of `(B, N)`, best first, ties by column."""
    width = tile.shape[1]
    score, index = tile.topk(min(k + 1, width))
    if 0 < k < width:
        # At a tie with the first that is left out, topk takes any: those rows are sorted whole.
        tied = (score[:, k - 1] == score[:, k]).nonzero().squeeze(1)
        if len(tied):
            ordered = tile[tied].sort(dim=1, descending=True, stable=True)
            score[tied, :k], index[tied, :k] = ordered.values[:, :k], ordered.indices[:, :k]
    score, index = score[:, :k], index[:, :k]
    found = Neighbors(index, score)
    return found.sorted() if bool((score[:, 1:] == score[:, :-1]).any()) else found


def rank(
    nodes: Nodes,
    score: Callable[[slice, torch.Tensor], torch.Tensor],
    k: int,
    *,
    exclude_self: bool,
) -> Neighbors:
    """The `k` best gallery nodes of each readable query by a score of your own, `(q, k)`.

    Args:
        nodes: the nodes.
        score: maps a slice of `nodes.asked` and its similarities `(B, m)` to scores `(B, m)`.
        k: neighbors; padded where there are fewer.
        exclude_self: leave out gallery images with the query's own id.
    """
    parts = []
    gallery_code, code = nodes.codes
    with torch.no_grad(), tiles.full_precision(nodes.vectors.device):
        for rows, tile in products(nodes.vectors[nodes.asked], nodes.gallery):
            scored = score(rows, tile)
            if exclude_self:
                scored = scored.masked_fill(code[rows, None] == gallery_code, -torch.inf)
            parts.append(best(scored, min(k, scored.shape[1])))
    if not parts:
        empty = nodes.rows.new_empty(0, 0)
        return Neighbors(empty, nodes.vectors.new_empty(0, 0))
    return Neighbors(torch.cat([p.index for p in parts]), torch.cat([p.score for p in parts]))


def answer(
    nodes: Nodes,
    found: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    k: int,
    *,
    last: float,
    exclude_self: bool,
) -> Neighbors:
    """Found nodes as gallery rows for every query, `(Q, k)` on the queries' device.

    Unreadable gallery images follow behind with score `last`; an unreadable query has that with
    all of them, in order of rows. The rest is padding.
    """
    device = nodes.vectors.device
    readable = torch.zeros(len(gallery), dtype=torch.bool, device=device)
    readable[nodes.rows] = True
    behind = (~readable).nonzero().squeeze(1)[: k + 1]
    width = max(found.index.shape[1], k + 1)
    index = torch.full((len(queries), width + len(behind)), -1, device=device)
    score = torch.full(index.shape, -torch.inf, device=device)
    # As for an unreadable query: everything ties.
    some = min(k + 1, len(gallery))
    index[:, :some] = torch.arange(some, device=device)
    score[:, :some] = last
    index[nodes.place], score[nodes.place] = -1, -torch.inf
    if found.index.numel():
        rows = nodes.rows[found.index.clamp(min=0)]
        real = (found.index >= 0) & (found.score > -torch.inf)
        index[nodes.place, : rows.shape[1]] = rows.where(real, -1)
        score[nodes.place, : rows.shape[1]] = found.score.where(real, -torch.inf)
    index[nodes.place, width:] = behind
    score[nodes.place, width:] = last
    if exclude_self:
        hidden = _same_id(queries, gallery, index)
        index, score = index.masked_fill(hidden, -1), score.masked_fill(hidden, -torch.inf)
    home = queries.vectors.device
    return Neighbors(index.to(home), score.to(home)).sorted().top(k)


def adjacency(index: torch.Tensor, value: torch.Tensor | float, number: int) -> Any:
    """Lists `(n, K)` as a scipy CSR matrix `(n, number)` float32, on the CPU; -1 is left out."""
    columns = index.cpu().numpy()
    if isinstance(value, torch.Tensor):
        data = value.cpu().numpy()
    else:
        data = np.full(columns.shape, value, np.float32)
    real = columns >= 0
    start = np.concatenate([[0], np.cumsum(real.sum(1))])
    return sparse.csr_array(
        (data[real], columns[real].astype(np.int32), start), shape=(len(columns), number)
    )


def _same_id(queries: Embeddings, gallery: Embeddings, index: torch.Tensor) -> torch.Tensor:
    rows = index.cpu().numpy()
    equal = gallery.ids[np.maximum(rows, 0)] == queries.ids[:, None]
    return torch.from_numpy(equal & (rows >= 0)).to(index.device)
