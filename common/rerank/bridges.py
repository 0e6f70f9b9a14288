"""Chains of groups taken apart: the edges that most shortest paths need are cut.

Edge betweenness: Brandes, "A faster algorithm for betweenness centrality" (2001); cutting by it:
Girvan and Newman (PNAS 2002). Shopee 2021 2nd place cut edges of a betweenness above .1177 and a
weight below .1578 in groups of more than 6.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from common.rerank.graph import Edges, components

_CELLS = 1 << 22  # (source, edge) pairs worked on at once: 32 MiB of float64


def edge_betweenness(edges: Edges) -> np.ndarray:
    """Share of the pairs of nodes whose shortest path runs over each edge, `(E,)` float64.

    Shortest is fewest edges; of several shortest paths each counts its part. Divided by the number
    of pairs N (N - 1) / 2, as networkx does: 1 is an edge that all paths need. Every source's
    search runs at once, level by level: time grows with N * E, memory with a block of it.
    """
    size, total = edges.size, np.zeros(len(edges))
    if not len(edges):
        return total
    ends = np.concatenate([edges.a, edges.b]), np.concatenate([edges.b, edges.a])
    graph = csr_matrix((np.ones(2 * len(edges)), ends), shape=(size, size))
    step = max(1, _CELLS // max(len(edges), size))
    for first in range(0, size, step):
        sources = np.arange(first, min(first + step, size))
        total += _flow(edges, graph, sources)
    # Each pair was counted from both ends: the halves and the number of pairs cancel to this.
    return total / (size * (size - 1))


def cut_bridges(
    edges: Edges,
    *,
    larger: int = 6,
    betweenness: float = 0.1177,
    weight: float | None = None,
) -> Edges:
    """The edges that are left when groups of more than `larger` nodes have been taken apart.

    In each such group the edge of highest betweenness is cut (ties: lowest weight, then first), and
    the measure taken anew, until the group falls apart into small ones or no edge qualifies. Costs
    nodes * edges of the group for every cut: a part of many thousands wants a higher threshold
    first.

    Args:
        edges: the graph.
        larger: groups of at most so many nodes stay as they are.
        betweenness: only edges above it are cut, as `edge_betweenness` of their group has it.
        weight: only edges below it are cut; None: any.

    Raises:
        ValueError: `larger` below 1.
    """
    if larger < 1:
        raise ValueError(f"cut_bridges: larger must be at least 1, got {larger}.")
    kept = np.ones(len(edges), bool)
    waiting = _large(edges, np.arange(len(edges)), larger)
    while waiting:
        rows = waiting.pop()
        part = _inside(edges, rows)
        share = edge_betweenness(part)
        open_ = share > betweenness
        if weight is not None:
            open_ &= part.weight < weight
        if not open_.any():
            continue
        # Equal but for the order of sums is equal.
        best = open_ & (share >= share[open_].max() * (1 - 1e-9))
        cut = np.flatnonzero(best)[np.argmin(part.weight[best])]
        kept[rows[cut]] = False
        waiting += _large(edges, np.delete(rows, cut), larger)
    return edges.keep(kept)


def _flow(edges: Edges, graph: csr_matrix, sources: np.ndarray) -> np.ndarray:
    """Dependencies of the sources on each edge, summed over the sources, `(E,)`."""
    count = len(sources)
    depth = np.full((count, edges.size), -1, np.int32)
    paths = np.zeros((count, edges.size))
    depth[np.arange(count), sources], paths[np.arange(count), sources] = 0, 1
    front, level = paths.copy(), 0
    while front.any():
        level += 1
        front = np.asarray((graph @ front.T).T)
        front[depth >= 0] = 0
        reached = front > 0
        depth[reached], paths[reached] = level, front[reached]
    # Both directions of each edge, those that lead one level down.
    upper = np.concatenate([edges.a, edges.b])
    lower = np.concatenate([edges.b, edges.a])
    number = np.tile(np.arange(len(edges)), 2)
    depends, total = np.zeros_like(paths), np.zeros(len(edges))
    for down in range(level, 0, -1):
        source, edge = np.nonzero((depth[:, lower] == down) & (depth[:, upper] == down - 1))
        top, bottom = upper[edge], lower[edge]
        share = paths[source, top] / paths[source, bottom] * (1 + depends[source, bottom])
        np.add.at(depends, (source, top), share)
        total += np.bincount(number[edge], share, len(edges))
    return total


def _large(edges: Edges, rows: np.ndarray, larger: int) -> list[np.ndarray]:
    """The edges `rows`, by the connected parts with more than `larger` nodes."""
    if not len(rows):
        return []
    part = _inside(edges, rows)
    label = components(part)
    big = np.bincount(label) > larger
    of_edge = label[part.a]
    chosen = np.flatnonzero(big[of_edge])
    order = chosen[np.argsort(of_edge[chosen], kind="stable")]
    starts = np.flatnonzero(np.diff(of_edge[order], prepend=-1))
    return [rows[group] for group in np.split(order, starts[1:])] if len(order) else []


def _inside(edges: Edges, rows: np.ndarray) -> Edges:
    """These edges with the nodes that they touch numbered 0, 1, ..."""
    part = edges.keep(rows)
    nodes, ends = np.unique(np.concatenate([part.a, part.b]), return_inverse=True)
    return Edges(ends[: len(rows)], ends[len(rows) :], part.weight, len(nodes))
