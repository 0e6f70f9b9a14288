"""Pair features, the pair model and neighbor graphs: time and memory, against plain loops.

    python -m tests.bench.pairs_lightgbm [--small]

Times are single runs; the ratio to a twin is taken on a part that the twin can do. Memory is the
peak above what the process held before the call.
"""

import argparse
import time

import networkx as nx
import numpy as np
import torch

from common.rerank.agglomerate import agglomerate
from common.rerank.boosted import PairModel
from common.rerank.bridges import cut_bridges, edge_betweenness
from common.rerank.curves import f1_curve
from common.rerank.graph import components, neighbor_edges
from common.rerank.pairs import pair_features
from common.retrieval.search import search
from common.types import Embeddings, Neighbors
from tests.bench.search import machine, measure, unit
from tests.oracles import pairs as oracle


def classes(n, d, size, seed=0):
    """Unit vectors of classes of `size` images, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) // size
    noise = torch.randn(n, d, generator=generator) / d**0.5
    vectors = torch.nn.functional.normalize(unit(n // size + 1, d, seed)[label] + 1.6 * noise)
    return Embeddings(np.array([f"p{i:07d}" for i in range(n)]), vectors), label


def line(name, result, extra=""):
    """One row: wall seconds, peak MB."""
    wall, _, peak = result
    print(f"{name:58}{wall:9.2f} s{'' if peak is None else f'{peak:9.0f} MB'}  {extra}", flush=True)


def rooms(n, k, seed=0):
    """Neighbors of a random graph of rooms of about five, as ids near each other."""
    random = np.random.default_rng(seed)
    index = (np.arange(n)[:, None] + random.integers(-4, 5, (n, k))) % n
    far = random.random((n, k)) < 0.5
    index[far] = random.integers(0, n, int(far.sum()))
    score = np.where(far, 0.5, 0.9) * random.random((n, k))
    return Neighbors(torch.from_numpy(index), torch.from_numpy(score.astype(np.float32))).sorted()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="a tenth of everything")
    options = parser.parse_args()
    part = 10 if options.small else 1
    n, d, k = 20_000 // part, 256, 50
    print(machine())
    images, label = classes(n, d, 5)
    kept = {}

    def timed(name, call):
        result = measure(lambda: kept.update({name: call()}))
        return result, kept[name]

    result, lists = timed("search", lambda: search(images, images, k, exclude_self=True))
    line(f"search, {n} x {d}, k={k}", result)
    result, found = timed(
        "pairs", lambda: pair_features(lists, images, images, gallery_labels=label)
    )
    pairs = len(found)
    line(
        f"pair_features, {pairs} pairs, {len(found.names)} features",
        result,
        f"{pairs / result[0] / 1e6:.3f} million pairs a second",
    )
    few = 100
    small = Neighbors(lists.index[:few], lists.score[:few])
    asking = Embeddings(images.ids[:few], images.vectors[:few])
    gallery = images.select(images.ids[: min(n, 500)])
    small.index.remainder_(len(gallery))
    one = Neighbors(*(t[:, :8] for t in (small.index, small.score)))
    one.index[:] = torch.stack(
        [
            torch.randperm(len(gallery), generator=torch.Generator().manual_seed(q))[:8]
            for q in range(few)
        ]
    )
    fast = measure(
        lambda: pair_features(one, asking, gallery, gallery_labels=label[: len(gallery)])
    )
    start = time.perf_counter()
    oracle.features(
        one.index.tolist(),
        asking.vectors.numpy(),
        asking.ids,
        gallery.vectors.numpy(),
        gallery.ids,
        label[: len(gallery)].tolist(),
        (5, 15, 30),
    )
    slow = time.perf_counter() - start
    line(f"pair_features, {few * 8} pairs of {len(gallery)} images", fast)
    print(f"{'  plain loops':58}{slow:9.2f} s   ratio {slow / fast[0]:.0f}")

    same = (label[found.query] == label[found.candidate]).numpy()
    groups = np.column_stack([label[found.query], label[found.candidate]])
    result, model = timed("fit", lambda: PairModel().fit(found.values, same, groups, found.names))
    line("PairModel.fit, 5 folds of 200 trees", result, f"AUC {model.auc_:.3f}")
    result, _ = timed("predict", lambda: model.predict(found.values))
    line("PairModel.predict", result)

    n = 100_000 // part
    near = rooms(n, k)
    result, edges = timed("edges", lambda: neighbor_edges(near, threshold=0.6))
    line(f"neighbor_edges, {n} x {k}, {len(edges)} mutual edges", result)
    result, groups = timed("components", lambda: components(edges))
    line(f"components, largest {np.bincount(groups).max()}", result)
    strong = neighbor_edges(near, threshold=0.7)
    result, cut = timed("cut", lambda: cut_bridges(strong, betweenness=0.0))
    line(f"cut_bridges of {len(strong)} edges, {len(strong) - len(cut)} cut", result)
    result, clusters = timed("agglomerate", lambda: agglomerate(strong, mean_size=2))
    line(f"agglomerate, {clusters.max() + 1} clusters", result)
    hits = np.random.default_rng(0).random(near.score.shape) < 0.3
    result, _ = timed("curve", lambda: f1_curve(near.score.numpy(), hits, hits.sum(1) + 1))
    line(f"f1_curve, exact, of {near.score.numel()} scores", result)

    graph = neighbor_edges(rooms(1500 // part, 6, 1), mutual=False)
    fast = measure(lambda: edge_betweenness(graph))
    other = nx.Graph(zip(graph.a.tolist(), graph.b.tolist(), strict=True))
    start = time.perf_counter()
    nx.edge_betweenness_centrality(other)
    slow = time.perf_counter() - start
    line(f"edge_betweenness, {graph.size} nodes, {len(graph)} edges", fast)
    print(f"{'  networkx':58}{slow:9.2f} s   ratio {slow / fast[0]:.1f}")


if __name__ == "__main__":
    main()
