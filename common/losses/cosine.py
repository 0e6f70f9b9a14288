"""Class cosines in tiles: a softmax over C classes for one (B, C) block, forward and backward.

A margin acts on the own class alone. So a head needs three numbers per row, the cosine to the own
class, the logsumexp over all other classes and the sum of the cosines, and works on (B,) vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 1 << 22  # elements of the largest of the temporaries: 16 MiB in float32
LARGE = 1 << 25  # bytes of a tensor from which large pages are worth it
_SMALLEST = 1e-12  # a row without a larger entry has no direction: cosine 0, gradient 0


class ClassCosines(NamedTuple):
    """What a softmax over classes needs from one batch; every field is (B,)."""

    own: Tensor  # cosine to the nearest centre of the row's class; 0 where the label is -1
    others: Tensor  # logsumexp of scale * cosine over all other classes; -inf without any
    total: Tensor  # sum of the cosines over all classes but one left out
    hardest: Tensor  # largest cosine among the other classes, -1 without any; no gradient
    winner: Tensor  # int64, which centre of the own class is nearest, 0 for -1; no gradient


def class_cosines(
    unit: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    k: int,
    scale: float,
    left_out: Tensor | None = None,
) -> ClassCosines:
    """Cosines of the rows to their own class and the others, differentiable in unit and weight.

    A class's cosine is the largest over its K centres (sub-centre ArcFace, ECCV 2020), and only
    that centre gets gradient. Beside inputs and gradients this holds one (B, C) block, for K > 1
    one more in uint8, and temporaries of at most `TILE` elements; the weight is never copied.

    Args:
        unit: (B, D) unit or zero rows, float32 or float64; the computation runs in this type.
        weight: (C*K, D) centres of any length, the K rows of a class adjacent.
        labels: (B,) int64 in [0, C), or -1 for a row whose class is not here: `others` is then all.
        k: centres per class, at most 255.
        scale: factor on the cosines inside the logsumexp.
        left_out: (B,) int64, a class that does not exist for the row: it has no part in any field
            and gets no gradient; -1 is none. None: all classes count for all rows.
    """
    # Backward runs under whatever autocast its caller has, so both passes switch it off themselves.
    return ClassCosines(*_ClassCosines.apply(unit, weight, labels, k, scale, left_out))


def unit_rows(rows: Tensor) -> Tensor:
    """(B, D) rows of length 1; a row with no entry above 1e-12 becomes zero, with zero gradient.

    Scaling by the largest entry first keeps the squares of 1e-30 and 1e30 inside float32.
    """
    peak = rows.detach().abs().amax(1, keepdim=True)
    rows = rows * torch.where(peak > _SMALLEST, 1 / peak, 0)
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length.clamp_min(0.5)  # it is 0 or at least 1


class _ClassCosines(torch.autograd.Function):
    """Forward keeps cosines and winners; backward rebuilds the softmax from them tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        unit: Tensor,
        weight: Tensor,
        labels: Tensor,
        k: int,
        scale: float,
        left_out: Tensor | None,
    ) -> tuple[Tensor, ...]:
        with torch.autocast(unit.device.type, enabled=False):
            kept = Cosines(unit, weight, k)
            own, mass, total = unit.new_zeros(3, len(unit))
            peak = unit.new_full((len(unit),), -1.0)  # no cosine is lower: never inf - inf
            chosen = torch.zeros_like(labels)
            for start, stop in kept.tiles():
                block, winner = kept.fill(start, stop)
                place, inside = locate(labels, start, stop)
                here = block.gather(0, place)
                own = torch.where(inside, here, own)[0]
                if k > 1:
                    chosen = torch.where(inside, winner.gather(0, place).long(), chosen)[0]
                rest = kept.buffer[: stop - start].copy_(block)
                rest.scatter_(0, place, here.masked_fill(inside, -torch.inf))
                if left_out is not None:
                    total -= _drop(rest, block, left_out, start, stop)
                before, peak = peak, torch.maximum(peak, rest.amax(0))
                mass *= torch.exp(scale * (before - peak))
                mass += rest.sub_(peak).mul_(scale).exp_().sum(0)
                total += block.sum(0)
            others = scale * peak + mass.log()
        ctx.k, ctx.scale, ctx.left_out = k, scale, left_out
        ctx.save_for_backward(unit, weight, labels, *kept.saved(), others)
        ctx.mark_non_differentiable(peak, chosen)
        ctx.set_materialize_grads(False)  # `total` has no part in most losses
        return own, others, total, peak, chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        unit, weight, labels, *saved, others = ctx.saved_tensors
        kept = Cosines(unit, weight, ctx.k, *saved)
        d_own, d_others = (others.new_zeros(len(unit)) if g is None else g for g in grads[:2])
        with torch.autocast(unit.device.type, enabled=False):
            slope = d_others * ctx.scale
            for start, stop in kept.tiles():
                place, inside = locate(labels, start, stop)
                grad = torch.mul(
                    kept.cosine[start:stop], ctx.scale, out=kept.buffer[: stop - start]
                )
                grad.sub_(others).exp_().mul_(slope)
                # The own class had no part in `others`; in a single class its entry is NaN so far.
                grad.scatter_(0, place, torch.where(inside, d_own, grad.gather(0, place)))
                if grads[2] is not None:
                    grad.add_(grads[2])
                if ctx.left_out is not None:
                    place, inside = locate(ctx.left_out, start, stop)
                    grad.scatter_(0, place, grad.gather(0, place).masked_fill_(inside, 0))
                kept.pull(start, stop, grad)
        return kept.d_unit, kept.d_weight, None, None, None, None


def _drop(rest: Tensor, block: Tensor, left_out: Tensor, start: int, stop: int) -> Tensor:
    """(B,) cosines to the classes left out that lie in the tile, else 0; they become -inf there."""
    place, inside = locate(left_out, start, stop)
    there = rest.gather(0, place)
    rest.scatter_(0, place, there.masked_fill(inside, -torch.inf))
    return torch.where(inside, block.gather(0, place), 0)[0]


class Cosines:
    """The (C, B) cosines of a batch to all classes, filled and differentiated tile by tile.

    All blocks are (n, B), a class's row of cosines adjacent: so the K centres of a class need one
    product, their maximum runs over vectors, and what a tile makes stays in the cache.

    Args:
        unit: (B, D).
        weight: (C*K, D).
        k: centres per class.
        saved: nothing before the first `fill`; for `pull` what `saved` gave.
        others: temporaries that the caller makes of a tile beside these; tiles are so much smaller.
    """

    def __init__(
        self, unit: Tensor, weight: Tensor, k: int, *saved: Tensor, others: int = 0
    ) -> None:
        self.unit, self.weight, self.k = unit, weight, k
        rows, dim, self.classes = *unit.shape, len(weight) // k
        # Centres are copied only to another type; otherwise the widest temporary has B columns.
        width = max(1, rows, 0 if weight.dtype == unit.dtype else dim)
        self.step = min(self.classes, max(1, TILE // (1 + others) // (k * width)))
        # Fresh memory costs more than the arithmetic done in it, so all tiles share theirs.
        self.buffer = unit.new_empty(self.step, rows)
        self.parts = unit.new_empty(self.step, k, rows)
        if not saved:
            saved = (
                unit.new_empty(self.classes, rows),
                unit.new_zeros(self.classes if k > 1 else 0, rows, dtype=torch.uint8),
                unit.new_empty(len(weight)),
            )
        else:
            self.d_unit, self.d_weight = torch.zeros_like(unit), fresh(weight, len(weight))
        self.cosine, self.winner, self.inverse = saved  # the last is 1 / length of each centre

    def saved(self) -> tuple[Tensor, Tensor, Tensor]:
        """What backward needs."""
        return self.cosine, self.winner, self.inverse

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Ranges of classes whose cosines, centres and gradients each fit into `TILE` elements."""
        for start in range(0, self.classes, max(1, self.step)):
            yield start, min(start + self.step, self.classes)

    def fill(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(n, B) largest cosine of each class and which centre it is, the first one on a tie."""
        n, k, centers = stop - start, self.k, self._centers(start, stop)
        inverse = self.inverse[start * k : stop * k]
        inverse.copy_(inverse_length(centers))
        block, winner = self.cosine[start:stop], self.winner[start:stop]
        if k == 1:
            return torch.mm(centers, self.unit.T, out=block).mul_(inverse[:, None]), winner
        found = self.parts[:n]
        torch.mm(centers, self.unit.T, out=found.flatten(0, 1))
        found.mul_(inverse.view(n, k, 1))
        block.copy_(found[:, 0])
        for j in range(1, k):
            better = (found[:, j] > block).view(torch.uint8)
            torch.maximum(winner, better.mul_(j), out=winner)  # a later winner has a higher number
            torch.maximum(block, found[:, j], out=block)
        return block, winner

    def pull(self, start: int, stop: int, grad: Tensor) -> None:
        """Add to both gradients what the (n, B) gradient of the tile's cosines makes of them."""
        n, k, centers = stop - start, self.k, self._centers(start, stop)
        inverse = self.inverse[start * k : stop * k].view(n, k, 1)
        parts = self.parts[:n]
        if k == 1:
            torch.mul(grad[:, None], inverse, out=parts)
        else:
            share = torch.empty_like(grad)
            for j in range(k):
                # Every other sub-centre lost the maximum: it has no part in this cosine. On a CPU
                # a product with 0 and 1 takes half the time of `where`.
                share.copy_(self.winner[start:stop] == j)
                torch.mul(grad, share, out=parts[:, j])
            parts.mul_(inverse)
        along = torch.bmm(parts, self.cosine[start:stop, :, None])  # (n, K, 1)
        along = along.mul_(inverse).neg_().view(n * k, 1)
        flat, place = parts.flatten(0, 1), slice(start * k, stop * k)
        self.d_unit.addmm_(flat.T, centers)
        same = self.weight.dtype == self.unit.dtype
        update = torch.mul(centers, along, out=self.d_weight[place] if same else None)
        update.addmm_(flat, self.unit)
        if not same:
            self.d_weight[place] = update

    def _centers(self, start: int, stop: int) -> Tensor:
        return self.weight[start * self.k : stop * self.k].to(self.unit.dtype)


def fresh(weight: Tensor, rows: int) -> Tensor:
    """Memory for so many rows like those of the weight, with anything in it.

    numpy asks the kernel for large pages, torch does not: half a gigabyte in small ones costs as
    much time as a product of the head.
    """
    shape, size = (rows, *weight.shape[1:]), rows * weight[:1].nbytes
    if weight.device.type != "cpu" or size < LARGE:
        return weight.new_empty(shape)
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64  # as torch aligns
    return torch.from_numpy(raw)[start : start + size].view(weight.dtype).view(shape)


def twin_of(labels: Tensor, classes: int) -> Tensor:
    """(B,) the class of the mirrored image: c + `classes` of c and back; -1 stays -1.

    Args:
        labels: (B,) int64 in [0, 2 * classes), or -1.
        classes: individuals, half as many as there are classes.
    """
    moved = torch.where(labels < classes, labels + classes, labels - classes)
    return torch.where(labels < 0, labels, moved)


def locate(labels: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """(1, B) row of each label in the tile, and whether it lies in the tile at all."""
    labels = labels[None]
    return (labels - start).clamp(0, stop - start - 1), (labels >= start) & (labels < stop)


def inverse_length(centers: Tensor) -> Tensor:
    """(N,) 1 / length of (N, D) rows, 0 for those without a direction."""
    length = torch.linalg.vector_norm(centers, dim=1)
    return torch.where(length > _SMALLEST, 1 / length, 0)
