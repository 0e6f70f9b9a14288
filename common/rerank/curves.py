"""A metric by threshold, exact, and the threshold that is best on validation data.

A threshold keeps what scores at least as much. Curves are exact: one point for every set of answers
that some threshold keeps, from the highest threshold (nothing) to the lowest (everything).

    curve = f1_curve(score, hits, totals)
    curve.threshold, curve.value
    analysis.thresholds.append(curve.report("F1 by threshold", "held out"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.rerank.thresholds import above, between, real_scores

Array = np.ndarray


@dataclass
class Curve:
    """A metric by threshold.

    Attributes:
        x: `(T,)` float64 thresholds, ascending.
        y: `(T,)` float64 metric of what scores at least x.
    """

    x: Array
    y: Array

    @property
    def best(self) -> int:
        """The highest point; ties: the highest threshold, which answers least."""
        # Sums in another order differ in the last digits: that is a tie.
        return int(np.flatnonzero(self.y >= self.y.max() - 1e-12)[-1])

    @property
    def threshold(self) -> float:
        """Of the highest point."""
        return float(self.x[self.best])

    @property
    def value(self) -> float:
        """The metric there."""
        return float(self.y[self.best])

    def report(
        self,
        title: str,
        name: str,
        *,
        x_label: str = "threshold",
        y_label: str = "",
        caption: str = "",
        most: int = 200,
        chosen: float | None = None,
    ) -> dict[str, Any]:
        """The curve as the report's `analysis.thresholds` wants it, thinned to about `most`.

        Points are spread over the thresholds, so that a cloud of equal scores does not use them up;
        the best one is among them. `chosen` is the threshold in use; None: the best one.
        """
        grid = np.linspace(self.x[0], self.x[-1], most)
        rows = np.unique(
            np.append(np.searchsorted(self.x, grid).clip(0, len(self.x) - 1), self.best)
        )
        drawn = {
            "title": title,
            "x": self.x[rows].tolist(),
            "series": {name: self.y[rows].tolist()},
            "chosen": self.threshold if chosen is None else chosen,
            "x_label": x_label,
            "y_label": y_label,
            "caption": caption,
        }
        return {key: value for key, value in drawn.items() if value != ""}


def search_threshold(
    measure: Callable[[float], float], scores: Array, *, steps: int = 200
) -> Curve:
    """The curve of any metric, tried at `steps` quantiles of the scores, above and below them all.

    Args:
        measure: maps a threshold to a metric, higher is better; on validation data only.
        scores: any shape; -inf is padding.
        steps: at most so many thresholds between the lowest and the highest score.

    Raises:
        ValueError: NaN scores, no scores, a NaN metric, or `steps` below 1.
    """
    if steps < 1:
        raise ValueError(f"search_threshold: steps must be at least 1, got {steps}.")
    values = real_scores(scores, "search_threshold")
    at = np.linspace(0, len(values) - 1, min(steps, len(values))).round().astype(np.int64)
    x = np.append(np.unique(np.sort(values)[at]).astype(np.float64), above(values.max()))
    y = np.array([float(measure(float(value))) for value in x])
    if np.isnan(y).any():
        raise ValueError(f"search_threshold: the metric at {x[np.isnan(y)][0]:.6g} is NaN.")
    return Curve(x, y)


def f1_curve(
    score: Array, hits: Array, totals: Array, *, own: bool = True, false_weight: float = 1.0
) -> Curve:
    """Mean F1 of the rows (Shopee's metric) by threshold, exact.

    Args:
        score: `(Q, K)`; -inf is padding.
        hits: `(Q, K)` bool, whether that neighbor is right.
        totals: `(Q,)` how many are right in all, with the row itself when `own`.
        own: the row itself is always answered, and right.
        false_weight: a wrong answer counts so often, for a validation set with fewer strangers than
            the test (Shopee 2021 4th place: 2).

    Raises:
        ValueError: NaN scores, no scores, shapes that do not fit, a negative weight.
    """
    if not false_weight >= 0:
        raise ValueError(f"f1_curve: false_weight must be at least 0, got {false_weight}.")
    _same_shape(score, hits, totals, "f1_curve")
    real_scores(score, "f1_curve")
    order = np.argsort(-score, axis=1, kind="stable")
    value = np.take_along_axis(score, order, 1)
    right = np.take_along_axis(hits, order, 1).astype(bool) & (value > -np.inf)
    kept = np.arange(1, score.shape[1] + 1) + own
    found = right.cumsum(1) + own
    # |T| + |P|, of which the wrong ones count more.
    f1 = 2 * found / (found + false_weight * (kept - found) + totals[:, None])
    start = 2 * int(own) / np.maximum(int(own) + totals, 1)
    gain = np.diff(f1, axis=1, prepend=start[:, None])
    return _curve(value, gain, float(start.sum()), len(score))


def unknown_curve(
    score: Array,
    index: Array,
    truth: Array,
    *,
    top: int = 5,
    offset: Array | None = None,
    refused: Array | None = None,
) -> Curve:
    """MAP@`top` by the threshold of the unknown identity, exact (Humpback's metric with new_whale).

    The unknown identity stands before the first candidate that scores below the threshold. Given a
    per-class `offset`, below threshold + offset of its class.

    Args:
        score: `(Q, K)` descending; -inf is padding.
        index: `(Q, K)` classes, each once in a row.
        truth: `(Q,)` class of each query, -1 for the unknown identity.
        top: entries that count.
        offset: `(C,)`.
        refused: `(Q, K)` bool, listings that pass with no threshold, see `refused_listings`.

    Raises:
        ValueError: NaN scores, no scores, shapes that do not fit.
    """
    _same_shape(score, index, truth, "unknown_curve")
    real_scores(score, "unknown_curve")
    passing = score if refused is None else np.where(refused, -np.inf, score)
    margin = margins(passing, index, offset)[:, :top]
    index, truth = index[:, :top], np.asarray(truth)
    place = np.arange(margin.shape[1])
    # One place further back is worth less, and nothing behind the last that counts.
    front = 1 / (place + 1)
    back = np.where(place + 1 < top, 1 / (place + 2), 0.0)
    hit = (index == truth[:, None]) & (truth >= 0)[:, None] & np.isfinite(score[:, :top])
    none = (truth < 0)[:, None]
    # As the threshold falls below a candidate, a hit moves up and the unknown identity down.
    gain = np.where(hit, front - back, np.where(none, back - front, 0.0))
    start = np.where(none[:, 0], 1.0, (hit * back).sum(1))
    if not (margin > -np.inf).any():  # all are refused
        return Curve(np.array([above(np.max(score))]), np.array([start.mean()]))
    return _curve(margin, gain, float(start.sum()), len(score))


def search_offset(
    score: Array, index: Array, truth: Array, counts: Array, *, top: int = 5, steps: int = 41
) -> tuple[float, Curve]:
    """The best threshold of classes with one image, relative to the others', and the curve with it.

    Each of `steps` offsets between minus and plus the spread of the first scores (their quantiles
    .1 and .9) has its own exact curve; ties: the smallest offset. Arguments as `unknown_curve`;
    `counts` `(C,)` are images per class. Fitted on few queries: compare with the curve at 0.
    """
    first = real_scores(score[:, :1], "search_offset")
    reach = float(np.quantile(first, 0.9) - np.quantile(first, 0.1))
    best: tuple[float, Curve] = (0.0, unknown_curve(score, index, truth, top=top))
    grid = np.linspace(-reach, reach, steps)
    for value in grid[np.argsort(np.abs(grid), kind="stable")].tolist():
        curve = unknown_curve(
            score, index, truth, top=top, offset=np.where(counts == 1, value, 0.0)
        )
        if curve.value > best[1].value:
            best = value, curve
    return best


def refused_listings(index: Array, score: Array, counts: Array, accept: int) -> Array:
    """`(Q, K)` bool, listings of one-image classes that are not among their `accept` best queries.

    Read along the column of the class, not along the row of the query; ties: the lower query.
    Origin: Humpback 2019 4th place, the transposed matrix; the number is ours.

    Args:
        index: `(Q, K)` classes, -1 padding.
        score: `(Q, K)`.
        counts: `(C,)` images per class.
        accept: queries that a class may have; 0: all.
    """
    refused = np.zeros(index.shape, bool)
    if not accept:
        return refused
    row, column = np.nonzero((index >= 0) & (counts[index] == 1))
    label, value = index[row, column], score[row, column]
    order = np.lexsort((row, -value, label))
    label = label[order]
    rank = np.arange(len(label)) - np.searchsorted(label, label)
    refused[row[order], column[order]] = rank >= accept
    return refused


def margins(score: Array, index: Array, offset: Array | None = None) -> Array:
    """Highest threshold with which all candidates up to each one pass, `(Q, K)`, descending."""
    if offset is None:
        return np.minimum.accumulate(score, 1)
    given = np.append(np.asarray(offset), 0.0)  # padding is -1
    return np.asarray(np.minimum.accumulate(score - given[index].astype(score.dtype), 1))


def _curve(score: Array, gain: Array, start: float, rows: int) -> Curve:
    """The curve of a sum that changes by `gain` as the threshold falls to each score."""
    real = score > -np.inf
    value, gain = score[real], gain[real]
    order = np.argsort(-value, kind="stable")
    value, total = value[order], np.cumsum(gain[order]) + start
    last = np.append(
        np.flatnonzero(value[1:] != value[:-1]), len(value) - 1
    )  # of a run of equal scores
    kept = value[last]
    below = np.append(kept[1:], kept[-1:])
    x = np.append(between(below, kept)[::-1], above(kept[0]))
    y = np.append(total[last][::-1], start) / max(rows, 1)
    return Curve(x, y)


def _same_shape(score: Array, other: Array, rows: Array, where: str) -> None:
    if score.ndim != 2 or score.shape != other.shape or len(rows) != len(score):
        raise ValueError(
            f"{where}: scores {score.shape}, {other.shape} beside them, and {len(rows)} rows: they "
            "must be (Q, K), (Q, K) and Q."
        )
