"""The metrics at the competitions' sizes, and CMC + mAP against an argsort per query, in one run.

    python -m tests.bench.metrics [--small]

Landmark Retrieval 2020: 118,000 queries, 100 images each (mAP@100); Recognition: one answer each
(GAP). Market-1501: 3,368 queries, 15,913 images, 751 people, 6 cameras. Best of several rounds.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np

from common import metrics
from common.cmc import cmc_map, cmc_map_embeddings


def best(call, rounds):
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        value = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), value


def argsort_per_query(scores, query, gallery, query_cameras, gallery_cameras):
    """The usual evaluation: one index sort per query, precision at each match."""
    values = []
    for q in range(len(scores)):
        order = np.argsort(-scores[q], kind="stable")
        out = (gallery[order] == query[q]) & (gallery_cameras[order] == query_cameras[q])
        right = (gallery[order] == query[q])[~out]
        if right.any():
            places = np.flatnonzero(right)
            values.append((np.arange(1, len(places) + 1) / (places + 1)).mean())
    return float(np.mean(values))


def market(queries, gallery, rounds):
    draw = np.random.default_rng(0)
    people = 751 * gallery // 15_913
    labels = draw.integers(0, people, queries), draw.integers(0, people, gallery)
    cameras = draw.integers(0, 6, queries), draw.integers(0, 6, gallery)
    centers = draw.standard_normal((people, 256), np.float32)
    q, g = (centers[ids] + 2 * draw.standard_normal((len(ids), 256), np.float32) for ids in labels)
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    scores = q @ g.T
    import torch

    given = (*labels, *cameras)
    ways = {
        "common.cmc, matrix": lambda: cmc_map(scores, *given).map,
        "common.cmc, 256-d embeddings": lambda: (
            cmc_map_embeddings(torch.from_numpy(q), torch.from_numpy(g), *given).map
        ),
        "argsort per query (NumPy)": lambda: argsort_per_query(scores, *given),
    }
    for name, call in ways.items():
        seconds, value = best(call, rounds)
        print(f"CMC + mAP {queries} x {gallery}: {name:32} {seconds:8.3f} s   mAP {value:.6f}")


def landmarks(queries, k, rounds, folder):
    draw = np.random.default_rng(0)
    names = np.array([f"{i:016x}" for i in draw.integers(0, 2**60, 200_000)])
    ids = [f"{i:016x}" for i in draw.permutation(queries)]
    # Distinct images of each query, as the array form expects them.
    inside = draw.permuted(np.tile(np.arange(k), (queries, 1)), axis=1)
    index = draw.integers(0, len(names) // k, (queries, 1)) * k + inside
    wanted = [row[draw.integers(0, k, 20)] for row in index]
    ranked = {i: names[row].tolist() for i, row in zip(ids, index, strict=True)}
    truth = {i: set(names[row].tolist()) for i, row in zip(ids, wanted, strict=True)}
    hits = np.stack([np.isin(row, some) for row, some in zip(index, wanted, strict=True)])
    totals = np.array([len(items) for items in truth.values()])
    labels = draw.integers(0, 30_000, queries).tolist()
    score = draw.random(queries)
    right = draw.random(queries) < 0.5
    guesses = {
        i: (label if ok else label + 1, s)
        for i, label, ok, s in zip(ids, labels, right, score.tolist(), strict=True)
    }
    solution = {i: {label} for i, label in zip(ids, labels, strict=True)}
    by_id = np.argsort(ids)
    files = {
        "map100": (
            "images",
            {i: " ".join(sorted(r)) for i, r in truth.items()},
            {i: " ".join(r) for i, r in ranked.items()},
        ),
        "gap": (
            "landmarks",
            {i: str(label) for i, label in zip(ids, labels, strict=True)},
            {i: f"{label} {s}" for i, (label, s) in guesses.items()},
        ),
    }
    for metric, (column, *tables) in files.items():
        for name, table in zip(("solution", "submission"), tables, strict=True):
            with open(folder / f"{metric}_{name}.csv", "w", newline="") as file:
                csv.writer(file).writerows([("id", column), *table.items()])
    ways = {
        "mAP@100, dicts": lambda: metrics.map_at_k(truth, ranked, 100),
        "mAP@100, arrays": lambda: metrics.map_at_k_arrays(hits, totals, 100),
        "mAP@100, files": lambda: metrics.score(
            "map100", folder / "map100_solution.csv", folder / "map100_submission.csv"
        ),
        "GAP, dicts": lambda: metrics.gap(solution, guesses),
        "GAP, arrays": lambda: metrics.gap_arrays(right[by_id], score[by_id], queries),
        "GAP, files": lambda: metrics.score(
            "gap", folder / "gap_solution.csv", folder / "gap_submission.csv"
        ),
    }
    for name, call in ways.items():
        seconds, value = best(call, rounds)
        print(f"{queries} queries x {k}: {name:20} {seconds:8.3f} s   {value:.6f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    market(*((300, 2_000, 2) if options.small else (3_368, 15_913, 3)))
    with tempfile.TemporaryDirectory() as folder:
        landmarks(*((2_000, 100, 2) if options.small else (118_000, 100, 2)), Path(folder))


if __name__ == "__main__":
    main()
