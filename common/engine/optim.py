"""Parameter groups, the learning-rate curve and the weight average."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from common.engine.checkpoint import lasting


def parameter_groups(
    model: nn.Module, criterion: nn.Module, *, lr: float, head_lr: float, weight_decay: float
) -> list[dict[str, object]]:
    """Optimiser groups: backbone, and everything new (neck, pooling, heads) at `head_lr`.

    Norms, biases and other vectors get no weight decay. A head outside the optimiser is the
    commonest silent failure of metric learning, so every trainable parameter is accounted for.

    Raises:
        ValueError: nothing is trainable.
    """
    backbone = getattr(model, "backbone", None)
    pretrained = {id(p) for p in backbone.parameters()} if backbone is not None else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for parameter in _trainable(model, criterion):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        key = (id(parameter) in pretrained, parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("Nothing to train: every parameter is frozen (model.freeze).")
    return [
        {
            "params": parameters,
            "lr": lr if old else head_lr,
            "peak": lr if old else head_lr,
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for (old, matrix), parameters in sorted(groups.items())
    ]


def check_covered(optimizer: torch.optim.Optimizer, *modules: nn.Module) -> None:
    """Raise ValueError naming the parameters of `modules` that the optimiser would never move."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [
        name
        for module in modules
        for name, p in module.named_parameters()
        if p.requires_grad and id(p) not in held
    ]
    if left:
        raise ValueError(
            f"{len(left)} parameters are not in the optimiser, the first is {left[0]}."
        )


def build_optimizer(name: str, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """`adamw`, `adam` or `sgd` (nesterov, momentum 0.9)."""
    if name == "adamw":
        return torch.optim.AdamW(groups)
    if name == "adam":
        return torch.optim.Adam(groups)
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    raise ValueError(f"train.optimizer={name!r}: choose adamw, adam or sgd.")


def lr_factor(step: int, total: int, *, warmup: float, floor: float = 0.0) -> float:
    """Share of the peak rate at `step` of `total`: linear warm-up, then half a cosine to `floor`.

    Args:
        step: number of the step about to be made, from 0.
        total: steps in all.
        warmup: share of `total` spent rising; the first step is never 0.
        floor: share of the peak that is left at the end.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = (step - rising) / max(total - rising, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


class Average:
    """Exponential moving average of a module's floating-point state; buffers that count are copied.

    Left out is what only training needs, see `checkpoint.lasting`. The decay warms up as
    min(decay, (1 + n) / (10 + n)), so short trainings do not keep the start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = {k: v.detach().clone() for k, v in lasting(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards `module`'s present state."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in lasting(module).items():
            if value.is_floating_point():
                self.state[name].lerp_(value.to(self.state[name].dtype), 1 - decay)
            else:
                self.state[name].copy_(value)


def _trainable(*modules: nn.Module) -> Iterator[nn.Parameter]:
    for module in modules:
        yield from (p for p in module.parameters() if p.requires_grad)
