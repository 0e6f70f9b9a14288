"""DOLG: a global vector plus what the local features hold that the global vector does not.

Yang et al., "DOLG: Single-stage image retrieval with deep orthogonal fusion of local and global
features", ICCV 2021 (arXiv 2108.02927), section 3; sizes as in the 2021 landmark winners' nets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def orthogonal(local: torch.Tensor, vector: torch.Tensor, *, eps: float = 1e-12) -> torch.Tensor:
    """The part of `local` that is orthogonal to `vector`, shaped like `local`, float32 or wider.

    The projection is `(f . g) / |g|^2 * g`. Dividing by `|g|`, as widely copied code does, leaves
    a part along `g`. A zero vector has no direction: `local` comes back as it is.

    Args:
        local: `(B, C)` or `(B, C, H, W)`.
        vector: `(B, C)`.
        eps: smallest squared length that counts as a direction.
    """
    if local.dtype != torch.float64:
        local, vector = local.float(), vector.float()
    vector = vector.reshape(*vector.shape, *[1] * (local.ndim - 2))
    along = (local * vector).sum(1, keepdim=True)
    return local - along / vector.square().sum(1, keepdim=True).clamp(min=eps) * vector


class LocalBranch(nn.Module):
    """Multi-atrous convolutions, then attention: `(B, C, H, W) -> (B, dim, H, W)`.

    Args:
        channels: C of the middle stage.
        dim: channels of the result.
        dilations: of the 3 x 3 convolutions; 6, 12, 18 for large inputs, 3, 6, 9 for small ones.
    """

    def __init__(self, channels: int, dim: int, *, dilations: Sequence[int] = (6, 12, 18)) -> None:
        super().__init__()
        part = max(dim // 2, 1)
        self.atrous = nn.ModuleList(
            nn.Conv2d(channels, part, 3, padding=rate, dilation=rate) for rate in dilations
        )
        self.context = nn.Conv2d(channels, part, 1)  # of the mean over the whole image
        self.mix = nn.Conv2d(part * (len(dilations) + 1), dim, 1)
        self.project = nn.Conv2d(dim, dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.attention = nn.Conv2d(dim, 1, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Unit local features, each times its positive attention, `(B, dim, H, W)`."""
        context = F.relu(self.context(maps.mean((2, 3), keepdim=True))).expand(
            -1, -1, *maps.shape[2:]
        )
        mixed = F.relu(self.mix(torch.cat([*(conv(maps) for conv in self.atrous), context], 1)))
        features = self.norm(self.project(mixed))
        attention = F.softplus(self.attention(F.relu(features)).float())
        return F.normalize(features.float(), dim=1, eps=1e-6) * attention


class DOLG(nn.Module):
    """Orthogonal fusion of a middle and a last stage: two maps -> `(B, 2 * dim)`.

    Args:
        middle: channels of the middle stage's map.
        last: length of the pooled last stage.
        pool: pools the last map to `(B, last)`.
        dim: channels of the fused features; the result is twice as long.
        dilations: of the local branch.
    """

    def __init__(
        self,
        middle: int,
        last: int,
        pool: nn.Module,
        *,
        dim: int = 1024,
        dilations: Sequence[int] = (6, 12, 18),
    ) -> None:
        super().__init__()
        self.local = LocalBranch(middle, dim, dilations=dilations)
        self.pool = pool
        self.project = nn.Linear(last, dim)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Orthogonal local part and global vector, `(B, 2 * dim)` float32.

        The projection is linear and does not depend on the position, so the mean of the orthogonal
        map is the orthogonal part of the mean: no fused map is made.
        """
        middle, last = maps
        vector = self.project(self.pool(last)).float()
        local = self.local(middle).mean((2, 3))
        return torch.cat([orthogonal(local, vector), vector], dim=1)
