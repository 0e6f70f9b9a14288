"""Classes by their centres against one class and one query at a time."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.rerank.centers import center_mix, class_centers, class_logits, trimmed_centers
from common.rerank.known import STEPS
from common.rerank.labels import vote
from common.retrieval.search import search
from common.steps import chain
from common.types import Embeddings
from tests.oracles import labels as oracle
from tests.test_labels import assert_same, embeddings


@pytest.fixture
def scene():
    """30 queries; classes of 0 to 17 images with outliers: 5 has none, 7 has one, 8 has two."""
    generator = torch.Generator().manual_seed(5)
    sizes = [17, 9, 4, 5, 3, 0, 12, 1, 2]
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)] + [torch.full((6,), -1)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    spot = torch.randn(9, 8, generator=generator)
    vectors = spot[labels.clamp(min=0)] + 1.1 * torch.randn(len(labels), 8, generator=generator)
    ids = np.array([f"g{i:03d}" for i in range(len(labels))])
    gallery = Embeddings(ids, normalize(vectors, dim=1))
    return embeddings(30, 8, 6, "q"), gallery, labels


SETTINGS = [
    {},
    {"rounds": 0},
    {"rounds": 1},
    {"keep": 0.5, "cosine": 0.7, "rounds": 5},
    {"keep": 1.0},
    {"keep": 0.3, "cosine": 1.0, "fewest": 1, "rounds": 9},
    {"cosine": -1.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("block", [None, 7])
def test_centres_are_the_naive_ones(scene, settings, block, monkeypatch):
    if block:
        monkeypatch.setattr("common.rerank.centers.IMAGES", block)
    _, gallery, labels = scene
    found = trimmed_centers(gallery, labels, **settings)
    assert found.shape == (9, 1, 8)
    full = {"keep": 0.75, "cosine": 0.5, "rounds": 2, "fewest": 4, **settings}
    for c in range(9):
        images = gallery.vectors[labels == c].double().numpy()
        wanted = oracle.trimmed_center(images, **full) if len(images) else np.zeros(8)
        np.testing.assert_allclose(found[c, 0], wanted, atol=1e-6)


def test_an_outlier_leaves_and_few_images_stay(scene):
    """The rule by hand: three alike and a stranger; two strangers; one image."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    gallery = Embeddings(np.array(list("abcdefg")), torch.stack([a, a, a, b, a, b, b]))
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    found = trimmed_centers(gallery, labels)[:, 0]
    torch.testing.assert_close(found[0], a)
    torch.testing.assert_close(found[1], (a + b) / 2**0.5)
    torch.testing.assert_close(found[2], b)
    plain = trimmed_centers(gallery, labels, rounds=0)[:, 0]
    torch.testing.assert_close(plain[0], (3 * a + b) / 10**0.5)


def test_class_centers_rank_classes_that_have_images(scene):
    queries, gallery, labels = scene
    found = class_centers(queries, gallery, labels, k=6, rounds=1)
    centers = trimmed_centers(gallery, labels, rounds=1).numpy()
    wanted = [oracle.nearest_classes(q, centers, 6) for q in queries.vectors.numpy()]
    assert_same(found, wanted)
    everyone = class_centers(queries, gallery, labels)
    assert (everyone.index >= 0).sum(1).eq(8).all(), "class 5 has no image"
    assert not (everyone.index == 5).any()


def test_class_logits_are_the_best_sub_centres_of_classes_of_the_gallery(scene):
    queries, _, labels = scene
    generator = torch.Generator().manual_seed(1)
    centers = normalize(torch.randn(9, 3, 8, generator=generator), dim=2)
    found = class_logits(queries, centers, labels, k=7)
    known = centers.clone()
    known[5] = 0
    assert_same(
        found, [oracle.nearest_classes(q, known.numpy(), 7) for q in queries.vectors.numpy()]
    )
    absent = centers.clone()
    absent[3] = 0  # training did not have it
    assert not (class_logits(queries, absent, labels).index == 3).any()


def test_center_mix_is_the_naive_mix(scene):
    queries, gallery, labels = scene
    votes = vote(search(queries, gallery, 12), labels, None, None, top=12, power=1.0, reduce="max")
    found = center_mix(votes, queries, gallery, labels, weight=0.3, top=2)
    centers = trimmed_centers(gallery, labels).numpy()
    for row, (index, score, vector) in enumerate(
        zip(votes.index.tolist(), votes.score.tolist(), queries.vectors.numpy(), strict=True)
    ):
        near = {int(c): s for c, s in zip(index, score, strict=True) if c >= 0}
        named = {c for c, _ in oracle.nearest_classes(vector, centers, 2)}
        low = min(near.values())
        wanted = {
            c: 0.7 * near.get(c, low) + 0.3 * float(vector @ centers[c, 0]) for c in {*near, *named}
        }
        listed = {
            c: s
            for c, s in zip(found.index[row].tolist(), found.score[row].tolist(), strict=True)
            if c >= 0
        }
        assert listed == pytest.approx(wanted, abs=1e-5)
    assert (found.score.diff(dim=1).nan_to_num(0) <= 0).all()
    torch.testing.assert_close(
        center_mix(votes, queries, gallery, labels, weight=1.0).top(1).score,
        class_centers(queries, gallery, labels, k=1).score,
    )


def test_happywhale_first_place_as_a_chain(scene):
    """Nearest of 500 images per class and the head's logits, half and half."""
    queries, gallery, labels = scene
    centers = normalize(torch.randn(9, 2, 8, generator=torch.Generator().manual_seed(2)), dim=2)
    state = {"queries": queries, "gallery": gallery, "gallery_labels": labels, "centers": centers}
    steps = [
        {"name": "knn", "k": 500},
        {"name": "vote", "top": 500, "power": 1.0, "reduce": "max"},
        {"name": "logit_mix", "weight": 0.5},
    ]
    found = chain(steps, STEPS, set(state), "ranking")(state)["neighbors"]
    for q, vector in enumerate(queries.vectors.numpy()):
        head = (centers.numpy() @ vector).max(1)
        near = gallery.vectors.numpy() @ vector
        low = min(near[labels.numpy() == c].max() for c in range(9) if c != 5)
        nearest = [near[labels.numpy() == c].max(initial=low) for c in range(9)]
        mixed = 0.5 * np.array(nearest) + 0.5 * head
        assert found.index[q].tolist()[:9] == np.argsort(-mixed, kind="stable").tolist()


@pytest.mark.parametrize("name", ["class_centers", "class_logits"])
def test_as_steps_that_make_neighbors(scene, name):
    queries, gallery, labels = scene
    state = {
        "queries": queries,
        "gallery": gallery,
        "gallery_labels": labels,
        "centers": trimmed_centers(gallery, labels),
    }
    found = chain([{"name": name, "k": 3}], STEPS, set(state), "ranking")(state)["neighbors"]
    torch.testing.assert_close(found.score, class_centers(queries, gallery, labels, k=3).score)
    nobody = Embeddings(np.array([], np.str_), queries.vectors[:0])
    empty = chain([{"name": name}], STEPS, set(state), "ranking")({**state, "queries": nobody})
    assert len(empty["neighbors"]) == 0


def test_bad_input(scene):
    queries, gallery, labels = scene
    none = torch.full_like(labels, -1)
    with pytest.raises(ValueError, match="the gallery has none: use knn"):
        class_centers(queries, gallery, none)
    with pytest.raises(ValueError, match="images but 3 labels"):
        trimmed_centers(gallery, labels[:3])
    for settings in ({"keep": 0.0}, {"rounds": -1}, {"fewest": 0}):
        with pytest.raises(ValueError, match="keep must be in"):
            class_centers(queries, gallery, labels, **settings)
    with pytest.raises(ValueError, match="k must be at least 1"):
        class_centers(queries, gallery, labels, k=0)
    with pytest.raises(ValueError, match="this run has none: use knn and vote"):
        class_logits(queries, None, labels)
    with pytest.raises(ValueError, match="row 8 but centers has 2"):
        class_logits(queries, torch.ones(2, 1, 8), labels)
    with pytest.raises(ValueError, match="weight must be in"):
        center_mix(search(queries, gallery, 3), queries, gallery, labels, weight=2.0)
