"""Notebooks run again and written as they are committed: outputs, but nothing of when and where.

    python -m tests.notebooks [NAME ...]       # notebooks/NAME.ipynb, all of them without a name

A notebook runs in its folder, its kernel without network where the machine allows that. What stays
is deterministic as far as the cells are: no times, no ids of executions, no speeds, no paths of
this machine, streams in one piece.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

from common.paths import REPOSITORY, write_text

FOLDER = REPOSITORY / "notebooks"
MINUTES = 60
CUT = ["unshare", "-rn"]
# What a run says of its speed differs each time.
SPEED = re.compile(r" +images/s \d+")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path, parameters: Mapping[str, Any] | None = None) -> Any:
    """The notebook after all its cells have run.

    Args:
        path: of the notebook, in whose folder it runs.
        parameters: set behind its cell with the tag `parameters`.

    Raises:
        ValueError: parameters for a notebook without that cell, or that the cell does not set.
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    if parameters:
        inject(notebook, parameters, path.name)
    kernel = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    # A busy machine takes long even to start a kernel.
    limits = {"timeout": 60 * MINUTES, "startup_timeout": 60 * MINUTES}
    place = {"metadata": {"path": str(path.parent)}}
    with tempfile.TemporaryDirectory() as sockets:
        # Sockets that are files work where the network is cut.
        manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        manager.kernel_spec.argv = [*without_network(), *kernel]
        client = NotebookClient(notebook, km=manager, resources=place, **limits)
        client.execute(cleanup_kc=True)  # a kernel of ours is not ended by itself
    return notebook


def without_network() -> list[str]:
    """What a command starts with to have no network; nothing where the machine forbids that."""
    try:
        allowed = subprocess.run([*CUT, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    return CUT if allowed else []


def inject(notebook: Any, parameters: Mapping[str, Any], name: str) -> None:
    """Put a cell that sets the parameters behind the one with the tag `parameters`."""
    tagged = [
        place
        for place, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    ]
    if not tagged:
        raise ValueError(f"{name} has no cell with the tag 'parameters'.")
    known = re.findall(r"^(\w+) = ", notebook.cells[tagged[0]].source, re.MULTILINE)
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"{name} has no parameter {unknown[0]!r}; it has {', '.join(known)}.")
    text = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(text))


def normalised(notebook: Any) -> Any:
    """The notebook as it is committed; the same object, changed."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat_minor = 5
    count = 0
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
        cell.metadata = nbformat.from_dict(
            {key: value for key, value in cell.metadata.items() if key == "tags"}
        )
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            output.pop("execution_count", None)
            if output.output_type == "execute_result":
                output.execution_count = count
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            if "text" in output:
                output.text = plain(output.text)
            for kind, data in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = plain(data)
    return notebook


def joined(outputs: Sequence[Any]) -> list[Any]:
    """The outputs, parts of one stream that follow each other in one piece."""
    found: list[Any] = []
    for output in outputs:
        before = found[-1] if found else None
        if (
            output.output_type == "stream"
            and before is not None
            and before.output_type == "stream"
            and before.name == output.name
        ):
            before.text += output.text
        else:
            found.append(output)
    return found


def plain(text: str) -> str:
    """Text without speeds and without the place of the repository."""
    return SPEED.sub("", text).replace(f"{REPOSITORY}{os.sep}", "").replace(str(REPOSITORY), ".")


def main(names: Sequence[str]) -> None:
    """Run and write the named notebooks."""
    paths = [FOLDER / f"{Path(name).stem}.ipynb" for name in names]
    for path in paths or sorted(FOLDER.glob("*.ipynb")):
        start = time.monotonic()
        shutil.rmtree(REPOSITORY / "runs" / "notebooks" / path.stem, ignore_errors=True)
        write_text(path, nbformat.writes(normalised(execute(path)), version=4) + "\n")
        minutes = (time.monotonic() - start) / 60
        print(f"{path.name}: {minutes:.1f} minutes, {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
