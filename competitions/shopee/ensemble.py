"""Join several runs into one submission; what is fitted is fitted on held-out listings.

python competitions/shopee/ensemble.py 'runs=[runs/shopee/baseline,runs/shopee/text]'
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: the folder's own name, so that a copied folder finds itself
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here.parents[1]))
    __package__ = f"competitions.{here.name}"
    __import__(__package__)

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from common.blend import blend_scores, blend_votes
from common.clock import Clock
from common.engine.settings import this_device
from common.entry import entry, say
from common.notes import Notes
from common.pipeline.runs import submission_path
from common.pipeline.vectors import Vectors, load
from common.rerank.transfer import check_rule
from common.types import Neighbors
from common.weigh import search_weights

from .config import COMMANDS, Config, check
from .data import Shopee, read
from .held import Held
from .matching import (
    SOURCE,
    Memory,
    Pool,
    Titles,
    by_kind,
    check_matching,
    held_pool,
    match,
    test_pool,
)
from .results import finish, start_run

Pools = tuple[Pool | None, Pool]
Find = Callable[[Pool, Memory, Notes], Neighbors]


def main(arguments: list[str]) -> dict[str, float]:
    """Scores of the ensemble; submission and report are in its folder."""
    config, members = COMMANDS.ensemble(__doc__ or "", arguments)
    check(config)  # again, with the members' data
    if config.ensemble.by != "embeddings":  # each by its own steps, with this data
        for member in members:
            check_matching(member.matching, config.data.fold >= 0)
    out = Path(str(config.out))
    folder = out.with_suffix("") if out.suffix == ".csv" else out
    clock = Clock()
    with clock("read the tables"):
        data = read(config.data)
    held = Held.of(data, config.data)
    check_rule(config.threshold, held is not None)
    path = submission_path(config.out, folder)
    say(data.describe())
    names = [SOURCE[member.model.uses] for member in members]
    with clock("read the embeddings"):
        vectors = [load(Path(run), data.tables(), data.classes) for run in config.runs]
    run = start_run(config, folder, data, "ensemble")
    find: Find
    if config.ensemble.by == "embeddings":
        shares = config.ensemble.weights or [1.0] * len(vectors)
        pools = _pools(config, data, held, by_kind(names, vectors, shares))

        find = partial(_matched, config)
    else:
        # What is shown of single sources is that of all runs; each run answers with its own.
        pools = _pools(config, data, held, by_kind(names, vectors, [1.0] * len(vectors)))
        own = [
            _pools(member, data, held, {name: part})
            for member, name, part in zip(members, names, vectors, strict=True)
        ]
        find = joined(config, members, own)
    return finish(config, path, data, pools, find, folder, run, clock, joined=config.runs)


def _matched(config: Config, pool: Pool, memory: Memory, notes: Notes) -> Neighbors:
    return match(config.matching, pool, memory, notes, this_device())


def _pools(config: Config, data: Shopee, held: Held | None, runs: dict[str, Vectors]) -> Pools:
    titles = Titles(data, config.tfidf.kinds, config.tfidf.dim, config.seed)
    known = None if held is None else held_pool(data, held, runs, titles)
    return known, test_pool(data, runs, titles)


def joined(config: Config, members: Sequence[Config], own: Sequence[Pools]) -> Find:
    """The members' scored pairs as one; weights and thresholds are found on the held-out ones."""
    by = config.ensemble.by

    def blended(
        parts: Sequence[Neighbors], limits: Sequence[float], weights: Sequence[float]
    ) -> Neighbors:
        if by == "votes":
            return blend_votes(parts, limits, list(weights), refuse=False)
        wide = sum(part.index.shape[1] for part in parts)
        return blend_scores(parts, list(weights), k=wide)

    def find(pool: Pool, memory: Memory, notes: Notes) -> Neighbors:
        truth = pool.truth
        parts = []
        for place, (member, (known, test)) in enumerate(zip(members, own, strict=True)):
            mine = test if truth is None else known
            assert mine is not None
            kept = memory.setdefault(place, {})
            parts.append(match(member.matching, mine, kept, notes, this_device()))
        if truth is not None:
            memory["limits"] = [truth.best(part)[0] for part in parts]
            memory["weights"] = list(config.ensemble.weights) or _searched(
                lambda weights: truth.best(blended(parts, memory["limits"], weights))[1],
                len(parts),
                config,
            )
        # Without held-out listings: what the configs give, equal weights.
        limits = memory.get("limits") or [member.threshold.value for member in members]
        weights = memory.get("weights") or list(config.ensemble.weights) or [1.0] * len(parts)
        if truth is not None:
            shares = np.asarray(weights) / sum(weights)
            for run, share, limit in zip(config.runs, shares, limits, strict=True):
                notes.numbers[f"{Path(run).name}: weight"] = float(share)
                notes.numbers[f"{Path(run).name}: own threshold"] = limit
            told = zip(config.runs, shares, strict=True)
            say(f"weights by {by}: " + ", ".join(f"{Path(r).name} {w:.2f}" for r, w in told))
        return blended(parts, limits, weights)

    return find


def _searched(value: Callable[[Sequence[float]], float], count: int, config: Config) -> list[float]:
    if count == 1:
        return [1.0]
    found, best = search_weights(
        lambda weights: value([float(w) for w in weights]),
        count,
        steps=config.ensemble.steps,
        seed=config.seed,
    )
    say(f"the best weights give F1 {best:.4f} on held-out listings")
    return [float(weight) for weight in found]


if __name__ == "__main__":
    entry(main)
