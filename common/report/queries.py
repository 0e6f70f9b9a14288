"""What each query adds to a metric: `queries.json` of a run folder, which comparisons draw from.

save_queries(folder, {"test/map5": of_files("map5", solution, submission)})
found = load_queries(folder)["test/map5"]; found.metric()
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.metrics import by_query, gap_arrays
from common.paths import write_text
from common.report.files import plain, read_json

NAME = "queries.json"


@dataclass
class Queries:
    """The parts of one metric, by id ascending.

    Attributes:
        ids: `(Q,)` names of the queries that count.
        value: `(Q,)` float64 whose mean is the metric; of GAP 1 where the prediction is right.
        score: of GAP, which is no mean: `(Q,)` confidence, NaN without a prediction; else None.
        known: of GAP: `(Q,)` bool, queries that have a label; else None.

    Raises:
        ValueError: columns of different length, a value that is not finite, an id twice.
    """

    ids: np.ndarray
    value: np.ndarray
    score: np.ndarray | None = None
    known: np.ndarray | None = None

    def __post_init__(self) -> None:
        ids, value = np.asarray(self.ids, np.str_), np.asarray(self.value, np.float64)
        order = np.argsort(ids, kind="stable")
        lengths = {
            len(column) for column in (ids, value, self.score, self.known) if column is not None
        }
        if len(lengths) > 1 or (self.score is None) != (self.known is None):
            raise ValueError(f"Columns of queries differ in length: {sorted(lengths)}.")
        if (ids[order][1:] == ids[order][:-1]).any() or not np.isfinite(value).all():
            raise ValueError("Queries need each id once and values that are finite.")
        self.ids, self.value = ids[order], value[order]
        if self.score is not None and self.known is not None:
            self.score = np.asarray(self.score, np.float64)[order]  # None becomes NaN
            self.known = np.asarray(self.known, bool)[order]

    def __len__(self) -> int:
        return len(self.ids)

    def metric(self) -> float:
        """The metric: the mean of the values, or GAP."""
        if self.score is None or self.known is None:
            return float(self.value.mean()) if len(self) else 0.0
        given = ~np.isnan(self.score)
        return gap_arrays(self.value[given] > 0, self.score[given], int(self.known.sum()))


def of_files(metric: str, solution: str | Path, submission: str | Path) -> Queries:
    """The queries of a submission file; arguments and errors as in `common.metrics.by_query`."""
    found = by_query(metric, solution, submission)
    return Queries(**{name: np.array(column) for name, column in found.items()})


def save_queries(folder: str | Path, found: Mapping[str, Queries]) -> Path:
    """Path of `queries.json`; metrics that are not among `found` keep what is stored."""
    path = Path(folder) / NAME
    stored = read_json(path)
    for name, one in found.items():
        columns = {key: column for key, column in vars(one).items() if column is not None}
        # Lists: an array would be rounded, and scores of votes differ in late digits.
        stored[name] = {key: plain(column.tolist()) for key, column in columns.items()}
    write_text(path, json.dumps(stored, ensure_ascii=False) + "\n")
    return path


def load_queries(folder: str | Path) -> dict[str, Queries]:
    """The stored queries by metric; empty without the file, entries that are damaged left out."""
    found = {}
    for name, columns in read_json(Path(folder) / NAME).items():
        try:
            found[name] = Queries(**{key: np.array(column) for key, column in columns.items()})
        except (TypeError, ValueError, AttributeError):
            continue
    return found
