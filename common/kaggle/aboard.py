"""What a kernel does aboard Kaggle: find the data and the kit, fall back, answer, check, replace.

The text of this module is a cell of the notebook, so it needs nothing but the standard library. The
kit's own code runs only in the commands started here, after its manifest was checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TIMEOUT, MEMORY = "Notebook Timeout", "Notebook Out of Memory"
EXCEPTION, NO_FILE = "Notebook Threw Exception", "Submission CSV Not Found"
SCORING = "Submission Scoring Error"
NO_ROOM = re.compile(
    r"MemoryError|Cannot allocate memory|can't allocate memory|out of memory", re.IGNORECASE
)


class Failure(Exception):
    """Why there is no answer: `kind` in Kaggle's words, `cause` in one line."""

    def __init__(self, kind: str, cause: str) -> None:
        super().__init__(f"{kind}: {cause}")
        self.kind, self.cause = kind, cause


@dataclass
class Settings:
    """What one notebook is for."""

    competition: str  # folder below competitions/
    data: str  # the competition's name on Kaggle
    kit: str  # owner/name of the data set with code and runs
    runs: list[str]  # in the kit; several are joined by ensemble.py
    arguments: list[str]  # key=value for infer.py and ensemble.py
    form: str  # what `python -m common.submission check` calls it
    header: str  # first line of the sample submission
    seconds: float  # for everything


class Kernel:
    """One run of the notebook; the base path differs from /kaggle only in a rehearsal."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.began = settings, time.monotonic()
        self.base = Path(os.environ.get("KIT_REHEARSAL", "/kaggle"))
        seconds = float(os.environ.get("KIT_REHEARSAL_SECONDS", settings.seconds))
        self.deadline = self.began + seconds
        self.temp, self.submission = self.base / "temp", self.base / "working" / "submission.csv"
        self.record: dict[str, object] = {"answer": "sample submission"}

    def fallback(self) -> None:
        """Put a valid submission.csv in place before anything that can fail."""
        self.data = data_folder(self.base / "input", self.settings.data)
        self.sample = sample_file(self.data, self.settings.header)
        replace(self.sample, self.submission)
        self.record["fallback_seconds"] = round(time.monotonic() - self.began, 1)
        print(f"data: {self.data}\nfallback: {self.submission} is {self.sample.name}", flush=True)

    def answer(self) -> None:
        """Replace the fallback by what the runs answer, each time that there is a better file.

        Raises:
            Failure: not in a hidden rerun, where a poor score is better than none.
        """
        try:
            kit = kit_folder(self.base / "input", self.settings.kit)
            verify(kit)
            print(f"kit: {kit}, as packed", flush=True)
            self._answer(kit)
            self.record["outcome"] = "ok"
        except Exception as error:
            failure = error
            if not isinstance(failure, Failure):
                failure = Failure(EXCEPTION, f"{type(error).__name__}: {error}")
            self.record.update(outcome=failure.kind, cause=failure.cause)
            print(f"FAILED: {failure}\nsubmission.csv is the {self.record['answer']}", flush=True)
            if not os.environ.get("KAGGLE_IS_COMPETITION_RERUN"):
                raise failure from error
        finally:
            self.record["seconds"] = round(time.monotonic() - self.began, 1)
            text = json.dumps(self.record, indent=2) + "\n"
            (self.submission.parent / "kernel.json").write_text(text, encoding="utf-8")

    def _answer(self, kit: Path) -> None:
        code, names = kit / "code", self.settings.runs
        home = code / "competitions" / self.settings.competition
        processes, device = gpus()
        self.temp.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            **device,
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",  # the kit is read-only
            "PYTHONPATH": os.pathsep.join(
                [str(self.temp / "wheels"), str(code), os.environ.get("PYTHONPATH", "")]
            ).rstrip(os.pathsep),
        }
        wheels = sorted(map(str, (kit / "wheels").glob("*.whl")))
        if wheels:
            options = ["--no-index", "--no-deps", "--target", str(self.temp / "wheels")]
            command = [sys.executable, "-m", "pip", "install", "--quiet", *options, *wheels]
            self._run("pip", command, environment)
        runs = [stage(kit / "runs" / name, self.temp / "runs" / name) for name in names]
        start = [sys.executable]
        if processes > 1:
            nodes = ["--standalone", "--nproc-per-node", str(processes)]
            start += ["-m", "torch.distributed.run", *nodes]
        jobs = [(name, "infer", f"run={run}") for name, run in zip(names, runs, strict=True)]
        if len(runs) > 1:
            jobs.append(("ensemble", "ensemble", f"runs=[{','.join(map(str, runs))}]"))
        for name, script, source in jobs:
            out = self.temp / "answers" / f"{name}.csv"
            own = [source, f"out={out}", f"data.root={self.data}", "track.wandb=off"]
            first = start if script == "infer" else [sys.executable]
            command = [*first, str(home / f"{script}.py"), *own, *self.settings.arguments]
            self._run(script, command, environment)
            if not out.is_file():
                raise Failure(NO_FILE, f"{script}.py ended well and wrote no {out.name}")
            check = [sys.executable, "-m", "common.submission", "check", self.settings.form]
            self._run("check", [*check, str(out), str(self.sample)], environment)
            replace(out, self.submission)
            self.record["answer"] = f"answer of {name}"

    def _run(self, what: str, command: list[str], environment: dict[str, str]) -> None:
        left = self.deadline - time.monotonic()
        print(f"{what}, {left:.0f} s left: {' '.join(command)}", flush=True)
        code, lines = run(command, environment, self.temp, left)
        if code is None:
            raise Failure(TIMEOUT, f"{what} was not ready when the time budget ended")
        if code == 0:
            return
        if what == "check":
            raise Failure(SCORING, next(iter(lines), "the check of the file failed"))
        text = "\n".join(lines)
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL) or NO_ROOM.search(text):
            raise Failure(MEMORY, f"{what}: {cause(lines)}")
        raise Failure(EXCEPTION, f"{what}: {cause(lines)}")


def data_folder(inputs: Path, slug: str) -> Path:
    """Where the competition's data is mounted: `competitions/<slug>` or `<slug>`."""
    looked = [inputs / "competitions" / slug, inputs / slug]
    for folder in looked:
        if folder.is_dir():
            return folder
    places = ", ".join(map(str, looked))
    raise Failure(EXCEPTION, f"no data of {slug}; looked in {places}: add it to the notebook")


def kit_folder(inputs: Path, kit: str) -> Path:
    """The folder that holds the MANIFEST.json of data set `owner/name`, under any layout."""
    owner, slug = kit.split("/")
    places = [inputs / slug, inputs / "datasets" / owner / slug, inputs / owner / slug]
    for place in places:
        # An archive that was uploaded whole is unpacked into a folder of its own.
        for path in (place / "MANIFEST.json", *sorted(place.glob("*/MANIFEST.json"))):
            if path.is_file():
                return path.parent
    looked = ", ".join(map(str, places))
    raise Failure(EXCEPTION, f"no kit {kit}; looked for MANIFEST.json in {looked}")


def sample_file(data: Path, header: str) -> Path:
    """The sample submission, which is told by its header."""
    for path in sorted(data.glob("*sample_submission.csv")):
        with open(path, encoding="utf-8") as file:
            if file.readline().strip() == header:
                return path
    raise Failure(EXCEPTION, f"{data} has no *sample_submission.csv that begins with {header}")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(kit: Path) -> None:
    """Compare every file of the kit with its manifest."""
    listed = json.loads((kit / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
    for name, digest in listed.items():
        if not (kit / name).is_file():
            raise Failure(EXCEPTION, f"the kit lacks {name}: upload it again")
        if sha256(kit / name) != digest:
            raise Failure(EXCEPTION, f"{name} of the kit is not what was packed: upload it again")


def stage(run: Path, to: Path) -> Path:
    """A run folder that can be written to: links to the kit's files, and the config with paths."""
    for path in sorted(run.rglob("*")):
        if path.is_file():
            link = to / path.relative_to(run)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    text = (run / "config.yaml").read_text(encoding="utf-8").replace("$RUN", str(to))
    (to / "config.yaml").unlink()
    (to / "config.yaml").write_text(text, encoding="utf-8")
    return to


def gpus() -> tuple[int, dict[str, str]]:
    """How many GPUs can be used, and what hides the others; this process touches no CUDA."""
    question = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        text = subprocess.run(question, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0, {}
    found = [line.split(",") for line in text.splitlines() if "," in line]
    old = [name for name, capability in found if float(capability) < 7]
    if old:  # the image's torch has no kernels for them
        print(f"{old[0]} is too old for this torch: the CPU computes. Choose GPU T4 x2.")
        return 0, {"CUDA_VISIBLE_DEVICES": ""}
    return len(found), {}


def replace(source: Path, target: Path) -> None:
    """Copy a file so that a reader sees the old one or the whole new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(".new.csv")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def run(
    command: list[str], environment: dict[str, str], folder: Path, seconds: float
) -> tuple[int | None, list[str]]:
    """Exit code (None: ended by the budget) and last lines of a command; shown as they come."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: deque[str] = deque(maxlen=200)

    def read() -> None:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            print(line, end="", flush=True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        code = process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        return None, list(lines)
    finally:
        for number, grace in ((signal.SIGTERM, 10.0), (signal.SIGKILL, None)):
            if process.poll() is None:  # torchrun ends its workers when it is asked to
                os.killpg(process.pid, number)
                try:
                    process.wait(grace)
                except subprocess.TimeoutExpired:
                    continue
        reader.join(5)
    return code, list(lines)


def cause(lines: list[str]) -> str:
    """The line that says why a command failed."""

    def telling() -> Iterator[str]:
        for line in reversed(lines):
            if "ChildFailedError" not in line and re.match(r"error: |[\w.]+(Error|Exit)\b", line):
                yield line
        yield from (line for line in reversed(lines) if line.strip())

    return next(telling(), "it ended without a word")
