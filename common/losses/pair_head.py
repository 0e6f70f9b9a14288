"""A small network that says of two embeddings whether they are of one class, the same either way.

head = PairHead(512); logit = head(a, b)      # (P, 512), (P, 512) -> (P,)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.losses.cosine import unit_rows

VIEWS = 4  # of a pair of numbers: product, sum, distance and its square
KEPT = 1 << 26  # floats of the hidden layer that the way back may find kept: 256 MiB of float32
TILE = {"cpu": 1 << 20}  # at once where nothing is kept: what a core's cache holds
LARGE = 1 << 24  # and on other devices


class PairHead(nn.Module):
    """Logit of one class for pairs of unit rows; bit for bit the same for (a, b) and (b, a).

    Piotte's "Whale Recognition Model" (Kaggle, 2018), taken over by Humpback Whale 2019, 4th
    place: in every dimension the product, sum, distance and squared distance of both numbers go
    through one small network that all dimensions share, and a weighted sum over the dimensions is
    the logit. There, rows are what max pooling leaves; here they have length 1 (root of D, so that
    numbers are about 1), as embeddings are stored. It starts as scale * cosine - scale / 2 instead
    of at random: ranks are useful, and negatives are hard, from the first step on.

    Args:
        embedding_dim: D.
        hidden: width of the shared network; the original has 32.
        scale: slope of the logit in the cosine at the start.

    Attributes:
        inner: `(hidden, 4)` and `(hidden,)`, the shared network's first layer.
        outer: `(hidden,)`, its second.
        share: `(D,)` of each dimension in the logit, 1 at the start.
        bias: scalar.

    Raises:
        ValueError: hidden below 2, or a number that is not positive.
    """

    def __init__(self, embedding_dim: int, hidden: int = 32, scale: float = 10.0) -> None:
        super().__init__()
        if embedding_dim < 1 or hidden < 2 or not 0 < scale < math.inf:
            raise ValueError(
                "need embedding_dim >= 1, hidden >= 2 and scale > 0, got "
                f"{embedding_dim}, {hidden} and {scale}"
            )
        self.embedding_dim, self.hidden, self.scale = embedding_dim, hidden, scale
        inner = torch.randn(hidden, VIEWS) / math.sqrt(VIEWS)
        inner[:2] = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])  # x = relu(x) - relu(-x)
        outer = torch.zeros(hidden)
        outer[:2] = torch.tensor([1.0, -1.0])
        self.inner, self.inner_bias = nn.Parameter(inner), nn.Parameter(torch.zeros(hidden))
        self.outer = nn.Parameter(outer)
        self.share = nn.Parameter(torch.ones(embedding_dim))
        self.bias = nn.Parameter(torch.tensor(-scale / 2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """`(P,)` logits of `(P, D)` rows with `(P, D)` rows, of any length; 0 counts as no news.

        In float32 at least, whatever the autocast. Of many pairs, one part of the hidden layer is
        held at a time, and made again on the way back.

        Raises:
            ValueError: rows of another shape.
        """
        if a.shape != b.shape or a.ndim != 2 or a.shape[1] != self.embedding_dim:
            raise ValueError(
                f"pairs must be two (P, {self.embedding_dim}), got {tuple(a.shape)} and "
                f"{tuple(b.shape)}"
            )
        kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        with torch.autocast(a.device.type, enabled=False):
            a, b = unit_rows(a.to(kind)), unit_rows(b.to(kind))
            step = self._step(KEPT if torch.is_grad_enabled() else TILE.get(a.device.type, LARGE))
            if len(a) <= step:
                return self._logits(a, b)
            parts = zip(torch.split(a, step), torch.split(b, step), strict=True)
            if not torch.is_grad_enabled():
                return torch.cat([self._logits(*part) for part in parts])
            return torch.cat(
                [checkpoint(self._logits, *part, use_reentrant=False) for part in parts]
            )

    @torch.no_grad()
    def ask(self, rows: Tensor, others: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """`(P,)` logits of rows[first] with others[second], without gradient, tile by tile."""
        step = self._step(TILE.get(rows.device.type, LARGE))
        parts = zip(torch.split(first, step), torch.split(second, step), strict=True)
        found = [self(rows.index_select(0, i), others.index_select(0, j)) for i, j in parts]
        return torch.cat(found) if found else rows.new_empty(0)

    def _step(self, budget: int) -> int:
        """How many pairs have so many floats in their hidden layer."""
        return max(1, budget // (self.embedding_dim * (self.hidden + VIEWS)))

    def _logits(self, a: Tensor, b: Tensor) -> Tensor:
        root = math.sqrt(self.embedding_dim)
        product, distance = (a * b) * root**2, (a - b).abs() * root
        views = torch.stack([product, (a + b) * root, distance, distance.square()], 2)
        kind = views.dtype
        hidden = (views @ self.inner.to(kind).T + self.inner_bias.to(kind)).relu()
        each = hidden @ self.outer.to(kind)  # (P, D)
        return self.scale * (each @ self.share.to(kind)) / self.embedding_dim + self.bias.to(kind)
