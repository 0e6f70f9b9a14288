"""Class cosines in tiles: a softmax over C classes for one (B, C) block, forward and backward.

A margin acts on the own class alone. So a head needs three numbers per row, the cosine to the own
class, the logsumexp over all other classes and the sum of the cosines, and works on (B,) vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 1 << 22  # elements of the largest temporary: 16 MiB in float32
_SMALLEST = 1e-12  # a row without a larger entry has no direction: cosine 0, gradient 0


class ClassCosines(NamedTuple):
    """What a softmax over classes needs from one batch; every field is (B,)."""

    own: Tensor  # cosine to the nearest centre of the row's class; 0 where the label is -1
    others: Tensor  # logsumexp of scale * cosine over all other classes; -inf without any
    total: Tensor  # sum of the cosines over all classes
    hardest: Tensor  # largest cosine among the other classes, -1 without any; no gradient
    winner: Tensor  # int64 index of the own class's nearest sub-centre; no gradient


def class_cosines(
    unit: Tensor, weight: Tensor, labels: Tensor, *, k: int, scale: float
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
    """
    # Backward runs under whatever autocast its caller has, so both passes switch it off themselves.
    return ClassCosines(*_ClassCosines.apply(unit, weight, labels, k, scale))


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
        ctx: Any, unit: Tensor, weight: Tensor, labels: Tensor, k: int, scale: float
    ) -> tuple[Tensor, ...]:
        with torch.autocast(unit.device.type, enabled=False):
            rows, classes = len(unit), len(weight) // k
            cosine = unit.new_empty(rows, classes)
            winner = unit.new_zeros(rows, classes if k > 1 else 0, dtype=torch.uint8)
            inverse = unit.new_empty(len(weight))  # 1 / length of each centre
            own, mass, total = unit.new_zeros(3, rows)
            peak = unit.new_full((rows,), -1.0)  # no cosine is lower: exponents are never inf - inf
            for start, stop in _tiles(unit, classes):
                block, centers = cosine[:, start:stop], weight[start * k : stop * k].to(unit.dtype)
                inverse[start * k : stop * k] = _inverse_length(centers)
                _nearest(unit, centers, inverse[start * k : stop * k], block, winner[:, start:stop])
                place, inside = _locate(labels, start, stop)
                here = block.gather(1, place)
                own = torch.where(inside, here, own[:, None])[:, 0]
                rest = block.scatter(1, place, here.masked_fill(inside, -torch.inf))
                before, peak = peak, torch.maximum(peak, rest.amax(1))
                mass *= torch.exp(scale * (before - peak))
                mass += rest.sub_(peak[:, None]).mul_(scale).exp_().sum(1)
                total += block.sum(1)
            others = scale * peak + mass.log()
        chosen = torch.zeros_like(labels)
        if k > 1:
            chosen = winner.gather(1, labels.clamp_min(0)[:, None])[:, 0].long()
        ctx.k, ctx.scale = k, scale
        ctx.save_for_backward(unit, weight, labels, cosine, winner, inverse, others)
        ctx.mark_non_differentiable(peak, chosen)
        return own, others, total, peak, chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_own, d_others, d_total = grads[:3]
        unit, weight, labels, cosine, winner, inverse, others = ctx.saved_tensors
        k, scale = ctx.k, ctx.scale
        d_unit = torch.zeros_like(unit)
        d_weight = torch.empty_like(weight)
        with torch.autocast(unit.device.type, enabled=False):
            for start, stop in _tiles(unit, cosine.shape[1]):
                block = cosine[:, start:stop]
                place, inside = _locate(labels, start, stop)
                grad = (block * scale).sub_(others[:, None]).exp_().mul_(d_others[:, None] * scale)
                # The own class had no part in `others`; in a single class its entry is NaN so far.
                own = torch.where(inside, d_own[:, None], grad.gather(1, place))
                grad.scatter_(1, place, own).add_(d_total[:, None])
                for j in range(k):
                    mine = slice(start * k + j, stop * k, k)
                    centers, shrink = weight[mine].to(unit.dtype), inverse[mine]
                    # Every other sub-centre lost the maximum: it has no part in this cosine.
                    part = grad if k == 1 else grad.masked_fill(winner[:, start:stop] != j, 0)
                    along = (part * block).sum(0).mul_(shrink)
                    part.mul_(shrink)
                    d_unit.addmm_(part, centers)
                    update = part.T @ unit
                    d_weight[mine] = update.addcmul_(centers, (along * shrink)[:, None], value=-1)
        return d_unit, d_weight, None, None, None


def _tiles(unit: Tensor, classes: int) -> Iterator[tuple[int, int]]:
    """Ranges of classes whose cosines, centres and gradients each fit into `TILE` elements."""
    step = max(1, TILE // max(1, *unit.shape))
    for start in range(0, classes, step):
        yield start, min(start + step, classes)


def _locate(labels: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """(B, 1) column of each label in the tile, and whether it lies in the tile at all."""
    labels = labels[:, None]
    return (labels - start).clamp(0, stop - start - 1), (labels >= start) & (labels < stop)


def _inverse_length(centers: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(centers, dim=1)
    return torch.where(length > _SMALLEST, 1 / length, 0)


def _nearest(
    unit: Tensor, centers: Tensor, inverse: Tensor, cosine: Tensor, winner: Tensor
) -> None:
    """Fill in each class's largest cosine and which centre it is, the first one on a tie."""
    k = len(centers) // cosine.shape[1]
    for j in range(k):
        found = (unit @ centers[j::k].T).mul_(inverse[j::k])
        if j == 0:
            cosine.copy_(found)
        else:
            winner.masked_fill_(found > cosine, j)
            torch.maximum(cosine, found, out=cosine)
