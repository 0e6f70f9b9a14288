"""Blend weights that score best on validation data: coordinate search, or a grid on the simplex.

On out-of-fold files (`common.weigh_files`):

    python -m common.weigh TRUTH.csv A.csv B.safetensors --metric auc
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np


def search_weights(
    score: Callable[[np.ndarray], float],
    n: int,
    *,
    method: str = "coordinate",
    steps: int = 10,
    rounds: int = 5,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """The best weights found, `(n,)` summing to 1, and their score (higher is better).

    `score` must measure on validation data only: these weights are fitted. `simplex` tries every
    weight vector that is a multiple of 1 / steps. `coordinate` starts from equal weights and moves
    one model at a time, in an order drawn from `seed`, to each of 0, 1 / steps, ... 1 against the
    rest, until a whole round gains nothing or `rounds` are over. Equal weights win ties.

    Raises:
        ValueError: bad `method`, n, steps or rounds < 1, a NaN score, or more than 100,000 points
        on the simplex.
    """
    if min(n, steps, rounds) < 1:
        raise ValueError(
            f"search_weights: n, steps and rounds must be at least 1, got {n}, {steps}, {rounds}."
        )
    if method not in ("coordinate", "simplex"):
        raise ValueError(f"search_weights: method must be coordinate or simplex, got {method!r}.")
    grid = _simplex(n, steps) if method == "simplex" else np.zeros((0, n))
    best = np.full(n, 1 / n)
    best_score = _measured(score, best)
    if method == "simplex":
        for weights in grid:
            value = _measured(score, weights)
            if value > best_score:
                best, best_score = weights, value
        return best, best_score
    generator = np.random.default_rng(seed)
    for _ in range(rounds if n > 1 else 0):
        before = best_score
        for model in generator.permutation(n):
            rest = np.delete(best, model)
            rest = rest / rest.sum() if rest.sum() > 0 else np.full(n - 1, 1 / (n - 1))
            for part in np.linspace(0, 1, steps + 1):
                weights = np.insert(rest * (1 - part), model, part)
                value = _measured(score, weights)
                if value > best_score:
                    best, best_score = weights, value
        if best_score <= before:
            break
    return best, best_score


def _measured(score: Callable[[np.ndarray], float], weights: np.ndarray) -> float:
    value = float(score(weights.copy()))
    if np.isnan(value):
        raise ValueError(f"search_weights: the score of weights {weights.round(3)} is NaN.")
    return value


def _simplex(n: int, steps: int) -> np.ndarray:
    """All `(P, n)` vectors of non-negative multiples of 1 / steps that sum to 1."""
    if comb(steps + n - 1, n - 1) > 100_000:
        raise ValueError(
            f"search_weights: {comb(steps + n - 1, n - 1)} weight vectors for {n} models with "
            f"steps={steps}: lower steps or use method coordinate."
        )
    heads = np.zeros((1, 0), dtype=np.int64)
    for _ in range(n - 1):
        left = steps - heads.sum(1)
        heads = np.concatenate(
            [
                np.column_stack([heads[left >= i], np.full((left >= i).sum(), i)])
                for i in range(steps + 1)
            ]
        )
    return np.column_stack([heads, steps - heads.sum(1)]) / steps


if __name__ == "__main__":
    from common.weigh_files import main

    main()
