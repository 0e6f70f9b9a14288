"""Learned expansion weights and what they share with the list-wise re-ranker."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.metrics import map_at_k_arrays
from common.notes import Notes
from common.rerank import listmodel
from common.retrieval import attention, expand, lists
from common.retrieval.attention import ExpansionWeights, alpha_weights, learn
from common.retrieval.expand import alpha_query_expansion, attention_query_expansion
from common.retrieval.lists import (
    ListEncoder,
    label_folds,
    labelled_lists,
    mean_average_precision,
    products,
)
from common.retrieval.search import search
from common.types import Embeddings
from tests.oracles.expand import expand as twin

CPU = torch.device("cpu")


def classes(count, each, d=16, seed=0, prefix="t", strangers=3):
    """Unit rows and labels: classes, each with a far view in four and strangers around it.

    The strangers have a label of their own each. They are as near to a far view as its class is,
    but not near each other: only a look at the whole list tells them apart.
    """
    generator = torch.Generator().manual_seed(seed)
    centers = F.normalize(torch.randn(count, d, generator=generator))
    spread = torch.full((each + strangers,), 0.2)
    spread[:each:4], spread[each:] = 0.35, 0.25
    noise = torch.randn(count, each + strangers, d, generator=generator) * spread[:, None]
    rows = F.normalize(centers[:, None] + noise, dim=2).flatten(0, 1)
    labels = torch.arange(count)[:, None].repeat(1, each + strangers)
    labels[:, each:] = count + torch.arange(count * strangers).view(count, -1)
    ids = np.array([f"{prefix}{i:04}" for i in range(len(rows))])
    return Embeddings(ids, rows), labels.flatten()


@pytest.fixture(scope="module")
def train():
    return classes(12, 10)


def test_untrained_weights_are_those_of_alpha_expansion(train):
    images, _ = train
    near = search(images, images, 6, exclude_self=True)
    gram = products(images.vectors, images.vectors, near.index, 6)
    torch.manual_seed(0)
    model = ExpansionWeights(6, alpha=2.0)
    found = model(gram, near.index >= 0)
    torch.testing.assert_close(found, near.score.clamp(min=0) ** 2)


def test_weights_are_bounded_and_padding_weighs_nothing(train):
    images, _ = train
    near = search(images, images, 6)
    index = near.index.clone()
    index[:, 4:] = -1
    gram = products(images.vectors, images.vectors, index, 6)
    torch.manual_seed(0)
    model = ExpansionWeights(6)
    torch.nn.init.normal_(model.outward.weight, std=2.0)
    real = index >= 0
    found, plain = model(gram, real), alpha_weights(gram, real, 3.0)
    assert (found[:, 4:] == 0).all()
    assert ((found <= plain * np.e**3 * 1.001) & (found >= plain * np.e**-3 * 0.999)).all()
    assert not torch.allclose(found, plain, rtol=0.5)
    gram[:, 5:] = 7.0  # nobody looks at padding
    torch.testing.assert_close(model(gram, real), found)


def test_products_equal_a_loop_in_blocks_of_any_size(train, monkeypatch):
    images, _ = train
    index = search(images, images, 5).index
    index[3, 2:] = -1
    expected = torch.zeros(len(index), 4, 6)
    for row in range(len(index)):
        members = [images.vectors[row]] + [
            images.vectors[i] if i >= 0 else torch.zeros(16) for i in index[row].tolist()
        ]
        for i in range(4):
            for j in range(6):
                expected[row, i, j] = members[i] @ members[j]
    torch.testing.assert_close(products(images.vectors, images.vectors, index, 3), expected)
    monkeypatch.setattr(lists, "_CELLS", 1)
    torch.testing.assert_close(products(images.vectors, images.vectors, index, 3), expected)


def test_encoder_does_not_know_the_places_and_does_not_look_at_padding():
    torch.manual_seed(0)
    encoder = ListEncoder(16, 2, 4)
    tokens, rows = torch.randn(2, 5, 16), F.normalize(torch.randn(2, 5, 8), dim=2)
    gram, real = rows @ rows.mT, torch.ones(2, 5, dtype=torch.bool)
    found = encoder(tokens, gram, real)
    order = torch.tensor([0, 3, 1, 4, 2])
    turned = encoder(tokens[:, order], gram[:, order][:, :, order], real)
    torch.testing.assert_close(turned, found[:, order], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(encoder(tokens, gram * 0, real), found, atol=1e-3)
    real[:, 3:] = False
    short = encoder(tokens[:, :3], gram[:, :3, :3], real[:, :3])
    torch.testing.assert_close(encoder(tokens, gram, real)[:, :3], short, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="heads=3"):
        ListEncoder(16, 1, 3)


def test_average_precision_equals_the_metric():
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(0, 6, (40, 12), generator=generator).float()  # many ties
    hits = torch.rand(40, 12, generator=generator) < 0.3
    totals = hits.sum(1) + torch.randint(1, 30, (40,), generator=generator)
    order = np.argsort(-score.numpy(), axis=1, kind="stable")
    expected = map_at_k_arrays(np.take_along_axis(hits.numpy(), order, 1), totals.numpy(), 12)
    assert mean_average_precision(score, hits, totals) == pytest.approx(expected, abs=1e-12)


def test_lists_are_of_labelled_images_that_have_company(train):
    images, labels = train
    labels = labels.clone()
    labels[:13] = -1  # the first class and its strangers are unknown
    found = labelled_lists(images, labels, 20, most=1000, seed=0, step="x", device=None)
    assert len(found.images) == 11 * 13
    assert len(found.rows) == 11 * 10
    assert set(found.totals.tolist()) == {9}
    assert (found.index != found.rows[:, None]).all()
    own = labels[13:]
    assert torch.equal(found.hits, own[found.index] == found.labels[:, None])
    few = labelled_lists(images, labels, 20, most=7, seed=0, step="x", device=None)
    assert len(few.rows) == 7
    assert set(few.rows.tolist()) <= set(found.rows.tolist())
    again = labelled_lists(images, labels, 20, most=7, seed=0, step="x", device=None)
    assert torch.equal(few.rows, again.rows)


def test_learned_weights_beat_alpha_on_labels_they_have_not_seen(train):
    _, figures = learn(*train, k=30, alpha=1.0, epochs=10, lr=2e-3, most=500, seed=0, device=CPU)
    assert figures["alpha expansion"] > figures["no expansion"]
    assert figures["learned weights"] > figures["alpha expansion"] + 0.01


@pytest.mark.parametrize("module", [attention, listmodel])
def test_each_label_is_unseen_by_the_model_that_is_judged_by_it(train, module, monkeypatch):
    found = labelled_lists(*train, 20, most=90, seed=0, step="test", device=None)
    seen = []

    def watched(model, loss_of, rows, **settings):
        seen.append(set(found.labels[rows].tolist()))

    monkeypatch.setattr(module, "train_model", watched)
    if module is attention:
        learn(*train, k=5, alpha=3.0, epochs=1, lr=1e-3, most=90, seed=0, device=CPU)
    else:
        listmodel.fit(found)
    fold_of = label_folds(found.labels.numpy(), 4, 0)
    held = [set(found.labels[fold_of == fold].tolist()) for fold in range(4)]
    assert seen == [set(found.labels.tolist()) - labels for labels in held]


def test_expansion_uses_the_learned_weights_and_says_what_they_are_worth(train):
    gallery, _ = classes(8, 10, d=40, seed=5, prefix="g")
    queries = Embeddings(np.array(["q1", "g0007", "q2"]), gallery.vectors[[1, 7, 31]].clone())
    queries.vectors[2] = 0
    before = gallery.vectors.clone()
    notes = Notes()
    settings = {"k": 30, "alpha": 1.0, "epochs": 10}
    found = attention_query_expansion(queries, gallery, *train, **settings, notes=notes)
    again = attention_query_expansion(queries, gallery, *train, **settings)
    assert torch.equal(found.vectors, again.vectors)
    other = attention_query_expansion(queries, gallery, *train, **settings, seed=1)
    assert not torch.equal(found.vectors, other.vectors)
    assert len(notes.numbers) == 3
    assert all(key.startswith("attention_qe: out-of-fold mAP@100, ") for key in notes.numbers)
    plain = alpha_query_expansion(queries, gallery, k=30, alpha=1.0, exclude_self=True)
    difference = (found.vectors - plain.vectors).norm(dim=1)
    assert (difference[:2] > 1e-3).all()
    assert not found.vectors[2].any()
    # A weighted sum of the original vectors: the query and its neighbors span the result.
    near = search(queries, gallery, 30, exclude_self=True).index[1]
    assert 7 not in near.tolist()
    basis = torch.cat([queries.vectors[1:2], gallery.vectors[near]])
    solution = torch.linalg.lstsq(basis.T.double(), found.vectors[1].double()[:, None])
    rebuilt = basis.T.double() @ solution.solution
    torch.testing.assert_close(rebuilt[:, 0].float(), found.vectors[1], atol=1e-5, rtol=0)
    assert torch.equal(gallery.vectors, before)


def test_it_falls_back_to_alpha_expansion_and_says_so(train, monkeypatch):
    gallery, _ = classes(8, 10, seed=5, prefix="g")
    real = expand.attention.learn

    def worse(*arguments, **settings):
        model, figures = real(*arguments, **settings)
        return model, figures | {"learned weights": figures["alpha expansion"]}

    monkeypatch.setattr(expand.attention, "learn", worse)
    with pytest.warns(UserWarning, match="alpha expansion is used"):
        found = attention_query_expansion(gallery, gallery, *train, k=5, alpha=2.0, epochs=1)
    rows = gallery.vectors
    expected = twin(rows, rows, 5, lambda s, _: max(s, 0.0) ** 2, exclude_self=True)
    np.testing.assert_allclose(found.vectors.numpy(), expected, atol=1e-6)


def test_more_neighbors_than_images(train):
    gallery, _ = classes(2, 2, seed=5, prefix="g")
    small, labels = classes(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = attention_query_expansion(gallery, gallery, small, labels, k=9, epochs=1)
        empty = Embeddings(gallery.ids[:0], gallery.vectors[:0])
        alone = attention_query_expansion(gallery, empty, small, labels, k=9, epochs=1)
        none = attention_query_expansion(empty, gallery, small, labels, k=9, epochs=1)
    assert torch.isfinite(found.vectors).all()
    torch.testing.assert_close(alone.vectors, gallery.vectors)
    assert len(none) == 0


def test_wrong_arguments_are_named(train):
    images, labels = train
    with pytest.raises(ValueError, match="attention_qe learns on labelled train.*none"):
        attention_query_expansion(images, images, None, labels)
    with pytest.raises(ValueError, match="156 for 3 labels"):
        attention_query_expansion(images, images, images, labels[:3])
    with pytest.raises(ValueError, match="at least two labels with two images"):
        attention_query_expansion(images, images, images, torch.arange(len(images)))
    with pytest.raises(ValueError, match="at least two labels"):
        attention_query_expansion(images, images, images, torch.full((len(images),), -1))
    with pytest.raises(ValueError, match="k and epochs"):
        attention_query_expansion(images, images, images, labels, k=0)
    assert expand.attention_qe is attention_query_expansion
