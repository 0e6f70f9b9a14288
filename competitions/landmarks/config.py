"""Schema of config.yaml, and the steps that its lists may name."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common import config
from common.engine.extract import ViewConfig
from common.engine.settings import FitConfig
from common.models.embedder import ModelConfig
from common.pipeline.checks import check_blend, check_heads, check_training, check_views
from common.pipeline.commands import Commands
from common.pipeline.ranking import STATE
from common.pipeline.training import criterion_of as criterion_of
from common.pipeline.training import steps_help
from common.rerank.known import STEPS, check_step
from common.steps import chain
from common.track import TrackConfig

from .data import DataConfig

BASE = Path(__file__).with_name("config.yaml")


@dataclass
class EnsembleConfig:
    """The `ensemble:` section."""

    by: str = "embeddings"
    weights: list[float] = field(default_factory=list)
    steps: int = 10
    whiten: int = 0


@dataclass
class Config:
    """Everything in config.yaml."""

    out: str | None = None
    run: str | None = None
    runs: list[str] = field(default_factory=list)
    seed: int = 0
    task: str = "both"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: list[dict[str, Any]] = field(default_factory=list)
    train: FitConfig = field(default_factory=FitConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    recognition: list[dict[str, Any]] = field(default_factory=list)
    retrieval: list[dict[str, Any]] = field(default_factory=list)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


def check(settings: Config) -> Config:
    """The settings, once every name in them is known to exist."""
    if settings.task not in ("both", "recognition", "retrieval"):
        raise config.ConfigError(f"task={settings.task!r}: choose both, recognition or retrieval.")
    check_blend(settings.ensemble)
    check_views(settings.view)
    check_training(settings.train, settings.loss)
    for task in ("recognition", "retrieval"):
        steps = getattr(settings, task)
        chain(steps, STEPS, STATE, task)
        for step in steps:
            check_step(step)
        if not settings.runs:  # of an ensemble the members' losses count, and each has been checked
            check_heads(steps, settings.loss, task, trained=bool(settings.train.stages))
    return settings


COMMANDS = Commands(
    Config,
    Path(__file__).parent,
    "landmarks",
    check,
    partial(steps_help, {"recognition: and retrieval:": STEPS}),
    shared=("extended", "non_landmark"),
)
