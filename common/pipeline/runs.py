"""Where a script logs and where its submission goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.config import load, save
from common.engine import distributed
from common.track import Run


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
        config.track,
        job_type=job,
        rank=distributed.rank(),
        best=[f"valid/{metric}" for metric in ("score", *metrics)] if job == "train" else (),
        default=asdict(load(type(config), base)),
        data=data.fingerprint(),
    )


def submission_path(out: str | None, folder: Path) -> Path:
    """`out` when it is a csv, else submission.csv in it, or in `folder` without it."""
    path = Path(out) if out else folder
    return path if path.suffix == ".csv" else path / "submission.csv"
