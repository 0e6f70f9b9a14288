"""Diffusion's linear systems: the transition matrix of a neighbor graph, and conjugate gradients.

SciPy's own solver takes one right-hand side at a time, and its keyword for the tolerance depends on
its version; the steps are in `common.rerank.diffusion`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse

from common.rerank.nodes import CELLS, Nodes, adjacency, best, nearest, products
from common.retrieval import tiles

COLUMNS = 64  # systems solved side by side


def transition(vectors: torch.Tensor, kd: int, gamma: float) -> Any:
    """S = D^-1/2 A D^-1/2 of the mutual `kd` nearest neighbor graph, `(N, N)` CSR float64."""
    index, score, _ = nearest(vectors, kd)
    flow = adjacency(index, score.clamp(min=0) ** gamma, len(vectors)).astype(np.float64)
    # The smaller of both directions: 0 unless mutual, symmetric whatever the rounding.
    flow = flow.minimum(flow.T.tocsr()).tocsr()
    degree = np.asarray(flow.sum(1)).ravel()
    scale = sparse.diags_array(1 / np.sqrt(np.where(degree > 0, degree, 1.0)))
    return (scale @ flow @ scale).tocsr()


def solve(
    product: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    axis: int,
    tolerance: float,
    iterations: int,
) -> np.ndarray:
    """Solutions of several positive definite systems by conjugate gradients, side by side.

    Args:
        product: the matrix times all vectors, which run along `axis` of its argument.
        right: right-hand sides, all of them stop when the last is within the tolerance.
        axis: 0 or 1.
        tolerance: of the residual's norm, relative to the right-hand side's.
        iterations: at most.
    """
    x = np.zeros_like(right)
    residual = right.copy()
    direction = right.copy()
    square = np.sum(residual * residual, axis=axis, keepdims=True)
    enough = tolerance**2 * square
    for _ in range(iterations):
        if not (square > enough).any():
            break
        moved = product(direction)
        along = np.sum(direction * moved, axis=axis, keepdims=True)
        step = np.divide(square, along, out=np.zeros_like(square), where=along > 0)
        x += step * direction
        residual -= step * moved
        before, square = square, np.sum(residual * residual, axis=axis, keepdims=True)
        turn = np.divide(square, before, out=np.zeros_like(square), where=before > 0)
        direction = residual + turn * direction
    return x


def surroundings(
    nodes: Nodes,
    items: np.ndarray,
    size: int,
    graph: Any,
    alpha: float,
    tolerance: float,
    iterations: int,
) -> Any:
    """Diffusion from each of `items` on its `size` nearest images, `(len(items), m)` CSR."""
    number = len(nodes.rows)
    size = min(size, number)
    block = max(1, min(COLUMNS, CELLS // number, CELLS // (4 * size)))
    vectors, parts = nodes.gallery[torch.from_numpy(items).long().to(nodes.vectors.device)], []
    with torch.no_grad(), tiles.full_precision(nodes.vectors.device):
        for rows, tile in products(vectors, nodes.gallery):
            own = torch.from_numpy(items[rows]).long().to(tile.device)
            tile.scatter_(1, own[:, None], torch.inf)  # first, also among duplicates
            members = best(tile, size).index.cpu().numpy()
            for first in range(0, len(members), block):
                some = members[first : first + block]
                values = _confined(some, graph, alpha, tolerance, iterations)
                parts.append(_rows(some, values, number))
    return sparse.vstack(parts, format="csr")


def _confined(
    members: np.ndarray, graph: Any, alpha: float, tolerance: float, iterations: int
) -> np.ndarray:
    """Diffusion from the first of each row of `members` `(B, n)` on those images alone, `(B, n)`.

    The rows' subgraphs are the blocks of one sparse matrix.
    """
    count, size = members.shape
    number = graph.shape[1]
    place = np.full(count * number, -1, np.int32)
    flat = members + number * np.arange(count)[:, None]
    place[flat.ravel()] = np.arange(count * size)
    entries = graph[members.ravel()]
    ends = entries.indptr[::size]
    column = place[entries.indices + np.repeat(number * np.arange(count), np.diff(ends))]
    inside = np.flatnonzero(column >= 0)
    start = np.searchsorted(inside, entries.indptr)
    blocks = sparse.csr_array(
        (entries.data[inside], column[inside], start), shape=(count * size, count * size)
    )
    right = np.zeros((count, size))
    right[:, 0] = 1

    def product(x: np.ndarray) -> np.ndarray:
        return np.asarray(x - alpha * (blocks @ x.ravel()).reshape(x.shape))

    return solve(product, right, 1, tolerance, iterations)


def _rows(index: np.ndarray, value: np.ndarray, number: int) -> Any:
    """Values at `(B, n)` columns as CSR float32, without what was not reached."""
    real = value > 0
    start = np.concatenate([[0], np.cumsum(real.sum(1))])
    data, columns = value[real].astype(np.float32), index[real].astype(np.int32)
    return sparse.csr_array((data, columns, start), shape=(len(index), number))
