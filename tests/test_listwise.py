"""The list-wise re-ranker: learns, helps labels it has not seen, steps back, keeps its file."""

import warnings

import numpy as np
import pytest
import torch

from common.notes import Notes
from common.rerank import listwise as module
from common.rerank.known import STEPS, check_step
from common.rerank.listmodel import FEATURES, ListScorer, ListwiseReranker, features_of, fit
from common.rerank.listwise import listwise
from common.retrieval.lists import labelled_lists, mean_average_precision, products
from common.retrieval.search import search
from common.types import Embeddings, Neighbors
from tests.oracles import lists as oracle
from tests.test_attention import classes

QUICK = {"top": 20, "epochs": 6}


@pytest.fixture(scope="module")
def train():
    return classes(12, 10)


@pytest.fixture(scope="module")
def fitted(train):
    return fit(lists_of(train), epochs=6)


@pytest.fixture(scope="module")
def asked():
    """Gallery of other labels, its near and far views as queries, and their neighbors."""
    gallery, labels = classes(8, 10, seed=5, prefix="g")
    rows = np.arange(0, len(gallery), 4)
    queries = Embeddings(gallery.ids[rows], gallery.vectors[torch.from_numpy(rows)])
    return search(queries, gallery, 30, exclude_self=True), queries, gallery, labels, labels[rows]


def lists_of(train, width=20):
    return labelled_lists(*train, width, most=1000, seed=0, step="x", device=None)


def test_features_equal_their_twin_and_do_not_see_padding(train):
    images, _ = train
    index = search(images, images, 9, exclude_self=True).index
    real = index >= 0
    gram = products(images.vectors, images.vectors, index, 9)
    found = features_of(gram, real)
    assert found.shape == (len(images), 9, FEATURES)
    for row in range(0, len(images), 7):
        expected = oracle.features(images.vectors[row], images.vectors[index[row]])
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    longer = torch.cat([index, torch.full((len(index), 3), -1)], 1)
    gram = products(images.vectors, images.vectors, longer, 12)
    padded = features_of(gram, longer >= 0, torch.ones(len(index), 12, 2))
    torch.testing.assert_close(padded[:, :9, :FEATURES], found)
    assert (padded[:, 9:] == 0).all()
    assert (padded[:, :9, FEATURES:] == 1).all()


def test_an_untrained_scorer_keeps_the_order_and_padding_last(train):
    images, _ = train
    index = search(images, images, 8, exclude_self=True).index
    index[:, 6:] = -1
    gram, real = products(images.vectors, images.vectors, index, 8), index >= 0
    logits = ListScorer()(features_of(gram, real), gram, real)
    assert (logits[:, :6].diff(dim=1) <= 0).all()
    assert (logits[:, 6:] == -torch.inf).all()


def test_candidates_that_change_places_change_places_in_the_result(train, fitted):
    images, _ = train
    index = search(images, images, 12, exclude_self=True).index
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    model, _ = fitted
    found = [
        model.score(products(images.vectors, images.vectors, rows, 12), rows >= 0)
        for rows in (index, index[:, order])
    ]
    torch.testing.assert_close(found[1], found[0][:, order], atol=1e-5, rtol=0)
    assert ((found[0] >= 0) & (found[0] <= 1)).all()


def test_it_orders_labels_that_it_has_not_seen_better(train, fitted, asked):
    _, figures = fitted
    assert figures["learned order"] > figures["order given"] + 0.01
    lists = lists_of(train)
    given = search(lists.images, lists.images, 20, exclude_self=True).score[lists.rows]
    before = mean_average_precision(given, lists.hits, lists.totals)
    assert figures["order given"] == pytest.approx(before, abs=1e-9)
    near, queries, gallery, labels, own = asked
    found = listwise(near, queries, gallery, *train, **QUICK)
    totals = (own[:, None] == labels).sum(1) - 1

    def quality(result):
        hits = (labels[result.index] == own[:, None])[totals > 0]
        return mean_average_precision(result.score[totals > 0], hits, totals[totals > 0])

    assert quality(found) > quality(near) + 0.01
    assert torch.equal(found.index[:, 20:], near.index[:, 20:])
    assert (found.score.diff(dim=1) <= 0).all()
    assert torch.equal(found.index.sort(dim=1).values, near.index.sort(dim=1).values)


def test_the_same_seed_gives_the_same_and_notes_say_how_good(train, asked):
    near, queries, gallery, _, _ = asked
    notes = Notes()
    settings = {"top": 15, "epochs": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.random.get_rng_state()
        first = listwise(near, queries, gallery, *train, **settings, notes=notes)
        assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's numbers change
        torch.manual_seed(99)
        again = listwise(near, queries, gallery, *train, **settings)
    assert torch.equal(first.score, again.score)
    names = ["order given", "learned order"]
    assert list(notes.numbers) == [f"listwise: out-of-fold mAP@15, {name}" for name in names]


def test_it_steps_back_when_it_learned_nothing(train, asked, monkeypatch):
    near, queries, gallery, _, _ = asked

    def worse(lists, **settings):
        model, _ = fit(lists, **settings)
        return model, {"order given": 0.5, "learned order": 0.5}

    monkeypatch.setattr(module, "fit", worse)
    with pytest.warns(UserWarning, match="neighbors stay as they are"):
        assert listwise(near, queries, gallery, *train, top=5, epochs=1) is near


def test_statistics_of_pairs_are_learned_from(train):
    lists = lists_of(train)
    inliers = lists.hits.float()[..., None]  # a perfect matcher
    _, without = fit(lists, epochs=3)
    model, figures = fit(lists, extra=inliers, epochs=3)
    assert figures["learned order"] > without["learned order"] + 0.05
    gram = products(lists.images.vectors[lists.rows], lists.images.vectors, lists.index, 20)
    assert model.score(gram, lists.index >= 0, inliers).shape == lists.index.shape
    with pytest.raises(ValueError, match="trained with 1 statistics of each pair and got 0"):
        model.score(gram, lists.index >= 0)


def test_trained_weights_are_kept_and_read_without_training(train, asked, tmp_path, monkeypatch):
    near, queries, gallery, _, _ = asked
    path = tmp_path / "models" / "listwise.safetensors"
    first = listwise(near, queries, gallery, *train, **QUICK, save=str(path))
    monkeypatch.setattr(module, "fit", None)
    settings = {"top": 20, "weights": str(path)}
    again = listwise(near, queries, gallery, None, torch.zeros(0), **settings)
    assert torch.equal(first.index, again.index)
    assert torch.equal(first.score, again.score)
    check_step({"name": "listwise", "weights": str(path)})
    with pytest.raises(FileNotFoundError, match="no weights at"):
        check_step({"name": "listwise", "weights": "nothing.safetensors"})  # before any long work
    model = ListwiseReranker.load(path)
    assert model.settings == {"extra": 0, "width": 32, "layers": 2, "heads": 2}
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="no such re-ranker"):
        ListwiseReranker.load(path)
    gallery.save(path)
    with pytest.raises(ValueError, match="no such re-ranker"):
        ListwiseReranker.load(path)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        ListwiseReranker.load(tmp_path / "nothing")


def test_short_empty_and_zero_lists(train, asked, fitted, tmp_path):
    _, queries, gallery, _, _ = asked
    fitted[0].save(tmp_path / "w.safetensors")
    settings = {"top": 20, "weights": str(tmp_path / "w.safetensors")}
    rest = (None, torch.zeros(0))
    few = Embeddings(gallery.ids[:3], gallery.vectors[:3])
    found = listwise(search(queries, few, 9), queries, few, *rest, **settings)
    assert (found.index[:, 3:] == -1).all()
    assert (found.score[:, 3:] == -torch.inf).all()
    assert torch.isfinite(found.score[:, :3]).all()
    nobody = Neighbors(torch.full((len(queries), 2), -1), torch.full((len(queries), 2), -torch.inf))
    assert torch.equal(listwise(nobody, queries, few, *rest, **settings).index, nobody.index)
    dark = Embeddings(queries.ids, queries.vectors * 0)
    found = listwise(search(dark, gallery, 25), dark, gallery, *rest, **settings)
    assert torch.isfinite(found.score).all()
    alone = listwise(search(queries, few, 1), queries, few, *rest, **settings)
    assert torch.isfinite(alone.score).all()


def test_wrong_arguments_are_named(train, asked):
    near, queries, gallery, _, _ = asked
    with pytest.raises(ValueError, match="listwise learns on labelled train.*none"):
        listwise(near, queries, gallery, None, torch.zeros(0))
    with pytest.raises(ValueError, match="at least two labels"):
        listwise(near, queries, gallery, train[0], torch.zeros(len(train[0]), dtype=torch.int64))
    with pytest.raises(ValueError, match="top must be at least 2"):
        listwise(near, queries, gallery, *train, top=1)
    with pytest.raises(ValueError, match="neighbors name row"):
        listwise(near, queries, Embeddings(gallery.ids[:2], gallery.vectors[:2]), *train)
    assert STEPS["listwise"] is listwise
