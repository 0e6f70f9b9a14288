"""Exact curves against one threshold at a time; shares exact to one answer."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from common.report.files import Analysis, save_analysis
from common.rerank.curves import (
    Curve,
    f1_curve,
    search_offset,
    search_threshold,
    unknown_curve,
)
from common.rerank.thresholds import bisect_threshold, quantile_threshold, share_threshold
from tests.oracles import thresholds as oracle


def scene(seed=0, ties=False, queries=25, k=7):
    random = np.random.default_rng(seed)
    score = random.normal(0, 1, (queries, k)).astype(np.float32)
    if ties:
        score = score.round().astype(np.float32)
    score = -np.sort(-score, 1)
    index = np.stack([random.permutation(12)[:k] for _ in range(queries)])
    score[3, 4:], index[3, 4:] = -np.inf, -1
    score[4], index[4] = -np.inf, -1
    truth = np.where(random.random(queries) < 0.3, -1, index[:, 1])
    truth[7] = 11 if 11 not in index[7] else truth[7]
    return score, index, truth


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_f1_curve_is_the_naive_one(ties, own):
    score, _, _ = scene(ties=ties)
    random = np.random.default_rng(1)
    score = random.permuted(score, axis=1)  # in any order
    hits = random.random(score.shape) < 0.4
    totals = (hits & np.isfinite(score)).sum(1) + own + random.integers(0, 2, len(score))
    curve = f1_curve(score, hits, totals, own=own)
    rows = score.tolist()
    expected = [oracle.f1(rows, hits.tolist(), totals.tolist(), x, own) for x in curve.x]
    assert curve.y == pytest.approx(expected)
    assert len(curve.x) == len(np.unique(score[np.isfinite(score)])) + 1
    assert (np.diff(curve.x) > 0).all()
    assert curve.value == pytest.approx(max(expected))
    everywhere = np.linspace(-3, 3, 301)
    values = [oracle.f1(rows, hits.tolist(), totals.tolist(), x, own) for x in everywhere]
    assert max(values) <= curve.value + 1e-12


def test_f1_of_one_row_is_scikit_learns():
    score = np.array([[0.9, 0.7, 0.6, 0.2]], np.float32)
    hits = np.array([[True, False, True, False]])
    curve = f1_curve(score, hits, np.array([2]), own=False)
    for x, y in zip(curve.x, curve.y, strict=True):
        assert y == pytest.approx(f1_score(hits[0], score[0] >= x, zero_division=0))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("top", [1, 3, 5, 9])
@pytest.mark.parametrize("moved", [False, True])
def test_unknown_curve_is_the_naive_one(ties, top, moved):
    score, index, truth = scene(ties=ties)
    offset = np.round(np.random.default_rng(2).normal(0, 1, 12) * 4) / 4 if moved else None
    curve = unknown_curve(score, index, truth, top=top, offset=offset)
    rows = score.tolist(), index.tolist(), truth.tolist()
    expected = [oracle.map_at(*rows, x, top, offset) for x in curve.x]
    assert curve.y == pytest.approx(expected)
    values = [oracle.map_at(*rows, x, top, offset) for x in np.linspace(-5, 5, 201)]
    assert max(values) <= curve.value + 1e-12
    assert min(values) >= curve.y.min() - 1e-12


def test_offset_of_classes_with_one_image_is_found():
    random = np.random.default_rng(0)
    counts = np.array([1] * 6 + [9] * 6)
    index = np.stack([random.permutation(12) for _ in range(300)])
    known = random.random(300) < 0.5
    base = np.where(counts[index[:, 0]] == 1, 0.2, 0.6)
    first = base + 0.2 * known + 0.05 * random.normal(size=300)
    score = np.concatenate([first[:, None], np.full((300, 11), -1.0)], 1).astype(np.float32)
    truth = np.where(known, index[:, 0], -1)
    offset, curve = search_offset(score, index, truth, counts)
    assert offset == pytest.approx(-0.4, abs=0.06)
    plain = unknown_curve(score, index, truth)
    assert curve.value > plain.value + 0.1
    # Where it does not help it is not used.
    assert search_offset(score, index, truth, np.full(12, 9))[0] == 0.0


def test_any_metric_and_ties():
    scores = np.array([[0.1, 0.4, -np.inf], [0.4, 0.9, 0.2]])
    curve = search_threshold(lambda t: -abs(t - 0.35), scores)
    assert curve.x[:-1].tolist() == [0.1, 0.2, 0.4, 0.9]
    assert curve.threshold == 0.4
    assert search_threshold(lambda t: 1.0, scores).threshold > 0.9, "ties: answer least"
    assert len(search_threshold(lambda t: t, np.arange(1000.0), steps=10).x) == 11
    with pytest.raises(ValueError, match="the metric at 0.1 is NaN"):
        search_threshold(lambda t: float("nan"), scores)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        search_threshold(lambda t: t, scores, steps=0)


def test_curves_go_into_the_report(tmp_path):
    x = np.sort(np.random.default_rng(0).normal(size=5000))
    curve = Curve(x, -((x - 0.123) ** 2))
    drawn = curve.report("F1 by threshold", "held out", y_label="F1", most=50)
    assert len(drawn["x"]) <= 51
    assert drawn["chosen"] in drawn["x"]
    assert max(drawn["series"]["held out"]) == curve.value
    assert drawn["x"] == sorted(drawn["x"])
    assert "caption" not in drawn
    save_analysis(tmp_path, Analysis(thresholds=[drawn]))
    assert len(Curve(np.array([1.0]), np.array([2.0])).report("t", "n")["x"]) == 1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.276, 0.5, 0.99, 1.0])
def test_share_is_exact_to_one(share):
    scores = np.random.default_rng(0).normal(size=137).astype(np.float32)
    found = share_threshold(scores, share)
    assert (scores < np.float32(found)).sum() == round(share * 137)


def test_share_of_ties_is_the_nearest():
    scores = np.array([0.1, 0.5, 0.5, 0.5, 0.9])
    for share, below in ((0.2, 1), (0.4, 1), (0.6, 4), (0.5, 1), (0.8, 4), (1.0, 5), (0.0, 0)):
        assert (scores < share_threshold(scores, share)).sum() == below, share
    # In the middle of a run of two the lower number wins.
    assert (scores[[0, 1, 2, 4]] < share_threshold(scores[[0, 1, 2, 4]], 0.5)).sum() == 1
    # Queries without a candidate are below whatever is asked.
    assert (
        np.array([-np.inf, -np.inf, 0.4]) < share_threshold([-np.inf, -np.inf, 0.4], 0)
    ).sum() == 2
    # Neighboring floats cannot be parted by their middle.
    near = np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    assert (near < np.float32(share_threshold(near, 0.5))).sum() == 1


def test_quantile_leaves_padding_out():
    scores = np.array([[0.1, 0.3, -np.inf], [0.2, 0.5, 0.4]])
    assert quantile_threshold(scores, 0.5) == pytest.approx(0.3)
    assert quantile_threshold(scores, 0.25) == pytest.approx(0.2)


def test_bisection_finds_where_a_share_is_reached():
    scores = np.sort(np.random.default_rng(0).normal(size=500))
    found = bisect_threshold(lambda t: float((scores < t).mean()), 0.165, -10, 10)
    assert (scores < found).sum() == 83  # the first share of at least .165
    assert bisect_threshold(lambda t: 1.0, 0.5, -1, 1) == -1
    with pytest.raises(ValueError, match="the share at 1 is 0.2, target 0.5"):
        bisect_threshold(lambda t: 0.2, 0.5, -1, 1)
    with pytest.raises(ValueError, match="low must be below high"):
        bisect_threshold(lambda t: t, 0.5, 1, 1)


def test_bad_input():
    score, index, truth = scene()
    broken = score.copy()
    broken[0, 0] = np.nan
    empty = np.full((3, 2), -np.inf)
    for call in (
        lambda s: f1_curve(s, np.zeros(s.shape, bool), np.ones(len(s))),
        lambda s: unknown_curve(s, np.zeros(s.shape, int), np.zeros(len(s), int)),
        lambda s: search_threshold(lambda t: t, s),
        lambda s: quantile_threshold(s, 0.5),
    ):
        with pytest.raises(ValueError, match="and 1 NaN"):
            call(broken)
        with pytest.raises(ValueError, match="0 scores and 0 NaN"):
            call(empty)
    with pytest.raises(ValueError, match="0 scores, 0 NaN"):
        share_threshold([], 0.5)
    for call in (share_threshold, quantile_threshold):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 1.2"):
            call(score, 1.2)
    with pytest.raises(ValueError, match=r"must be \(Q, K\), \(Q, K\) and Q"):
        f1_curve(score, index[:, :2] > 0, truth)
    with pytest.raises(ValueError, match=r"must be \(Q, K\), \(Q, K\) and Q"):
        unknown_curve(score, index, truth[:4])
