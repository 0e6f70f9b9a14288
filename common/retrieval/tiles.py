"""Candidates for a search: top-k of rounded inner products, tile by tile, with torch or faiss.

`common.retrieval.search` turns them into exact neighbors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from common.retrieval.faiss_top import faiss_top, use_faiss
from common.retrieval.stored import Stored
from common.types import Embeddings

Vectors = Embeddings | Stored | torch.Tensor
Top = tuple[torch.Tensor, torch.Tensor]  # scores and columns
Hits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows, columns and scores

_CPU_CELLS = 2**23  # 32 MB: products are fast from some 500 x 8,000 on, and L3 caches hold it
_CPU_COLUMNS = 8_192
_STEP = 1_024  # odd widths slow the product down
_GPU_TILE = (1_024, 65_536)
_GROUP = 8  # columns that share one maximum
_MANY = 32  # more hits than one in so many cells: a plain selection is faster


def tensor(vectors: Vectors) -> torch.Tensor:
    """The `(N, D)` tensor of either form, outside any graph."""
    if isinstance(vectors, Stored):
        raise ValueError("These embeddings stay in their files; here they are needed in memory.")
    return (vectors.vectors if isinstance(vectors, Embeddings) else vectors).detach()


def blocks(gallery: Vectors) -> Iterator[tuple[int, torch.Tensor]]:
    """First row and vectors of each piece of a gallery that is in memory at one time."""
    if isinstance(gallery, Stored):
        yield from gallery.blocks()
    else:
        yield 0, tensor(gallery)


def candidates(
    q: torch.Tensor,
    g: torch.Tensor,
    width: int,
    *,
    floor: torch.Tensor | None,
    backend: str,
    device: torch.device,
    query_block: int | None,
    gallery_block: int | None,
) -> Top:
    """Rounded scores and rows `(Q, width)`, best first; padding has row -1 and score -inf.

    Whatever is left out has a rounded score of at most the last one given, or of at most `floor`
    `(Q,)`; ties come in any order. Values must be finite.
    """
    best: dict[int, Top] = {}
    if use_faiss(backend, device, width, len(q) * g.numel()):
        chunk = q.to(device, torch.float32)  # faiss tiles the queries itself
        for row in range(0, len(g), gallery_block or _GPU_TILE[1]):
            block = g[row : row + (gallery_block or _GPU_TILE[1])].to(device, torch.float32)
            score, index = faiss_top(chunk, block, min(width, len(block)))
            best[0] = _merged(best.get(0), (score, index + row), width)
    else:
        rows, columns = _tile(len(q), width, device, query_block, gallery_block)
        for start, row, tile, real in products(q, g, device, rows, columns):
            known = best.get(start)
            least = _least(known, None if floor is None else floor[start : start + rows], width)
            score, index = _tile_top(tile, real, width, least)
            found = score, torch.where(index < 0, -1, index + row)
            best[start] = _merged(known, found, width)
    # Above a floor some blocks of queries find more than others.
    widest = max(part[0].shape[1] for part in best.values())
    score = torch.cat([_widened(part[0], widest, -torch.inf) for part in best.values()])
    index = torch.cat([_widened(part[1], widest, -1) for part in best.values()])
    score, place = score.sort(1, descending=True)
    return score, index.gather(1, place)


def products(
    q: torch.Tensor,
    g: torch.Tensor,
    device: torch.device,
    rows: int | None = None,
    columns: int | None = None,
) -> Iterator[tuple[int, int, torch.Tensor, int]]:
    """First query, first gallery row, rounded inner products, and real columns of each tile.

    The tile is overwritten by the next one; columns behind the real ones are -inf.
    """
    rows, columns = _tile(len(q), 1, device, rows, columns)
    product = _product(device)
    for row in range(0, len(g), columns):
        # The gallery is the outer loop: a float16 one is widened block by block, and only once.
        block = g[row : row + columns].to(device, torch.float32)
        for start in range(0, len(q), rows):
            chunk = q[start : start + rows].to(device, torch.float32)
            yield start, row, product(chunk, block), len(block)


def above(tile: torch.Tensor, least: torch.Tensor) -> Hits:
    """Rows (ascending), columns and scores of the cells of a tile above `least` `(Q, 1)`."""
    groups = tile.view(len(tile), _GROUP, -1)
    return _members(groups, groups.amax(1) > least, least)


def _members(groups: torch.Tensor, hot: torch.Tensor, least: torch.Tensor) -> Hits:
    """The cells above `least` in the groups `(Q, G)` that have one.

    Almost all cells of all but the first tiles are below, and a maximum over groups of columns
    says so at a fraction of what a selection costs. column = member * number of groups + group.
    """
    row, group = hot.nonzero().unbind(1)
    cells = groups[row, :, group]
    hit, member = (cells > least.index_select(0, row)).nonzero().unbind(1)
    column = member * groups.shape[2] + group.index_select(0, hit)
    return row.index_select(0, hit), column, cells[hit, member]


def _tile(
    queries: int, width: int, device: torch.device, rows: int | None, columns: int | None
) -> tuple[int, int]:
    """Rows and columns of a tile: as asked for, or as is fast on the device."""
    if device.type != "cpu":
        return rows or _GPU_TILE[0], columns or _GPU_TILE[1]
    if rows is None:
        rows = max(16, _CPU_CELLS // (columns or max(_CPU_COLUMNS, 4 * width)))
    if columns is None:
        columns = _CPU_CELLS // max(1, min(rows, queries)) // _STEP * _STEP
        columns = max(_CPU_COLUMNS, min(2**17, columns))
    return rows, columns


def _product(device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The inner products of a chunk and a block, in one buffer that all tiles share.

    Mapping memory anew for each tile costs more than the selection. Columns are padded with -inf
    to a multiple of the group.
    """
    buffer = torch.empty(0, device=device)

    def product(chunk: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        nonlocal buffer
        columns = -(-len(block) // _GROUP) * _GROUP
        if len(buffer) < len(chunk) * columns:
            buffer = torch.empty(len(chunk) * columns, device=device)
        tile = buffer[: len(chunk) * columns].view(len(chunk), columns)
        tile[:, len(block) :] = -torch.inf
        torch.mm(chunk, block.T, out=tile[:, : len(block)])
        return tile

    return product


def _least(known: Top | None, floor: torch.Tensor | None, width: int) -> torch.Tensor | None:
    """What a score must exceed to matter, `(Q, 1)`; None while some row has no such bound."""
    least = floor
    if known is not None and known[0].shape[1] == width:
        last = known[0].amin(1)
        least = last if least is None else torch.maximum(least, last)
    if least is None or bool((least == -torch.inf).any()):
        return None
    return least[:, None]


def _tile_top(tile: torch.Tensor, real: int, width: int, least: torch.Tensor | None) -> Top:
    """The best of a tile: those above `least` if these are few, else the `width` best."""
    if tile.device.type == "cpu":
        groups = tile.view(len(tile), _GROUP, -1)
        highest = groups.amax(1)
        if least is None and highest.shape[1] >= width:
            # So many groups hold a cell of at least this; cells equal to it must be found as well.
            last = highest.topk(width, sorted=False).values.amin(1, keepdim=True)
            least = last.nextafter(last.new_tensor(-torch.inf))
        if least is not None:
            hot = highest > least
            if int(hot.count_nonzero()) <= tile.numel() // _MANY:
                return _padded(*_members(groups, hot, least), len(tile))
    score, index = tile.topk(min(width, real), sorted=False)
    return score, index


def _padded(row: torch.Tensor, column: torch.Tensor, score: torch.Tensor, rows: int) -> Top:
    """Hits, by row ascending, as `(rows, widest)` scores and columns; -inf and -1 behind them."""
    first = torch.searchsorted(row, torch.arange(rows + 1, device=row.device))
    place = torch.arange(len(row), device=row.device) - first[row]
    widest = int(first.diff().max())
    scores = score.new_full((rows, widest), -torch.inf)
    columns = column.new_full((rows, widest), -1)
    scores[row, place], columns[row, place] = score, column
    return scores, columns


def _widened(part: torch.Tensor, columns: int, value: float) -> torch.Tensor:
    return torch.nn.functional.pad(part, (0, columns - part.shape[1]), value=value)


def _merged(known: Top | None, found: Top, width: int) -> Top:
    """The `width` best of both, in any order."""
    if known is not None and not found[0].shape[1]:
        return known
    score, index = found
    if known is not None:
        score, index = torch.cat([known[0], score], 1), torch.cat([known[1], index], 1)
    if score.shape[1] <= width:
        return score, index
    score, keep = score.topk(width, sorted=False)
    return score, index.gather(1, keep)


def finite_norms(block: torch.Tensor, name: str, source: Vectors, start: int) -> torch.Tensor:
    """Norms `(n,)` float32 of rows `start...` of `source`.

    Raises:
        ValueError: a value is NaN or infinite; names the first such row and id.
    """
    norms: torch.Tensor = torch.linalg.vector_norm(block, dim=1, dtype=torch.float32)
    wrong = (~norms.isfinite()).nonzero()
    if len(wrong):
        row = start + int(wrong[0])
        who = f" (id {str(source.ids[row])!r})" if not isinstance(source, torch.Tensor) else ""
        raise ValueError(
            f"{name}: {len(wrong)} embeddings hold NaN or infinite values, the first is row "
            f"{row}{who}: extract them again, without half precision."
        )
    return norms


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32, bfloat16 or autocast inside: rounding stays within the bounds of float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
