"""Whether one experiment is better than another: paired bootstrap over queries.

Queries are drawn with replacement, the same for both; what counts is how often the difference
changes its sign. Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3 (percentile
interval); Sakai, Evaluating Evaluation Metrics based on the Bootstrap (SIGIR 2006) for rankings.
It answers whether other queries would turn the order round, not whether another seed would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from common.report.queries import Queries

DRAWS = 2000
_CHUNK = 4_000_000  # drawn queries held at a time


@dataclass
class Difference:
    """Two experiments on the queries that both were asked.

    Attributes:
        first: name of the one.
        second: name of the other.
        queries: how many both were asked; of several folds the sum.
        value: metric of the second minus that of the first.
        low: 2.5 % of the draws lie below.
        high: 2.5 % of the draws lie above.
        p: two-sided, of no difference; of Q queries never below 2^(1 - Q), as in a sign test.
        holm: the same for all pairs of a metric together (Holm, 1979).
    """

    first: str
    second: str
    queries: int
    value: float
    low: float
    high: float
    p: float
    holm: float = 1.0


def compare(
    experiments: Mapping[str, Sequence[Queries]],
    *,
    against: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Difference]:
    """The differences of all pairs that have queries in common, in the order of the names.

    Runs of an experiment that were asked the same queries (seeds) are averaged; other sets of
    queries (folds) are drawn from one by one and then averaged, those that both have.

    Args:
        experiments: name -> one metric's queries of each of its runs.
        against: compare all with this one only; None: every pair.
        draws: how many times the queries are drawn.
        seed: of the draws.
    """
    sets: dict[bytes, dict[str, list[Queries]]] = {}
    for name, runs in experiments.items():
        for one in runs:
            key = one.ids.tobytes() + str(one.ids.dtype).encode()
            sets.setdefault(key, {}).setdefault(name, []).append(one)
    sizes = [len(next(iter(asked.values()))[0]) for asked in sets.values()]
    means = []
    for place, asked in enumerate(sets.values()):
        if len(asked) > 1 and sizes[place]:
            means.append(_means(asked, draws, np.random.default_rng([seed, place])))
        else:
            means.append({})
    found = []
    for first, second in combinations(experiments, 2):
        both = [place for place, mean in enumerate(means) if first in mean and second in mean]
        if not both or against not in (None, first, second):
            continue
        apart = np.mean([means[p][second] - means[p][first] for p in both], axis=0)
        value, drawn = float(apart[0]), apart[1:]
        low, high = np.quantile(drawn, [0.025, 0.975])
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        asked_both = sum(sizes[place] for place in both)
        # A handful of queries that agree would change its sign in no draw: as by the toss of a coin
        # for each, all agree in 2 of 2^Q cases.
        least = max(2 / (1 + draws), 2.0 ** (1 - asked_both))
        p = min(1.0, max(2 * (1 + int(tail)) / (1 + draws), least))
        found.append(Difference(first, second, asked_both, value, float(low), float(high), p))
    return _holm(found)


def _means(
    asked: Mapping[str, Sequence[Queries]], draws: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """`(1 + draws,)` metric of each experiment, mean over its runs: of all queries, then drawn."""
    runs = [one for several in asked.values() for one in several]
    count = len(runs[0])
    values = np.empty((len(runs), 1 + draws))
    values[:, 0] = [one.metric() for one in runs]
    drawers = [_gap if one.score is not None else _mean for one in runs]
    step = max(1, _CHUNK // count)
    for start in range(0, draws, step):
        rows = rng.integers(count, size=(min(step, draws - start), count))
        times = np.stack([np.bincount(row, minlength=count) for row in rows])
        for place, (one, drawer) in enumerate(zip(runs, drawers, strict=True)):
            values[place, 1 + start : 1 + start + len(times)] = drawer(one, times)
    ends = np.cumsum([0, *(len(several) for several in asked.values())])
    return {
        name: values[a:b].mean(0) for name, a, b in zip(asked, ends[:-1], ends[1:], strict=True)
    }


def _mean(one: Queries, times: np.ndarray) -> np.ndarray:
    """`(B,)` means of the queries when each counts `times` `(B, Q)`."""
    return np.asarray(times @ one.value / len(one))


def _gap(one: Queries, times: np.ndarray) -> np.ndarray:
    """`(B,)` GAP of the queries when each is there `times` `(B, Q)`; copies rank side by side."""
    assert one.score is not None
    assert one.known is not None
    given = np.flatnonzero(~np.isnan(one.score))
    order = given[np.argsort(-one.score[given], kind="stable")]
    right, found = one.value[order] > 0, np.empty(len(times))
    for place, own in enumerate(times):
        copies = np.repeat(right, own[order])
        precision = np.cumsum(copies) / np.arange(1, len(copies) + 1)
        labelled = own[one.known].sum()
        found[place] = precision[copies].sum() / labelled if labelled else 0.0
    return found


def _holm(found: list[Difference]) -> list[Difference]:
    """The differences, each with its p among all of them."""
    highest = 0.0
    for place, one in enumerate(sorted(found, key=lambda one: one.p)):
        highest = max(highest, min(1.0, one.p * (len(found) - place)))
        one.holm = highest
    return found
