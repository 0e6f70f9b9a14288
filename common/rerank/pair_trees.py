"""Listed pairs scored by trees that learned on held-out listings which pairs are one product.

    matching:
      - {name: union, k: 50}
      - {name: lightgbm_pairs, min_leaf: 100}
      - {name: both_ways}

Origins: Shopee 2021 2nd, 3rd and 5th place. What they look at: `common.rerank.pairs` of every
source, and `common.rerank.listings`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.notes import Notes
from common.rerank.boosted import PairModel
from common.rerank.listings import Listings, listing_columns
from common.rerank.pairs import PairFeatures, pair_features
from common.rerank.sources import Memory, Sources, needed
from common.rerank.truth import Truth
from common.types import Neighbors


def lightgbm_pairs(
    neighbors: Neighbors,
    sources: Sources,
    listings: Listings,
    truth: Truth | None,
    memory: Memory,
    *,
    of: list[str] | None = None,
    around: tuple[int, ...] = (5, 15, 30),
    folds: int = 5,
    rounds: int = 200,
    rate: float = 0.1,
    leaves: int = 7,
    min_leaf: int = 100,
    seed: int = 0,
    threads: int = 0,
    model: str = "",
    notes: Notes | None = None,
    device: torch.device | None = None,
) -> Neighbors:
    """The probability of each listed pair to be one product, by LightGBM.

    It learns from the pairs that have an asked listing at an end. Those are then scored by the
    model of the fold that saw neither group, so what is fitted to them afterwards is honest; the
    test gets the mean of all models.

    Args:
        neighbors: `(N, K)` candidates; their order and scores do not matter.
        sources: of the listings, as the steps before have left them.
        listings: titles, hashes and files.
        truth: of held-out listings.
        memory: the trained model.
        of: which sources describe pairs; none: all.
        around: sizes of the neighborhoods that densities are of.
        folds: models, each trained without the groups of its part.
        rounds: trees per model.
        rate: learning rate.
        leaves: leaves per tree.
        min_leaf: fewest pairs in a leaf.
        seed: of folds and of the features' choice.
        threads: LightGBM's; 0: all cores. The trees do not depend on it.
        model: folder of a model: written after learning, read where nothing is held out.
        notes: gets importances and the figures out of fold.
        device: where the neighborhoods are searched.

    Raises:
        ConfigError: no model, and nothing held out to learn from.
        ValueError: too few pairs or groups; a model of other features.
    """
    table = pair_table(neighbors, sources, listings, sources.names(of or ()), around, device)
    if not len(table):
        return neighbors
    trees: PairModel | None = memory.get("model")
    if trees is None and truth is None and model and Path(model).is_dir():
        trees = memory["model"] = PairModel.load(model)
    if trees is not None:
        return table.table(trees.predict(table.values), neighbors).sorted()
    known = needed(truth, "lightgbm_pairs", "pairs to learn from")
    trees = PairModel(folds, rounds, rate, leaves, min_leaf, seed=seed, threads=threads)
    learned, groups, same = asked_pairs(known, table.query, table.candidate)
    try:
        trees.fit(table.values[learned], same, groups, table.names)
    except ValueError as error:
        raise ValueError(
            f"lightgbm_pairs learns from held-out listings, here from {len(learned)} pairs, and "
            f"cannot: {error} Or leave the step out of the list."
        ) from None
    memory["model"] = trees
    if notes is not None:
        notes.importances["lightgbm_pairs"] = trees.importances()
        notes.numbers |= {
            "lightgbm_pairs: AUC, out of fold": trees.auc_,
            "lightgbm_pairs: average precision, out of fold": trees.average_precision_,
            "lightgbm_pairs: pairs": float(len(learned)),
            "lightgbm_pairs: share that is right": float(same.mean()),
        }
    if model:
        trees.save(model)
    rest = np.setdiff1d(np.arange(len(table)), learned)
    values = np.empty(len(table), np.float32)
    values[learned] = trees.out_of_fold_
    values[rest] = trees.predict(table.values[rest])
    return table.table(values, neighbors).sorted()


def pair_table(
    neighbors: Neighbors,
    sources: Sources,
    listings: Listings,
    names: list[str],
    around: tuple[int, ...] = (5, 15, 30),
    device: torch.device | None = None,
) -> PairFeatures:
    """Features of every listed pair: `image.cosine`, ..., `listing.edits`, ...

    A source with exact rows (`Sources.sparse`) has their similarity as `NAME.exact` too.
    """
    parts = {}
    for name in names:
        part = sources.parts[name]
        extra = None
        if name in sources.sparse:
            exact = sources.similarity(name, neighbors.index)
            extra = {"exact": exact.masked_fill(exact == -torch.inf, torch.nan)}
        parts[name] = pair_features(
            neighbors, part, part, extra=extra, around=around, device=device
        )
    first = parts[names[0]]
    if not len(first):
        return first
    columns = listing_columns(listings, first.query, first.candidate)
    values = np.stack(list(columns.values()), 1)
    parts["listing"] = PairFeatures(
        list(columns), values, first.query, first.column, first.candidate
    )
    return PairFeatures.concatenate(parts)


def asked_pairs(
    truth: Truth, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the pairs have an asked end `(L,)`, their groups `(L, 2)`, and if they are equal.

    The first group is that of an asked end: the fold of that one scores the pair. The other end of
    a pair with a distractor was seen in training by the encoders, but never by a model that scores
    it: it is a group like others.
    """
    rows = np.flatnonzero(truth.asked[a] | truth.asked[b])
    one, other = a[rows], b[rows]
    turned = ~truth.asked[one]
    one, other = np.where(turned, other, one), np.where(turned, one, other)
    groups = np.column_stack([truth.labels[one], truth.labels[other]])
    return rows, groups, groups[:, 0] == groups[:, 1]
