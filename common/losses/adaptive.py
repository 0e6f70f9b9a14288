"""Heads that adapt while they train: AdaCos, CurricularFace, AdaFace.

head = AdaFace(512, num_classes); loss = head(embeddings, labels)

What adapts is a buffer: it changes in training mode only, over the rows of all processes, is the
same on each, and is saved with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from common.losses.classify import CosineSoftmax
from common.losses.cosine import unit_rows
from common.losses.cross_entropy import Counts
from common.losses.margin import ArcFace
from common.losses.processes import adapt, gathered, summed
from common.losses.tiled import other_classes

_LARGEST_SCALE = 256.0  # on rows that lie on one point AdaCos would rise for ever


class AdaCos(CosineSoftmax):
    """Cosine softmax that sets its own scale from the classes, and if dynamic from each batch.

    Zhang et al., CVPR 2019. Fixed, section 4.1: s = sqrt(2) * log(C - 1). Dynamic, 4.2: each batch
    s = log(B_avg) / cos(min(pi/4, theta_med)), where B_avg is the mean over rows of the sum
    over other classes of e^(s * cos) with the last s, and theta_med the median angle to the own
    class. s stays in [1, 256]: for two classes the formula says 0. Fixed is the safe start when no
    scale has been tuned (Landmark Retrieval 2020, first place); nobody on Kaggle reports a gain
    from dynamic, which falls as the rows near their centres and costs one more product per batch.
    Ports lose s on resume (a Python attribute) and each process has its own.

    Args:
        embedding_dim: D.
        num_classes: C.
        k: centres per class, of which the nearest counts; at most 255.
        dynamic: adapt the scale to each batch.
        class_counts: (C,) training images by encoded label, 0 allowed; for formulas only.
        label_smoothing: share of the target mass spread over all classes, see `cross_entropy`.
        focal_gamma: rows weigh (1 - p)^gamma; 0 is off.
        class_weights: formula in the count n of the row's class, e.g. `1/log1p(n)`.
        seed: of the first weight; None draws from torch's own generator.

    Raises:
        ValueError: an argument out of range, an unknown formula, counts that do not fit C.
    """

    dynamic_scale: Tensor

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        k: int = 1,
        dynamic: bool = False,
        class_counts: Counts | None = None,
        *,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        class_weights: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            embedding_dim,
            num_classes,
            k,
            max(1.0, math.sqrt(2) * math.log(max(1, num_classes - 1))),
            class_counts,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            class_weights=class_weights,
            seed=seed,
        )
        self.dynamic = dynamic
        if dynamic:
            self.register_buffer("dynamic_scale", torch.tensor(self.scale))

    def _logits(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        unit = unit_rows(embeddings)
        if not self.dynamic:
            return self._scaled(unit, labels, self.scale)
        if self.training:
            self._adapt(unit, labels)
        # A tensor of one number acts as that number; reading it would wait for the device.
        return self._scaled(unit, labels, cast(float, self.dynamic_scale.clone()))

    @torch.no_grad()
    def _adapt(self, unit: Tensor, labels: Tensor) -> None:
        scale = cast(float, self.dynamic_scale)
        found = self._cosines(unit, labels, scale)
        rows, labels = gathered(torch.stack([found.own, found.others], 1), labels)
        labelled = labels >= 0
        angles = torch.where(labelled, rows[:, 0].clamp(-1, 1).acos(), torch.nan)
        others = torch.where(labelled, rows[:, 1], -torch.inf)
        log_average = others.logsumexp(0) - labelled.sum().log()
        new = log_average / angles.nanmedian().clamp_max(math.pi / 4).cos()
        # One class: nothing is beside it, log_average is -inf and the scale 1.
        adapt(self.dynamic_scale, new.clamp(1.0, _LARGEST_SCALE))

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """As of `CosineSoftmax`; if dynamic also `scale`."""
        found = super().statistics()
        return found | {"scale": self.dynamic_scale.item()} if self.dynamic else found


class CurricularFace(ArcFace):
    """ArcFace in which hard other classes weigh little at first and more as training succeeds.

    Huang et al., CVPR 2020, section 3: a cosine c to another class above the own class's
    cos(theta + m) becomes c * (t + c). t is the moving average of the cosine to the own class, 0 at
    the start, and moves before it is used: eq. 9 as the authors' code has it, where 0.99 is the
    share of the old t. While t is small or negative, hard classes with c below -t / 2 are pulled
    nearer, as in the paper: take it for many classes and long trainings, where early noise hurts
    ArcFace. The authors' code keeps comparing with cos(theta + m) beyond pi, where that rises
    again; here the comparison is with the logit that is used. Its t differs between processes.

    Arguments as in `SubCenterArcFace`, the paper's scale 64 and margin 0.5, and

    Args:
        momentum: share of t that stays each batch, the paper's 0.99.
    """

    progress: Tensor

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        k: int = 1,
        scale: float = 64.0,
        margin: float | Mapping[str, Any] = 0.5,
        class_counts: Counts | None = None,
        *,
        momentum: float = 0.99,
        ramp: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        class_weights: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            embedding_dim,
            num_classes,
            k,
            scale,
            margin,
            class_counts,
            ramp=ramp,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            class_weights=class_weights,
            seed=seed,
        )
        self.momentum = _momentum(momentum)
        self.register_buffer("progress", torch.zeros(()))  # the paper's t

    def _logits(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        unit = unit_rows(embeddings)
        near = self._own_cosines(unit, labels)
        if self.training:
            self._adapt(near, labels)
        easy = self._target(near, labels.clamp_min(0))[:, None]
        progress, scale = self.progress.to(unit.dtype, copy=True), self.scale

        def part(cosine: Tensor, mine: Tensor, easy: Tensor) -> tuple[Tensor, Tensor]:
            risen = torch.where(cosine > easy, cosine * (progress + cosine), cosine)
            return other_classes(scale * risen, mine)

        found = self._over(unit, labels, part, easy)
        self._record(found.cosines(), labels)
        own = self.scale * self._target(found.own, labels.clamp_min(0))
        return own, found.logs, found.sums

    @torch.no_grad()
    def _adapt(self, near: Tensor, labels: Tensor) -> None:
        labelled = labels >= 0
        total, count = summed(torch.stack([(near * labelled).sum(), labelled.sum()]))
        adapt(self.progress, torch.lerp(total / count, self.progress.to(near.dtype), self.momentum))

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """As of `CosineSoftmax`, and `progress`, the paper's t."""
        return super().statistics() | {"progress": self.progress.item()}


class AdaFace(ArcFace):
    """Margin by image quality: long embeddings count as sharp images and learn from hard ones.

    Kim et al., CVPR 2022, eq. 16 and 18: with q = h * (|x| - mean) / std clipped to [-1, 1] the own
    cosine is cos(theta - m * q) - (m * q + m): an angular margin for short embeddings, CosFace's in
    the middle, a reversed one for long. Mean and std of the lengths are moving averages; no
    gradient goes through q. Take it where quality varies (blur, crops, distance), with a last layer
    that does not normalise. The authors' std is NaN for one image, and beyond pi their cosine is
    flat, so the worst rows learn nothing: here it goes on as in `ArcFace`.

    Arguments as in `SubCenterArcFace`, the paper's scale 64 and margin 0.4, and

    Args:
        concentration: the paper's h, 0.333.
        momentum: share of mean and std that stays each batch, the paper's 0.99.
    """

    length_mean: Tensor
    length_std: Tensor

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        k: int = 1,
        scale: float = 64.0,
        margin: float | Mapping[str, Any] = 0.4,
        class_counts: Counts | None = None,
        *,
        concentration: float = 0.333,
        momentum: float = 0.99,
        ramp: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        class_weights: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            embedding_dim,
            num_classes,
            k,
            scale,
            margin,
            class_counts,
            ramp=ramp,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            class_weights=class_weights,
            seed=seed,
        )
        if not 0 < concentration < math.inf:
            raise ValueError(f"concentration must be positive, got {concentration}")
        self.concentration, self.momentum = concentration, _momentum(momentum)
        self.register_buffer("length_mean", torch.tensor(20.0))  # the authors' start
        self.register_buffer("length_std", torch.tensor(100.0))

    def _logits(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length = torch.linalg.vector_norm(embeddings.detach(), dim=1).clamp(0.001, 100.0)
        if self.training:
            self._adapt(length, labels)
        quality = (length - self.length_mean) / (self.length_std + 1e-3) * self.concentration
        found = self._cosines(unit_rows(embeddings), labels, self.scale)
        self._record(found, labels)
        margin = self._margin(labels.clamp_min(0), length.dtype)
        reversed_ = margin * quality.clamp(-1, 1)
        own = self.scale * (_turned(found.own, -reversed_) - (reversed_ + margin))
        return own, found.others, self.scale * (found.total - found.own)

    @torch.no_grad()
    def _adapt(self, length: Tensor, labels: Tensor) -> None:
        labelled = labels >= 0
        total, count = summed(torch.stack([(length * labelled).sum(), labelled.sum()]))
        mean = total / count
        squares = summed(((length - mean).square() * labelled).sum())
        for state, new in (
            (self.length_mean, mean),
            (self.length_std, (squares / (count - 1).clamp_min(0)).sqrt()),  # NaN for one row
        ):
            adapt(state, torch.lerp(new, state.to(new.dtype), self.momentum))

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """As of `CosineSoftmax`, and the averages `length_mean` and `length_std`."""
        lengths = {name: getattr(self, name).item() for name in ("length_mean", "length_std")}
        return super().statistics() | lengths


def _turned(cosine: Tensor, angle: Tensor) -> Tensor:
    """(B,) cos(theta + angle), 1 below theta + angle = 0 and falling on above pi as in ArcFace."""
    room = (1 - cosine) * (1 + cosine)
    sine = room.clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    moved = cosine * angle.cos() - sine * angle.sin()
    moved = torch.where((angle < 0) & (cosine > angle.cos()), 1, moved)
    return torch.where((angle > 0) & (cosine <= -angle.cos()), cosine - angle * angle.sin(), moved)


def _momentum(momentum: float) -> float:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
    return momentum
