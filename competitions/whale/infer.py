"""Embed, compare and decide with a trained run; writes a checked submission and a report.

python competitions/whale/infer.py run=runs/whale/baseline [key=value ...]
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
from common.pipeline.runs import submission_path
from common.pipeline.vectors import embed
from common.types import Neighbors

from .config import COMMANDS, criterion_of
from .data import read
from .postprocess import Postprocess
from .ranking import Held, apply, check_unknown, held_question, test_question
from .results import finish, start_run
from .twins import joined_centers, twin_names


def main(arguments: list[str]) -> dict[str, float]:
    """Scores of the run; submission and report are in its folder."""
    config = COMMANDS.infer(__doc__ or "", arguments)
    folder = Path(str(config.run))
    clock = Clock()
    with clock("read the tables"):
        data = read(config.data)
    held = Held.of(data, config)
    check_unknown(held, config.unknown)
    after = Postprocess.of(config.postprocess, data)
    path = submission_path(config.out, folder)
    device = this_device()
    with distributed.processes():
        say(data.describe())
        vectors = embed(
            folder,
            config.model,
            config.view,
            {"train": data.train, "test": data.test},
            twin_names(data.classes) if config.twins else data.classes,
            partial(criterion_of, config),
            device,
            change=joined_centers if config.twins else None,
            clock=clock,
        )
        if distributed.rank() != 0:
            return {}
        run = start_run(config, folder, data, "infer")

        def find(validation: bool, notes: Notes) -> tuple[Question, Neighbors]:
            inner = held if validation else None
            asked = held_question(vectors, inner) if inner else test_question(vectors, data, held)
            cache = folder.parent / "cache"
            return asked, apply(
                config.ranking,
                asked,
                vectors,
                data,
                inner,
                cache=cache,
                device=device,
                notes=notes,
            )

        return finish(config, path, data, held, after, find, folder, run, clock)


if __name__ == "__main__":
    entry(main)
