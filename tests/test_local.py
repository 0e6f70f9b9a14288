"""Local verification on pictures with a known homography; the cache; your own re-ranker."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.data.images import ImageError
from common.rerank import inliers as inliers_module
from common.rerank import local as local_module
from common.rerank.features import LocalFeatures, extract, load
from common.rerank.geometry import Settings, mutual_nearest
from common.rerank.inliers import count_inliers
from common.rerank.local import hook, load_hook, local, verify
from common.rerank.store import FeatureStore, PairStore, image_key, pair_keys
from common.steps import bind, catalog
from common.types import Embeddings, Neighbors

ROOT = Path(__file__).parents[1]


def texture(seed, height=360, width=480):
    """Random discs and bars: corners and blobs everywhere, as on a facade."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120, np.uint8)
    for _ in range(260):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            cv2.circle(image, (x, y), int(rng.integers(3, 16)), color, -1)
        else:
            w, h = rng.integers(4, 30, 2).tolist()
            cv2.rectangle(image, (x, y), (x + w, y + h), color, -1)
    return cv2.GaussianBlur(image, (0, 0), 0.8)


def turned(image, angle=12, scale=0.9, bend=2e-4):
    """The image seen from elsewhere, and the homography that did it."""
    height, width = image.shape[:2]
    matrix = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale), [0, 0, 1]])
    matrix = np.array([[1, 0, 0], [0, 1, 0], [bend, bend / 2, 1]]) @ matrix
    return cv2.warpPerspective(image, matrix, (width, height), borderValue=(90, 90, 90)), matrix


def corner_error(found, true, image):
    height, width = image.shape[:2]
    corners = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], float)
    move = [cv2.perspectiveTransform(corners, m) for m in (found, true)]
    return float(np.abs(move[0] - move[1]).max())


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


@pytest.mark.parametrize(("size", "bound"), [(1000, 1.0), (240, 3.0)])
def test_verify_recovers_a_known_homography(size, bound):
    image = texture(0)
    seen, true = turned(image)
    found = verify(image, seen, size=size)
    assert found.inliers > 60
    assert found.ratio == pytest.approx(found.inliers / found.matches)
    assert corner_error(found.model, true, image) < bound
    assert found.points.shape == (found.inliers, 4)
    moved = cv2.perspectiveTransform(found.points[None, :, :2].astype(float), true)[0]
    assert np.median(np.abs(moved - found.points[:, 2:])) < bound


def test_verify_finds_little_in_another_picture():
    assert verify(texture(0), texture(1)).inliers < 12


def test_verify_fits_a_fundamental_matrix():
    image = texture(0)
    found = verify(image, turned(image)[0], model="fundamental", size=240)
    a, b = (np.column_stack([p, np.ones(len(p))]) for p in np.split(found.points, 2, axis=1))
    lines = a @ found.model.T
    distance = np.abs((b * lines).sum(1)) / np.hypot(lines[:, 0], lines[:, 1])
    assert found.inliers > 60
    assert np.median(distance) < 2


def test_verify_is_deterministic_and_reads_files(pictures):
    a, b = pictures / "00.png", pictures / "01.png"
    first, second = verify(a, b), verify(str(a), str(b).encode())
    arrays = verify(load(a, None), load(b, None))
    for other in (second, arrays):
        assert (first.inliers, first.matches) == (other.inliers, other.matches)
        assert np.array_equal(first.model, other.model)
        assert np.array_equal(first.points, other.points)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.full((200, 200, 3), 128, np.uint8),
        np.full((200, 200), 7, np.uint8),
        np.zeros((3, 500, 3), np.uint8),
    ],
    ids=["1x1", "blank", "grey blank", "strip"],
)
def test_pictures_of_nothing_have_no_inliers(image):
    for a, b in ((image, texture(0)), (texture(0), image), (image, image)):
        found = verify(a, b)
        assert (found.inliers, found.ratio, found.model) == (0, 0.0, None)
        assert found.points.shape == (0, 4)


def test_a_grey_array_is_a_picture():
    grey = cv2.cvtColor(texture(0), cv2.COLOR_RGB2GRAY)
    assert verify(grey, turned(texture(0))[0]).inliers > 60


def test_verify_says_what_is_wrong(pictures):
    good = texture(0)
    with pytest.raises(ImageError, match=r"broken\.png"):
        verify(pictures / "broken.png", good)
    with pytest.raises(ValueError, match=r"uint8 .*got float64"):
        verify(good / 255.0, good)
    for wrong, message in (
        ({"features": "surf"}, "'surf'; known: sift, disk"),
        ({"matcher": "flann"}, "'flann'; known: mutual"),
        ({"matcher": "lightglue"}, "No LightGlue weights for sift"),
        ({"model": "affine"}, "'affine'; known: homography"),
        ({"keypoints": 2}, "keypoints >= 4"),
    ):
        with pytest.raises(ValueError, match=message):
            verify(good, good, **wrong)


def test_mutual_nearest_agrees_with_opencv():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(90, 16)).astype(np.float32)
    b = np.concatenate([a[:50] + rng.normal(size=(50, 16)) * 0.3, rng.normal(size=(70, 16))])
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b.astype(np.float32)))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    forward, back = matcher.knnMatch(a, b, k=2), matcher.knnMatch(b, a, k=1)
    expected = [
        (first.queryIdx, first.trainIdx)
        for first, second in forward
        if back[first.trainIdx][0].trainIdx == first.queryIdx
        and first.distance < 0.8 * second.distance
    ]
    before = a.copy(), b.copy()
    rows, columns = mutual_nearest(a, b, ratio=0.8)
    assert 30 < len(expected) < 60
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])
    close = [(i, j) for i, j in zip(*mutual_nearest(a, b), strict=True) if a[i] @ b[j] >= 0.5]
    assert close == list(zip(*mutual_nearest(a, b, cosine=0.5), strict=True))


def test_rootsift_is_the_formula():
    found = extract(texture(0), "sift", keypoints=50)
    counts = found.descriptors.astype(float)
    expected = np.sqrt(counts / counts.sum(1, keepdims=True))
    assert len(found) == 50
    np.testing.assert_allclose(found.unit(), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.unit(), axis=1), 1, atol=1e-6)
    zero = LocalFeatures(np.zeros((1, 2), np.float32), np.zeros((1, 128), np.uint8), (9, 9))
    assert np.isfinite(zero.unit()).all()


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
        found = local(neighbors, queries, gallery, tmp_path, top=5, cap=30, weight=2.0, floor=12)
    assert found.index.tolist() == [[1, 3, 0, 2, 4, 5], [0, 2, 1, 3, 5, -1]]
    assert found.score[0].tolist() == pytest.approx([2.6, 2.5, 0.9, 0.8, 0.7, 0.4])
    assert torch.equal(neighbors.index, before[0])
    assert torch.equal(neighbors.score, before[1])


def test_floor_and_top_limit_what_counts(task, tmp_path):
    neighbors, queries, gallery = task
    nothing = local(neighbors, queries, gallery, tmp_path, top=2, floor=15)
    assert torch.equal(nothing.index, neighbors.index)
    assert torch.equal(nothing.score, neighbors.score)
    with pytest.raises(ValueError, match="cap must be above 0"):
        local(neighbors, queries, gallery, tmp_path, cap=0)


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


@pytest.mark.parametrize(("name", "stop", "left"), [("extract", 3, 3), ("match", 4, 4)])
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
        calls = [*counting(patch, "extract"), *counting(patch, "match")]
        again = count_inliers(*arguments)
    assert not calls
    assert torch.equal(found[0], again[0])


def test_a_killed_run_keeps_its_shards(task, tmp_path, monkeypatch):
    neighbors = Neighbors(task[0].index[:, [0, 1, 3, 4]], task[0].score[:, [0, 1, 3, 4]])
    code = f"""
import os, numpy as np, torch
from pathlib import Path
from common.rerank import inliers
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


def test_pair_store_finds_old_and_new(tmp_path):
    store = PairStore(tmp_path)
    assert not store.lookup(np.array([1, 2], np.uint64))[0].any()
    store.append(np.array([5, 2], np.uint64), np.array([[1, 3], [4, 6]], np.int32))
    store.append(np.array([9], np.uint64), np.array([[7, 8]], np.int32))
    for one in (store, PairStore(tmp_path)):
        known, counts = one.lookup(np.array([2, 3, 5, 9], np.uint64))
        assert known.tolist() == [True, False, True, True]
        assert counts.tolist() == [[4, 6], [0, 0], [1, 3], [7, 8]]


@pytest.mark.parametrize("features", ["disk", "aliked", "xfeat"])
@pytest.mark.parametrize("matcher", ["mutual", "lightglue"])
def test_learned_features_verify(features, matcher, tmp_path):
    from common.models.weights import local_feature_weights
    from common.rerank.networks import DETECTORS, MATCHERS

    for name in (DETECTORS[features], MATCHERS[features]):
        try:
            local_feature_weights(name)
        except FileNotFoundError as error:
            pytest.skip(str(error))
    image = texture(0, 160, 192)
    seen = turned(image, angle=4, scale=0.97, bend=0)[0]
    options = {"features": features, "matcher": matcher, "keypoints": 200}
    same, other = verify(image, seen, **options), verify(image, texture(1, 160, 192), **options)
    assert same.inliers > 40
    assert same.inliers > 3 * other.inliers
    blank = np.full((64, 64, 3), 99, np.uint8)
    assert verify(blank, np.zeros((1, 1, 3), np.uint8), **options).inliers == 0
    assert verify(blank, image, **options).inliers < 8
    for name, picture in (("a", image), ("b", seen)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[:, :, ::-1])
    paths = [np.array([str(tmp_path / f"{name}.png")], dtype="S") for name in "ab"]
    counts, _ = count_inliers(
        Neighbors(torch.tensor([[0]]), torch.tensor([[0.5]])),
        *paths,
        tmp_path / "cache",
        Settings(features=features, matcher=matcher, keypoints=200),
    )
    assert counts.item() == same.inliers, "again, and through the cache"


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
    assert sorted(known) == ["hook", "local"]
    bind({"name": "local", "features": "sift", "top": 50, "cap": 70}, known)
    bind({"name": "hook", "function": "a.b:c", "arguments": {"x": 1}}, known)
