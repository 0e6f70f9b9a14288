"""The competitions' scripts in processes of their own that start at once.

Importing PyTorch and its company takes longer than most of what a test asks of a script. So one
process imports this module and what it imports, and forks for each call (the fork server of
multiprocessing). A script sees what `python competitions/NAME/SCRIPT.py` shows it: arguments,
environment, working folder, streams and exit code of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

# What scripts import when they use it, and the scripts' own modules: here, once.
import lightgbm  # noqa: F401
import matplotlib.figure  # noqa: F401
import sklearn.metrics  # noqa: F401
import timm  # noqa: F401
import torch

import competitions.landmarks.ensemble
import competitions.shopee.ensemble
import competitions.whale.ensemble  # noqa: F401
from common.paths import REPOSITORY

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
SECONDS = 600


@dataclass
class Done:
    """How a script ended and what it said."""

    returncode: int | None
    stdout: str
    stderr: str


def path_of(script: str, folder: str) -> Path:
    """The file of a competition's script."""
    return REPOSITORY / "competitions" / folder / f"{script}.py"


def start(
    script: str,
    *arguments: object,
    folder: str,
    streams: Path,
    before: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """A script that has begun.

    Args:
        script: `train`, `infer` or `ensemble`.
        arguments: its words.
        folder: of the competition.
        streams: the folder where the files `1` and `2` hold what it says.
        before: called in the new process first; a function of a module.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    words = [str(path_of(script, folder)), *map(str, arguments)]
    process = server.Process(target=_play, args=(words, streams, before, ENVIRONMENT))
    for name in ("1", "2"):
        (streams / name).touch()
    with contextlib.chdir(REPOSITORY):  # from where the server, which starts here, finds this file
        process.start()
    return process


def play(
    script: str, *arguments: object, folder: str, before: Callable[[], None] | None = None
) -> Done:
    """Run a script to its end; the arguments are those of `start`."""
    with tempfile.TemporaryDirectory() as name:
        streams = Path(name)
        process = start(script, *arguments, folder=folder, streams=streams, before=before)
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        said = [(streams / one).read_text(errors="replace") for one in ("1", "2")]
    return Done(process.exitcode, *said)


def succeeds(script: str, *arguments: object, folder: str) -> str:
    """What a script prints; its exit code is 0."""
    done = play(script, *arguments, folder=folder)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


def fails(
    script: str, *arguments: object, folder: str, before: Callable[[], None] | None = None
) -> str:
    """The one line of error of a script whose exit code is 1."""
    done = play(script, *arguments, folder=folder, before=before)
    assert done.returncode == 1, done.stdout[-1500:] + done.stderr[-3000:]
    assert done.stderr.startswith("error: "), done.stderr[-3000:]
    assert done.stderr.count("\n") == 1
    return done.stderr


def _play(
    words: list[str],
    streams: Path,
    before: Callable[[], None] | None,
    environment: dict[str, str],
) -> None:
    for number in (1, 2):
        file = os.open(streams / str(number), os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    torch.set_num_threads(1)  # the variable was read when torch was imported
    warnings.resetwarnings()
    warnings.simplefilter("ignore")  # as PYTHONWARNINGS says
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))  # as Python itself does
    if before:
        before()
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing would leave them out
