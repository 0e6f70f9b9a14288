"""Blends against one-by-one twins, and the weight search on functions with a known best."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.blend import (
    blend_embeddings,
    blend_power,
    blend_ranks,
    blend_scores,
    blend_votes,
    search_weights,
)
from common.types import Embeddings, Neighbors
from tests.oracles import blend as oracle


def embeddings(n, d, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    vectors = normalize(torch.randn(n, d, generator=generator), dim=1) * scale
    return Embeddings(np.array([f"i{i:03d}" for i in range(n)]), vectors, {"run": f"r{seed}"})


@pytest.fixture
def parts():
    """Three models' lists of different lengths over 15 candidates, some rows short or empty."""
    out = []
    for seed, k in ((0, 6), (1, 4), (2, 9)):
        generator = torch.Generator().manual_seed(seed)
        score, index = torch.rand(25, 15, generator=generator).topk(k, dim=1)
        index[5, 2:], score[5, 2:] = -1, -torch.inf
        if seed == 1:
            index[6], score[6] = -1, -torch.inf
        out.append(Neighbors(index, score - 0.3))
    return out


def plain(parts):
    return [(p.index.tolist(), p.score.tolist()) for p in parts]


def assert_same(found, expected):
    for index, score, theirs in zip(
        found.index.tolist(), found.score.tolist(), expected, strict=True
    ):
        mine = [(i, s) for i, s in zip(index, score, strict=True) if i >= 0]
        # By index: float32 may order what is equal but for rounding either way.
        assert dict(mine) == pytest.approx(dict(theirs), abs=1e-6)
        assert len(mine) == len(theirs)
        assert mine == sorted(mine, key=lambda pair: (-pair[1], pair[0]))
        assert all(s == -np.inf for i, s in zip(index, score, strict=True) if i < 0)


def test_dot_product_is_the_weighted_mean_of_cosines():
    models = [embeddings(20, 5, 0), embeddings(20, 9, 1, scale=7.0), embeddings(20, 3, 2)]
    weights = [1.0, 3.0, 0.5]
    blended = blend_embeddings(models, weights)
    expected = sum(
        w * normalize(m.vectors, dim=1) @ normalize(m.vectors, dim=1).T
        for w, m in zip(weights, models, strict=True)
    ) / sum(weights)
    torch.testing.assert_close(blended.vectors @ blended.vectors.T, expected)
    torch.testing.assert_close(blended.vectors.norm(dim=1), torch.ones(20))
    assert blended.vectors.shape == (20, 17)
    assert blended.ids.tolist() == models[0].ids.tolist()
    assert blended.card == {
        "blend": [{"run": "r0"}, {"run": "r1"}, {"run": "r2"}],
        "weights": pytest.approx([w / 4.5 for w in weights]),
    }
    assert float(models[1].vectors.norm(dim=1)[0]) == pytest.approx(7.0), "inputs stay"


def test_rows_without_an_embedding():
    a, b = embeddings(4, 3, 0), embeddings(4, 3, 1)
    a.vectors[1] = 0
    a.vectors[2], b.vectors[2] = 0, 0
    blended = blend_embeddings([a, b]).vectors
    assert blended.norm(dim=1).tolist() == pytest.approx([1, 1, 0, 1])
    assert blended[1, 3:].tolist() == pytest.approx(b.vectors[1].tolist())


def test_half_precision_stays_and_mixes_to_single():
    half = [Embeddings(e.ids, e.vectors.half()) for e in (embeddings(6, 4, 0), embeddings(6, 4, 1))]
    assert blend_embeddings(half).vectors.dtype == torch.float16
    assert blend_embeddings([half[0], embeddings(6, 4, 1)]).vectors.dtype == torch.float32


def test_blend_embeddings_names_the_first_difference():
    a, b = embeddings(5, 3, 0), embeddings(5, 3, 1)
    b.ids = b.ids[[0, 1, 3, 2, 4]]
    with pytest.raises(ValueError, match=r"differ from row 2 on: 'i002' in model 0, 'i003' in m"):
        blend_embeddings([a, b])
    with pytest.raises(ValueError, match="model 0 has 5 ids, model 1 has 4"):
        blend_embeddings([a, a.select(a.ids[:4])])
    with pytest.raises(ValueError, match="nothing to blend"):
        blend_embeddings([])


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_bad_weights(weights, parts):
    two = [embeddings(5, 3, 0), embeddings(5, 3, 1)]
    for blend, things in ((blend_embeddings, two), (blend_scores, parts[:2])):
        with pytest.raises(ValueError, match="weights"):
            blend(things, weights)


@pytest.mark.parametrize("missing", ["lowest", "zero"])
@pytest.mark.parametrize("weights", [[1, 1, 1], [2.0, 0.0, 5.0]])
def test_blend_scores_is_the_naive_blend(parts, weights, missing):
    found = blend_scores(parts, weights, missing=missing, k=19)
    assert_same(found, oracle.scores(plain(parts), weights, missing))
    short = blend_scores(parts, weights, missing=missing)
    assert short.index.shape == (25, 9)
    assert torch.equal(short.index, found.index[:, :9])


def test_blend_ranks_is_the_naive_blend(parts):
    weights = [1.0, 2.0, 0.5]
    found = blend_ranks(parts, weights, k=19)
    assert_same(found, oracle.ranks(plain(parts), weights, lambda rank: 1 / (60 + rank)))
    found = blend_ranks(parts, weights, method="borda", k=19)
    assert_same(found, oracle.ranks(plain(parts), weights, lambda rank: (10 - rank) / 9))


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("missing", ["lowest", "zero"])
@pytest.mark.parametrize("weights", [[1.0, 2.0, 0.5], [1.0, 0.0, 3.0]])
def test_blend_power_is_the_naive_mean(parts, power, missing, weights):
    for part in parts:
        part.score += 0.3  # back to [0, 1]
    parts[0].score[2, -1] = 0.0
    found = blend_power(parts, weights, power=power, missing=missing, k=19)
    assert_same(found, oracle.power(plain(parts), weights, power, missing))
    if power == 1:
        scores = blend_scores(parts, weights, missing=missing, k=19).score
        assert torch.allclose(found.score, scores)


def test_blend_power_wants_scores_of_at_least_zero(parts):
    with pytest.raises(ValueError, match="model 0 has 1 negative or NaN scores, the first is -0.2"):
        parts[0].score[0], parts[0].score[1:] = 0.5, 0.4
        parts[0].score[3, 1] = -0.2
        blend_power(parts[:1])
    parts[0].score[3, 1] = torch.nan
    with pytest.raises(ValueError, match="1 negative or NaN scores, the first is nan"):
        blend_power(parts[:1])


@pytest.mark.parametrize("hard", [False, True])
def test_blend_votes_is_the_naive_vote(parts, hard):
    thresholds, weights = [0.5, 0.45, 0.3], [1.0, 3.0, 2.0]
    found = blend_votes(parts, thresholds, weights, hard=hard)
    assert_same(found, oracle.votes(plain(parts), thresholds, weights, hard))
    assert (found.index >= 0).any()


def test_a_draw_is_no_majority(parts):
    a = Neighbors(torch.tensor([[1, 2]]), torch.tensor([[0.9, 0.8]]))
    b = Neighbors(torch.tensor([[1, 3]]), torch.tensor([[0.9, 0.8]]))
    assert blend_votes([a, b], [0.5, 0.5], hard=True).index.tolist() == [[1, -1, -1, -1]]


def test_blends_of_neighbors_say_what_is_wrong(parts):
    with pytest.raises(ValueError, match="model 0 has 25 queries, model 1 has 3"):
        blend_scores([parts[0], Neighbors(parts[1].index[:3], parts[1].score[:3])])
    with pytest.raises(ValueError, match="lowest or zero, got 'mean'"):
        blend_scores(parts, missing="mean")
    with pytest.raises(ValueError, match="reciprocal or borda, got 'x'"):
        blend_ranks(parts, method="x")
    with pytest.raises(ValueError, match="3 models but 1 thresholds"):
        blend_votes(parts, [0.1])


def target(weights):
    return -float(((weights - np.array([0.5, 0.2, 0.3])) ** 2).sum())


@pytest.mark.parametrize("method", ["coordinate", "simplex"])
def test_search_weights_finds_a_known_best(method):
    weights, score = search_weights(target, 3, method=method, steps=10)
    assert weights == pytest.approx([0.5, 0.2, 0.3], abs=1e-9 if method == "simplex" else 0.11)
    assert score == pytest.approx(target(weights))
    assert weights.sum() == pytest.approx(1)
    again, _ = search_weights(target, 3, method=method, steps=10)
    assert weights.tolist() == again.tolist()


def test_simplex_tries_every_point_once():
    seen = []
    search_weights(
        lambda w: seen.append(tuple(np.round(w * 4).astype(int))) or 0.0,
        3,
        method="simplex",
        steps=4,
    )
    grid = seen[1:]  # the first is the start
    assert sorted(grid) == sorted((a, b, 4 - a - b) for a in range(5) for b in range(5 - a))


def test_equal_weights_win_ties_and_one_model_has_weight_one():
    weights, _ = search_weights(lambda w: 1.0, 4)
    assert weights.tolist() == [0.25] * 4
    weights, score = search_weights(lambda w: 7.0, 1)
    assert (weights.tolist(), score) == ([1.0], 7.0)


def test_search_weights_says_what_is_wrong():
    with pytest.raises(ValueError, match="lower steps or use method coordinate"):
        search_weights(target, 12, method="simplex", steps=20)
    with pytest.raises(ValueError, match="is NaN"):
        search_weights(lambda w: float("nan"), 2)
    with pytest.raises(ValueError, match="coordinate or simplex"):
        search_weights(target, 3, method="random")
    for n, settings in ((0, {}), (2, {"steps": 0, "method": "simplex"}), (2, {"rounds": 0})):
        with pytest.raises(ValueError, match="n, steps and rounds must be at least 1"):
            search_weights(target, n, **settings)
