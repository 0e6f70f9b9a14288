"""The slowly moving copy of the model whose embeddings are the keys of `momentum_queue`.

He et al. (MoCo), CVPR 2020, section 3.2: after each optimiser step key = m * key + (1 - m) * query.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class MomentumCopy(nn.Module):
    """A copy of the model that follows its weights and batch statistics, and never learns itself.

    It stays in eval mode: BatchNorm uses running statistics, which follow the model's like the
    weights (EMAN, Cai et al., CVPR 2021). So a key depends on its image alone: batch statistics
    would tell rows of a batch by what they share, against which MoCo shuffles batches between GPUs,
    and several processes get the keys that one would. Nothing of it is needed to infer.

    Args:
        model: what is copied, as it is now.
        momentum: share of the copy that stays at each `update`.
    """

    training_only = True

    def __init__(self, model: nn.Module, momentum: float) -> None:
        super().__init__()
        self.model, self.momentum = copy.deepcopy(model).requires_grad_(False), momentum
        self.eval()

    def train(self, mode: bool = True) -> MomentumCopy:
        """Eval mode, whatever is asked for."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> torch.Tensor:
        """Keys `(B, D)` of a batch of what the model takes; no gradient."""
        keys: torch.Tensor = self.model(*inputs)
        return keys

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move a step towards the model; what counts, such as batches seen, is copied."""
        mine, theirs = self.model.state_dict(), model.state_dict()
        moving = [name for name, value in mine.items() if value.is_floating_point()]
        pairs: tuple[list[Any], list[Any]] = (
            [mine[name] for name in moving],
            [theirs[name] for name in moving],
        )
        torch._foreach_lerp_(*pairs, 1 - self.momentum)
        for name in mine.keys() - set(moving):
            mine[name].copy_(theirs[name])
