"""Groups from neighbors: edges that both ends agree on, connected parts, and who matches whom.

    edges = neighbor_edges(neighbors, threshold=0.6)             # queries are the gallery
    edges = cut_bridges(edges, larger=6)                         # common.rerank.bridges
    groups = components(edges)                                   # or agglomerate(edges, ...)
    found = members(groups, neighbors, most=50)

Memory grows with N * k. Origin: Shopee 2021 2nd place (mutual edges only, bridges cut).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from common.types import Neighbors


@dataclass
class Edges:
    """An undirected graph without loops, each edge once.

    Attributes:
        a: `(E,)` int64, the smaller end; edges are ordered by (a, b).
        b: `(E,)` int64, the larger end.
        weight: `(E,)` float32, higher is more alike.
        size: number of nodes N.
    """

    a: np.ndarray
    b: np.ndarray
    weight: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.a)

    def keep(self, mask: np.ndarray) -> Edges:
        """The edges of a mask or of row numbers, ascending."""
        return Edges(self.a[mask], self.b[mask], self.weight[mask], self.size)


def neighbor_edges(
    neighbors: Neighbors, *, threshold: float | None = None, mutual: bool = True
) -> Edges:
    """Edges between rows that list each other.

    Args:
        neighbors: `(N, K)`, the queries are the gallery; self and padding are no edges.
        threshold: smallest score of a listing that counts; both must have it when `mutual`.
        mutual: whether both ends must list the other; else one is enough.

    Returns:
        Edges; the weight is the mean score of the listings that count.

    Raises:
        ValueError: a row that does not exist, or a NaN score.
    """
    index = neighbors.index.cpu().numpy()
    score = neighbors.score.cpu().numpy()
    size = len(index)
    kept = (index >= 0) & (index != np.arange(size)[:, None])
    if np.isnan(score[kept]).any():
        wrong = int((np.isnan(score) & kept).any(1).argmax())
        raise ValueError(f"neighbor_edges: the neighbors of row {wrong} have a NaN score.")
    if index.size and index.max() >= size:
        raise ValueError(
            f"neighbor_edges: neighbors name row {index.max()} of {size}: queries and gallery must "
            "be the same images in one order."
        )
    if threshold is not None:
        kept &= score >= threshold
    row, column = np.nonzero(kept)
    one, other, weight = row.astype(np.int64), index[row, column], score[row, column]
    key = np.minimum(one, other) * size + np.maximum(one, other)
    # Bit 0 says who lists: sorted, the two listings of a pair stand side by side.
    key = key * 2 + (one > other)
    order = np.argsort(key, kind="stable")
    key, weight = key[order], weight[order].astype(np.float64)
    fresh = np.diff(key, prepend=-1) > 0  # a row that lists another twice counts once
    key, weight = key[fresh], weight[fresh]
    pair = key >> 1
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    count = np.diff(np.append(first, len(pair)))
    total = np.add.reduceat(weight, first) if len(first) else weight
    mean = (total / np.maximum(count, 1)).astype(np.float32)
    wanted = count == 2 if mutual else count > 0
    pair = pair[first][wanted]
    return Edges(pair // max(size, 1), pair % max(size, 1), mean[wanted], size)


def components(edges: Edges) -> np.ndarray:
    """Connected part of each node, `(N,)` int64; parts are numbered by their first node."""
    shape = (edges.size, edges.size)
    graph = coo_matrix((np.ones(len(edges), np.int8), (edges.a, edges.b)), shape=shape)
    _, label = connected_components(graph, directed=False)
    return in_order(label)


def in_order(labels: np.ndarray) -> np.ndarray:
    """The same groups, numbered 0, 1, ... by their first row, `(N,)` int64."""
    _, first, code = np.unique(labels, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[code]


def members(
    groups: np.ndarray, neighbors: Neighbors | None = None, *, most: int | None = None
) -> list[np.ndarray]:
    """For each row the rows of its group: itself, then by its neighbors' scores, then ascending.

    Args:
        groups: `(N,)` integers.
        neighbors: `(N, K)`, whose scores order the group; None: ascending rows.
        most: at most so many, itself included (Shopee counts 50).

    Raises:
        ValueError: `most` below 1, or another number of neighbors.
    """
    if most is not None and most < 1:
        raise ValueError(f"members: most must be at least 1, got {most}.")
    if neighbors is not None and len(neighbors) != len(groups):
        raise ValueError(f"members: {len(groups)} groups but {len(neighbors)} lists.")
    order = np.argsort(groups, kind="stable")
    begin = np.searchsorted(groups[order], groups)
    size = np.searchsorted(groups[order], groups, side="right") - begin
    near = np.empty((len(groups), 0), np.int64)
    if neighbors is not None:
        near = group_neighbors(groups, neighbors).index.cpu().numpy()
    listed = (near >= 0).sum(1)
    found = []
    for row in range(len(groups)):
        mine = np.concatenate([[row], near[row, : listed[row]]])
        if len(mine) < size[row] and (most is None or len(mine) < most):
            # At most as many as are wanted and those that are listed already.
            wanted = size[row] if most is None else min(size[row], most + len(mine))
            rest = order[begin[row] : begin[row] + wanted]
            mine = np.concatenate([mine, rest[~np.isin(rest, mine)]])
        found.append(mine[:most])
    return found


def group_neighbors(groups: np.ndarray, neighbors: Neighbors) -> Neighbors:
    """The neighbors, but itself, of the row's own group, best first; behind them is padding."""
    label = torch.from_numpy(np.asarray(groups)).to(neighbors.index.device)
    same = label[neighbors.index.clamp(min=0)] == label[:, None]
    itself = torch.arange(len(label), device=label.device)[:, None]
    keep = same & (neighbors.index >= 0) & (neighbors.index != itself)
    return Neighbors(
        neighbors.index.masked_fill(~keep, -1), neighbors.score.masked_fill(~keep, -torch.inf)
    ).sorted()


def size_shares(labels: np.ndarray) -> list[float]:
    """Share of the rows whose group has 1, 2, 3, ... members; -1 is a group of its own."""
    labels = np.asarray(labels)
    _, code, count = np.unique(labels[labels >= 0], return_inverse=True, return_counts=True)
    of_row = np.concatenate([count[code], np.ones(int((labels < 0).sum()), np.int64)])
    rows = np.bincount(of_row)[1:]
    return [float(share) for share in rows / max(len(labels), 1)]
