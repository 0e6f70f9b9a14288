"""Schema of config.yaml, and the steps that its lists may name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.engine.extract import ViewConfig
from common.engine.settings import FitConfig
from common.losses import total
from common.models.joint import JOINS, USES, JointConfig
from common.models.neck import choose
from common.pipeline.checks import check_training, check_views
from common.pipeline.commands import Commands
from common.pipeline.training import SAMPLERS
from common.steps import help_text
from common.track import TrackConfig

from .data import DataConfig

BASE = Path(__file__).with_name("config.yaml")


@dataclass
class Config:
    """Everything in config.yaml."""

    out: str | None = None
    run: str | None = None
    runs: list[str] = field(default_factory=list)
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: JointConfig = field(default_factory=JointConfig)
    loss: list[dict[str, Any]] = field(default_factory=list)
    train: FitConfig = field(default_factory=FitConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


def check(settings: Config) -> Config:
    """The settings, once every name in them is known to exist."""
    choose("model.uses", settings.model.uses, USES)
    choose("model.join", settings.model.join, JOINS)
    check_training(settings.train, settings.loss)
    check_views(settings.view)
    return settings


def criterion_of(
    settings: Config, embedding_dim: int, num_classes: int, counts: np.ndarray | None = None
) -> total.Total:
    """The criterion; without `counts` (of listings per group) only for its centres."""
    known = torch.ones(num_classes) if counts is None else torch.from_numpy(counts)
    state = {"embedding_dim": embedding_dim, "num_classes": num_classes, "class_counts": known}
    return total.build(settings.loss, state)


def steps_help() -> str:
    """The part of `--help` about names in lists."""
    return "\n\n".join([help_text("loss:", total.KNOWN), help_text("train.sampler:", SAMPLERS)])


COMMANDS = Commands(
    Config,
    Path(__file__).parent,
    "shopee",
    check,
    steps_help,
    shared=("distractors", "hidden"),
)
