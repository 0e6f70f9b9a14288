"""Notebooks: what they do aboard Kaggle; the committed ones are what the command writes."""

import json
import os
import stat

import pytest

from common.kaggle import aboard
from common.kaggle.aboard import Failure, Kernel, Settings
from common.kaggle.kernel import SUBMISSIONS, kernel
from common.kaggle.rehearse import MOUNTS, SCENES


def test_a_failure_shows_in_public_and_keeps_the_fallback_in_a_rerun(tmp_path):
    settings = Settings("whale", "d", "o/k", ["r"], [], "whale", "Image,Id", 60)
    base = tmp_path / "kaggle"
    (base / "input" / "d").mkdir(parents=True)
    (base / "input" / "d" / "sample_submission.csv").write_text("Image,Id\na.jpg,w_0\n")
    for rerun in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KIT_REHEARSAL", str(base))
            patch.delenv("KAGGLE_IS_COMPETITION_RERUN", raising=False)
            if rerun:
                patch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
            here = Kernel(settings)
            here.fallback()
            if rerun:
                here.answer()
            else:
                with pytest.raises(Failure, match="no kit o/k; looked for"):
                    here.answer()
            written = json.loads((base / "working" / "kernel.json").read_text())
            assert written["outcome"] == aboard.EXCEPTION
        kept = (base / "working" / "submission.csv").read_text()
        assert kept == "Image,Id\na.jpg,w_0\n"


@pytest.mark.parametrize("mounts", MOUNTS)
def test_every_layout_is_found(mounts, tmp_path):
    names = {"data": "some-data", "owner": "me", "kit": "some-kit"}
    mounted, shelf = (tmp_path / text.format(**names) for text in mounts)
    mounted.mkdir(parents=True)
    with pytest.raises(Failure, match="looked for MANIFEST.json in"):
        aboard.kit_folder(tmp_path, "me/some-kit")
    shelf.mkdir(parents=True)
    (shelf / "MANIFEST.json").write_text("{}")
    assert aboard.data_folder(tmp_path, "some-data") == mounted
    assert aboard.kit_folder(tmp_path, "me/some-kit") == shelf
    with pytest.raises(Failure, match="no data of other-data; looked in"):
        aboard.data_folder(tmp_path, "other-data")
    assert {layout for _, layout in SCENES} == set(MOUNTS)


def test_two_gpus_start_two_processes_and_an_old_one_none(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for text, expected in (
        ("Tesla T4, 7.5\nTesla T4, 7.5", (2, {})),
        ("Tesla P100-PCIE-16GB, 6.0", (0, {"CUDA_VISIBLE_DEVICES": ""})),
        ("No devices were found", (0, {})),
    ):
        tool.write_text(f"#!/bin/sh\necho '{text}'\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        assert aboard.gpus() == expected


def test_runs_are_staged_where_they_can_be_written(tmp_path):
    run_folder = tmp_path / "kit" / "a"
    (run_folder / "text").mkdir(parents=True)
    (run_folder / "text" / "tokenizer.json").write_text("{}")
    (run_folder / "config.yaml").write_text("boxes: $RUN/given/boxes.csv\n")
    to = aboard.stage(run_folder, tmp_path / "temp" / "a")
    assert (to / "config.yaml").read_text() == f"boxes: {to}/given/boxes.csv\n"
    assert (to / "text" / "tokenizer.json").read_text() == "{}"
    assert (run_folder / "config.yaml").read_text() == "boxes: $RUN/given/boxes.csv\n"


def test_the_cause_is_the_telling_line():
    banner = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "
    assert aboard.cause(["error: no fins", banner, "====="]) == "error: no fins"
    assert aboard.cause(["KeyError: 'a'", "bye", ""]) == "KeyError: 'a'"
    assert aboard.cause(["hello", ""]) == "hello"
    assert aboard.cause([]) == "it ended without a word"


def test_the_committed_kernels_are_those_that_the_command_writes(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="nbformat reads notebooks")
    readme = (SUBMISSIONS / "README.md").read_text()
    found = sorted(path.parent.name for path in SUBMISSIONS.glob("*/submit.ipynb"))
    assert found == ["landmarks", "shopee", "whale"]
    for competition in found:
        options = {"runs": ["baseline"], "out": str(tmp_path / competition)}
        if competition == "landmarks":
            options["arguments"] = ["task=recognition"]
        if competition == "shopee":
            options["hours"] = 1.8  # of the competition's two
        made = kernel(competition, **options)
        for name in ("submit.ipynb", "kernel-metadata.json"):
            committed = (SUBMISSIONS / competition / name).read_text()
            assert committed == (made / name).read_text(), f"write {competition}'s kernel again"
        notebook = nbformat.read(made / "submit.ipynb", as_version=4)
        nbformat.validate(notebook)
        assert competition in readme
        about = json.loads((made / "kernel-metadata.json").read_text())
        assert about["enable_internet"] is False
        assert about["enable_gpu"] is True
        assert about["machine_shape"] == "NvidiaTeslaT4"
        assert about["title"].replace(" ", "-") == about["id"].split("/")[1]


def test_kernels_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="add task=recognition"):
        kernel("landmarks", runs=["a"], out=str(tmp_path))
    with pytest.raises(ValueError, match="No submission format 'whale-tail'"):
        kernel("whale", runs=["a"], arguments=["task=tail"], out=str(tmp_path))
    with pytest.raises(ValueError, match="needs runs"):
        kernel("whale", runs=[], out=str(tmp_path))
    made = kernel("landmarks", runs=["x/a"], arguments=["task=retrieval"], out=str(tmp_path))
    about = json.loads((made / "kernel-metadata.json").read_text())
    assert about["competition_sources"] == ["landmark-retrieval-2021"]
