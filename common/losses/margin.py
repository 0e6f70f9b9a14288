"""Margin softmax heads: CosFace, ArcFace, sub-centre ArcFace; fixed, per-class and growing margins.

head = SubCenterArcFace(512, num_classes, margin={"formula": "power"}, class_counts=counts)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.losses.classify import CosineSoftmax
from common.losses.cross_entropy import Counts
from common.losses.schedule import numbers, ramp_factor, read_ramp

_FORMULAS = {  # the defaults are haqishen's and the paper's numbers
    "minmax_power": {"a": 0.45, "b": 0.05, "lambda": 0.25},
    "power": {"a": 0.5, "b": 0.05, "lambda": 0.25},
}


class _MarginSoftmax(CosineSoftmax):
    """Cosine softmax with a margin on the own class; arguments in `SubCenterArcFace`."""

    largest_margin: float
    margin: float
    margins: Tensor | None
    margin_factor: Tensor

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        k: int = 1,
        scale: float = 30.0,
        margin: float | Mapping[str, Any] = 0.3,
        class_counts: Counts | None = None,
        *,
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
            class_counts,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            class_weights=class_weights,
            seed=seed,
        )
        self.ramp = read_ramp(ramp)
        margins = None
        if isinstance(margin, Mapping):
            margins = _margins(margin, self._need_counts("margin"))
            low, high = margins.min().item(), margins.max().item()
        else:
            low = high = self.margin = float(margin)  # exact in float64 too, which a buffer is not
        high *= max(1.0, self.ramp["start"], self.ramp["end"])
        if not 0 <= low <= high <= self.largest_margin:
            raise ValueError(
                f"margins must lie in [0, {self.largest_margin:.4g}], got {low:.4g} to {high:.4g} "
                f"from margin={margin!r}, ramp={ramp!r}; angles are in radians"
            )
        # The margins follow from the arguments; in the checkpoint is how far they have grown.
        margins = None if margins is None else margins.to(self.weight.dtype)
        self.register_buffer("margins", margins, persistent=False)
        self.register_buffer("margin_factor", torch.tensor(self.ramp["start"]))

    def schedule(self, progress: float) -> None:
        """Set how far the ramp has grown; progress is the part of the training done, 0 to 1.

        Raises:
            ValueError: progress outside [0, 1], such as an epoch number.
        """
        self.margin_factor.fill_(ramp_factor(self.ramp, progress))

    def _margin(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """The margin of each row now: (B,), or a scalar where all classes share it."""
        factor = self.margin_factor.to(dtype)
        return factor * (self.margin if self.margins is None else self.margins[labels].to(dtype))


class CosFace(_MarginSoftmax):
    """CosFace head: cos(theta) - m on the own class (CVPR 2018, eq. 4), m in [0, 2].

    Arguments as in `SubCenterArcFace`.
    """

    largest_margin = 2.0

    def _target(self, cosine: Tensor, labels: Tensor) -> Tensor:
        return cosine - self._margin(labels, cosine.dtype)


class ArcFace(_MarginSoftmax):
    """ArcFace head: cos(theta + m) on the own class (CVPR 2019, eq. 3), m in [0, pi/2] radians.

    Where theta + m > pi the cosine would rise again and reward the worst rows: from there on it is
    cos(theta) - m * sin(m), which lies below -1 and keeps falling. There is no "easy margin": it
    takes the margin from rows beyond 90 degrees, with a jump, and those are the ones to be moved.

    Arguments as in `SubCenterArcFace`.
    """

    largest_margin = math.pi / 2

    def _target(self, cosine: Tensor, labels: Tensor) -> Tensor:
        margin = self._margin(labels, cosine.dtype)
        # On the centre the slope of acos or sqrt is infinite, and rounding puts cosines above 1.
        room = (1 - cosine) * (1 + cosine)
        sine = room.clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
        moved = cosine * margin.cos() - sine * margin.sin()
        return torch.where(cosine > -margin.cos(), moved, cosine - margin * margin.sin())


class SubCenterArcFace(ArcFace):
    """ArcFace with K centres per class of which the nearest counts, so noise can gather elsewhere.

    Deng et al., ECCV 2020, and eq. 7 of ArcFace's journal version (TPAMI 2022, arXiv 1801.07698v4).
    `head.weight` is (C*K, D), the K rows of a class adjacent.

    Args:
        embedding_dim: D.
        num_classes: C.
        k: centres per class, at most 255.
        scale: factor on the cosines.
        margin: a number, or a formula in n, the images of the row's class, with its constants:
            {formula: minmax_power, a: 0.45, b: 0.05, lambda: 0.25} is a * r + b, where r is
            n^-lambda moved to 0 for the largest and 1 for the smallest class, and 1/2 if all are
            equal (haqishen, Landmark Recognition 2020 third; Henkel, Landmarks 2021 first);
            {formula: power, a: 0.5, b: 0.05, lambda: 0.25} is a * n^-lambda + b (Ha et al. 2020;
            Happywhale 2022 first: coef is a, power is -lambda, cons is b).
            A class without images gets the margin of the smallest class that has some.
        class_counts: (C,) training images by encoded label, 0 allowed; for formulas only.
        ramp: {start: 0.2, end: 1.0, over: 0.5}, a factor on all margins that goes linearly from
            start to end over that part of the training and stays there, see `schedule`; with
            from: 0.3 it waits so long at start. The margins
            .2 to 1.0 of Shopee 2021 first are margin 1.0 with start 0.2; its .2 to .8 are margin
            0.8 with start 0.25.
        label_smoothing: share of the target mass spread over all classes, see `cross_entropy`.
        focal_gamma: rows weigh (1 - p)^gamma, p with the margin; 0 is off.
        class_weights: formula in the count n of the row's class, e.g. `1/log1p(n)`.
        seed: of the first weight; None draws from torch's own generator.

    Raises:
        ValueError: an argument out of range, an unknown formula or key, counts that do not fit C.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        k: int = 3,
        scale: float = 30.0,
        margin: float | Mapping[str, Any] = 0.3,
        class_counts: Counts | None = None,
        *,
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


def _margins(given: Mapping[str, Any], counts: Tensor) -> Tensor:
    """(C,) float64 margins by a formula in the images per class."""
    formula = given.get("formula")
    if formula not in _FORMULAS:
        raise ValueError(f"no margin formula {formula!r}; known: {', '.join(_FORMULAS)}")
    constants = {name: value for name, value in given.items() if name != "formula"}
    values = numbers(constants, _FORMULAS[formula], f"margin formula {formula}")
    a, b, falling = values["a"], values["b"], counts ** -values["lambda"]
    if formula == "minmax_power":
        low, high = falling.aminmax()
        falling = (falling - low) / (high - low) if high > low else torch.full_like(falling, 0.5)
    return a * falling + b
