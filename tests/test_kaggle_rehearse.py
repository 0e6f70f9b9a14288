"""Rehearsals: what passes, what fails, and in which of Kaggle's words."""

import json
import shutil

import pytest

from common.kaggle import aboard
from common.kaggle import rehearse as rehearsal
from common.kaggle.kernel import kernel
from common.kaggle.pack import pack
from common.kaggle.rehearse import PASS, rehearse
from competitions.landmarks.train import main as train_landmarks
from competitions.shopee.train import main as train_shopee
from competitions.whale.train import main as train_whale
from tests import test_landmarks, test_shopee, test_whale
from tests.kits import contents, landmarks_data, small_kit, whale_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return whale_data(tmp_path_factory.mktemp("data") / "whale")


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The folder of a notebook that asks for the run `tiny`."""
    return kernel("whale", runs=["tiny"], out=str(tmp_path_factory.mktemp("notebook")))


OUT = "import sys, pathlib\nout = [w[4:] for w in sys.argv if w[:4] == 'out='][0]\n"
OUT += "pathlib.Path(out).parent.mkdir(exist_ok=True)\n"
LOOKUP = "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=5)\n"
WRONG = OUT + "open(out, 'w').write('Image,Id\\na.jpg,b\\n')"
HUNGRY = "data = bytearray(64 << 30)\n"


@pytest.mark.parametrize(
    ("infer", "seconds", "result", "cause"),
    [
        ("raise ValueError('no fins')", 60, aboard.EXCEPTION, "ValueError: no fins"),
        ("import time\ntime.sleep(99)", 12, aboard.TIMEOUT, "not ready when the time budget ended"),
        (
            WRONG,
            60,
            aboard.SCORING,
            "Unable to find 1 required",
        ),
        ("pass", 60, aboard.NO_FILE, "infer.py ended well and wrote no tiny.csv"),
        (LOOKUP, 60, aboard.EXCEPTION, "it wants the network"),
        (HUNGRY, 60, aboard.MEMORY, "MemoryError"),
        ("import os\nos.kill(os.getpid(), 9)", 60, aboard.MEMORY, "infer"),
        ("import faiss", 60, aboard.EXCEPTION, "No module named 'faiss'"),
    ],
)
def test_failures_have_kaggles_names_and_leave_a_valid_file(
    infer, seconds, result, cause, data, notebook, tmp_path
):
    kit = small_kit(tmp_path / "kit", infer)
    options = {"kit": str(kit), "folder": str(notebook), "data": str(data), "memory": "8GB"}
    (outcome,) = rehearse("whale", **options, seconds=seconds, scenes=[2])
    assert (outcome.result, cause in outcome.cause) == (result, True), outcome
    assert outcome.cause.count("kept: sample submission") == 1


def test_a_public_run_that_fails_does_not_look_well(data, notebook, tmp_path):
    kit = small_kit(tmp_path / "kit", "raise ValueError('no fins')")
    (outcome,) = rehearse(
        "whale", kit=str(kit), folder=str(notebook), data=str(data), scenes=[0], seconds=60
    )
    assert outcome.result == aboard.EXCEPTION


def test_scenes_and_competitions_that_are_not_there_are_said():
    for scenes in ([7], [-1]):
        with pytest.raises(ValueError, match="there are 0 to 3"):
            rehearse("whale", scenes=scenes)
    with pytest.raises(ValueError, match="No competition 'nope'"):
        rehearse("nope")


def test_a_notebook_that_outlives_its_limit_is_ended(data, notebook, tmp_path):
    folder = tmp_path / "notebook"
    shutil.copytree(notebook, folder)
    text = json.loads((folder / "submit.ipynb").read_text())
    text["cells"][-1]["source"] = ["import time\n", "time.sleep(99)\n"]
    (folder / "submit.ipynb").write_text(json.dumps(text))
    kit = small_kit(tmp_path / "kit", "pass")
    options = {"kit": str(kit), "folder": str(folder), "data": str(data)}
    (outcome,) = rehearse("whale", **options, seconds=2, scenes=[2])
    assert (outcome.result, outcome.seconds) == (aboard.TIMEOUT, 2)
    text["cells"][-1]["source"] = ["import os\n", "os.remove(kernel.submission)\n"]
    (folder / "submit.ipynb").write_text(json.dumps(text))
    (outcome,) = rehearse("whale", **options, seconds=30, scenes=[2])
    assert outcome.result == aboard.NO_FILE


@pytest.mark.slow
def test_a_real_run_passes_on_a_larger_odd_hidden_test_set(data, notebook, tmp_path):
    out = tmp_path / "whale" / "tiny"
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("Image,x0,y0,x1,y1\ntrain00.jpg,4,4,40,36\n")  # a file of this machine
    train_whale([f"data.root={data}", f"out={out}", *test_whale.TINY, f"data.boxes={boxes}"])
    kit = pack([str(out)], out=str(tmp_path / "kit"))
    before = contents(kit)
    (outcome,) = rehearse("whale", kit=str(kit), folder=str(notebook), data=str(data), scenes=[1])
    assert outcome.result == PASS, outcome
    assert outcome.scene.startswith(f"odd, {2 * 6 + 9} rows")
    assert contents(kit) == before  # Kaggle mounts it read-only


@pytest.fixture(scope="module")
def landmarks(tmp_path_factory):
    """Data of landmarks, and the kit of a run on it."""
    home = tmp_path_factory.mktemp("landmarks")
    data, out = landmarks_data(home / "data"), home / "landmarks" / "tiny"
    tiny = [*test_landmarks.TINY, "train.stages=[{epochs: 1, size: 32}]", "data.fold=-1"]
    train_landmarks([f"data.root={data}", f"out={out}", *tiny])
    return data, pack([str(out)], out=str(home / "kit"))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "gpus"), [("recognition", 0), ("retrieval", 2)])
def test_both_tasks_of_landmarks_pass_on_odd_tests_and_with_two_processes(
    task, gpus, landmarks, tmp_path, monkeypatch
):
    """Two T4s are two processes of torchrun: here on gloo, as the kernel finds no CUDA."""
    data, kit = landmarks
    folder = kernel("landmarks", runs=["tiny"], arguments=[f"task={task}"], out=str(tmp_path))
    said, judge = [], rehearsal.judge

    def listening(code, lines, *rest):
        said.extend(lines)
        return judge(code, lines, *rest)

    monkeypatch.setattr(rehearsal, "judge", listening)
    options = {"kit": str(kit), "folder": str(folder), "data": str(data), "gpus": gpus}
    (outcome,) = rehearse("landmarks", **options, scenes=[1])
    assert outcome.result == PASS, outcome
    assert outcome.scene.startswith(f"odd, {2 * 6 + 9} rows")
    started = [line for line in said if line.startswith("infer, ")]
    assert [f"--nproc-per-node {gpus}" in line for line in started] == [gpus > 1]
    spoken = [line for line in said if line.startswith(f"{task}: ") and "passes the check" in line]
    assert len(spoken) == 1  # one process writes and speaks


@pytest.mark.slow
def test_pictures_and_titles_of_shopee_pass_on_an_odd_test_and_on_one_row(tmp_path):
    data, out = tmp_path / "listings", tmp_path / "shopee" / "tiny"
    test_shopee.write_files(data, {"train": range(30), "test": range(30, 40)})
    train_shopee([f"data.root={data}", f"out={out}", *test_shopee.TINY, "model.uses=both"])
    kit = pack([str(out)], out=str(tmp_path / "kit"))
    folder = kernel("shopee", runs=["tiny"], out=str(tmp_path / "notebook"))
    options = {"kit": str(kit), "folder": str(folder), "data": str(data)}
    outcomes = rehearse("shopee", **options, scenes=[1, 2])
    assert [outcome.result for outcome in outcomes] == [PASS, PASS], outcomes
    rows = [outcome.scene.split(",")[:2] for outcome in outcomes]
    assert rows == [["odd", f" {2 * 25 + 9} rows"], ["one", " 1 rows"]]
