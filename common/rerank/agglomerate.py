"""Average-linkage clusters of a neighbor graph, down to a similarity or to a mean size.

Shopee 2021 3rd place clustered the probabilities of a pair model to a mean size of 2.6.
"""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from common.rerank.graph import Edges, components, in_order

_LARGEST = 20_000  # nodes of one part: 1.6 GB of distances


def agglomerate(
    edges: Edges,
    *,
    similarity: float | None = None,
    mean_size: float | None = None,
    missing: float = 0.0,
) -> np.ndarray:
    """Cluster of each node, `(N,)` int64, by average linkage; numbered by the first node.

    The two clusters with the highest mean similarity over all pairs of their nodes merge first. A
    pair without an edge has similarity `missing`. Each connected part is a tree of its own.

    Args:
        edges: pairs and similarities.
        similarity: merges stop below it.
        mean_size: merges stop when there are N / mean_size clusters, rounded; merges as good as the
            last one happen too. Where the parts are too small for it, every part is a cluster.
        missing: similarity of pairs without an edge.

    Raises:
        ValueError: not exactly one of `similarity` and `mean_size`, a mean size below 1, or a part
            of more than 20,000 nodes.
    """
    if (similarity is None) == (mean_size is None):
        raise ValueError(
            f"agglomerate: give either similarity or mean_size, got {similarity}, {mean_size}."
        )
    if mean_size is not None and not mean_size >= 1:
        raise ValueError(f"agglomerate: mean_size must be at least 1, got {mean_size}.")
    if not np.isfinite(edges.weight).all():
        raise ValueError("agglomerate: a similarity is NaN or infinite.")
    one, other, height = _merges(edges, missing)
    if similarity is not None:
        kept = height >= np.float32(similarity)
    else:
        wanted = edges.size - round(edges.size / mean_size) if mean_size is not None else 0
        ordered = -np.sort(-height)
        last = ordered[min(wanted, len(ordered)) - 1] if wanted and len(ordered) else np.inf
        kept = height >= last
    graph = coo_matrix(
        (np.ones(int(kept.sum()), np.int8), (one[kept], other[kept])), (edges.size, edges.size)
    )
    return in_order(connected_components(graph, directed=False)[1])


def _merges(edges: Edges, missing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A node of each of the two clusters, and their mean similarity, of every merge."""
    label = components(edges)
    size = np.bincount(label)
    if len(size) and size.max() > _LARGEST:
        raise ValueError(
            f"agglomerate: a part of {size.max()} nodes needs all their distances, the most is "
            f"{_LARGEST}: raise the threshold of the edges, or cut bridges first."
        )
    order = np.argsort(label, kind="stable")
    place = np.empty(edges.size, np.int64)  # of a node in its part
    place[order] = np.arange(edges.size) - np.repeat(np.cumsum(size) - size, size)
    of_edge = label[edges.a]
    by_part = np.argsort(of_edge, kind="stable")
    first = np.searchsorted(of_edge[by_part], np.arange(len(size) + 1))
    begin = np.cumsum(size) - size
    found = []
    for part in np.flatnonzero(size > 1).tolist():
        rows = by_part[first[part] : first[part + 1]]
        nodes = order[begin[part] : begin[part] + size[part]]
        found.append(
            _tree(nodes, place[edges.a[rows]], place[edges.b[rows]], edges.weight[rows], missing)
        )
    if not found:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, np.zeros(0, np.float32)
    one, other, height = (np.concatenate(column) for column in zip(*found, strict=True))
    return one, other, height


def _tree(
    nodes: np.ndarray, a: np.ndarray, b: np.ndarray, weight: np.ndarray, missing: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The n - 1 merges of one connected part."""
    n = len(nodes)
    if n == 2:
        return nodes[:1], nodes[1:], weight
    # Distances from the best similarity down, in the condensed order of scipy (a < b).
    top = max(float(weight.max()), missing)
    apart = np.full(n * (n - 1) // 2, top - missing)
    apart[n * a - a * (a + 1) // 2 + b - a - 1] = top - weight.astype(np.float64)
    tree = linkage(apart, "average")
    # A cluster is named by one of its nodes.
    name = np.concatenate([nodes, np.empty(n - 1, np.int64)])
    left, right = tree[:, 0].astype(np.int64), tree[:, 1].astype(np.int64)
    for number in range(n - 1):
        name[n + number] = name[left[number]]
    # As exact as the weights: equal merges of different parts are equal.
    return name[left], name[right], (top - tree[:, 2]).astype(np.float32)
