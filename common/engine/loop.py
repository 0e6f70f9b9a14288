"""What `fit` repeats: one epoch of steps, and the state that lets it go on after a kill."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.engine import distributed, sharded
from common.engine.averages import Averages
from common.engine.checkpoint import lasting, load_tree, save_tree, save_weights
from common.engine.inputs import Inputs, inputs_from, moved
from common.engine.interrupt import Interrupt
from common.engine.optim import (
    build_optimizer,
    check_covered,
    clip_gradients,
    lr_factor,
    parameter_groups,
    set_lr,
    share_overflow,
)
from common.engine.settings import FitConfig, Stage, resolve_precision, this_device
from common.engine.tally import Tally, memory
from common.engine.trained import Trained

Metrics = dict[str, float]


@dataclass
class Progress:
    """Where a training is: everything in the state file but its tensors."""

    stage: int = 0
    epoch: int = 0  # within the stage
    batch: int = 0  # batches of this epoch that are done
    step: int = 0  # optimiser steps made
    minutes: float = 0.0
    best: float = float("-inf")


class Loop:
    """Model, criterion, optimiser and averages on their device, and where the training is."""

    def __init__(
        self, model: nn.Module, criterion: nn.Module, config: FitConfig, folder: Path, seed: int
    ) -> None:
        self.config, self.folder, self.seed = config, folder, seed
        self.device = this_device()
        word = resolve_precision(config.precision, self.device)
        # Accelerate keeps one global precision; a second training in a notebook may want another.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no" if word == "fp32" else word,
            # Every buffer is kept equal by what changes it: BatchNorm counts over all processes,
            # losses gather. To send a memory of rows around at each step would cost more than both.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.model, self.criterion = model, criterion
        self.trained = Trained(model, criterion).to(self.device)
        if distributed.joined():
            distributed.synchronise_batchnorm(self.trained, self.device)
        groups = parameter_groups(
            model, criterion, lr=config.lr, head_lr=config.head_lr, weight_decay=config.weight_decay
        )
        self.rates = {f"train/{group['rate']}": cast(float, group["peak"]) for group in groups}
        optimizer = build_optimizer(config.optimizer, groups)
        check_covered(optimizer, self.trained)
        self.averages = Averages(self.trained, config)
        self.progress = Progress()
        self.interrupt = Interrupt()
        self.sampler: Any = None
        self.restored: dict[str, Any] | None = None  # the sampler's state, until it is there
        self.tally = Tally(self.device)
        self.parts = sharded.parts(self.trained)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.trained, optimizer)

    def epoch(self, data: DataLoader[Any], stage: Stage, before: int, total: int) -> Metrics:
        """Train over what is left of the epoch; returns its training metrics."""
        config, progress = self.config, self.progress
        number = before + progress.epoch
        self._start_sampler(data, number)
        length = len(data)
        started = saved = time.monotonic()
        minutes = progress.minutes
        if not progress.batch:
            self.tally = Tally(self.device)
        elif progress.batch == length:  # killed behind the last batch: it is logged again
            self._schedule((number + (length - 1) / length) / total)
        shown = unreadable = 0
        self.trained.train()
        for batch in self._bar(data, number, total, length):
            set_lr(self.optimizer.optimizer, self._factor(stage, progress.batch, length))
            self._schedule((number + progress.batch / length) / total)
            set_seed(self.seed + 10**6 * number + progress.batch + 7919 * distributed.rank())
            rest = length - progress.batch // config.accumulate * config.accumulate
            progress.batch += 1
            last = progress.batch == length
            move = last or progress.batch % config.accumulate == 0
            self._backward(batch, move, of=min(rest, config.accumulate))
            shown += len(batch["label"]) * distributed.world()
            unreadable += int((~batch["ok"]).sum()) if "ok" in batch else 0
            if move:
                self.tally.norms.append(self._move())
            late = time.monotonic() - saved > 60 * config.save_minutes
            late, stop = self.agreed(late, self.interrupt.wanted)
            save = move and (stop or (late and not last))
            # Reading the loss waits for the GPU: now and then is enough, and before it is saved.
            if (last or save or progress.batch % 50 == 0) and not self.tally.finite():
                raise ValueError(
                    f"The loss is not finite by step {progress.step}: lower train.lr or "
                    "train.head_lr, raise train.warmup, or set train.precision=fp32."
                )
            if save:
                saved = time.monotonic()
                progress.minutes = minutes + (saved - started) / 60
                self.save()
            if save and stop:
                raise KeyboardInterrupt(f"stopped after step {progress.step}; the state is saved")
        seconds = time.monotonic() - started
        progress.minutes = minutes + seconds / 60
        factor = self._factor(stage, length - 1, length)
        metrics = {
            **(self.criterion.statistics() if hasattr(self.criterion, "statistics") else {}),  # type: ignore[operator]
            **self.tally.metrics(),  # of the epoch where `statistics` has the last batch
            **{name: peak * factor for name, peak in self.rates.items()},
            "train/minutes": progress.minutes,
        }
        if shown:
            metrics["train/images_per_second"] = shown / seconds
        if lost := int(distributed.summed(torch.tensor(unreadable, device=self.device))):
            metrics["train/unreadable"] = lost
        return metrics | memory(self.device)

    def _schedule(self, progress: float) -> None:
        """Tell the criterion how much of the training is done, 0 to 1."""
        if hasattr(self.criterion, "schedule"):
            self.criterion.schedule(progress)  # type: ignore[operator]

    def _start_sampler(self, data: DataLoader[Any], number: int) -> None:
        """Tell the sampler where the training is; one with a state first gets what was saved."""
        self.sampler = sampler = cast(Any, data.batch_sampler)
        # At the start of a stage the saved state is that of another sampler.
        if self.restored and (self.progress.epoch or self.progress.batch):
            sampler.load_state_dict(self.restored)
        self.restored = None
        sampler.set_epoch(number, self.progress.batch)

    def agreed(self, *flags: bool) -> tuple[bool, ...]:
        """The flags, set where any process sets them: to save a shared head, all have to."""
        if not self.parts:
            return flags
        count = distributed.summed(torch.tensor(flags, dtype=torch.float32, device=self.device))
        return tuple(bool(n) for n in count)

    def _factor(self, stage: Stage, batch: int, length: int) -> float:
        """Share of the peak rates at a batch of the present epoch, which has `length`."""
        config = self.config
        per_epoch = math.ceil(length / config.accumulate)
        place = self.progress.epoch * per_epoch + batch // config.accumulate
        share = lr_factor(
            place, per_epoch * stage.epochs, warmup=config.warmup, floor=config.min_lr
        )
        return share * stage.lr

    def _backward(self, batch: dict[str, Any], move: bool, *, of: int) -> None:
        """Add the batch's share, 1 / `of`, of the step's gradient, and what it says to the tally.

        The loss is the mean over all processes' valid labels.
        """
        inputs = inputs_from(self.model, batch, self.device)
        labels = moved(batch["label"], self.device)
        shares = self._shares(labels) if distributed.joined() else None
        second = None
        if getattr(self.criterion, "second_view", False):
            if "second" not in batch:
                raise ValueError(
                    "momentum_queue with view: second needs a second view in each batch: "
                    "ImageDataset(second=True), or view: same, which is all that titles have."
                )
            second = inputs_from(self.model, {**batch, "image": batch["second"]}, self.device)
        with contextlib.nullcontext() if move else self.accelerator.no_sync(self.wrapped):
            loss = self.wrapped(inputs, labels, shares, second)
            self.accelerator.backward(loss / of)
        watched = self.criterion.watch() if hasattr(self.criterion, "watch") else {}  # type: ignore[operator]
        self.tally.add(loss.detach(), watched)

    def _shares(self, labels: torch.Tensor) -> torch.Tensor:
        """Factors that turn DDP's plain mean over processes into the mean over all samples."""
        masses: torch.Tensor = self.criterion.masses(labels)  # type: ignore[operator]
        everywhere = distributed.summed(masses).clamp_min(torch.finfo(masses.dtype).tiny)
        return masses * distributed.world() / everywhere

    def _move(self) -> torch.Tensor:
        """One step of the optimiser; returns the gradient norm before clipping."""
        limit = self.config.clip or float("inf")
        parts = sharded.weights(self.parts)
        if self.accelerator.scaler is not None:
            share_overflow(parts)
        self.accelerator.unscale_gradients()
        norm = clip_gradients(self.trained.parameters(), limit, parts)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        if self.trained.copy is not None:
            self.trained.copy.update(self.model)
        self.averages.step()
        return norm

    def _bar(self, data: DataLoader[Any], number: int, total: int, length: int) -> Iterator[Any]:
        disable = None if distributed.rank() == 0 else True
        bar = tqdm(
            data,
            f"epoch {number + 1}/{total}",
            total=length,
            initial=self.progress.batch,
            disable=disable,
            leave=False,
        )
        return iter(bar)

    def again(self, data: DataLoader[Any], number: int) -> Iterator[Inputs]:
        """The model's inputs of an epoch once more, under the precision of training."""
        self.sampler.set_epoch(number - 1, 0)
        with self.accelerator.autocast():
            for batch in data:
                yield inputs_from(self.model, batch, self.device)

    def keep(self, card: dict[str, Any], extra: dict[str, Any]) -> None:
        """Write the model and criterion as they are now for infer to read."""
        criterion = sharded.whole(lasting(self.criterion), self.parts)
        if distributed.rank() == 0:
            tree = {"model": self.model.state_dict(), "criterion": criterion}
            save_weights(self.folder, {**tree, **extra}, {**card, "step": self.progress.step})

    def save(self) -> None:
        """Write everything that resuming needs."""
        inner = self.optimizer.optimizer
        moments = sharded.whole_optimizer(self.optimizer.state_dict(), inner, self.parts)
        trained = sharded.whole(self.trained.state_dict(), self.parts)
        averages, tally = self.averages.tree(self.parts), self.tally.state()
        if distributed.rank() == 0:
            scaler = self.accelerator.scaler
            tree = {
                "progress": asdict(self.progress),
                "tally": tally,
                "trained": trained,
                "optimizer": moments,
                **averages,
                "scaler": scaler and scaler.state_dict(),
                "sampler": self.sampler.state_dict() if hasattr(self.sampler, "state_dict") else {},
            }
            save_tree(self.folder / "state" / "last.safetensors", tree)

    def restore(self) -> bool:
        """Go on from the saved state, if there is one."""
        file = self.folder / "state" / "last.safetensors"
        if not file.is_file():
            return False
        tree = load_tree(file)
        for name, value in tree["progress"].items():
            setattr(self.progress, name, value)
        self.tally = Tally(self.device, tree.get("tally"))
        self.trained.load_state_dict(tree["trained"])
        inner = self.optimizer.optimizer
        self.optimizer.load_state_dict(sharded.cut_optimizer(tree["optimizer"], inner, self.parts))
        self.averages.load(tree, self.parts, self.device)
        self.restored = tree.get("sampler")
        if self.accelerator.scaler is not None and tree["scaler"]:
            self.accelerator.scaler.load_state_dict(tree["scaler"])
        return True
