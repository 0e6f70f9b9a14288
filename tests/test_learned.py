"""The LightGBM step: trained on lists of labelled images, applied to the queries' candidates."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.config import ConfigError
from common.notes import Notes
from common.rerank import learned
from common.rerank.asking import rounds
from common.rerank.boosted import PairModel
from common.rerank.known import STEPS
from common.rerank.learned import lightgbm_rerank
from common.retrieval.search import search
from common.steps import bind, chain
from common.types import Embeddings, Neighbors

FEW = {"top": 10, "rounds": 40, "min_leaf": 20, "around": (3, 8)}


def scene(seed=0, classes=40, per_class=6, d=12):
    """Classes of very different spread: one cosine does not tell them apart, density does."""
    generator = torch.Generator().manual_seed(seed)
    centers = normalize(torch.randn(classes // 4, 1, d, generator=generator), dim=2)
    # Classes in clusters of four: neighbors of other classes are near in some, far in others.
    apart = torch.linspace(0.1, 1.0, classes).view(-1, 1, 1)
    centers = (
        centers.repeat_interleave(4, 0)
        + apart * torch.randn(classes, 1, d, generator=generator) / d**0.5
    )
    vectors = centers + 0.85 * apart * torch.randn(
        classes, per_class + 2, d, generator=generator
    ) / (d**0.5)
    vectors = normalize(vectors, dim=2)
    labels = torch.arange(classes).repeat_interleave(per_class)
    gallery = Embeddings(
        np.array([f"g{i:04d}" for i in range(len(labels))]), vectors[:, :per_class].flatten(0, 1)
    )
    truth = torch.arange(classes).repeat_interleave(2)
    queries = Embeddings(
        np.array([f"q{i:04d}" for i in range(len(truth))]), vectors[:, per_class:].flatten(0, 1)
    )
    return queries, gallery, labels, truth


def right_share(found, labels, truth):
    """Mean precision of the first five."""
    return (labels[found.index[:, :5]] == truth[:, None]).float().mean().item()


def test_every_class_lacks_one_image_whoever_asks():
    _, gallery, labels, _ = scene()
    labels = labels.clone()
    labels[:3], labels[3] = -1, 77  # some unknown, a class of one
    labels[6:8] = 78  # a class of two
    sizes = np.bincount(labels[labels >= 0])
    asked, alone = [], 0
    turns = rounds(gallery, labels, count=9, seed=3)
    assert 6 <= len(turns) <= 7, "after six all have asked, but perhaps for the class of one"
    for turn in turns:
        left = labels.numpy()[turn.left]
        assert not np.isin(turn.rows, turn.left).any()
        assert turn.truth.tolist() == labels[turn.rows].tolist()
        assert (turn.asking.ids == gallery.ids[turn.rows]).all()
        remaining = np.bincount(left[left >= 0], minlength=len(sizes))
        alone += remaining[77] == 0
        remaining[77] = 0
        assert (remaining == np.where(sizes > 1, sizes - 1, 0)).all()
        assert (left < 0).sum() == 3
        asked += turn.rows.tolist()
    assert sorted(asked) == np.flatnonzero(labels >= 0).tolist(), "each asks once"
    assert alone == 1
    few = rounds(gallery, labels, count=9, most=30, seed=3)
    assert sum(len(turn.rows) for turn in few) == 30


def test_it_beats_the_cosine_and_says_what_it_learned(tmp_path):
    queries, gallery, labels, truth = scene()
    neighbors, notes = search(queries, gallery, 20), Notes()
    found = lightgbm_rerank(
        neighbors, queries, gallery, labels, notes=notes, folder=str(tmp_path / "m"), **FEW
    )
    assert right_share(found, labels, truth) > right_share(neighbors, labels, truth) + 0.01
    assert sum(notes.importances["lightgbm_rerank"].values()) == pytest.approx(1)
    numbers = notes.numbers
    assert numbers["lightgbm_rerank: AUC, out of fold"] > 0.6
    assert numbers["lightgbm_rerank: images that ask in training"] == 200
    assert (found.index[:, 10:] == neighbors.index[:, 10:]).all(), "others keep their place"
    assert torch.equal(found.score[:, 10:], neighbors.score[:, 10:])
    assert (found.score.diff(dim=1) <= 0).all()
    gain = found.score[:, :10].sum(1) - neighbors.score[:, :10].sum(1)
    assert ((gain > 0) & (gain < 10)).all()
    again = lightgbm_rerank(neighbors, queries, gallery, labels, threads=1, **FEW)
    assert torch.equal(again.score, found.score)
    assert PairModel.load(tmp_path / "m").auc_ == numbers["lightgbm_rerank: AUC, out of fold"]


def test_a_gallery_without_labels_learns_from_train():
    queries, gallery, labels, truth = scene()
    _, train, train_labels, _ = scene(seed=5)
    train = Embeddings(np.char.replace(train.ids, "g", "t"), train.vectors)
    neighbors, notes = search(queries, gallery, 20), Notes()
    unknown = torch.full_like(labels, -1)
    found = lightgbm_rerank(
        neighbors,
        queries,
        gallery,
        unknown,
        train=train,
        train_labels=train_labels,
        notes=notes,
        **FEW,
    )
    assert not any(name.startswith("class_") for name in notes.importances["lightgbm_rerank"])
    assert right_share(found, labels, truth) > right_share(neighbors, labels, truth)
    for missing in ({}, {"train": train, "train_labels": torch.full_like(train_labels, -1)}):
        with pytest.raises(ValueError, match="learns from labelled images"):
            lightgbm_rerank(neighbors, queries, gallery, unknown, **missing, **FEW)


def test_only_held_images_and_negatives_ask(monkeypatch):
    queries, gallery, labels, _ = scene()
    neighbors = search(queries, gallery, 20)
    seen = {}

    def fit(self, values, same, groups, names):
        seen.update(same=same, groups=groups)
        raise RuntimeError("enough")

    monkeypatch.setattr(PairModel, "fit", fit)
    others = scene(seed=9)[0]
    negatives = Embeddings(
        np.concatenate([np.char.replace(others.ids, "q", "n"), gallery.ids[:1]]),
        torch.cat([others.vectors, gallery.vectors[:1]]),
    )
    held = np.append(gallery.ids[::3], "not here")
    with pytest.raises(RuntimeError, match="enough"):
        lightgbm_rerank(
            neighbors, queries, gallery, labels, held_ids=held, negatives=negatives, **FEW
        )
    # The gallery image among the negatives does not ask as one.
    assert len(seen["same"]) == (80 + len(others)) * 10
    mine, count = np.unique(seen["groups"][:, 0], return_counts=True)
    assert mine[mine >= 0].tolist() == list(range(40))
    assert (count[mine >= 0] == 20).all(), "two held images of each class"
    assert (count[mine < 0] == 10).all(), "each negative is alone in its group"
    assert (mine < 0).sum() == len(others)
    assert not seen["same"][seen["groups"][:, 0] < 0].any()
    with pytest.raises(RuntimeError, match="enough"):
        lightgbm_rerank(neighbors, queries, gallery, labels, most=50, **FEW)
    assert len(seen["same"]) == 50 * 10
    with pytest.raises(ValueError, match="no image to learn from is one of the held_ids"):
        lightgbm_rerank(neighbors, queries, gallery, labels, held_ids=np.array(["x"]), **FEW)


def test_inliers_are_features(monkeypatch):
    queries, gallery, _, truth = scene(classes=8, per_class=30)
    # Labels that the embeddings know nothing of.
    labels = torch.arange(240) % 8
    neighbors = search(queries, gallery, 20)

    def count(lists, files, others, cache, settings, *, top, **options):
        """Ten inliers where files say the class is the same."""
        index = lists.index[:, :top].numpy()
        right = others[index] == files[:, None]
        number = torch.from_numpy(np.where(right, 10, 1).astype(np.int32))
        assert settings.features == "disk"
        return number, number + 5

    monkeypatch.setattr(learned, "count_inliers", count)
    files = {"query_paths": truth.numpy(), "gallery_paths": labels.numpy(), "cache": Path("x")}
    notes = Notes()
    found = lightgbm_rerank(
        neighbors,
        queries,
        gallery,
        labels,
        inliers=6,
        features="disk",
        ask=30,
        notes=notes,
        **files,
        **FEW,
    )
    assert next(iter(notes.importances["lightgbm_rerank"])) in ("inliers", "matches")
    first = neighbors.index[:, :6]
    same = labels[first] == truth[:, None]
    ranks = (found.index[:, :, None] == first[:, None, :]).float().argmax(1)
    assert ranks[same].float().mean() + 2 < ranks[~same].float().mean()
    asked = []
    monkeypatch.setattr(learned, "count_inliers", lambda *a, **k: asked.append(a) or count(*a, **k))
    files["gallery_paths"] = labels.numpy().copy()
    lightgbm_rerank(
        neighbors,
        queries,
        gallery,
        torch.full_like(labels, -1),
        train=gallery,
        train_labels=labels,
        train_paths=labels.numpy() + 100,
        inliers=6,
        features="disk",
        **files,
        **FEW,
    )
    assert min(others.min() for _, _, others, *_ in asked[:-1]) == 100, "files of train"
    assert asked[-1][2] is files["gallery_paths"]
    with pytest.raises(ValueError, match="inliers need a cache and the files"):
        lightgbm_rerank(neighbors, queries, gallery, labels, inliers=6, **FEW)


def test_steps_name_it_and_its_arguments():
    queries, gallery, labels, _ = scene()
    state = {"queries": queries, "gallery": gallery, "gallery_labels": labels, "notes": Notes()}
    steps = [
        {"name": "knn", "k": 20},
        {"name": "lightgbm_rerank", "top": 10, "rounds": 5, "around": [3], "min_leaf": 20},
    ]
    result = chain(steps, STEPS, set(state), "steps")(state)
    assert result["neighbors"].index.shape == (80, 20)
    assert result["notes"].importances, "the state's notes are used"
    with pytest.raises(ConfigError, match="no argument 'round'"):
        bind({"name": "lightgbm_rerank", "round": 5}, STEPS)


def test_bad_input():
    queries, gallery, labels, _ = scene()
    neighbors = search(queries, gallery, 20)
    with pytest.raises(ValueError, match="all 2400 pairs are negative"):
        lightgbm_rerank(neighbors, queries, gallery, torch.arange(240), **FEW)
    with pytest.raises(ValueError, match="all 50 pairs are positive"):
        lightgbm_rerank(neighbors, queries, gallery, torch.zeros_like(labels), **FEW)
    with pytest.raises(ValueError, match="top, most and ask must be at least 1"):
        lightgbm_rerank(neighbors, queries, gallery, labels, top=0)
    none = Neighbors(torch.full((80, 4), -1), torch.full((80, 4), -torch.inf))
    assert lightgbm_rerank(none, queries, gallery, labels, **FEW) is none
    one = gallery.select(gallery.ids[:1])
    with pytest.raises(ValueError, match="too few to have candidates"):
        lightgbm_rerank(search(queries, one, 2), queries, one, labels[:1], **FEW)
    # Lists longer than the gallery are padded.
    few = lightgbm_rerank(search(queries, gallery, 300), queries, gallery, labels, **FEW)
    assert (few.index[:, 240:] == -1).all()
