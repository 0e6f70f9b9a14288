"""One probability from those of several matchers: their mean, or their odds weighed by fitting.

The mean is WildFusion's (Cermak et al., ECCVW 2024), right when the matchers are about equally
good. In a mean a matcher that knows little is worse than none; fitted weights leave it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from common.lazy import Lazy

optimize = Lazy("scipy.optimize")

_EDGE = 1e-6  # odds of 0 and 1 would be infinite
LEARNED = "learned"


class Mean:
    """Weighted mean of probabilities.

    Args:
        weights: one per matcher; unset: equal.
        count: how many matchers.

    Raises:
        ValueError: another number of weights, or not all at least 0 and one above.
    """

    def __init__(self, weights: Sequence[float], count: int) -> None:
        given = np.asarray(list(weights) or [1.0] * count, np.float64)
        if len(given) != count or not (given >= 0).all() or not 0 < given.sum() < np.inf:
            raise ValueError(
                f"Fusion weights must be {count} numbers of at least 0, the cosine's first, or "
                f"{LEARNED!r}; got {list(weights)}."
            )
        self.weights_ = given / given.sum()

    def fit(self, probabilities: np.ndarray, same: np.ndarray) -> Mean:
        """Itself: there is nothing to learn."""
        return self

    def transform(self, probabilities: np.ndarray) -> np.ndarray:
        """From `(M, ...)` to `(...)`."""
        return np.tensordot(self.weights_, probabilities, axes=1)


class LogOdds:
    """Logistic regression on the matchers' log odds, no weight below 0.

    Attributes:
        weights_: `(M,)`.
        shift_: added to the weighted log odds.
    """

    def fit(self, probabilities: np.ndarray, same: np.ndarray) -> LogOdds:
        """Itself, from `(M, P)` probabilities that did not see their pairs and `(P,)` bool."""
        odds, target = _log_odds(probabilities), np.asarray(same, np.float64)
        count = len(odds)

        def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
            z = beta[:count] @ odds + beta[count]
            error = (expit(z) - target) / len(target)
            gradient = np.append(odds @ error, error.sum())
            return float((np.logaddexp(0, z) - target * z).mean()), gradient

        start = np.append(np.full(count, 1 / count), 0.0)
        bounds = [(0, None)] * count + [(None, None)]
        options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
        beta = optimize.minimize(
            loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options=options
        ).x
        self.weights_, self.shift_ = beta[:count], float(beta[count])
        return self

    def transform(self, probabilities: np.ndarray) -> np.ndarray:
        """From `(M, ...)` to `(...)`; -inf where a matcher says -inf."""
        lost = np.isneginf(probabilities).any(0)
        found = expit(np.tensordot(self.weights_, _log_odds(probabilities), axes=1) + self.shift_)
        return np.where(lost, -np.inf, found)


def fusion(weights: Sequence[float] | str, count: int) -> Mean | LogOdds:
    """What `weights` of `count` matchers stand for: `learned`, numbers, or nothing for equal."""
    if isinstance(weights, str):
        if weights != LEARNED:
            raise ValueError(f"Fusion weights are numbers or {LEARNED!r}, got {weights!r}.")
        return LogOdds()
    return Mean(weights, count)


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    p = np.asarray(probabilities, np.float64).clip(_EDGE, 1 - _EDGE)
    return np.asarray(np.log(p) - np.log1p(-p))
