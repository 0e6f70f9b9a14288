"""Runs read back from their folders: config, scores, curves, cost, per-query scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import yaml

from common.report.files import read_json, read_lines
from common.report.queries import Queries, load_queries

FILES = ("summary.json", "metrics.jsonl", "track.json")  # a folder with one of them is a run
_SCORES = ("held-out/", "test/", "valid/")
_DEPTH = 3  # folders of folders of runs
Json = dict[str, Any]


@dataclass
class Record:
    """One run, from its folder or from W&B.

    Attributes:
        name: of the run folder, or in W&B.
        source: where it was read.
        config: nested, as resolved; of an inference what it changed is in it.
        summary: final scores and costs.
        lines: metrics by step.
        competition: folder under `competitions`; None where nothing says so.
        data: fingerprint of the data, or None.
        group: W&B's name for runs that belong together.
        queries: per-query scores by metric, as far as they are those of the summary.
        job: train, infer or ensemble.
        stale: metrics whose stored queries are of another inference than the summary.
    """

    name: str
    source: str
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    lines: list[Json] = field(default_factory=list)
    competition: str | None = None
    data: Json | None = None
    group: str | None = None
    queries: dict[str, Queries] = field(default_factory=dict)
    job: str = "train"
    stale: list[str] = field(default_factory=list)

    def scores(self) -> dict[str, float]:
        """Metrics by name: held-out, then test, then the best of training."""
        known = {k: v for k, v in self.summary.items() if _number(v) and not k.endswith("_step")}
        return {k: float(known[k]) for part in _SCORES for k in known if k.startswith(part)}

    def cost(self) -> dict[str, float]:
        """`minutes` of training, `memory` at its peak in GiB, `images/s` in the median epoch."""
        found = {}
        if _number(self.summary.get("minutes")):
            found["minutes"] = float(self.summary["minutes"])
        elif spent := self.series("train/minutes")[1]:
            found["minutes"] = spent[-1]
        measured = [key for key in _keys(self.lines) if re.search(r"memory.*_gb$", key)]
        if peaks := [max(y) for key in measured if (y := self.series(key)[1])]:
            found["memory"] = max(peaks)
        if speeds := self.series("train/images_per_second")[1]:
            found["images/s"] = float(np.median(speeds))
        return found

    def series(self, name: str, over: str = "step") -> tuple[list[float], list[float]]:
        """Steps (or epochs) and values of a metric, where it is a number."""
        points = [(line.get(over, 0), line.get(name)) for line in self.lines]
        kept = [(float(x), float(y)) for x, y in points if _number(x) and _number(y)]
        return [x for x, _ in kept], [y for _, y in kept]


def read_folder(folder: Path) -> Record:
    """The run in a folder.

    Raises:
        ValueError: the folder is none, is no run folder, or its run left no metrics.
    """
    if not is_run(folder):
        kind = "is no folder" if not folder.is_dir() else f"holds none of {', '.join(FILES)}"
        raise ValueError(f"{folder} is no run folder, it {kind}: give the `out` of a training.")
    jobs, card = read_json(folder / "track.json"), read_json(folder / "card.json")
    job = next((name for name in ("ensemble", "train") if name in jobs), next(iter(jobs), "train"))
    about: Json = jobs.get(job) or {}
    record = Record(
        about.get("name") or folder.resolve().name,
        str(folder),
        config=_config(folder, jobs),
        summary=read_json(folder / "summary.json"),
        lines=read_lines(folder / "metrics.jsonl"),
        competition=card.get("competition") or _competition(jobs),
        data=about.get("data"),
        group=about.get("group"),
        job=job,
    )
    if not record.scores() and not record.lines:
        raise ValueError(f"{folder} has no metrics yet: let its training come to its first epoch.")
    for name, one in load_queries(folder).items():
        stored = record.summary.get(name)
        if _number(stored) and abs(one.metric() - stored) < 1e-6:
            record.queries[name] = one
        else:
            record.stale.append(name)
    return record


def is_run(folder: Path) -> bool:
    """Whether something was logged in the folder."""
    return any((folder / name).is_file() for name in FILES)


def below(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The run folders in a folder, itself if it is one; not those inside of a run."""
    if is_run(folder):
        yield folder
    elif depth and folder.is_dir():
        for inner in sorted(folder.iterdir(), key=_natural):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from below(inner, depth - 1)


def _config(folder: Path, jobs: Json) -> Json:
    """The resolved config of the last script that scored the run, see `common.pipeline.runs`."""
    for name in ("ensemble.yaml", "infer.yaml", "config.yaml"):
        try:
            found = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            continue
        if isinstance(found, dict):
            break
    else:
        found = {}
    if name == "config.yaml":  # runs from before infer.yaml: what track.json says was changed
        for key, pair in jobs.get("infer", {}).get("changes", {}).items():
            _put(found, key, pair[1])
    return found


def _put(tree: Json, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            return
    tree[last] = value


def _competition(jobs: Json) -> str | None:
    for one in jobs.values():
        if match := re.search(r"competitions/([\w-]+)/", str(one.get("command", ""))):
            return match[1]
    return None


def _keys(lines: Sequence[Json]) -> list[str]:
    return list(dict.fromkeys(key for line in lines for key in line))


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts trial-2 before trial-10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
