"""Parameter groups, optimisers, clipping, the learning-rate curve and the weight average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from common.engine.checkpoint import lasting
from common.losses.processes import summed

_CHUNK = 1 << 20  # elements of a row step's temporaries: they stay in the cache


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
            "rate": "lr" if old else "head_lr",  # what a log calls it
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
    """`adamw`, `adam` or `sgd` (nesterov, momentum 0.9), with row steps for sparse gradients."""
    if name == "adamw":
        return AdamW(groups)
    if name == "adam":
        return Adam(groups)
    if name == "sgd":
        return SGD(groups, momentum=0.9, nesterov=True)
    raise ValueError(f"train.optimizer={name!r}: choose adamw, adam or sgd.")


class _RowSteps(torch.optim.Optimizer):
    """Of a parameter with a sparse gradient only the rows named there move.

    The other rows, their moments and their number of steps stay bit for bit, weight decay included.
    torch's own optimisers refuse such gradients, or (SGD) move all rows by their momentum.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; returns what the closure does."""
        sparse = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_sparse:
                    grad = coalesced(p.grad)
                    sparse.append((p, grad))
                    p.grad = None  # torch's step leaves p alone
                    size = max(1, _CHUNK // p[:1].numel()) if len(p) else 1
                    rows, values = grad._indices()[0], grad._values()
                    for start in range(0, len(rows), size):
                        part = slice(start, start + size)
                        self._move(p, rows[part], values[part], group)
        result = super().step(closure)
        for p, grad in sparse:
            p.grad = grad
        return result

    def _move(self, p: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Step these rows of a parameter."""
        raise NotImplementedError


class _AdamRows(_RowSteps):
    """Row steps of Adam; each row's bias correction counts its own steps.

    With a common count the first step of a row drawn late would be three times too long.
    """

    decoupled = False  # is the weight decay outside the moments?

    def _move(self, p: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, lr, decay, (b1, b2) = (
            self.state[p],
            group["lr"],
            group["weight_decay"],
            group["betas"],
        )
        if not state:
            state["step"] = torch.zeros(len(p), device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] = state["step"].to(p.device)  # loading leaves it on the CPU
        step = state["step"][rows] + 1
        state["step"][rows] = step
        old = p[rows]
        if self.decoupled:
            old.mul_(1 - lr * decay)
        else:
            grad = grad.add(old, alpha=decay)
        first = state["exp_avg"][rows].lerp_(grad, 1 - b1)
        second = state["exp_avg_sq"][rows].mul_(b2).addcmul_(grad, grad, value=1 - b2)
        state["exp_avg"].index_copy_(0, rows, first)
        state["exp_avg_sq"].index_copy_(0, rows, second)
        # In float32, 1 - 0.999 has lost half of its digits.
        shape = (-1, *[1] * (p.ndim - 1))
        small, root = (1 - b ** step.double() for b in (b1, b2))
        length = second.sqrt_().div_(root.sqrt().to(p.dtype).view(shape)).add_(group["eps"])
        first.mul_((lr / small).to(p.dtype).view(shape))
        p.index_copy_(0, rows, old.addcdiv_(first, length, value=-1))


class Adam(_AdamRows, torch.optim.Adam):
    """torch's Adam, with row steps."""


class AdamW(_AdamRows, torch.optim.AdamW):
    """torch's AdamW, with row steps."""

    decoupled = True


class SGD(_RowSteps, torch.optim.SGD):
    """torch's SGD with Nesterov momentum, with row steps."""

    def _move(self, p: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[p], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        old = p[rows]
        grad = grad.add(old, alpha=group["weight_decay"])
        speed = state["momentum_buffer"][rows].mul_(momentum).add_(grad)
        state["momentum_buffer"].index_copy_(0, rows, speed)
        p.index_copy_(0, rows, old.sub_(grad.add_(speed, alpha=momentum), alpha=group["lr"]))


def coalesced(grad: Tensor) -> Tensor:
    """A sparse gradient with each row named once, in rising order; nothing is copied if it was so.

    Autograd forgets that a gradient of one batch already is.
    """
    rows = grad._indices()[0]
    if not grad.is_coalesced() and bool((rows[1:] > rows[:-1]).all()):
        grad = grad._coalesced_(True)
    return grad.coalesce()


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], limit: float, parts: Iterable[nn.Parameter] = ()
) -> Tensor:
    """The norm of all gradients, which are scaled down together if it is above `limit`.

    Args:
        parameters: what is trained; gradients may be sparse.
        limit: the largest norm allowed; infinity only measures.
        parts: those of which every process has its own part; all processes call it together.
    """
    split = {id(p) for p in parts}
    shared: list[Tensor] = []
    own: list[Tensor] = []
    for p in parameters:
        if p.grad is None:
            continue
        if p.grad.is_sparse:
            p.grad = coalesced(p.grad)
        (own if id(p) in split else shared).append(_values(p.grad))
    norm = torch.nn.utils.get_total_norm(shared)
    if split:
        others = torch.nn.utils.get_total_norm(own).to(norm.device)
        norm = (norm.square() + summed(others.square())).sqrt()
    if shared + own:
        torch._foreach_mul_(shared + own, (limit / (norm + 1e-6)).clamp_max(1.0))
    return norm


@torch.no_grad()
def share_overflow(parts: Iterable[nn.Parameter]) -> None:
    """Make a part's infinite gradient NaN on every process, so that all scalers skip the step."""
    for p in parts:
        if p.grad is not None:
            values = _values(p.grad)
            values.mul_(torch.where(summed((~values.isfinite()).sum()) > 0, torch.nan, 1.0))


def _values(grad: Tensor) -> Tensor:
    return grad._values() if grad.is_sparse else grad


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
