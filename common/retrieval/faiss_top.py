"""Candidates from faiss, and when it is asked: with a wheel that can, and where it is faster.

if use_faiss("auto", device, width, queries * gallery * dim):
    score, row = faiss_top(queries, gallery, width)
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch

BACKENDS = ("auto", "torch", "faiss")
_GPU_LIMIT = 2048  # neighbors per query: a limit of its selection kernels
_CPU_LIMIT = 512  # neighbors per query: beyond, its selection costs more than the product
_CPU_WORK = 10**10  # multiplications from which a trial pays
_CPU_TRIAL = (512, 16_384, 256)  # queries, gallery, dimensions: some 20 ms on two cores
_SELECTION = 1.2  # a search by tiles over its bare product


def use_faiss(backend: str, device: torch.device, width: int, work: int) -> bool:
    """Whether faiss finds `width` candidates; `work` is queries x gallery x dimensions.

    `auto` takes it on a GPU that the installed wheel can use, and for large searches on a CPU where
    a trial shows it to be ahead: by processor and BLAS it needs 0.6 to 3.3 x the time of torch.

    Raises:
        ValueError: faiss is asked for and cannot.
    """
    if backend == "torch" or (backend == "auto" and device.type not in ("cpu", "cuda")):
        return False
    if backend == "auto" and device.type == "cpu" and (width > _CPU_LIMIT or work < _CPU_WORK):
        return False
    try:
        import faiss
    except ImportError:
        if backend == "faiss":
            raise ValueError(
                "backend='faiss' but faiss is not installed: pip install faiss-gpu, or take torch."
            ) from None
        return False
    if device.type == "cpu":
        return backend == "faiss" or _ahead(torch.get_num_threads())
    fits = (
        device.type == "cuda"
        and hasattr(faiss, "StandardGpuResources")
        and faiss.get_num_gpus() > 0
        and width <= _GPU_LIMIT
    )
    if backend == "faiss" and not fits:
        raise ValueError(
            f"faiss cannot find {width} candidates per query on {device}: there it needs a wheel "
            f"that sees the GPU, and at most {_GPU_LIMIT}. Use backend='torch'."
        )
    return bool(fits)


def faiss_top(queries: torch.Tensor, block: torch.Tensor, k: int) -> tuple[Any, Any]:
    """Scores and rows `(Q, k)` of the largest inner products as faiss rounds them."""
    import faiss

    queries, block = queries.contiguous(), block.contiguous()
    metric = faiss.METRIC_INNER_PRODUCT
    if block.device.type == "cpu":
        score, index = faiss.knn(queries.numpy(), block.numpy(), k, metric=metric)
        return torch.from_numpy(score), torch.from_numpy(index)
    import faiss.contrib.torch_utils  # lets knn_gpu take tensors, on torch's own stream

    with torch.cuda.device(block.device):
        pair = faiss.knn_gpu(faiss_resources(str(block.device)), queries, block, k, metric=metric)
    return pair[0], pair[1]


@functools.cache
def faiss_resources(device: str) -> Any:
    """One per device and process: it holds 1.5 GB of scratch memory."""
    import faiss

    return faiss.StandardGpuResources()


@functools.cache
def _ahead(threads: int) -> bool:
    """Whether faiss answers a trial before torch would; once per process and number of threads."""
    rows, columns, dim = _CPU_TRIAL
    own = torch.Generator().manual_seed(0)  # a search must not move the numbers of a training
    queries = torch.randn(rows, dim, generator=own)
    gallery = torch.randn(columns, dim, generator=own)
    kept = torch.empty(rows, columns)
    faiss_time = _fastest(lambda: faiss_top(queries, gallery, 100))
    return faiss_time < _SELECTION * _fastest(lambda: torch.mm(queries, gallery.T, out=kept))


def _fastest(call: Callable[[], object], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
