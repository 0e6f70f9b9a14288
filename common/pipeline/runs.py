"""Where a script logs and where its submission goes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.config import load, save
from common.engine import distributed
from common.track import Run, TrackConfig

_FOLD = re.compile(r"(^|[-_.])f(old)?[-_]?\d+$")  # at the end of a run folder's name


def start_run(
    config: Any, folder: Path, data: Any, job: str, *, base: Path, metrics: Sequence[str]
) -> Run:
    """The log of one script in the run folder; infer and ensemble leave their config beside it.

    Args:
        config: of the competition.
        folder: the run folder.
        data: what was read; its `fingerprint()` is logged.
        job: train, infer or ensemble.
        base: the competition's config.yaml: what a default is.
        metrics: of validation beside `score`: the best values of a training are kept.
    """
    if job != "train" and distributed.rank() == 0:  # config.yaml stays that of the training
        save(config, folder / f"{job}.yaml")
    return Run(
        folder,
        asdict(config),
        named(config, folder, base.parent.name, job),
        job_type=job,
        rank=distributed.rank(),
        best=[f"valid/{metric}" for metric in ("score", *metrics)] if job == "train" else (),
        default=asdict(load(type(config), base)),
        data=data.fingerprint(),
    )


def named(config: Any, folder: Path, competition: str, job: str = "train") -> TrackConfig:
    """The `track:` section with what the user left open, so that folds of an experiment meet.

    The project is kaggle-<competition>, the group the experiment and the name <experiment>/<fold>.
    Tags are backbones, losses, image size and fold, or of an ensemble how it joins which runs, and
    then those that the user gives.

    Args:
        config: of the competition.
        folder: the run folder: its name is the experiment's, a fold's number may follow or lie
            below (`big-fold2`, `big/fold2`).
        competition: its folder's name.
        job: train, infer or ensemble.
    """
    track: TrackConfig = config.track
    place = folder.resolve()
    experiment = _FOLD.sub("", place.name)
    if not experiment:
        above = place.parent.name
        experiment = "baseline" if above == competition else above
    fold = f"fold{config.data.fold}" if config.data.fold >= 0 else "all"
    if job == "ensemble":  # its model and loss are the default's, not the runs'
        words = [config.ensemble.by, *(Path(run).name for run in config.runs)]
    else:
        size = config.train.stages[-1].size if config.train.stages else config.view.size
        words = [*_backbones(config.model), *(str(t["name"]) for t in config.loss), f"{size}px"]
    return replace(
        track,
        project=track.project or f"kaggle-{competition}",
        group=track.group or experiment,
        name=track.name or f"{experiment}/{fold}",
        tags=[word[:64] for word in dict.fromkeys([*words, fold, *track.tags])],  # W&B's limit
    )


def _backbones(model: Any) -> list[str]:
    if not hasattr(model, "uses"):
        return [model.backbone]
    used = ("image", "text") if model.uses == "both" else (model.uses,)
    return [getattr(model, part).backbone for part in used]


def submission_path(out: str | None, folder: Path) -> Path:
    """`out` when it is a csv, else submission.csv in it, or in `folder` without it."""
    path = Path(out) if out else folder
    return path if path.suffix == ".csv" else path / "submission.csv"
