"""Classifier heads without a margin: plain linear softmax, and softmax over scaled cosines.

head = CosineSoftmax(512, num_classes, scale=30.0); loss = head(embeddings, labels)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from common.losses.cosine import ClassCosines, class_cosines, twin_of, unit_rows
from common.losses.cross_entropy import (
    Counts,
    check_labels,
    cross_entropy,
    images_per_class,
    mean_loss,
    row_weights,
    weights_by_count,
)
from common.losses.processes import gathered
from common.losses.tiled import Among, OverClasses, Part, over_classes, own_cosines
from common.losses.watch import head_sums, means


class _Head(nn.Module):
    """Checked inputs, the weight, and the options of the cross entropy."""

    class_weights: Tensor | None

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        k: int,
        class_counts: Counts | None,
        *,
        label_smoothing: float,
        focal_gamma: float,
        class_weights: str | None,
        seed: int | None,
    ) -> None:
        super().__init__()
        if embedding_dim < 1 or num_classes < 1:
            raise ValueError(
                "a head needs at least one dimension and one class, got "
                f"embedding_dim={embedding_dim}, num_classes={num_classes}"
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        if not 0 <= focal_gamma < math.inf:
            raise ValueError(f"focal_gamma must be 0 (off) or positive, got {focal_gamma}")
        self.embedding_dim, self.num_classes = embedding_dim, num_classes
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.weight = nn.Parameter(torch.empty(num_classes * k, embedding_dim))
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        # Rows of length about 1: a cosine's gradient goes with 1 / length, so this sets the pace.
        nn.init.normal_(self.weight, std=embedding_dim**-0.5, generator=generator)
        self._counts = None if class_counts is None else images_per_class(class_counts, num_classes)
        weights = None
        if class_weights is not None:
            weights = weights_by_count(class_weights, self._need_counts("class_weights"))
            weights = weights.to(self.weight.dtype)
        # Not in the checkpoint: it follows from the arguments, which a later stage may change.
        self.register_buffer("class_weights", weights, persistent=False)

    def _need_counts(self, purpose: str) -> Tensor:
        if self._counts is None:
            raise ValueError(f"{purpose} by formula needs class_counts, the images of each class")
        return self._counts

    def _inputs(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings in float32 or float64, ignored rows zero: what they hold cannot spread."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ValueError(
                f"embeddings must be (B, {self.embedding_dim}), got {tuple(embeddings.shape)}"
            )
        check_labels(labels, len(embeddings), self.num_classes)
        kind = torch.promote_types(embeddings.dtype, self.weight.dtype)
        embeddings = embeddings.to(torch.promote_types(kind, torch.float32))
        return torch.where(labels[:, None] >= 0, embeddings, 0)

    def mass(self, labels: Tensor) -> Tensor:
        """Scalar that the mean over (B,) labels divides by; tells processes their shares."""
        return row_weights(labels, self.class_weights).sum()


class LinearSoftmax(_Head):
    """Plain linear classifier with bias and its cross entropy, for side targets of few classes.

    It holds logits and softmax; with many classes take `CosineSoftmax` or a margin head.
    Arguments as in `CosineSoftmax`.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
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
            1,
            class_counts,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            class_weights=class_weights,
            seed=seed,
        )
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, D) embeddings, (B,) int64 labels, -1 ignored; float32 under autocast.

        Raises:
            ValueError: embeddings or labels of another shape or type, a label outside [-1, C).
        """
        embeddings = self._inputs(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            kind = embeddings.dtype
            return cross_entropy(
                embeddings @ self.weight.to(kind).T + self.bias.to(kind),
                labels,
                label_smoothing=self.label_smoothing,
                focal_gamma=self.focal_gamma,
                class_weights=self.class_weights,
            )


def leave_out_twins(term: nn.Module) -> None:
    """Take the mirrored class out of each row's loss, where the classes are C plain + C mirrored.

    Pudae, Humpback 2019, third place, sets that logit to 0 and so takes its gradient; here the
    class is not in the softmax (or among the sigmoids) of the row at all. Losses of pairs have no
    logit and stay.

    Raises:
        ValueError: a head that cannot, or an odd number of classes.
    """
    head: nn.Module = getattr(term, "head", term)  # of partial_fc
    if not hasattr(head, "num_classes"):
        return
    if not hasattr(head, "twins"):
        raise ValueError(
            f"{type(head).__name__} cannot leave the mirrored class out: take a cosine head or "
            "ohem_sigmoid, or set twin_mask=none."
        )
    classes, odd = divmod(int(head.num_classes), 2)  # type: ignore[arg-type]
    if odd or not classes:
        raise ValueError(f"{head.num_classes} classes are not plain and mirrored ones.")
    head.twins = classes  # type: ignore[assignment]


class CosineSoftmax(_Head):
    """Softmax over scaled cosines to learnt class centres, no margin; base of the margin heads.

    Landmark Retrieval 2020, first place: scale sqrt(2) * log(C - 1) (AdaCos, CVPR 2019, eq. 8) and
    class_weights `1/log(n)`.

    Args:
        embedding_dim: D.
        num_classes: C.
        k: centres per class, of which the nearest counts; at most 255.
        scale: factor on the cosines.
        class_counts: (C,) training images by encoded label, 0 allowed; for formulas only.
        label_smoothing: share of the target mass spread over all classes, see `cross_entropy`.
        focal_gamma: rows weigh (1 - p)^gamma; 0 is off.
        class_weights: formula in the count n of the row's class, e.g. `1/log1p(n)`.
        seed: of the first weight; None draws from torch's own generator.

    Raises:
        ValueError: an argument out of range, an unknown formula, counts that do not fit C.
    """

    wins: Tensor | None

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        k: int = 1,
        scale: float = 30.0,
        class_counts: Counts | None = None,
        *,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        class_weights: str | None = None,
        seed: int | None = None,
    ) -> None:
        if not 1 <= k <= 255:
            raise ValueError(f"k, the centres per class, must lie in 1..255, got {k}")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive, got {scale}")
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
        self.k, self.scale = k, float(scale)
        # How often each centre was the nearest of its class in training; adapts, so it is saved.
        wins = torch.zeros(num_classes, k, dtype=torch.int64) if k > 1 else None
        self.register_buffer("wins", wins)
        self._last: tuple[ClassCosines, Tensor] | None = None
        self.among: Among | None = None  # which classes the softmax is over, if not all
        self.twins = 0  # see `leave_out_twins`

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, D) embeddings of any scale and (B,) int64 labels, -1 ignored.

        Computed in float32 (float64 if embeddings or weight are) whatever the autocast. With
        no label to learn from it is a zero attached to the graph.

        Raises:
            ValueError: embeddings or labels of another shape or type, a label outside [-1, C).
        """
        embeddings = self._inputs(embeddings, labels)
        own, others, rest = self._logits(embeddings, labels)
        gap = others - own
        hard = torch.logaddexp(gap, torch.zeros_like(gap))
        # The margin is on the label's logit only: smoothing gives the others plain cosines.
        mean = (rest + own) / self._compared(labels)
        return mean_loss(
            hard,
            hard + own - mean,
            labels,
            label_smoothing=self.label_smoothing,
            focal_gamma=self.focal_gamma,
            class_weights=self.class_weights,
        )

    def _logits(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) logit of the own class, logsumexp and sum of the other classes' logits."""
        return self._scaled(unit_rows(embeddings), labels, self.scale)

    def _scaled(self, unit: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """`_logits` of unit rows: cosines times the scale, with `_target` for the own class."""
        found = self._cosines(unit, labels, scale)
        self._record(found, labels)
        own = scale * self._target(found.own, labels.clamp_min(0))
        return own, found.others, scale * (found.total - found.own)

    def _cosines(self, unit: Tensor, labels: Tensor, scale: float) -> ClassCosines:
        """`class_cosines` of unit rows, to the classes that the softmax is over."""
        call = class_cosines if self.among is None else self.among.class_cosines
        out = self._left_out(labels)
        return call(unit, self.weight, labels, k=self.k, scale=scale, left_out=out)

    def _over(self, unit: Tensor, labels: Tensor, part: Part, *rows: Tensor) -> OverClasses:
        """`over_classes` of unit rows, over the classes that the softmax is over."""
        call = over_classes if self.among is None else self.among.over_classes
        out = self._left_out(labels)
        return call(unit, self.weight, labels, part, *rows, k=self.k, left_out=out)

    def _left_out(self, labels: Tensor) -> Tensor | None:
        return twin_of(labels, self.twins) if self.twins else None

    def _compared(self, labels: Tensor) -> Tensor | int:
        """How many classes the softmax of a row is over: (B,), or one number for all rows."""
        if self.twins and self.among is not None:
            return self.among.counts(twin_of(labels, self.twins))
        count = self.num_classes if self.among is None else self.among.count
        return count - 1 if self.twins else count

    def _own_cosines(self, unit: Tensor, labels: Tensor) -> Tensor:
        """`own_cosines` of unit rows."""
        call = own_cosines if self.among is None else self.among.own_cosines
        return call(unit, self.weight, labels, k=self.k)

    def _target(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """(B,) what replaces the cosine to the own class, before scaling."""
        return cosine

    @torch.no_grad()
    def centers(self) -> Tensor:
        """(C, K, D) unit centres, detached, in float32 at least: a tensor of the weight's size."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        return unit_rows(weight).view(-1, self.k, self.embedding_dim)

    @torch.no_grad()
    def _record(self, found: ClassCosines, labels: Tensor) -> None:
        self._last = ClassCosines(*(part.detach() for part in found)), labels
        if self.wins is not None and self.training:
            place, labels = gathered(labels.clamp_min(0) * self.k + found.winner, labels)
            self.wins.view(-1).scatter_add_(0, place, (labels >= 0).long())

    def watch(self) -> dict[str, Tensor]:
        """Angles of the last batch and its share in dominant centres, see `watch.head_sums`."""
        return {} if self._last is None else head_sums(*self._last, self.wins)

    def statistics(self) -> dict[str, float]:
        """The means of `watch`; empty without a labelled row. Waits for the device."""
        return means(self.watch())
