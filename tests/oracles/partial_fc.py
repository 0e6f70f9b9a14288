"""Slow twins of sampled classes: the softmax over some classes, and steps one row at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.oracles.margin import margin_loss


def sampled_loss(
    kind: str,
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    classes: Sequence[int],
    *,
    k: int,
    scale: float,
    margin: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean loss over the labelled rows, as if there were no other classes."""
    rows = [c * k + j for c in classes for j in range(k)]
    return margin_loss(
        kind,
        embeddings,
        weight[rows],
        [-1 if label < 0 else list(classes).index(label) for label in labels.tolist()],
        k=k,
        scale=scale,
        margins=[margin] * len(classes),
        label_smoothing=label_smoothing,
    )


class Row:
    """A row as a parameter of its own: torch's optimiser sees only the steps it is in."""

    def __init__(self, value: Tensor, make) -> None:
        self.value = torch.nn.Parameter(value.clone())
        self.optimizer = make([{"params": [self.value]}])

    def step(self, gradient: Tensor) -> None:
        """Move by this gradient."""
        self.value.grad = gradient.clone()
        self.optimizer.step()
