"""The threshold of matches, chosen so that it holds in a larger crowd than it was found in.

Rules, all of which are computed and shown side by side:

    validation  the highest F1 of held-out listings among distractors
    weighted    the highest F1 where a false match counts more (Shopee 2021 4th place: twice, on
                folds with training listings as noise)
    sizes       so that predicted groups of the test have the sizes of the training groups
                (18th place: "chisel"; as one threshold, ours)
    value       a given number

Each also has a bonus of a row's best match: a listing without a match above the threshold takes
its best one, if it is at most `bonus` below (1st place: min2; 6th place: always).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from common.config import ConfigError
from common.rerank.curves import Curve
from common.rerank.truth import Truth
from common.types import Neighbors

Array = np.ndarray
RULES = ("validation", "weighted", "sizes", "value")
_STEPS = 200  # thresholds that are tried against sizes
_BONUSES = 10  # tried between none and always


@dataclass
class MatchConfig:
    """The `threshold:` section."""

    by: str = "validation"
    value: float = 0.0
    second: float | None = None
    false_weight: float = 2.0
    at_least_two: bool = True
    most: int = 50


@dataclass
class Cut:
    """Where matches end.

    Attributes:
        threshold: smallest score of a match.
        bonus: a row without one takes its best, down to this far below; infinite: always.
        f1: of held-out listings, if any: plain.
        goal: what the rule maximised, or for `sizes` the mean difference in size; None: nothing.
    """

    threshold: float
    bonus: float
    f1: float | None = None
    goal: float | None = None

    @property
    def second(self) -> float:
        """The lower threshold of a row's best match."""
        return self.threshold - self.bonus


@dataclass
class Choice:
    """The cut of every rule that could be computed, and the one to use.

    Attributes:
        by: the rule that was asked for.
        cuts: by rule.
        surface: F1 by bonus and threshold, when anything is held out: bonuses `(B,)`, and a curve
            for each.
    """

    by: str
    cuts: dict[str, Cut]
    bonuses: list[float] = field(default_factory=list)
    surface: list[Curve] = field(default_factory=list)

    @property
    def cut(self) -> Cut:
        """The one to use."""
        return self.cuts[self.by]


def check_rule(config: MatchConfig, held: bool) -> None:
    """Raise ConfigError for settings that have no meaning, or need listings that are not held."""
    if config.by not in RULES:
        raise ConfigError(f"threshold.by={config.by!r}: choose {', '.join(RULES)}.")
    if config.by in ("validation", "weighted") and not held:
        raise ConfigError(
            f"threshold.by={config.by} needs held-out listings, and data.fold=-1 holds none: set "
            "threshold.by=sizes, or value with the threshold that an earlier run printed."
        )
    if config.second is not None and config.second > config.value:
        raise ConfigError(
            f"threshold.second={config.second} must not be above threshold.value={config.value}."
        )
    if config.most < 1 or not config.false_weight >= 0:
        raise ConfigError(
            f"threshold.most={config.most}: at least 1; threshold.false_weight="
            f"{config.false_weight}: at least 0."
        )


def choose_cut(
    config: MatchConfig,
    shares: Sequence[float],
    test: Neighbors,
    held: Neighbors | None = None,
    truth: Truth | None = None,
) -> Choice:
    """The cut of every rule, `config.by` among them.

    Args:
        config: the section.
        shares: of training rows whose group has 1, 2, 3, ... members (`graph.size_shares`).
        test: `(N, K)` scored candidates of the test, without the row itself.
        held: the same of held-out listings; None: nothing is held out.
        truth: theirs.

    Raises:
        ConfigError: see `check_rule`.
    """
    check_rule(config, held is not None)
    choice = Choice(config.by, {})
    if held is not None and truth is not None:
        bonuses = _bonuses(held, config.at_least_two)
        lifted = [with_bonus(held, bonus) for bonus in bonuses]
        choice.bonuses = bonuses
        choice.surface = [truth.curve(one) for one in lifted]
        weights = {"validation": truth.crowd, "weighted": truth.crowd * config.false_weight}
        for rule, weight in weights.items():
            curves = [truth.curve(one, weight) for one in lifted]
            best = int(np.argmax([round(curve.value, 12) for curve in curves]))
            found = Cut(curves[best].threshold, bonuses[best], goal=curves[best].value)
            choice.cuts[rule] = found
    bonus = choice.cuts["validation"].bonus if choice.cuts else np.inf
    if not config.at_least_two:
        bonus = 0.0
    choice.cuts["sizes"] = fit_threshold(test, shares, bonus, most=config.most)
    if config.by == "value":
        below = 0.0 if config.second is None else config.value - config.second
        choice.cuts["value"] = Cut(config.value, below)
    if held is not None and truth is not None:
        for cut in choice.cuts.values():
            cut.f1 = float(truth.row_f1(kept(held, cut, config.most)).mean())
    return choice


def kept(neighbors: Neighbors, cut: Cut, most: int = 50) -> Neighbors:
    """The matches of each row, best first, without itself; at most `most` with it."""
    near = neighbors.sorted().top(max(most - 1, 0))
    keep = near.score >= cut.threshold
    if near.score.shape[1]:
        keep[:, 0] |= near.score[:, 0] >= cut.second
    keep &= near.index >= 0
    return Neighbors(near.index.masked_fill(~keep, -1), near.score.masked_fill(~keep, -torch.inf))


def with_bonus(neighbors: Neighbors, bonus: float) -> Neighbors:
    """The lists with the first score higher by `bonus`: one threshold then does what two would.

    An infinite bonus lifts the first one above every score.
    """
    near = neighbors.sorted()
    score = near.score.clone()
    if score.shape[1]:
        score[:, 0] += _finite(near, bonus)
    return Neighbors(near.index, score)


def fit_threshold(
    neighbors: Neighbors, shares: Sequence[float], bonus: float = 0.0, *, most: int = 50
) -> Cut:
    """The threshold whose predicted groups differ least in size from what is known.

    The difference is the area between both shares of rows with at least s members (Wasserstein 1),
    the mean number of members by which they are apart. Ties: the higher threshold.

    Args:
        neighbors: `(N, K)` without the row itself.
        shares: of rows whose group has 1, 2, 3, ... members.
        bonus: of a row's best match.
        most: members of a row at most.

    Raises:
        ValueError: no shares, or negative ones.
    """
    wanted = np.asarray(shares, np.float64)
    if not len(wanted) or (wanted < 0).any() or not wanted.sum() > 0:
        raise ValueError(f"sizes of groups are shares of at least 0, got {list(shares)}.")
    lifted = with_bonus(neighbors, bonus).top(max(most - 1, 0)).score.cpu().numpy()
    values = np.sort(lifted[lifted > -np.inf])
    if not len(values):
        return Cut(0.0, bonus, goal=float(_apart(np.ones(1), wanted / wanted.sum())))
    at = np.linspace(0, len(values) - 1, min(_STEPS, len(values))).round().astype(np.int64)
    best, found = np.inf, Cut(0.0, bonus)
    for limit in np.unique(values[at])[::-1].tolist():
        sizes = np.bincount(1 + (lifted >= limit).sum(1))[1:]
        apart = _apart(sizes / len(lifted), wanted / wanted.sum())
        if apart < best - 1e-12:
            best, found = apart, Cut(limit, bonus, goal=apart)
    return found


def _apart(one: Array, other: Array) -> float:
    width = max(len(one), len(other))
    gap = np.pad(one, (0, width - len(one))) - np.pad(other, (0, width - len(other)))
    return float(np.abs(np.cumsum(gap[::-1])).sum())


def _bonuses(neighbors: Neighbors, at_least_two: bool) -> list[float]:
    """None, some up to the spread of best scores, always."""
    if not at_least_two or not neighbors.score.shape[1]:
        return [0.0]
    first = neighbors.sorted().score[:, 0]
    first = first[first > -torch.inf]
    if not len(first):
        return [0.0]
    low, high = np.quantile(first.cpu().numpy(), [0.05, 0.95])
    return [*np.linspace(0.0, float(high - low), _BONUSES).tolist(), np.inf]


def _finite(neighbors: Neighbors, bonus: float) -> float:
    if np.isfinite(bonus):
        return float(bonus)
    real = neighbors.score[neighbors.score > -torch.inf]
    return float(real.max() - real.min()) + 1.0 if real.numel() else 1.0
