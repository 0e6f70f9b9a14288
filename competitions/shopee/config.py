"""Schema of config.yaml, and the steps that its lists may name."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common.config import ConfigError
from common.engine.extract import ViewConfig
from common.engine.settings import FitConfig
from common.models.joint import JOINS, USES, JointConfig
from common.models.neck import choose
from common.pipeline.checks import check_training, check_views
from common.pipeline.commands import Commands
from common.pipeline.training import criterion_of as criterion_of
from common.pipeline.training import steps_help
from common.rerank.transfer import MatchConfig, check_rule
from common.track import TrackConfig

from .data import LIMIT, DataConfig
from .matching import KINDS, STEPS, check_matching

BASE = Path(__file__).with_name("config.yaml")
WAYS = ("embeddings", "scores", "votes")


@dataclass
class TfidfConfig:
    """The `tfidf:` section."""

    kinds: list[str] = field(default_factory=lambda: ["word"])
    dim: int = 256


@dataclass
class EnsembleConfig:
    """The `ensemble:` section."""

    by: str = "embeddings"
    weights: list[float] = field(default_factory=list)
    steps: int = 10


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
    tfidf: TfidfConfig = field(default_factory=TfidfConfig)
    matching: list[dict[str, Any]] = field(default_factory=list)
    threshold: MatchConfig = field(default_factory=MatchConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


def check(settings: Config) -> Config:
    """The settings, once every name in them is known to exist."""
    choose("model.uses", settings.model.uses, USES)
    choose("model.join", settings.model.join, JOINS)
    check_training(settings.train, settings.loss)
    check_views(settings.view)
    for kind in settings.tfidf.kinds:
        choose("tfidf.kinds", kind, list(KINDS))
    if settings.tfidf.dim < 1:
        raise ConfigError(f"tfidf.dim={settings.tfidf.dim}: at least 1.")
    # Members of an ensemble by scores or votes match by their own steps, which ensemble.py checks.
    theirs = bool(settings.runs) and settings.ensemble.by != "embeddings"
    check_matching(settings.matching, held=settings.data.fold >= 0 or theirs)
    check_rule(settings.threshold, settings.data.fold >= 0)
    if settings.threshold.most > LIMIT:
        raise ConfigError(
            f"threshold.most={settings.threshold.most}: a row may name {LIMIT}, itself included."
        )
    choose("ensemble.by", settings.ensemble.by, WAYS)
    return settings


COMMANDS = Commands(
    Config,
    Path(__file__).parent,
    "shopee",
    check,
    partial(steps_help, {"matching:": STEPS}),
    shared=("distractors", "strangers", "hidden"),
)
