"""What is to be said of several runs: their experiments, how they differ, who is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.config import suggestion
from common.report import wandb_runs
from common.report.bootstrap import DRAWS, Difference, compare
from common.report.experiments import Experiment, differing, group
from common.report.records import Json, Record, below, is_run, read_folder

METRICS = {"gap": "GAP", "map100": "mAP@100", "map5": "MAP@5", "f1": "F1", "recall1": "recall@1"}
CACHE = "cache"  # where infer.py keeps local features, beside its runs
ALL_PAIRS = 6  # up to so many experiments every pair is compared, else each with the first


@dataclass
class Comparison:
    """Experiments side by side.

    Attributes:
        experiments: in the order in which they are shown; the first is what others are held to.
        settings: value by differing key, one for each experiment, see `experiments.differing`.
        metrics: the scores that are shown.
        differences: by metric, the pairs whose per-query scores are known.
        remarks: what a reader must know before believing a number.
        draws: of the bootstrap.
    """

    experiments: list[Experiment]
    settings: dict[str, list[str | None]]
    metrics: list[str]
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    draws: int = DRAWS

    @property
    def records(self) -> list[Record]:
        """The runs of all experiments."""
        return [record for one in self.experiments for record in one.records]

    def apart(self, metric: str, name: str) -> Difference | None:
        """An experiment against the first, or None where that is not known."""
        pairs = self.differences.get(metric, [])
        first = self.experiments[0].name
        return next((one for one in pairs if (one.first, one.second) == (first, name)), None)

    def about(self) -> str:
        """One line: competition, counts, data."""
        names = {record.competition for record in self.records} - {None}
        runs, many = len(self.records), len(self.experiments)
        text = f"{runs} runs" + (f" of {min(names, key=str)}" if names else "")
        text += f" in {many} experiment{'s' if many > 1 else ''}"
        data = [record.data for record in self.records if record.data]
        if data:
            counts = [f"{k} {v}" for k, v in data[0].items() if k != "sha256"]
            text += f"; data: {', '.join(counts)}"
        return text


def gather(words: Sequence[str]) -> tuple[list[Record], list[str]]:
    """The runs that are named, each once, and remarks on those that are left out.

    Args:
        words: run folders, folders of run folders, offline runs of W&B, `wandb:entity/project`.

    Raises:
        ValueError: one of them is no run or has no metrics, fewer than two runs, or runs of
            different competitions.
    """
    found: list[Record] = []
    remarks, stored, files = [], [], []
    place = None  # of the runs of W&B, which belong together whatever words name them
    for word in words:
        path = Path(word)
        if path.name == CACHE and not is_run(path):  # a shell's runs/whale/* names it too
            continue
        if word.startswith(wandb_runs.PREFIX):
            place = len(found) if place is None else place
            stored += wandb_runs.read_online(word)
        elif not is_run(path) and (some := wandb_runs.offline_files(path)):
            place = len(found) if place is None else place
            files += some
        elif is_run(path) or not (inner := list(below(path))):
            found.append(read_folder(path))  # or says why it is none
        else:
            for folder in inner:
                try:
                    found.append(read_folder(folder))
                except ValueError as error:
                    remarks.append(f"left out: {error}")
    found[place or 0 : place or 0] = wandb_runs.joined([*stored, *wandb_runs.read_offline(files)])
    records = list({_where(record.source): record for record in found}.values())
    if len(records) < 2:
        name = f" ({records[0].source})" if records else ""
        raise ValueError(
            f"There {'is one run' if records else 'are no runs'}{name}, a comparison takes two: "
            "name more, or a folder of runs. The page of one: python -m common.report.page RUN"
        )
    by: dict[str, list[str]] = {}
    for record in records:
        if record.competition:
            by.setdefault(record.competition, []).append(record.source)
    if len(by) > 1:
        told = "; ".join(f"{name}: {', '.join(paths[:3])}" for name, paths in by.items())
        raise ValueError(f"These are runs of different competitions ({told}): compare one's.")
    return records, [*remarks, *_odd(records)]


def build(
    records: Sequence[Record],
    *,
    metrics: Sequence[str] = (),
    sort: str | None = None,
    draws: int = DRAWS,
    remarks: Sequence[str] = (),
) -> Comparison:
    """The comparison of some runs.

    Args:
        records: two or more.
        metrics: to show; empty: held-out and test, and validation where an experiment lacks them.
        sort: metric that orders the experiments, best first; None: as they come.
        draws: of the bootstrap.
        remarks: to go with it.

    Raises:
        ValueError: a metric that no run has.
    """
    known = list(dict.fromkeys(key for record in records for key in record.scores()))
    for name in [*metrics, *([sort] if sort else [])]:
        if name not in known:
            raise ValueError(f"No run has the metric {name!r}{suggestion(name, known)}")
    experiments = group(records)
    if sort:
        experiments.sort(key=lambda one: -one.scores().get(sort, (-math.inf,))[0])
    found = Comparison(experiments, differing(experiments), list(metrics) or _shown(experiments))
    found.draws, found.remarks = draws, list(remarks)
    against = experiments[0].name if len(experiments) > ALL_PAIRS else None
    for name in found.metrics:
        asked = {
            one.name: [record.queries[name] for record in one.records if name in record.queries]
            for one in experiments
        }
        pairs = compare({k: v for k, v in asked.items() if v}, against=against, draws=draws)
        if pairs:
            found.differences[name] = pairs
        elif sum(map(bool, asked.values())) > 1:
            found.remarks.append(f"{title(name)}: no two experiments were asked the same queries.")
    return found


def title(metric: str) -> str:
    """`MAP@5 (held-out)` for `held-out/map5`."""
    part, _, name = metric.partition("/")
    return f"{METRICS.get(name, name)} ({part})"


def _where(source: str) -> str:
    """One name of a place that may be called by several."""
    return source if source.startswith(wandb_runs.PREFIX) else str(Path(source).resolve())


def _shown(experiments: Sequence[Experiment]) -> list[str]:
    """The metrics to show, in the order held-out, test, validation."""
    have = [one.scores() for one in experiments]
    names = [key for part in ("held-out/", "test/", "valid/") for row in have for key in row
             if key.startswith(part)]  # fmt: skip
    final = [name for name in dict.fromkeys(names) if not name.startswith("valid/")]
    if final and all(any(name in row for name in final) for row in have):
        return final
    return list(dict.fromkeys(names))


def _odd(records: Sequence[Record]) -> list[str]:
    """What makes these runs hard to compare."""
    found = []
    data: dict[str, tuple[Json, list[str]]] = {}
    for record in records:
        if record.data:
            data.setdefault(str(record.data), (record.data, []))[1].append(record.name)
    if len(data) > 1:
        told = [
            f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}: "
            + ", ".join(f"{k} {v}" for k, v in one.items())
            for one, names in data.values()
        ]
        found.append(
            "the runs read different data, so scores differ by more than the model "
            f"({'; '.join(told)})."
        )
    stale = sorted({record.name for record in records if record.stale})
    if stale:
        found.append(
            f"per-query scores of {', '.join(stale)} are not those of the summary: run infer.py "
            "again for significance."
        )
    scored = [r for r in records if any(not key.startswith("valid/") for key in r.scores())]
    lacking = [record.name for record in scored if not record.queries and not record.stale]
    if lacking:
        some = f"{', '.join(lacking[:4])}{' ...' if len(lacking) > 4 else ''}"
        found.append(
            f"{some}: no per-query scores, so no significance; infer.py and ensemble.py write them."
        )
    return found
