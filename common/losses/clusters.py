"""The cluster index of the magnet loss: k-means inside each class.

clusters = cluster_index(vectors, labels, k=3)
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def cluster_index(
    vectors: Tensor, labels: Tensor, k: int = 3, *, seed: int = 0, rounds: int = 20
) -> Tensor:
    """(N,) int64 cluster of each row, by k-means++ and Lloyd's rounds inside its class.

    A class with fewer different rows has fewer clusters. Numbers differ between classes; -1 stays.

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
    generator = torch.Generator(vectors.device).manual_seed(seed)
    clusters = torch.full_like(labels, -1)
    ordered, order = labels.sort(stable=True)
    found, counts = torch.unique_consecutive(ordered, return_counts=True)
    groups = torch.split(order, counts.tolist())
    for code, (label, rows) in enumerate(zip(found.tolist(), groups, strict=True)):
        if label >= 0:
            clusters[rows] = code * k + _kmeans(vectors[rows].float(), k, generator, rounds)
    return clusters


def _kmeans(rows: Tensor, k: int, generator: torch.Generator, rounds: int) -> Tensor:
    """(N,) code in [0, k) of each of (N, D) rows."""
    first = torch.randint(len(rows), (1,), generator=generator, device=rows.device)
    centers = rows[first]
    for _ in range(1, k):
        away = torch.cdist(rows, centers).amin(1).square()
        if not away.any():
            break
        chosen = torch.multinomial(away, 1, generator=generator)
        centers = torch.cat([centers, rows[chosen]])
    code = torch.cdist(rows, centers).argmin(1)
    for _ in range(rounds):
        count = torch.bincount(code, minlength=len(centers))[:, None]
        means = torch.zeros_like(centers).index_add(0, code, rows) / count.clamp_min(1)
        centers = torch.where(count > 0, means, centers)
        before, code = code, torch.cdist(rows, centers).argmin(1)
        if torch.equal(before, code):
            break
    return code
