"""Scaling, penalties and distractors against one-by-one twins and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import QuantileTransformer
from torch.nn.functional import normalize

from common.rerank.decide import (
    decide,
    distractors,
    gallery_penalty,
    quantile_scale,
    query_penalty,
)
from common.retrieval.search import search
from common.types import Embeddings, Neighbors
from tests.oracles import decide as oracle


def embeddings(n, seed, prefix, d=6):
    generator = torch.Generator().manual_seed(seed)
    return Embeddings(
        np.array([f"{prefix}{i:03d}" for i in range(n)]),
        normalize(torch.randn(n, d, generator=generator), dim=1),
    )


@pytest.fixture
def scene():
    queries, gallery = embeddings(30, 0, "q"), embeddings(50, 1, "g")
    others = embeddings(20, 2, "n")
    # Some of the negatives are gallery images and queries: they must not count for themselves.
    negatives = Embeddings(
        np.concatenate([others.ids, gallery.ids[:5], queries.ids[:5]]),
        torch.cat([others.vectors, gallery.vectors[:5], queries.vectors[:5]]),
    )
    neighbors = search(queries, gallery, 8)
    neighbors.index[2, 5:], neighbors.score[2, 5:] = -1, -torch.inf
    return queries, gallery, negatives, neighbors


def likeness(images, negatives, top):
    return [
        oracle.likeness(v, name, negatives.vectors.double().numpy(), negatives.ids, top)
        for v, name in zip(images.vectors.double().numpy(), images.ids, strict=True)
    ]


@pytest.mark.parametrize("quantiles", [2, 11, 1000])
@pytest.mark.parametrize("ties", [False, True])
def test_quantile_scale_is_scikit_learns(quantiles, ties):
    generator = torch.Generator().manual_seed(4)
    score = torch.rand(40, 15, generator=generator)
    if ties:
        score = (score * 8).round() / 8
    score = score.sort(dim=1, descending=True).values
    index = torch.arange(15).expand(40, 15).clone()
    index[7, 9:], score[7, 9:] = -1, -torch.inf
    found = quantile_scale(Neighbors(index, score), quantiles=quantiles)
    real = index >= 0
    values = score[real].double().numpy()[:, None]
    transformer = QuantileTransformer(
        n_quantiles=min(quantiles, len(values)), output_distribution="normal", subsample=None
    )
    expected = transformer.fit_transform(values)[:, 0]
    # scikit-learn rounds the places of its quantiles: a run of ties may end one rank off there.
    tolerance = 0.02 if ties else 1e-4
    assert found.score[real].numpy() == pytest.approx(expected, abs=tolerance)
    assert (found.score[~real] == -torch.inf).all()
    assert torch.equal(found.index, index)
    order = torch.argsort(score[real], stable=True)
    assert (found.score[real][order].diff() >= 0).all(), "never decreasing"


def test_quantile_scale_of_little():
    one = Neighbors(torch.tensor([[3]]), torch.tensor([[0.5]]))
    assert quantile_scale(one).score.isfinite().all()
    none = Neighbors(torch.tensor([[-1]]), torch.tensor([[-torch.inf]]))
    assert torch.equal(quantile_scale(none).score, none.score)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        quantile_scale(one, quantiles=1)
    with pytest.raises(ValueError, match="1 scores are NaN"):
        quantile_scale(Neighbors(torch.tensor([[3]]), torch.tensor([[torch.nan]])))


@pytest.mark.parametrize(
    ("top", "weight", "images"), [(5, 1.0, 1 << 17), (1, 0.3, 7), (100, 2.0, 1)]
)
def test_gallery_penalty_is_the_naive_one(scene, top, weight, images, monkeypatch):
    monkeypatch.setattr("common.rerank.voting.IMAGES", images)
    _, gallery, negatives, neighbors = scene
    found = gallery_penalty(neighbors, gallery, negatives, top=top, weight=weight)
    b = likeness(gallery, negatives, top)
    raw = [
        [s - weight * b[i] for i, s in zip(row, scores, strict=True)]
        for row, scores in zip(neighbors.index.tolist(), neighbors.score.tolist(), strict=True)
    ]
    expected = oracle.resorted(neighbors.index.tolist(), raw)
    for row, scores, theirs in zip(
        found.index.tolist(), found.score.tolist(), expected, strict=True
    ):
        assert row[: len(theirs)] == [i for i, _ in theirs]
        assert scores[: len(theirs)] == pytest.approx([s for _, s in theirs], abs=1e-5)
        assert set(row[len(theirs) :]) <= {-1}


def test_query_penalty_is_the_naive_one(scene):
    queries, _, negatives, neighbors = scene
    found = query_penalty(neighbors, queries, negatives, top=10, weight=0.5)
    c = torch.tensor(likeness(queries, negatives, 10))
    assert torch.equal(found.index, neighbors.index)
    expected = neighbors.score - 0.5 * c[:, None].float()
    torch.testing.assert_close(found.score, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [0.0, -5.0])
@pytest.mark.parametrize(("limit", "similarity"), [(4, 0.0), (0, 0.6), (6, 0.7), (0, 0.0)])
def test_distractors_are_the_naive_ones(scene, limit, similarity, shift):
    queries, _, negatives, _ = scene
    generator = torch.Generator().manual_seed(5)
    index = torch.randint(0, 6, (30, 1), generator=generator)
    index = torch.cat([index, index + 6, index + 12], 1)
    score = torch.rand(30, 3, generator=generator).sort(dim=1, descending=True).values + shift
    index[9], score[9] = -1, -torch.inf
    found = distractors(
        Neighbors(index, score), queries, negatives, limit=limit, similarity=similarity
    )
    alike = likeness(queries, negatives, 3)
    expected = oracle.distractors(index.tolist(), score.tolist(), alike, limit, similarity)
    torch.testing.assert_close(found.score, torch.tensor(expected), atol=1e-5, rtol=0)
    moved = (found.score - score)[:, 0].nan_to_num(0).abs() > 1e-6
    if limit or similarity:
        assert moved.any()
        assert not moved.all()
        assert found.score[moved, 0].max() < found.score[~moved & (index[:, 0] >= 0), 0].min()
    else:
        assert not moved.any()


def test_penalties_say_what_is_missing(scene):
    queries, gallery, _, neighbors = scene
    empty = Embeddings(np.array([], dtype=np.str_), torch.zeros(0, 6))
    for negatives in (None, empty):
        for call in (
            lambda n: gallery_penalty(neighbors, gallery, n),
            lambda n: query_penalty(neighbors, queries, n),
            lambda n: distractors(neighbors, queries, n, similarity=0.3),
        ):
            with pytest.raises(ValueError, match="this pipeline has no negatives: give such"):
                call(negatives)
    distractors(neighbors, queries, None)  # the class rule alone needs none


def test_decide_takes_the_first_and_may_stay_silent():
    neighbors = Neighbors(
        torch.tensor([[4, 2], [7, -1], [-1, -1]]),
        torch.tensor([[0.9, 0.1], [0.2, -torch.inf], [-torch.inf, -torch.inf]]),
    )
    label, score = decide(neighbors)
    assert label.tolist() == [4, 7, -1]
    assert score.tolist() == pytest.approx([0.9, 0.2, 0.0])
    label, score = decide(neighbors, threshold=0.5)
    assert label.tolist() == [4, -1, -1]
    assert score.tolist() == pytest.approx([0.9, 0.0, 0.0])
    label, score = decide(Neighbors(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0)))
    assert label.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="decide: 1 scores are NaN"):
        decide(Neighbors(torch.tensor([[1]]), torch.tensor([[torch.nan]])))


def test_inputs_stay_as_they_were(scene):
    queries, gallery, negatives, neighbors = scene
    index, score = neighbors.index.clone(), neighbors.score.clone()
    quantile_scale(neighbors)
    gallery_penalty(neighbors, gallery, negatives)
    query_penalty(neighbors, queries, negatives)
    distractors(neighbors, queries, negatives, limit=1)
    assert torch.equal(neighbors.index, index)
    assert torch.equal(neighbors.score, score)
