"""TF-IDF of made-up titles and their exact neighbors: seconds, memory, and the dense search's time.

python -m tests.bench.sparse [ROWS]
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import torch

from common.retrieval.search import search
from common.retrieval.sparse import sparse_search
from common.retrieval.tfidf import Semantic, Tfidf

NEIGHBORS = 50


def titles(count: int, words: int = 25_000, seed: int = 0) -> list[str]:
    """Titles of 4 to 14 words of 2 to 4 syllables, as unequally frequent as those of shops."""
    rng = np.random.default_rng(seed)
    starts, ends = [*"bcdfghjklmnpqrstvwyz", "ng", "ny", "kr", "pr"], ["", "", "n", "ng", "r", "s"]
    syllables = [a + v + e for a in starts for v in "aeiou" for e in ends]
    made = ["".join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(words)]
    share = 1 / np.arange(3, words + 3) ** 0.9
    lengths = rng.integers(4, 15, count)
    drawn = rng.choice(words, lengths.sum(), p=share / share.sum())
    return [" ".join(made[i] for i in part) for part in np.split(drawn, lengths.cumsum()[:-1])]


def main(rows: int) -> None:
    """Print one line per kind."""
    texts, ids = titles(rows), np.array([f"{i:07}" for i in range(rows)])
    print(f"{rows} titles, {NEIGHBORS} neighbors, {torch.get_num_threads()} threads")
    for kind in ("word", "char"):
        start, busy = time.perf_counter(), time.process_time()
        sparse = Tfidf(kind).fit(texts).transform(ids, texts)
        fitted = time.perf_counter()
        sparse_search(sparse, sparse, NEIGHBORS)
        found, used = time.perf_counter(), time.process_time() - busy
        frequent = np.bincount(sparse.matrix.indices).astype(np.float64)
        dense = Semantic(256).fit(sparse).transform(sparse)
        reduced = time.perf_counter()
        search(dense, dense, NEIGHBORS)
        print(
            f"{kind}: {sparse.matrix.shape[1]} terms, {sparse.matrix.nnz / rows:.0f} a title, "
            f"{np.square(frequent).sum():.1e} products; fit {fitted - start:.1f} s, search "
            f"{found - fitted:.1f} s, CPU {used:.1f} s; 256 dimensions {reduced - found:.1f} s, "
            f"dense search {time.perf_counter() - reduced:.1f} s; peak "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8_000)
