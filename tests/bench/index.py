"""Approximate indexes against the exact search: build and search time, recall, in one run.

    python -m tests.bench.index [--small]

The gallery is unit rows around centres, as embeddings of images are. `_SCAN` in
`common.retrieval.choose` is the last figure: what a row scanned in a list costs against a row of
the exact search.
"""

import argparse
import time

import numpy as np
import torch

from common.retrieval import choose
from common.retrieval.index import build
from common.retrieval.order import shared
from common.retrieval.search import search
from common.types import Embeddings


def crowd(n, d, seed, prefix):
    draw = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(
        torch.randn(2_000, d, generator=torch.Generator().manual_seed(9))
    )
    rows = centers[torch.randint(0, 2_000, (n,), generator=draw)]
    rows = rows + torch.randn(n, d, generator=draw) / d**0.5
    ids = np.char.add(prefix, np.arange(n).astype(str))
    return Embeddings(ids, torch.nn.functional.normalize(rows))


def clock(call):
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="12k x 64")
    options = parser.parse_args()
    n, d, q, k = (12_000, 64, 200, 10) if options.small else (100_000, 256, 1_000, 100)
    gallery, queries = crowd(n, d, 0, "g"), crowd(q, d, 1, "q")
    search(queries, gallery, k)
    exact, expected = clock(lambda: search(queries, gallery, k))
    print(f"{n} x {d}, {q} queries, k={k}; exact {exact:.3f} s")
    for kind in ("ivf", "ivf_pq", "hnsw"):
        built, index = clock(lambda kind=kind: build(gallery, kind=kind, k=k, queries=queries))
        index.search(queries, k)
        wall, found = clock(lambda index=index: index.search(queries, k))
        truth = shared(found.index, expected.index)
        print(
            f"{kind:7} build {built:6.1f} s, search {wall:.3f} s, recall {truth:.3f}; {index.why}"
        )
    print(f"auto: {build(gallery, k=k, queries=queries).why}")
    print(f"a scanned row costs {wall_of_ivf(gallery, queries, k) / exact:.1f} of an exact one")


def wall_of_ivf(gallery, queries, k):
    """Seconds of a search of half of the lists, as if all were scanned."""
    nlist = choose.lists(len(gallery))
    index = build(gallery, kind="ivf", k=k, queries=queries, nlist=nlist, nprobe=nlist // 2)
    index.search(queries, k)
    return 2 * clock(lambda: index.search(queries, k))[0]


if __name__ == "__main__":
    main()
