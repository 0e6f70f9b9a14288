"""Embed, search, re-rank and decide with a trained run; writes checked submissions and a report.

python competitions/landmarks/infer.py run=runs/landmarks/baseline [key=value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: the folder's own name, so that a copied folder finds itself
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here.parents[1]))
    __package__ = f"competitions.{here.name}"
    __import__(__package__)

from functools import partial

from common.clock import Clock
from common.engine import distributed
from common.engine.settings import this_device
from common.entry import entry, say
from common.notes import Notes
from common.pipeline.ranking import Question
from common.pipeline.vectors import embed
from common.types import Neighbors

from .config import COMMANDS, criterion_of
from .data import read
from .ranking import Held, apply, check_penalties, held_question, test_question
from .results import finish, outputs, start_run


def main(arguments: list[str]) -> dict[str, float]:
    """Scores of the run; submissions and report are in its folder."""
    config = COMMANDS.infer(__doc__ or "", arguments)
    folder = Path(str(config.run))
    clock = Clock()
    with clock("read the tables"):
        data = read(config.data)
    held = Held.of(data, config)
    paths = outputs(config, data, folder)
    check_penalties(config, data)
    device = this_device()
    with distributed.processes():
        say(data.describe())
        vectors = embed(
            folder,
            config.model,
            config.view,
            data.tables(),
            data.classes,
            partial(criterion_of, config),
            device,
            clock=clock,
        )
        if distributed.rank() != 0:
            return {}
        run = start_run(config, folder, data, "infer")

        def answer(task: str, validation: bool, notes: Notes) -> tuple[Question, Neighbors]:
            inner = held if validation else None
            asked = (
                held_question(task, vectors, inner) if inner else test_question(task, vectors, data)
            )
            steps = getattr(config, task)
            cache = folder.parent / "cache"
            return asked, apply(
                steps, asked, vectors, data, inner, cache=cache, device=device, notes=notes
            )

        scores = finish(paths, data, held, answer, folder, run, clock)
    return scores


if __name__ == "__main__":
    entry(main)
