"""Kits, kernels and rehearsals: what passes, what fails, and in which of Kaggle's words."""

import csv
import json
import os
import shutil
import stat
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.entry import entry
from common.kaggle import aboard, absent, client, hidden, ledger
from common.kaggle.__main__ import main
from common.kaggle.aboard import Failure, Kernel, Settings
from common.kaggle.kernel import SUBMISSIONS, kernel
from common.kaggle.pack import bring, code, pack, size, write_manifest
from common.kaggle.rehearse import MOUNTS, PASS, SCENES, can_unshare, rehearse
from common.paths import REPOSITORY
from common.submission import check
from competitions.whale.data import SAMPLE
from tests.test_whale import TINY, run

SHOPEE = REPOSITORY / "competitions" / "shopee" / "sample"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four individuals and strangers, few enough for a rehearsal of seconds."""
    folder = tmp_path_factory.mktemp("data") / "whale"
    rng = np.random.default_rng(0)
    rows = {"train": [], "test": []}
    for split, each in (("train", 4), ("test", 1)):
        (folder / split).mkdir(parents=True)
        for who in range(6):
            for n in range(each):
                name = f"{split}{who}{n}.jpg"
                picture = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
                picture[8:32, 8:32] = (who * 40, 255 - who * 30, who * 90 % 255)
                cv2.imwrite(str(folder / split / name), picture)
                rows[split].append((name, f"w_{who}" if who < 4 else "new_whale"))
    rows["test"] = [(name, "new_whale w_0 w_1 w_2 w_3") for name, _ in rows["test"]]
    for name, split in (("train", "train"), ("sample_submission", "test"), ("solution", "test")):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("Image", "Id"), *rows[split]])
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A tiny run whose config names a file of this machine."""
    out = tmp_path_factory.mktemp("runs") / "whale" / "tiny"
    boxes = data.parent / "boxes.csv"
    boxes.write_text("Image,x0,y0,x1,y1\ntrain00.jpg,4,4,40,36\n")
    run("train", f"data.root={data}", f"out={out}", *TINY, f"data.boxes={boxes}")
    return out


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    """The kit of the run and the folder of its notebook."""
    home = tmp_path_factory.mktemp("kit")
    kit = pack([str(trained)], out=str(home / "kit"))
    return kit, kernel("whale", runs=["tiny"], out=str(home / "notebook"))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_kit_is_the_same_bytes_again_and_holds_what_it_should(trained, packed, tmp_path):
    kit, _ = packed
    again = pack([str(trained)], out=str(tmp_path / "again"))
    mine, other = contents(kit), contents(again)
    for files in (mine, other):  # the commit may move while others work in the same checkout
        listed = json.loads(files.pop("MANIFEST.json"))
        assert set(listed["files"]) == set(files) - {"dataset-metadata.json"}
    assert mine == other
    assert pack([str(trained)], out=str(again)) == again  # a kit is replaced
    assert {"code/common/kaggle/aboard.py", "code/competitions/whale/infer.py"} <= set(mine)
    assert {"runs/tiny/weights.safetensors", "runs/tiny/given/boxes.csv"} <= set(mine)
    assert not [name for name in mine if "/sample/" in name or name.endswith((".jpg", ".pyc"))]
    assert not [name for name in mine if name.startswith(("code/tests", "code/competitions/sho"))]
    config = mine["runs/tiny/config.yaml"].decode()
    assert "boxes: $RUN/given/boxes.csv" in config
    assert str(trained.parent) not in config
    described = json.loads(mine["dataset-metadata.json"])
    assert described["id"] == "your-name/whale-kit"
    assert len(described["licenses"]) == 1


def test_a_copied_folder_that_git_does_not_know_is_named(tmp_path):
    with pytest.raises(ValueError, match="No competition 'nothing'; there are landmarks"):
        list(pack(["x"], competition="nothing"))
    names = [name for name, _ in code("landmarks")]
    assert "competitions/__init__.py" in names
    assert "competitions/landmarks/config.yaml" in names
    assert not [name for name in names if name.startswith("competitions/whale")]


def test_kits_that_must_not_be_are_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"limit=0\.0 MB. The largest: .*weights\.safetensors"):
        pack([str(trained)], out=str(tmp_path / "a"), limit="10KB")
    assert list(tmp_path.iterdir()) == []  # no draft stays behind
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="not empty and no kit"):
        pack([str(trained)], out=str(tmp_path / "mine"))
    bad = tmp_path / "whale" / "bad"
    bad.mkdir(parents=True)
    with pytest.raises(ValueError, match="is no trained run"):
        pack([str(bad)])
    (bad / "config.yaml").write_text("out: null\n")
    torch.save({"a": torch.zeros(1)}, bad / "weights.safetensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        pack([str(bad)], out=str(tmp_path / "b"))
    save_file({"a": torch.zeros(1)}, bad / "weights.safetensors")
    torch.save({"a": torch.zeros(1)}, bad / "boxes.csv")
    (bad / "config.yaml").write_text(f"data: {{boxes: {bad / 'boxes.csv'}}}\n")
    with pytest.raises(ValueError, match="is a pickle"):
        pack([str(bad)], out=str(tmp_path / "b"))
    (tmp_path / "wheels").mkdir()
    with pytest.raises(ValueError, match=r"No \*\.whl"):
        pack([str(trained)], out=str(tmp_path / "b"), wheels=str(tmp_path / "wheels"))


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("10", 10), ("500MB", 500_000_000), ("1.5 gb", 1_500_000_000), ("2K", 2000)],
)
def test_sizes_are_read(text, bytes_):
    assert size(text) == bytes_
    with pytest.raises(ValueError, match="is no size"):
        size(f"{text} apples")


def test_two_files_of_one_name_are_not_mixed_up(tmp_path):
    for number in "ab":
        (tmp_path / number).mkdir()
        (tmp_path / number / "x.csv").write_text(number)
    value = {"one": [str(tmp_path / "a" / "x.csv")], "same": "x.csv", "n": 3}
    assert bring(value, tmp_path / "to") == {"one": ["$RUN/given/x.csv"], "same": "x.csv", "n": 3}
    with pytest.raises(ValueError, match="two different files"):
        bring(str(tmp_path / "b" / "x.csv"), tmp_path / "to")


def small_kit(folder, infer):
    """A kit whose infer.py is `infer`: no library is imported, so a rehearsal takes a second."""
    places = {"competitions/whale/infer.py": infer}
    for name in ("__init__", "submission", "paths"):
        places[f"common/{name}.py"] = (REPOSITORY / "common" / f"{name}.py").read_text()
    for name, text in places.items():
        (folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "code" / name).write_text(text)
    (folder / "runs" / "tiny").mkdir(parents=True)
    (folder / "runs" / "tiny" / "config.yaml").write_text("seed: 0\n")
    write_manifest(folder, "whale")
    return folder


OUT = "import sys, pathlib\nout = [w[4:] for w in sys.argv if w[:4] == 'out='][0]\n"
OUT += "pathlib.Path(out).parent.mkdir(exist_ok=True)\n"
LOOKUP = "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=5)\n"
WRONG = OUT + "open(out, 'w').write('Image,Id\\na.jpg,b\\n')"
HUNGRY = "data = bytearray(64 << 30)\n"


@pytest.mark.parametrize(
    ("infer", "seconds", "result", "cause"),
    [
        ("raise ValueError('no fins')", 60, aboard.EXCEPTION, "ValueError: no fins"),
        ("import time\ntime.sleep(99)", 4, aboard.TIMEOUT, "not ready when the time budget ended"),
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
    infer, seconds, result, cause, data, packed, tmp_path
):
    kit = small_kit(tmp_path / "kit", infer)
    options = {"kit": str(kit), "folder": str(packed[1]), "data": str(data), "memory": "8GB"}
    (outcome,) = rehearse("whale", **options, seconds=seconds, scenes=[2])
    assert (outcome.result, cause in outcome.cause) == (result, True), outcome
    assert outcome.cause.count("kept: sample submission") == 1


def test_a_public_run_that_fails_does_not_look_well(data, packed, tmp_path):
    kit = small_kit(tmp_path / "kit", "raise ValueError('no fins')")
    (outcome,) = rehearse(
        "whale", kit=str(kit), folder=str(packed[1]), data=str(data), scenes=[0], seconds=60
    )
    assert outcome.result == aboard.EXCEPTION
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


def test_a_notebook_that_outlives_its_limit_is_ended(data, packed, tmp_path):
    folder = tmp_path / "notebook"
    shutil.copytree(packed[1], folder)
    text = json.loads((folder / "submit.ipynb").read_text())
    text["cells"][-1]["source"] = ["import time\n", "time.sleep(99)\n"]
    (folder / "submit.ipynb").write_text(json.dumps(text))
    options = {"kit": str(packed[0]), "folder": str(folder), "data": str(data)}
    (outcome,) = rehearse("whale", **options, seconds=2, scenes=[2])
    assert (outcome.result, outcome.seconds) == (aboard.TIMEOUT, 2)
    text["cells"][-1]["source"] = ["import os\n", "os.remove(kernel.submission)\n"]
    (folder / "submit.ipynb").write_text(json.dumps(text))
    (outcome,) = rehearse("whale", **options, seconds=30, scenes=[2])
    assert outcome.result == aboard.NO_FILE


@pytest.mark.slow
def test_a_real_run_passes_on_a_larger_odd_hidden_test_set(data, packed):
    kit, folder = packed
    before = contents(kit)
    (outcome,) = rehearse("whale", kit=str(kit), folder=str(folder), data=str(data), scenes=[1])
    assert outcome.result == PASS, outcome
    assert outcome.scene.startswith(f"odd, {2 * 6 + 9} rows")
    assert contents(kit) == before  # Kaggle mounts it read-only


def test_tampering_is_found(packed, tmp_path):
    kit = tmp_path / "kit"
    shutil.copytree(packed[0], kit)
    aboard.verify(kit)
    path = kit / "code" / "competitions" / "whale" / "infer.py"
    text = path.read_text()
    path.write_text(text.replace("config", "konfig", 1))
    with pytest.raises(Failure, match=r"infer\.py of the kit is not what was packed"):
        aboard.verify(kit)
    path.unlink()
    with pytest.raises(Failure, match=r"the kit lacks code/competitions/whale/infer\.py"):
        aboard.verify(kit)


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


@pytest.mark.parametrize(
    ("form", "source"), [("whale", SAMPLE), ("landmarks-recognition", None), ("shopee", SHOPEE)]
)
def test_hidden_test_sets_are_new_complete_and_odd(form, source, tmp_path):
    source = source or REPOSITORY / "competitions" / "landmarks" / "sample"
    count = {}
    for kind in hidden.KINDS:
        target = tmp_path / kind
        count[kind] = hidden.swap(form, source, target, kind)
        sample = target / "sample_submission.csv"
        assert check(form, sample, sample) == []
        assert not list(target.glob("*solution*"))
        assert len(list(target.glob("*submission.csv"))) == 1
        assert (target / "train.csv").resolve() == source / "train.csv"
    assert (count["one"], count["odd"]) == (1, 2 * count["stub"] + 9)
    layout = hidden.LAYOUTS[form]
    with open(tmp_path / "odd" / "sample_submission.csv") as file:
        ids = [row[0] for row in csv.reader(file)][1:]
    images = ids
    if form == "shopee":
        with open(tmp_path / "odd" / "test.csv") as file:
            rows = list(csv.DictReader(file))
        assert [row["posting_id"] for row in rows] == ids
        assert not all(row["title"].isascii() for row in rows)
        images = [row["image"] for row in rows]
    files = [tmp_path / "odd" / layout.folder / layout.name(image) for image in images]
    there = {path for path in (tmp_path / "odd" / layout.folder).rglob("*") if path.is_file()}
    assert set(files) == there
    old = {path.name for path in (source / layout.folder).rglob("*")}
    assert not old & {path.name for path in files}
    sizes, broken = set(), 0
    for path in files[-9:]:
        try:
            with Image.open(path) as picture:
                picture.load()
                sizes.add((picture.mode, picture.size))
        except OSError:
            broken += 1
    assert broken == 3
    assert ("CMYK", (64, 48)) in sizes
    assert ("RGB", (1, 1)) in sizes


def test_data_of_another_competition_is_no_hidden_test_set(tmp_path):
    with pytest.raises(ValueError, match="with the columns id,landmarks"):
        hidden.swap("landmarks-recognition", SAMPLE, tmp_path / "a", "odd")
    with pytest.raises(ValueError, match="No layout of the test set of 'cats'"):
        hidden.swap("cats", SAMPLE, tmp_path / "a", "odd")


def in_python(text, tmp_path, *start, **environment):
    shutil.copyfile(absent.__file__, tmp_path / "sitecustomize.py")
    done = subprocess.run(
        [*start, sys.executable, "-c", text],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), **environment},
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


CONNECT = """
import socket
server = socket.create_server(('127.0.0.1', 0))
socket.create_connection(server.getsockname()).close()
print('here', end=' ', flush=True)
try:
    socket.create_connection(('192.0.2.1', 80), timeout=3)
except OSError as error:
    print(error)
"""


def test_without_a_namespace_sockets_reach_only_this_machine(tmp_path):
    rehearsed = {"KIT_REHEARSAL": str(tmp_path), "KIT_REHEARSAL_SOCKETS": "1"}
    said = in_python(CONNECT, tmp_path, **rehearsed)
    assert said == "here [Errno 101] Network is unreachable: 192.0.2.1"
    name = "import socket; socket.getaddrinfo('example.org', 80)"
    assert "Network is unreachable: example.org" in in_python(name, tmp_path, **rehearsed)


def test_with_a_namespace_this_machine_is_still_reached(tmp_path):
    if not can_unshare():
        pytest.skip("this machine forbids network namespaces")
    up = "from common.kaggle.cells import raise_loopback\nraise_loopback()\n"
    start = ["env", "-C", str(REPOSITORY), "unshare", "-rn"]
    said = in_python(up + CONNECT, tmp_path, *start)
    assert said == "here [Errno 101] Network is unreachable"


def test_absent_packages_are_found_among_the_wheels_only(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "snail.py").write_text("house = 1\n")
    text = f"import sys; sys.path.append({str(tmp_path / 'elsewhere')!r})\n"
    text += "import importlib.util\nprint(importlib.util.find_spec('snail') is not None)"
    rehearsed = {"KIT_REHEARSAL": str(tmp_path), "KIT_REHEARSAL_ABSENT": "snail,whelk"}
    assert in_python(text, tmp_path) == "True"
    assert in_python(text, tmp_path, **rehearsed) == "False"
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "temp" / "wheels")
    assert in_python(text, tmp_path, **rehearsed) == "True"


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


def test_the_command_line_knows_its_options(tmp_path, monkeypatch, capsys):
    for words, message in (
        (["pakc"], "No command 'pakc'; did you mean 'pack'"),
        (["rehearse"], "rehearse takes COMPETITION"),
        (["rehearse", "whale", "memroy=1GB"], "did you mean 'memory'"),
        (["rehearse", "whale", "gpus=two"], "gpus=two: must be int"),
        (["submit", "whale", "version=1"], "submit needs message=VALUE"),
        (["pack"], "No run to pack"),
        (["rehearse", "whale", f"folder={tmp_path}"], "python -m common.kaggle kernel first"),
    ):
        monkeypatch.setattr(sys, "argv", ["kaggle", *words])
        with pytest.raises(SystemExit):
            entry(main)
        assert message in capsys.readouterr().err
    words = ["kernel", "whale", "runs=[runs/whale/a,runs/b]", "unknown.by=share", "hours=2"]
    main([*words, f"out={tmp_path}"])
    source = "".join(json.loads((tmp_path / "submit.ipynb").read_text())["cells"][2]["source"])
    assert 'runs=["a", "b"]' in source
    assert 'arguments=["unknown.by=share"]' in source
    assert "seconds=7200.0" in source
    main(["pack", "--help"])
    assert "limit: the size" in capsys.readouterr().out


def test_the_ledger_grows_by_lines_that_read_back(tmp_path):
    path = tmp_path / "ledger.csv"
    options = {"competition": "whale", "run": "runs/whale/a", "ledger": str(path)}
    ledger.record(**options, cv=0.1 + 0.2, note='good, "they"\nsay', date="2026-11-25")
    ledger.record(**options, public=0.9, private=0.8)
    with open(path, newline="") as file:
        first, second = csv.DictReader(file)
    assert tuple(first) == ledger.COLUMNS
    assert float(first["cv"]) == 0.1 + 0.2
    assert (first["date"], first["note"], first["public"]) == ("2026-11-25", 'good, "they" say', "")
    assert (second["public"], second["private"]) == ("0.9", "0.8")
    with pytest.raises(ValueError, match="public=nan: a finite number"):
        ledger.record(**options, public=float("nan"))
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="does not begin with date,competition"):
        ledger.record(**options)
    header = (SUBMISSIONS / "ledger.csv").read_text().splitlines()[0]
    assert header == ",".join(ledger.COLUMNS)


def test_the_client_is_called_as_it_wants(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(client, "SUBMISSIONS", tmp_path)
    kernel("whale", runs=["tiny"], out=str(tmp_path / "whale"))
    with pytest.raises(ValueError, match="write it again with owner="):
        client.status("whale")
    kernel("whale", runs=["tiny"], owner="me", out=str(tmp_path / "whale"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="pip install kaggle"):
        client.status("whale")
    tool, said = tmp_path / "kaggle", tmp_path / "said.txt"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    tool.chmod(0o755)
    with pytest.raises(ValueError, match="give both the same owner="):
        client.push("whale", kit=str(packed[0]))
    with pytest.raises(FileNotFoundError, match="No kit in"):
        client.push("whale", kit=str(tmp_path))
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "dataset-metadata.json").write_text('{"id": "me/whale-kit"}')
    client.push("whale", kit=str(kit), first=True)
    client.push("whale", kit=str(kit), message="more")
    client.push("whale", kit="none")
    client.output("whale", out=str(tmp_path / "got"))
    client.submit("whale", version=3, message="late")
    push = f"kernels push -p {tmp_path / 'whale'}"
    data = "humpback-whale-identification"
    assert said.read_text().splitlines() == [
        f"datasets create -p {kit} -r zip",
        push,
        f"datasets version -m more -p {kit} -r zip",
        push,
        push,
        f"kernels output me/whale-submission -p {tmp_path / 'got'}",
        f"competitions submit {data} -k me/whale-submission -v 3 -f submission.csv -m late",
    ]
    tool.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ValueError, match="ended with 3"):
        client.status("whale")
