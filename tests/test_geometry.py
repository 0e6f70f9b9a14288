"""One pair of pictures with a known homography, by SIFT and by learned features."""

import cv2
import numpy as np
import pytest
import torch

from common.data.images import ImageError
from common.rerank.features import LocalFeatures, extract, load
from common.rerank.geometry import Settings
from common.rerank.inliers import count_inliers
from common.rerank.local import verify
from common.rerank.matching import mutual_nearest
from common.types import Neighbors
from tests.oracles.views import texture, turned


def corner_error(found, true, image):
    height, width = image.shape[:2]
    corners = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], float)
    move = [cv2.perspectiveTransform(corners, m) for m in (found, true)]
    return float(np.abs(move[0] - move[1]).max())


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


def test_verify_is_deterministic_and_reads_files(tmp_path):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    cv2.imwrite(str(a), texture(0))
    cv2.imwrite(str(b), turned(texture(0))[0])
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


def test_verify_says_what_is_wrong(tmp_path):
    good = texture(0)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        verify(tmp_path / "broken.png", good)
    with pytest.raises(ValueError, match=r"uint8 .*got float64"):
        verify(good / 255.0, good)
    for wrong, message in (
        ({"features": "surf"}, "'surf'; known: sift, rootsift, disk"),
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
    cross = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(a, b)
    pairs = list(zip(*mutual_nearest(a, b), strict=True))
    assert pairs == [(m.queryIdx, m.trainIdx) for m in cross]
    assert len(pairs) < len(a)
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
