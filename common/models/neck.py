"""What follows the pooling of every encoder: the neck, and parts that stay as they were."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from common.config import suggestion

NECKS = ("none", "bn", "fc_bn", "fc_bn_prelu", "fc_swish")


def build_neck(kind: str, pooled: int, dim: int) -> tuple[nn.Module, int]:
    """The neck from `(B, pooled)` to the embedding, and the length of that.

    Args:
        kind: one of `NECKS`; without an fc the pooled length stays.
        pooled: length of what it gets.
        dim: length of what an fc gives.

    Raises:
        ValueError: no such neck.
    """
    choose("model.neck", kind, NECKS)
    if kind == "none":
        return nn.Identity(), pooled
    if kind == "bn":
        norm = nn.BatchNorm1d(pooled)
        # A shift would move the origin that cosines are taken from (whale 2019, 1st and 2nd).
        norm.bias.requires_grad_(False)
        return norm, pooled
    linear = nn.Linear(pooled, dim, bias=kind in ("fc_bn_prelu", "fc_swish"))
    # Orthonormal rows keep distances nearly: a fresh neck does not spoil good features.
    nn.init.orthogonal_(linear.weight)
    if kind == "fc_swish":  # landmark recognition 2020, 3rd
        return nn.Sequential(linear, nn.SiLU()), dim
    parts: list[nn.Module] = [linear, nn.BatchNorm1d(dim)]
    if kind == "fc_bn_prelu":  # "option D" of landmark recognition 2020, 1st
        parts.append(nn.PReLU())
    return nn.Sequential(*parts), dim


def neck_output(neck: nn.Module, dropout: nn.Module, pooled: torch.Tensor) -> torch.Tensor:
    """Embeddings `(B, D)` of pooled vectors, in float32 whatever the autocast."""
    with torch.autocast(pooled.device.type, enabled=False):
        vectors: torch.Tensor = neck(dropout(pooled.float()))
    return vectors


def keep_frozen(backbone: nn.Module) -> None:
    """Eval mode for every part that does not train: it stays as it is used at inference."""
    for module in backbone.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def choose(key: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError for the value of a key, such as `model.neck`, that does not exist."""
    if value not in known:
        near = suggestion(value, known) or "."
        raise ValueError(f"{key}={value!r}{near} Known: {', '.join(known)}")
