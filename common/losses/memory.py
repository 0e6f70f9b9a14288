"""Pair losses against rows of earlier batches too: cross-batch memory and MoCo's queue.

loss = CrossBatchMemory(512, {"name": "triplet", "miner": "semi_hard_pair"}, size=20_000)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from common.losses import pair
from common.losses import tuple as tuples
from common.losses.batch import ReferenceLoss
from common.losses.processes import gathered
from common.steps import bind, catalog

KNOWN = {
    name: loss
    for name, loss in catalog(pair, tuples).items()
    if inspect.isclass(loss) and issubclass(loss, ReferenceLoss)
}


class _Memory(nn.Module):
    """A ring of rows with labels, and a loss of the batch against it."""

    training_only = True  # left out of the weights that inference reads
    own: bool  # the batch's keys are its embeddings themselves
    memory: Tensor
    memory_labels: Tensor
    cursor: Tensor
    calls: Tensor

    def __init__(
        self, embedding_dim: int, loss: Mapping[str, Any] | ReferenceLoss, size: int, start: int
    ) -> None:
        super().__init__()
        if size < 1 or start < 0:
            raise ValueError(f"Need size >= 1 and start >= 0, got {size} and {start}")
        if isinstance(loss, Mapping):
            loss = cast(ReferenceLoss, bind(dict(loss), KNOWN, "loss")())
        if not isinstance(loss, ReferenceLoss):
            raise ValueError(
                f"{type(loss).__name__} cannot be asked about rows outside the batch; known: "
                f"{', '.join(KNOWN)}"
            )
        self.loss, self.start = loss, start
        self.register_buffer("memory", torch.zeros(size, embedding_dim))
        self.register_buffer("memory_labels", torch.full((size,), -1))  # empty places are ignored
        self.register_buffer("cursor", torch.tensor(0))  # the place of the next row
        self.register_buffer("calls", torch.tensor(0))  # batches trained on

    def schedule(self, progress: float) -> None:
        """Tell the loss how much of the training is done, 0 to 1."""
        if hasattr(self.loss, "schedule"):
            cast(Any, self.loss).schedule(progress)

    def watch(self) -> dict[str, Tensor]:
        """What the loss sums up about its last batch."""
        return cast(Any, self.loss).watch() if hasattr(self.loss, "watch") else {}

    def statistics(self) -> dict[str, float]:
        """What the loss knows about its last batch, and memory_rows, how many rows are stored."""
        own = cast(Any, self.loss).statistics() if hasattr(self.loss, "statistics") else {}
        return {**own, "memory_rows": float((self.memory_labels >= 0).sum())}

    def mass(self, labels: Tensor) -> Tensor:
        """Scalar that the mean over (B,) labels divides by in the next call."""
        references = torch.cat([labels, self._stored()[1]])
        return self.loss.mass(labels, references, own=self.own)

    def _against(self, embeddings: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        """Loss of the embeddings against keys and memory; then the keys go into the memory."""
        shape = (len(labels), self.memory.shape[1])
        if embeddings.shape != shape or keys.shape != shape:
            raise ValueError(
                f"embeddings and keys must be {shape} as labels and memory are, got "
                f"{tuple(embeddings.shape)} and {tuple(keys.shape)}"
            )
        memory, memory_labels = self._stored()
        kind = torch.promote_types(keys.dtype, memory.dtype)  # cat under autocast fails on float16
        # A copy, not a view: the memory moves on before backward.
        references = torch.cat([keys.to(kind), memory.to(kind)])
        loss = self.loss(
            embeddings, labels, references, torch.cat([labels, memory_labels]), own=self.own
        )
        if self.training:
            self._store(keys.detach(), labels)
        return cast(Tensor, loss)

    def _stored(self) -> tuple[Tensor, Tensor]:
        """All (size, D) rows and (size,) labels, -1 where there is none; (0, D) before start."""
        rows = len(self.memory) if self.calls >= self.start else 0
        return self.memory[:rows], self.memory_labels[:rows]

    @torch.no_grad()
    def _store(self, rows: Tensor, labels: Tensor) -> None:
        if self.calls >= self.start:
            rows, labels = gathered(rows.to(self.memory.dtype), labels)
            # A scaler skips a step of infinite rows; kept, they would spoil the next ones.
            usable = ((labels >= 0) & rows.isfinite().all(1)).nonzero()[-len(self.memory) :, 0]
            rows, labels = rows[usable], labels[usable]
            numbers = torch.arange(len(rows), device=rows.device)
            places = (self.cursor + numbers) % len(self.memory)
            self.memory[places], self.memory_labels[places] = rows, labels
            self.cursor.add_(len(rows)).remainder_(len(self.memory))
        self.calls.add_(1)


class CrossBatchMemory(_Memory):
    """Cross-batch memory (XBM): any pair loss, against the rows of the last batches too.

    Wang et al., CVPR 2020, Algorithm 1: the batch against itself and the last `size` rows, which
    get no gradient. The memory holds no row of the present batch, so none has to be recognised
    there, and the batch's own pairs keep the gradient of both their rows (with a copy in the
    memory, as in pytorch-metric-learning, they have half). With several processes each one
    compares its own rows with the memory, which holds the rows of all. For many classes with few
    images, where a batch has hardly a hard negative.

    Args:
        embedding_dim: D, offered by the pipeline.
        loss: {name: ...} of a loss that can compare with other rows, or its module; None is the
            paper's best, {name: cosine_contrastive}.
        size: rows kept; good up to about the training set, as long as the model drifts slowly.
        start: training batches before the memory is filled and used: 1000 in the paper's code,
            because an early model drifts fast. pytorch-metric-learning has no such wait.

    Raises:
        ValueError: size below 1, start below 0, a loss that cannot; ConfigError: an unknown one.
    """

    own = True

    def __init__(
        self,
        embedding_dim: int,
        loss: Mapping[str, Any] | ReferenceLoss | None = None,
        size: int = 8192,
        start: int = 1000,
    ) -> None:
        super().__init__(embedding_dim, loss or {"name": "cosine_contrastive"}, size, start)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, D) embeddings of any scale and (B,) int64 labels, -1 ignored.

        In training the rows then join the memory, except ignored ones and those not finite.

        Raises:
            ValueError: embeddings or labels of another shape or type.
        """
        # First, so that what they get as rows and as references is added up in this type.
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, self.memory.dtype))
        return self._against(embeddings, labels, embeddings)


class MomentumQueue(_Memory):
    """MoCo's queue: embeddings against keys of a slowly moving copy of the model, past ones too.

    He et al., CVPR 2020, Algorithm 1. Training makes the copy (`common.engine.momentum`), which
    embeds the same images or a second augmented view of them. A row's positives are its own
    key and all keys of its class, its negatives the keys of all other classes: same-class entries
    of the queue are no negatives, and keys of the batch count (MoCo, where every image is a class
    of its own, leaves the others of the batch out). Any batch size fits, the last one may be
    smaller (MoCo's code wants a divisor of `size`). The queue starts empty, not random. For small
    batches of large images, when a second forward pass costs less than a larger batch.

    Args:
        embedding_dim: D, offered by the pipeline.
        loss: as in `CrossBatchMemory`; None is the paper's, {name: info_nce}, temperature 0.07.
        size: keys kept, from the batches of all processes.
        start: training batches before the queue is filled and used.
        momentum: share of the copy that stays at each optimiser step (eq. 2); the paper's 0.999 is
            for 200 epochs of ImageNet, a training of few thousand steps wants 0.99.
        view: what the copy sees: second is another augmented view, which costs a second
            augmentation, same is the image that the model sees.

    Raises:
        ValueError: size below 1, start below 0, momentum outside [0, 1), an unknown view, a loss
            that cannot; ConfigError: an unknown one.
    """

    own = False

    def __init__(
        self,
        embedding_dim: int,
        loss: Mapping[str, Any] | ReferenceLoss | None = None,
        size: int = 65536,
        start: int = 0,
        *,
        momentum: float = 0.999,
        view: Literal["second", "same"] = "second",
    ) -> None:
        super().__init__(embedding_dim, loss or {"name": "info_nce"}, size, start)
        if not 0 <= momentum < 1 or view not in ("second", "same"):
            raise ValueError(
                f"momentum must lie in [0, 1) and view be second or same, got {momentum}, {view!r}"
            )
        self.momentum, self.view = momentum, view

    def forward(self, embeddings: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Scalar loss of (B, D) embeddings and keys of any scale, (B,) int64 labels, -1 ignored.

        Keys get no gradient; None is the embeddings themselves, a copy that does not lag. In
        training they then join the queue, except those of ignored rows and those not finite.

        Raises:
            ValueError: embeddings, keys or labels of another shape or type.
        """
        return self._against(embeddings, labels, (embeddings if keys is None else keys).detach())
