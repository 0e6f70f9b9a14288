"""Re-ranking on the neighbor graph: against dense twins, and how time and memory grow.

    python -m tests.bench.rerank [twins] [growth] [large] [--small]

`twins` compares with the naive dense versions in tests/oracles in one run (5,500 images, 500 of
them queries, 512 dimensions; by turns, best of three). `growth` runs every method on 5,000, 20,000
and 60,000 images; alpha is the exponent of growth between the last two. `large` is 100,000 images.
Each figure comes from a process of its own: memory is the peak above what it held with the inputs
loaded.
"""

import argparse
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from torch.nn.functional import normalize

from common.rerank.diffusion import diffusion, offline_diffusion
from common.rerank.explore import explore_exploit
from common.rerank.propagate import gnn_rerank
from common.rerank.reciprocal import k_reciprocal
from common.retrieval.search import knn
from common.types import Embeddings
from tests.bench.search import machine, measure
from tests.oracles.propagate import gnn_rerank as gnn_twin
from tests.oracles.reciprocal import k_reciprocal as reciprocal_twin

QUERIES, SIZE, NOISE, DIM = 500, 11, 0.8, 512
METHODS = {
    "knn": knn,
    "k_reciprocal": k_reciprocal,
    "gnn_rerank": gnn_rerank,
    "diffusion": diffusion,
    "offline_diffusion": offline_diffusion,
    "explore_exploit": explore_exploit,
}
TWINS = {"k_reciprocal": reciprocal_twin}  # of arrays; gnn_twin takes tensors


def images(n, dim=DIM):
    """Classes of 11 images in random order: queries and gallery."""
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(-(-n // SIZE), dim, generator=generator))
    rows = centers.repeat_interleave(SIZE, 0)[:n]
    noise = normalize(torch.randn(rows.shape, generator=generator))
    rows = normalize(rows.add_(noise, alpha=NOISE))[torch.randperm(n, generator=generator)]
    ids = np.array([f"{i:07d}" for i in range(n)])
    return (
        Embeddings(ids[:QUERIES], rows[:QUERIES]),
        Embeddings(ids[QUERIES:], rows[QUERIES:].clone()),
    )


def one(name, n):
    """Wall seconds, CPU seconds and peak MB of one method on `n` images."""
    queries, gallery = images(n)
    METHODS[name](*images(1000))  # imports and threads
    return measure(lambda: METHODS[name](queries, gallery, k=100))


def compare(name, n, rounds=3):
    """Seconds of twin and sparse version, by turns, and the largest difference of a score."""
    queries, gallery = images(n)
    a, b = queries.vectors, gallery.vectors
    step, times = METHODS[name], ([], [])
    step(*images(1000))
    for _ in range(rounds):
        start = time.perf_counter()
        dense = TWINS[name](a.numpy(), b.numpy()) if name in TWINS else gnn_twin(a, b)
        middle = time.perf_counter()
        found = step(queries, gallery, k=100)
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    if name in TWINS:
        # Timed in the authors' float32, which swaps some neighbors; compared in float64.
        dense = 1 - torch.from_numpy(TWINS[name](a.numpy(), b.numpy(), dtype=np.float64))
    apart = (dense.topk(100).values - found.score).abs().max()
    return *times, float(max(apart, (dense.gather(1, found.index) - found.score).abs().max()))


def alone(call, *arguments):
    """The result of a call in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(call, *arguments).result()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="twins, growth, large; default twins and growth")
    parser.add_argument("--small", action="store_true", help="1,500 images, and 1, 2, 4 thousand")
    options = parser.parse_args()
    parts = options.parts or ["twins", "growth"]
    warnings.simplefilter("ignore")
    print(f"{machine()}\n{DIM} dimensions, {QUERIES} queries, classes of {SIZE}, k=100")
    if "twins" in parts:
        n = 1_500 if options.small else 5_500
        print(
            f"\n{f'{n} images':20}{'naive twin s':>12}{'sparse s':>10}{'ratio':>7}"
            f"{'each round':>18}{'diff':>9}"
        )
        for name in ("k_reciprocal", "gnn_rerank"):
            naive, sparse, apart = alone(compare, name, n)
            each = " ".join(f"{a / b:.1f}" for a, b in zip(naive, sparse, strict=True))
            print(
                f"{name:20}{min(naive):12.2f}{min(sparse):10.3f}{min(naive) / min(sparse):7.1f}"
                f"{each:>18}{apart:9.1e}"
            )
    sizes = [1_000, 2_000, 4_000] if options.small else [5_000, 20_000, 60_000]
    if "growth" in parts:
        heads = "".join(f"{f'{n} s':>10}{'peak MB':>9}" for n in sizes)
        print(f"\n{'':20}{heads}{'alpha s':>9}{'MB':>6}")
        for name in METHODS:
            rows = [alone(one, name, n) for n in sizes]
            cells = "".join(f"{wall:10.2f}{peak:9.0f}" for wall, _, peak in rows)
            step = np.log(sizes[2] / sizes[1])
            speed = np.log(rows[2][0] / rows[1][0]) / step
            memory = np.log(rows[2][2] / max(rows[1][2], 1)) / step
            print(f"{name:20}{cells}{speed:9.2f}{memory:6.2f}", flush=True)
    if "large" in parts:
        wall, cpu, peak = alone(one, "k_reciprocal", 100_000)
        print(f"\n100000 images: k_reciprocal {wall:.1f} s, CPU {cpu:.1f} s, peak {peak:.0f} MB")


if __name__ == "__main__":
    main()
