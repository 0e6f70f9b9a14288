"""From a feature map to a vector: average, maximum, GeM, R-MAC, SPoC, and several side by side.

Every pooling is a function `(B, C, H, W) -> (B, C)` and a module of the same meaning. The result
is float32 under any autocast (float64 stays float64); none of them normalises its output.
`gemp` and `rgem`, and a raised `floor`, are those of SuperGlobal (Shao et al., ICCV 2023); its
maximum over scales is `view.merge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, floor

import torch
import torch.nn.functional as F
from torch import nn

from common.config import suggestion

POOLINGS = ("avg", "max", "gem", "gemp", "rgem", "rmac", "spoc")
GEM_PLUS = 4.6  # SuperGlobal's exponent, tuned on Oxford and Paris without training


def avg_pool(maps: torch.Tensor) -> torch.Tensor:
    """Mean over the positions, `(B, C)`."""
    return _wide(maps).mean((2, 3))


def max_pool(maps: torch.Tensor) -> torch.Tensor:
    """Maximum over the positions, `(B, C)` (MAC; Tolias et al., arXiv 1511.05879, section 3.1)."""
    return _wide(maps).amax((2, 3))


def gem(maps: torch.Tensor, p: float | torch.Tensor = 3.0, *, eps: float = 1e-6) -> torch.Tensor:
    """Generalised mean over the positions, `(B, C)`: p = 1 is the average, p -> inf the maximum.

    Activations below `eps`, negative ones too, count as `eps`. Radenovic et al., "Fine-tuning CNN
    image retrieval with no human annotation", TPAMI 2019, equation 3.
    """
    maps = _wide(maps).clamp(min=eps)
    # The mean is homogeneous, so dividing by a detached peak changes neither value nor gradient,
    # and a large p cannot overflow, nor an empty map underflow to 0 ** (1 / p).
    peak = maps.detach().amax((2, 3), keepdim=True)
    return (maps / peak).pow(p).mean((2, 3)).pow(1.0 / p) * peak[..., 0, 0]


def regional(
    maps: torch.Tensor, p: float = 2.5, *, size: int = 5, eps: float = 1e-6
) -> torch.Tensor:
    """Half the maps, half their generalised mean over windows around each position, `(B, C, H, W)`.

    Activations below `eps` count as `eps` in the windows. The border is mirrored, more than once
    where a map is smaller than half a window, which is our rule: the authors' padding refuses it.
    Shao et al., "Global features are all you need for image retrieval and reranking", ICCV 2023,
    Regional-GeM: p 2.5, windows of 5 x 5 with stride 1.
    """
    maps = _wide(maps)
    padded = maps[:, :, _mirrored(maps.shape[2], size // 2)][
        ..., _mirrored(maps.shape[3], size // 2)
    ]
    padded = padded.clamp(min=eps)
    peak = padded.detach().amax((2, 3), keepdim=True)  # as in gem
    powers = F.avg_pool2d((padded / peak).pow(p), size, stride=1)
    # Far below the peak a power is 0 in float32, and there 1 / p has an infinite slope.
    powers = powers.clamp(min=torch.finfo(maps.dtype).tiny)
    return 0.5 * maps + 0.5 * powers.pow(1.0 / p) * peak


def spoc(maps: torch.Tensor) -> torch.Tensor:
    """Mean weighted by a centred Gaussian, `(B, C)`: the object is in the middle.

    Sigma is a third of the distance from the centre to the nearest border. Babenko and Lempitsky,
    "Aggregating deep convolutional features for image retrieval", ICCV 2015 (centre prior).
    """
    maps = _wide(maps)
    height, width = maps.shape[2:]
    sigma = min(height, width) / 6
    y = torch.arange(height, dtype=maps.dtype, device=maps.device) - (height - 1) / 2
    x = torch.arange(width, dtype=maps.dtype, device=maps.device) - (width - 1) / 2
    weight = torch.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * sigma**2))
    return (maps * (weight / weight.sum())).sum((2, 3))


def rmac(maps: torch.Tensor, *, levels: int = 3) -> torch.Tensor:
    """Sum of the unit maxima of square regions at several scales, `(B, C)`.

    Tolias et al., "Particular object retrieval with integral max-pooling of CNN activations",
    ICLR 2016, section 3.2, without the PCA between the two normalisations.
    """
    maps = _wide(maps)
    total = maps.new_zeros(maps.shape[:2])
    for top, left, size in regions(maps.shape[2], maps.shape[3], levels):
        peak = maps[:, :, top : top + size, left : left + size].amax((2, 3))
        # A dead region would have a gradient of 1 / eps: not smaller than this.
        total = total + F.normalize(peak, dim=1, eps=1e-6)
    return total


@lru_cache(maxsize=64)
def regions(height: int, width: int, levels: int) -> tuple[tuple[int, int, int], ...]:
    """R-MAC's squares `(top, left, size)` on a map of that many rows and columns.

    Level l has l squares of side `2 min(H, W) / (l + 1)` along the short side. Along the long side
    there are as many more as bring the overlap of level 1 nearest to 40 %.
    """
    short, long = min(height, width), max(height, width)
    more = 0
    if long > short:
        steps = (long - short) / (0.6 * short)
        choices = (max(1, floor(steps)), max(1, ceil(steps)))
        more = min(choices, key=lambda n: abs(0.4 - (1 - (long - short) / (n * short))))
    found = []
    for level in range(1, levels + 1):
        size = max(1, 2 * short // (level + 1))
        rows = level + (more if height > width else 0)
        columns = level + (more if width > height else 0)
        for top in _starts(height, size, rows):
            found += [(top, left, size) for left in _starts(width, size, columns)]
    return tuple(found)


class AvgPool(nn.Module):
    """`avg_pool` as a module: `(B, C, H, W) -> (B, C)`."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pooled vectors, `(B, C)`."""
        return avg_pool(maps)


class MaxPool(nn.Module):
    """`max_pool` as a module: `(B, C, H, W) -> (B, C)`."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pooled vectors, `(B, C)`."""
        return max_pool(maps)


class GeM(nn.Module):
    """`gem` as a module with a fixed or a trained exponent: `(B, C, H, W) -> (B, C)`.

    Args:
        p: the exponent, its starting value when it is trained; at least 1.
        trainable: `p` becomes a parameter of shape `(1,)`; it counts as 1 when it falls below.
        eps: smallest activation.
    """

    p: nn.Parameter | float

    def __init__(self, p: float = 3.0, *, trainable: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        if p < 1:
            raise ValueError(f"gem_p={p} is below 1, which is average pooling: use 1 or more.")
        self.p = nn.Parameter(torch.tensor([float(p)])) if trainable else float(p)
        self.eps = eps

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pooled vectors, `(B, C)`."""
        p = self.p if isinstance(self.p, float) else self.p.clamp(min=1)
        return gem(maps, p, eps=self.eps)


class RegionalGeM(GeM):
    """`regional`, then `gem`, as a module: `(B, C, H, W) -> (B, C)`; arguments as in `GeM`."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pooled vectors, `(B, C)`."""
        return super().forward(regional(maps, eps=self.eps))


class RMAC(nn.Module):
    """`rmac` as a module: `(B, C, H, W) -> (B, C)`."""

    def __init__(self, *, levels: int = 3) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pooled vectors, `(B, C)`."""
        return rmac(maps, levels=self.levels)


class SPoC(nn.Module):
    """`spoc` as a module: `(B, C, H, W) -> (B, C)`."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pooled vectors, `(B, C)`."""
        return spoc(maps)


class ConcatPool(nn.Module):
    """Several poolings of one map side by side: `(B, C, H, W) -> (B, C * len(parts))`.

    Args:
        parts: the poolings.
        floor: activations below it count as it in all of them; None leaves the maps alone.
    """

    def __init__(self, parts: Sequence[nn.Module], *, floor: float | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.floor = floor

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pooled vectors, `(B, C * len(parts))`, in the order of the parts."""
        if self.floor is not None:
            maps = maps.clamp(min=self.floor)
        return torch.cat([part(maps) for part in self.parts], dim=1)


def build_pooling(
    name: str, *, gem_p: float = 3.0, gem_trainable: bool = False, floor: float | None = None
) -> ConcatPool:
    """The pooling of a config word: one of `POOLINGS`, or several joined by `+` as in `gem+max`.

    `gemp` is `gem` with an exponent of 4.6, whatever `gem_p`; `rgem` takes `gem_p` as `gem` does.

    Raises:
        ValueError: unknown word; lists the known ones.
    """
    parts: list[nn.Module] = []
    for word in name.split("+"):
        if word in ("gem", "rgem"):
            kind = GeM if word == "gem" else RegionalGeM
            parts.append(kind(gem_p, trainable=gem_trainable))
        elif word == "gemp":
            parts.append(GeM(GEM_PLUS))
        elif word in POOLINGS:
            plain = {"avg": AvgPool, "max": MaxPool, "rmac": RMAC, "spoc": SPoC}
            parts.append(plain[word]())
        else:
            near = suggestion(word, POOLINGS) or "."
            raise ValueError(f"No pooling {word!r}{near} Known: {', '.join(POOLINGS)}, a+b.")
    return ConcatPool(parts, floor=floor)


def _wide(maps: torch.Tensor) -> torch.Tensor:
    return maps if maps.dtype == torch.float64 else maps.float()


def _mirrored(length: int, pad: int) -> list[int]:
    """Rows `-pad ... length + pad - 1` of a side, mirrored at both ends as often as it takes."""
    period = max(1, 2 * (length - 1))
    folded = [i % period for i in range(-pad, length + pad)]
    return [min(i, period - i) if length > 1 else 0 for i in folded]


def _starts(length: int, size: int, count: int) -> list[int]:
    if count == 1:
        return [(length - size) // 2]
    return [i * (length - size) // (count - 1) for i in range(count)]
