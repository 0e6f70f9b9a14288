"""Exact scores and their order: what makes a neighbor list unique, whichever way it was found.

A pair's score is the float64 inner product, rounded to float32 once. Scores and ids become one
int64 key, so that score descending, then id ascending is one comparison.
"""

from __future__ import annotations

import numpy as np
import torch

from common.retrieval import tiles
from common.retrieval.stored import Stored
from common.retrieval.tiles import Vectors
from common.types import Embeddings, Neighbors

_RANKS = 2**32
_EXACT_BLOCK = 16_384  # gallery rows per float64 tile


def check(name: str, q: torch.Tensor, gallery: Vectors) -> None:
    """Raise ValueError unless queries `(Q, D)` and gallery `(N, D)` are of one D."""
    shape = gallery.shape if isinstance(gallery, Stored) else tiles.tensor(gallery).shape
    if q.ndim != 2 or len(shape) != 2 or q.shape[1] != shape[1] or not q.shape[1]:
        raise ValueError(
            f"{name} needs queries (Q, D) and gallery (N, D) of one D, got {tuple(q.shape)} and "
            f"{tuple(shape)}."
        )


def place_of(gallery: Vectors, device: torch.device | str | None) -> torch.device:
    """Where to compute: `device`, else where the gallery is."""
    if device is not None:
        return torch.device(device)
    return torch.device("cpu") if isinstance(gallery, Stored) else tiles.tensor(gallery).device


def rounding(dim: int) -> float:
    """Bound of |rounded - exact| / (|q| |x|) of a float32 product, for any order of summation."""
    return (dim + 8) * 2.0**-24


def ranked(gallery: Vectors) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows by id ascending and the rank of each row in that order, `(N,)` int64 both."""
    count = len(gallery)
    if isinstance(gallery, torch.Tensor) or bool((gallery.ids[:-1] <= gallery.ids[1:]).all()):
        return torch.arange(count), torch.arange(count)
    order = torch.from_numpy(np.argsort(gallery.ids, kind="stable"))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count)
    return order, rank


def self_rows(queries: Vectors, gallery: Vectors, order: torch.Tensor) -> torch.Tensor:
    """The gallery row of each query, `(Q,)` int64, -1 where the gallery does not have it.

    Raises:
        ValueError: the inputs do not say who is self, or the gallery has an id twice.
    """
    if isinstance(queries, Embeddings) and isinstance(gallery, Embeddings | Stored):
        ids = gallery.ids[order.numpy()]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if len(twice):
            name = str(ids[twice[0]])
            raise ValueError(f"exclude_self needs unique ids, the gallery has {name!r} twice.")
        if not len(ids):
            return torch.full((len(queries),), -1)
        place = np.minimum(np.searchsorted(ids, queries.ids), len(ids) - 1)
        return torch.where(torch.from_numpy(ids[place] == queries.ids), order[place], -1)
    tensors = isinstance(queries, torch.Tensor) and isinstance(gallery, torch.Tensor)
    if tensors and len(queries) == len(gallery):
        return torch.arange(len(queries))
    raise ValueError(
        "exclude_self needs Embeddings on both sides (self has the same id) or two tensors of one "
        f"length (self has the same row), got {len(queries)} queries, {len(gallery)} gallery rows."
    )


def pair_scores(q: torch.Tensor, g: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Scores `(Q, M)` float32 of query i with gallery rows `index[i]`; -inf where that is -1."""
    device, dim, columns = index.device, g.shape[1], index.shape[1]
    score = torch.empty(index.shape, device=device)
    # Larger pieces than a cache hold pay: each operation wakes the threads anew.
    step = max(1, (2**21 if device.type == "cpu" else 2**25) // max(1, columns * dim))
    near = g.new_empty(step * columns, dim)
    wide = torch.empty(step * columns, dim, dtype=torch.float64, device=device)
    for start in range(0, len(q), step):
        rows = index[start : start + step]
        flat = rows.clamp(min=0).reshape(-1).to(g.device)
        torch.index_select(g, 0, flat, out=near[: len(flat)])
        product = wide[: len(flat)].copy_(near[: len(flat)]).view(*rows.shape, dim)
        product *= q[start : start + step, None].to(device, torch.float64)
        # Not a matrix product: there a row's place would change how its sum is rounded.
        score[start : start + step] = product.sum(-1)
    return score.masked_fill_(index < 0, -torch.inf)


def block_keys(
    q: torch.Tensor, g: torch.Tensor, k: int, rank: torch.Tensor, own: torch.Tensor | None
) -> torch.Tensor:
    """Keys of the `k` best of all gallery rows for one block of queries, products in float64.

    `own` `(Q,)` is the row of each query to leave out, outside `0..N-1` for none.
    """
    wide = q.to(rank.device, torch.float64)
    best = rank.new_empty(len(q), 0)
    for start in range(0, len(g), _EXACT_BLOCK):
        block = g[start : start + _EXACT_BLOCK].to(rank.device, torch.float64)
        score = (wide @ block.T).float()
        if own is not None:
            column = own - start
            mine = ((column >= 0) & (column < len(block))).nonzero().squeeze(1)
            score[mine, column[mine]] = -torch.inf
        best = top_keys(best, key(score, rank[start : start + len(block)]), k)
    return best


def key(score: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """int64 ordered like (score, -rank): no two are equal, so any top-k of keys is exact."""
    bits = (score + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # now ordered like the floats
    return bits.long() * _RANKS + (_RANKS - 1 - rank)


def score_of(keys: torch.Tensor) -> torch.Tensor:
    """The float32 scores inside keys."""
    bits = (keys >> 32).int()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)


def top_keys(one: torch.Tensor, other: torch.Tensor, k: int) -> torch.Tensor:
    """The `k` largest keys of each row of both, largest first."""
    both = torch.cat([one, other], 1) if one.shape[1] else other
    return both.topk(min(k, both.shape[1])).values


def neighbors_of(keys: torch.Tensor, order: torch.Tensor, k: int) -> Neighbors:
    """Keys, best first, as rows and scores, padded to `k` columns."""
    score = score_of(keys)
    index = torch.where(score == -torch.inf, -1, order[_RANKS - 1 - (keys & (_RANKS - 1))])
    missing = (0, k - keys.shape[1])
    return Neighbors(
        torch.nn.functional.pad(index, missing, value=-1),
        torch.nn.functional.pad(score, missing, value=-torch.inf),
    )


def shared(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Share of the real rows of `exact` `(Q, K)` that `found` `(Q, K')` has in the same query."""
    real = exact >= 0
    hits = sum(
        torch.isin(e[e >= 0], f).sum().item() for e, f in zip(exact.cpu(), found.cpu(), strict=True)
    )
    return float(hits) / max(1, int(real.sum()))
