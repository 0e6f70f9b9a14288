"""Sampled classes for any margin head, and its centres spread over the processes.

loss = [{name: partial_fc, rate: 0.1, head: {name: sub_center_arcface, k: 3}}]

An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition
CNNs by Partial FC", CVPR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common.losses import adaptive, classify, margin, proxies
from common.losses.classify import CosineSoftmax
from common.losses.cosine import ClassCosines, class_cosines, fresh
from common.losses.cross_entropy import Counts, check_labels
from common.losses.processes import gathered, joined, summed
from common.losses.tiled import OverClasses, Part, over_classes, own_cosines
from common.steps import bind, catalog

# ModifiedSoftmax and SphereFace scale by the longest row of a process, ProxyAnchor sums over rows.
HEADS = {
    name: head
    for name, head in catalog(margin, classify, adaptive, proxies).items()
    if isinstance(head, type) and issubclass(head, CosineSoftmax) and name != "proxy_anchor"
}


class PartialFC(nn.Module):
    """A margin head whose softmax is over the batch's classes and a random share of the others.

    In training the set is drawn anew for each batch: all classes in it, filled up with random ones
    to `rate` of all (a batch with more classes than that keeps them all). Loss and gradient are
    those of the head over this set alone, and time falls with the rate. So does memory: beside the
    weight a copy of the drawn centres, their gradient, and what the head holds for so many classes.
    The gradient is sparse, so an optimiser of `common.engine.optim` leaves the other centres and
    their moments as they are: no decay, no momentum. In eval mode and in `centers` all classes
    count. For 100,000 classes and more, where the head costs more than the network, or for noisy
    labels, which meet their true class as a negative less often.

    Several processes (torchrun) share the head: each holds C // world classes and the first
    C % world one more, embeddings are gathered, and the softmax is over the classes of all, so
    every process must call it together, and eval mode too. The gradient of a shard is divided by
    the number of processes, as DDP does with what they share. Every process first makes the whole
    weight on the CPU, and the drawn sets are the same for any number of them; a whole state dict
    loads into any number too.

    Args:
        embedding_dim: D, offered by the pipeline.
        num_classes: C, offered by the pipeline.
        head: {name: ...} of a head with class centres, and its arguments; None is
            {name: sub_center_arcface}. Or the module.
        rate: share of the classes in each batch's softmax, in (0, 1]; the paper's is 0.1.
        class_counts: (C,) training images by encoded label, offered by the pipeline.
        seed: of the drawn classes; with the number of draws, which is saved, it fixes each set.

    Raises:
        ValueError: rate outside (0, 1], a module that cannot be sampled; ConfigError: an unknown
            head or argument.
    """

    draws: Tensor

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        head: Mapping[str, Any] | CosineSoftmax | None = None,
        rate: float = 0.1,
        class_counts: Counts | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise ValueError(f"rate is a share of the classes in (0, 1], got {rate}")
        if head is None or isinstance(head, Mapping):
            state: dict[str, Any] = {"embedding_dim": embedding_dim, "num_classes": num_classes}
            state["class_counts"] = class_counts
            head = cast(
                CosineSoftmax,
                bind(dict(head or {"name": "sub_center_arcface"}), HEADS, "partial_fc.head")(state),
            )
        if type(head) not in HEADS.values():
            raise ValueError(
                f"{type(head).__name__} has no classes to sample; known: {', '.join(HEADS)}"
            )
        self.head, self.rate, self.seed = head, rate, seed
        self.embedding_dim, self.num_classes = head.embedding_dim, head.num_classes
        self.shard = _Shard(head.num_classes)
        if self.shard.world > 1:
            # Every process made the same first weight, so their number does not matter.
            head.weight = nn.Parameter(self.cut(head.weight.detach()))
        head.among = self.shard
        self.register_buffer("draws", torch.tensor(0))
        self.register_load_state_dict_pre_hook(_cut_whole)  # type: ignore[no-untyped-call]

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, D) embeddings of any scale and (B,) int64 labels, -1 ignored.

        With several processes the mean over this one's rows; their numbers may differ or be 0.

        Raises:
            ValueError: embeddings or labels of another shape or type, a label outside [-1, C).
        """
        check_labels(labels, len(embeddings), self.num_classes)
        rate = self.rate if self.training else 1.0
        # Generators use 32 bits; neighbouring seeds and draws must not meet.
        self.shard.draw(labels, rate, (self.seed * 1_000_003 + int(self.draws)) % 2**32)
        if self.training:
            self.draws.add_(1)
        return cast(Tensor, self.head(embeddings, labels))

    def mass(self, labels: Tensor) -> Tensor:
        """Scalar that the mean over (B,) labels divides by; tells processes their shares."""
        return self.head.mass(labels)

    def schedule(self, progress: float) -> None:
        """Tell the head how much of the training is done, 0 to 1."""
        if hasattr(self.head, "schedule"):
            cast(Any, self.head).schedule(progress)

    def statistics(self) -> dict[str, float]:
        """The head's, over the drawn classes, and how many those were."""
        return {**self.head.statistics(), "classes": float(self.shard.count)}

    @torch.no_grad()
    def centers(self) -> Tensor:
        """(C, K, D) unit centres of all classes, in float32 at least; all processes call it."""
        return self.whole(self.head.centers(), per=1)

    def cut(self, rows: Tensor) -> Tensor:
        """This process's part of what has rows for all classes, or K for each: a copy."""
        per = len(rows) // self.num_classes
        return rows[self.shard.start * per : self.shard.stop * per].clone()

    @torch.no_grad()
    def whole(self, rows: Tensor, *, per: int, everywhere: bool = True) -> Tensor:
        """The rows for all classes, `per` each, from every process's part; all of them call it.

        If not `everywhere`, they are on the CPU of the first process, and the others get none. One
        part at a time is on the device.
        """
        shard, parts = self.shard, []
        if shard.world == 1:
            return rows
        for rank in range(shard.world):
            size = (shard.bound(rank + 1) - shard.bound(rank)) * per
            mine = rank == shard.rank
            part = rows.contiguous() if mine else rows.new_empty(size, *rows.shape[1:])
            dist.broadcast(part, rank)
            if everywhere or shard.rank == 0:
                parts.append(part if everywhere else part.cpu())
        return torch.cat(parts) if parts else rows[:0]


def _cut_whole(module: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
    """Before loading: of a weight for all classes only this process's part is wanted."""
    part, name = cast(PartialFC, module), f"{prefix}head.weight"
    if name in state and len(state[name]) == part.num_classes * part.head.k:
        state[name] = part.cut(state[name])


class _Shard:
    """The classes of this process, and which of them the present batch is compared with."""

    count: int  # drawn classes of all processes

    def __init__(self, num_classes: int) -> None:
        self.num_classes = self.count = num_classes
        self.world = dist.get_world_size() if joined() else 1
        self.rank = dist.get_rank() if joined() else 0
        self.start, self.stop = self.bound(self.rank), self.bound(self.rank + 1)
        self.drawn: Tensor | None = None  # (n,) numbers within the shard, rising; None is all
        self.places = torch.empty(
            0, dtype=torch.int64
        )  # of all processes' labels in `drawn`, or -1
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
        inside = (everyone >= self.start) & (everyone < self.stop)
        self.places, self.drawn, self.count = everyone - self.start, None, self.num_classes
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
            self.drawn = chosen[self.start : self.stop].nonzero().flatten()
            self.places = torch.searchsorted(self.drawn, self.places)
        self.places = torch.where(inside, self.places, -1)

    def class_cosines(
        self, unit: Tensor, weight: Tensor, labels: Tensor, *, k: int, scale: float
    ) -> ClassCosines:
        """`class_cosines` to the drawn classes of all processes; `labels` are those drawn for."""
        found = class_cosines(
            self._gather(unit), self._centers(weight, k), self.places, k=k, scale=scale
        )
        return ClassCosines(*self._join(found))

    def over_classes(
        self, unit: Tensor, weight: Tensor, labels: Tensor, part: Part, *rows: Tensor, k: int
    ) -> OverClasses:
        """`over_classes` over the drawn classes of all processes."""
        all_rows = [self._gather(r.detach()) for r in rows]
        found = over_classes(
            self._gather(unit), self._centers(weight, k), self.places, part, *all_rows, k=k
        )
        return OverClasses(*self._join(found))

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
