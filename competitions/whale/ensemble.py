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

from common.clock import Clock
from common.engine.settings import this_device
from common.entry import entry, say
from common.notes import Notes
from common.pipeline.join import Join
from common.pipeline.ranking import Question
from common.pipeline.runs import submission_path
from common.pipeline.stacked import Stacked
from common.pipeline.vectors import Vectors, load
from common.steps import Step
from common.types import Neighbors

from .config import COMMANDS, Config, check
from .data import Whale, read
from .lists import Lists, listed, read_lists
from .postprocess import Postprocess
from .ranking import Held, apply, check_unknown, curve_of, held_question, test_question
from .results import finish, start_run


def main(arguments: list[str]) -> dict[str, float]:
    """Scores of the ensemble; submission and report are in its folder."""
    config, members = COMMANDS.ensemble(__doc__ or "", arguments)
    check(config)  # again, with the members' data
    out = Path(str(config.out))
    folder = out.with_suffix("") if out.suffix == ".csv" else out
    clock = Clock()
    with clock("read the tables"):
        data = read(config.data)
    files = {
        path: read_lists(path, data, scores=config.ensemble.by == "scores")
        for path in config.ensemble.lists
    }
    held = covered(Held.of(data, config), files)
    check_unknown(held, config.unknown)
    after = Postprocess.of(config.postprocess, data)
    path = submission_path(config.out, folder)
    say(data.describe())
    with clock("read the embeddings"):
        join = joined(config, members, data, held, files)
    with clock("search the weights"):
        weights = join.weights([*config.runs, *files])

    def find(validation: bool, notes: Notes) -> tuple[Question, Neighbors]:
        return join.answer(weights, validation, notes=notes)

    run = start_run(config, folder, data, "ensemble")
    return finish(config, path, data, held, after, find, folder, run, clock, joined=config.runs)


def covered(held: Held | None, files: dict[str, Lists]) -> Held | None:
    """What is held out, unless a list lacks some of it: then nothing can be fitted or scored."""
    if held is None:
        return None
    ids = held.table.ids[held.asked.queries].tolist()
    for path, found in files.items():
        missing = sum(name not in found for name in ids)
        if missing:
            say(f"{path} lacks {missing} of {len(ids)} held-out images: none are used")
            return None
    return held


def joined(
    config: Config,
    members: Sequence[Config],
    data: Whale,
    held: Held | None,
    files: dict[str, Lists],
) -> Join:
    """The runs and lists as one."""
    cache, device = Path(config.runs[0]).parent / "cache", this_device()
    tables = {"train": data.train, "test": data.test}
    vectors = [load(Path(run), tables, data.classes) for run in config.runs]
    settings = config.ensemble

    def answer(
        own: Vectors, steps: Sequence[Step], validation: bool, notes: Notes | None
    ) -> tuple[Question, Neighbors]:
        inner = held if validation else None
        asked = held_question(own, inner) if inner else test_question(own, data, held)
        found = apply(list(steps), asked, own, data, inner, cache=cache, device=device, notes=notes)
        return asked, found

    def lists(validation: bool) -> list[Neighbors]:
        ids = data.test.ids
        if validation and held is not None:
            ids = held.table.ids[held.asked.queries]
        return [listed(found, ids, path) for path, found in files.items()]

    stacked = None
    if settings.by == "stacked":
        names = [Path(run).name for run in config.runs]
        stacked = Stacked(settings.stack, names, top=settings.top, seed=config.seed)
    return Join(
        settings,
        vectors,
        config.ranking,
        [member.ranking for member in members],
        answer,
        None if held is None else lambda asked, found: curve_of(found, asked, config.unknown).value,
        seed=config.seed,
        top=settings.top,
        missing=settings.missing,
        lists=lists,
        stacked=stacked,
    )


if __name__ == "__main__":
    entry(main)
