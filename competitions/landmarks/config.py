"""Schema of config.yaml, and the steps that its lists may name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import config
from common.data import augment, samplers, samplers_grouped
from common.engine.extract import ViewConfig, check_merge
from common.engine.settings import FitConfig, resolve_precision, this_device
from common.losses import total
from common.models.embedder import ModelConfig
from common.rerank import local
from common.rerank.known import STEPS
from common.steps import bind, catalog, chain, help_text
from common.track import TrackConfig

from .data import DataConfig

BASE = Path(__file__).with_name("config.yaml")
SCRIPT = f"competitions/{Path(__file__).parent.name}"
RUNS = Path("runs") / Path(__file__).parent.name

SAMPLERS = catalog(samplers, samplers_grouped)
# What a chain starts from; every chain must leave `neighbors`.
STATE = {
    "queries",
    "gallery",
    "gallery_labels",
    "negatives",
    "centers",
    "train",
    "train_labels",
    "query_paths",
    "gallery_paths",
    "cache",
    "device",
    "notes",
}


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
    if settings.ensemble.by not in ("embeddings", "scores", "ranks"):
        raise config.ConfigError(
            f"ensemble.by={settings.ensemble.by!r}: choose embeddings, scores or ranks."
        )
    for scale in settings.view.scales:
        if not 0 < scale <= 1:
            raise config.ConfigError(
                f"view.scales has {scale}: they are shares of view.size, in (0, 1]."
            )
    if not settings.view.scales:
        raise config.ConfigError("view.scales is empty: [1.0] is a single view.")
    check_merge(settings.view.merge, settings.view.merge_p)
    for recipe in (settings.train.augment, *(s.augment for s in settings.train.stages)):
        if recipe is not None:
            augment.build(recipe, 32, True)
    resolve_precision(settings.train.precision, this_device())
    total.check(settings.loss)
    bind(settings.train.sampler, SAMPLERS, "train.sampler")
    for task in ("recognition", "retrieval"):
        steps = getattr(settings, task)
        chain(steps, STEPS, STATE, task)
        for step in steps:
            if step["name"] == "hook":
                local.load_hook(step.get("function", ""), step.get("arguments"))
    return settings


def criterion_of(
    settings: Config, embedding_dim: int, num_classes: int, counts: np.ndarray | None = None
) -> total.Total:
    """The criterion; without `counts` (of images per class) only for its centres."""
    known = torch.ones(num_classes) if counts is None else torch.from_numpy(counts)
    state = {
        "embedding_dim": embedding_dim,
        "num_classes": num_classes,
        "class_counts": known,
    }
    return total.build(settings.loss, state)


def steps_help() -> str:
    """The part of `--help` about names in lists."""
    return "\n\n".join(
        [
            help_text("loss:", total.KNOWN),
            help_text("train.sampler:", SAMPLERS),
            help_text("recognition: and retrieval:", STEPS),
        ]
    )


def about(doc: str) -> str:
    """A script's help with the name of this folder, which may be a copy."""
    return doc.replace("competitions/landmarks", SCRIPT).replace("runs/landmarks", str(RUNS))


def command(doc: str, arguments: list[str]) -> Config:
    """The config of train.py; its run folder is named after the experiment files."""
    settings = check(config.command(Config, BASE, about(doc), arguments, steps=steps_help()))
    names = [Path(word).stem for word in arguments if word.endswith((".yaml", ".yml"))]
    return replace(settings, out=settings.out or str(RUNS / ("-".join(names) or "baseline")))


def of_run(doc: str, arguments: list[str]) -> Config:
    """The config of infer.py: that of the run it reads, changed by `arguments`."""
    words = [word.lstrip("-") for word in arguments]
    named = [word.removeprefix("run=") for word in words if word.startswith("run=")]
    run = named[-1] if named else str(RUNS / "baseline")
    stored = Path(run) / "config.yaml"
    wanted = not {"-h", "--help"} & set(arguments)
    if wanted and not (stored.is_file() and (Path(run) / "weights.safetensors").is_file()):
        raise config.ConfigError(
            f"{run} is no trained run: python {SCRIPT}/train.py out={run}, or name another run="
        )
    settings = config.command(
        Config,
        BASE,
        about(doc),
        arguments,
        steps=steps_help(),
        stored=stored if stored.is_file() else None,
    )
    trained = config.load(Config, BASE, stored=stored)
    for section in ("model", "loss", "train", "seed"):
        if getattr(settings, section) != getattr(trained, section):
            raise config.ConfigError(
                f"{run} was trained with another {section}, which infer.py cannot change: leave it "
                "out, or train again"
            )
    for key in ("fold", "folds", "unseen"):
        here, there = getattr(settings.data, key), getattr(trained.data, key)
        if here != there and settings.data.fold >= 0:
            raise config.ConfigError(
                f"{run} was trained with data.{key}={there}: with {here} it would be scored on "
                "images it has seen; leave it out, or set data.fold=-1 to score nothing"
            )
    own = any(word.startswith("out=") for word in words)
    return replace(check(settings), run=run, out=settings.out if own else None)


def of_ensemble(doc: str, arguments: list[str]) -> tuple[Config, list[Config]]:
    """The config of ensemble.py and those of its members."""
    settings = check(config.command(Config, BASE, about(doc), arguments, steps=steps_help()))
    if not settings.runs:
        raise config.ConfigError("runs= is empty: name the runs to join, runs=[runs/a,runs/b]")
    members = [of_run(doc, [f"run={run}"]) for run in settings.runs]
    weights = settings.ensemble.weights
    if weights and len(weights) != len(members):
        raise config.ConfigError(
            f"ensemble.weights has {len(weights)} numbers for {len(members)} runs."
        )
    for run, member in zip(settings.runs, members, strict=True):
        for key in ("root", "extended", "non_landmark", "fold", "folds", "unseen"):
            here, there = getattr(members[0].data, key), getattr(member.data, key)
            if here != there:
                raise config.ConfigError(
                    f"{run} was trained with data.{key}={there}, {settings.runs[0]} with {here}: "
                    "runs are only comparable on the same held-out images."
                )
    for word in (word.lstrip("-") for word in arguments):
        if word.startswith("data.") and not word.startswith("data.root="):
            raise config.ConfigError(f"{word}: the runs decide it; only data.root= can be given.")
    data = replace(members[0].data, root=settings.data.root or members[0].data.root)
    joined = replace(settings, data=data, seed=members[0].seed)
    return replace(joined, out=settings.out or str(RUNS / "ensemble")), members
