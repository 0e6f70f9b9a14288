"""Schema of config.yaml, and the steps that its lists may name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.models.embedder import ModelConfig

from common import config
from common.data import samplers
from common.engine.extract import ViewConfig
from common.engine.settings import FitConfig
from common.losses import total
from common.rerank import decide, labels, local
from common.retrieval import expand, search, whiten
from common.steps import bind, catalog, chain, help_text
from common.track import TrackConfig

from .data import DataConfig

BASE = Path(__file__).with_name("config.yaml")
SCRIPT = f"competitions/{Path(__file__).parent.name}"
RUNS = Path("runs") / Path(__file__).parent.name

STEPS = catalog(search, expand, whiten, labels, decide, local)
SAMPLERS = catalog(samplers)
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
}


@dataclass
class EnsembleConfig:
    """The `ensemble:` section."""

    by: str = "embeddings"
    weights: list[float] = field(default_factory=list)
    trials: int = 60
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
    for i, term in enumerate(settings.loss):
        bind({k: v for k, v in term.items() if k != "weight"}, total.KNOWN, f"loss[{i}]")
    bind(settings.train.sampler, SAMPLERS, "train.sampler")
    chain(settings.recognition, STEPS, STATE, "recognition")
    chain(settings.retrieval, STEPS, STATE, "retrieval")
    return settings


def steps_help() -> str:
    """The part of `--help` about names in lists."""
    return "\n\n".join(
        [
            help_text("loss:", total.KNOWN),
            help_text("train.sampler:", SAMPLERS),
            help_text("recognition: and retrieval:", STEPS),
        ]
    )


def command(doc: str, arguments: list[str]) -> Config:
    """The config of train.py; its run folder is named after the experiment files."""
    settings = check(config.command(Config, BASE, doc, arguments, steps=steps_help()))
    names = [Path(word).stem for word in arguments if word.endswith((".yaml", ".yml"))]
    return replace(settings, out=settings.out or str(RUNS / ("-".join(names) or "baseline")))


def of_run(doc: str, arguments: list[str]) -> Config:
    """The config of infer.py: that of the run it reads, changed by `arguments`."""
    run = next((word[4:] for word in arguments if word.startswith("run=")), str(RUNS / "baseline"))
    stored = Path(run) / "config.yaml"
    if not (Path(run) / "weights.safetensors").is_file() or not stored.is_file():
        raise config.ConfigError(f"{run} is no trained run: python {SCRIPT}/train.py out={run}")
    settings = config.command(Config, BASE, doc, arguments, steps=steps_help(), stored=stored)
    return replace(check(settings), run=run)
