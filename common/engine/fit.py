"""Training, for one process or several (`torchrun --nproc-per-node N`).

Data order and augmentation depend on (seed, epoch, position) only, dropout on the step number, and
the state is one atomic file. So a killed training goes on where it was and ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from common.engine import distributed
from common.engine.interrupt import Interrupt
from common.engine.loop import Loop, Metrics, Progress
from common.engine.settings import FitConfig, Stage


def fit(
    model: nn.Module,
    criterion: nn.Module,
    config: FitConfig,
    folder: Path,
    *,
    loader: Callable[[Stage], DataLoader[Any]],
    validate: Callable[[nn.Module, Stage], Metrics],
    log: Callable[[int, Metrics], None],
    resumed: Callable[[int], None] = lambda step: None,
    monitor: str = "valid/score",
    card: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    seed: int = 0,
) -> Progress:
    """Train; leaves `weights.safetensors`, `card.json` and `state/` in `folder`.

    Args:
        model: maps its `inputs` (uint8 images, tokens of titles) to embeddings; `backbone` is its
            pretrained part.
        criterion: maps (embeddings, labels) to a scalar; may hold parameters and `schedule(p)`.
            For several processes it has `masses` as `losses.total.Total` does; `watch` and
            `statistics` as there are logged.
        config: the `train:` section.
        folder: the run folder; a state in it is resumed, a finished one is left as it is.
        loader: batches of a stage, dicts with those inputs and `label`; its batch sampler has
            `set_epoch(epoch, start)`.
        validate: metrics of the model after an epoch, called on every process.
        log: receives (step, metrics) once per epoch.
        resumed: told the step that training goes on from; later log lines are void.
        monitor: the metric whose maximum is kept when `config.keep` is `best`.
        card: facts that go with the weights.
        extra: tensors that go with the weights (class names).
        seed: of dropout and the like.

    Raises:
        ValueError: the loss is not finite, or a head parameter is not in the optimiser.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    loop = Loop(model, criterion, config, folder, seed)
    if loop.restore():
        resumed(loop.progress.step if loop.progress.batch == 0 else loop.progress.step - 1)
    progress, total = loop.progress, sum(stage.epochs for stage in config.stages)
    with Interrupt() as loop.interrupt:
        while progress.stage < len(config.stages):
            stage = config.stages[progress.stage]
            before = sum(s.epochs for s in config.stages[: progress.stage])
            data = loader(stage) if progress.epoch < stage.epochs else None
            while data is not None and progress.epoch < stage.epochs:
                number = before + progress.epoch + 1
                metrics = {"epoch": float(number), **loop.epoch(data, stage, before, total)}
                loop.averages.epoch(number, progress.stage, progress.epoch)
                loop.save()  # a kill during validation does not cost the epoch
                with loop.averages.applied(partial(loop.again, data, number)):
                    if config.validate and (number % config.validate == 0 or number == total):
                        model.eval()
                        metrics |= validate(model, stage)
                    value = metrics.get(monitor, float("-inf"))
                    if any(loop.agreed(config.keep == "last" or value >= progress.best)):
                        progress.best = max(progress.best, value)
                        loop.keep({**(card or {}), **metrics}, extra or {})
                log(progress.step, metrics)
                progress.epoch, progress.batch = progress.epoch + 1, 0
                loop.save()
            progress.stage, progress.epoch = progress.stage + 1, 0
        loop.save()
        if total == 0 and not (folder / "weights.safetensors").is_file():
            loop.keep(card or {}, extra or {})
    distributed.wait()
    return progress
