"""Cross entropy by logsumexp, with ignored rows, focal factor, label smoothing and class weights.

loss = cross_entropy(logits, labels, label_smoothing=0.1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Counts = Sequence[int] | np.ndarray[Any, Any] | Tensor  # images per class, by encoded label

_CLASS_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "1/n": lambda n: 1 / n,
    "1/sqrt(n)": lambda n: n.rsqrt(),
    "1/log1p(n)": lambda n: 1 / n.log1p(),  # psinger, Landmark Recognition 2020, first place
    "1/log(n)": lambda n: 1 / n.clamp_min(2).log(),  # seungkee, Landmark Retrieval 2020; log(1) = 0
}


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Scalar mean cross entropy of logits, label -1 ignored.

    Args:
        logits: (B, C), computed in float32 at least.
        labels: (B,) int64 in [-1, C). No label left: a zero attached to the graph.
        label_smoothing: share of the target mass that is spread evenly over all classes.
        focal_gamma: each row times (1 - p)^gamma, p the softmax at its label (Lin 2017, eq. 4).
        class_weights: (C,); a row weighs what its label weighs and the mean is over weights. Unlike
            in `F.cross_entropy` the smoothed share has the row's weight too (pytorch #104776).

    Raises:
        ValueError: logits or labels of another shape or type, a label outside [-1, C).
    """
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must be (B, C), got {tuple(logits.shape)}")
    check_labels(labels, *logits.shape)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = torch.where(labels[:, None] >= 0, logits, 0)  # a NaN there times weight 0 is NaN
    lse = logits.logsumexp(1)
    return mean_loss(
        lse - logits.gather(1, labels.clamp_min(0)[:, None])[:, 0],
        lse - logits.mean(1),
        labels,
        label_smoothing=label_smoothing,
        focal_gamma=focal_gamma,
        class_weights=class_weights,
    )


def mean_loss(
    hard: Tensor,
    smooth: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float,
    focal_gamma: float,
    class_weights: Tensor | None,
) -> Tensor:
    """Scalar mean over labelled rows of what `cross_entropy` describes.

    Args:
        hard: (B,) -log p of the label; finite in ignored rows too.
        smooth: (B,) mean of -log p over all classes.
        labels: (B,) int64, -1 ignored.
        label_smoothing: see `cross_entropy`, as are the next two.
        focal_gamma: 0 is off.
        class_weights: (C,) or None.
    """
    loss = torch.lerp(hard, smooth, label_smoothing) if label_smoothing else hard
    if focal_gamma:
        # 1 - p without cancellation, and off 0, where a gamma below 1 is infinitely steep.
        loss = loss * (-torch.expm1(-hard)).clamp_min(torch.finfo(hard.dtype).eps) ** focal_gamma
    weight = row_weights(labels, class_weights).to(loss.dtype)
    return (loss * weight).sum() / weight.sum().clamp_min(torch.finfo(loss.dtype).tiny)


def row_weights(labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """(B,) weight of each row in the mean: 0 for label -1, else 1 or that of its class."""
    labelled = labels >= 0
    if class_weights is None:
        return labelled.float()
    return labelled * class_weights[labels.clamp_min(0)]


def check_labels(labels: Tensor, rows: int, classes: int) -> None:
    """Nothing, or an error for labels of another shape or type or outside [-1, classes)."""
    if labels.dtype != torch.int64 or labels.shape != (rows,):
        raise ValueError(
            f"labels must be int64 of shape ({rows},), got {labels.dtype} {tuple(labels.shape)}"
        )
    inside = ((labels >= -1) & (labels < classes)).all()
    if labels.device.type != "cpu":  # to read the answer the host would wait for the device
        torch._assert_async(inside, f"a label lies outside [-1, {classes})")
    elif not inside:
        raise ValueError(
            f"labels must lie in [0, {classes}), or be -1 to ignore a row; got "
            f"{labels.min().item()} to {labels.max().item()}: encode them, and count the classes "
            "with the same encoder"
        )


def images_per_class(class_counts: Counts, classes: int) -> Tensor:
    """(C,) float64 counts for formulas, where a class without images counts like the rarest other.

    So no formula divides by zero, and an absent class moves nobody else's margin or weight.

    Raises:
        ValueError: not one finite count >= 0 per class.
    """
    if isinstance(class_counts, Tensor):
        class_counts = class_counts.detach().cpu().numpy()
    counts = torch.from_numpy(np.array(class_counts, dtype=np.float64))
    if counts.shape != (classes,):
        raise ValueError(
            f"class_counts must hold one count for each of {classes} classes, got shape "
            f"{tuple(counts.shape)}: take np.bincount(labels, minlength={classes})"
        )
    if not bool(((counts >= 0) & counts.isfinite()).all()):
        raise ValueError("class_counts must be finite and at least 0")
    present = counts[counts > 0]
    return counts.where(counts > 0, present.min() if len(present) else counts.new_ones(()))


def weights_by_count(formula: str, counts: Tensor) -> Tensor:
    """(C,) class weights by a formula in the images per class n; only their ratios matter.

    Raises:
        ValueError: unknown formula; lists the known ones.
    """
    if formula not in _CLASS_WEIGHTS:
        raise ValueError(f"no class_weights {formula!r}; known: {', '.join(_CLASS_WEIGHTS)}")
    return _CLASS_WEIGHTS[formula](counts)
