"""Label cleaning with a trained sub-centre head: drop rows far from their class's dominant centre.

centers = head.centers()
dominant = dominant_centers(centers, count_wins(centers, vectors, labels))
keep = clean(dominant, vectors, labels)  # then train again on these rows, with k=1

`python -m common.pipeline.clean RUN TRAIN.csv` does it for a run folder.

Deng et al., ECCV 2020, section 3.3. Noise gathers in the lesser sub-centres; what is far from the
dominant one is wrongly labelled or useless.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.losses.cosine import unit_rows
from common.losses.cross_entropy import check_labels

ROWS = 1 << 14  # that are compared with their centres at a time


@torch.no_grad()
def count_wins(centers: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    """(C, K) int64, for how many rows each centre is the nearest of their class, ties to the first.

    Rows that are zero or not finite count for none. `head.wins` counts the same during training,
    as the centres moved.

    Args:
        centers: (C, K, D) unit centres, as `head.centers()`.
        vectors: (N, D) embeddings of any scale, float16 or more.
        labels: (N,) int64 in [0, C), or -1 for rows that do not count.

    Raises:
        ValueError: tensors that do not fit each other.
    """
    classes, k, _ = _check(centers, vectors, labels).shape
    wins = torch.zeros(classes * k, dtype=torch.int64, device=centers.device)
    for start in range(0, len(labels), ROWS):
        label = labels[start : start + ROWS].to(centers.device)
        cosine = _cosines(centers, vectors[start : start + ROWS], label)
        counted = (label >= 0) & (cosine.abs().amax(1) > 0)
        wins.index_add_(0, label.clamp_min(0) * k + cosine.argmax(1), counted.long())
    return wins.view(classes, k)


def dominant_centers(centers: Tensor, wins: Tensor) -> Tensor:
    """(C, D) the centre of each class that wins most, the first one on a tie.

    As a head's weight it starts a training with k=1.

    Args:
        centers: (C, K, D) unit centres.
        wins: (C, K), from `count_wins` or `head.wins`.

    Raises:
        ValueError: wins of another shape.
    """
    if centers.ndim != 3 or wins.shape != centers.shape[:2]:
        raise ValueError(
            f"centers must be (C, K, D) and wins (C, K), got {tuple(centers.shape)} and "
            f"{tuple(wins.shape)}"
        )
    return centers[torch.arange(len(wins), device=centers.device), wins.argmax(1)]


@torch.no_grad()
def clean(dominant: Tensor, vectors: Tensor, labels: Tensor, *, degrees: float = 75.0) -> Tensor:
    """(N,) bool, True for rows to keep: at most so many degrees from their dominant centre.

    Rows with label -1 have no centre and are kept; one that is zero or not finite is dropped. A
    class may lose all its rows: encode the labels that are left anew.

    Args:
        dominant: (C, D) unit centres, from `dominant_centers`.
        vectors: (N, D) embeddings of any scale, float16 or more, from the model of these centres.
        labels: (N,) int64 in [0, C), or -1.
        degrees: the paper's 75.

    Raises:
        ValueError: tensors that do not fit each other, degrees outside (0, 90).
    """
    if not 0 < degrees < 90:
        raise ValueError(f"degrees must lie in (0, 90), got {degrees}")
    centers = _check(dominant[:, None] if dominant.ndim == 2 else dominant, vectors, labels)
    if centers.shape[1] != 1:
        raise ValueError(f"dominant centres must be (C, D), got {tuple(dominant.shape)}")
    keep, limit = [], math.cos(math.radians(degrees))
    for start in range(0, len(labels), ROWS):
        label = labels[start : start + ROWS].to(centers.device)
        cosine = _cosines(centers, vectors[start : start + ROWS], label)[:, 0]
        keep.append(((cosine >= limit) | (label < 0)).to(labels.device))
    return torch.cat(keep) if keep else torch.zeros_like(labels, dtype=torch.bool)


def _check(centers: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    if centers.ndim != 3 or vectors.ndim != 2 or vectors.shape[1] != centers.shape[2]:
        raise ValueError(
            f"centres must be (C, K, D) and vectors (N, D), got {tuple(centers.shape)} and "
            f"{tuple(vectors.shape)}"
        )
    check_labels(labels, len(vectors), len(centers))
    return centers


def _cosines(centers: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    """(N, K) cosines of rows to the centres of their class."""
    unit = unit_rows(vectors.to(centers.device, centers.dtype))
    return torch.einsum("nd,nkd->nk", unit, centers[labels.clamp_min(0)])
