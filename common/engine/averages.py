"""Averages of the weights: exponential over the steps, or the mean after the last epochs (SWA).

Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018,
Algorithm 1. Humpback 2019, third place: the mean of 10.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.engine import sharded
from common.engine.checkpoint import lasting, load_lasting
from common.engine.inputs import Inputs
from common.engine.optim import Average
from common.engine.settings import FitConfig


class WeightMean:
    """The mean of a module's floating-point state at several moments; what counts is copied.

    Attributes:
        count: moments so far; 0 is no mean yet.
        last: number of the last moment: none is taken twice, however often a training is resumed.
        state: the mean, by name; left out is what only training needs, see `checkpoint.lasting`.
            Empty before the first moment.
    """

    def __init__(self) -> None:
        self.count, self.last = 0, -1
        self.state: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def add(self, module: nn.Module, number: int) -> None:
        """Take the module's present state in, if `number` is beyond the last one."""
        if number <= self.last:
            return
        self.count, self.last = self.count + 1, number
        for name, value in lasting(module).items():
            if name not in self.state:
                self.state[name] = value.detach().clone()
            mine = self.state[name]
            if value.is_floating_point():
                mine.lerp_(value.to(mine.dtype), 1 / self.count)
            else:
                mine.copy_(value)


class Averages:
    """The averages that a training keeps, and which of them stands for the model.

    Args:
        trained: model and criterion as one module; `model` is what has BatchNorms.
        config: the `train:` section.
    """

    def __init__(self, trained: nn.Module, config: FitConfig) -> None:
        self.trained, self.config = trained, config
        self.moving = Average(trained, config.ema) if config.ema else None
        self.mean = WeightMean() if config.swa else None

    def step(self) -> None:
        """Tell the moving average that the optimiser has moved."""
        if self.moving is not None:
            self.moving.update(self.trained)

    def epoch(self, number: int, stage: int, epoch: int) -> None:
        """Take the weights after epoch `number`, the given one of a stage, where they belong."""
        epochs = [part.epochs for part in self.config.stages]
        if self.mean is not None and wanted(
            self.config.swa_at, self.config.swa, epochs, stage, epoch
        ):
            self.mean.add(self.trained, number)

    @contextlib.contextmanager
    def applied(self, batches: Callable[[], Iterable[Inputs]]) -> Iterator[None]:
        """The averaged weights in the model's place, if there are some: the mean before the moving.

        The mean has BatchNorm statistics of its own, from `batches`.
        """
        mean = self.mean if self.mean is not None and self.mean.count else None
        average = mean or self.moving
        if average is None:
            yield
            return
        present = {k: v.clone() for k, v in lasting(self.trained).items()}
        load_lasting(self.trained, average.state)
        model: nn.Module = self.trained.model  # type: ignore[assignment]
        if mean is not None and moving_norms(model):
            refresh_norms(model, batches())
        try:
            yield
        finally:
            load_lasting(self.trained, present)

    def tree(self, parts: sharded.Parts) -> dict[str, Any]:
        """What resuming needs; all processes call it."""
        moving = self.moving and sharded.whole(self.moving.state, parts)
        mean = self.mean and sharded.whole(self.mean.state, parts)
        found: dict[str, Any] = {"average": None, "mean": None}
        if self.moving is not None:
            found["average"] = {"n": self.moving.updates, **(moving or {})}
        if self.mean is not None:
            found["mean"] = {"n": self.mean.count, "last": self.mean.last, "state": mean or {}}
        return found

    def load(self, tree: dict[str, Any], parts: sharded.Parts, device: torch.device) -> None:
        """Go on from what `tree` gave."""

        def cut(state: dict[str, Any]) -> dict[str, Any]:
            return {k: v.to(device) for k, v in sharded.cut(state, parts).items()}

        if self.moving is not None:
            self.moving.updates = tree["average"].pop("n")
            self.moving.state = cut(tree["average"])
        if self.mean is not None:
            self.mean.count, self.mean.last = tree["mean"]["n"], tree["mean"]["last"]
            self.mean.state = cut(tree["mean"]["state"])


def moving_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms whose statistics training moves: not the frozen ones. Leaves eval mode."""
    model.train()
    found = [
        m
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    model.eval()
    return found


@torch.no_grad()
def refresh_norms(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Set the statistics of moving BatchNorms to their means over the batches; leaves eval mode.

    Those of the averaged networks are not those of the averaged network (section 3.2). Dropout is
    off. With several processes all call it, with equally many batches.

    Args:
        model: whose weights were averaged.
        batches: what `model` takes, augmented as in training.
    """
    norms = moving_norms(model)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
    for number, inputs in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (number + 1)  # so the running mean is the plain one
        model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def wanted(config_at: str, last: int, epochs: Iterable[int], stage: int, epoch: int) -> bool:
    """Whether the weights after an epoch belong to the mean of the last so many.

    Args:
        config_at: `epoch`: of every epoch; `stage`: at the end of each stage, where the rate is
            lowest.
        last: how many, 0 for none.
        epochs: of each stage.
        stage: number of the stage.
        epoch: number within it.
    """
    lengths = list(epochs)
    if config_at == "stage":
        ends = [i for i, length in enumerate(lengths) if length]
        return last > 0 and epoch + 1 == lengths[stage] and stage in ends[-last:]
    left = sum(lengths[stage:]) - epoch  # this one included
    return left <= last
