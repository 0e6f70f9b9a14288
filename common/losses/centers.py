"""Losses of rows that keep their length: center loss, modified softmax, SphereFace.

loss = [{name: linear_softmax}, {name: center, weight: 0.003}]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.losses.classify import CosineSoftmax
from common.losses.cosine import unit_rows
from common.losses.cross_entropy import (
    Counts,
    check_labels,
    images_per_class,
    row_weights,
    weights_by_count,
)
from common.losses.processes import gathered
from common.losses.schedule import numbers

_TINY = 1e-30
_ANNEALING = {"start": 1000.0, "decay": 0.12, "end": 5.0}  # sphereface_model.prototxt


class CenterLoss(nn.Module):
    """Half the squared distance of each row to its class's centre, beside a softmax.

    Wen et al., ECCV 2016, eq. 2, as a mean over rows, and eq. 4: after each training batch a class
    with n rows in it moves its centre by alpha * sum(x - c) / (1 + n). The centres are a buffer:
    no optimiser, weight decay or gradient scale touches them, unlike in ports that learn them by
    SGD and divide their gradient by the loss weight. Alone it collapses; the paper's weight beside
    softmax is 0.003. Take it to tighten classes of a head that keeps the length of its rows.

    Args:
        embedding_dim: D.
        num_classes: C.
        alpha: the paper's rate of the centres, 0.5.
        class_counts: (C,) training images by encoded label, 0 allowed; for class_weights only.
        class_weights: formula in the count n of the row's class, e.g. `1/log1p(n)`, for the mean;
            the centres move as without.
        normalize: rows are scaled to length 1 first, for use beside a cosine head.

    Raises:
        ValueError: an argument out of range, an unknown formula, counts that do not fit C.
    """

    means: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        alpha: float = 0.5,
        class_counts: Counts | None = None,
        *,
        class_weights: str | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if embedding_dim < 1 or num_classes < 1 or not 0 < alpha <= 1:
            raise ValueError(
                "center loss needs at least one dimension and class and alpha in (0, 1], got "
                f"embedding_dim={embedding_dim}, num_classes={num_classes}, alpha={alpha}"
            )
        self.alpha, self.normalize = alpha, normalize
        self.register_buffer("means", torch.zeros(num_classes, embedding_dim))
        weights = None
        if class_weights is not None:
            if class_counts is None:
                raise ValueError("class_weights by formula needs class_counts")
            counts = images_per_class(class_counts, num_classes)
            weights = weights_by_count(class_weights, counts).to(self.means.dtype)
        self.register_buffer("class_weights", weights, persistent=False)  # see `classify._Head`

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, D) embeddings and (B,) int64 labels, -1 ignored; float32 at least.

        In training the centres then move by the rows of all processes, those not finite left out.

        Raises:
            ValueError: embeddings or labels of another shape or type, a label outside [-1, C).
        """
        classes, dim = self.means.shape
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise ValueError(f"embeddings must be (B, {dim}), got {tuple(embeddings.shape)}")
        check_labels(labels, len(embeddings), classes)
        kind = torch.promote_types(embeddings.dtype, self.means.dtype)
        rows = torch.where(labels[:, None] >= 0, embeddings.to(kind), 0)
        rows = unit_rows(rows) if self.normalize else rows
        centers = self.means[labels.clamp_min(0)].to(kind)
        squares = (rows - centers).square().sum(1)
        if self.training:
            self._move(rows.detach(), labels)
        weights = row_weights(labels, self.class_weights).to(kind)
        tiny = torch.finfo(kind).tiny
        return (squares * weights).sum() / 2 / weights.sum().clamp_min(tiny)

    def mass(self, labels: Tensor) -> Tensor:
        """Scalar that the mean over (B,) labels divides by; tells processes their shares."""
        return row_weights(labels, self.class_weights).sum()

    @torch.no_grad()
    def _move(self, rows: Tensor, labels: Tensor) -> None:
        rows, labels = gathered(rows, labels)
        counted = ((labels >= 0) & rows.isfinite().all(1)).to(rows.dtype)
        place = labels.clamp_min(0)
        count = rows.new_zeros(len(self.means)).index_add_(0, place, counted)
        rate = self.alpha * counted / (1 + count[place])
        away = torch.where(counted[:, None] > 0, rows - self.means[place], 0) * rate[:, None]
        self.means.index_add_(0, place, away.to(self.means.dtype))


class ModifiedSoftmax(CosineSoftmax):
    """Softmax over |x| * cos(theta): the centres have length 1, rows keep theirs, no margin.

    Liu et al., CVPR 2017, eq. 5: what SphereFace is without a margin, and where the field's
    angular losses began. Rows learn to grow, so `CosineSoftmax` is the better baseline.

    Args:
        embedding_dim: D.
        num_classes: C.
        k: centres per class, of which the nearest counts; at most 255.
        class_counts: (C,) training images by encoded label, 0 allowed; for formulas only.
        label_smoothing: share of the target mass spread over all classes, see `cross_entropy`.
        focal_gamma: rows weigh (1 - p)^gamma; 0 is off.
        class_weights: formula in the count n of the row's class, e.g. `1/log1p(n)`.
        seed: of the first weight; None draws from torch's own generator.

    Raises:
        ValueError: an argument out of range, an unknown formula, counts that do not fit C.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        k: int = 1,
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
            1.0,
            class_counts,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            class_weights=class_weights,
            seed=seed,
        )

    def _logits(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length = _length(embeddings)
        # Rows of at most length 1 and one scale for all: the same logits, and cosines in [-1, 1].
        longest = torch.cat([length.detach(), length.new_ones(1)]).amax()
        scale = cast(float, longest)  # reading it would wait for the device
        found = self._cosines(embeddings / longest, labels, scale)
        shrunk = (length / longest).clamp_min(torch.finfo(length.dtype).tiny)
        hardest = (found.hardest / shrunk).clamp_min(-1)
        self._record(found._replace(own=found.own / shrunk, hardest=hardest), labels)
        own = self._own(found.own * longest, length)
        return own, found.others, longest * (found.total - found.own)

    def _own(self, along: Tensor, length: Tensor) -> Tensor:
        """(B,) logit of the own class from |x| * cos(theta) and |x|."""
        return along


class SphereFace(ModifiedSoftmax):
    """SphereFace head: |x| * psi(theta) on the own class, psi falling like cos(m * theta).

    Liu et al., CVPR 2017, eq. 7: psi = (-1)^k cos(m * theta) - 2k for theta in
    [k * pi / m, (k + 1) * pi / m], mixed with the plain cosine as (lambda * cos + psi) / (1 +
    lambda), where lambda = max(end, start / (1 + decay * batches)). From lambda 0 it does not
    converge, and peers have no lambda at all. Of historical interest: `ArcFace` is as strong and
    has no such phase.

    Arguments as in `ModifiedSoftmax`, and

    Args:
        margin: the paper's m, a whole number; 1 is `ModifiedSoftmax`.
        annealing: the authors' {start: 1000, decay: 0.12, end: 5}.
    """

    batches: Tensor

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        k: int = 1,
        margin: int = 4,
        class_counts: Counts | None = None,
        *,
        annealing: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        class_weights: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            embedding_dim,
            num_classes,
            k,
            class_counts,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            class_weights=class_weights,
            seed=seed,
        )
        if isinstance(margin, bool) or not isinstance(margin, int) or not 1 <= margin <= 16:
            raise ValueError(f"margin must be a whole number in 1..16, got {margin!r}")
        self.margin = margin
        self.annealing = numbers(annealing or {}, _ANNEALING, "annealing")
        if min(self.annealing.values()) < 0:
            raise ValueError(f"annealing needs numbers of at least 0, got {dict(self.annealing)}")
        self.register_buffer("batches", torch.tensor(0))  # trained on, this one included

    def _own(self, along: Tensor, length: Tensor) -> Tensor:
        if self.training:
            self.batches.add_(1)
        a = self.annealing
        blend = (a["start"] / (1 + a["decay"] * self.batches.to(along.dtype))).clamp_min(a["end"])
        cosine = torch.where(length > 0, along / length.clamp_min(_TINY), 0)
        return (blend * along + length * _psi(cosine, self.margin)) / (1 + blend)


def _psi(cosine: Tensor, m: int) -> Tensor:
    """(B,) (-1)^k cos(m * theta) - 2k, where theta lies in the k-th of m parts of [0, pi]."""
    before, multiple = torch.ones_like(cosine), cosine  # Chebyshev: no acos with infinite slope
    for _ in range(m - 1):
        before, multiple = multiple, 2 * cosine * multiple - before
    with torch.no_grad():
        k = (cosine.clamp(-1, 1).acos() * (m / math.pi)).floor().clamp_max(m - 1)
    return (1 - 2 * (k % 2)) * multiple - 2 * k


def _length(rows: Tensor) -> Tensor:
    """(B,) lengths; scaling by the largest entry first keeps squares inside float32."""
    peak = rows.detach().abs().amax(1).clamp_min(_TINY)
    length: Tensor = torch.linalg.vector_norm(rows / peak[:, None], dim=1)
    return peak * length
