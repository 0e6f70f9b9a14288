"""The `loss:` list of a config as one criterion: named terms with weights, added up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from common.config import ConfigError
from common.losses import (
    adaptive,
    centers,
    classify,
    hyperbolic,
    magnet,
    margin,
    memory,
    pair,
    proxies,
    quadruplet,
    rank,
    sigmoid,
)
from common.losses import tuple as tuples
from common.steps import Step, bind, catalog

_HEADS = (margin, classify, adaptive, centers, proxies, sigmoid)
_TUPLES = (pair, quadruplet, tuples, rank, hyperbolic, magnet)
KNOWN = catalog(*_HEADS, *_TUPLES) | {
    # The momentum queue is not here: its keys come from a second model, which no list can name.
    "cross_batch_memory": memory.CrossBatchMemory
}


class Total(nn.Module):
    """Weighted sum of loss terms, each a module called with (embeddings, labels)."""

    def __init__(self, terms: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.weights = list(weights)

    def forward(
        self, embeddings: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Loss of `(B, D)` embeddings with `(B,)` int64 labels, -1 ignored; scalar.

        `shares` `(T,)`, a factor per term, is for several processes: see `masses`.
        """
        total = embeddings.new_zeros((), dtype=torch.float32)
        for i, (weight, term) in enumerate(zip(self.weights, self.terms, strict=True)):
            part = weight * term(embeddings, labels)
            total = total + (part if shares is None else part * shares[i])
        return total

    def masses(self, labels: torch.Tensor) -> torch.Tensor:
        """`(T,)` float32, what each term's mean divides by: labelled rows, or their class weights.

        A process's mean times its share of the masses adds up to the mean over all processes.
        """
        labelled = (labels >= 0).sum().float()
        of = [cast(Any, t).mass(labels) if hasattr(t, "mass") else labelled for t in self.terms]
        return torch.stack([mass.float() for mass in of])

    def schedule(self, progress: float) -> None:
        """Tell every term how much of the training is done, 0 to 1."""
        for term in self.terms:
            if hasattr(term, "schedule"):
                cast(Any, term).schedule(progress)

    def statistics(self) -> dict[str, float]:
        """What the terms know about their last batch, for the log."""
        found: dict[str, float] = {}
        for term in self.terms:
            if hasattr(term, "statistics"):
                found |= {f"head/{k}": v for k, v in cast(Any, term).statistics().items()}
        return found

    def centers(self) -> torch.Tensor | None:
        """`(C, K, D)` unit class centres of the first term that has them."""
        for term in self.terms:
            if hasattr(term, "centers"):
                centers: torch.Tensor = cast(Any, term).centers()
                return centers
        return None


def build(terms: Sequence[Step], state: Mapping[str, Any]) -> Total:
    """The criterion that `terms` describe; `state` offers embedding_dim, num_classes, ...

    Raises:
        ConfigError: no term, unknown name or argument, a weight that is not a positive number.
    """
    if not terms:
        raise ConfigError(f"loss: is empty, name at least one of: {', '.join(KNOWN)}")
    weights, modules = [], []
    for i, term in enumerate(terms):
        weight = term.get("weight", 1.0)
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            raise ConfigError(f"loss[{i}]: weight must be a positive number, got {weight!r}")
        rest = {k: v for k, v in term.items() if k != "weight"}
        modules.append(bind(rest, KNOWN, f"loss[{i}]")(state))
        weights.append(float(weight))
    return Total(modules, weights)
