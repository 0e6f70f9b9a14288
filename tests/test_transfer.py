"""Truth and cuts against F1 counted row by row."""

import numpy as np
import pytest
import torch

from common.config import ConfigError
from common.rerank.transfer import (
    Cut,
    MatchConfig,
    check_rule,
    choose_cut,
    fit_threshold,
    kept,
    with_bonus,
)
from common.rerank.truth import Truth
from common.types import Neighbors


def lists(seed=0, n=24, k=6):
    rng = np.random.default_rng(seed)
    index = np.stack([rng.choice(np.delete(np.arange(n), i), k, replace=False) for i in range(n)])
    score = np.round(rng.random((n, k)), 1).astype(np.float32)
    index[3, 2:], score[3, 2:] = -1, -np.inf
    return Neighbors(torch.from_numpy(index), torch.from_numpy(score)).sorted()


def known(n=24, asked=15):
    labels = np.random.default_rng(7).integers(0, 8, n)
    return Truth(labels, np.arange(n) < asked)


def naive_f1(near, truth, cut, weight=1.0):
    values = []
    for row in np.flatnonzero(truth.asked):
        told = [
            (int(i), float(s))
            for i, s in zip(near.index[row], near.score[row], strict=True)
            if i >= 0
        ]
        answer = {row} | {i for i, s in told if s >= cut.threshold}
        if len(answer) == 1 and told and told[0][1] >= cut.second:
            answer.add(told[0][0])
        true = set(np.flatnonzero(truth.labels == truth.labels[row]))
        right, false = len(answer & true), len(answer - true)
        values.append(2 * right / (right + weight * false + len(true)))
    return float(np.mean(values))


@pytest.mark.parametrize("weight", [1.0, 2.0, 3.5])
def test_a_curve_counts_false_matches_as_often_as_it_shall(weight):
    near, truth = lists(), known()
    curve = truth.curve(near, weight)
    for x, y in zip(curve.x, curve.y, strict=True):
        assert y == pytest.approx(naive_f1(near, truth, Cut(float(x), 0.0), weight))
    truth.crowd = weight
    assert truth.best(near)[1] == pytest.approx(curve.value)


def test_nothing_listed_is_f1_of_the_listing_alone():
    truth = known()
    nothing = Neighbors(torch.full((24, 2), -1), torch.full((24, 2), -torch.inf))
    alone = np.mean([2 / (1 + n) for n in truth.totals])
    assert truth.best(nothing) == (0.0, pytest.approx(alone))


@pytest.mark.parametrize("bonus", [0.0, 0.23, np.inf])
def test_a_bonus_is_a_second_threshold(bonus):
    near, truth = lists(), known()
    for threshold in (0.15, 0.55, 0.95):
        cut = Cut(threshold, bonus)
        answer = kept(near, cut)
        assert truth.row_f1(answer).mean() == pytest.approx(naive_f1(near, truth, cut))
        lifted = with_bonus(near, bonus)
        passing = lifted.score >= threshold
        assert torch.equal(passing.sum(1), (answer.index >= 0).sum(1))


def test_every_rule_is_computed_and_the_best_one_is_the_best_of_all():
    near, truth = lists(), known()
    choice = choose_cut(MatchConfig(), [0, 0.6, 0.4], lists(1), near, truth)
    assert list(choice.cuts) == ["validation", "weighted", "sizes"]
    tried = [
        naive_f1(near, truth, Cut(float(x), bonus))
        for bonus in choice.bonuses
        for x in np.arange(0.05, 1.1, 0.1)
    ]
    assert choice.cut.f1 == pytest.approx(max(tried))
    assert choice.cut.f1 == pytest.approx(choice.cut.goal)
    assert choice.cuts["weighted"].f1 <= choice.cut.f1
    assert choice.cuts["weighted"].threshold >= choice.cut.threshold
    plain = choose_cut(MatchConfig(at_least_two=False), [0, 1], lists(1), near, truth)
    assert (plain.bonuses, plain.cut.bonus) == ([0.0], 0.0)
    set_ = choose_cut(MatchConfig("value", value=0.5, second=0.2), [0, 1], near)
    assert (set_.cut.threshold, set_.cut.second, set_.cut.f1) == (0.5, pytest.approx(0.2), None)


def test_sizes_come_nearest_to_the_known_ones():
    near = lists(2, n=200, k=8)
    wanted = [0.1, 0.5, 0.3, 0.1]

    def apart(threshold):
        sizes = 1 + (near.score >= threshold).sum(1).numpy()
        at_least = [(sizes >= s).mean() for s in range(1, 12)]
        known_ = [sum(wanted[s - 1 :]) for s in range(1, 12)]
        return float(np.abs(np.subtract(at_least, known_)).sum())

    cut = fit_threshold(near, wanted)
    best = min(apart(x) for x in np.arange(0, 1.05, 0.1))
    assert cut.goal == pytest.approx(best, abs=1e-6)
    assert apart(cut.threshold) == pytest.approx(best, abs=1e-6)
    all_two = fit_threshold(near, [0, 1], np.inf)
    assert (kept(near, all_two).index >= 0).sum(1).float().mean() == pytest.approx(1, abs=0.2)


def test_at_most_so_many_with_the_listing_itself():
    answer = kept(lists(), Cut(-1.0, 0.0), most=3)
    assert (answer.index >= 0).sum(1).max() == 2
    assert kept(lists(), Cut(-1.0, 0.0), most=1).index.shape[1] == 0


@pytest.mark.parametrize(
    ("settings", "held", "message"),
    [
        ({"by": "guess"}, True, "choose validation, weighted, sizes, value"),
        ({"by": "weighted"}, False, "data.fold=-1 holds none"),
        ({"by": "value", "second": 0.5}, True, "must not be above threshold.value=0.0"),
        ({"most": 0}, True, "threshold.most=0: at least 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, held, message):
    with pytest.raises(ConfigError, match=message):
        check_rule(MatchConfig(**settings), held)
