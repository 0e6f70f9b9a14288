"""Join several runs into one submission; weights are searched on held-out images, never on test.

python competitions/landmarks/ensemble.py 'runs=[runs/landmarks/a,runs/landmarks/b]' [key=value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: the folder's own name, so that a copied folder finds itself
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here.parents[1]))
    __package__ = f"competitions.{here.name}"
    __import__(__package__)

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from common.clock import Clock
from common.engine.settings import this_device
from common.entry import entry, say
from common.notes import Notes
from common.pipeline.join import Join
from common.pipeline.ranking import Question
from common.pipeline.vectors import Vectors, load
from common.steps import Step
from common.types import Neighbors

from .config import COMMANDS, Config
from .data import Landmarks, read
from .ranking import Held, apply, check_penalties, held_question, score, test_question
from .results import finish, outputs, start_run


def main(arguments: list[str]) -> dict[str, float]:
    """Scores of the ensemble; submissions and report are in its folder."""
    config, members = COMMANDS.ensemble(__doc__ or "", arguments)
    out = Path(str(config.out))
    folder = out.with_suffix("") if out.suffix == ".csv" else out
    clock = Clock()
    with clock("read the tables"):
        data = read(config.data)
    held = Held.of(data, config)
    paths = outputs(config, data, folder)
    check_penalties(config, data)
    say(data.describe())
    with clock("read the embeddings"):
        vectors = [load(Path(run), data.tables(), data.classes) for run in config.runs]
    joins = {task: join(task, config, members, vectors, data, held) for task in paths}
    with clock("search the weights"):
        weights = {task: joins[task].weights(config.runs, task) for task in paths}

    def answer(task: str, validation: bool, notes: Notes) -> tuple[Question, Neighbors]:
        return joins[task].answer(weights[task], validation, notes=notes)

    run = start_run(config, folder, data, "ensemble")
    return finish(paths, data, held, answer, folder, run, clock, joined=config.runs)


def join(
    task: str,
    config: Config,
    members: Sequence[Config],
    vectors: Sequence[Vectors],
    data: Landmarks,
    held: Held | None,
) -> Join:
    """The runs' joint answers to one task."""
    cache, device = Path(config.runs[0]).parent / "cache", this_device()

    def answer(
        own: Vectors, steps: Sequence[Step], validation: bool, notes: Notes | None
    ) -> tuple[Question, Neighbors]:
        inner = held if validation else None
        asked = held_question(task, own, inner) if inner else test_question(task, own, data)
        found = apply(list(steps), asked, own, data, inner, cache=cache, device=device, notes=notes)
        return asked, found

    return Join(
        config.ensemble,
        vectors,
        getattr(config, task),
        [getattr(member, task) for member in members],
        answer,
        None if held is None else partial(score, task),
        narrow=None if held is None else partial(compared, held=held),
        seed=config.seed,
    )


def compared(vectors: Vectors, held: Held) -> Vectors:
    """Only what validation looks at: joining all embeddings for each weight would take hours."""
    ids = held.table.ids[held.split.queries | held.split.gallery]
    none = vectors.test.select(ids[:0])
    return replace(vectors, train=vectors.train.select(ids), test=none, index=None)


if __name__ == "__main__":
    entry(main)
