"""Finding data in every layout, and writing files whole or not at all."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from common.paths import atomic, find_data, write_text


def put(folder):
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("id,landmark_id\n")
    return folder


def look(tmp_path, root=None):
    return find_data(
        root,
        slugs=("comp-2021", "comp-2020"),
        marker="train.csv",
        sample=tmp_path / "sample",
        kaggle=tmp_path / "kaggle",
        local=tmp_path / "input",
    )


@pytest.mark.parametrize(
    "place",
    [
        "kaggle/competitions/comp-2021",
        "kaggle/comp-2020",
        "kaggle/datasets/owner/comp-2021",
        "kaggle/owner/comp-2021",
        "input/comp-2020",
    ],
)
def test_every_layout_is_found(tmp_path, place):
    folder = put(tmp_path / place)
    found, origin = look(tmp_path)
    assert found == folder
    assert origin == ("./input" if place.startswith("input") else "Kaggle mount")


def test_mounts_come_before_local_and_the_sample_is_last(tmp_path):
    assert look(tmp_path) == (tmp_path / "sample", "bundled sample")
    put(tmp_path / "input" / "comp-2021")
    kaggle = put(tmp_path / "kaggle" / "comp-2020")
    assert look(tmp_path)[0] == kaggle


def test_a_given_root_is_the_only_place(tmp_path):
    put(tmp_path / "input" / "comp-2021")
    with pytest.raises(FileNotFoundError, match=r"No train\.csv under data\.root="):
        look(tmp_path, tmp_path / "elsewhere")
    inner = put(tmp_path / "outer" / "inner")
    with pytest.raises(FileNotFoundError, match="did you mean data.root=") as error:
        look(tmp_path, tmp_path / "outer")
    assert str(inner) in str(error.value)
    assert look(tmp_path, inner) == (inner, "data.root")


def test_kaggle_without_the_competition_says_where_it_looked(tmp_path):
    (tmp_path / "kaggle" / "other").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="looked in: .*comp-2021.*Attach"):
        look(tmp_path)


def test_atomic_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OSError, match="Could not write") as error, atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(path) in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_whoever_writes(tmp_path):
    """A limit on the size of files stands in for the disk: the system's own error is the same."""
    script = """
import resource, sys, torch
from pathlib import Path
from common.engine.checkpoint import save_tree
from common.paths import write_text
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for write in (
    lambda: save_tree(folder / "state.safetensors", {"weight": torch.zeros(99_999)}),
    lambda: write_text(folder / "table.csv", "x" * 99_999),
):
    try:
        write()
    except OSError as error:
        print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, ("state.safetensors", "table.csv"), strict=True):
        assert line.startswith(f"Could not write {tmp_path / name}: ")
        assert line.endswith("Free space or choose another out=")
        assert "File too large" in line
    assert list(tmp_path.iterdir()) == []
