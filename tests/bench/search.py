"""Exact search against plain torch, faiss as shipped, and the matrix product alone, in one run.

    python -m tests.bench.search [--small]

Times are the best of several rounds that take turns, so a busy machine disturbs all rows alike; the
ratios, to the bare product `queries @ gallery.T`, are what to read. Memory is the peak above what
the process held before the call. Then the growth with N, with Q and with k at three sizes each, and
a gallery that stays in its file and is several times the block that is read.
"""

import argparse
import ctypes
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from common.retrieval.radius import range_search
from common.retrieval.search import search
from common.retrieval.stored import Stored
from common.types import Embeddings


def unit(n, d, seed):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows)


def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 1024


def measure(call):
    """Wall seconds, CPU seconds, and the peak of memory above the start in MB (None off Linux)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        ctypes.CDLL(None).malloc_trim(0)  # else memory of the last call hides what this one needs
        clear.write_text("5")  # resets the high-water mark
        before = status("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    del result
    return wall, cpu, status("VmHWM") - before if clear.exists() else None


def machine():
    cpu = "unknown CPU"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    blas = "?"
    try:
        from threadpoolctl import threadpool_info

        pools = [p for p in threadpool_info() if "faiss" in p["filepath"] and "blas" in p["prefix"]]
        blas = ", ".join(f"{p['prefix']} {p['version']} {p['architecture']}" for p in pools) or "?"
    except ImportError:
        pass
    return (
        f"{cpu}; torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads; faiss {faiss.__version__} on {blas}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="10k x 128, 200 queries")
    options = parser.parse_args()
    n, d, q, k, rounds = (
        (10_000, 128, 200, 50, 3) if options.small else (100_000, 512, 1_000, 100, 5)
    )
    gallery, queries = unit(n, d, 0), unit(q, d, 1)
    half, kept = gallery.half(), torch.empty(q, n)
    level = float(search(queries, gallery, k).score[:, -1].mean())
    index = faiss.IndexFlatIP(d)
    index.add(gallery.numpy())
    ways = {
        "torch product alone": lambda: queries @ gallery.T,
        "the same, memory kept": lambda: torch.mm(queries, gallery.T, out=kept),
        "numpy product alone": lambda: queries.numpy() @ gallery.numpy().T,
        "torch matmul + topk": lambda: (queries @ gallery.T).topk(k),
        "faiss.knn": lambda: faiss.knn(queries.numpy(), gallery.numpy(), k, metric=0),
        "faiss IndexFlatIP": lambda: index.search(queries.numpy(), k),
        "search": lambda: search(queries, gallery, k),
        "search, float16 gallery": lambda: search(queries, half, k),
        "search, faiss backend": lambda: search(queries, gallery, k, backend="faiss"),
        "range_search, as many": lambda: range_search(queries, gallery, threshold=level),
    }
    results = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            results[name].append(measure(call))

    print(machine())
    print(f"{n} x {d} float32, {q} queries, k={k}, best of {rounds} rounds; ratios to the product")
    base = min(wall for wall, _, _ in results["torch product alone"])
    print(f"{'':26}{'wall s':>8}{'CPU s':>8}{'ratio':>8}{'GFLOP/s':>9}{'peak MB':>9}")
    for name, rows in results.items():
        wall, cpu = min(r[0] for r in rows), min(r[1] for r in rows)
        peak = "?" if rows[0][2] is None else f"{min(r[2] for r in rows):.0f}"
        speed = 2 * n * d * q / wall / 1e9
        print(f"{name:26}{wall:8.3f}{cpu:8.3f}{wall / base:8.2f}{speed:9.0f}{peak:>9}")
    found, plain = search(queries, gallery, k), (queries @ gallery.T).topk(k)
    again = search(queries, gallery, k, backend="faiss")
    equal = bool(torch.equal(found.index, again.index) and torch.equal(found.score, again.score))
    pairs = zip(found.index, plain.indices, strict=True)
    overlap = np.mean([len(np.intersect1d(a, b)) / k for a, b in pairs])
    print(f"backends equal bit for bit: {equal}; neighbors shared with plain torch: {overlap:.5f}")
    growth(gallery, queries, k, rounds)
    stored(queries, k, 60_000 if options.small else 400_000, gallery.shape[1] // 2)


def growth(gallery, queries, k, rounds):
    """Time and memory at three sizes: N and Q double the time, memory follows Q * k."""
    n, q = len(gallery), len(queries)
    sizes = [(n // 4, q, k), (n // 2, q, k), (n, q, k), (n, q // 4, k), (n, q // 2, k)]
    sizes += [(n, q, k // 4), (n, q, k * 4)]
    rows = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            rows[size].append(
                measure(lambda s=size: search(queries[: s[1]], gallery[: s[0]], s[2]))
            )
    for (rows_n, rows_q, rows_k), found in rows.items():
        peak = "?" if found[0][2] is None else f"{min(r[2] for r in found):.0f}"
        wall, cpu = min(r[0] for r in found), min(r[1] for r in found)
        print(
            f"N {rows_n:7} Q {rows_q:5} k {rows_k:4}: {wall:7.3f} s, CPU {cpu:7.3f} s, "
            f"peak {peak:>4} MB"
        )


def stored(queries, k, n, d):
    """A gallery on disk, read in blocks of a sixteenth, against the same in memory."""
    queries, block = queries[:, :d].contiguous(), n // 16
    size = n * d * 4 / 2**20
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gallery.safetensors"
        Embeddings(np.arange(n).astype(str), unit(n, d, 3)).save(path)
        held = Stored(path, block)
        wall, _, peak = measure(lambda: search(queries, held, k))
        found = search(queries, held, k)
        gallery = Embeddings.load(path)
        loaded, _, _ = measure(lambda: search(queries, gallery, k))
        expected = search(queries, gallery, k)
    equal = torch.equal(found.index, expected.index) and torch.equal(found.score, expected.score)
    peak = "?" if peak is None else f"{peak:.0f}"
    print(
        f"{n} x {d} on disk, {size:.0f} MB in blocks of {size / 16:.0f} MB: {wall:.3f} s, peak "
        f"{peak} MB; mapped whole: {loaded:.3f} s; equal bit for bit: {equal}"
    )


if __name__ == "__main__":
    main()
