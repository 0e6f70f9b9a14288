"""First candidates of every query in blocks of bounded memory, and their new scores put back."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from common.rerank.voting import BUDGET
from common.retrieval import tiles
from common.types import Embeddings, Neighbors

_MARGIN = 1e-3  # between the lowest re-scored candidate and the first one that was not


def blocks(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    top: int,
    device: torch.device | None,
    *,
    copies: int = 2,
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rows, their queries `(B, D)`, candidates `(B, M, D)` and which are real `(B, M)`, in float32.

    None at all when there are no candidates.

    Args:
        neighbors: `(Q, K)`; M is the smaller of `top` and K.
        queries: `Q` embeddings.
        gallery: what `neighbors` names.
        top: candidates per query.
        device: where the blocks are; None is the neighbors' own device.
        copies: how many `(B, M, D)` tensors the caller holds at once, beside two `(B, M, M)`.

    Raises:
        ValueError: a NaN in an embedding (names row and id): its scores would have no order.
    """
    for name, part in (("queries", queries), ("gallery", gallery)):
        tiles.finite_norms(part.vectors, name, part, 0)
    if not len(gallery):
        return
    place = neighbors.index.device if device is None else torch.device(device)
    index = neighbors.index[:, :top]
    count, dim = index.shape[1], gallery.vectors.shape[1]
    step = max(1, BUDGET // max(1, copies * count * dim + 2 * count * count))
    home = gallery.vectors.device
    for start in range(0, len(index), step):
        rows = slice(start, start + step)
        near, real = index[rows].clamp(min=0), (index[rows] >= 0).to(place)
        found = gallery.vectors.index_select(0, near.reshape(-1).to(home))
        found = found.to(place, torch.float32).view(*near.shape, dim) * real[..., None]
        yield rows, queries.vectors[rows].to(place, torch.float32), found, real


def rescored(neighbors: Neighbors, head: torch.Tensor) -> Neighbors:
    """Neighbors whose first columns have the scores `head`, sorted; all others stay behind them.

    Scores of the others are lowered, row by row, where they would not be below the head's; their
    distances to each other stay.

    Args:
        neighbors: `(Q, K)`.
        head: `(Q, M)` new scores of the first M columns; what it says of padding is not read.
    """
    count = head.shape[1]
    score = head.to(neighbors.score).masked_fill(neighbors.index[:, :count] < 0, -torch.inf)
    first = Neighbors(neighbors.index[:, :count], score).sorted()
    if count in (0, neighbors.index.shape[1]):
        return first if count else neighbors
    low = score.masked_fill(score == -torch.inf, torch.inf).amin(1, keepdim=True)
    rest = neighbors.score[:, count:]
    excess = (rest.amax(1, keepdim=True) - low + _MARGIN).clamp(min=0)
    excess = excess.masked_fill(~excess.isfinite(), 0.0)  # nothing behind
    return Neighbors(
        torch.cat([first.index, neighbors.index[:, count:]], 1),
        torch.cat([first.score, rest - excess], 1),
    )
