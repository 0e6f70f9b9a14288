"""Losses of rows against one proxy per class: Proxy-Anchor, Proxy-NCA, Circle.

head = ProxyAnchor(512, num_classes); loss = head(embeddings, labels)
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.losses.classify import CosineSoftmax
from common.losses.cosine import unit_rows
from common.losses.cross_entropy import Counts, mean_loss
from common.losses.tiled import other_classes, over_classes


class ProxyAnchor(CosineSoftmax):
    """Each class's proxy pulls its rows of the batch and pushes the others, hardest ones most.

    Kim et al., CVPR 2020, eq. 4: the mean over classes in the batch of log(1 + sum over their rows
    of e^(-s * (cos - m))), plus the mean over all classes of log(1 + sum over the other rows of
    e^(s * (cos + m))). Converges faster than pair losses and needs no sampler; strong for some
    thousand classes. Each process compares its own rows.

    Args:
        embedding_dim: D.
        num_classes: C.
        scale: the paper's alpha, 32.
        margin: the paper's delta, 0.1.
        seed: of the first proxies; None draws from torch's own generator.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        scale: float = 32.0,
        margin: float = 0.1,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(embedding_dim, num_classes, scale=scale, seed=seed)
        if not 0 <= margin < 1:
            raise ValueError(f"margin must lie in [0, 1), got {margin}")
        self.margin = margin
        del self.twins  # a proxy here meets rows, not rows proxies

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, D) embeddings of any scale and (B,) int64 labels, -1 ignored.

        Computed in float32 (float64 if embeddings or weight are) whatever the autocast. With
        no label to learn from it is a zero attached to the graph.

        Raises:
            ValueError: embeddings or labels of another shape or type, a label outside [-1, C).
        """
        unit = unit_rows(self._inputs(embeddings, labels))
        scale, margin, ignored = self.scale, self.margin, (labels < 0)[:, None]

        def part(cosine: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
            pulls = _log1p_sum_exp(-scale * (cosine - margin), mine)
            pushes = _log1p_sum_exp(scale * (cosine + margin), ~(mine | ignored))
            present = mine.any(0).sum().to(cosine.dtype)
            return cosine.new_zeros(0), torch.stack([pulls.sum(), pushes.sum(), present])

        found = over_classes(unit, self.weight, labels, part)
        self._record(found.cosines(), labels)
        pulls, pushes, present = found.sums
        loss: Tensor = pulls / present.clamp_min(1) + pushes / self.num_classes
        return loss


class ProxyNCA(CosineSoftmax):
    """Rows nearer to their class's proxy than to all others, by the ratio of exponentials.

    Movshovitz-Attias et al., ICCV 2017, eq. 4 with proxies as in Algorithm 1: -log(e^-d(x, own) /
    sum over the others of e^-d), d the squared distance of unit vectors, so 2 - 2 * cos and a scale
    of 2. The own proxy is not in the sum: with it, as pytorch-metric-learning has it, this is
    `CosineSoftmax`, and with scale 18 Proxy-NCA++. So the ratio is no probability, and there is
    nothing to smooth or to focus on. Never satisfied, it keeps pushing well-placed rows; a
    baseline.

    Args:
        embedding_dim: D.
        num_classes: C.
        scale: factor on the cosines.
        class_counts: (C,) training images by encoded label, 0 allowed; for formulas only.
        class_weights: formula in the count n of the row's class, e.g. `1/log1p(n)`.
        seed: of the first proxies; None draws from torch's own generator.

    Raises:
        ValueError: an argument out of range, an unknown formula, counts that do not fit C.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        scale: float = 2.0,
        class_counts: Counts | None = None,
        *,
        class_weights: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            embedding_dim,
            num_classes,
            scale=scale,
            class_counts=class_counts,
            class_weights=class_weights,
            seed=seed,
        )

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, D) embeddings of any scale and (B,) int64 labels, -1 ignored.

        Computed in float32 (float64 if embeddings or weight are) whatever the autocast. With no
        label or no other class it is a zero attached to the graph.

        Raises:
            ValueError: embeddings or labels of another shape or type, a label outside [-1, C).
        """
        unit = unit_rows(self._inputs(embeddings, labels))
        found = self._cosines(unit, labels, self.scale)
        self._record(found, labels)
        # Not "above": what is NaN stays, and shows.
        loss = torch.where(found.others != -torch.inf, found.others - self.scale * found.own, 0)
        return mean_loss(
            loss,
            loss,
            labels,
            label_smoothing=0.0,
            focal_gamma=0.0,
            class_weights=self.class_weights,
        )


class ClassCircle(CosineSoftmax):
    """Circle loss against class centres: a cosine counts by how far it is from its goal.

    Sun et al., CVPR 2020, eq. 5 and 6, with centres in place of the other rows: the own logit is
    s * [1 + m - c]+ * (c - 1 + m), the others' s * [c + m]+ * (c - m), the brackets without
    gradient. Slows down on what is nearly right, where `CosFace` pushes all alike. Logits reach
    -1000, so in float16 this fails. The form over pairs of rows is `circle`.

    Args:
        embedding_dim: D.
        num_classes: C.
        k: centres per class, of which the nearest counts; at most 255.
        scale: the paper's gamma, 256 for faces; 128 for re-identification, 80 for small sets.
        margin: the paper's m, 0.25; 0.4 for small sets.
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
        scale: float = 256.0,
        margin: float = 0.25,
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
            scale,
            class_counts,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            class_weights=class_weights,
            seed=seed,
        )
        if not 0 <= margin < 1:
            raise ValueError(f"margin must lie in [0, 1), got {margin}")
        self.margin = margin

    def _logits(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, margin = self.scale, self.margin

        def part(cosine: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
            urgency = (cosine.detach() + margin).relu()
            return other_classes(scale * urgency * (cosine - margin), mine)

        found = self._over(unit_rows(embeddings), labels, part)
        self._record(found.cosines(), labels)
        urgency = (1 + margin - found.own.detach()).relu()
        return scale * urgency * (found.own - 1 + margin), found.logs, found.sums


def _log1p_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """(n,) log(1 + the sum of e^v over a column's entries under the mask)."""
    low = torch.finfo(values.dtype).min / 4
    total = values.masked_fill(~mask, low).logsumexp(0)
    return torch.logaddexp(total, torch.zeros_like(total))
