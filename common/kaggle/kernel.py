"""The notebook to submit and its metadata, for runs of a kit.

python -m common.kaggle kernel whale 'runs=[runs/whale/baseline]' owner=NAME
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common.kaggle import aboard
from common.kaggle.aboard import Settings
from common.kaggle.pack import OWNER, check_name, home
from common.paths import REPOSITORY, write_text
from common.submission import FORMATS

SUBMISSIONS = REPOSITORY / "submissions"


def kernel(
    competition: str,
    *,
    runs: Sequence[str],
    arguments: Sequence[str] = (),
    owner: str = OWNER,
    data: str | None = None,
    kit: str | None = None,
    form: str | None = None,
    hours: float = 8.5,
    out: str | None = None,
) -> Path:
    """The folder with `submit.ipynb` and `kernel-metadata.json`.

    Args:
        competition: folder below competitions/.
        runs: runs of the kit, by name or path; several are joined by ensemble.py.
        arguments: key=value for infer.py and ensemble.py, as task=recognition.
        owner: Kaggle account.
        data: the competition's name on Kaggle; None: the newest that fits the task.
        kit: name of the data set (<competition>-kit), or owner/name.
        form: a name of `common.submission.FORMATS`; None: by competition and task.
        hours: time budget; keep it under the competition's own limit, often 9.
        out: folder (submissions/<competition>).
    """
    base = yaml.safe_load((home(competition) / "config.yaml").read_text(encoding="utf-8"))
    chosen = [word.partition("=")[2] for word in arguments if word.startswith("task=")]
    task = chosen[-1] if chosen else str(base.get("task", ""))
    if task == "both":
        raise ValueError(
            f"{competition} answers several tasks, a kernel one: add task=recognition or "
            "task=retrieval."
        )
    form = form or "-".join(word for word in (competition, task) if word)
    if form not in FORMATS:
        raise ValueError(f"No submission format {form!r}: add form= one of {', '.join(FORMATS)}.")
    if not runs or hours <= 0:
        raise ValueError("A kernel needs runs=[NAME,...] and hours above 0.")
    kit = kit or f"{competition}-kit"
    kit = kit if "/" in kit else f"{owner}/{kit}"
    settings = Settings(
        competition=competition,
        data=data or slug(competition, task),
        kit=kit,
        runs=[Path(run).name for run in runs],
        arguments=list(arguments),
        form=form,
        header=f"{FORMATS[form].key},{FORMATS[form].column}",
        seconds=hours * 3600,
    )
    folder = Path(out) if out else SUBMISSIONS / competition
    write_text(folder / "submit.ipynb", json.dumps(notebook(settings), indent=1) + "\n")
    described = json.dumps(metadata(settings, owner), indent=2) + "\n"
    write_text(folder / "kernel-metadata.json", described)
    return folder


def slug(competition: str, task: str) -> str:
    """The competition's newest name on Kaggle that has the task in it."""
    names = importlib.import_module(f"competitions.{competition}.data").SLUGS
    return str(next((name for name in names if task in name), names[0]))


def metadata(settings: Settings, owner: str) -> dict[str, Any]:
    """What `kaggle kernels push` reads: T4 x2, no internet, private, sources by name."""
    title = f"{settings.form.replace('-', ' ')} submission"
    check_name("title", title.replace(" ", "-"))
    return {
        "id": f"{owner}/{title.replace(' ', '-')}",
        "title": title,
        "code_file": "submit.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": "NvidiaTeslaT4",  # Kaggle's name for two of them
        "keywords": [],
        "dataset_sources": [settings.kit],
        "competition_sources": [settings.data],
        "kernel_sources": [],
        "model_sources": [],
    }


def notebook(settings: Settings) -> dict[str, Any]:
    """The notebook, version 4.5: settings, the text of `aboard`, fallback, answer."""
    values = "".join(f"        {key}={json.dumps(v)},\n" for key, v in vars(settings).items())
    module = Path(aboard.__file__).read_text(encoding="utf-8")
    title = (
        f"# {settings.form}: submission\n\nWrites a valid `submission.csv` first, then replaces it "
        f"by the checked answer of {', '.join(settings.runs)}. Made by `python -m common.kaggle "
        "kernel`; the same steps run on the public test set and in the hidden rerun."
    )
    texts = [
        ("markdown", title),
        ("code", module.rstrip()),
        ("code", f"kernel = Kernel(\n    Settings(\n{values}    )\n)\nkernel.fallback()"),
        ("code", "kernel.answer()"),
    ]
    cells = []
    for number, (kind, text) in enumerate(texts):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    about = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
