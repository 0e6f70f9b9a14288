"""Database augmentation and SuperGlobal's re-ranking against their naive twins, in one run.

    python -m tests.bench.expand

The twins compute the same numbers one row at a time; dirtorch's algorithm and `topk` with
`embedding_bag` hold the whole similarity matrix and promise nothing about ties. Times are the best
of several rounds that take turns; the ratios are what to read. Memory is the peak above what the
process held before the call.
"""

import numpy as np
import torch

from common.environment import machine
from common.rerank.superglobal import superglobal
from common.retrieval.expand import database_augmentation
from common.retrieval.search import search
from common.types import Embeddings
from tests.bench.search import measure
from tests.oracles.expand import augmentation_by_rows, dirtorch_augmentation
from tests.oracles.superglobal import scores


def classes(n, d, seed):
    """Unit rows around a centre for every ten."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(n // 10, d, generator=generator).repeat_interleave(10, 0)
    rows = centers + torch.randn(n, d, generator=generator)
    return torch.nn.functional.normalize(rows)


def topk_and_bag(vectors, k, alpha):
    """The whole similarity matrix, `topk` and `embedding_bag`: N^2 memory."""
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-2)
    score, index = similarity.topk(k)
    moved = torch.nn.functional.embedding_bag(
        index, vectors, mode="sum", per_sample_weights=score.clamp(min=0) ** alpha
    )
    return torch.nn.functional.normalize(vectors + moved)


def best(ways, rounds=3):
    """Best wall seconds and the memory of each way, taking turns."""
    results = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            results[name].append(measure(call))
    return {
        name: (min(wall for wall, _, _ in rows), min(peak or 0 for _, _, peak in rows))
        for name, rows in results.items()
    }


def show(title, results, ours):
    """Seconds, ratio to ours and memory."""
    print(f"\n{title}\n{'':40}{'wall s':>9}{'ratio':>8}{'peak MB':>9}")
    for name, (wall, peak) in results.items():
        print(f"{name:40}{wall:9.3f}{wall / results[ours][0]:8.1f}{peak:9.0f}")


def main():
    print(machine())
    for n, d in ((5_000, 128), (5_000, 512), (5_000, 2048)):
        rows, array = classes(n, d, 0), classes(n, d, 0).numpy()
        results = best(
            {
                "naive twin, one row at a time": lambda a=array: augmentation_by_rows(a, 10, 3.0),
                "dirtorch's algorithm, N^2 memory": lambda a=array: dirtorch_augmentation(
                    a, 10, 3.0
                ),
                "topk + embedding_bag, N^2 memory": lambda r=rows: topk_and_bag(r, 10, 3.0),
                "database_augmentation": lambda r=rows: database_augmentation(r, k=10, alpha=3.0),
            }
        )
        show(f"alpha-DBA, {n} x {d}, k=10", results, "database_augmentation")
        same = np.abs(
            database_augmentation(rows, k=10).numpy() - dirtorch_augmentation(array, 10, 3.0)
        )
        print(f"largest difference from dirtorch's: {same.max():.1e}")

    count, d = 20, 512
    gallery = Embeddings(np.array([f"{i:05}" for i in range(5_000)]), classes(5_000, d, 0))
    queries = Embeddings(np.array([f"q{i}" for i in range(count)]), classes(5_000, d, 0)[:count])
    near = search(queries, gallery, 400)

    def loop():
        return [
            scores(query, gallery.vectors[rows])
            for query, rows in zip(queries.vectors, near.index, strict=True)
        ]

    results = best(
        {
            "naive twin, candidate by candidate": loop,
            "superglobal": lambda: superglobal(near, queries, gallery),
        },
        rounds=1,
    )
    show(f"SuperGlobal re-ranking, {count} queries x 400 candidates x {d}", results, "superglobal")


if __name__ == "__main__":
    main()
