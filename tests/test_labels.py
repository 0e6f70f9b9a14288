"""Votes, logit mixing and label re-ranking against one-by-one twins."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.rerank.discriminative import insert_step, label_rerank, sort_step
from common.rerank.labels import logit_mix, vote
from common.rerank.voting import group, predict_labels
from common.retrieval.search import search
from common.types import Embeddings, Neighbors
from tests.oracles import labels as oracle


def embeddings(n, d, seed, prefix):
    generator = torch.Generator().manual_seed(seed)
    return Embeddings(
        np.array([f"{prefix}{i:03d}" for i in range(n)]),
        normalize(torch.randn(n, d, generator=generator), dim=1),
    )


@pytest.fixture
def scene():
    """40 queries, 60 gallery images, 80 train images (some unlabelled), 9 classes of 2 centres."""
    queries, gallery = embeddings(40, 6, 0, "q"), embeddings(60, 6, 1, "g")
    train = embeddings(80, 6, 2, "t")
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(-1, 9, (60,), generator=generator)
    train_labels = torch.randint(-1, 9, (80,), generator=generator)
    centers = normalize(torch.randn(9, 2, 6, generator=generator), dim=2)
    neighbors = search(queries, gallery, 12)
    neighbors.index[3, 8:] = -1
    neighbors.score[3, 8:] = -torch.inf
    neighbors.index[4], neighbors.score[4] = -1, -torch.inf
    return {
        "queries": queries,
        "gallery": gallery,
        "train": train,
        "gallery_labels": labels,
        "train_labels": train_labels,
        "centers": centers,
        "neighbors": neighbors,
    }


def listed(neighbors):
    """[(index, score), ...] per row without padding."""
    return [
        [(i, s) for i, s in zip(index, score, strict=True) if i >= 0]
        for index, score in zip(neighbors.index.tolist(), neighbors.score.tolist(), strict=True)
    ]


def assert_same(found, expected):
    assert [[i for i, _ in row] for row in listed(found)] == [
        [i for i, _ in row] for row in expected
    ]
    for mine, theirs in zip(listed(found), expected, strict=True):
        assert [s for _, s in mine] == pytest.approx([s for _, s in theirs], rel=2e-4, abs=1e-12)


@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize(
    ("top", "power", "class_power"), [(5, 8, 0), (5, 9, 10), (12, 1, 0), (3, 2, 1)]
)
def test_vote_is_the_naive_vote(scene, top, power, class_power, reduce):
    n = scene["neighbors"]
    found = vote(
        n,
        scene["gallery_labels"],
        scene["queries"],
        scene["centers"],
        top=top,
        power=power,
        class_power=class_power,
        reduce=reduce,
    )
    expected = oracle.vote(
        n.index.numpy(),
        n.score.double().numpy(),
        scene["gallery_labels"].numpy(),
        scene["queries"].vectors.double().numpy(),
        scene["centers"].double().numpy(),
        top,
        power,
        class_power,
        1e-8,
        reduce,
    )
    # Votes below float32's smallest number are 0 here and ordered by class.
    expected = [
        sorted(((i, s if s > 1e-37 else 0.0) for i, s in row), key=lambda p: (-p[1], p[0]))
        if power != 1
        else row
        for row in expected
    ]
    assert_same(found, expected)
    assert not listed(found)[4], "a query without neighbors has no class"


def test_vote_does_not_depend_on_the_block(scene, monkeypatch):
    arguments = (scene["neighbors"], scene["gallery_labels"], scene["queries"], scene["centers"])
    whole = vote(*arguments, class_power=12)
    monkeypatch.setattr("common.rerank.labels.BUDGET", 100)
    parts = vote(*arguments, class_power=12)
    assert torch.equal(whole.index, parts.index)
    torch.testing.assert_close(whole.score, parts.score)  # einsum rounds by batch


def test_vote_orders_ties_by_class_and_skips_unlabelled_rows():
    neighbors = Neighbors(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0.9, 0.5, 0.5, 0.5]]))
    labels = torch.tensor([-1, 7, 2, 7])
    found = vote(neighbors, labels, None, None, top=2, power=1)
    assert listed(found) == [[(2, 0.5), (7, 0.5)]]


def test_negative_similarities_vote_only_with_power_one():
    neighbors = Neighbors(torch.tensor([[0, 1]]), torch.tensor([[0.1, -0.5]]))
    labels = torch.tensor([3, 2])
    assert_same(vote(neighbors, labels, None, None, power=2), [[(3, 0.01), (2, 0.0)]])
    assert_same(vote(neighbors, labels, None, None, power=0.5), [[(3, 0.1**0.5), (2, 0.0)]])
    assert_same(vote(neighbors, labels, None, None, power=1), [[(3, 0.1), (2, -0.5)]])


def test_vote_says_what_is_missing(scene):
    n, labels = scene["neighbors"], scene["gallery_labels"]
    with pytest.raises(ValueError, match="class_power needs the head's class centres"):
        vote(n, labels, scene["queries"], None, class_power=1)
    with pytest.raises(ValueError, match="gallery_labels has 10"):
        vote(n, labels[:10], None, None)
    with pytest.raises(ValueError, match="centers has 3"):
        vote(n, labels, scene["queries"], scene["centers"][:3], class_power=1)
    with pytest.raises(ValueError, match="sum or max, got 'mean'"):
        vote(n, labels, None, None, reduce="mean")
    for wrong in ({"top": 0}, {"power": float("nan")}, {"class_power": -1.0}):
        with pytest.raises(ValueError, match="vote: top must be at least 1"):
            vote(n, labels, scene["queries"], scene["centers"], **wrong)
    for wrong in ({"top": 0}, {"weight": 1.5}):
        with pytest.raises(ValueError, match="logit_mix: weight must be in"):
            logit_mix(n, scene["queries"], scene["centers"], **wrong)


@pytest.mark.parametrize(("weight", "top"), [(0.5, 3), (0.8, 9), (0.0, 1), (1.0, 100)])
def test_logit_mix_is_the_naive_mix(scene, weight, top):
    votes = vote(
        scene["neighbors"], scene["gallery_labels"], None, None, top=12, power=1, reduce="max"
    )
    found = logit_mix(votes, scene["queries"], scene["centers"], weight=weight, top=top)
    expected = oracle.logit_mix(
        votes.index.numpy(),
        votes.score.double().numpy(),
        scene["queries"].vectors.double().numpy(),
        scene["centers"].double().numpy(),
        weight,
        top,
    )
    for mine, theirs in zip(listed(found), expected, strict=True):
        assert dict(mine) == pytest.approx(dict(theirs), abs=1e-5)
        assert [s for _, s in mine] == sorted((s for _, s in mine), reverse=True)
    with pytest.raises(ValueError, match="needs the head's class centres"):
        logit_mix(votes, scene["queries"], None)


def predictions(scene, part, voting=3):
    images, train = scene[part], scene["train"]
    return [
        oracle.predict(
            images.vectors[i].double().numpy(),
            str(images.ids[i]),
            train.vectors.double().numpy(),
            train.ids,
            scene["train_labels"].numpy(),
            voting,
        )
        for i in range(len(images))
    ]


def test_predicted_labels_are_the_naive_ones(scene):
    for part in ("queries", "train"):  # an image of train must not vote for itself
        found = predict_labels(scene[part], scene["train"], scene["train_labels"])
        expected = predictions(scene, part)
        assert found[0].tolist() == [label for label, _, _ in expected]
        assert found[1].tolist() == pytest.approx([sure for _, sure, _ in expected], abs=1e-5)
        assert found[2].tolist() == pytest.approx([cosine for _, _, cosine in expected], abs=1e-5)


@pytest.mark.parametrize("images", [1 << 17, 7])
def test_label_rerank_is_the_naive_one(scene, images, monkeypatch):
    monkeypatch.setattr("common.rerank.voting.IMAGES", images)
    n = search(scene["queries"], scene["gallery"], 12)
    found = label_rerank(
        n,
        scene["queries"],
        scene["gallery"],
        scene["train"],
        scene["train_labels"],
        same=1.0,
        other=0.1,
    )
    expected = oracle.soft(
        n.index.tolist(),
        n.score.tolist(),
        predictions(scene, "queries"),
        predictions(scene, "gallery"),
        1.0,
        0.1,
    )
    assert found.index.tolist() == expected
    assert (found.score.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("threshold", [None, -2.0, 0.6, 1.2])
@pytest.mark.parametrize(("k", "classes"), [(12, 9), (2, 3)])
def test_sort_and_insert_are_the_naive_ones(scene, threshold, k, classes):
    scene["train_labels"] %= classes  # few classes: many more to insert than there is room
    n = search(scene["queries"], scene["gallery"], k)
    state = (scene["queries"], scene["gallery"], scene["train"], scene["train_labels"])
    found = (
        sort_step(n, *state) if threshold is None else insert_step(n, *state, threshold=threshold)
    )
    expected = oracle.sort_insert(
        n.index.tolist(),
        predictions(scene, "queries"),
        predictions(scene, "gallery"),
        [-1] * len(scene["queries"]),
        threshold,
    )
    assert found.index.tolist() == expected
    assert (found.score.diff(dim=1) <= 0).all()
    before = search(scene["queries"], scene["gallery"], k)
    assert torch.equal(n.index, before.index), "inputs stay as they were"
    assert torch.equal(n.score, before.score)


def test_insert_never_inserts_the_query_and_keeps_padding_behind(scene):
    gallery = scene["gallery"]
    queries = gallery.select(gallery.ids[:20])
    neighbors = search(queries, gallery, 5, exclude_self=True)
    neighbors.index[0, 2:], neighbors.score[0, 2:] = -1, -torch.inf
    found = insert_step(
        neighbors, queries, gallery, scene["train"], scene["train_labels"], threshold=-9.0
    )
    own = torch.arange(20)[:, None]
    assert not (found.index == own).any()
    assert ((found.index < 0) == found.score.isinf()).all()
    for row in found.index.tolist():
        real = [i for i in row if i >= 0]
        assert len(real) == len(set(real)), "nothing twice"


def test_label_steps_need_labelled_train(scene):
    n = search(scene["queries"], scene["gallery"], 4)
    for step in (label_rerank, sort_step, insert_step):
        for train, labels in (
            (None, scene["train_labels"]),
            (scene["train"], torch.full((80,), -1)),
        ):
            with pytest.raises(ValueError, match="needs labelled train embeddings"):
                step(n, scene["queries"], scene["gallery"], train, labels)
    with pytest.raises(ValueError, match="80 train embeddings but 3 train_labels"):
        sort_step(n, scene["queries"], scene["gallery"], scene["train"], torch.zeros(3).long())
    with pytest.raises(ValueError, match="belong to another gallery"):
        sort_step(
            Neighbors(n.index + 60, n.score),
            scene["queries"],
            scene["gallery"],
            scene["train"],
            scene["train_labels"],
        )


def test_group_of_nothing_and_of_padding():
    assert group(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3)).index.shape == (0, 3)
    assert group(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0)).index.shape == (2, 0)
    only = group(torch.full((2, 3), -1), torch.ones(2, 3))
    assert (only.index == -1).all()
    assert (only.score == -torch.inf).all()
