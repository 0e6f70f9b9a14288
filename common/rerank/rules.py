"""Rules on lists of scored matches: what both ends say, who is first, friends of friends, amounts.

    matching:
      - {name: union, k: 50}                # common.rerank.matches
      - {name: unit_veto}
      - {name: complete, cost: 0.05}
      - {name: mutual_ranks, first: 2}

Each maps `(N, K)` neighbors of listings that ask about themselves to such neighbors.
"""

from __future__ import annotations

import numpy as np
import torch

from common.rerank.listings import Listings
from common.rerank.sources import Memory, needed
from common.rerank.truth import Truth
from common.rerank.voting import group, row_range
from common.types import Neighbors

_GAINS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
_CELLS = 1 << 22


def both_ways(neighbors: Neighbors) -> Neighbors:
    """Scores as the mean of both directions, where both listings list each other."""
    rows = torch.arange(len(neighbors)).unsqueeze(1).expand_as(neighbors.index)
    back = _scored(neighbors, neighbors.index, rows)
    mean_ = (neighbors.score + back) / 2
    return Neighbors(neighbors.index, torch.where(back.isnan(), neighbors.score, mean_)).sorted()


def mutual_ranks(
    neighbors: Neighbors,
    truth: Truth | None,
    memory: Memory,
    *,
    first: int = 1,
    gain: float | None = None,
) -> Neighbors:
    """A pair gains where each is among the other's `first` nearest.

    Shopee 2021 4th place. With `gain` null it is the one of a few shares of the scores' spread that
    is best on held-out listings; none may be.

    Raises:
        ValueError: `first` below 1.
        ConfigError: a gain to be found, and nothing held out.
    """
    if first < 1:
        raise ValueError(f"mutual_ranks: first must be at least 1, got {first}.")
    near = neighbors.sorted()
    rows = torch.arange(len(near)).unsqueeze(1).expand_as(near.index)
    top = near.top(first)
    ranked = Neighbors(top.index, torch.zeros(top.score.shape))
    mutual = ~_scored(ranked, near.index, rows).isnan()
    mutual[:, first:] = False
    return _gained(near, mutual, truth, memory, gain, "mutual_ranks")


def rank_gap(
    neighbors: Neighbors,
    truth: Truth | None,
    memory: Memory,
    *,
    gap: float = 0.1,
    gain: float | None = None,
) -> Neighbors:
    """The nearest gains where it scores at least `gap` more than the second.

    Shopee 2021 4th place (their ranks 2 and 3: a listing is its own rank 1). `gain` as in
    `mutual_ranks`.
    """
    near = neighbors.sorted()
    lead = torch.zeros(near.score.shape, dtype=torch.bool)
    if near.score.shape[1] > 1:
        lead[:, 0] = (near.score[:, 0] - near.score[:, 1] >= gap) & (near.index[:, 1] >= 0)
    return _gained(near, lead, truth, memory, gain, "rank_gap")


def complete(
    neighbors: Neighbors, *, top: int = 8, cost: float = 0.05, most: int = 50
) -> Neighbors:
    """Friends of friends: A and C score at least min(A ~ B, B ~ C) - cost, for any B.

    Pairs that no list has are added. Group completion: Shopee 2021 4th place.

    Args:
        neighbors: `(N, K)`, rows of themselves.
        top: friends of each listing that are followed.
        cost: of the step between.
        most: listed matches.

    Raises:
        ValueError: `top` below 1, a negative cost.
    """
    if top < 1 or cost < 0:
        raise ValueError(f"complete: top must be at least 1, cost at least 0, got {top}, {cost}.")
    near = neighbors.sorted()
    friends = near.top(top)
    parts = []
    step = max(1, _CELLS // max(1, top * top))
    for start in range(0, len(near), step):
        rows = slice(start, start + step)
        index, score = friends.index[rows], friends.score[rows]
        further = friends.index[index.clamp(min=0)]
        worth = torch.minimum(score[..., None], friends.score[index.clamp(min=0)]) - cost
        own = torch.arange(start, start + len(index))[:, None, None]
        bad = (index < 0)[..., None] | (further < 0) | (further == own)
        further, worth = further.masked_fill(bad, -1), worth.masked_fill(bad, -torch.inf)
        parts.append(
            group(
                torch.cat([near.index[rows], further.flatten(1)], 1),
                torch.cat([near.score[rows], worth.flatten(1)], 1),
                reduce="max",
            ).top(most)
        )
    if not parts:
        return near
    return Neighbors(torch.cat([p.index for p in parts]), torch.cat([p.score for p in parts]))


def unit_veto(neighbors: Neighbors, listings: Listings) -> Neighbors:
    """Without pairs whose titles state different amounts, 500 ml and 1 l.

    `common.data.amounts`. Shopee 2021 6th and 18th place.
    """
    row, column = np.nonzero(neighbors.index.numpy() >= 0)
    other = neighbors.index.numpy()[row, column]
    refused = listings.amounts.veto(row, other)
    drop = torch.zeros(neighbors.index.shape, dtype=torch.bool)
    drop[torch.from_numpy(row[refused]), torch.from_numpy(column[refused])] = True
    score = neighbors.score.masked_fill(drop, -torch.inf)
    return Neighbors(neighbors.index.masked_fill(drop, -1), score).sorted()


def _scored(neighbors: Neighbors, of: torch.Tensor, about: torch.Tensor) -> torch.Tensor:
    """`(N, K)` score that row `of[i, j]` gives to `about[i, j]`; NaN where it does not list it."""
    size = max(len(neighbors), 1)
    rows = torch.arange(len(neighbors))[:, None].expand_as(neighbors.index)
    real = neighbors.index >= 0
    keys, order = (rows * size + neighbors.index)[real].sort()
    values = neighbors.score[real][order]
    if not len(keys):
        return torch.full(of.shape, torch.nan)
    wanted = of * size + about
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return values[at].masked_fill((keys[at] != wanted) | (of < 0), torch.nan)


def _gained(
    near: Neighbors,
    mask: torch.Tensor,
    truth: Truth | None,
    memory: Memory,
    gain: float | None,
    step: str,
) -> Neighbors:
    """The scores of `mask` higher by the gain that is given, kept or found."""

    def with_gain(value: float) -> Neighbors:
        return Neighbors(near.index, near.score + value * mask).sorted()

    if "gain" not in memory:
        if gain is not None:
            memory["gain"] = gain
        else:
            known = needed(truth, step, "a gain")
            low, high = row_range(near)
            spread = float((high - low).median()) if len(near) else 0.0
            values = [known.best(with_gain(share * spread))[1] for share in _GAINS]
            memory["gain"] = _GAINS[int(np.argmax(values))] * spread
    return with_gain(memory["gain"])
