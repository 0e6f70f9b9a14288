"""From embeddings to matches: pools of listings, the steps on them, what a fold is asked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from common.blend import blend_embeddings
from common.config import ConfigError
from common.data import augment
from common.engine.extract import ViewConfig, embed_table
from common.notes import Notes
from common.pipeline.vectors import Vectors
from common.rerank import grouped, matches, pair_graph, pair_trees, rules, sources
from common.rerank.graph import size_shares
from common.rerank.listings import Listings
from common.rerank.sources import Sources
from common.rerank.truth import Truth
from common.retrieval.search import search
from common.retrieval.sparse import SparseEmbeddings
from common.retrieval.tfidf import Semantic, Tfidf
from common.steps import Step, bind, catalog, chain
from common.types import Embeddings, Neighbors, Table

from .data import Shopee, titles_of
from .held import Held

STEPS = catalog(sources, matches, rules, pair_trees, pair_graph, grouped)
# For Python: they do not map an entry of the state.
for _call in ("sources", "needed", "pair_table", "asked_pairs", "pair_graph"):
    del STEPS[_call]
# What a chain starts from; every chain must leave `neighbors`.
STATE = {
    "sources",
    "listings",
    "truth",
    "memory",
    "run",
    "queries",
    "gallery",
    "sizes",
    "notes",
    "device",
}
# What a step finds on held-out listings unless this argument says it.
FOUND = {
    "inb_stage": "thresholds",
    "union": "thresholds",
    "vote": "thresholds",
    "mutual_ranks": "gain",
    "rank_gap": "gain",
    "lightgbm_pairs": "model",
    "graph_attention": "model",
}
KINDS = {"word": "words", "char": "pieces"}  # of TF-IDF: the names of their sources
SOURCE = {"image": "image", "text": "text", "both": "joint"}  # of a run, by model.uses
Memory = dict[Any, Any]


@dataclass
class Pool:
    """Listings that are matched among themselves.

    Attributes:
        table: their rows.
        sources: their embeddings.
        listings: titles, hashes and files.
        sizes: share of the train listings whose group has 1, 2, 3, ... members.
        truth: who belongs together, for held-out listings and their distractors.
    """

    table: Table
    sources: Sources
    listings: Listings
    sizes: list[float]
    truth: Truth | None = None


class Titles:
    """TF-IDF of all titles, train and test, as sources of each table.

    Args:
        data: the tables.
        kinds: `word`, `char`.
        dim: of the short rows.
        seed: of the decomposition.
    """

    def __init__(self, data: Shopee, kinds: Sequence[str], dim: int, seed: int) -> None:
        tables = {"train": data.train, "test": data.test}
        known = {name: Listings(titles_of(table)).cleaned for name, table in tables.items()}
        every = [text for texts in known.values() for text in texts]
        self.sparse: dict[str, dict[str, SparseEmbeddings]] = {name: {} for name in tables}
        self.parts: dict[str, dict[str, Embeddings]] = {name: {} for name in tables}
        for kind in kinds:
            tfidf = Tfidf(kind).fit(every)
            rows = tfidf.transform(np.arange(len(every)).astype(np.str_), every)
            short = Semantic(dim, seed).fit(rows)
            for name, table in tables.items():
                found = tfidf.transform(table.ids, known[name])
                self.sparse[name][KINDS[kind]] = found
                self.parts[name][KINDS[kind]] = short.transform(found)

    def of(self, table: str, ids: np.ndarray) -> Sources:
        """The sources of some rows of `train` or `test`."""
        return Sources(
            {name: part.select(ids) for name, part in self.parts[table].items()},
            {name: rows.select(ids) for name, rows in self.sparse[table].items()},
        )


def test_pool(data: Shopee, runs: Mapping[str, Vectors], titles: Titles) -> Pool:
    """All listings of the test."""
    return _pool(data, {"test": np.arange(len(data.test))}, runs, titles)


def held_pool(data: Shopee, held: Held, runs: Mapping[str, Vectors], titles: Titles) -> Pool:
    """The held-out listings and their distractors, with what is known of them."""
    pool = _pool(data, {"train": held.gallery, "test": held.strangers}, runs, titles)
    pool.truth = truth_of(data, held)
    return pool


def truth_of(data: Shopee, held: Held) -> Truth:
    """The groups of the held-out pool; where strangers are too few, a false match counts for more.

    A listing of the test is a group of its own: of none that is asked for.
    """
    alone = len(data.classes) + np.arange(len(held.strangers))
    labels = np.concatenate([data.train.labels[held.gallery], alone])
    asked = np.arange(held.size) < len(held.queries)
    crowd = max(1.0, (data.hidden - 1) / max(held.size - 1, 1)) if held.wanted else 1.0
    return Truth(labels, asked, crowd)


def _pool(
    data: Shopee, rows: Mapping[str, np.ndarray], runs: Mapping[str, Vectors], titles: Titles
) -> Pool:
    """Rows of the tables, one table's after the other's."""
    tables, parts = [], []
    for name, some in rows.items():
        table = getattr(data, name).take(some)
        own = {key: getattr(run, name).select(table.ids) for key, run in runs.items()}
        short = titles.of(name, table.ids)
        if clash := sorted(own.keys() & short.parts.keys()):
            raise ConfigError(f"A run and the titles are both called {clash[0]!r}.")
        tables.append(table)
        parts.append(Sources({**own, **short.parts}, short.sparse))
    table = Table.concatenate(tables)
    hashes = np.concatenate([data.hashes(name)[some] for name, some in rows.items()])
    listings = Listings(titles_of(table), hashes, table.paths)
    return Pool(table, Sources.concatenate(parts), listings, size_shares(data.train.labels))


def by_kind(
    names: Sequence[str], runs: Sequence[Vectors], weights: Sequence[float]
) -> dict[str, Vectors]:
    """Runs of one kind joined: `image`, `text`, `joint` with the vectors of all such runs."""
    found = {}
    for name in dict.fromkeys(names):
        mine = [place for place, other in enumerate(names) if other == name]
        shares = [weights[place] for place in mine]
        if not sum(shares) > 0:
            continue
        found[name] = Vectors(
            blend_embeddings([runs[place].train for place in mine], shares),
            blend_embeddings([runs[place].test for place in mine], shares),
        )
    return found


def check_matching(steps: Sequence[Step], held: bool) -> None:
    """Raise ConfigError for a step that is unknown, badly set, or in the wrong place.

    With nothing `held` out also for one that is not told what it would find there.
    """
    chain(steps, STEPS, STATE, "matching")
    for place, step in enumerate(steps):
        argument = FOUND.get(str(step.get("name")))
        if argument and not held and step.get(argument) in (None, "", [], {}):
            raise ConfigError(
                f"matching[{place}]: {step['name']} finds its {argument} on held-out listings, and "
                f"data.fold=-1 holds none: set {argument}, or take other steps, as "
                "'matching=[{name: concat}, {name: mean}]'."
            )
        if step.get("name") == "vote":
            for branch in step.get("of") or ():
                if not isinstance(branch, list | tuple):
                    raise ConfigError(
                        f"matching[{place}]: vote.of is a list of lists of steps, got {branch!r}."
                    )
                check_matching(list(branch), held)


def match(
    steps: Sequence[Step], pool: Pool, memory: Memory, notes: Notes, device: torch.device
) -> Neighbors:
    """Scored candidates of each listing, best first, without itself.

    With a pool of known truth steps learn and `memory` keeps it; then the same memory with the
    test's pool.
    """

    def run(chosen: Any, own: Memory) -> Neighbors:
        spent = dict(notes.seconds)  # what a step lets run counts as that step's time
        inner = replace(pool, sources=state["sources"])
        found = match(chosen, inner, own, notes, device)
        notes.seconds = spent
        return found

    state: dict[str, Any] = {
        "sources": pool.sources,
        "listings": pool.listings,
        "truth": pool.truth,
        "sizes": pool.sizes,
        "run": run,
        "queries": pool.sources.first,
        "gallery": pool.sources.first,
        "notes": notes,
        "device": device,
    }
    for place, step in enumerate(steps):
        start = time.perf_counter()
        found = bind(step, STEPS, f"matching[{place}]")(state, memory=memory.setdefault(place, {}))
        notes.took(str(step["name"]), time.perf_counter() - start)
        state["neighbors" if isinstance(found, Neighbors) else "sources"] = found
    neighbors: Neighbors = state["neighbors"]
    own = torch.arange(len(neighbors))[:, None]
    alone = neighbors.index == own  # no step lists a listing itself, but one of the user's may
    return Neighbors(
        neighbors.index.masked_fill(alone, -1), neighbors.score.masked_fill(alone, -torch.inf)
    ).sorted()


def quick_scores(
    model: nn.Module, data: Shopee, held: Held, size: int, view: ViewConfig, device: torch.device
) -> dict[str, float]:
    """F1 at its best threshold, and recall of the nearest, of held-out listings in one view.

    Among at most twice as many of train: an epoch's figure, compared with the epoch's before.
    """
    settings = ViewConfig(size=size, fit=view.fit, batch_size=view.batch_size, workers=view.workers)
    transform = augment.build("none", size, False, fit=view.fit)
    others = np.random.default_rng(0).permutation(np.flatnonzero(held.train))
    rows = np.concatenate([held.queries, others[: 2 * len(held.queries)]])
    vectors = embed_table(model, held.table.take(rows), settings, transform, device)
    near = search(vectors, vectors, 50, exclude_self=True)
    truth = Truth(held.table.labels[rows], np.arange(len(rows)) < len(held.queries))
    score = truth.best(near)[1]
    first = truth.hits(near.index)[:, 0]
    recall = float(first[truth.totals > 1].mean()) if (truth.totals > 1).any() else 0.0
    return {"valid/f1": score, "valid/recall1": recall, "valid/score": score}
