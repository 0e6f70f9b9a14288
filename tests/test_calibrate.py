"""Probabilities from scores: against slow twins, scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from sklearn.calibration import _SigmoidCalibration, calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from torchmetrics.classification import BinaryCalibrationError

from common.rerank.calibrate import (
    Isotonic,
    Logistic,
    calibration,
    out_of_fold,
    reliability,
)
from common.rerank.fusion import fusion
from tests.oracles import calibrate as oracle


def pairs(seed, count=400, noise=1.0):
    """Scores whose log odds are 2 * score - 1."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, noise, count)
    same = rng.random(count) < 1 / (1 + np.exp(1 - 2 * scores))
    return scores, same


@pytest.mark.parametrize(("seed", "count", "scale"), [(0, 300, 1), (1, 40, 1), (2, 200, 100)])
def test_logistic_is_platts_scaling(seed, count, scale):
    scores, same = pairs(seed, count)
    scores = scores * scale + 7 * scale
    found = Logistic().fit(scores, same)
    slope, shift = oracle.logistic((scores / scale - 7).tolist(), same.tolist())
    x = np.linspace(scores.min(), scores.max(), 50)
    expected = 1 / (1 + np.exp(-(slope * (x / scale - 7) + shift)))
    np.testing.assert_allclose(found.transform(x), expected, atol=1e-5)
    theirs = _SigmoidCalibration().fit(scores, same)  # what CalibratedClassifierCV fits
    np.testing.assert_allclose(found.transform(x), theirs.predict(x), atol=2e-4)


def test_logistic_never_turns_a_ranking_and_survives_separation():
    scores = np.arange(20.0)
    backwards = Logistic().fit(scores, scores < 10)
    assert backwards.slope_ > 0
    assert (np.diff(backwards.transform(scores)) > 0).all()
    apart = Logistic().fit(scores, scores >= 10)
    slope, shift = oracle.logistic(scores.tolist(), (scores >= 10).tolist())
    assert apart.slope_ == pytest.approx(slope, rel=1e-3)
    assert apart.shift_ == pytest.approx(shift, rel=1e-3)
    equal = Logistic().fit(np.ones(6), np.arange(6) < 2)
    assert equal.transform(np.array([1.0]))[0] == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_isotonic_runs_through_the_steps_of_its_twin(seed):
    scores, same = pairs(seed, 150)
    scores = np.round(scores, 1 + seed % 2)  # ties
    found = Isotonic().fit(scores, same)
    steps = oracle.isotonic_steps(scores.tolist(), same.tolist())
    assert len(found.scores_) == len(steps)
    np.testing.assert_allclose(found.scores_, [s for s, _ in steps], atol=1e-12)
    np.testing.assert_allclose(
        found.probabilities_, [1e-3 + 0.998 * p for _, p in steps], atol=1e-12
    )
    np.testing.assert_allclose(found.transform(found.scores_), found.probabilities_, atol=1e-12)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, same)
    assert np.abs(found.transform(scores) - theirs.predict(scores)).mean() < 0.05


@pytest.mark.parametrize("kind", ["isotonic", "logistic"])
def test_ranks_stay_inside_and_outside_of_what_was_seen(kind):
    scores, same = pairs(3)
    found = calibration(kind).fit(scores, same)
    x = np.linspace(-12, 12, 4001)
    p = found.transform(x)
    assert (np.diff(p) > 0).all()
    assert ((p > 0) & (p < 1)).all()
    grid = found.transform(x.reshape(1, -1).repeat(2, 0))
    assert grid.shape == (2, 4001)
    ends = found.transform(np.array([-np.inf, np.inf, np.nan]))
    assert 0 <= ends[0] <= p[0]
    assert p[-1] <= ends[1] <= 1
    assert ends[2] == -np.inf
    assert np.abs(p - 1 / (1 + np.exp(1 - 2 * x)))[1900:2100].max() < 0.15


def test_isotonic_without_a_signal_still_ranks():
    flat = Isotonic().fit(np.arange(10.0), np.arange(10) % 10 == 0)
    assert len(flat.scores_) == 1
    p = flat.transform(np.linspace(-5, 15, 101))
    assert (np.diff(p) > 0).all()
    assert flat.transform(np.array([4.5]))[0] == pytest.approx(0.1008)


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_reliability_is_that_of_the_libraries(bins):
    rng = np.random.default_rng(0)
    probability = np.concatenate([rng.random(300) ** 2, [0.0, 1.0, 0.53]])
    same = rng.random(303) < probability
    found = reliability(probability, same, bins)
    rows, error = oracle.reliability(probability.tolist(), same.tolist(), bins)
    used = found.count > 0
    np.testing.assert_allclose(
        np.column_stack([found.confidence, found.accuracy, found.count])[used], rows
    )
    assert found.ece == pytest.approx(error)
    metric = BinaryCalibrationError(n_bins=bins, norm="l1")
    theirs = metric(torch.from_numpy(probability), torch.from_numpy(same).long())
    assert found.ece == pytest.approx(float(theirs), abs=1e-5)
    accuracy, confidence = calibration_curve(same, probability, n_bins=bins)
    np.testing.assert_allclose(found.accuracy[used], accuracy)
    np.testing.assert_allclose(found.confidence[used], confidence)
    note = found.note()
    assert sum(note["count"]) == 303
    assert note["ece"] == found.ece


def test_what_is_judged_was_not_seen():
    """One label's pairs score high though they differ: only its own fold could know."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, (600, 2))
    same = labels[:, 0] == labels[:, 1]
    scores = np.where(same, 1.0, 0.0) + rng.normal(0, 0.3, 600)
    odd = (labels == 3).any(1) & ~same
    scores[odd] = 1.5
    honest = out_of_fold(scores, same, labels, "isotonic")
    assert np.isfinite(honest).all()
    seen = Isotonic().fit(scores, same).transform(scores)
    ours = labels[:, 0] == 3
    assert honest[odd & ours].mean() > 0.9, "its calibration never saw label 3"
    assert seen[odd & ours].mean() < 0.7
    few = out_of_fold(scores[:4], np.array([True, False, True, False]), labels[:4], "logistic")
    assert few.shape == (4,)


def test_bad_input_is_named():
    good = np.arange(4.0), np.array([True, False, True, False])
    for kind in (Isotonic, Logistic):
        for scores, same, message in (
            (good[0][:3], good[1], r"\(3,\) and \(4,\)"),
            (good[0], np.ones(4, bool), "all 4 are of one kind"),
            (np.zeros(0), np.zeros(0, bool), "all 0"),
            (np.array([0, 1, np.nan, np.inf]), good[1], "2 of 4 scores are not finite"),
        ):
            with pytest.raises(ValueError, match=message):
                kind().fit(scores, same)
    with pytest.raises(ValueError, match="No calibration 'beta'"):
        calibration("beta")
    with pytest.raises(ValueError, match="calibrate the scores first"):
        reliability(np.array([1.2]), np.array([True]))
    with pytest.raises(ValueError, match="0 probabilities"):
        reliability(np.zeros(0), np.zeros(0, bool))


def test_the_mean_is_weighted():
    p = np.array([[0.2, 0.4], [0.6, 0.8]])
    assert fusion([], 2).fit(p, np.array([True, False])).transform(p).tolist() == pytest.approx(
        [0.4, 0.6]
    )
    assert fusion([3, 1], 2).transform(p).tolist() == pytest.approx([0.3, 0.5])
    grid = fusion([3, 1], 2).transform(np.stack([p, p]))
    assert grid.shape == (2, 2)
    for wrong in ([1.0], [-1.0, 2.0], [0.0, 0.0], "equal"):
        with pytest.raises(ValueError, match="numbers"):
            fusion(wrong, 2)


def test_learned_weights_are_logistic_regression_and_never_negative():
    rng = np.random.default_rng(0)
    same = rng.random(500) < 0.4
    z = np.stack([rng.normal(2 * same - 1, 1.5), rng.normal(same, 1.0), rng.normal(0, 1, 500)])
    z[2] -= 0.5 * same  # says the opposite
    p = 1 / (1 + np.exp(-z))
    good = fusion("learned", 2).fit(p[:2], same)
    theirs = LogisticRegression(C=1e9, max_iter=1000, tol=1e-10).fit(z[:2].T, same)
    np.testing.assert_allclose(good.weights_, theirs.coef_[0], atol=1e-3)
    assert good.shift_ == pytest.approx(theirs.intercept_[0], abs=1e-3)
    np.testing.assert_allclose(
        good.transform(p[:2]), theirs.predict_proba(z[:2].T)[:, 1], atol=1e-3
    )
    every = fusion("learned", 3).fit(p, same)
    assert every.weights_[2] == 0
    np.testing.assert_allclose(every.weights_[:2], good.weights_, atol=1e-3)
    ends = np.array([[0.5, 1.0, -np.inf], [0.5, 1.0, 0.5]])
    assert np.isfinite(good.transform(ends)).tolist() == [True, True, False]
