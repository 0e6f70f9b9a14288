"""Notebooks run from their folder and from the root; committed whole, small and portable."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def test_there_are_some_and_the_readme_lists_them():
    readme = (ROOT / "notebooks" / "README.md").read_text()
    assert NOTEBOOKS
    assert set(re.findall(r"\[(\S+\.ipynb)\]\(\1\)", readme)) == {path.name for path in NOTEBOOKS}


@pytest.mark.slow
@each
def test_runs(path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks")
    nbformat = pytest.importorskip("nbformat", reason="nbformat reads notebooks")
    notebook = nbformat.read(path, as_version=4)
    kinds = [[output.output_type for output in cell.get("outputs", [])] for cell in notebook.cells]
    options = {"resources": {"metadata": {"path": str(path.parent)}}, "timeout": 300}
    nbclient.NotebookClient(notebook, kernel_name="python3", **options).execute()
    again = [[output.output_type for output in cell.get("outputs", [])] for cell in notebook.cells]
    assert again == kinds, "the committed outputs are of another version"


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
    assert not re.findall(r"(?<![\w.])/(?:home|tmp|root|work|Users|opt|mnt)/[\w.-]+", text)
