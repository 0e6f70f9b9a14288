"""One run API: JSONL always, Weights & Biases beside it (online, offline or off).

    run = Run(folder, config, config.track, best=("val/gap",))
    run.log(step, **{"train/loss": 0.3}); run.summary(gap=0.7); print(run.finish())

Names are equal in `metrics.jsonl`, `summary.json` and W&B. Whatever goes wrong with W&B is one
warning; the files go on.
"""

from __future__ import annotations

import datetime
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from common import environment, remote
from common.paths import write_text
from common.report.files import json_line, parse_lines, plain, read_json, write_json


@dataclass
class TrackConfig:
    """The `track:` section."""

    wandb: str = "auto"  # auto | online | offline | off; auto: online with a key, offline on Kaggle
    project: str | None = None  # unset: kaggle-<competition>
    group: str | None = None  # unset: the experiment, to which folds belong
    name: str | None = None  # of the run; unset: <experiment>/<fold>
    tags: list[str] = field(default_factory=list)  # beside backbone, losses, size and fold


class Run:
    """The log of one training, inference or ensemble in a run folder.

    Only rank 0 writes; on other ranks every method does nothing.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Any,
        track: TrackConfig,
        *,
        job_type: str = "train",
        resume: bool = True,
        rank: int = 0,
        best: Sequence[str] = (),
        default: Any = None,
        data: str | Mapping[str, Any] | None = None,
    ) -> None:
        """Open the files and start W&B.

        Args:
            folder: the run folder, made if missing.
            config: the resolved config, a dataclass or nested dicts.
            track: where to log.
            job_type: `train`, `infer` or `ensemble`; each has its own W&B run in a folder.
            resume: go on with this folder's W&B run and metrics; else start both anew (an `infer`
                or `ensemble` leaves the metrics of the training alone).
            rank: of this process.
            best: metrics whose highest value, and its step as `<name>_step`, are in the summary.
            default: the config that the report compares with: YAML file, dataclass or dict.
            data: fingerprint of the data.

        Raises:
            ValueError: `track.wandb` is none of the four words.
        """
        if track.wandb not in ("auto", "online", "offline", "off"):
            raise ValueError(f"track.wandb={track.wandb!r}: choose auto, online, offline or off.")
        self.folder, self.best, self._rank = Path(folder), tuple(best), rank
        self._file: TextIO | None = None
        self._remote: remote.Remote | None = None
        if rank != 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not resume and job_type == "train":
            for name in ("metrics.jsonl", "summary.json"):
                (self.folder / name).unlink(missing_ok=True)
        if job_type == "train":  # another job leaves the file to a training that may be running
            self._keep(lambda line: True)
        settings = plain(environment.tree(config))
        record = {
            "name": track.name or self.folder.resolve().name,
            "group": track.group,
            "tags": list(track.tags),
            "git": environment.git_state(),
            "environment": environment.machine(),
            "command": environment.command_line(),
            "changes": environment.changes(settings, default),
            "data": plain(data),
        }
        run_id = self._record(record, job_type, resume)
        self._remote = remote.Remote(
            remote.mode(track.wandb),
            self.folder,
            run_id=run_id,
            config={
                **settings,
                **{k: record[k] for k in ("git", "environment")},
                "fingerprint": data,
            },
            best=self.best,
            project=track.project,
            job_type=job_type,
            **{key: record[key] for key in ("name", "group", "tags")},
        )

    def log(self, step: int, **metrics: Any) -> None:
        """Append one line of metrics; numbers, NumPy or torch scalars, text. NaN is stored as null.

        Raises:
            ValueError: a value that is no scalar.
            OSError: the disk is full.
        """
        if self._rank != 0:
            return
        values = {name: _scalar(name, value) for name, value in metrics.items()}
        self._append(json_line({"step": int(step), **values}))
        kept = self._best([{"step": step, **values}])
        if kept:
            self._merge(kept)
        if self._remote is not None:
            self._remote.send(lambda run: run.log({"step": int(step), **values}))
            self._tell_steps(kept)

    def summary(self, **values: Any) -> None:
        """Merge values into `summary.json` and the W&B summary."""
        if self._rank == 0 and values:
            self._merge(values)
            if self._remote is not None:
                self._remote.send(lambda run: run.summary.update(plain(values)))

    def table(
        self,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        each: int = 6,
        top: int = 5,
        seed: int = 0,
    ) -> None:
        """Store queries with their results as `tables/<name>.json` and as a W&B table with images.

        Args:
            name: of the table; letters, digits, `_` and `-`.
            rows: `{query: {id, path, label}, results: [{id, path, label, score, right}, ...]}` with
                optional `note`, `ap`, `score`, `right` (of the query's prediction; unset, of its
                first result), results best first; `right` is None when unknown. All rows are
                counted, pictures are read for the chosen ones only.
            each: how many of the worst, the best and random queries are shown.
            top: results shown of each query.
            seed: of the random ones.

        Raises:
            ValueError: a name that is no file name.
        """
        if not name or not all(c.isalnum() or c in "_-" for c in name):
            raise ValueError(f"Table name {name!r}: use letters, digits, _ and -.")
        if self._rank != 0:
            return
        from common.report.gallery import collect  # matplotlib and jinja2 only when needed

        table = collect(name, [dict(row) for row in rows], each=each, top=top, seed=seed)
        write_json(self.folder / "tables" / f"{name}.json", table)
        if self._remote is not None:
            self._remote.log_table(table)

    def truncate(self, step: int) -> None:
        """Drop the metrics of later steps, for a training that resumes at `step`.

        Best values are taken from what is left. The file is replaced as a whole.
        """
        if self._rank != 0:
            return
        lines = self._keep(lambda line: line.get("step", 0) <= step)
        stored = read_json(self.folder / "summary.json")
        for name in self.best:
            stored.pop(name, None)
            stored.pop(f"{name}_step", None)
        kept = self._best(lines, fresh=True)
        if stored or lines:
            write_json(self.folder / "summary.json", {**stored, **kept})
        self._tell_steps(kept)

    def finish(self) -> str:
        """Close the run; the command that uploads it later, or an empty text."""
        if self._file is not None:
            self._file.close()
            self._file = None
        return self._remote.finish() if self._remote is not None else ""

    def _record(self, record: dict[str, Any], job_type: str, resume: bool) -> str:
        """Write the job into `track.json`; its W&B id, the stored one on resume."""
        path = self.folder / "track.json"
        jobs = read_json(path)
        stored = jobs.get(job_type) if resume else None
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        stored = stored or {"id": secrets.token_hex(4), "started": now}
        # A sweep's agent knows its runs by an id that it has chosen.
        run_id: str = os.environ.get("WANDB_RUN_ID") or stored["id"]
        jobs[job_type] = {"id": run_id, "started": stored["started"], **record}
        write_json(path, jobs)
        return run_id

    def _append(self, line: str) -> None:
        path = self.folder / "metrics.jsonl"
        try:
            if self._file is None:
                self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
                if not _ends_line(path):
                    self._file.write("\n")
            self._file.write(line)
        except OSError as error:
            raise OSError(error.errno, f"Could not write {path}: {error.strerror}.") from error

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Rewrite the metrics with the whole lines that are wanted; those lines."""
        path = self.folder / "metrics.jsonl"
        if self._file is not None:
            self._file.close()
            self._file = None
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in parse_lines(text) if wanted(line)]
        kept = "".join(json_line(line) for line in lines)
        if kept != text:
            write_text(path, kept)
        return lines

    def _best(self, lines: Sequence[Mapping[str, Any]], *, fresh: bool = False) -> dict[str, Any]:
        """New best values among `lines` with their steps; `fresh` ignores the stored ones."""
        stored = {} if fresh or not self.best else read_json(self.folder / "summary.json")
        found: dict[str, Any] = {}
        for line in lines:
            for name in self.best:
                value = line.get(name)
                if not isinstance(value, int | float) or not math.isfinite(value):
                    continue
                if value > found.get(name, stored.get(name, -math.inf)):
                    found |= {name: value, f"{name}_step": line["step"]}
        return found

    def _tell_steps(self, kept: Mapping[str, Any]) -> None:
        """Put the steps of best values into W&B's summary; the values it finds itself."""
        steps = {f"{name}_step": kept[f"{name}_step"] for name in self.best if name in kept}
        if steps and self._remote is not None:
            self._remote.send(lambda run: run.summary.update(steps))

    def _merge(self, values: Mapping[str, Any]) -> None:
        path = self.folder / "summary.json"
        write_json(path, {**read_json(path), **values})


def _ends_line(path: Path) -> bool:
    """Whether what is appended starts a line; not so behind one that a kill left half written."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _scalar(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return value.item()
    except (AttributeError, ValueError, RuntimeError):
        shape = getattr(value, "shape", type(value).__name__)
        raise ValueError(f"Metric {name!r} must be one number, got {shape}.") from None
