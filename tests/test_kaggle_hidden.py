"""Hidden test sets as a rerun may bring them, and what a rehearsal takes away."""

import csv
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from common.kaggle import absent, hidden
from common.kaggle.rehearse import can_unshare
from common.paths import REPOSITORY
from common.submission import check

SAMPLES = {n: REPOSITORY / "competitions" / n / "sample" for n in ("landmarks", "shopee", "whale")}


@pytest.mark.parametrize(
    "form", ["whale", "landmarks-recognition", "landmarks-retrieval", "shopee"]
)
def test_hidden_test_sets_are_new_complete_and_odd(form, tmp_path):
    source, count = SAMPLES[form.split("-")[0]], {}
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
        hidden.swap("landmarks-recognition", SAMPLES["whale"], tmp_path / "a", "odd")
    with pytest.raises(ValueError, match="No layout of the test set of 'cats'"):
        hidden.swap("cats", SAMPLES["whale"], tmp_path / "a", "odd")


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
