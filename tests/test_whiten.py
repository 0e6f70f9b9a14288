"""PCA whitening: against scikit-learn, on degenerate data, and as a step."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import common.retrieval.whiten as module
from common.retrieval.whiten import Whitening, pca_whiten
from common.types import Embeddings


def rows(n, d, seed=0, scale=True):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, d, generator=generator) + 0.5
    if scale:
        vectors = vectors * torch.logspace(0, -1.5, d)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(99)))[0]
    return torch.nn.functional.normalize(vectors @ rotation)


def named(vectors, prefix="x"):
    return Embeddings(np.array([f"{prefix}{i}" for i in range(len(vectors))]), vectors)


def gram(vectors):
    return (vectors.double() @ vectors.double().T).numpy()


@pytest.mark.parametrize("dim", [1, 7, 32, None])
def test_full_whitening_equals_scikit_learn(dim, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 37)
    train, test = rows(400, 32), rows(50, 32, 1)
    pca = PCA(n_components=dim, whiten=True, svd_solver="full").fit(train.double().numpy())
    expected = pca.transform(test.double().numpy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    whitening = Whitening(dim).fit(train)
    found = whitening.transform(test)
    np.testing.assert_allclose(gram(found), expected @ expected.T, atol=1e-6)
    np.testing.assert_allclose(whitening.explained_variance_, pca.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(whitening.mean_, pca.mean_, atol=1e-12)
    overlap = np.abs(whitening.components_.numpy() @ pca.components_.T)
    np.testing.assert_allclose(overlap, np.eye(len(overlap)), atol=1e-8)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.norm(dim=1), 1, atol=1e-6)


def test_whitened_training_data_has_unit_covariance_before_the_norm():
    train = rows(500, 16)
    whitening = Whitening(power=0.5).fit(train)
    weight = whitening.explained_variance_**-0.5
    centred = (train.double() - whitening.mean_) @ whitening.components_.T * weight
    np.testing.assert_allclose(np.cov(centred.numpy().T), np.eye(16), atol=1e-9)


@pytest.mark.parametrize("power", [0.0, 0.25, 1.0])
def test_the_power_is_that_of_the_variance(power):
    train, test = rows(300, 12), rows(20, 12, 1)
    whitening = Whitening(8, power).fit(train)
    expected = (test.double() - whitening.mean_) @ whitening.components_.T
    expected = torch.nn.functional.normalize(expected * whitening.explained_variance_**-power)
    np.testing.assert_allclose(whitening.transform(test), expected, atol=1e-6)
    if power == 0:  # a rotation keeps the angles of centred rows
        centred = torch.nn.functional.normalize(test.double() - whitening.mean_)
        found = Whitening(None, 0.0).fit(train).transform(test)
        np.testing.assert_allclose(gram(found), gram(centred), atol=1e-6)


def test_signs_do_not_depend_on_the_order_of_the_rows():
    train = rows(200, 12)
    one = Whitening(6).fit(train)
    other = Whitening(6).fit(train.flip(0))
    np.testing.assert_allclose(one.components_, other.components_, atol=1e-9)
    assert (one.components_.gather(1, one.components_.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_data_of_low_rank_does_not_explode(eps):
    low = rows(300, 6, scale=False) @ torch.randn(6, 24, generator=torch.Generator().manual_seed(3))
    low = torch.nn.functional.normalize(low)
    whitening = Whitening(eps=eps).fit(low)
    found = whitening.transform(low)
    assert found.isfinite().all()
    # 18 of the 24 directions hold rounding only; they must not take over.
    if eps:
        trusted = Whitening(6, eps=eps).fit(low).transform(low)
        assert (found[:, :6] * trusted).sum(1).min() > 0.99
    constant = torch.nn.functional.normalize(torch.ones(9, 4))
    assert Whitening().fit(constant).transform(constant).isfinite().all()


def test_fewer_rows_than_dimensions():
    train = rows(10, 32)
    assert Whitening().fit(train).components_.shape == (9, 32)
    with pytest.raises(ValueError, match="10 non-zero rows of 32 dimensions span 9"):
        Whitening(10).fit(train)
    with pytest.raises(ValueError, match="more training rows"):
        Whitening().fit(train[:1])
    with pytest.raises(ValueError, match="more training rows"):
        Whitening().fit(train[:0])


def test_zero_rows_neither_teach_nor_move():
    train, test = rows(100, 8), rows(6, 8, 1)
    with_zeros = torch.cat([torch.zeros(40, 8), train])
    one, other = Whitening(5).fit(train), Whitening(5).fit(with_zeros)
    np.testing.assert_allclose(one.mean_, other.mean_, atol=1e-12)
    np.testing.assert_allclose(one.components_, other.components_, atol=1e-9)
    test[2] = 0
    found = one.transform(test)
    assert (found[2] == 0).all()
    assert found[1].norm() > 0.999


def test_half_precision_in_and_out():
    train, test = rows(200, 16), rows(20, 16, 1)
    expected = Whitening(8).fit(train.half().float()).transform(test.half().float())
    found = Whitening(8).fit(train.half()).transform(test.half())
    assert found.dtype == torch.float16
    np.testing.assert_allclose(found.float(), expected, atol=1e-3)


def test_the_step_learns_on_train_and_keeps_ids():
    queries, gallery, train = named(rows(5, 8, 1), "q"), named(rows(9, 8, 2)), named(rows(60, 8))
    kept = queries.vectors.clone()
    new_queries, new_gallery = pca_whiten(queries, gallery, train, dim=4, power=0.25)
    whitening = Whitening(4, 0.25).fit(train.vectors)
    assert torch.equal(new_queries.vectors, whitening.transform(queries.vectors))
    assert torch.equal(new_gallery.vectors, whitening.transform(gallery.vectors))
    assert new_queries.ids.tolist() == queries.ids.tolist()
    assert torch.equal(queries.vectors, kept)
    with pytest.raises(ValueError, match="training embeddings"):
        pca_whiten(queries, gallery, None)


def test_wrong_calls_are_named():
    for wrong in ({"dim": 0}, {"power": -1.0}, {"eps": float("nan")}):
        with pytest.raises(ValueError, match="Whitening needs"):
            Whitening(**wrong)
    with pytest.raises(ValueError, match="fit first"):
        Whitening().transform(rows(3, 4))
    with pytest.raises(ValueError, match="D=8"):
        Whitening().fit(rows(30, 8)).transform(rows(3, 4))
    bad = rows(30, 8)
    bad[7, 0] = float("nan")
    with pytest.raises(ValueError, match=r"row 7 \(id 'x7'\)"):
        Whitening().fit(named(bad))
    with pytest.raises(ValueError, match="row 7"):
        Whitening().fit(rows(30, 8)).transform(bad)
