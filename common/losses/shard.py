"""Some of the classes, spread over the processes: the cosines of a batch to them, with gradient.

What `PartialFC` puts in place of the calls that a head makes for all classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.losses.cosine import ClassCosines, class_cosines, fresh
from common.losses.processes import gathered, joined, summed
from common.losses.tiled import OverClasses, Part, over_classes, own_cosines


class Shard:
    """The classes of this process, and which of them the present batch is compared with."""

    count: int  # drawn classes of all processes

    def __init__(self, num_classes: int) -> None:
        self.num_classes = self.count = num_classes
        self.world = dist.get_world_size() if joined() else 1
        self.rank = dist.get_rank() if joined() else 0
        self.start, self.stop = self.bound(self.rank), self.bound(self.rank + 1)
        self.drawn: Tensor | None = None  # (n,) numbers within the shard, rising; None is all
        self.places = torch.empty(0, dtype=torch.int64)  # of all labels in `drawn`, or -1
        self.chosen: Tensor | None = None  # (C,) bool, the drawn classes of all processes
        self.rows = slice(0)  # of this process among them

    def bound(self, rank: int) -> int:
        """The first class of a process."""
        return rank * (self.num_classes // self.world) + min(rank, self.num_classes % self.world)

    @torch.no_grad()
    def draw(self, labels: Tensor, rate: float, seed: int) -> None:
        """Choose the classes for a batch: the same set, however many processes share it."""
        everyone = gathered(labels, labels)[1]
        most = len(everyone) // self.world
        self.rows = slice(self.rank * most, self.rank * most + len(labels))
        self.drawn, self.chosen, self.count = None, None, self.num_classes
        if rate < 1:
            device = labels.device
            chosen = torch.zeros(self.num_classes, dtype=torch.bool, device=device)
            chosen[everyone[everyone >= 0]] = True
            present = int(chosen.sum())
            self.count = max(present, math.ceil(rate * self.num_classes))
            generator = torch.Generator(device).manual_seed(seed)
            order = torch.rand(self.num_classes, generator=generator, device=device)
            order[chosen] = torch.inf
            chosen[order.topk(self.count - present, largest=False).indices] = True
            self.chosen = chosen
            self.drawn = chosen[self.start : self.stop].nonzero().flatten()
        self.places = self._place(everyone)

    def _place(self, classes: Tensor) -> Tensor:
        """Numbers of classes among this process's drawn ones, -1 for others."""
        inside = (classes >= self.start) & (classes < self.stop)
        if self.chosen is not None:
            inside &= self.chosen[classes.clamp_min(0)]
        places = classes - self.start
        if self.drawn is not None:
            places = torch.searchsorted(self.drawn, places)
        return torch.where(inside, places, -1)

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
        """`class_cosines` to the drawn classes of all processes; `labels` are those drawn for."""
        found = class_cosines(
            self._gather(unit),
            self._centers(weight, k),
            self.places,
            k=k,
            scale=scale,
            left_out=self._everyones(left_out),
        )
        return ClassCosines(*self._join(found))

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
        """`over_classes` over the drawn classes of all processes."""
        found = over_classes(
            self._gather(unit),
            self._centers(weight, k),
            self.places,
            part,
            *[self._gather(r.detach()) for r in rows],
            k=k,
            left_out=self._everyones(left_out),
        )
        return OverClasses(*self._join(found))

    def counts(self, left_out: Tensor) -> Tensor:
        """(B,) drawn classes of all processes without the row's own `left_out`, if that is one."""
        there = left_out >= 0
        if self.chosen is not None:
            there &= self.chosen[left_out.clamp_min(0)]
        return self.count - there.long()

    def _everyones(self, left_out: Tensor | None) -> Tensor | None:
        """The places of what the rows of all processes leave out."""
        return None if left_out is None else self._place(gathered(left_out, left_out)[1])

    def own_cosines(self, unit: Tensor, weight: Tensor, labels: Tensor, *, k: int) -> Tensor:
        """(B,) cosines to the nearest own centre, wherever it is; 0 for -1."""
        with torch.no_grad():
            unit, centers = self._gather(unit), self._centers(weight, k)
            if len(centers) == 0:
                own = unit.new_zeros(len(unit))
            else:
                own = own_cosines(unit, centers, self.places, k=k)
            return summed(torch.where(self.places >= 0, own, 0))[self.rows]

    def _gather(self, rows: Tensor) -> Tensor:
        """Every process's rows, differentiable; zero rows where one has fewer."""
        if self.world == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self.rows, len(self.places))
        return gathered

    def _centers(self, weight: Tensor, k: int) -> Tensor:
        """The (n*K, D) centres of the drawn classes."""
        if self.drawn is None:
            return weight
        rows = self.drawn[:, None] * k + torch.arange(k, device=weight.device)
        centers: Tensor = _Take.apply(weight, rows.flatten())
        return centers

    def _join(self, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the shards found for all rows as one result for this process's rows."""
        if self.world == 1:
            return found
        joined: tuple[Tensor, ...] = _Join.apply(*found, self.rows)
        return joined


class _Take(torch.autograd.Function):
    """Rows of the weight; their gradient is sparse and names them, in rising order."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return torch.index_select(weight, 0, rows, out=fresh(weight, len(rows)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        options: dict[str, Any] = {"is_coalesced": True, "check_invariants": False}
        return torch.sparse_coo_tensor(rows[None], grad, ctx.shape, **options), None


class _Gather(torch.autograd.Function):
    """All processes' rows; the gradient is the sum of what each process's shard gives."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, mine: slice, count: int) -> Tensor:
        ctx.mine = mine
        everyone = rows.new_zeros(count, *rows.shape[1:])
        everyone[mine] = rows
        # A sum, not a gather: numbers of rows may differ, and x + 0 is x.
        return summed(everyone)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return summed(grad)[ctx.mine] * dist.get_world_size(), None, None


class _Join(torch.autograd.Function):
    """The own cosine, logsumexp and sum over all shards; (B,) each, of this process's rows.

    Backward hands the shards the gradients of all rows, over the number of processes: so the
    centres get what DDP gives the rest. `_Gather` multiplies by it again for the embeddings.
    """

    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor,
        logs: Tensor,
        sums: Tensor,
        hardest: Tensor,
        winner: Tensor,
        mine: slice,
    ) -> tuple[Tensor, ...]:
        peaks = torch.stack([logs, hardest])
        dist.all_reduce(peaks, dist.ReduceOp.MAX)
        low = peaks[0].clamp_min(torch.finfo(logs.dtype).min)  # -inf - -inf would be NaN
        own, mass, sums, won = summed(torch.stack([own, (logs - low).exp(), sums, winner.to(own)]))
        total = low + mass.log()
        ctx.mine, ctx.share = mine, (logs - total.clamp_min(torch.finfo(logs.dtype).min)).exp()
        hardest, winner = peaks[1, mine], won[mine].long()
        ctx.mark_non_differentiable(hardest, winner)
        ctx.set_materialize_grads(False)
        return own[mine].clone(), total[mine].clone(), sums[mine].clone(), hardest, winner

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        everyone = ctx.share.new_zeros(3, len(ctx.share))
        for row, grad in zip(everyone, grads[:3], strict=True):
            if grad is not None:
                row[ctx.mine] = grad
        d_own, d_logs, d_sums = summed(everyone) / dist.get_world_size()
        # No gradient is none on every process: they run the same program.
        return d_own, d_logs * ctx.share, None if grads[2] is None else d_sums, None, None, None
