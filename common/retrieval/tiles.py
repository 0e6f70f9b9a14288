"""Candidates for a search: top-k of rounded inner products, tile by tile, with torch or faiss.

`common.retrieval.search` turns them into exact neighbors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from common.types import Embeddings

Vectors = Embeddings | torch.Tensor
Top = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]

BACKENDS = ("auto", "torch", "faiss")
FAISS_GPU_LIMIT = 2048  # neighbors per query: a limit of its selection kernels


def tensor(vectors: Vectors) -> torch.Tensor:
    """The `(N, D)` tensor of either form, outside any graph."""
    return (vectors.vectors if isinstance(vectors, Embeddings) else vectors).detach()


def candidates(
    queries: Vectors,
    gallery: Vectors,
    width: int,
    *,
    backend: str,
    device: torch.device,
    query_block: int,
    gallery_block: int,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Rounded scores and rows `(Q, width)`, best first, and the largest norm of the gallery.

    Whatever is left out has a rounded score of at most the last one given; ties come in any order.

    Raises:
        ValueError: a gallery value is NaN or infinite.
    """
    q, g = tensor(queries), tensor(gallery)
    faiss = use_faiss(backend, device, width)
    top = _faiss_top if faiss else _torch_top()
    size = len(q) if faiss else query_block  # faiss tiles the queries itself
    starts = range(0, len(q), size)
    best: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    largest = 0.0
    for row in range(0, len(g), gallery_block):
        # The gallery is the outer loop: a float16 one is widened block by block, and only once.
        block = g[row : row + gallery_block].to(device, torch.float32)
        largest = max(largest, float(finite_norms(block, "gallery", gallery, row).max()))
        for start in starts:
            chunk = q[start : start + size].to(device, torch.float32)
            score, index = top(chunk, block, min(width, len(block)))
            index += row
            if start in best:
                score = torch.cat([best[start][0], score], 1)
                index = torch.cat([best[start][1], index], 1)
                score, keep = score.topk(min(width, score.shape[1]))
                index = index.gather(1, keep)
            best[start] = (score, index)
    found = [best[start] for start in starts]
    return torch.cat([s for s, _ in found]), torch.cat([i for _, i in found]), largest


def use_faiss(backend: str, device: torch.device, width: int) -> bool:
    """Whether faiss searches; `auto` takes it on a GPU that the installed wheel can use.

    Raises:
        ValueError: faiss is asked for and cannot.
    """
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return False
    try:
        import faiss
    except ImportError:
        if backend == "faiss":
            raise ValueError(
                "backend='faiss' but faiss is not installed: pip install faiss-gpu, or take torch."
            ) from None
        return False
    fits = device.type == "cpu" or (
        device.type == "cuda"
        and hasattr(faiss, "StandardGpuResources")
        and faiss.get_num_gpus() > 0
        and width <= FAISS_GPU_LIMIT
    )
    if backend == "faiss" and not fits:
        raise ValueError(
            f"faiss cannot find {width} candidates per query on {device}: there it needs a wheel "
            f"that sees the GPU, and at most {FAISS_GPU_LIMIT}. Use backend='torch'."
        )
    return bool(fits)


def finite_norms(block: torch.Tensor, name: str, source: Vectors, start: int) -> torch.Tensor:
    """Norms `(n,)` float32 of rows `start...` of `source`.

    Raises:
        ValueError: a value is NaN or infinite; names the first such row and id.
    """
    norms: torch.Tensor = torch.linalg.vector_norm(block, dim=1, dtype=torch.float32)
    wrong = (~norms.isfinite()).nonzero()
    if len(wrong):
        row = start + int(wrong[0])
        who = f" (id {str(source.ids[row])!r})" if isinstance(source, Embeddings) else ""
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


def _torch_top() -> Top:
    buffer = torch.empty(0)  # one tile for the whole search: mapping memory anew costs more

    def top(
        queries: torch.Tensor, block: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal buffer
        cells = len(queries) * len(block)
        if len(buffer) < cells:
            buffer = torch.empty(cells, device=block.device)
        tile = buffer[:cells].view(len(queries), len(block))
        if block.device.type == "cpu":
            # NumPy's OpenBLAS beats torch's MKL here on the CPUs tried: tests/bench/search.py.
            np.matmul(queries.numpy(), block.numpy().T, out=tile.numpy())
        else:
            torch.mm(queries, block.T, out=tile)
        score, index = tile.topk(k)
        return score, index

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
    import faiss.contrib.torch_utils  # lets knn_gpu take tensors, on torch's own stream

    with torch.cuda.device(block.device):
        pair = faiss.knn_gpu(_faiss_resources(str(block.device)), queries, block, k, metric=metric)
    return pair[0], pair[1]


@functools.cache
def _faiss_resources(device: str) -> Any:
    """One per device and process: it holds 1.5 GB of scratch memory."""
    import faiss

    return faiss.StandardGpuResources()
