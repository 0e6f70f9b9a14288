"""Exact nearest neighbors by inner product, in tiles: the memory is bounded, the answer is unique.

The answer does not depend on the machine, the backend, the tile sizes or the number of threads. Every
matrix product rounds in its own way, so it only proposes candidates; their scores are computed again
(float64 accumulation, rounded to float32), and a query for which rounding could have hidden a neighbor
is searched once more in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from common.types import Embeddings, Neighbors

Vectors = Embeddings | torch.Tensor
Device = str | torch.device | None

_BACKENDS = ("auto", "torch", "faiss")
_FAISS_GPU_LIMIT = 2048  # neighbors per query, a limit of its k-select kernels
_EXACT_BLOCK = 16_384  # gallery rows per float64 tile
_RANK_BITS = 2**32


def search(
    queries: Vectors,
    gallery: Vectors,
    k: int,
    *,
    backend: str = "auto",
    exclude_self: bool = False,
    query_block: int = 128,
    gallery_block: int = 131_072,
    device: Device = None,
) -> Neighbors:
    """The `k` gallery rows of largest inner product for each query, best first.

    Ties are ordered: score descending, then id ascending (`Embeddings`, however the rows are sorted)
    or row ascending (tensors). With fewer than `k` rows the rest is padding, -1 and -inf. Memory beyond
    inputs and result: one tile of `query_block * gallery_block` floats.

    Args:
        queries: `(Q, D)`, float32 or float16; products accumulate in float32 or better.
        gallery: `(N, D)`.
        k: neighbors per query.
        backend: `torch`, `faiss` (same answers), or `auto`: faiss for a gallery on a GPU when faiss
            sees that GPU, else torch. On a CPU torch is the faster one with faiss wheels as shipped.
        exclude_self: leave out the row with the query's own id; for tensors, row i for query i.
        query_block: queries per tile.
        gallery_block: gallery rows per tile.
        device: where to compute; the gallery's device when None. The result is on the queries' device.

    Raises:
        ValueError: k < 1, different D, a NaN or infinite value (names the row or id), or
            `exclude_self` with inputs that do not say who is self.
    """
    q, g = _tensor(queries), _tensor(gallery)
    place = torch.device(device) if device is not None else g.device
    _check(q, g, k, backend, query_block, gallery_block)
    order = _id_order(gallery)
    self_row = _self_rows(queries, gallery, order) if exclude_self else None
    if not len(q) or not len(g):
        shape = (len(q), k)
        empty = torch.full(shape, -1, dtype=torch.int64, device=q.device)
        return Neighbors(empty, torch.full(shape, -torch.inf, device=q.device))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))

    # Spare candidates keep the k-th score clear of what was left out, so that few rows need the slow way.
    width = min(len(g), k + k // 8 + 16 + exclude_self)
    with torch.no_grad(), _full_precision(place):
        query_norm = _norms(q, "queries", queries, 0)
        rough, index, largest = _candidates(
            q, g, width, backend, place, query_block, gallery_block, gallery
        )
        score = _rescore(q, g, index, place)
        if self_row is not None:
            score[index == self_row[:, None].to(place)] = -torch.inf
        keys = _key(score, rank.to(place)[index]).topk(min(k, width)).values
        if width < len(g):
            # |computed - exact| <= D * 2^-24 * |q| * |x| for any order of summation.
            slack = (q.shape[1] + 8) * 2.0**-24 * query_norm.to(place).double() * largest
            hidden = rough[:, -1].double() + slack >= _score(keys[:, -1]).double()
            again = hidden.nonzero().squeeze(1)
            for part in again.split(query_block):
                rows = part.to(q.device)
                own = None if self_row is None else self_row[part.cpu()]
                keys[part] = _exact_keys(q[rows], g, k, rank, own, place)
        return _neighbors(keys.to(q.device), order.to(q.device), k)


def knn(
    queries: Embeddings,
    gallery: Embeddings,
    *,
    k: int = 100,
    exclude_self: bool = False,
    backend: str = "auto",
    device: torch.device | None = None,
) -> Neighbors:
    """The `k` nearest gallery images of each query by cosine, best first; exact."""
    return search(queries, gallery, k, backend=backend, exclude_self=exclude_self, device=device)


def _candidates(
    q: torch.Tensor,
    g: torch.Tensor,
    width: int,
    backend: str,
    device: torch.device,
    query_block: int,
    gallery_block: int,
    gallery: Vectors,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Rounded scores and rows `(Q, width)`, unordered ties, and the largest norm in the gallery."""
    faiss = _use_faiss(backend, device, width)
    top = _faiss_top if faiss else _torch_top(min(query_block, len(q)) * min(gallery_block, len(g)))
    size = len(q) if faiss else query_block  # faiss tiles the queries itself
    best: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(range(0, len(q), size))
    largest = 0.0
    for start in range(0, len(g), gallery_block):
        # Once per gallery block, all queries: a float16 gallery is widened block by block, and only once.
        block = g[start : start + gallery_block].to(device, torch.float32)
        largest = max(largest, float(_norms(block, "gallery", gallery, start).max()))
        for number, chunk in enumerate(q.split(size)):
            score, index = top(chunk.to(device, torch.float32), block, min(width, len(block)))
            index = index + start
            seen = best[number]
            if seen is not None:
                score, index = torch.cat([seen[0], score], 1), torch.cat([seen[1], index], 1)
                score, keep = score.topk(min(width, score.shape[1]))
                index = index.gather(1, keep)
            best[number] = (score, index)
    found = [pair for pair in best if pair is not None]
    return torch.cat([s for s, _ in found]), torch.cat([i for _, i in found]), largest


def _torch_top(
    cells: int,
) -> Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]:
    """A top-k that writes all its products into one buffer of `cells` floats."""
    buffer = torch.empty(0)

    def top(
        queries: torch.Tensor, block: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal buffer
        if not len(buffer):
            buffer = torch.empty(cells, device=block.device)
        tile = buffer[: len(queries) * len(block)].view(len(queries), len(block))
        return torch.mm(queries, block.T, out=tile).topk(k)

    return top


def _faiss_top(
    queries: torch.Tensor, block: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    import faiss

    queries, block = queries.contiguous(), block.contiguous()
    metric = faiss.METRIC_INNER_PRODUCT
    if block.device.type == "cpu":
        score, index = faiss.knn(queries.numpy(), block.numpy(), k, metric=metric)
        return torch.from_numpy(score), torch.from_numpy(index)
    import faiss.contrib.torch_utils  # lets knn_gpu take tensors, on torch's stream

    with torch.cuda.device(block.device):
        pair = faiss.knn_gpu(_faiss_resources(block.device), queries, block, k, metric=metric)
    return pair[0], pair[1]


@functools.cache
def _faiss_resources(device: torch.device) -> Any:
    import faiss

    return faiss.StandardGpuResources()


def _use_faiss(backend: str, device: torch.device, width: int) -> bool:
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return False
    try:
        import faiss
    except ImportError:
        if backend == "faiss":
            raise ValueError(
                "backend='faiss' but faiss is not installed: pip install faiss-gpu, or use torch."
            ) from None
        return False
    fits = device.type == "cpu" or (
        hasattr(faiss, "StandardGpuResources")
        and faiss.get_num_gpus() > 0
        and width <= _FAISS_GPU_LIMIT
    )
    if backend == "faiss" and not fits:
        raise ValueError(
            f"faiss cannot search {width} candidates per query on {device} (GPU limit "
            f"{_FAISS_GPU_LIMIT}, and the wheel must see the GPU): use backend='torch'."
        )
    return bool(fits)


def _rescore(
    q: torch.Tensor, g: torch.Tensor, index: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Scores of the pairs `(Q, M)`: float64 accumulation, rounded to float32."""
    score = torch.empty(index.shape, device=device)
    # Two megabytes of float64 stay in a CPU's cache: five times faster than large pieces.
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
    q: torch.Tensor,
    g: torch.Tensor,
    k: int,
    rank: torch.Tensor,
    self_row: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """Keys of the `k` best of all rows, products in float64; `q` is one block of queries."""
    wide = q.to(device, torch.float64)
    best = torch.empty(len(q), 0, dtype=torch.int64, device=device)
    for start in range(0, len(g), _EXACT_BLOCK):
        block = g[start : start + _EXACT_BLOCK].to(device, torch.float64)
        score = (wide @ block.T).float()
        if self_row is not None:
            column = (self_row - start).to(device)
            mine = ((column >= 0) & (column < len(block)) & (self_row.to(device) >= 0)).nonzero()
            score[mine[:, 0], column[mine[:, 0]]] = -torch.inf
        keys = _key(score, rank[start : start + len(block)].to(device))
        best = torch.cat([best, keys.topk(min(k, len(block))).values], 1)
        best = best.topk(min(k, best.shape[1])).values
    return best


def _key(score: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """int64 that sorts like (score, -rank): no two are equal, so any top-k of keys is exact."""
    bits = (score + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # now ordered like the floats
    return bits.long() * _RANK_BITS + (_RANK_BITS - 1 - rank)


def _score(keys: torch.Tensor) -> torch.Tensor:
    bits = (keys >> 32).int()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)


def _neighbors(keys: torch.Tensor, order: torch.Tensor, k: int) -> Neighbors:
    score = _score(keys)
    index = order[_RANK_BITS - 1 - (keys & (_RANK_BITS - 1))]
    index = torch.where(score == -torch.inf, -1, index)
    padding = (0, k - keys.shape[1])
    return Neighbors(
        torch.nn.functional.pad(index, padding, value=-1),
        torch.nn.functional.pad(score, padding, value=-torch.inf),
    )


def _id_order(gallery: Vectors) -> torch.Tensor:
    """Rows by id ascending, `(N,)` int64."""
    if isinstance(gallery, torch.Tensor) or bool((gallery.ids[:-1] <= gallery.ids[1:]).all()):
        return torch.arange(len(gallery))
    return torch.from_numpy(np.argsort(gallery.ids, kind="stable"))


def _self_rows(queries: Vectors, gallery: Vectors, order: torch.Tensor) -> torch.Tensor:
    """The gallery row of each query, `(Q,)` int64, -1 where it is not in the gallery."""
    if isinstance(queries, Embeddings) and isinstance(gallery, Embeddings):
        ids = gallery.ids[order.numpy()]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if len(twice):
            raise ValueError(f"exclude_self needs unique ids; the gallery has {ids[twice[0]]!r} twice.")
        if not len(ids):
            return torch.full((len(queries),), -1)
        place = np.minimum(np.searchsorted(ids, queries.ids), len(ids) - 1)
        return torch.where(torch.from_numpy(ids[place] == queries.ids), order[place], -1)
    if isinstance(queries, torch.Tensor) and isinstance(gallery, torch.Tensor):
        if len(queries) == len(gallery):
            return torch.arange(len(queries))
    raise ValueError(
        f"exclude_self needs Embeddings on both sides (self is the same id) or tensors of the same "
        f"length (self is the same row), got {len(queries)} queries and {len(gallery)} gallery rows."
    )


def _tensor(vectors: Vectors) -> torch.Tensor:
    return vectors.vectors if isinstance(vectors, Embeddings) else vectors


def _check(
    q: torch.Tensor, g: torch.Tensor, k: int, backend: str, query_block: int, gallery_block: int
) -> None:
    if q.ndim != 2 or g.ndim != 2 or q.shape[1] != g.shape[1]:
        raise ValueError(
            f"search needs queries (Q, D) and gallery (N, D) of one D, got {tuple(q.shape)} and "
            f"{tuple(g.shape)}."
        )
    if min(k, query_block, gallery_block) < 1:
        raise ValueError(
            f"k, query_block and gallery_block must be at least 1, got {k}, {query_block}, {gallery_block}."
        )
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}.")


def _norms(block: torch.Tensor, name: str, source: Vectors, start: int) -> torch.Tensor:
    """Norms of the rows; ValueError names the first row that is not finite."""
    norms = torch.linalg.vector_norm(block, dim=1, dtype=torch.float32)
    wrong = (~norms.isfinite()).nonzero()
    if len(wrong):
        row = start + int(wrong[0])
        who = f", id {str(source.ids[row])!r}" if isinstance(source, Embeddings) else ""
        raise ValueError(
            f"{name}: {len(wrong)} embeddings with NaN or infinite values, the first in row {row}{who}: "
            "extract them again in float32."
        )
    return norms


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No TF32, bfloat16 or autocast inside: the error bound is the one of float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
