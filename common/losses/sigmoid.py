"""A sigmoid per class, learnt from the hardest classes, with unknowns that belong to none.

head = OHEMSigmoid(512, num_classes); loss = head(embeddings, labels)  # label -1: an unknown
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common.losses.classify import _Head
from common.losses.cosine import twin_of, unit_rows
from common.losses.cross_entropy import check_labels
from common.losses.schedule import ramp_factor, read_ramp


class OHEMSigmoid(_Head):
    """A sigmoid per class with the hardest classes of each row; label -1 is none of the classes.

    Humpback Whale 2019, first place: logits are a linear layer of unit rows times 16; a row's loss
    is the binary cross entropy of its own class plus the mean of its 30 largest over all
    classes. An unknown, label -1, has no own class: its target is zero everywhere, so the head
    learns to refuse, which softmax cannot. The second place adds the same with focal_gamma 2 and
    takes 1 % of the classes, falling to 0.4 %. Take it where unknowns must be told apart, beside a
    triplet loss. Both terms are one mean over all rows, unknowns included; the first place divides
    the own terms by the known rows only. It holds one (B, C) block of logits.

    Args:
        embedding_dim: D.
        num_classes: C.
        scale: factor on the linear layer's output.
        hardest: how many classes per row count, the own one among them; at most all. Below 1 it is
            a share of the classes, at least one.
        focal_gamma: terms weigh p^gamma, p the probability of the wrong answer (Lin et al. 2017,
            eq. 4); 0 is off.
        ramp: {start: 1.0, end: 0.4}, a factor on `hardest` over the training as on the margins of
            `SubCenterArcFace`, at least one class: the second place's 1 % that falls to 0.4 %.
        seed: of the first weight; None draws from torch's own generator.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        scale: float = 16.0,
        hardest: float = 30,
        *,
        focal_gamma: float = 0.0,
        ramp: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            embedding_dim,
            num_classes,
            1,
            None,
            label_smoothing=0.0,
            focal_gamma=focal_gamma,
            class_weights=None,
            seed=seed,
        )
        if not 0 < scale < math.inf or not 0 < hardest < math.inf:
            raise ValueError(f"need scale > 0 and hardest > 0, got {scale} and {hardest}")
        if hardest >= 1 and hardest != int(hardest):
            raise ValueError(f"hardest is a whole number, or a share below 1, got {hardest}")
        self.scale = scale
        self.most = hardest if hardest >= 1 else hardest * num_classes
        self.ramp = read_ramp(ramp)
        self.schedule(0.0)
        self.twins = 0  # see `classify.leave_out_twins`
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def schedule(self, progress: float) -> None:
        """Set how many classes count; progress is the part of the training done, 0 to 1.

        Raises:
            ValueError: progress outside [0, 1], such as an epoch number.
        """
        # A share of 1 % of 300 classes is 3, whatever rounding says.
        wanted = self.most * ramp_factor(self.ramp, progress)
        self.hardest = max(1, math.ceil(round(wanted, 6)))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, D) embeddings of any scale, (B,) int64 labels, -1 for unknowns.

        Computed in float32 (float64 if embeddings or weight are) whatever the autocast. An empty
        batch is a zero attached to the graph.

        Raises:
            ValueError: embeddings or labels of another shape or type, a label outside [-1, C).
        """
        check_labels(labels, len(embeddings), self.num_classes)
        unit = unit_rows(self._inputs(embeddings, labels.clamp_min(0)))
        count = min(self.hardest, self.num_classes - bool(self.twins))
        own, others = _HardestLogits.apply(
            self.scale * unit,
            self.weight,
            self.scale * self.bias,
            labels,
            twin_of(labels, self.twins) if self.twins else None,
            count,
        )
        own = self._wrongness(-own).masked_fill(labels < 0, 0)[:, None]
        others = self._wrongness(others)
        rows = own[:, 0] + torch.cat([own, others], 1).topk(count, 1).values.mean(1)
        return rows.sum() / max(1, len(rows))

    def _wrongness(self, logits: Tensor) -> Tensor:
        """Binary cross entropy against 0, with the focal factor; rises with the logit."""
        zero = torch.zeros_like(logits)
        loss = torch.logaddexp(logits, zero)
        if self.focal_gamma:
            loss = loss * torch.exp(-self.focal_gamma * torch.logaddexp(-logits, zero))
        return loss

    def mass(self, labels: Tensor) -> Tensor:
        """Scalar that the mean over (B,) labels divides by: all rows count."""
        return labels.new_tensor(len(labels))


class _HardestLogits(torch.autograd.Function):
    """(B,) own and (B, n) largest other logits of a linear layer, one (B, C) block each way.

    `gather` by autograd would keep the logits beside their gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        left_out: Tensor | None,
        count: int,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(rows.device.type, enabled=False):
            logits = torch.addmm(bias.to(rows.dtype), rows, weight.to(rows.dtype).T)
        place = labels.clamp_min(0)[:, None]
        own = logits.gather(1, place)
        low = torch.finfo(rows.dtype).min / 4
        logits.scatter_(1, place, torch.where(labels[:, None] >= 0, low, own))
        if left_out is not None:
            out = left_out.clamp_min(0)[:, None]
            kept = torch.where(left_out[:, None] >= 0, low, logits.gather(1, out))
            logits.scatter_(1, out, kept)
        others, places = logits.topk(count, 1)
        ctx.save_for_backward(rows, weight, bias, torch.cat([place, places], 1))
        return own[:, 0], others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, places = ctx.saved_tensors
        grad = rows.new_zeros(len(rows), len(weight))
        grad.scatter_add_(1, places, torch.cat([grads[0][:, None], grads[1]], 1))
        with torch.autocast(rows.device.type, enabled=False):
            d_rows, d_weight = grad @ weight.to(rows.dtype), grad.T @ rows
        return d_rows, d_weight.to(weight.dtype), grad.sum(0).to(bias.dtype), None, None, None
