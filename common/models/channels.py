"""More input channels than red, green and blue: a mask beside the picture (Humpback 2019, 1st)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.lazy import Lazy

timm = Lazy("timm")


def first_conv(backbone: nn.Module) -> nn.Conv2d:
    """The convolution that sees the pixels.

    Raises:
        ValueError: timm does not name one, or it is no plain convolution of three channels.
    """
    config: Any = backbone.pretrained_cfg
    name = config.get("first_conv")
    found = backbone.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(found, nn.Conv2d) or found.groups != 1 or found.in_channels != 3:
        raise ValueError(
            f"model.in_chans: {config.get('architecture')} does not begin with one convolution of "
            "three channels; take another backbone."
        )
    return found


def widen(backbone: nn.Module, channels: int, extra: torch.Tensor | None = None) -> None:
    """Let the net see `channels` channels; the weights of the first three stay as they are.

    Args:
        backbone: a timm net for three channels; it is changed in place.
        channels: 3 leaves it as it is.
        extra: `(out, E, H, W)` weights of further channels, as `split` found them; without them a
            new channel has no weight yet, so the net starts as the one of three channels.
    """
    if channels == 3:
        return
    conv = first_conv(backbone)
    weight = conv.weight.detach()
    more = weight.new_zeros(weight.shape[0], channels - 3, *weight.shape[2:])
    if extra is not None:
        known = min(extra.shape[1], channels - 3)
        more[:, :known] = extra[:, :known].to(more.dtype)
    conv.weight = nn.Parameter(torch.cat([weight, more], 1))
    conv.in_channels = channels


def split(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """Take the weights of channels beyond three out of a net's state; None if it has none."""
    key = f"{timm.get_pretrained_cfg(name).first_conv}.weight"
    weight = state.get(key)
    if weight is None or weight.ndim != 4 or weight.shape[1] <= 3:
        return None
    state[key] = weight[:, :3].contiguous()
    return weight[:, 3:]
