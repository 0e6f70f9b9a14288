"""Feature maps of the wanted stages of any timm net, and which of its parameters train."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.lazy import Lazy

timm = Lazy("timm")


class Stages:
    """The maps of the wanted stages of a timm net, `(B, C, H, W)` each, and its class token.

    The last stage is what `forward_features` gives: after a head convolution (EfficientNet: 1280
    channels) or the final norm (ViT, Swin). Others are timm's `feature_info` entries.
    """

    def __init__(self, backbone: nn.Module, stages: Sequence[int]) -> None:
        if not hasattr(backbone, "forward_intermediates"):
            raise ValueError(
                f"{type(backbone).__name__} gives no feature maps in timm {timm.__version__}: "
                "choose another model.backbone, or install a newer timm."
            )
        count = len(backbone.feature_info)  # type: ignore[arg-type]
        self.stages = sorted({stage % count for stage in stages})
        wrong = [stage for stage in stages if not -count <= stage < count]
        if wrong or not stages or len(self.stages) != len(stages):
            raise ValueError(
                f"model.stages={list(stages)}: choose different numbers from {-count} to "
                f"{count - 1}; the backbone has {count} stages."
            )
        self.complete = self.stages[-1] == count - 1
        if not self.complete:
            backbone.prune_intermediate_layers(self.stages)  # type: ignore[operator]
        self.norm = True
        self.token_dim = 0

    def probe(self, backbone: nn.Module, side: int, channels: int = 3) -> list[int]:
        """Channels of each map; parameters that no map depends on get `requires_grad` False.

        Runs on the meta device, so it computes nothing. Unused parameters (a norm that only the
        classifier saw) would stop DistributedDataParallel.
        """
        shadow = copy.deepcopy(backbone).to("meta").eval()
        images = torch.empty(1, channels, side, side, device="meta")
        try:
            maps, token = self(shadow, images)
        except (AssertionError, RuntimeError):
            # A few nets (Hiera; in timm 1.0.26 a Swin without its last stages) cannot normalise.
            self.norm = False
            maps, token = self(shadow, images)
        outputs = [m.sum() for m in maps]
        if token is not None:
            self.token_dim = token.shape[1]
            outputs.append(token.sum())
        names = [name for name, p in shadow.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(
            outputs, [shadow.get_parameter(name) for name in names], allow_unused=True
        )
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is None:
                backbone.get_parameter(name).requires_grad_(False)
        return [m.shape[1] for m in maps]

    def __call__(
        self, backbone: nn.Module, images: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Maps in the order of the net, and the `(B, D)` class token where there is one."""
        found = backbone.forward_intermediates(  # type: ignore[operator]
            images,
            indices=self.stages,
            norm=self.norm,
            output_fmt="NCHW",
            intermediates_only=not self.complete,
        )
        if not self.complete:
            return found, None
        final, maps = found
        if not isinstance(final, torch.Tensor):
            return maps, None
        if final.ndim == 4 and final.shape[1] == backbone.num_features:
            maps[-1] = final
        prefixes = getattr(backbone, "num_prefix_tokens", 0)
        return maps, final[:, 0] if final.ndim == 3 and prefixes else None


def freeze(backbone: nn.Module, setting: str) -> None:
    """Switch off gradients: `all`, `bn`, `stem`, a number of stages, or several joined by `+`."""
    matcher = backbone.group_matcher(coarse=True)  # type: ignore[operator]
    groups = timm.models.group_parameters(backbone, matcher, reverse=True)
    for word in setting.split("+"):
        depth = int(word) if word.isdigit() else {"stem": 0, "all": max(groups.values())}.get(word)
        if word == "bn":
            for module in backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.requires_grad_(False)
        elif depth is not None and depth <= max(groups.values()):
            for name, parameter in backbone.named_parameters():
                if groups[name] <= depth:
                    parameter.requires_grad_(False)
        elif word != "none":
            raise ValueError(
                f"model.freeze={setting!r}: choose none, all, bn, stem or a number up to "
                f"{max(groups.values())}, several joined by +."
            )
