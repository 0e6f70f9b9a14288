"""Checks of config sections that all competitions have, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

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


def check_heads(steps: Sequence[Step], loss: Sequence[Step], where: str, *, trained: bool) -> None:
    """Refuse steps that ask the head for what a run with this loss does not have.

    Args:
        steps: of a ranking, already known to fit.
        loss: the `loss:` section, already known to fit.
        where: the section of the steps, for the words.
        trained: whether anything is trained: the centres of a head that never was are noise.

    Raises:
        ConfigError: no comparison of pairs, no class centres, or untrained ones.
    """
    with torch.random.fork_rng(devices=[]):  # a check moves no later draw
        made = total.build(loss, {"embedding_dim": 2, "num_classes": 2, "class_counts": [1, 1]})
    pairs, centers = made.pair_head() is not None, made.centers() is not None
    for i, step in enumerate(steps):
        name = step["name"]
        if name == "siamese" and not pairs:
            raise ConfigError(
                f"{where}[{i}]: siamese asks the head that {{name: siamese}} in loss: trains, and "
                f"loss: has {_names(loss)}: add it and train, or leave the step out."
            )
        asks = name in ("class_logits", "logit_mix") or (
            name == "vote" and step.get("class_power", 0) > 0
        )
        if asks and not (centers and trained):
            has = (
                "train.stages is empty, so they are noise"
                if centers
                else f"{_names(loss)} has none"
            )
            raise ConfigError(
                f"{where}[{i}]: {name} reads the class centres of the head, and {has}: train with "
                "a margin head, or score by images, as knn, vote and class_centers do."
            )


def _names(loss: Sequence[Step]) -> str:
    return ", ".join(str(term["name"]) for term in loss)
