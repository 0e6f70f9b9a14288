"""Embed with a trained run, match and decide; writes a checked submission and a report.

python competitions/shopee/infer.py run=runs/shopee/baseline [key=value ...]
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
from common.pipeline.runs import submission_path
from common.pipeline.vectors import embed
from common.rerank.transfer import check_rule
from common.types import Neighbors

from .config import COMMANDS, criterion_of
from .data import read
from .held import Held
from .matching import SOURCE, Memory, Pool, Titles, held_pool, match, test_pool
from .results import finish, start_run


def main(arguments: list[str]) -> dict[str, float]:
    """Scores of the run; submission and report are in its folder."""
    config = COMMANDS.infer(__doc__ or "", arguments)
    folder = Path(str(config.run))
    clock = Clock()
    with clock("read the tables"):
        data = read(config.data)
    held = Held.of(data, config.data)
    check_rule(config.threshold, held is not None)
    path = submission_path(config.out, folder)
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
        own = {SOURCE[config.model.uses]: vectors}
        titles = Titles(data, config.tfidf.kinds, config.tfidf.dim, config.seed)
        pools = (
            None if held is None else held_pool(data, held, own, titles),
            test_pool(data, own, titles),
        )

        def find(pool: Pool, memory: Memory, notes: Notes) -> Neighbors:
            return match(config.matching, pool, memory, notes, device)

        return finish(config, path, data, pools, find, folder, run, clock)


if __name__ == "__main__":
    entry(main)
