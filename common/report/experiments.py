"""Runs grouped into experiments, which differ in more than seed, fold and place."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.report.records import Json, Record

PLACES = ("out", "run", "track")  # of a config: where it went, not what it did
TRAINING = ("model", "loss", "train", "view", "twins", "twin_mask")  # nothing to an ensemble
JOINING = ("runs", "ensemble")  # nothing to a single run
_ABSENT = object()  # not set where others of its section are
_NOWHERE = object()  # no such section


@dataclass
class Experiment:
    """Runs of one config, over seeds and folds.

    Attributes:
        name: unlike those of the others.
        records: the runs.
    """

    name: str
    records: list[Record]

    def statistics(self, values: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
        """Mean and sample standard deviation by name; NaN for the spread of one run."""
        names = dict.fromkeys(key for row in values for key in row)
        columns = {key: [row[key] for row in values if key in row] for key in names}
        spread = {k: float(np.std(c, ddof=1)) if len(c) > 1 else np.nan for k, c in columns.items()}
        return {key: (float(np.mean(column)), spread[key]) for key, column in columns.items()}

    def scores(self) -> dict[str, tuple[float, float]]:
        """Mean and spread of each metric over the runs that have it."""
        return self.statistics([one.scores() for one in self.records])

    def cost(self) -> dict[str, tuple[float, float]]:
        """Mean and spread of each cost."""
        return self.statistics([one.cost() for one in self.records])


def group(records: Sequence[Record]) -> list[Experiment]:
    """Experiments in the order of their first run; names tell them apart."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(_what(record), []).append(record)
    names = [_name(part) for part in found.values()]
    longer = [f"{Path(part[0].source).parent.name}/{name}"
              for name, part in zip(names, found.values(), strict=True)]  # fmt: skip
    names = [
        full if names.count(name) > 1 else name for name, full in zip(names, longer, strict=True)
    ]
    before = [names[:place].count(name) for place, name in enumerate(names)]
    names = [f"{name} ({n + 1})" if n else name for name, n in zip(names, before, strict=True)]
    return [Experiment(name, part) for name, part in zip(names, found.values(), strict=True)]


def differing(experiments: Sequence[Experiment]) -> dict[str, list[str | None]]:
    """Value of each dotted key that is not the same in all experiments; None where it is not set.

    Lists of steps are taken apart where they have the same names in the same order. What an
    experiment has no section for (the training of an ensemble) makes no difference.
    """
    found: dict[str, list[Any]] = {}
    trees = [_relevant(one.records[0]) for one in experiments]
    for name in dict.fromkeys(name for tree in trees for name in tree):
        _walk(name, [tree.get(name, _NOWHERE) for tree in trees], found)
    return {
        key: [None if value is _ABSENT or value is _NOWHERE else flow(value) for value in values]
        for key, values in found.items()
    }


def flow(value: Any) -> str:
    """A value as on one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _walk(key: str, values: list[Any], found: dict[str, list[Any]]) -> None:
    asked = [value for value in values if value is not _NOWHERE]
    if all(value == asked[0] and type(value) is type(asked[0]) for value in asked):
        return
    present = [value for value in asked if value is not _ABSENT]
    if all(isinstance(value, dict) for value in present):
        names: list[Any] = list(dict.fromkeys(name for value in present for name in value))
        rows = [{} if value is _ABSENT else value for value in values]
    elif len(present) == len(asked) and _alike(asked):
        names = list(range(len(asked[0])))
        rows = [value if value is _NOWHERE else dict(enumerate(value)) for value in values]
    else:
        found[key] = values
        return
    for name in names:
        inner = [row if row is _NOWHERE else row.get(name, _ABSENT) for row in rows]
        _walk(f"{key}.{name}", inner, found)


def _alike(values: Sequence[Any]) -> bool:
    """Whether these are lists of steps with the same names in the same order."""
    if not all(isinstance(value, list) for value in values):
        return False
    if not all(isinstance(item, dict) for value in values for item in value):
        return False
    return len({tuple(item.get("name") for item in value) for value in values}) == 1


def _what(record: Record) -> str:
    """What runs of one experiment have in common, as text."""
    tree = _relevant(record)
    whole = yaml.safe_dump([record.job == "ensemble", tree, record.data], sort_keys=True)
    # Without a config nothing says that two runs are the same.
    return str(whole) if tree else f"{record.source}\n{whole}"


def _relevant(record: Record) -> Json:
    """The config that the scores depend on, but for seed and fold."""
    other = TRAINING if record.job == "ensemble" else JOINING
    kept = {k: v for k, v in record.config.items() if k not in (*PLACES, *other, "seed")}
    if isinstance(kept.get("data"), dict):
        # The fingerprint says which data it was, wherever they lay.
        less = ("fold", "root") if record.data else ("fold",)
        kept["data"] = {key: value for key, value in kept["data"].items() if key not in less}
    return kept


def _name(records: Sequence[Record]) -> str:
    """What the runs' names have in common; that of a single run."""
    if len(records) == 1:
        return records[0].name
    common = os.path.commonprefix([one.name for one in records])
    common = re.sub(r"([-_ .](seed|fold|s|f)?[-_ .=]?\d*)$", "", common)
    return common or records[0].group or records[0].name
