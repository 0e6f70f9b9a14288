"""Checks of config sections that all competitions have, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.config import ConfigError
from common.data import augment
from common.engine.extract import ViewConfig, check_merge
from common.engine.settings import FitConfig, resolve_precision, this_device
from common.losses import total
from common.pipeline.training import SAMPLERS
from common.steps import Step, bind


def check_training(train: FitConfig, loss: Sequence[Step]) -> None:
    """Refuse unknown augmentations, precisions, losses and samplers."""
    for recipe in (train.augment, *(stage.augment for stage in train.stages)):
        if recipe is not None:
            augment.build(recipe, 32, True)
    resolve_precision(train.precision, this_device())
    total.check(loss)
    bind(train.sampler, SAMPLERS, "train.sampler")


def check_views(view: ViewConfig) -> None:
    """Refuse scales that are no shares of the size, and unknown ways to merge views."""
    for scale in view.scales:
        if not 0 < scale <= 1:
            raise ConfigError(f"view.scales has {scale}: they are shares of view.size, in (0, 1].")
    if not view.scales:
        raise ConfigError("view.scales is empty: [1.0] is a single view.")
    check_merge(view.merge, view.merge_p)


def check_blend(ensemble: Any, *, stacked: bool = False) -> None:
    """Refuse an unknown `ensemble.by`; `stacked` is one where the competition has it."""
    known = ["embeddings", "scores", "ranks", *(["stacked"] if stacked else [])]
    if ensemble.by not in known:
        raise ConfigError(
            f"ensemble.by={ensemble.by!r}: choose {', '.join(known[:-1])} or {known[-1]}."
        )
