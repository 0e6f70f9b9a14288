"""The competitions' metrics by Kaggle's exact rules: on dicts, on arrays, on files.

    python -m common.metrics METRIC SOLUTION.csv SUBMISSION.csv [--usage Public|Private]

METRIC is gap, map100, map5 or f1. Rules: repeated entries keep no rank; an AP is divided by
min(relevant, k); queries without a relevant item do not count, except in GAP, where predicting
something for them costs rank; ties go by score descending, then id ascending.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.submission import FORMATS, read

Array = npt.NDArray[Any]

_COMPETITIONS = {
    "gap": "landmarks-recognition",
    "map100": "landmarks-retrieval",
    "map5": "whale",
    "f1": "shopee",
}


def gap(solution: Mapping[str, Any], predictions: Mapping[str, tuple[Any, float] | None]) -> float:
    """Global average precision (GAP, micro-AP) of one prediction per query.

    All predictions are ranked by score descending, then id ascending; precision is summed at the
    correct ones and divided by the number of queries that have a label.

    Args:
        solution: `{id: labels}`; labels are a set or list (any of them is correct), one label, or
            empty for a query that shows no landmark.
        predictions: `{id: (label, score) or None}`; a missing id counts as None.

    Raises:
        ValueError: an id that the solution does not have, or a score that is not finite.
    """
    unknown = [i for i in predictions if i not in solution]
    if unknown:
        raise ValueError(
            f"{len(unknown)} predictions are for ids that the solution does not have, the first is "
            f"{unknown[0]!r}."
        )
    given = [(i, p) for i in sorted(predictions) if (p := predictions[i]) is not None]
    for i, (_, value) in given:
        if not math.isfinite(value):
            raise ValueError(f"The score of {i!r} is {value}: GAP ranks by score.")
    correct = [label in _labels(solution[i]) for i, (label, _) in given]
    answerable = sum(bool(_labels(labels)) for labels in solution.values())
    return gap_arrays(np.array(correct, bool), np.array([p[1] for _, p in given]), answerable)


def map_at_k(truth: Mapping[str, Any], ranked: Mapping[str, Any], k: int = 100) -> float:
    """Mean average precision at `k` over the queries that have a relevant item.

    AP = sum over relevant ranks r <= k of precision(r), divided by min(relevant items, k). With one
    label per query that is 1 / rank.

    Args:
        truth: `{id: relevant items}`, a set, a list or one item; empty queries are ignored.
        ranked: `{id: items, best first}`; repeated items are dropped before ranks are given, a
            missing id counts as no items, ids that `truth` does not have are not scored.
        k: length of the list.

    Raises:
        ValueError: k < 1, or `ranked` has none of the ids.
    """
    _check_ids(truth, ranked, k)
    wanted = ((i, _labels(items)) for i, items in truth.items())
    return _mean([_precision(some, ranked.get(i), k) for i, some in wanted if some])


def mean_f1(truth: Mapping[str, Any], matches: Mapping[str, Any]) -> float:
    """Mean over rows of `2 |T & P| / (|T| + |P|)` for the true set T and the predicted set P.

    Args:
        truth: `{id: matching ids}`, the id itself included as in Shopee.
        matches: `{id: predicted ids}`; a missing id counts as an empty set.

    Raises:
        ValueError: `matches` has none of the ids.
    """
    _check_ids(truth, matches, 1)
    return _mean([_row_f1(_labels(labels), matches.get(i)) for i, labels in truth.items()])


def recall_at_k(truth: Mapping[str, Any], ranked: Mapping[str, Any], k: int = 1) -> float:
    """Share of the queries with a relevant item that have one among the first `k` distinct items.

    Arguments and errors as in `map_at_k`.
    """
    _check_ids(truth, ranked, k)
    wanted = {i: relevant for i, items in truth.items() if (relevant := _labels(items))}
    found = sum(not relevant.isdisjoint(_top(ranked.get(i), k)) for i, relevant in wanted.items())
    return found / len(wanted) if wanted else 0.0


def gap_arrays(correct: Array, score: Array, answerable: int) -> float:
    """GAP of `(M,)` predictions in ascending order of id: bool correct, float score."""
    order = np.argsort(-np.asarray(score), kind="stable")
    right = np.asarray(correct, bool)[order]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float(precision[right].sum() / answerable) if answerable else 0.0


def map_at_k_arrays(hits: Array, totals: Array, k: int = 100) -> float:
    """Mean AP at `k` from distinct `hits` `(Q, K)` bool, best first, and relevant counts `(Q,)`."""
    hits, totals = np.asarray(hits, bool)[:, :k], np.asarray(totals)
    hits, totals = hits[totals > 0], totals[totals > 0]
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    values = (precision * hits).sum(1) / np.minimum(totals, k)
    return float(values.mean()) if len(values) else 0.0


def mean_f1_arrays(hits: Array, kept: Array, totals: Array) -> float:
    """Row F1 from `hits` and `kept` `(Q, K)` bool (true, predicted) and true counts `(Q,)`."""
    kept = np.asarray(kept, bool)
    found = (np.asarray(hits, bool) & kept).sum(1)
    values = 2 * found / np.maximum(kept.sum(1) + np.asarray(totals), 1)
    return float(values.mean()) if len(values) else 0.0


def recall_at_k_arrays(hits: Array, totals: Array, k: int = 1) -> float:
    """Recall at `k` from `hits` `(Q, K)` bool, best first, and relevant counts `(Q,)`."""
    some = np.any(np.asarray(hits, bool)[:, :k], axis=1)[np.asarray(totals) > 0]
    return float(some.mean()) if len(some) else 0.0


def label_hits(index: Array, query_labels: Array, gallery_labels: Array) -> tuple[Array, Array]:
    """`hits` `(Q, K)` bool and relevant counts `(Q,)` of neighbors, by equal labels.

    Args:
        index: `(Q, K)` gallery rows, -1 padding, as in `Neighbors`. When the gallery holds the
            queries themselves, self counts as relevant: subtract 1 from counts if it was masked.
        query_labels: `(Q,)` int64; -1 (unknown) matches nothing.
        gallery_labels: `(N,)` int64.
    """
    index, query, known = (np.asarray(a) for a in (index, query_labels, gallery_labels))
    labels, counts = np.unique(known, return_counts=True)
    place = np.searchsorted(labels, query)
    same = np.append(labels, -1)[place] == query
    totals = np.where(same & (query >= 0), np.append(counts, 0)[place], 0)
    rows = np.append(known, -1)[index]  # index -1 takes the appended -1
    return (rows == query[:, None]) & (query >= 0)[:, None], totals


def score(
    metric: str, solution: str | Path, submission: str | Path, *, usage: str | None = None
) -> float:
    """The metric of a submission file as Kaggle scores it; arguments and errors of `by_query`."""
    found = by_query(metric, solution, submission, usage=usage)
    if metric != "gap":
        return _mean(found["value"])
    given = np.array([value is not None for value in found["score"]], bool)
    scores = np.array([value for value in found["score"] if value is not None], np.float64)
    return gap_arrays(np.array(found["value"], bool)[given], scores, sum(found["known"]))


def by_query(
    metric: str, solution: str | Path, submission: str | Path, *, usage: str | None = None
) -> dict[str, list[Any]]:
    """What each query of a submission file adds to its metric, by id ascending.

    `ids` and `value`, whose mean is the metric. Of gap `value` says whether the prediction is
    right, `score` what it scores (None without one), `known` whether the query has a label.

    Args:
        metric: `gap`, `map100`, `map5` or `f1`.
        solution: id and truth, and perhaps `Usage`; rows with Usage `Ignored` never count.
        submission: id and prediction; ids that it leaves out count as no prediction.
        usage: `Public` or `Private` scores that part alone.

    Raises:
        ValueError: a file that cannot be scored; names file, line and id.
        FileNotFoundError: a file is not there.
    """
    if metric not in _COMPETITIONS:
        raise ValueError(f"metric must be one of {', '.join(_COMPETITIONS)}, got {metric!r}.")
    form = FORMATS[_COMPETITIONS[metric]]
    key, column = form.key, form.column
    rows = read(solution, key, column, others=True)
    answers = read(submission, key, column)
    for i, answer in answers.items():
        if i not in rows:
            raise ValueError(f"{submission}, line {answer['line']}: {solution} has no {key} {i!r}.")
    if usage and not all("Usage" in row for row in rows.values()):
        raise ValueError(f"{solution} has no column Usage: score it without --usage {usage}.")
    counted = {
        i: [] if row[column].strip() == "None" else row[column].split()
        for i, row in sorted(rows.items())
        if row.get("Usage") != "Ignored" and (not usage or row["Usage"] == usage)
    }
    if not counted:
        part = f" with Usage {usage}" if usage else ""
        raise ValueError(f"{solution} has no rows to score{part}.")
    if metric == "gap":
        given = {i: _label_and_score(row, submission, i) for i, row in answers.items()}
        pairs = [(given.get(i) or (None, None)) for i in counted]
        right = [pair[0] in labels for pair, labels in zip(pairs, counted.values(), strict=True)]
        known = [bool(labels) for labels in counted.values()]
        return {"ids": [*counted], "value": right, "score": [p[1] for p in pairs], "known": known}
    # Row by row: the lists of 118,000 queries at once are a gigabyte of strings.
    asked, value = counted, _row_f1
    if metric == "f1":
        _check_ids(counted, {i: () for i in answers if i in counted}, 1)
    else:
        asked = {i: items for i, items in counted.items() if items}
        value = partial(_precision, k=100 if metric == "map100" else 5)
    words = (answers[i][column].split() if i in answers else () for i in asked)
    values = [value(set(asked[i]), row) for i, row in zip(asked, words, strict=True)]
    return {"ids": list(asked), "value": values}


def _label_and_score(row: dict[str, str], path: str | Path, i: str) -> tuple[str, float] | None:
    words = row["landmarks"].split()
    if not words:
        return None
    try:
        label, text = words
        value = float(text)
        if not math.isfinite(value):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{path}, line {row['line']}, id {i!r}: {row['landmarks']!r} is neither empty nor "
            "'LABEL SCORE' with a finite score."
        ) from None
    return label, value


def _precision(relevant: set[Any], ranked: Any, k: int) -> float:
    """Average precision at `k` of one query that has relevant items."""
    ranks = [rank for rank, item in enumerate(_top(ranked, k), 1) if item in relevant]
    return sum(n / rank for n, rank in enumerate(ranks, 1)) / min(len(relevant), k)


def _row_f1(true: set[Any], answered: Any) -> float:
    found = _labels(answered)
    return 2 * len(true & found) / max(len(true) + len(found), 1)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _labels(value: Any) -> set[Any]:
    """A set of labels; one label stands for itself, None and '' for nothing."""
    return set(_entries(value))


def _entries(value: Any) -> Iterable[Any]:
    if value is None or (isinstance(value, str) and not value):
        return ()
    return value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def _top(value: Any, k: int) -> Iterable[Any]:
    """The first `k` distinct entries."""
    return islice(dict.fromkeys(_entries(value)), k)


def _check_ids(truth: Mapping[str, Any], given: Mapping[str, Any], k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    if truth and given and truth.keys().isdisjoint(given.keys()):
        raise ValueError(
            f"No id of the predictions is in the truth: {next(iter(given))!r} against "
            f"{next(iter(truth))!r}."
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the score of a submission file."""
    parser = argparse.ArgumentParser(prog="python -m common.metrics", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("metric", choices=list(_COMPETITIONS))
    parser.add_argument("solution", metavar="SOLUTION.csv")
    parser.add_argument("submission", metavar="SUBMISSION.csv")
    parser.add_argument("--usage", choices=["Public", "Private"])
    options = parser.parse_args(arguments)
    try:
        value = score(options.metric, options.solution, options.submission, usage=options.usage)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{value:.5f}")


if __name__ == "__main__":
    main()
