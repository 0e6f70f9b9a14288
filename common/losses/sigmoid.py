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
from common.losses.cross_entropy import Counts, check_labels
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
        class_counts: (C,) training images by encoded label, 0 allowed; for class_weights only.
        label_smoothing: share of the own target that is spread evenly over all classes, the own one
            included; an unknown has no target to spread. The hardest are found without it.
        focal_gamma: terms weigh p^gamma, p the probability of the wrong answer (Lin et al. 2017,
            eq. 4), of the target that is not smoothed; 0 is off.
        class_weights: formula in the count n of the row's class, e.g. `1/log1p(n)`; an unknown
            weighs as much as a labelled training image on average, so its part stays what it is.
        ramp: {start: 1.0, end: 0.4}, a factor on `hardest` over the training as on the margins of
            `SubCenterArcFace`, at least one class: the second place's 1 % that falls to 0.4 %.
        seed: of the first weight; None draws from torch's own generator.

    Raises:
        ValueError: an argument out of range, an unknown formula, counts that do not fit C.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        scale: float = 16.0,
        hardest: float = 30,
        class_counts: Counts | None = None,
        *,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        class_weights: str | None = None,
        ramp: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            embedding_dim,
            num_classes,
            1,
            class_counts,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            class_weights=class_weights,
            seed=seed,
        )
        if self.class_weights is not None:
            counts = self._need_counts("class_weights").to(self.class_weights)
            unknown = (self.class_weights * counts).sum() / counts.sum()
            self.class_weights = torch.cat([self.class_weights, unknown[None]])  # [-1] is of -1
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
        known = (labels >= 0)[:, None]
        spread = known * self.label_smoothing / (self.num_classes - bool(self.twins))
        low = torch.finfo(own.dtype).min / 4
        wrong = torch.cat([torch.where(known, -own[:, None], low), others], 1)
        worst, place = wrong.topk(count, 1)
        terms = self._losses(worst, torch.where(place == 0, self.label_smoothing - spread, spread))
        mine = self._losses(-own, self.label_smoothing - spread[:, 0]).masked_fill(~known[:, 0], 0)
        weights = self._row_weights(labels).to(terms.dtype)
        total = ((mine + terms.mean(1)) * weights).sum()
        return total / weights.sum().clamp_min(torch.finfo(terms.dtype).tiny)

    def _losses(self, wrong: Tensor, moved: Tensor) -> Tensor:
        """Cross entropy of logits for the wrong answer, of which a part `moved` of the target is.

        Times the focal factor. For a class that is not the row's own the wrong answer is yes.
        """
        zero = torch.zeros_like(wrong)
        loss = torch.logaddexp(wrong, zero) - (moved * wrong if self.label_smoothing else 0)
        if self.focal_gamma:
            loss = loss * torch.exp(-self.focal_gamma * torch.logaddexp(-wrong, zero))
        return loss

    def _row_weights(self, labels: Tensor) -> Tensor:
        """(B,) weight of each row in the mean; label -1 takes the last."""
        if self.class_weights is None:
            return torch.ones_like(labels, dtype=self.weight.dtype)
        return self.class_weights[labels]

    def mass(self, labels: Tensor) -> Tensor:
        """Scalar that the mean over (B,) labels divides by: all rows count, by their weights."""
        return self._row_weights(labels).sum()


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
