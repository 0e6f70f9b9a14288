"""Heads of which each process holds a part: no matter of DDP's, and whole in every file.

All functions that say so are called by all processes at the same time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.losses.partial_fc import PartialFC

Parts = dict[str, PartialFC]  # by the name of the weight


def parts(module: nn.Module) -> Parts:
    """The weights in `module` of which this process has a part; empty for a single process.

    DDP is told to leave them alone when it wraps `module`.
    """
    found = {
        f"{name}.head.weight".removeprefix("."): part
        for name, part in module.named_modules()
        if isinstance(part, PartialFC) and part.shard.world > 1
    }
    if found:
        names = list(found)
        ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(module, names)  # type: ignore[no-untyped-call]
    return found


def weights(found: Parts) -> list[nn.Parameter]:
    """The weights themselves."""
    return [part.head.weight for part in found.values()]


def whole(state: dict[str, Any], found: Parts) -> dict[str, Any]:
    """A state dict with whole weights, on the first process; all processes call it.

    Names may lack a leading part of those in `found`: a criterion's own state dict.
    """
    return {name: _whole(value, _part(name, found)) for name, value in state.items()}


def cut(state: dict[str, Any], found: Parts) -> dict[str, Any]:
    """A state dict of whole weights with this process's parts."""
    return {
        name: value if (part := _part(name, found)) is None else part.cut(value)
        for name, value in state.items()
    }


def whole_optimizer(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, found: Parts
) -> dict[str, Any]:
    """An optimiser's state dict for whole weights, on the first process; all processes call it."""
    owners = _owners(optimizer, found)
    moments = {
        i: {name: _whole(value, owners.get(i)) for name, value in sorted(of.items())}
        for i, of in sorted(state["state"].items())
    }
    return {**state, "state": moments}


def cut_optimizer(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, found: Parts
) -> dict[str, Any]:
    """An optimiser's state dict with the moments of this process's parts."""
    owners = _owners(optimizer, found)
    moments = {
        i: {name: owners[i].cut(v) if i in owners and v.ndim else v for name, v in of.items()}
        for i, of in state["state"].items()
    }
    return {**state, "state": moments}


def _whole(value: Any, part: PartialFC | None) -> Any:
    if part is None or not isinstance(value, torch.Tensor) or not value.ndim:
        return value
    device = part.head.weight.device
    return part.whole(value.to(device), per=part.head.k, everywhere=False)


def _part(name: str, found: Parts) -> PartialFC | None:
    return next((part for of, part in found.items() if f".{of}".endswith(f".{name}")), None)


def _owners(optimizer: torch.optim.Optimizer, found: Parts) -> dict[int, PartialFC]:
    """Whose weight each of the optimiser's parameters is, by its number in the state dict."""
    owner = {id(part.head.weight): part for part in found.values()}
    every = [p for group in optimizer.param_groups for p in group["params"]]
    return {i: owner[id(p)] for i, p in enumerate(every) if id(p) in owner}
