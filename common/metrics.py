"""The competitions' metrics, each exactly as Kaggle scores it.

python -m common.metrics gap|map100|map5|f1 SOLUTION.csv SUBMISSION.csv [--usage Public|Private]
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

COLUMNS = {  # metric: (id, answer)
    "gap": ("id", "landmarks"),
    "map100": ("id", "images"),
    "map5": ("Image", "Id"),
    "f1": ("posting_id", "matches"),
}


class MetricError(ValueError):
    """A file that cannot be scored; names file and row."""


def gap(
    solution: Mapping[str, Collection[Any]], predictions: Mapping[str, tuple[Any, float] | None]
) -> float:
    """Global average precision (micro AP) of one scored label per query, in [0, 1].

    All predictions stand in one list by score descending, then id ascending; the precision at each
    correct one is summed and divided by the number of queries that have a true label. A prediction
    for a query without one only pushes others down. Google Landmark Recognition; Perronnin et al.,
    CVPR 2009.

    Args:
        solution: true labels of every query, none for a non-landmark; any of several counts.
        predictions: label and score, or None; queries that are missing predict nothing.

    Raises:
        ValueError: a prediction for an unknown query, or a score that is not a number.
    """
    _known(predictions, solution)
    made = {i: p for i, p in predictions.items() if p is not None}
    ids = list(made)
    scores = np.array([made[i][1] for i in ids], np.float64)
    if np.isnan(scores).any():
        first = ids[int(np.flatnonzero(np.isnan(scores))[0])]
        raise ValueError(f"The score of {first!r} is not a number.")
    right = np.array([made[i][0] in solution[i] for i in ids], bool)
    order = np.lexsort((np.array(ids, np.str_), -scores))
    answerable = sum(bool(labels) for labels in solution.values())
    return gap_sorted(right[order], answerable)


def gap_sorted(right: np.ndarray, answerable: int) -> float:
    """GAP of predictions that are in order: `(N,)` bool, and how many queries have a true label."""
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float(precision[right].sum() / answerable) if answerable else 0.0


def average_precision(relevant: Collection[Any], ranked: Iterable[Any], k: int) -> float:
    """AP at k of one query, divided by min(relevant, k); repeated entries take no rank.

    Raises:
        ValueError: nothing is relevant: such a query is not to be counted.
    """
    if not relevant:
        raise ValueError("A query without relevant images has no average precision: leave it out.")
    wanted = set(relevant)
    hits, total = 0, 0.0
    for rank, entry in enumerate(list(dict.fromkeys(ranked))[:k], 1):
        if entry in wanted:
            hits += 1
            total += hits / rank
    return total / min(len(wanted), k)


def map_at_k(
    truth: Mapping[str, Collection[Any]], ranked: Mapping[str, Sequence[Any]], k: int
) -> float:
    """Mean AP at k over the queries of `truth`, in [0, 1]; a query without an answer scores 0.

    k = 100: Google Landmark Retrieval. k = 5 with one label each: Humpback Whale, 1 / rank of the
    true one. Queries without truth must be left out, as Kaggle ignores them.

    Raises:
        ValueError: an answer for an unknown query, or a query without truth.
    """
    _known(ranked, truth)
    total = sum(average_precision(wanted, ranked.get(i, ()), k) for i, wanted in truth.items())
    return total / len(truth) if truth else 0.0


def recall_at_k(
    truth: Mapping[str, Collection[Any]], ranked: Mapping[str, Sequence[Any]], k: int
) -> float:
    """Share of queries with at least one right answer among the first k distinct ones."""
    _known(ranked, truth)
    found = sum(
        not set(wanted).isdisjoint(list(dict.fromkeys(ranked.get(i, ())))[:k])
        for i, wanted in truth.items()
    )
    return found / len(truth) if truth else 0.0


def mean_f1(truth: Mapping[str, Collection[Any]], matches: Mapping[str, Collection[Any]]) -> float:
    """Mean over rows of 2 |T and P| / (|T| + |P|); Shopee. The row itself is in both sets there.

    Raises:
        ValueError: an answer for an unknown row.
    """
    _known(matches, truth)
    total = 0.0
    for i, wanted in truth.items():
        found, wanted = set(matches.get(i, ())), set(wanted)
        if wanted or found:
            total += 2 * len(wanted & found) / (len(wanted) + len(found))
    return total / len(truth) if truth else 0.0


def score_file(
    metric: str, solution: str | Path, submission: str | Path, *, usage: str | None = None
) -> float:
    """The metric of a submission file against a solution file.

    Rows of the solution with Usage `Ignored` do not count, nor, with `usage`, those of the other
    part. Rows that the submission lacks count as empty answers.

    Raises:
        MetricError: a file without the columns, repeated or unknown ids, an unreadable score.
    """
    if metric not in COLUMNS:
        raise MetricError(f"No metric {metric!r}: choose {', '.join(COLUMNS)}.")
    truth, given = _read(solution, metric), _read(submission, metric)
    unknown = ~given.index.isin(truth.index)
    if unknown.any():
        raise MetricError(
            f"{submission}: {int(unknown.sum())} ids are not in {solution}, the first is "
            f"{given.index[unknown][0]}."
        )
    if "Usage" in truth:
        counts = truth["Usage"] != "Ignored"
        if usage is not None:
            counts &= truth["Usage"] == usage
        truth = truth[counts]
        given = given[given.index.isin(truth.index)]
    answer = COLUMNS[metric][1]
    wanted = {i: [w for w in words if w != "None"] for i, words in _words(truth, answer).items()}
    said = _words(given, answer)
    if metric == "gap":
        return gap(wanted, {i: _scored(i, words, submission) for i, words in said.items()})
    if metric == "f1":
        return mean_f1(wanted, said)
    wanted = {i: words for i, words in wanted.items() if words}
    said = {i: words for i, words in said.items() if i in wanted}
    return map_at_k(wanted, said, 100 if metric == "map100" else 5)


def _read(path: str | Path, metric: str) -> pd.DataFrame:
    """A csv as text, by id."""
    key, answer = COLUMNS[metric]
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise MetricError(f"No file {path}.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise MetricError(f"{path} is not a readable csv: {error}") from None
    for name in (key, answer):
        if name not in frame:
            raise MetricError(f"{path} has no column {name!r}; {metric} needs {key},{answer}.")
    twice = frame[key].duplicated().to_numpy()
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise MetricError(f"{path} row {row + 2}: {frame[key].iloc[row]} occurs twice.")
    return frame.set_index(key)


def _words(frame: pd.DataFrame, column: str) -> dict[str, list[str]]:
    """The space-separated entries of each row."""
    return {str(i): str(text).split() for i, text in zip(frame.index, frame[column], strict=True)}


def _scored(query: str, words: Sequence[str], path: str | Path) -> tuple[str, float] | None:
    """`LABEL SCORE` of a recognition submission; None when it is empty."""
    if not words:
        return None
    try:
        return words[0], float(words[1])
    except (IndexError, ValueError):
        raise MetricError(
            f"{path}: {query} has {' '.join(words)!r}, expected 'LABEL SCORE' or nothing."
        ) from None


def _known(given: Mapping[str, Any], truth: Mapping[str, Any]) -> None:
    for i in given:
        if i not in truth:
            raise ValueError(f"There is an answer for {i!r}, which the solution does not have.")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("metric", choices=list(COLUMNS))
    parser.add_argument("solution")
    parser.add_argument("submission")
    parser.add_argument("--usage", choices=["Public", "Private"])
    given = parser.parse_args(arguments)
    try:
        value = score_file(given.metric, given.solution, given.submission, usage=given.usage)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{value:.5f}")


if __name__ == "__main__":
    main()
