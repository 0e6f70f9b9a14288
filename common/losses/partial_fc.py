"""Sampled classes for any margin head, and its centres spread over the processes.

loss = [{name: partial_fc, rate: 0.1, head: {name: sub_center_arcface, k: 3}}]

An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition
CNNs by Partial FC", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.losses import adaptive, classify, margin, proxies
from common.losses.classify import CosineSoftmax
from common.losses.cross_entropy import Counts, check_labels
from common.losses.shard import Shard
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
        self.shard = Shard(head.num_classes)
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

    def watch(self) -> dict[str, Tensor]:
        """The head's, over the drawn classes, and how many those were."""
        drawn = self.head.weight.new_ones(2)
        drawn[0] = self.shard.count
        return {**self.head.watch(), "classes": drawn}

    def statistics(self) -> dict[str, float]:
        """The same of the last batch, and what else the head tells."""
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
