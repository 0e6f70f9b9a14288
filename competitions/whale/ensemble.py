"""Join several runs into one submission; weights are searched on held-out images, never on test.

python competitions/whale/ensemble.py 'runs=[runs/whale/a,runs/whale/b]' [key=value ...]
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

from common.engine.settings import this_device
from common.entry import entry, say
from common.notes import Notes
from common.pipeline.join import Join
from common.pipeline.ranking import Question
from common.pipeline.vectors import Vectors, load
from common.steps import Step
from common.types import Neighbors

from .config import COMMANDS
from .data import read
from .postprocess import Postprocess
from .ranking import Held, apply, check_unknown, curve_of, held_question, test_question
from .results import finish, output, start_run


def main(arguments: list[str]) -> dict[str, float]:
    """Scores of the ensemble; submission and report are in its folder."""
    config, members = COMMANDS.ensemble(__doc__ or "", arguments)
    out = Path(str(config.out))
    folder = out.with_suffix("") if out.suffix == ".csv" else out
    data = read(config.data)
    held = Held.of(data, config)
    check_unknown(held, config.unknown)
    after = Postprocess.of(config.postprocess, data)
    path = output(config, folder)
    say(data.describe())
    tables = {"train": data.train, "test": data.test}
    vectors = [load(Path(run), tables, data.classes) for run in config.runs]
    cache, device = Path(config.runs[0]).parent / "cache", this_device()

    def answer(
        own: Vectors, steps: Sequence[Step], validation: bool, notes: Notes | None
    ) -> tuple[Question, Neighbors]:
        inner = held if validation else None
        asked = held_question(own, inner) if inner else test_question(own, data)
        found = apply(list(steps), asked, own, data, inner, cache=cache, device=device, notes=notes)
        return asked, found

    join = Join(
        config.ensemble,
        vectors,
        config.ranking,
        [member.ranking for member in members],
        answer,
        None if held is None else lambda asked, found: curve_of(found, asked, config.unknown).value,
        seed=config.seed,
    )
    weights = join.weights(config.runs)

    def find(validation: bool, notes: Notes) -> tuple[Question, Neighbors]:
        return join.answer(weights, validation, notes=notes)

    run = start_run(config, folder, data, "ensemble")
    return finish(config, path, data, held, after, find, folder, run, joined=config.runs)


if __name__ == "__main__":
    entry(main)
