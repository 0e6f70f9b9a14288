"""Diffusion: similarity flows from a query's neighbors along the gallery's neighbor graph.

Iscen et al., "Efficient Diffusion on Region Manifolds" (CVPR 2017) solves for each query on the
whole graph; Yang et al., "Efficient Image Retrieval via Decoupling Diffusion into Online and
Offline Processing" (AAAI 2019) solves for each gallery image on its surroundings, before any query.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from common.rerank.flow import COLUMNS, solve, surroundings, transition
from common.rerank.nodes import adjacency, answer, best, nodes_of, rank
from common.types import Embeddings, Neighbors

_LAST = -2.0  # of an unreadable image: no other has less than cos - 1


def diffusion(
    queries: Embeddings,
    gallery: Embeddings,
    *,
    kd: int = 50,
    kq: int = 10,
    gamma: float = 3.0,
    alpha: float = 0.99,
    tolerance: float = 1e-6,
    iterations: int = 100,
    k: int = 100,
    exclude_self: bool = False,
    device: torch.device | None = None,
) -> Neighbors:
    """Neighbors by f of (I - alpha S) f = y, solved for each query on the whole gallery.

    y holds cos^gamma of the query's `kq` nearest; S = D^-1/2 A D^-1/2 with A_ij = cos^gamma of
    mutual neighbors among the `kd` nearest others (negative ones are 0). Images that nothing flows
    to follow by cos - 1. Queries are not in the graph: the answer to one does not depend on others.

    The authors' values are for galleries of thousands of images with many views of each building.
    Where a query has few positives, `kd` must be near their number and `alpha` lower (.8 to .9):
    otherwise the flow gathers in the densest part of the graph, far from the query.

    Time N^2 D for the graph and Q N kd `iterations` for the solutions (conjugate gradients, float64
    on the CPU, several queries at once); memory N kd and 64 vectors of N.

    Args:
        queries: `(Q, D)` unit rows.
        gallery: `(N, D)` unit rows.
        kd: neighbors of each image in the graph.
        kq: images from which the flow starts.
        gamma: power of the similarity.
        alpha: how far it flows, in [0, 1).
        tolerance: relative residual at which a solution is good enough.
        iterations: at most.
        k: neighbors of the result; padded where the gallery has fewer.
        exclude_self: leave out gallery images with the query's own id.
        device: where similarities are computed, the gallery's by default.

    Raises:
        ValueError: a setting out of range, an empty gallery, NaN in an embedding.
    """
    _check("diffusion", k, kd, kq, gamma, alpha, iterations)
    nodes = nodes_of(queries, gallery, "diffusion", device)
    found = Neighbors(nodes.rows.new_empty(0, 0), nodes.vectors.new_empty(0, 0))
    if len(nodes.rows) and len(nodes.asked):
        graph = transition(nodes.gallery, kd, gamma)

        def spread(rows: slice, tile: torch.Tensor) -> torch.Tensor:
            start = _sources(best(tile, min(kq, tile.shape[1])), gamma, tile.shape[1])
            flow = np.empty(tile.shape, np.float32)
            for first in range(0, len(tile), COLUMNS):
                part = slice(first, first + COLUMNS)
                right = np.ascontiguousarray(start[part].toarray().T.astype(np.float64))
                flow[part] = solve(
                    lambda x: x - alpha * (graph @ x), right, 0, tolerance, iterations
                ).T
            return _behind(torch.from_numpy(flow).to(tile.device), tile)

        found = rank(nodes, spread, k, exclude_self=exclude_self)
    return answer(nodes, found, queries, gallery, k, last=_LAST, exclude_self=exclude_self)


def offline_diffusion(
    queries: Embeddings,
    gallery: Embeddings,
    *,
    size: int = 1000,
    kd: int = 50,
    kq: int = 10,
    gamma: float = 3.0,
    alpha: float = 0.99,
    tolerance: float = 1e-6,
    iterations: int = 20,
    k: int = 100,
    exclude_self: bool = False,
    device: torch.device | None = None,
) -> Neighbors:
    """Neighbors by the sum over a query's `kq` nearest of cos^gamma times their own diffusion.

    As `diffusion`, but solved once for each gallery image, on the `size` images nearest to it. Only
    images that are near some query are solved for. The authors' values: size 1000 on 5,000 images
    and 5000 on 105,000, 20 iterations.

    Time N^2 D for the graph and min(N, Q kq) size kd `iterations` for the solutions (float64 on the
    CPU, 64 at once); memory N kd and min(N, Q kq) size.

    Args:
        queries: `(Q, D)` unit rows.
        gallery: `(N, D)` unit rows.
        size: images that the flow from one of them may reach, itself included.
        kd: neighbors of each image in the graph.
        kq: images whose diffusion is summed up.
        gamma: power of the similarity.
        alpha: how far it flows, in [0, 1).
        tolerance: relative residual at which a solution is good enough.
        iterations: at most.
        k: neighbors of the result; padded where the gallery has fewer.
        exclude_self: leave out gallery images with the query's own id.
        device: where similarities are computed, the gallery's by default.

    Raises:
        ValueError: a setting out of range, an empty gallery, NaN in an embedding.
    """
    _check("offline_diffusion", k, kd, kq, gamma, alpha, iterations)
    if size < 1:
        raise ValueError(f"offline_diffusion: size must be at least 1, got {size}.")
    nodes = nodes_of(queries, gallery, "offline_diffusion", device)
    found = Neighbors(nodes.rows.new_empty(0, 0), nodes.vectors.new_empty(0, 0))
    if len(nodes.rows) and len(nodes.asked):
        near = rank(nodes, lambda _, tile: tile, kq, exclude_self=False)
        weight = _sources(near, gamma, len(nodes.rows))
        items = np.unique(weight.indices)
        graph = transition(nodes.gallery, kd, gamma)
        reached = surroundings(nodes, items, size, graph, alpha, tolerance, iterations)
        weight = weight[:, items]

        def combine(rows: slice, tile: torch.Tensor) -> torch.Tensor:
            flow = torch.from_numpy((weight[rows] @ reached).toarray())
            return _behind(flow.to(tile.device), tile)

        found = rank(nodes, combine, k, exclude_self=exclude_self)
    return answer(nodes, found, queries, gallery, k, last=_LAST, exclude_self=exclude_self)


def _sources(near: Neighbors, gamma: float, number: int) -> Any:
    """The start of the flow, cos^gamma at each query's nearest images, `(B, N)` CSR."""
    return adjacency(near.index, near.score.clamp(min=0) ** gamma, number)


def _behind(flow: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """The flow where there is any; below, in order of similarity, the images it does not reach."""
    return torch.where(flow > 0, flow, similarity - 1)


def _check(
    step: str, k: int, kd: int, kq: int, gamma: float, alpha: float, iterations: int
) -> None:
    if min(k, kd, kq, iterations) < 1 or not gamma > 0 or not 0 <= alpha < 1:
        raise ValueError(
            f"{step}: k, kd, kq and iterations must be at least 1, gamma above 0 and alpha in "
            f"[0, 1), got k={k}, kd={kd}, kq={kq}, iterations={iterations}, gamma={gamma}, "
            f"alpha={alpha}."
        )
