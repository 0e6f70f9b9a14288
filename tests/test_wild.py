"""Calibrated fusion of cosine and local matchers; boosted trees on homographies."""

import cv2
import numpy as np
import pytest
import torch

from common.notes import Notes
from common.rerank import inliers as inliers_module
from common.rerank.boosted import PairModel
from common.rerank.calibrate import Isotonic, reliability
from common.rerank.evidence import NAMES, Evidence
from common.rerank.geometry import Settings
from common.rerank.inliers import verify_neighbors, verify_pairs
from common.rerank.known import STEPS
from common.rerank.local import plausible
from common.rerank.plausible import fit_plausible, plausibility
from common.rerank.shortlist import TrainingPairs, add_scores, note_matches, training_pairs
from common.rerank.wild import wild_fusion
from common.retrieval.search import search
from common.steps import bind
from common.types import Embeddings, Neighbors
from tests.oracles.views import texture, turned

SCENES, VIEWS = 9, 6
FAST = {"size": 160, "keypoints": 150}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes in several views, and embeddings that know little of them."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    paths, labels, vectors = [], [], []
    centers = rng.normal(size=(SCENES, 16))
    for scene in range(SCENES):
        image = texture(scene, 120, 160)
        for view in range(VIEWS):
            seen = turned(image, 6 * view, 1 - 0.04 * view, 1e-4 * view)[0]
            paths.append(str(folder / f"{scene}{view}.png"))
            cv2.imwrite(paths[-1], seen[:, :, ::-1])
            labels.append(scene)
            vectors.append(centers[scene] + 1.3 * rng.normal(size=16))
    vectors = torch.nn.functional.normalize(torch.tensor(np.array(vectors)).float(), dim=1)
    ids = np.array([f"i{i:03d}" for i in range(len(paths))])
    asked = np.arange(len(paths)) % VIEWS == 1
    held = np.array(labels) >= SCENES - 3  # their labels are not used to calibrate

    def part(rows):
        rows = np.flatnonzero(rows)
        return (
            Embeddings(ids[rows], vectors[torch.from_numpy(rows)]),
            torch.tensor(np.array(labels)[rows]),
            np.array(paths, "S")[rows],
        )

    return part(~held), part(held & asked), part(held & ~asked)


def arguments(world, cache, notes):
    (train, train_labels, train_paths), (queries, _, query_paths), (gallery, _, gallery_paths) = (
        world
    )
    return {
        "neighbors": search(queries, gallery, 10),
        "queries": queries,
        "gallery": gallery,
        "query_paths": query_paths,
        "gallery_paths": gallery_paths,
        "train": train,
        "train_labels": train_labels,
        "train_paths": train_paths,
        "cache": cache,
        "notes": notes,
    }


def precision(world, found, k=5):
    labels, truth = world[2][1], world[1][1]
    return float((labels[found.index[:, :k]] == truth[:, None]).float().mean())


@pytest.mark.parametrize("calibration", ["isotonic", "logistic"])
def test_fusion_beats_the_cosine_and_keeps_its_word(world, tmp_path_factory, calibration):
    notes = Notes()
    given = arguments(world, tmp_path_factory.getbasetemp() / "wild", notes)
    options = {"top": 8, "calibration": calibration, "pairs": 300, **FAST}
    found = wild_fusion(**given, matchers=["rootsift", {"features": "sift"}], **options)
    assert precision(world, found) > precision(world, given["neighbors"]) + 0.1
    assert sorted(map(sorted, [row.tolist() for row in found.index])) == sorted(
        map(sorted, [row.tolist() for row in given["neighbors"].index])
    )
    assert (found.score[:, :8] > 0).all()
    assert (found.score[:, :8] < 1).all()
    assert (found.score[:, 8:] < 0).all()
    assert list(notes.calibration) == ["cosine", "rootsift", "sift", "fused"]
    assert sum(notes.calibration["fused"]["count"]) <= notes.numbers["calibration pairs"]
    assert notes.calibration["fused"]["ece"] < 0.25
    assert [entry["matcher"] for entry in notes.matches] == ["rootsift", "sift"]


def test_fusion_is_the_weighted_mean_of_each_calibration(world, tmp_path):
    given = arguments(world, tmp_path, Notes())
    found = wild_fusion(**given, weights=[1, 3], top=4, pairs=200, seed=3, **FAST)
    train, labels, paths = world[0]
    pairs = training_pairs(train, labels, paths, 200, 4, 3)
    settings = Settings("rootsift", **FAST)
    learnt = verify_pairs(paths, pairs.a, paths, pairs.b, tmp_path, settings)

    def score(evidence):
        return np.log1p(evidence.inliers + 0.5 * evidence.ratio.astype(float))

    local = Isotonic().fit(score(learnt), pairs.same)
    cosine = Isotonic().fit(pairs.cosine, pairs.same)
    near = given["neighbors"]
    _, _, evidence = verify_neighbors(
        near, given["query_paths"], given["gallery_paths"], tmp_path, settings, top=4
    )
    count = len(near)
    expected = 0.25 * cosine.transform(near.score.numpy())[:, :4]
    expected += 0.75 * local.transform(score(evidence)).reshape(count, 4)
    for q in range(count):
        for column in range(4):
            place = found.index[q].tolist().index(int(near.index[q, column]))
            assert float(found.score[q, place]) == pytest.approx(expected[q, column], abs=1e-5)


def test_learned_weights_leave_out_a_matcher_that_knows_nothing(world, tmp_path):
    notes = Notes()
    given = arguments(world, tmp_path, notes)
    noise = {"features": "rootsift", "threshold": 0.01}  # no homography is that exact
    found = wild_fusion(
        **given, matchers=[noise, "rootsift"], weights="learned", top=8, pairs=300, **FAST
    )
    weights = [notes.numbers[f"weight of {n}"] for n in ("cosine", "rootsift", "rootsift #2")]
    assert weights[1] < 0.5 * weights[2]
    assert precision(world, found) > precision(world, given["neighbors"]) + 0.1
    assert list(notes.calibration) == ["cosine", "rootsift", "rootsift #2", "fused"]


def test_a_second_call_reads_and_padding_stays(world, tmp_path, monkeypatch):
    given = arguments(world, tmp_path, Notes())
    near = given["neighbors"]
    index, score = near.index.clone(), near.score.clone()
    index[0, 3:], score[0, 3:] = -1, -torch.inf
    given["neighbors"] = Neighbors(index, score)
    first = wild_fusion(**given, top=5, pairs=60, **FAST)
    assert first.index[0, 3:].tolist() == [-1] * 7
    assert torch.isinf(first.score[0, 3:]).all()
    monkeypatch.setattr(inliers_module, "compare", None)  # not called again
    monkeypatch.setattr(inliers_module, "extract", None)
    again = wild_fusion(**given, top=5, pairs=60, **FAST)
    assert torch.equal(first.index, again.index)
    assert torch.equal(first.score, again.score)


def test_steps_are_known_by_name(world, tmp_path):
    given = arguments(world, tmp_path, Notes())
    given["device"] = torch.device("cpu")  # as pipelines give it
    for step in (
        {"name": "wild_fusion", "matchers": ["rootsift"], "top": 3, "pairs": 60, **FAST},
        {"name": "plausible", "top": 3, "pairs": 200, **FAST},
        {"name": "local", "top": 3, "features": "sift", **FAST},
    ):
        found = bind(step, STEPS)(given)
        assert found.index.shape == given["neighbors"].index.shape


def test_plausible_tells_real_homographies_and_is_kept_as_text(world, tmp_path):
    notes = Notes()
    given = arguments(world, tmp_path / "cache", notes)
    inputs = {k: v for k, v in given.items() if k not in ("queries", "gallery")}
    options = {"pairs": 300, "top": 8, "rounds": 30, **FAST}
    found = plausible(**inputs, folder=str(tmp_path / "model"), **options)
    assert precision(world, found) > precision(world, given["neighbors"]) + 0.1
    (importances,) = notes.importances.values()
    assert set(importances) == set(NAMES)
    assert notes.numbers["plausible homography (rootsift): AUC out of fold"] > 0.9
    kept = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert kept == [*[f"fold_{i}.txt" for i in range(5)], "model.json"]
    inputs["train"] = inputs["train_labels"] = None  # the kept model needs neither
    again = plausible(**inputs, folder=str(tmp_path / "model"), **options)
    assert torch.equal(found.index, again.index)
    np.testing.assert_allclose(found.score, again.score, atol=1e-6)


def test_trees_see_through_many_inliers_of_a_folded_image():
    """Real ones are near the identity, false ones mirror the image: inliers alone cannot tell."""
    rng = np.random.default_rng(0)
    same = rng.random(600) < 0.5
    counts = rng.integers(10, 60, (600, 2)).astype(np.int32)
    shape = rng.normal(0, 0.1, (600, 11)).astype(np.float32)
    shape[:, 0] += np.where(same, 1, -1)
    shape[:, 4] += 1
    labels = rng.integers(0, 20, (600, 2))
    labels[same, 1] = labels[same, 0]
    labels[~same, 1] += 100
    pairs = TrainingPairs(np.arange(600), np.arange(600), labels, np.zeros(600, np.float32))
    evidence = Evidence(counts, shape)
    model = fit_plausible(evidence, pairs, rounds=40)
    assert model.auc_ > 0.99
    assert next(iter(model.importances())) == "h11"
    likely = plausibility(model, evidence)
    assert likely[same].min() > likely[~same].max()
    nothing = Evidence(np.zeros((1, 2), np.int32), np.full((1, 11), np.nan, np.float32))
    assert plausibility(model, nothing).tolist() == [0]
    model.names_ = ["cosine"] * 14
    with pytest.raises(ValueError, match="not at homographies"):
        plausibility(model, evidence)
    assert isinstance(model, PairModel)
    few = TrainingPairs(pairs.a, pairs.b, labels % 3, pairs.cosine)
    assert len(fit_plausible(evidence, few, rounds=5).boosters_) == 3, "of three labels"


def test_training_pairs_are_near_labelled_and_once(world):
    train, labels, paths = world[0]
    some = labels.clone()
    some[::7] = -1
    pairs = training_pairs(train, some, paths, 200, 12, seed=1)
    assert 50 < len(pairs) <= 200
    assert (pairs.a != pairs.b).all()
    assert (pairs.labels >= 0).all()
    assert len({frozenset(p) for p in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)}) == len(
        pairs
    )
    near = search(train, train, 12, exclude_self=True).index.numpy()
    for a, b, (first, second), cosine in zip(
        pairs.a, pairs.b, pairs.labels, pairs.cosine, strict=True
    ):
        assert b in near[a]
        assert (first, second) == (int(some[a]), int(some[b]))
        assert float(train.vectors[a] @ train.vectors[b]) == pytest.approx(cosine, abs=1e-5)
    again = training_pairs(train, some, paths, 200, 12, seed=1)
    assert np.array_equal(pairs.a, again.a)
    other = training_pairs(train, some, paths, 200, 12, seed=2)
    assert not np.array_equal(pairs.b, other.b)
    for arguments_, message in (
        ((None, labels, paths, 9, 9), "has none"),
        ((train, labels[:3], paths, 9, 9), "3 labels"),
        ((train, labels, paths, 0, 9), "at least 1"),
        ((train, torch.zeros_like(labels), paths, 99, 9), "of one kind"),
        ((train, torch.full_like(labels, -1), paths, 99, 9), "All 0 training pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            training_pairs(*arguments_)


def test_one_match_a_query_is_noted_and_gains_land_where_they_belong():
    near = Neighbors(torch.tensor([[5, 6, 7], [8, 9, -1]]), torch.zeros(2, 3))
    row, column = np.array([0, 0, 1, 1]), np.array([0, 2, 0, 1])
    counts = np.array([[3, 9], [7, 9], [0, 2], [0, 0]], np.int32)
    notes = Notes()
    found = Evidence(counts, np.zeros((4, 11), np.float32))
    note_matches(notes, near, row, column, found, Settings())
    (entry,) = notes.matches
    assert entry["query"].tolist() == [0], "a query without inliers has nothing to show"
    assert entry["gallery"].tolist() == [7]
    assert entry["inliers"].tolist() == [7]
    added = add_scores(near, row, column, np.array([1.0, 2.0, 3.0, 4.0]))
    assert added.score.tolist() == [[1, 0, 2], [3, 4, 0]]
    assert near.score.sum() == 0
    assert reliability(np.array([0.5]), np.array([True])).ece == 0.5
