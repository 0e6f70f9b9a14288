"""Slow twins of the margin heads: one row, one class, one centre at a time, angles by acos."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def class_cosine(row: Tensor, centers: Tensor) -> Tensor:
    """The largest cosine of a row to the centres of one class."""
    return torch.stack([row @ c / (row.norm() * c.norm()) for c in centers]).max()


def with_margin(kind: str, cosine: Tensor, margin: float) -> Tensor:
    """The own class's cosine after the margin."""
    if kind == "cosface":
        return cosine - margin
    angle = torch.acos(cosine)
    if angle.item() + margin > math.pi:
        return cosine - margin * math.sin(margin)
    return torch.cos(angle + margin)


def margin_loss(
    kind: str,
    embeddings: Tensor,
    weight: Tensor,
    labels: Sequence[int],
    *,
    k: int,
    scale: float,
    margins: Sequence[float],
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    class_weights: Sequence[float] | None = None,
    twins: int = 0,
) -> Tensor:
    """Weighted mean loss of the labelled rows; `twins`: a row's mirrored class does not exist."""
    classes = len(weight) // k
    losses, weights = [], []
    for row, label in zip(embeddings, labels, strict=True):
        if label == -1:
            continue
        logits, there = [], [c for c in range(classes) if not twins or c != twin(label, twins)]
        for c in there:
            cosine = class_cosine(row, weight[c * k : (c + 1) * k])
            if c == label:
                cosine = with_margin(kind, cosine, margins[label])
            logits.append(scale * cosine)
        p = torch.stack([z.exp() for z in logits])
        p = p / p.sum()
        loss = torch.zeros((), dtype=weight.dtype)
        for place, c in enumerate(there):
            target = label_smoothing / len(there) + (1 - label_smoothing) * (c == label)
            loss = loss - target * p[place].log()
        losses.append((1 - p[there.index(label)]) ** focal_gamma * loss)
        weights.append(1.0 if class_weights is None else class_weights[label])
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def twin(label: int, twins: int) -> int:
    """The mirrored class."""
    return label + twins if label < twins else label - twins


def minmax_power(counts: Sequence[int], a: float, b: float, lam: float) -> list[float]:
    """haqishen's and Henkel's margins of classes that all have images."""
    powers = [n**-lam for n in counts]
    return [(p - min(powers)) / (max(powers) - min(powers)) * a + b for p in powers]


def power(counts: Sequence[int], a: float, b: float, lam: float) -> list[float]:
    """Ha's paper form of the margins."""
    return [a * n**-lam + b for n in counts]


def batch(rows=24, dim=4, classes=5, ignored=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.get_default_dtype()) * 3
    labels = torch.randint(0, classes, (rows,), generator=generator)
    if ignored:
        labels[1::6] = -1
    return x.requires_grad_(), labels


def gradients(loss, x, weight):
    return torch.autograd.grad(loss, (x, weight))
