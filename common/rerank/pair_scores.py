"""The trained comparisons of a run, or of several side by side, as one that ranking can ask.

The vectors of an ensemble are those of its runs one after another, and a view that joins mirrored
images has two parts: every part is compared by its own head, and the logits are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.engine.checkpoint import load_tree, save_tree
from common.losses.pair_head import PairHead


@dataclass
class PairScores:
    """Heads of consecutive parts of the vectors.

    Attributes:
        heads: one for each part.
        weights: of their logits, with sum 1.
    """

    heads: list[PairHead]
    weights: list[float]

    @property
    def dim(self) -> int:
        """Length of the vectors that it compares."""
        return sum(head.embedding_dim for head in self.heads)

    @property
    def cost(self) -> int:
        """Floats that the widest hidden layer holds for each number of a vector."""
        return max(head.hidden for head in self.heads) + 8

    def to(self, device: torch.device) -> PairScores:
        """The same on a device."""
        return PairScores([head.to(device) for head in self.heads], self.weights)

    @torch.no_grad()
    def probability(self, a: Tensor, b: Tensor) -> Tensor:
        """`(P,)` that the pairs of `(P, dim)` and `(P, dim)` are of one class.

        0 where one is a zero row, an image that could not be read: it is like nothing.
        """
        logits: Tensor | float = 0.0
        sizes = [head.embedding_dim for head in self.heads]
        parts = zip(torch.split(a, sizes, 1), torch.split(b, sizes, 1), strict=True)
        for head, weight, (mine, theirs) in zip(self.heads, self.weights, parts, strict=True):
            logits = logits + weight * head(mine, theirs)
        assert isinstance(logits, Tensor)
        return logits.sigmoid().where(a.any(1) & b.any(1), 0.0)

    def doubled(self) -> PairScores:
        """For `view.join_flip`: plain with plain and mirrored with mirrored, averaged."""
        return side_by_side([self, self], [0.5, 0.5])

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        parts: list[Any] = [
            {
                "head": head.state_dict(),
                "settings": [head.embedding_dim, head.hidden, head.scale],
                "weight": weight,
            }
            for head, weight in zip(self.heads, self.weights, strict=True)
        ]
        save_tree(path, {"parts": parts})

    @classmethod
    def load(cls, path: Path) -> PairScores:
        """Read what `save` wrote; ValueError when the file is something else."""
        heads, weights = [], []
        for part in load_tree(path)["parts"]:
            dim, hidden, scale = part["settings"]
            head = PairHead(dim, hidden, scale)
            head.load_state_dict(part["head"])
            heads.append(head)
            weights.append(float(part["weight"]))
        return cls(heads, weights)


def side_by_side(runs: Sequence[PairScores], weights: Sequence[float]) -> PairScores:
    """The comparisons of joined vectors: the weighted mean of the runs' logits."""
    total = float(sum(weights))
    shares = [weight / total for weight in weights]
    return PairScores(
        [head for run in runs for head in run.heads],
        [share * w for run, share in zip(runs, shares, strict=True) for w in run.weights],
    )
