"""From several sources, or several lists of steps, to one list of scored matches.

    matching:
      - {name: concat}                      # common.rerank.sources
      - {name: union, k: 50}
      - {name: unit_veto}                   # common.rerank.rules

A score of `union` is how far the listing is above its source's threshold: matches are above 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from common.blend import blend_votes
from common.notes import Notes
from common.rerank.sources import Memory, Sources, needed
from common.rerank.truth import Truth
from common.rerank.voting import group
from common.types import Neighbors

Run = Callable[[Any, Memory], Neighbors]
_SHIFTS = (-0.2, -0.15, -0.1, -0.06, -0.03, 0.03, 0.06, 0.1, 0.15, 0.2, torch.inf)


def union(
    sources: Sources,
    truth: Truth | None,
    memory: Memory,
    *,
    of: list[str] | None = None,
    k: int = 50,
    thresholds: dict[str, float] | None = None,
    notes: Notes | None = None,
    device: torch.device | None = None,
) -> Neighbors:
    """Matches of any source: a pair scores the most that a similarity is above its own threshold.

    Thresholds that are not given are found together on held-out listings: from where each source
    alone is best they move one after another while F1 of the union rises; one that only harms is
    left out (its threshold becomes infinite). Shopee 2021 1st place: .757 to .776.

    Args:
        sources: of the listings.
        truth: of held-out listings.
        memory: what was found.
        of: which sources; none: all.
        k: neighbors of each source, and matches that are listed.
        thresholds: similarity of a match by source.
        notes: gets the thresholds.
        device: where to search.

    Raises:
        ConfigError: thresholds to be found, and nothing held out.
    """
    names = sources.names(of or ())
    index = _candidates(sources, names, k, device)
    similar = {name: sources.similarity(name, index) for name in names}
    if "thresholds" not in memory:
        given = dict(thresholds or {})
        if missing := [name for name in names if name not in given]:
            known = needed(truth, "union", "thresholds")
            memory["thresholds"] = _searched(known, index, similar, given, missing)
        else:
            memory["thresholds"] = given
        if notes is not None:
            notes.numbers |= {
                f"union: threshold of {name}": memory["thresholds"][name] for name in names
            }
    score = torch.full(index.shape, -torch.inf)
    for name in names:
        score = torch.maximum(score, similar[name] - memory["thresholds"][name])
    score = score.masked_fill(index < 0, -torch.inf)
    return Neighbors(index.masked_fill(score == -torch.inf, -1), score).sorted().top(k)


def mean(
    sources: Sources,
    *,
    of: list[str] | None = None,
    weights: list[float] | None = None,
    power: float = 1.0,
    k: int = 50,
    device: torch.device | None = None,
) -> Neighbors:
    """The weighted mean of the sources' similarities ^ power, negative ones as 0.

    Shopee 2021 4th place: three cosine matrices squared, then a weighted mean.

    Args:
        sources: of the listings.
        of: which; none: all.
        weights: one for each; null: equal.
        power: of a similarity.
        k: neighbors of each source, and matches that are listed.
        device: where to search.

    Raises:
        ValueError: weights that do not fit, a power that is not above 0.
    """
    names = sources.names(of or ())
    shares = np.ones(len(names)) if weights is None else np.asarray(weights, np.float64)
    if len(shares) != len(names) or not shares.sum() > 0 or (shares < 0).any() or not power > 0:
        raise ValueError(
            f"mean: {len(names)} sources need as many weights, at least 0, and a power above 0; "
            f"got {weights}, {power}."
        )
    index = _candidates(sources, names, k, device)
    score = torch.zeros(index.shape)
    for name, share in zip(names, (shares / shares.sum()).tolist(), strict=True):
        score += share * sources.similarity(name, index).clamp(min=0) ** power
    return Neighbors(index, score.masked_fill(index < 0, -torch.inf)).sorted().top(k)


def nearest(
    sources: Sources, *, of: str = "", k: int = 50, device: torch.device | None = None
) -> Neighbors:
    """The `k` most similar listings of one source, the last one if none is named."""
    name = of or list(sources.parts)[-1]
    return sources.near(sources.names([name])[0], k, device)


def vote(
    run: Run,
    truth: Truth | None,
    memory: Memory,
    *,
    of: list[Any] | None = None,
    weights: list[float] | None = None,
    thresholds: list[float] | None = None,
    hard: bool = False,
    notes: Notes | None = None,
) -> Neighbors:
    """Several lists of steps as one: sum of weight * (score - own threshold), matches above 0.

    Shopee 2021 2nd place (LightGBM 1, graph network 3, another team's model 2) and, with `hard`
    votes, 6th place (24 of them). What a list lacks counts as its lowest there.

    Args:
        run: runs a list of steps.
        truth: of held-out listings.
        memory: of the lists, and their thresholds.
        of: lists of steps, each of which ends with neighbors.
        weights: one for each; null: equal.
        thresholds: one for each; null: where the list alone has its best F1 on held-out listings.
        hard: each list has a vote of its whole weight.
        notes: gets the thresholds.

    Raises:
        ValueError: no lists.
        ConfigError: thresholds to be found, and nothing held out.
    """
    if not of:
        raise ValueError("vote: of is a list of lists of steps, such as [[{name: union}], ...].")
    parts = [run(steps, memory.setdefault(place, {})) for place, steps in enumerate(of)]
    if "thresholds" not in memory:
        known = truth if thresholds else needed(truth, "vote", "thresholds")
        memory["thresholds"] = thresholds or [known.best(part)[0] for part in parts if known]
        if notes is not None:
            notes.numbers |= {
                f"vote: threshold of list {place + 1}": limit
                for place, limit in enumerate(memory["thresholds"])
            }
    return blend_votes(parts, memory["thresholds"], weights, hard=hard, refuse=False)


def _candidates(
    sources: Sources, names: list[str], k: int, device: torch.device | None
) -> torch.Tensor:
    """`(N, K)` rows that any source lists, each once."""
    index = torch.cat([sources.near(name, k, device).index for name in names], 1)
    once = group(index, torch.zeros(index.shape))
    widest = int((once.index >= 0).sum(1).max()) if len(index) else 0
    return once.index[:, :widest]


def _searched(
    truth: Truth,
    index: torch.Tensor,
    similar: dict[str, torch.Tensor],
    given: dict[str, float],
    missing: list[str],
) -> dict[str, float]:
    """Thresholds of highest F1 of the union, one after another from where each alone is best."""
    asked = torch.from_numpy(truth.asked)
    hits, totals = truth.hits(index), truth.totals
    alone = {name: truth.best(Neighbors(index, similar[name]).sorted()) for name in missing}
    limits = {**given, **{name: limit for name, (limit, _) in alone.items()}}
    mine = {name: similar[name][asked].numpy() for name in limits}

    def value(tried: dict[str, float]) -> float:
        kept = np.zeros(hits.shape, bool)
        for name, limit in tried.items():
            kept |= mine[name] >= limit
        right = (kept & hits).sum(1) + 1
        false = (kept & ~hits).sum(1) * truth.crowd
        return float((2 * right / (right + false + totals)).mean())

    best = value(limits)
    for _ in range(2):
        # The weakest first: it may be the one that only adds strangers.
        for name in sorted(missing, key=lambda one: alone[one][1]):
            start = alone[name][0]
            for shift in (0.0, *_SHIFTS):
                tried = {**limits, name: start + shift}
                if (found := value(tried)) > best + 1e-9:
                    best, limits = found, tried
    return limits
