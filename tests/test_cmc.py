"""CMC and mAP: against a naive walk through the protocol, scikit-learn, ties, junk, bad input."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import common.cmc as module
from common.cmc import cmc_map, cmc_map_embeddings
from common.types import Embeddings
from tests.oracles.metrics import market, market_summary


def case(seed, queries=17, gallery=60, levels=None):
    draw = np.random.default_rng(seed)
    labels = draw.integers(-1, 7, queries), draw.integers(-1, 6, gallery)
    cameras = draw.integers(0, 3, queries), draw.integers(0, 3, gallery)
    scores = draw.standard_normal((queries, gallery)).astype(np.float32)
    if levels:
        scores = draw.integers(0, levels, (queries, gallery)).astype(np.float32)
    return scores, *labels, *cameras


def same(found, expected, ranks):
    cmc, mean, minp = market_summary(expected, ranks)
    np.testing.assert_allclose(found.cmc, cmc, atol=1e-12)
    assert found.map == pytest.approx(mean, abs=1e-12)
    assert found.minp == pytest.approx(minp, abs=1e-12)
    assert found.queries == len(expected)


@pytest.mark.parametrize("levels", [None, 1, 2, 5])
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_naive_protocol(seed, levels, monkeypatch):
    monkeypatch.setattr(module, "_CELLS", 300)
    monkeypatch.setattr(module, "_ROWS", 2)
    scores, *given = case(seed, levels=levels)
    before = scores.copy()
    same(cmc_map(scores, *given, ranks=9), market(scores, *given), 9)
    same(cmc_map(-scores, *given, ranks=70, largest=False), market(scores, *given), 70)
    same(cmc_map(scores, *given[:2], ranks=9), market(scores, *given[:2]), 9)
    tensors = [torch.from_numpy(a) for a in (scores, *given)]
    same(cmc_map(*tensors, ranks=9), market(scores, *given), 9)
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_scikit_learn(seed):
    scores, query, gallery, query_cameras, gallery_cameras = case(seed)
    values = []
    for q, label in enumerate(query):
        keep = (gallery >= 0) & ~((gallery == label) & (gallery_cameras == query_cameras[q]))
        relevant = (gallery == label) & keep
        if label >= 0 and relevant.any():
            values.append(average_precision_score(relevant[keep], scores[q, keep]))
    found = cmc_map(scores, query, gallery, query_cameras, gallery_cameras)
    assert found.map == pytest.approx(np.mean(values), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_embeddings_are_their_products(dtype, monkeypatch):
    monkeypatch.setattr(module, "_CELLS", 200)
    _, *given = case(3)
    draw = torch.Generator().manual_seed(0)
    # Small whole numbers: every product is exact, ties abound.
    q, g = (torch.randint(-1, 3, (n, 4), generator=draw).to(dtype) for n in (17, 60))
    expected = market((q.float() @ g.float().T).numpy(), *given)
    same(cmc_map_embeddings(q, g, *given), expected, 50)
    named = [Embeddings(np.arange(len(x)).astype(str), x) for x in (q, g)]
    same(cmc_map_embeddings(*named, *given), expected, 50)


def test_rules_by_hand():
    # The best image shows the query's own camera and is left out, the next is junk, then a match.
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    found = cmc_map(scores, [1], [1, -1, 2, 1, 1], [0], [0, 1, 1, 1, 2], ranks=3)
    assert found.cmc.tolist() == [0, 1, 1]
    assert found.map == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found.minp == pytest.approx(2 / 3)
    # A tie goes by row: the match in front of the other counts first, the one behind it second.
    assert cmc_map(np.zeros((1, 2)), [1], [1, 0]).map == 1
    assert cmc_map(np.zeros((1, 2)), [1], [0, 1]).map == 0.5


def test_nothing_to_measure():
    nothing = cmc_map(np.zeros((2, 3)), [5, -1], [1, 2, -1], ranks=4)
    assert (nothing.queries, nothing.map, nothing.minp, nothing.cmc.tolist()) == (0, 0, 0, [0] * 4)
    assert cmc_map(np.zeros((0, 3)), [], [1, 2, 3]).queries == 0
    assert cmc_map(np.zeros((2, 0)), [1, 2], []).queries == 0
    assert cmc_map(np.zeros((1, 2)), [1], [-1, -1]).queries == 0


def test_wrong_calls_are_named():
    scores, query, gallery, *cameras = case(0)
    for value in (np.nan, np.inf, -np.inf):
        bad = scores.copy()
        bad[5, int(np.flatnonzero(gallery >= 0)[-1])] = value
        with pytest.raises(ValueError, match="query 5 are not all finite"):
            cmc_map(bad, np.arange(17) + 100, gallery)
    with pytest.raises(ValueError, match=r"scores \(17, 60\) need"):
        cmc_map(scores, gallery, query)
    with pytest.raises(ValueError, match="both"):
        cmc_map(scores, query, gallery, cameras[0])
    with pytest.raises(ValueError, match="ranks"):
        cmc_map(scores, query, gallery, ranks=0)
    with pytest.raises(ValueError, match=r"\(Q, G\)"):
        cmc_map(scores[0], query, gallery)
    with pytest.raises(ValueError, match=r"\(Q, D\)"):
        cmc_map_embeddings(torch.zeros(2, 3), torch.zeros(2, 4), [0, 1], [0, 1])
