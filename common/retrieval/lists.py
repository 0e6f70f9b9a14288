"""Ranked lists as small matrices of products, and a transformer that reads them.

What `attention` (weights of neighbors) and the list-wise re-ranker share. Both look at the products
of a query and its candidates among each other, never at the vectors: the size of a model and the
cost of its training do not depend on D, and classes that it never saw look like those it did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data.folds import group_folds
from common.retrieval import tiles
from common.retrieval.search import search
from common.types import Embeddings

_CELLS = 2**24  # floats gathered at once
_HIDDEN = -1e4  # added to the logits of padding: its weight is exactly 0


@dataclass
class Labelled:
    """Lists of labelled images whose relevant candidates are known.

    Attributes:
        index: `(L, P)` rows of `images`, best first, -1 padding; an image is not in its own list.
        rows: `(L,)` which images the lists belong to.
        labels: `(L,)` int64 of these.
        hits: `(L, P)` bool, candidates of the same label.
        totals: `(L,)` how many other images have the label.
        images: the labelled images.
    """

    index: Tensor
    rows: Tensor
    labels: Tensor
    hits: Tensor
    totals: Tensor
    images: Embeddings


def labelled_lists(
    train: Embeddings | None,
    labels: Tensor,
    width: int,
    *,
    most: int,
    seed: int,
    step: str,
    device: torch.device | None,
) -> Labelled:
    """The nearest `width` labelled images of at most `most` of them that share a label with others.

    Raises:
        ValueError: no labelled embeddings, or fewer than two labels with two images.
    """
    if train is None or len(labels) != len(train):
        raise ValueError(
            f"{step} learns on labelled train embeddings, and this pipeline has "
            f"{'none' if train is None else f'{len(train)} for {len(labels)} labels'}: leave the "
            "step out, or give it trained weights if it takes some."
        )
    known = torch.nonzero(labels.cpu() >= 0)[:, 0]
    images = Embeddings(
        train.ids[known.numpy()], train.vectors.index_select(0, known.to(train.vectors.device))
    )
    own = labels.cpu()[known]
    values, code, counts = torch.unique(own, return_inverse=True, return_counts=True)
    totals = counts[code] - 1
    rows = torch.nonzero(totals > 0)[:, 0]
    if int((counts > 1).sum()) < 2:
        raise ValueError(
            f"{step} learns from at least two labels with two images each; of {len(values)} labels "
            f"{int((counts > 1).sum())} have that many: leave the step out."
        )
    if len(rows) > most:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most]
        rows = rows[chosen.sort().values]
    asked = Embeddings(
        images.ids[rows.numpy()], images.vectors.index_select(0, rows.to(images.vectors.device))
    )
    index = search(asked, images, width, exclude_self=True, device=device).index.cpu()
    hits = (code[index] == code[rows, None]) & (index >= 0)
    return Labelled(index, rows, own[rows], hits, totals[rows], images)


def label_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """`(L,)` fold of every list: a label is in one fold, and folds are no more than labels."""
    return group_folds(labels, min(folds, len(np.unique(labels))), seed)


def products(
    vectors: Tensor, base: Tensor, index: Tensor, k: int, device: torch.device | None = None
) -> Tensor:
    """`(L, 1 + k, 1 + P)` float32 inner products of a list's first members with all of them.

    Member 0 is the query, i + 1 its candidate i; padding is a zero vector. In blocks, so that
    memory beyond the result is bounded.

    Args:
        vectors: `(L, D)` the queries.
        base: `(N, D)` what `index` names.
        index: `(L, P)` rows, -1 padding.
        k: candidates on the left side, at most P.
        device: where to compute and where the result is; None is that of `vectors`.
    """
    place = vectors.device if device is None else torch.device(device)
    count, width = index.shape
    if not len(base):
        base = base.new_zeros(1, base.shape[1])  # all of the index is padding
    found = torch.empty(count, 1 + k, 1 + width, device=place)
    step = max(1, _CELLS // ((1 + width) * max(1, base.shape[1])))
    with torch.no_grad(), tiles.full_precision(place):
        for start in range(0, count, step):
            rows = index[start : start + step]
            near = base.index_select(0, rows.clamp(min=0).reshape(-1).to(base.device))
            near = near.to(place, torch.float32).view(*rows.shape, -1)
            near = near * (rows >= 0).to(place)[..., None]
            own = vectors[start : start + step, None].to(place, torch.float32)
            members = torch.cat([own, near], 1)
            found[start : start + step] = members[:, : 1 + k] @ members.mT
    return found


class ListEncoder(nn.Module):
    """Pre-norm transformer over the members of a list: `(B, T, width) -> (B, T, width)`.

    Attention also sees how similar two members are: their product, times a learned factor of each
    head, adds to its logits. There is no place in it for positions: members that change places
    change places in the result.

    Args:
        width: length of a token.
        layers: blocks.
        heads: attention heads; they divide `width`.
    """

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} must divide width={width}.")
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, gram: Tensor, real: Tensor) -> Tensor:
        """Encoded members, `(B, T, width)`.

        Args:
            tokens: `(B, T, width)`.
            gram: `(B, T, T)` products of the members.
            real: `(B, T)` bool; nobody looks at the others. Member 0, the query, is always real.
        """
        for block in self.blocks:
            tokens = block(tokens, gram, real)
        encoded: Tensor = self.norm(tokens)
        return encoded


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        # From heads that ignore similarity to heads that mostly see it.
        self.pull = nn.Parameter(torch.linspace(0, 8, heads))

    def forward(self, tokens: Tensor, gram: Tensor, real: Tensor) -> Tensor:
        size, count, width = tokens.shape
        parts = self.inward(self.before(tokens)).view(size, count, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        # Written out: with a mask that has a gradient, torch's own attention is slower on a CPU.
        logits = (q * q.shape[-1] ** -0.5) @ k.mT
        logits = torch.addcmul(logits, self.pull[:, None, None], gram[:, None])
        logits = logits.add_(torch.where(real, 0.0, _HIDDEN)[:, None, None])
        seen = logits.softmax(3) @ v
        tokens = tokens + self.outward(seen.transpose(1, 2).reshape(size, count, width))
        changed: Tensor = tokens + self.narrow(F.gelu(self.wide(self.between(tokens))))
        return changed


def train_model(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    rows: Tensor,
    *,
    epochs: int,
    lr: float,
    seed: int,
    batch: int = 32,
) -> None:
    """Adam on `loss_of(rows of a batch)`, the rate falling to 0; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    total = epochs * -(-len(rows) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(1, total))
    model.train()
    with torch.enable_grad():
        for _ in range(epochs):
            order = rows[torch.randperm(len(rows), generator=generator)]
            for part in torch.split(order, batch):
                optimizer.zero_grad()
                loss_of(part).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
    model.eval()


def mean_average_precision(score: Tensor, hits: Tensor, totals: Tensor) -> float:
    """Mean AP of lists `(L, P)` ordered by `score`, over min(relevant images, P).

    Ties keep the order of the columns; padding must score -inf. As `common.metrics.map_at_k_arrays`
    once sorted, here because ranking may not import metrics.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    found = hits.gather(1, order).double()
    precision = found.cumsum(1) / torch.arange(1, found.shape[1] + 1, device=found.device)
    values = (precision * found).sum(1) / totals.clamp(min=1, max=found.shape[1])
    return float(values.mean())
