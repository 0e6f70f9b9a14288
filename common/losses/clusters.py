"""The cluster index of the magnet loss: k-means inside each class, and which clusters are near.

clusters = cluster_index(vectors, labels, k=3)
near = nearest_impostors(vectors, labels, clusters, count=32)

All classes are clustered at once: the cost is that of k passes over the vectors per round, however
many classes there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 1 << 14  # that are compared with their centres at a time


@torch.no_grad()
def cluster_index(
    vectors: Tensor, labels: Tensor, k: int = 3, *, seed: int = 0, rounds: int = 20
) -> Tensor:
    """(N,) int64 cluster of each row, by k-means++ and Lloyd's rounds inside its class.

    A class with fewer different rows has fewer clusters. They are numbered from 0 without gaps,
    those of a class one after another; -1 stays. Rippel et al., ICLR 2016, section 3.2.

    Args:
        vectors: (N, D) float.
        labels: (N,) int64, -1 for no class.
        k: clusters per class.
        seed: of the first centres.
        rounds: of Lloyd's algorithm at most.

    Raises:
        ValueError: k below 1, or lengths that differ.
    """
    if k < 1 or len(vectors) != len(labels):
        raise ValueError(
            f"need k >= 1 and a label per vector, got k={k}, {len(vectors)} vectors, "
            f"{len(labels)} labels"
        )
    clusters = torch.full_like(labels, -1)
    known = (labels >= 0).nonzero()[:, 0]
    if not len(known):
        return clusters
    rows, code = vectors[known].float(), torch.unique(labels[known], return_inverse=True)[1]
    generator = torch.Generator(rows.device).manual_seed(seed)
    centers, filled = _first_centers(rows, code, k, generator)
    which = _nearest(rows, code, centers, filled)
    for _ in range(rounds):
        place = code * k + which
        count = torch.bincount(place, minlength=filled.numel())[:, None]
        sums = torch.zeros_like(centers.view(-1, rows.shape[1])).index_add_(0, place, rows)
        moved = torch.where(count > 0, sums / count.clamp_min(1), centers.view(-1, rows.shape[1]))
        centers = moved.view_as(centers)
        before, which = which, _nearest(rows, code, centers, filled)
        if torch.equal(before, which):
            break
    clusters[known] = torch.unique(code * k + which, return_inverse=True)[1]
    return clusters


@torch.no_grad()
def nearest_impostors(vectors: Tensor, labels: Tensor, clusters: Tensor, count: int) -> Tensor:
    """(L, R) clusters of other classes by the distance of their means, nearest first.

    R is `count`, or all clusters of other classes where a cluster has fewer; -1 pads.

    Args:
        vectors: (N, D) float.
        labels: (N,) int64, -1 for no class.
        clusters: (N,) from `cluster_index`.
        count: of clusters to list.
    """
    known = (clusters >= 0).nonzero()[:, 0]
    of = clusters[known]
    total = int(of.max()) + 1 if len(of) else 0
    sums = vectors.new_zeros(total, vectors.shape[1], dtype=torch.float32)
    means = sums.index_add_(0, of, vectors[known].float())
    means = means / torch.bincount(of, minlength=total)[:, None]
    owner = labels.new_zeros(total).index_copy_(0, of, labels[known])
    square, found = means.square().sum(1), []
    for start in range(0, total, 1024):
        part = slice(start, start + 1024)
        distance = torch.addmm(square, means[part], means.T, alpha=-2)
        distance.masked_fill_(owner[part, None] == owner, torch.inf)
        value, index = distance.topk(min(count, total), largest=False)
        found.append(index.masked_fill_(value == torch.inf, -1))
    return torch.cat(found) if found else clusters.new_zeros(0, 0)


def _first_centers(
    rows: Tensor, code: Tensor, k: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(C, k, D) rows chosen by k-means++ in each class, and (C, k) whether there was one left."""
    classes = int(code.max()) + 1
    centers = rows.new_zeros(classes, k, rows.shape[1])
    filled = torch.zeros(classes, k, dtype=torch.bool, device=rows.device)
    away = torch.ones_like(rows[:, 0])  # the first one is any row
    for j in range(k):
        chosen = _draw(away, code, classes, generator)
        filled[:, j] = chosen >= 0
        centers[:, j] = rows[chosen.clamp_min(0)]
        distance = _distances(rows, code, centers[:, j])
        distance = torch.where(filled[:, j][code], distance, torch.inf)
        away = distance if j == 0 else torch.minimum(away, distance)
    return centers, filled


def _draw(weight: Tensor, code: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """(C,) a row of each class with a chance in proportion to its weight; -1 where all are 0."""
    noise = torch.rand(len(weight), generator=generator, device=weight.device, dtype=torch.float64)
    # The first of several exponential clocks is each with a chance in proportion to its rate.
    wait = torch.where(weight > 0, -(1 - noise).log() / weight, torch.inf)
    first = wait.new_full((classes,), torch.inf).scatter_reduce_(0, code, wait, "amin")
    winner = ((wait == first[code]) & (wait < torch.inf)).nonzero()[:, 0]
    return code.new_full((classes,), -1).index_copy_(0, code[winner], winner)


def _nearest(rows: Tensor, code: Tensor, centers: Tensor, filled: Tensor) -> Tensor:
    """(N,) which centre of its class is nearest to each row."""
    each = [
        torch.where(filled[:, j][code], _distances(rows, code, centers[:, j]), torch.inf)
        for j in range(centers.shape[1])
    ]
    return torch.stack(each, 1).argmin(1)


def _distances(rows: Tensor, code: Tensor, centers: Tensor) -> Tensor:
    """(N,) squared distance of each row to its class's of (C, D) centres; 0 for equal ones."""
    parts = zip(torch.split(rows, ROWS), torch.split(code, ROWS), strict=True)
    return torch.cat([(part - centers[of]).square_().sum(1) for part, of in parts])
