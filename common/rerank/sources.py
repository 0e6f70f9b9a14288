"""Several embeddings of the same listings, and the steps that move or join them.

    matching:
      - {name: inb_stage, by: union}
      - {name: inb_stage}
      - {name: concat}
      - {name: union}                       # common.rerank.matches: from here on neighbors

What a step does not know, such as the threshold of a stage, it finds on the held-out listings and
keeps for the test (`memory`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import sparse

from common.blend import blend_embeddings
from common.config import ConfigError
from common.notes import Notes
from common.rerank.pairs import pair_cosine
from common.rerank.truth import Truth
from common.rerank.voting import group
from common.retrieval import expand
from common.retrieval.search import search
from common.retrieval.sparse import SparseEmbeddings, sparse_scores, sparse_search
from common.retrieval.sums import weighted_sum
from common.types import Embeddings, Neighbors

Memory = dict[Any, Any]


@dataclass
class Sources:
    """Embeddings of the same N listings by name, in one order.

    Attributes:
        parts: `(N, D)` unit rows each.
        sparse: rows that a part of the same name is a short form of: neighbors and similarities
            are theirs for as long as nothing has moved the part.
    """

    parts: dict[str, Embeddings]
    sparse: dict[str, SparseEmbeddings] = field(default_factory=dict)
    _found: dict[str, Neighbors] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.first)

    @staticmethod
    def concatenate(tables: Sequence[Sources]) -> Sources:
        """The listings of several tables, which have the same parts, one after another."""
        parts, short = {}, {}
        for name in tables[0].parts:
            some = [table.parts[name] for table in tables]
            ids = np.concatenate([one.ids for one in some])
            parts[name] = Embeddings(ids, torch.cat([one.vectors for one in some]))
        for name in tables[0].sparse:
            rows = [table.sparse[name] for table in tables]
            ids = np.concatenate([one.ids for one in rows])
            short[name] = SparseEmbeddings(ids, sparse.vstack([one.matrix for one in rows]))
        return Sources(parts, short)

    @property
    def first(self) -> Embeddings:
        """The first part."""
        return next(iter(self.parts.values()))

    def names(self, of: Sequence[str] = ()) -> list[str]:
        """These parts, or all of them.

        Raises:
            ConfigError: one that is not here.
        """
        for name in of:
            if name not in self.parts:
                raise ConfigError(f"No source {name!r}; there are {', '.join(self.parts)}.")
        return list(of) or list(self.parts)

    def near(self, name: str, k: int, device: torch.device | None = None) -> Neighbors:
        """The `k` most similar other listings of each; what was searched once is kept."""
        known = self._found.get(name)
        if known is None or known.index.shape[1] < k:
            if name in self.sparse:
                rows = self.sparse[name]
                known = sparse_search(rows, rows, k, exclude_self=True)
            else:
                part = self.parts[name]
                known = search(part, part, k, exclude_self=True, device=device)
            self._found[name] = known
        return known.top(k)

    def similarity(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """`(N, K)` float32 of each row to the rows of `index`; -inf at padding."""
        if name in self.sparse:
            rows = self.sparse[name]
            return sparse_scores(rows, rows, index)
        listed = Neighbors(index, torch.zeros(index.shape))
        return pair_cosine(listed, self.parts[name], self.parts[name]).nan_to_num(nan=-torch.inf)

    def having(self, name: str, part: Embeddings) -> Sources:
        """The same with a part added or replaced."""
        sparse = {key: rows for key, rows in self.sparse.items() if key != name}
        found = {key: near for key, near in self._found.items() if key != name}
        return Sources({**self.parts, name: part}, sparse, found)


def concat(
    sources: Sources,
    *,
    of: list[str] | None = None,
    weights: list[float] | None = None,
    into: str = "joined",
) -> Sources:
    """One more source: the others normalised, weighted and joined, so that cosines are averaged.

    Shopee 2021 1st place (normalise, then concatenate: .743 to .753).

    Args:
        sources: of the listings.
        of: which; none: all.
        weights: one for each; null: equal.
        into: name of the new one.
    """
    parts = [sources.parts[one] for one in sources.names(of or ())]
    return sources.having(into, blend_embeddings(parts, weights))


def only(sources: Sources, *, of: list[str] | None = None) -> Sources:
    """These sources alone, the others left out from here on."""
    names = sources.names(of or ())
    kept = {name: rows for name, rows in sources.sparse.items() if name in names}
    found = {name: near for name, near in sources._found.items() if name in names}
    return Sources({name: sources.parts[name] for name in names}, kept, found)


def alpha_qe(
    sources: Sources,
    *,
    of: list[str] | None = None,
    k: int = 3,
    alpha: float = 3.0,
    own_weight: float = 1.0,
    device: torch.device | None = None,
) -> Sources:
    """Each listing moved towards its `k` nearest others, weighted by similarity ^ alpha.

    `common.retrieval.expand.alpha_query_expansion` where queries are the gallery: then it is also
    database augmentation. Shopee 2021 8th place: .748 to .761.
    """
    for name in sources.names(of or ()):
        part = sources.parts[name]
        moved = expand.alpha_query_expansion(
            part, part, k=k, alpha=alpha, own_weight=own_weight, exclude_self=True, device=device
        )
        sources = sources.having(name, moved)
    return sources


def dba(
    sources: Sources,
    *,
    of: list[str] | None = None,
    k: int = 1,
    weights: str = "similarity",
    alpha: float = 1.0,
    device: torch.device | None = None,
) -> Sources:
    """Each listing moved towards its `k` nearest others; `weights` also by rank.

    `common.retrieval.expand.database_augmentation`. Shopee 2021 5th place: with the nearest match.
    """
    for name in sources.names(of or ()):
        moved = expand.database_augmentation(
            sources.parts[name], k=k, alpha=alpha, weights=weights, device=device
        )
        sources = sources.having(name, moved)
    return sources


def inb_stage(
    sources: Sources,
    truth: Truth | None,
    memory: Memory,
    *,
    of: list[str] | None = None,
    by: str = "own",
    thresholds: dict[str, float] | None = None,
    stricter: float = 0.0,
    second: float | None = 0.1,
    k: int = 50,
    own_weight: float = 1.0,
    notes: Notes | None = None,
    device: torch.device | None = None,
) -> Sources:
    """A stage of neighborhood blending: each listing becomes the sum of its matches, by similarity.

    x becomes normalize(own_weight * x + sum_j s_j x_j) over its at most `k` matches j. With `by`
    own each source has matches of its own; with union all sources move towards the matches of any
    of them, weighted by the highest similarity. Three stages, the first by union: Shopee 2021 1st
    place (.776 to .784, with tuned thresholds .793). Theirs are not published.

    Args:
        sources: of the listings.
        truth: of held-out listings, where thresholds are found.
        memory: what was found.
        of: which sources; none: all.
        by: own | union.
        thresholds: similarity of a match by source; one that is left out is where the source alone
            has its best F1 on held-out listings, plus `stricter`.
        stricter: what is added to thresholds that are found.
        second: min2: a listing without a match takes its nearest, if that is at most so much below
            the threshold; null: not.
        k: at most so many matches.
        own_weight: of the listing itself.
        notes: gets the thresholds.
        device: where to compute.

    Raises:
        ValueError: another `by`, k below 1.
        ConfigError: thresholds to be found, and nothing held out.
    """
    if by not in ("own", "union") or k < 1 or own_weight < 0:
        raise ValueError(
            f"inb_stage: by is own or union, k at least 1, own_weight at least 0; got {by!r}, {k}, "
            f"{own_weight}."
        )
    names = sources.names(of or ())
    near = {name: sources.near(name, k, device) for name in names}
    limits = memory.setdefault("thresholds", dict(thresholds or {}))
    for name in names:
        if name not in limits:
            limits[name] = needed(truth, "inb_stage", name).best(near[name])[0] + stricter
            if notes is not None:
                notes.numbers[f"inb_stage: {name}, {len(notes.numbers) + 1}"] = limits[name]
    weights = {name: _passing(near[name], limits[name], second) for name in names}
    if by == "union":
        index = torch.cat([near[name].index for name in names], 1)
        # A listing that passes in one source counts with its highest similarity in any of them.
        all_ = group(index, torch.cat([weights[name] for name in names], 1), reduce="max")
        lists = {name: all_ for name in names}
        weights = {name: all_.score.clamp(min=0) for name in names}
    else:
        lists = near
    for name in names:
        part = sources.parts[name]
        moved = weighted_sum(part, part, lists[name], weights[name], own_weight)
        sources = sources.having(name, moved)
    return sources


def needed(truth: Truth | None, step: str, what: str) -> Truth:
    """The truth; ConfigError when there is none."""
    if truth is None:
        raise ConfigError(
            f"{step} looks for {what} on held-out listings, and there are none: set it, or train "
            "with data.fold of at least 0."
        )
    return truth


def _passing(near: Neighbors, threshold: float, second: float | None) -> torch.Tensor:
    """Similarity of the matches, 0 of the others."""
    passed = near.score >= threshold
    if second is not None and near.score.shape[1]:
        passed[:, 0] |= ~passed.any(1) & (near.score[:, 0] >= threshold - second)
    return near.score.clamp(min=0) * passed
