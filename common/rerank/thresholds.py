"""Thresholds without a metric: by the share of answers, by quantile, by halving.

A threshold keeps what scores at least as much. With a metric: `common.rerank.curves`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def share_threshold(scores: Array, share: float) -> float:
    """The threshold below which `share` of the scores lie: exact to one, whatever their spread.

    For the first answers: so that new_whale leads in 27.6 % of the queries (Humpback 2019 3rd
    place). round(share * Q) scores lie below. Equal scores cannot be parted: then the nearest
    number that can be had, the lower one of two; -inf (nothing to answer) always lies below.

    Raises:
        ValueError: `share` outside [0, 1], NaN scores, no scores.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share_threshold: share must be in [0, 1], got {share}.")
    values = np.sort(np.asarray(scores).ravel())
    if not len(values) or np.isnan(values).any():
        raise ValueError(f"share_threshold: {len(values)} scores, {np.isnan(values).sum()} NaN.")
    wanted = round(share * len(values))
    # Numbers that can lie below: where a run of equal scores starts, or all.
    starts = np.append(np.flatnonzero(values[1:] != values[:-1]) + 1, len(values))
    starts = np.append(0, starts)
    starts = starts[starts >= (values == -np.inf).sum()]
    below = int(starts[np.argmin(np.abs(starts - wanted))])
    if below == len(values):
        return above(values[-1])
    low = values[below - 1] if below else values[0]
    return float(between(low, values[below]))


def quantile_threshold(scores: Array, q: float) -> float:
    """The q-th quantile of the scores that are no padding, linear between two of them.

    Raises:
        ValueError: `q` outside [0, 1], NaN scores, no scores.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"quantile_threshold: q must be in [0, 1], got {q}.")
    return float(np.quantile(real_scores(scores, "quantile_threshold").astype(np.float64), q))


def bisect_threshold(
    share_of: Callable[[float], float],
    target: float,
    low: float,
    high: float,
    *,
    rounds: int = 60,
) -> float:
    """The threshold in [low, high] at which a share that rises with it reaches `target`.

    By halving, for what is not the share of an array: an ensemble's answers after all its steps
    (Happywhale 2022 1st place: new individuals 16.5 %). The lowest threshold found with a share of
    at least `target`.

    Raises:
        ValueError: `low` not below `high`, or the share at `high` is below the target.
    """
    if not low < high:
        raise ValueError(f"bisect_threshold: low must be below high, got {low} and {high}.")
    reached = float(share_of(high))
    if not reached >= target:
        raise ValueError(f"bisect_threshold: the share at {high} is {reached}, target {target}.")
    if float(share_of(low)) >= target:
        return low
    for _ in range(rounds):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if float(share_of(middle)) >= target:
            high = middle
        else:
            low = middle
    return high


def between(low: Array, high: Array) -> Array:
    """Halfway between two scores, or the higher one where rounding would give the lower one."""
    high = np.asarray(high)
    middle = ((np.asarray(low, np.float64) + high) / 2).astype(high.dtype)
    return np.where(middle > low, middle, high).astype(np.float64)


def above(value: float) -> float:
    """The next number above a score, of the score's own type."""
    return float(np.nextafter(value, np.asarray(np.inf, np.asarray(value).dtype)))


def real_scores(scores: Array, where: str) -> Array:
    """The scores that are no padding, flat."""
    values = np.asarray(scores).ravel()
    wrong = int(np.isnan(values).sum())
    values = values[values > -np.inf]
    if wrong or not len(values):
        raise ValueError(
            f"{where}: {len(values)} scores and {wrong} NaN: check where they are from."
        )
    return values
