"""Schema of config.yaml, and the steps that its lists may name."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.config import ConfigError
from common.data import augment
from common.engine.extract import ViewConfig
from common.engine.settings import FitConfig
from common.losses.total import Total
from common.models.embedder import ModelConfig
from common.pipeline import training
from common.pipeline.checks import check_blend, check_heads, check_training, check_views
from common.pipeline.commands import Commands
from common.pipeline.ranking import STATE
from common.pipeline.training import steps_help
from common.rerank.known import STEPS, check_step
from common.rerank.stacking import StackConfig
from common.steps import chain
from common.track import TrackConfig

from .data import DataConfig
from .postprocess import PostprocessConfig
from .twins import mask_twins

BASE = Path(__file__).with_name("config.yaml")
RULES = ("validation", "share", "quantile", "threshold")
MASKS = ("none", "softmax", "all")


@dataclass
class UnknownConfig:
    """The `unknown:` section: from which score downwards the unknown identity comes first."""

    by: str = "validation"
    value: float = 0.276
    single: float = 0.0
    accept: int = 0


@dataclass
class EnsembleConfig:
    """The `ensemble:` section."""

    by: str = "embeddings"
    weights: list[float] = field(default_factory=list)
    steps: int = 10
    whiten: int = 0
    top: int = 0
    missing: str = "lowest"
    lists: list[str] = field(default_factory=list)
    stack: StackConfig = field(default_factory=StackConfig)

    def __post_init__(self) -> None:
        if self.missing not in ("lowest", "zero"):
            raise ValueError(f"ensemble.missing={self.missing!r}: choose lowest or zero.")
        if self.top < 0:
            raise ValueError(f"ensemble.top={self.top}: so many of each list, 0 for all.")


@dataclass
class Config:
    """Everything in config.yaml."""

    out: str | None = None
    run: str | None = None
    runs: list[str] = field(default_factory=list)
    seed: int = 0
    twins: bool = False
    twin_mask: str = "softmax"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: list[dict[str, Any]] = field(default_factory=list)
    train: FitConfig = field(default_factory=FitConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    ranking: list[dict[str, Any]] = field(default_factory=list)
    unknown: UnknownConfig = field(default_factory=UnknownConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


def check(settings: Config) -> Config:
    """The settings, once every name in them is known to exist."""
    check_training(settings.train, settings.loss)
    check_views(settings.view)
    check_blend(settings.ensemble, stacked=True)
    if settings.ensemble.lists and settings.ensemble.by not in ("scores", "ranks"):
        raise ConfigError("ensemble.lists are joined by scores or ranks: set ensemble.by to one.")
    if settings.ensemble.by == "stacked" and settings.ensemble.weights:
        raise ConfigError("ensemble.by=stacked learns its own weights: leave ensemble.weights out.")
    if settings.ensemble.by == "stacked" and settings.data.fold < 0:
        raise ConfigError(
            "ensemble.by=stacked learns from held-out images, and data.fold=-1 holds none."
        )
    if settings.twins and not settings.view.join_flip:
        raise ConfigError(
            "twins=true makes an individual's mirror image a class of its own: set "
            "view.join_flip=true, or inference would average what training told apart."
        )
    if (settings.data.mask != "none") != (settings.model.in_chans == 4):
        raise ConfigError(
            f"data.mask={settings.data.mask} with model.in_chans={settings.model.in_chans}: a mask "
            "is the fourth channel, so set both or neither."
        )
    for recipe in (settings.train.augment, *(s.augment for s in settings.train.stages)):
        made = augment.build(recipe or "none", 32, True)
        if settings.data.mask != "none" and made.mixed:
            raise ConfigError(
                f"train.augment={recipe} moves pixels by trivial_augment, which a mask cannot "
                "follow: take another recipe, or data.mask=none."
            )
        if settings.twins and "flip" in made.names:
            raise ConfigError(
                f"train.augment={recipe} mirrors images at random, so twins=true would not tell "
                "mirrored from plain: take crop_upright or another recipe without flip."
            )
    if settings.twin_mask not in MASKS:
        raise ConfigError(f"twin_mask={settings.twin_mask!r}: choose {', '.join(MASKS)}.")
    if settings.view.join_flip and not settings.view.flip:
        raise ConfigError("view.join_flip=true joins the mirrored view: set view.flip=true.")
    if settings.unknown.by not in RULES:
        raise ConfigError(f"unknown.by={settings.unknown.by!r}: choose {', '.join(RULES)}.")
    if settings.unknown.by == "validation" and settings.data.fold < 0:
        raise ConfigError(
            "unknown.by=validation needs held-out images, and data.fold=-1 holds none: set "
            "unknown.by=share, or threshold with the value that an earlier run printed."
        )
    chain(settings.ranking, STEPS, STATE, "ranking")
    for step in settings.ranking:
        check_step(step)
    if not settings.runs:  # of an ensemble the members' losses count, and each has been checked
        trained = bool(settings.train.stages)
        check_heads(settings.ranking, settings.loss, "ranking", trained=trained)
    return settings


def criterion_of(
    settings: Config, embedding_dim: int, num_classes: int, counts: np.ndarray | None = None
) -> Total:
    """The criterion; without `counts` (of images per class) only for its centres."""
    criterion = training.criterion_of(settings, embedding_dim, num_classes, counts)
    if settings.twins:
        mask_twins(criterion, settings.twin_mask)
    return criterion


COMMANDS = Commands(
    Config,
    Path(__file__).parent,
    "whale",
    check,
    partial(steps_help, {"ranking:": STEPS}),
    trained=("twins", "twin_mask"),
    shared=("unknown", "boxes", "box_margin", "unknown_share"),
)
