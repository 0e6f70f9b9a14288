"""Losses of all class cosines beyond the plain softmax, tile by tile over one (B, C) block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.losses.cosine import ClassCosines, Cosines, inverse_length, locate

# (B, n) cosines to some of the classes, where those are the own ones or left out, and what else it
# needs of the rows -> what the classes contribute: (B,) numbers of which the logsumexp over all
# tiles is wanted, and numbers to be summed.
Part = Callable[..., tuple[Tensor, Tensor]]


_TEMPORARIES = 7  # that a `Part` makes of a tile, about


class OverClasses(NamedTuple):
    """What `over_classes` found."""

    own: Tensor  # (B,) cosine to the nearest centre of the row's class; 0 where the label is -1
    logs: Tensor  # logsumexp over the tiles
    sums: Tensor  # sum over the tiles
    hardest: Tensor  # (B,) largest cosine among the other classes, -1 without any; no gradient
    winner: Tensor  # (B,) which centre of the own class is nearest, 0 for -1; no gradient

    def cosines(self) -> ClassCosines:
        """The same for a head's statistics."""
        return ClassCosines(self.own, self.logs, self.sums, self.hardest, self.winner)


class Among(Protocol):
    """Some of the classes: the calls that a head makes, over these alone; see `PartialFC`."""

    count: int

    def class_cosines(
        self,
        unit: Tensor,
        weight: Tensor,
        labels: Tensor,
        *,
        k: int,
        scale: float,
        left_out: Tensor | None = None,
    ) -> ClassCosines:
        """As `common.losses.cosine.class_cosines`."""

    def over_classes(
        self,
        unit: Tensor,
        weight: Tensor,
        labels: Tensor,
        part: Part,
        *rows: Tensor,
        k: int,
        left_out: Tensor | None = None,
    ) -> OverClasses:
        """As below."""

    def own_cosines(self, unit: Tensor, weight: Tensor, labels: Tensor, *, k: int) -> Tensor:
        """As below."""

    def counts(self, left_out: Tensor) -> Tensor:
        """(B,) how many of these classes each row is compared with."""


def over_classes(
    unit: Tensor,
    weight: Tensor,
    labels: Tensor,
    part: Part,
    *rows: Tensor,
    k: int = 1,
    left_out: Tensor | None = None,
) -> OverClasses:
    """Sums over all classes of what `part` makes of their cosines; gradient to unit and weight.

    It holds the one (B, C) block of cosines that `class_cosines` does, for K > 1 one more in uint8;
    all that `part` makes lives for one tile only and is made again on the way back. `class_cosines`
    is faster where a softmax of scaled cosines is all that is wanted.

    Args:
        unit: (B, D) unit or zero rows, float32 or float64; the computation runs in this type.
        weight: (C*K, D) centres of any length, the K rows of a class adjacent.
        labels: (B,) int64 in [0, C), or -1.
        part: plain torch of the (B, n) cosines, the (B, n) bool mask of own classes (and of those
            left out) and `rows`, the same whenever it is called, and without gradient to anything
            else.
        rows: (B, ...) tensors that `part` needs.
        k: centres per class, at most 255.
        left_out: (B,) int64, a class that does not exist for the row, or -1; None: none for all.
            The mask names it, so `part` must treat it as it does the own class: not at all.
    """
    return OverClasses(*_OverClasses.apply(unit, weight, labels, left_out, part, k, *rows))


def other_classes(logits: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) logsumexp and (B,) sum of the logits of all but the own class, for a `Part`."""
    # -inf would be NaN on the way back where a tile holds nothing else.
    low = torch.finfo(logits.dtype).min / 4
    return logits.masked_fill(mine, low).logsumexp(1), logits.masked_fill(mine, 0).sum(1)


@torch.no_grad()
def own_cosines(unit: Tensor, weight: Tensor, labels: Tensor, *, k: int = 1) -> Tensor:
    """(B,) cosine of unit rows to the nearest centre of their class, no gradient; any for -1."""
    centers = weight.view(-1, k, weight.shape[1])[labels.clamp_min(0)].to(unit.dtype)
    inverse = inverse_length(centers.flatten(0, 1)).view(len(unit), k)
    return ((centers * unit[:, None]).sum(2) * inverse).amax(1)


class _OverClasses(torch.autograd.Function):
    """Forward keeps cosines and winners; backward differentiates `part` tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        unit: Tensor,
        weight: Tensor,
        labels: Tensor,
        left_out: Tensor | None,
        part: Part,
        k: int,
        *rows: Tensor,
    ) -> tuple[Tensor, ...]:
        with torch.autocast(unit.device.type, enabled=False):
            kept = Cosines(unit, weight, k, others=_TEMPORARIES)
            own, hardest = unit.new_zeros(len(unit)), unit.new_full((len(unit),), -1.0)
            chosen, logs, sums = torch.zeros_like(labels), [], []
            for start, stop in kept.tiles():
                block, winner = kept.fill(start, stop)
                mine = _skipped(labels, left_out, start, stop)
                place, inside = locate(labels, start, stop)
                here = block.gather(0, place)
                own = torch.where(inside, here, own)[0]
                if k > 1:
                    chosen = torch.where(inside, winner.gather(0, place).long(), chosen)[0]
                rest = kept.buffer[: stop - start].copy_(block)
                rest.scatter_(0, place, here.masked_fill(inside, -1))
                if left_out is not None:
                    place, inside = locate(left_out, start, stop)
                    rest.scatter_(0, place, rest.gather(0, place).masked_fill_(inside, -1))
                hardest = torch.maximum(hardest, rest.amax(0))
                log, total = part(block.T, mine.T, *rows)
                logs.append(log)
                sums.append(total)
            if logs:
                log, total = torch.stack(logs).logsumexp(0), torch.stack(sums).sum(0)
            else:
                log, total = hardest - torch.inf, torch.zeros_like(hardest)
        ctx.part, ctx.k, ctx.rows, ctx.left_out = part, k, len(rows), left_out
        ctx.save_for_backward(*rows, unit, weight, labels, *kept.saved(), log)
        ctx.mark_non_differentiable(hardest, chosen)
        return own, log, total, hardest, chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_own, d_logs, d_sums = grads[:3]
        rows, saved = ctx.saved_tensors[: ctx.rows], ctx.saved_tensors[ctx.rows :]
        unit, weight, labels, *saved, logs = saved
        kept = Cosines(unit, weight, ctx.k, *saved, others=_TEMPORARIES)
        with torch.autocast(unit.device.type, enabled=False):
            for start, stop in kept.tiles():
                mine = _skipped(labels, ctx.left_out, start, stop)
                with torch.enable_grad():
                    leaf = kept.cosine[start:stop].T.detach().requires_grad_()
                    log, total = ctx.part(leaf, mine.T, *rows)
                pairs = (log, d_logs * torch.exp(log.detach() - logs)), (total, d_sums)
                made, given = zip(*[p for p in pairs if p[0].requires_grad], strict=True)
                (grad,) = torch.autograd.grad(made, leaf, given)
                place, inside = locate(labels, start, stop)
                pull = kept.buffer[: stop - start].copy_(grad.T)
                pull.scatter_add_(0, place, torch.where(inside, d_own, 0))
                kept.pull(start, stop, pull)
        return kept.d_unit, kept.d_weight, *[None] * (4 + ctx.rows)


def _skipped(labels: Tensor, left_out: Tensor | None, start: int, stop: int) -> Tensor:
    """(n, B) bool, whether a class of the tile is the row's own, or left out for it."""
    classes = torch.arange(start, stop, device=labels.device)[:, None]
    mine = classes == labels
    return mine if left_out is None else mine | (classes == left_out)
