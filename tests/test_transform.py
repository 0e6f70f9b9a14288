"""Learned whitening, power normalisation, reduction: against pairs, scikit-learn, and bad data."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import common.retrieval.transform as module
from common.notes import Notes
from common.retrieval.search import search
from common.retrieval.transform import (
    LearnedWhitening,
    learned_whiten,
    pca_reduce,
    power_norm,
    powered,
)
from common.retrieval.whiten import Whitening
from common.types import Embeddings
from tests.oracles.transform import learned_whitening as twin
from tests.test_whiten import gram, named, rows


def classes(n, d, count, seed=0):
    """Rows with much spread within a class in a few directions that say nothing."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, count, (n,), generator=draw)
    centers = torch.randn(count, d, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(n, d, generator=draw) * torch.logspace(0.6, -0.6, d)
    return torch.nn.functional.normalize(centers[labels] + noise), labels


@pytest.mark.parametrize("dim", [1, 5, None])
def test_learned_whitening_equals_all_pairs(dim, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 13)
    train, labels = classes(80, 8, 9)
    test, _ = classes(30, 8, 9, 1)
    whitening = LearnedWhitening(dim, eps=1e-12).fit(train, labels)
    mean, projection, separation = twin(train.double().numpy(), labels, dim or 8)
    np.testing.assert_allclose(whitening.mean_, mean, atol=1e-12)
    np.testing.assert_allclose(whitening.separation_, separation, rtol=1e-9)
    expected = (test.double().numpy() - mean) @ projection.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(gram(whitening.transform(test)), expected @ expected.T, atol=1e-6)


def test_learned_whitening_equals_discriminant_analysis():
    train, labels = classes(300, 10, 6)
    test, _ = classes(30, 10, 6, 1)
    lda = LinearDiscriminantAnalysis(solver="eigen", n_components=5)
    lda.fit(train.double().numpy(), labels.numpy())
    expected = (test.double().numpy() - train.double().numpy().mean(0)) @ lda.scalings_[:, :5]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = LearnedWhitening(5, eps=1e-12).fit(train, labels).transform(test)
    np.testing.assert_allclose(gram(found), expected @ expected.T, atol=1e-6)


def test_it_separates_classes_it_has_not_seen_better_than_the_rows_do():
    train, labels = classes(3000, 16, 200)
    unseen, own = classes(400, 16, 40, 7)
    whitening = LearnedWhitening().fit(train[labels >= 40], labels[labels >= 40])

    def right(vectors):
        found = search(vectors, vectors, 1, exclude_self=True).index[:, 0]
        return (own[found] == own).float().mean()

    assert right(whitening.transform(unseen)) > right(unseen) + 0.1


def test_unknown_labels_and_zero_rows_do_not_teach():
    train, labels = classes(100, 6, 8)
    more = torch.cat([train, torch.zeros(3, 6), rows(5, 6, 3)])
    known = torch.cat([labels, torch.zeros(3).long(), torch.full((5,), -1)])
    one, other = LearnedWhitening().fit(train, labels), LearnedWhitening().fit(more, known)
    np.testing.assert_allclose(one.projection_, other.projection_, rtol=1e-8)
    found = other.transform(more)
    assert (found[100:103] == 0).all()


def test_the_floor_holds_where_classes_have_no_spread():
    train, labels = classes(60, 12, 20)
    train[:, 6:] = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))[labels]
    whitening = LearnedWhitening(eps=1e-2).fit(train, labels)
    assert whitening.projection_.isfinite().all()
    spread = torch.linalg.svdvals(whitening.projection_)
    assert spread[0] / spread[-1] <= 10.001  # 1 / sqrt(eps)
    half = LearnedWhitening(4).fit(train.half(), labels).transform(train.half())
    assert half.dtype == torch.float16


def test_power_norm_by_hand():
    vectors = torch.tensor([[0.64, -0.36, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.8, -0.6, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(powered(vectors), expected)
    unit = torch.nn.functional.normalize(vectors)
    torch.testing.assert_close(powered(vectors, 1.0), unit)
    new, _ = power_norm(named(vectors), named(vectors), alpha=0.3)
    cubed = new.vectors.double().sign() * new.vectors.double().abs() ** (1 / 0.3)
    torch.testing.assert_close(torch.nn.functional.normalize(cubed).float(), unit)
    assert powered(vectors.half()).dtype == torch.float16
    with pytest.raises(ValueError, match="0 < alpha <= 1"):
        powered(vectors, 0.0)
    with pytest.raises(ValueError, match="row 1"):
        powered(torch.tensor([[1.0], [float("nan")]]))


def test_reduction_reports_the_neighbors_it_keeps():
    train, queries, gallery = (named(rows(n, 24, s)) for n, s in ((400, 0), (40, 1), (300, 2)))
    notes = Notes()
    small_queries, small_gallery = pca_reduce(queries, gallery, train, notes, dim=8, k=10)
    pca = Whitening(8, 0.0).fit(train)
    assert torch.equal(small_gallery.vectors, pca.transform(gallery).vectors)
    before, after = search(queries, gallery, 10), search(small_queries, small_gallery, 10)
    kept = [len(np.intersect1d(a, b)) for a, b in zip(before.index, after.index, strict=True)]
    assert notes.numbers == {
        "recall@10 of 8 against 24 dimensions": pytest.approx(np.mean(kept) / 10)
    }
    assert 0.3 < np.mean(kept) / 10 < 1
    nobody = Embeddings(np.array([], str), torch.empty(0, 24))
    assert pca_reduce(nobody, gallery, train, notes, dim=4)[0].vectors.shape == (0, 4)
    pca_reduce(queries, gallery, train, notes, dim=20, k=999)
    assert notes.numbers["recall@300 of 20 against 24 dimensions"] == 1


def test_the_steps_need_training_embeddings():
    some = named(rows(9, 8))
    with pytest.raises(ValueError, match="training embeddings"):
        pca_reduce(some, some, None, Notes())
    with pytest.raises(ValueError, match="training embeddings"):
        learned_whiten(some, some, None, torch.zeros(0))
    train, labels = classes(60, 8, 6)
    queries, _ = learned_whiten(some, some, named(train), labels, dim=3)
    expected = LearnedWhitening(3).fit(train, labels).transform(some.vectors)
    assert torch.equal(queries.vectors, expected)


def test_wrong_calls_are_named():
    train, labels = classes(30, 8, 4)
    for wrong in ({"dim": 0}, {"eps": 0.0}):
        with pytest.raises(ValueError, match="LearnedWhitening needs"):
            LearnedWhitening(**wrong)
    with pytest.raises(ValueError, match="one label per row"):
        LearnedWhitening().fit(train, labels[:3])
    for lost in (torch.arange(30), torch.zeros(30).long(), torch.full((30,), -1)):
        with pytest.raises(ValueError, match="two classes"):
            LearnedWhitening().fit(train, lost)
    with pytest.raises(ValueError, match="to 9 of 8 dimensions"):
        LearnedWhitening(9).fit(train, labels)
    with pytest.raises(ValueError, match="identical"):
        LearnedWhitening().fit(torch.eye(8)[labels], labels)
    with pytest.raises(ValueError, match="fit first"):
        LearnedWhitening().transform(train)
    with pytest.raises(ValueError, match="D=8"):
        LearnedWhitening().fit(train, labels).transform(rows(3, 4))
    bad = train.clone()
    bad[7, 0] = float("nan")
    with pytest.raises(ValueError, match=r"row 7 \(id 'x7'\)"):
        LearnedWhitening().fit(named(bad), labels)
