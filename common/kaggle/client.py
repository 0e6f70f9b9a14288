"""Thin calls of Kaggle's own command line client, with what the kit's files say filled in.

python -m common.kaggle push|status|output|submit COMPETITION
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from common.kaggle.kernel import SUBMISSIONS
from common.kaggle.pack import OWNER


def push(
    competition: str, *, kit: str | None = None, message: str = "", first: bool = False
) -> None:
    """Upload the kit, then the notebook, which starts it.

    Args:
        competition: folder below competitions/.
        kit: the folder from `pack` (runs/<competition>/kit); none: only the notebook.
        message: what this version of the kit is.
        first: make the data set; else add a version to it.
    """
    about = described(competition)
    if kit != "none":
        folder = Path(kit or f"runs/{competition}/kit")
        if not (folder / "dataset-metadata.json").is_file():
            raise FileNotFoundError(f"No kit in {folder}: python -m common.kaggle pack RUN...")
        mine = json.loads((folder / "dataset-metadata.json").read_text(encoding="utf-8"))["id"]
        if mine != about["dataset_sources"][0]:
            raise ValueError(
                f"The notebook reads {about['dataset_sources'][0]}, {folder} is {mine}: give both "
                "the same owner= and name."
            )
        action = ["create"] if first else ["version", "-m", message or "new version"]
        # Without -r the client leaves folders out.
        call("datasets", *action, "-p", str(folder), "-r", "zip")
    call("kernels", "push", "-p", str(SUBMISSIONS / competition))


def status(competition: str) -> None:
    """Say whether the kernel runs, and how it ended."""
    call("kernels", "status", described(competition)["id"])


def output(competition: str, *, out: str | None = None) -> None:
    """Fetch what the kernel wrote (into runs/<competition>/kernel)."""
    folder = Path(out or f"runs/{competition}/kernel")
    folder.mkdir(parents=True, exist_ok=True)
    call("kernels", "output", described(competition)["id"], "-p", str(folder))


def submit(competition: str, *, version: int, message: str) -> None:
    """Submit a version of the kernel, as `push` has numbered it."""
    about = described(competition)
    where = [about["competition_sources"][0], "-k", about["id"], "-v", str(version)]
    call("competitions", "submit", *where, "-f", "submission.csv", "-m", message)


def described(competition: str) -> dict[str, Any]:
    """The kernel's metadata.

    Raises:
        FileNotFoundError: there is no kernel yet.
        ValueError: it is nobody's.
    """
    path = SUBMISSIONS / competition / "kernel-metadata.json"
    if not path.is_file():
        raise FileNotFoundError(f"No {path}: python -m common.kaggle kernel {competition} ...")
    about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if about["id"].startswith(f"{OWNER}/"):
        raise ValueError(f"{path} is of {OWNER!r}: write it again with owner=YOUR_KAGGLE_NAME")
    return about


def call(*arguments: str) -> None:
    """Run `kaggle ARGUMENTS`.

    Raises:
        FileNotFoundError: the client is not installed.
        ValueError: it failed; its own words are above.
    """
    program = shutil.which("kaggle")
    if program is None:
        raise FileNotFoundError(
            "Kaggle's client is not installed: pip install kaggle, then put a token from "
            "kaggle.com/settings where it says."
        )
    code = subprocess.run([program, *arguments]).returncode
    if code != 0:
        raise ValueError(f"kaggle {' '.join(arguments)} ended with {code}.")
