"""Second homographies, votes before LightGlue, and what a homography tells besides its inliers."""

import cv2
import numpy as np
import pytest

from common.rerank import geometry
from common.rerank.evidence import NAMES, SHAPE, Evidence, describe
from common.rerank.features import LocalFeatures, extract
from common.rerank.geometry import Comparison, Settings, compare
from common.rerank.local import verify
from common.rerank.matching import match_near
from tests.oracles.views import texture, turned


@pytest.fixture(scope="module")
def corner():
    """A building's two sides: each half of the picture moves by a homography of its own."""
    image = texture(0, 240, 480)
    left, first = turned(image[:, :240].copy(), angle=8, scale=0.9)
    right, second = turned(image[:, 240:].copy(), angle=-9, scale=0.95, bend=-3e-4)
    shift = np.array([[1, 0, 240], [0, 1, 0], [0, 0, 1.0]])
    return image, np.hstack([left, right]), first, shift @ second @ np.linalg.inv(shift)


def test_the_rest_gives_the_other_side(corner):
    image, seen, *planes = corner
    one = verify(image, seen, "rootsift")
    both = verify(image, seen, "rootsift", second="rest")
    assert one.second is None
    assert both.matches == one.matches
    assert both.inliers > one.inliers + 30
    assert both.inliers + len(both.rejected) == both.matches
    for model in (both.model, both.second):
        nearest = min(planes, key=lambda plane: np.abs(plane - model).max())
        inside = both.points[:, 0] < 230 if nearest is planes[0] else both.points[:, 0] > 250
        moved = cv2.perspectiveTransform(both.points[None, inside, :2].astype(float), model)[0]
        assert np.median(np.linalg.norm(moved - both.points[inside, 2:], axis=1)) < 2
    assert np.abs(both.model - both.second).max() > 0.05, "two planes, not one twice"


@pytest.mark.parametrize("others", [5, 7, 8, 12])
def test_fewer_than_eight_matches_are_no_second_plane(others):
    random = np.random.default_rng(0)
    points = random.uniform(0, 300, (40 + others, 2)).astype(np.float32)
    moved = points + np.where(np.arange(len(points)) < 40, 3, 90)[:, None].astype(np.float32)
    rows = random.normal(size=(len(points), 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    a, b = (LocalFeatures(place, rows, (400, 400)) for place in (points, moved))
    found = compare(a, b, Settings("xfeat", second="rest"))
    assert (found.second is not None) == (others >= 8)
    assert int(found.inlying.sum()) == 40 + others * (others >= 8)


def test_guided_matching_brings_back_what_the_ratio_test_threw_away():
    """A wall of equal windows: every one has a twin, so the ratio test rejects nearly all."""
    tile = texture(3, 60, 60)
    wall = np.tile(tile, (5, 7, 1))
    wall[100:190, 150:260] = texture(4, 90, 110)  # the door, which is unique
    seen, true = turned(wall, angle=5, scale=0.95, bend=1e-4)
    plain = verify(wall, seen, "rootsift")
    guided = verify(wall, seen, "rootsift", second="guided")
    assert guided.inliers > 2 * plain.inliers
    moved = cv2.perspectiveTransform(guided.points[None, :, :2].astype(float), true)[0]
    assert np.median(np.linalg.norm(moved - guided.points[:, 2:], axis=1)) < 2


def test_guided_matching_looks_near_only():
    """Points 2 and 3 of b are alike; each of a finds the one where the homography puts it."""
    settings = Settings(threshold=4.0)
    a = LocalFeatures(np.array([[0, 0], [50, 0]], np.float32), np.eye(2, 4, dtype="f4"), (99, 99))
    same = np.eye(4, dtype="f4")[[0, 0, 1]]
    places = np.array([[100, 0], [11, 0], [200, 0]], np.float32)
    b = LocalFeatures(places, same, (300, 99))
    shift = np.array([[1, 0, 0.0], [0, 1, 0], [0, 0, 1]])
    rows, columns = match_near(a, b, shift, settings)
    assert (rows.tolist(), columns.tolist()) == ([0], [1]), "12 pixels are near, 13 are not"
    b.points[1, 0] = 13
    assert len(match_near(a, b, shift, settings)[0]) == 0
    infinity = np.array([[1, 0, 0.0], [0, 1, 0], [-0.02, 0, 1]])
    assert match_near(a, b, infinity, settings)[0].tolist() in ([], [0])


def test_lightglue_is_asked_only_about_pairs_with_votes(monkeypatch):
    asked = []

    def match(a, b, settings, device):
        asked.append(settings.votes)
        return np.arange(5), np.arange(5)

    monkeypatch.setattr(geometry, "match", match)
    unit = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    points = np.random.default_rng(1).uniform(0, 300, (40, 2)).astype(np.float32)
    a = LocalFeatures(points, unit.astype(np.float16), (300, 300))
    other = LocalFeatures(points, -unit.astype(np.float16), (300, 300))
    for votes, b, expected in ((6, a, True), (6, other, False), (0, other, True), (41, a, False)):
        asked.clear()
        found = compare(a, b, Settings("xfeat", "lightglue", votes=votes))
        assert bool(asked) is expected, (votes, expected)
        assert len(found.points_a) == (5 if expected else 0)


def test_second_and_votes_are_checked():
    for wrong, message in (
        ({"second": "third"}, "known: none, rest, guided"),
        ({"second": "rest", "model": "fundamental"}, "needs model homography"),
        ({"second": "guided", "features": "loftr"}, "needs descriptors, which loftr"),
        ({"votes": -1}, "votes >= 0"),
        ({"matcher": "lightglue", "features": "hardnet"}, "No LightGlue weights for hardnet"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings(**wrong)


def test_sift_and_rootsift_share_points_and_differ_in_distance():
    image, seen = texture(0), turned(texture(0))[0]
    counts = extract(image, "sift", keypoints=60)
    again = extract(image, "rootsift", keypoints=60)
    assert np.array_equal(counts.points, again.points)
    assert np.array_equal(counts.descriptors, again.descriptors)
    plain = counts.descriptors / np.linalg.norm(counts.descriptors.astype(float), axis=1)[:, None]
    np.testing.assert_allclose(Settings("sift").unit(counts), plain, atol=1e-6)
    np.testing.assert_allclose(Settings("rootsift").unit(counts), counts.unit(), atol=0)
    assert verify(image, seen, "sift").matches != verify(image, seen, "rootsift").matches
    zero = LocalFeatures(np.zeros((1, 2), np.float32), np.zeros((1, 128), np.uint8), (9, 9))
    assert np.isfinite(zero.unit(root=False)).all()


def test_an_upright_copy_has_the_identity_whatever_the_pixels():
    a = np.random.default_rng(0).uniform(0, 200, (30, 2))
    double = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]])  # pixel centres
    b = cv2.perspectiveTransform(a[None], double)[0]
    seen = Comparison(a, b, 3 * double, np.ones(30, bool))
    found = dict(zip(SHAPE, describe(seen, (200, 150), (400, 300), Settings()), strict=True))
    identity = {"h11": 1, "h22": 1}
    for name in SHAPE[:8]:
        assert found[name] == pytest.approx(identity.get(name, 0), abs=1e-5)
    assert found["error"] == pytest.approx(0, abs=1e-5)
    assert found["cover_a"] == pytest.approx(np.prod(np.ptp(a, axis=0)) / 30000, rel=1e-5)
    assert found["cover_b"] == pytest.approx(found["cover_a"], rel=1e-5)


def test_error_is_in_thresholds_and_only_of_inliers():
    a = np.random.default_rng(0).uniform(0, 100, (9, 2))
    b = a + np.array([3.0, 4.0])
    b[8] += 50
    inlying = np.arange(9) < 8
    seen = Comparison(a, b, np.eye(3), inlying)
    assert describe(seen, (100, 100), (100, 100), Settings(threshold=2.0))[8] == pytest.approx(2.5)
    flat = np.array([[0, 0, 0], [0, 0, -1.0], [0, 1, 0]])  # pure sideways motion: y stays
    found = describe(
        Comparison(a, b, flat, inlying), (100, 100), (100, 100), Settings(model="fundamental")
    )
    assert found[8] == pytest.approx(1.0), "4 pixels off its line"
    assert np.isnan(found[:8]).all()


def test_no_model_is_no_number_and_infinity_is_bounded():
    points = np.zeros((3, 2))
    none = describe(Comparison(points, points, None, np.zeros(3, bool)), (9, 9), (9, 9), Settings())
    assert np.isnan(none).all()
    to_infinity = np.array([[1, 0, 0], [0, 1, 0], [1, 0, -4.0]])  # the middle has no image
    some = np.array([[1.0, 2], [7, 8], [2, 6], [8, 1]])
    seen = Comparison(some, some, to_infinity, np.ones(4, bool))
    found = describe(seen, (9, 9), (9, 9), Settings())
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1000
    table = Evidence(np.array([[0, 0], [6, 8]], np.int32), np.stack([none, found]))
    assert table.values().shape == (2, len(NAMES))
    assert table.ratio.tolist() == [0, 0.75]
