"""Notebooks run from their folder and from the root; committed whole, small and portable."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat reads notebooks")
pytest.importorskip("nbclient", reason="nbclient runs notebooks")

from tests.notebooks import execute, inject, joined, normalised, plain  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# What makes a notebook quick; RUNS is a folder of the test. Scores mean nothing then.
SMALL = {
    "quickstart": {"EPOCHS": 1, "SIZE": 32},
    "landmarks": {"EPOCHS": 1, "SIZE": 32, "VIEW": 32, "LOCAL": 1},
    "whale": {"EPOCHS": 1, "SIZE": 32, "VIEW": 32, "LOCAL": 1},
    "shopee": {"EPOCHS": 1, "SIZE": 32, "TEXT_EPOCHS": 1},
    "comparing": {"EPOCHS": 1, "SIZE": 32},
    "own_data": {"EPOCHS": 1, "SIZE": 32},
}


def code(path):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def kinds(notebook, without=()):
    return [
        [output.output_type for output in joined(cell.get("outputs", []))]
        for cell in notebook.cells
        if cell.id not in without
    ]


def made(*cells):
    return nbformat.v4.new_notebook(cells=list(cells))


def test_there_are_some_and_the_readme_lists_them():
    readme = (ROOT / "notebooks" / "README.md").read_text()
    assert NOTEBOOKS
    assert set(re.findall(r"\[(\S+\.ipynb)\]\(\1\)", readme)) == {path.name for path in NOTEBOOKS}


@pytest.mark.slow
@each
def test_runs(path, tmp_path):
    committed = nbformat.read(path, as_version=4)
    small = SMALL.get(path.stem)
    again = execute(path, small and {**small, "RUNS": str(tmp_path)})
    injected = {cell.id for cell in again.cells} - {cell.id for cell in committed.cells}
    assert len(injected) == bool(small)
    wanted = kinds(committed)
    assert kinds(again, injected) == wanted, "the committed outputs are of another version"


@each
def test_starts_from_the_root_too(path):
    first = "".join(code(path)[0]["source"])
    command = [sys.executable, "-c", first]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@each
def test_is_committed_with_all_outputs(path):
    cells = code(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]


@each
def test_is_small_and_of_no_machine(path):
    text = path.read_text()
    assert len(text) < 1_000_000
    assert not re.findall(r"(?<![\w.])/(?:home|tmp|root|work|Users|opt|mnt)\b", text)
    assert "arning" not in "".join(
        "".join(output.get("text", ())) for cell in code(path) for output in cell["outputs"]
    )


@each
def test_pictures_of_a_sample_come_with_its_licence(path):
    text = path.read_text()
    if "image/jpeg" in text:
        named = re.findall(r"competitions/(\w+)/sample/LICENSE", text)
        assert named
        assert all(
            (ROOT / "competitions" / name / "sample" / "LICENSE").is_file() for name in named
        )


@each
def test_is_in_the_form_that_the_tool_writes(path):
    text = path.read_text(encoding="utf-8")
    notebook = normalised(nbformat.reads(text, as_version=4))
    assert nbformat.writes(notebook, version=4) + "\n" == text, "run: make notebooks"


def test_execution_takes_parameters_cuts_the_network_and_leaves_no_trace(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("SIZE = 3\nRUNS = 'runs'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import socket, sys\nprint(SIZE, RUNS)\nsys.stdout.flush()\nprint('images/s 1')"
        ),
        nbformat.v4.new_code_cell(
            "try:\n    socket.create_connection(('192.0.2.1', 9), 3)\nexcept OSError as e:\n"
            "    print(e.strerror)"
        ),
    ]
    path = tmp_path / "one.ipynb"
    nbformat.write(made(*cells), path)
    first = normalised(execute(path, {"SIZE": 5}))
    assert first.cells[2].outputs[0].text == "5 runs\nimages/s 1\n"
    assert first.cells[3].outputs[0].text == "Network is unreachable\n"
    assert nbformat.writes(first) == nbformat.writes(normalised(execute(path, {"SIZE": 5})))


def test_parameters_that_a_notebook_lacks_are_errors():
    cell = nbformat.v4.new_code_cell("EPOCHS = 3", metadata={"tags": ["parameters"]})
    with pytest.raises(ValueError, match="no parameter 'SIZE'; it has EPOCHS"):
        inject(made(cell), {"SIZE": 2}, "a.ipynb")
    with pytest.raises(ValueError, match=r"a.ipynb has no cell with the tag 'parameters'"):
        inject(made(nbformat.v4.new_code_cell("EPOCHS = 3")), {"EPOCHS": 2}, "a.ipynb")


def test_streams_are_joined_and_other_outputs_kept_apart():
    def said(text, name="stdout"):
        return nbformat.v4.new_output("stream", text=text, name=name)

    shown = nbformat.v4.new_output("display_data", {"text/plain": "x"})
    found = joined([said("a"), said("b"), shown, said("c"), said("d", "stderr"), said("e")])
    assert [output.get("text") for output in found] == ["ab", None, "c", "d", "e"]


def test_texts_lose_speed_and_place():
    line = (
        f"data: {ROOT}/competitions/whale/sample (bundled sample)\nepoch 1  loss 2.1  images/s 33"
    )
    assert plain(line) == "data: competitions/whale/sample (bundled sample)\nepoch 1  loss 2.1"
