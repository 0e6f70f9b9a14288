"""Candidates re-ranked by inliers; the cache that survives a kill; your own re-ranker."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.notes import Notes
from common.rerank import inliers as inliers_module
from common.rerank import local as local_module
from common.rerank.evidence import SHAPE, Evidence
from common.rerank.features import LocalFeatures
from common.rerank.geometry import Settings
from common.rerank.inliers import count_inliers
from common.rerank.local import hook, load_hook, local
from common.rerank.store import FeatureStore, PairStore, image_key, pair_keys
from common.steps import bind, catalog
from common.types import Embeddings, Neighbors
from tests.oracles.views import texture, turned

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two scenes in three views each, a blank one and a broken file."""
    folder = tmp_path_factory.mktemp("pictures")
    for scene in range(2):
        image = texture(scene, 240, 320)
        for view in range(3):
            seen = turned(image, 10 * view, 1 - 0.05 * view)[0] if view else image
            cv2.imwrite(str(folder / f"{scene}{view}.png"), seen[:, :, ::-1])
    cv2.imwrite(str(folder / "blank.png"), np.full((240, 320, 3), 77, np.uint8))
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture
def task(pictures):
    """Queries 00 and 10; the gallery's own views rank behind those of the other scene."""

    def files(*names):
        return np.array([str(pictures / f"{name}.png") for name in names], dtype="S")

    queries, gallery = files("00", "10"), files("11", "01", "12", "02", "blank", "broken")
    index = torch.tensor([[0, 2, 4, 1, 3, 5], [1, 3, 5, 0, 2, -1]])
    score = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.9, 0.8, 0.7, 0.6, 0.5, -torch.inf]])
    return Neighbors(index, score), queries, gallery


def test_local_adds_capped_inliers_and_sorts(task, tmp_path):
    neighbors, queries, gallery = task
    before = neighbors.index.clone(), neighbors.score.clone()
    with pytest.warns(UserWarning, match=r"1 of \d images could not be read .* first is .*broken"):
        counts, matches = count_inliers(neighbors, queries, gallery, tmp_path, Settings(), top=5)
    assert counts.shape == (2, 5)
    assert (counts <= matches).all()
    same = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]).bool()
    assert counts[same].min() > 40
    assert counts[~same].max() < 12
    assert counts[0, 2] == 0, "the blank picture"
    assert counts[1, 2] == 0, "the broken file"
    with pytest.warns(UserWarning, match="could not be read"):
        found = local(
            neighbors, queries, gallery, tmp_path, Notes(), top=5, cap=30, weight=2.0, floor=12
        )
    assert found.index.tolist() == [[1, 3, 0, 2, 4, 5], [0, 2, 1, 3, 5, -1]]
    assert found.score[0].tolist() == pytest.approx([2.6, 2.5, 0.9, 0.8, 0.7, 0.4])
    assert torch.equal(neighbors.index, before[0])
    assert torch.equal(neighbors.score, before[1])


def test_floor_and_top_limit_what_counts(task, tmp_path):
    neighbors, queries, gallery = task
    nothing = local(neighbors, queries, gallery, tmp_path, Notes(), top=2, floor=15)
    assert torch.equal(nothing.index, neighbors.index)
    assert torch.equal(nothing.score, neighbors.score)
    with pytest.raises(ValueError, match="cap must be above 0"):
        local(neighbors, queries, gallery, tmp_path, Notes(), cap=0)


def test_threads_do_not_change_the_answer(task, tmp_path):
    neighbors, queries, gallery = (task[0].top(2), *task[1:])
    one = count_inliers(neighbors, queries, gallery, tmp_path / "1", Settings(), workers=1)
    many = count_inliers(neighbors, queries, gallery, tmp_path / "4", Settings(), workers=4)
    assert torch.equal(one[0], many[0])
    assert torch.equal(one[1], many[1])


def counting(monkeypatch, name, stop_after=None):
    """Count calls of a function of the module; the call after `stop_after` is Ctrl-C."""
    calls = []
    original = getattr(inliers_module, name)

    def wrapped(*args, **kwargs):
        if stop_after is not None and len(calls) >= stop_after:
            raise KeyboardInterrupt
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(inliers_module, name, wrapped)
    return calls


@pytest.mark.parametrize(("name", "stop", "left"), [("extract", 3, 3), ("compare", 4, 4)])
def test_a_stopped_run_goes_on_where_it_was(task, tmp_path, monkeypatch, name, stop, left):
    neighbors = Neighbors(task[0].index[:, [0, 1, 3, 4]], task[0].score[:, [0, 1, 3, 4]])
    arguments = (neighbors, *task[1:], tmp_path, Settings())
    with monkeypatch.context() as patch:
        counting(patch, name, stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            count_inliers(*arguments, workers=1)
    with monkeypatch.context() as patch:
        calls = counting(patch, name)
        found = count_inliers(*arguments, workers=1)
    assert len(calls) == left, "of 6 images or 8 pairs"
    fresh = count_inliers(neighbors, *task[1:], tmp_path / "fresh", Settings())
    assert torch.equal(found[0], fresh[0])
    assert torch.equal(found[1], fresh[1])
    with monkeypatch.context() as patch:
        calls = [*counting(patch, "extract"), *counting(patch, "compare")]
        again = count_inliers(*arguments)
    assert not calls
    assert torch.equal(found[0], again[0])


def test_a_killed_run_keeps_its_shards(task, tmp_path, monkeypatch):
    neighbors = Neighbors(task[0].index[:, [0, 1, 3, 4]], task[0].score[:, [0, 1, 3, 4]])
    code = f"""
import os, numpy as np, torch
from pathlib import Path
from common.rerank import inliers
from common.rerank.features import LocalFeatures
from common.rerank.geometry import Settings
from common.types import Neighbors
inliers.IMAGES_PER_SHARD = 2
original, calls = inliers.extract, []
def extract(*args, **kwargs):
    calls.append(1)
    if len(calls) == 6:
        os._exit(9)
    return original(*args, **kwargs)
inliers.extract = extract
index = torch.tensor({neighbors.index.tolist()})
paths = [np.array(p, dtype="S") for p in {[[p.decode() for p in t] for t in task[1:]]!r}]
neighbors, cache = Neighbors(index, index.float()), Path({str(tmp_path)!r})
inliers.count_inliers(neighbors, *paths, cache, Settings(), workers=1)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 9
    (folder,) = tmp_path.glob("features-*")
    (folder / ".half.123.safetensors").write_bytes(b"\x00" * 10)
    stored = len(FeatureStore(folder))
    assert stored in (2, 4), "whole shards only"
    calls = counting(monkeypatch, "extract")
    count_inliers(neighbors, *task[1:], tmp_path, Settings(), workers=1)
    assert len(calls) == 6 - stored


def test_a_changed_file_and_changed_settings_are_new_work(task, tmp_path, monkeypatch):
    pictures = [tmp_path / name for name in ("a.png", "b.png")]
    for path in pictures:
        cv2.imwrite(str(path), texture(0, 240, 320))
    neighbors = Neighbors(torch.tensor([[0]]), torch.tensor([[0.5]]))
    paths = [np.array([str(path)], dtype="S") for path in pictures]
    first, _ = count_inliers(neighbors, *paths, tmp_path / "cache", Settings())
    cv2.imwrite(str(pictures[1]), texture(1, 240, 320))
    second, _ = count_inliers(neighbors, *paths, tmp_path / "cache", Settings())
    assert first.item() > 100
    assert second.item() < 12
    calls = counting(monkeypatch, "extract")
    count_inliers(neighbors, *paths, tmp_path / "cache", Settings(threshold=2.0))
    assert not calls, "features do not depend on how they are matched"
    count_inliers(neighbors, *paths, tmp_path / "cache", Settings(keypoints=300))
    assert len(calls) == 2
    written = sorted((tmp_path / "cache").glob("*/settings.json"))
    assert len(written) == 5
    assert {json.loads(path.read_text())["features"] for path in written} == {"sift"}


def test_unreadable_files_are_tried_again(task, tmp_path):
    path = tmp_path / "late.png"
    neighbors = Neighbors(torch.tensor([[0]]), torch.tensor([[0.5]]))
    arguments = (neighbors, task[1][:1], np.array([str(path)], dtype="S"), tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"late\.png"):
        assert count_inliers(*arguments, Settings())[0].item() == 0
    path.write_bytes(Path(task[1][0].decode()).read_bytes())
    assert count_inliers(*arguments, Settings())[0].item() > 100


def test_a_damaged_shard_is_named(task, tmp_path):
    neighbors = Neighbors(task[0].index[:1, :1], task[0].score[:1, :1])
    arguments = (neighbors, task[1][:1], task[2], tmp_path, Settings())
    count_inliers(*arguments)
    (shard,) = tmp_path.glob("pairs-*/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged .*delete it"):
        count_inliers(*arguments)


def test_paths_must_cover_queries_and_gallery(task, tmp_path):
    neighbors, queries, gallery = task
    with pytest.raises(ValueError, match="2 queries but 1 query_paths"):
        count_inliers(neighbors, queries[:1], gallery, tmp_path, Settings())
    with pytest.raises(ValueError, match="gallery_paths has 3"):
        count_inliers(neighbors, queries, gallery[:3], tmp_path, Settings())


def test_keys_are_directed_and_missing_files_have_their_own(tmp_path):
    a, b = np.array([5, 7, 5]), np.array([7, 5, 7])
    keys = pair_keys(a, b)
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]
    grid = pair_keys(np.repeat(np.arange(300), 300), np.tile(np.arange(300), 300))
    assert len(np.unique(grid)) == 90000
    assert image_key(bytes(tmp_path / "x")) < 0
    assert image_key(bytes(tmp_path / "x")) != image_key(bytes(tmp_path / "y"))


def evidence(counts):
    counts = np.array(counts, np.int32)
    return Evidence(counts, np.repeat(counts[:, :1], len(SHAPE), 1).astype(np.float32))


def test_pair_store_finds_old_and_new(tmp_path):
    store = PairStore(tmp_path)
    assert not store.lookup(np.array([1, 2], np.uint64))[0].any()
    store.append(np.array([5, 2], np.uint64), evidence([[1, 3], [4, 6]]))
    store.append(np.array([9], np.uint64), evidence([[7, 8]]))
    for one in (store, PairStore(tmp_path)):
        known, found = one.lookup(np.array([2, 3, 5, 9], np.uint64))
        assert known.tolist() == [True, False, True, True]
        assert found.counts.tolist() == [[4, 6], [0, 0], [1, 3], [7, 8]]
        assert found.shape[:, 0].tolist() == pytest.approx([4, np.nan, 1, 7], nan_ok=True)


def reverse(neighbors, gallery_paths, *, shift: float = 0.0):
    assert len(gallery_paths) == 6
    return Neighbors(neighbors.index.flip(1), neighbors.score + shift)


def wrong_type(neighbors):
    return neighbors.index


def wrong_rows(neighbors):
    return Neighbors(neighbors.index + 99, neighbors.score)


def needs_more(neighbors, depth):
    return neighbors


NOT_A_FUNCTION = 3


def test_hook_calls_your_function(task):
    neighbors, queries, gallery = task
    images = Embeddings(np.array(list("abcdef")), torch.zeros(6, 2))
    state = {
        "neighbors": neighbors,
        "queries": images,
        "gallery": images,
        "query_paths": queries,
        "gallery_paths": gallery,
    }
    here = "tests.test_local"
    found = hook(**state, function=f"{here}:reverse", arguments={"shift": 1.0})
    assert torch.equal(found.index, neighbors.index.flip(1))
    assert torch.equal(found.score, neighbors.score + 1)
    for function, arguments, message in (
        ("", None, "must be package.module:callable, got ''"),
        ("tests.nothing:f", None, "cannot import tests.nothing:f"),
        (f"{here}:absent", None, "cannot import"),
        (f"{here}:NOT_A_FUNCTION", None, "is a int, not a function"),
        (f"{here}:reverse", {"depth": 3}, "does not fit .*'depth'"),
        (f"{here}:needs_more", None, "does not fit .*'depth'"),
        (f"{here}:wrong_type", None, "must return Neighbors for 2 queries, got Tensor"),
        (f"{here}:wrong_rows", None, "neighbors name row 10[24]"),
    ):
        with pytest.raises(ValueError, match=message):
            hook(**state, function=function, arguments=arguments)
    with pytest.raises(ValueError, match="cannot import"):
        load_hook("tests.nothing:f")


def test_only_steps_are_in_the_catalog():
    known = catalog(local_module)
    assert sorted(known) == ["hook", "local", "plausible"]
    bind({"name": "local", "features": "sift", "top": 50, "cap": 70}, known)
    bind({"name": "hook", "function": "a.b:c", "arguments": {"x": 1}}, known)


@pytest.mark.parametrize("counts", [(0,), (0, 0), (3, 0), (0, 2, 0)])
def test_images_without_a_keypoint_are_read_back_empty(tmp_path, counts):
    made = {
        key: LocalFeatures(
            np.full((n, 2), key, np.float32), np.full((n, 4), key, np.float32), (7, 5)
        )
        for key, n in enumerate(counts)
    }
    FeatureStore(tmp_path).append(list(made.items()))
    store = FeatureStore(tmp_path)
    for key, features in made.items():
        found = store.get(key)
        assert np.array_equal(found.points, features.points)
        assert np.array_equal(found.descriptors, features.descriptors)
