"""The list of images to keep, from a run folder with wrong labels; what a training takes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.engine.checkpoint import save_tree
from common.pipeline.clean import clean_run, kept_rows
from common.types import Embeddings, encode_strings

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path):
    """Classes b and a (in that order), two centres each; image 4 is labelled wrongly."""
    centers = torch.eye(4).view(2, 2, 4)
    vectors = torch.eye(4)[[0, 0, 1, 2, 0, 2]] + 0.1
    ids = np.array([f"im{i}" for i in range(6)])
    Embeddings(ids, vectors).save(tmp_path / "run" / "embeddings" / "train.safetensors")
    tree = {"centers": centers, "classes": encode_strings(np.array(["b", "a"]))}
    save_tree(tmp_path / "run" / "embeddings" / "centers.safetensors", tree)
    lines = ["id,label,note", "im5,a,", "im3,a,", "im4,a,x", "im0,b,", "im1,b,", "im2,b,"]
    (tmp_path / "train.csv").write_text("\n".join([*lines, ""]))
    return tmp_path / "run"


def test_what_is_far_from_its_dominant_centre_is_dropped(run):
    out, text = clean_run(run, run.parent / "train.csv")
    # im4 lies on a centre of b; im2 on a lesser centre of its own class, 90 degrees away.
    assert out.read_text().split() == ["id", "im5", "im3", "im0", "im1"]
    assert "4 of 6 images kept" in text
    assert "0 classes lose all" in text
    out, text = clean_run(run, run.parent / "train.csv", degrees=89.9)
    assert len(out.read_text().split()) == 7


def test_unknown_classes_stay_and_a_class_may_go(run):
    table = run.parent / "train.csv"
    table.write_text("id,label\nim0,b\nim1,z\nim4,a\nim2,a\n")
    out, text = clean_run(run, table)
    assert out.read_text().split() == ["id", "im0", "im1"]
    assert "1 classes lose all" in text
    assert "1 images of classes without a centre stay" in text


def test_command_and_errors(run, tmp_path):
    command = [sys.executable, "-m", "common.pipeline.clean", str(run), str(tmp_path / "train.csv")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "4 of 6" in found.stdout
    (tmp_path / "train.csv").write_text("id,label\nim0,q\n")
    with pytest.raises(ValueError, match="no image is of a class"):
        clean_run(run, tmp_path / "train.csv")
    (tmp_path / "train.csv").write_text("id\nim0\n")
    with pytest.raises(ValueError, match="first two columns"):
        clean_run(run, tmp_path / "train.csv")
    (run / "embeddings" / "centers.safetensors").unlink()
    (tmp_path / "train.csv").write_text("id,label\nim0,b\n")
    with pytest.raises(FileNotFoundError, match="sub_center_arcface"):
        clean_run(run, tmp_path / "train.csv")


def test_kept_rows(run):
    ids = np.array(["im3", "im4", "other"])
    assert kept_rows(None, ids).tolist() == [True] * 3
    out, _ = clean_run(run, run.parent / "train.csv")
    assert kept_rows(out, ids).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="lists none"):
        kept_rows(out, ids[2:])
    with pytest.raises(FileNotFoundError):
        kept_rows(run / "nothing.csv", ids)
