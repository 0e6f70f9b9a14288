"""Scores as probabilities, so that different matchers can be compared and averaged.

    calibration = Isotonic().fit(scores, same)
    probability = calibration.transform(other_scores)     # strictly increasing: ranks stay

A cosine of .6 and 25 inliers mean nothing beside each other; that 80% of the training pairs with
such a score show the same thing does. Isotonic calibration and fusion: WildFusion (Cermak et al.,
ECCVW 2024); logistic: Platt (1999) with the targets of Lin, Lin and Weng (Machine Learning 2007);
expected calibration error: Naeini et al. (AAAI 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.special import expit

from common.data.folds import group_folds
from common.lazy import Lazy

interpolate, isotonic = Lazy("scipy.interpolate"), Lazy("sklearn.isotonic")

_EDGE = 1e-3  # probabilities stay this far from 0 and 1, so that the ends can still rise
KINDS = ("isotonic", "logistic")


class Calibration(Protocol):
    """From scores to probabilities: `fit`, then `transform`."""

    def fit(self, scores: np.ndarray, same: np.ndarray) -> Calibration:
        """Itself, from `(P,)` scores and `(P,)` bool."""

    def transform(self, scores: np.ndarray) -> np.ndarray:
        """`(...)` float64 in (0, 1), strictly increasing with the score; NaN becomes -inf."""


class Logistic:
    """Probability 1 / (1 + exp(-(slope * score + shift))); few pairs are enough.

    Attributes:
        slope_: above 0, also where the scores say the opposite: calibration never turns a ranking.
        shift_: log odds of a score of 0.
    """

    def fit(self, scores: np.ndarray, same: np.ndarray) -> Logistic:
        """Itself, by Newton steps on the convex loss.

        Targets are a little short of 0 and 1 (Platt), so that separable pairs have an answer.

        Raises:
            ValueError: not both kinds of pairs, or scores that are not finite.
        """
        scores, same = _checked(scores, same)
        center, scale = scores.mean(), scores.std() or 1.0
        x = np.column_stack([(scores - center) / scale, np.ones(len(scores))])
        right, wrong = int(same.sum()), int((~same).sum())
        target = np.where(same, (right + 1) / (right + 2), 1 / (wrong + 2))
        beta = np.array([0.0, np.log((right + 1) / (wrong + 1))])

        def loss(beta: np.ndarray) -> float:
            z = x @ beta
            return float(np.logaddexp(0, z).sum() - target @ z)

        for _ in range(100):
            p = expit(x @ beta)
            gradient = x.T @ (p - target)
            hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-12 * np.eye(2)
            step = np.linalg.solve(hessian, gradient)
            size = 1.0
            while loss(beta - size * step) > loss(beta) and size > 1e-10:
                size /= 2
            beta = beta - size * step
            if np.abs(size * step).max() < 1e-10:
                break
        slope = max(float(beta[0]), 1e-6)
        self.slope_ = slope / float(scale)
        self.shift_ = float(beta[1]) - self.slope_ * float(center)
        return self

    def transform(self, scores: np.ndarray) -> np.ndarray:
        """See `Calibration`. Far from the pairs, where floats end, neighbors may tie."""
        scores = np.asarray(scores, np.float64)
        return _nan_last(scores, expit(self.slope_ * scores + self.shift_))


class Isotonic:
    """The best rising step function of the pairs, its steps joined by a strictly rising line.

    Isotonic regression alone gives equal probabilities to all scores of a step, and the ranking
    inside it is lost. Here a monotone cubic (PCHIP) runs through the middle of each step, and goes
    on rising slowly beyond the first and the last. Needs a few hundred pairs.

    Attributes:
        scores_: `(S,)` mean score of each step.
        probabilities_: `(S,)` its probability, at least .001 from 0 and 1.
    """

    def fit(self, scores: np.ndarray, same: np.ndarray) -> Isotonic:
        """Itself.

        Raises:
            ValueError: not both kinds of pairs, or scores that are not finite.
        """
        scores, same = _checked(scores, same)
        level = isotonic.IsotonicRegression().fit_transform(scores, same.astype(np.float64))
        # Equal levels are one step: its mean score, and its level.
        levels, step = np.unique(level, return_inverse=True)
        count = np.bincount(step)
        self.scores_ = np.bincount(step, scores) / count
        self.probabilities_ = _EDGE + (1 - 2 * _EDGE) * levels
        self._scale = float(scores.std()) or 1.0
        self._line = None
        if len(levels) > 1:
            self._line = interpolate.PchipInterpolator(self.scores_, self.probabilities_)
        return self

    def transform(self, scores: np.ndarray) -> np.ndarray:
        """See `Calibration`."""
        scores = np.asarray(scores, np.float64)
        x = np.nan_to_num(scores, nan=self.scores_[0], posinf=np.inf, neginf=-np.inf)
        inside = x.clip(self.scores_[0], self.scores_[-1])
        low, high = self.probabilities_[0], self.probabilities_[-1]
        found = np.full(x.shape, low) if self._line is None else self._line(inside)
        # Beyond the ends: halfway to 0 or 1 at infinity.
        with np.errstate(invalid="ignore"):
            below = np.maximum(self.scores_[0] - x, 0) / self._scale
            above = np.maximum(x - self.scores_[-1], 0) / self._scale
            found = found - low / 2 * _saturated(below) + (1 - high) / 2 * _saturated(above)
        return _nan_last(scores, found)


def calibration(kind: str) -> Calibration:
    """A new `Isotonic` or `Logistic`, by its name in lower case; ValueError for another."""
    if kind not in KINDS:
        raise ValueError(f"No calibration {kind!r}; known: {', '.join(KINDS)}.")
    return Isotonic() if kind == "isotonic" else Logistic()


@dataclass
class Reliability:
    """How well probabilities keep their word.

    Attributes:
        confidence: `(B,)` mean probability of the pairs in each bin; NaN for an empty one.
        accuracy: `(B,)` share of them that are of one class.
        count: `(B,)` how many.
        ece: expected calibration error, the mean of |accuracy - confidence| over the pairs.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    ece: float

    def note(self) -> dict[str, Any]:
        """The bins that are not empty, for `Notes.calibration`."""
        used = self.count > 0
        return {
            "confidence": self.confidence[used].tolist(),
            "accuracy": self.accuracy[used].tolist(),
            "count": self.count[used].tolist(),
            "ece": self.ece,
        }


def reliability(probability: np.ndarray, same: np.ndarray, bins: int = 10) -> Reliability:
    """Confidence against accuracy in `bins` equal parts of [0, 1], and their mean difference.

    Raises:
        ValueError: no pairs, lengths that differ, or values outside [0, 1].
    """
    probability, same = np.asarray(probability, np.float64), np.asarray(same, bool)
    if not len(probability) or len(probability) != len(same) or bins < 1:
        raise ValueError(
            f"reliability needs pairs and bins, got {len(probability)} probabilities, {len(same)} "
            f"labels and {bins} bins."
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("reliability needs probabilities in [0, 1]: calibrate the scores first.")
    place = np.minimum((probability * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, probability, bins) / count
        accuracy = np.bincount(place, same, bins) / count
    ece = float(np.nansum(count * np.abs(accuracy - confidence)) / len(same))
    return Reliability(confidence, accuracy, count, ece)


def out_of_fold(
    scores: np.ndarray, same: np.ndarray, labels: np.ndarray, kind: str, *, folds: int = 5
) -> np.ndarray:
    """Probabilities `(P,)` by calibrations that saw neither label of the pair.

    What a reliability diagram needs: on the pairs it was fitted to, isotonic calibration is perfect
    by construction. NaN where the other folds hold only one kind of pairs.

    Args:
        scores: `(P,)`.
        same: `(P,)` bool.
        labels: `(P, 2)` of both images.
        kind: one of `KINDS`.
        folds: parts of the labels; fewer when there are fewer labels.
    """
    fold = group_folds(labels.ravel(), min(folds, len(np.unique(labels)))).reshape(-1, 2)
    found = np.full(len(scores), np.nan)
    for number in range(int(fold.max()) + 1):
        asked = fold[:, 0] == number
        rest = (fold != number).all(1)
        if same[rest].any() and not same[rest].all():
            found[asked] = calibration(kind).fit(scores[rest], same[rest]).transform(scores[asked])
    return found


def _checked(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    if scores.shape != same.shape or scores.ndim != 1:
        raise ValueError(
            f"Calibration needs (P,) scores and labels, got {scores.shape} and {same.shape}."
        )
    if not len(same) or same.all() or not same.any():
        raise ValueError(
            f"Calibration needs pairs of one class and of two, all {len(same)} are of one kind."
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite: leave "
            "those pairs out of the calibration."
        )
    return scores, same


def _nan_last(scores: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(np.isnan(scores), -np.inf, found))


def _saturated(distance: np.ndarray) -> np.ndarray:
    """From 0 to 1, strictly rising, slowly enough not to end where floats do."""
    return np.asarray(np.where(np.isinf(distance), 1.0, distance / (1 + distance)))
