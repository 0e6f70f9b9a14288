"""The scale and margin that theory allows for C classes in D dimensions.

for line in [suggest(81_313, 512), *warnings_for(head)]: print(line)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.losses.adaptive import AdaCos, AdaFace
from common.losses.centers import ModifiedSoftmax
from common.losses.classify import CosineSoftmax
from common.losses.margin import ArcFace, CosFace
from common.losses.partial_fc import PartialFC
from common.losses.proxies import ClassCircle, ProxyAnchor, ProxyNCA


@dataclass(frozen=True)
class Suggestion:
    """What `suggest` found; prints as one line.

    Attributes:
        least_scale: CosFace's lower bound on s.
        scale: AdaCos' fixed s.
        largest_cosine_margin: upper bound on m of cos(theta) - m.
        largest_angle_margin: upper bound on m of cos(theta + m), radians.
    """

    least_scale: float
    scale: float
    largest_cosine_margin: float
    largest_angle_margin: float

    def __str__(self) -> str:
        return (
            f"scale at least {self.least_scale:.1f} (CosFace), {self.scale:.1f} by AdaCos; margin "
            f"at most {self.largest_cosine_margin:.3g} as a cosine, "
            f"{self.largest_angle_margin:.3g} as an angle"
        )


def suggest(num_classes: int, embedding_dim: int, *, probability: float = 0.9) -> Suggestion:
    """Bounds on scale and margin for C classes in D dimensions.

    scale: with centres as far apart as they can be, a row on its own centre reaches the wanted
    probability P only if s >= (C - 1) / C * log((C - 1) * P / (1 - P)) (CosFace, CVPR 2018, 3.3).
    AdaCos (CVPR 2019, 4.1) proposes s = sqrt(2) * log(C - 1), here at least 1 as in `AdaCos`.

    margin: a row on its centre meets m only if the nearest other centre is that far, and the
    largest cosine c between C unit vectors is, at best, cos(2 pi / C) in two dimensions,
    -1 / (C - 1) for C <= D + 1, and 0 from there to C = 2 D (Rankin 1955). So m <= 1 - c
    (CosFace, 3.4), or m <= acos(c) as an angle. Beyond 2 D classes c > 0 has no closed form,
    CosFace writes m << C / (C - 1), and the bounds for 2 D stand here: necessary, not enough.

    Args:
        num_classes: C, at least 2.
        embedding_dim: D.
        probability: P, which a row on its centre is to reach.

    Raises:
        ValueError: fewer than 2 classes or 1 dimension, a probability outside (1 / C, 1).
    """
    classes, dim = num_classes, embedding_dim
    if classes < 2 or dim < 1:
        raise ValueError(f"theory needs C >= 2 and D >= 1, got C={classes}, D={dim}")
    if not 1 / classes < probability < 1:
        raise ValueError(f"probability must lie between 1/{classes} and 1, got {probability}")
    odds = (classes - 1) * probability / (1 - probability)
    nearest = _largest_cosine(classes, dim)
    return Suggestion(
        least_scale=(classes - 1) / classes * math.log(odds),
        scale=max(1.0, math.sqrt(2) * math.log(classes - 1)),
        largest_cosine_margin=1 - nearest,
        largest_angle_margin=math.acos(nearest),
    )


def warnings_for(head: nn.Module, *, probability: float = 0.9) -> list[str]:
    """One line per setting of the head outside its bound, naming the bound; empty if all is well.

    Bounds are for softmax of scaled cosines: other losses, and a head of one class, get none.

    Args:
        head: a head of `classify`, `margin` or `adaptive`.
        probability: see `suggest`.
    """
    head = head.head if isinstance(head, PartialFC) else head
    other = ModifiedSoftmax | ClassCircle | ProxyAnchor | ProxyNCA
    if not isinstance(head, CosineSoftmax) or isinstance(head, other) or head.num_classes < 2:
        return []
    bound = suggest(head.num_classes, head.embedding_dim, probability=probability)
    where = f"for {head.num_classes} classes in {head.embedding_dim} dimensions"
    found = []
    if head.scale < bound.least_scale and not isinstance(head, AdaCos):
        found.append(
            f"scale {head.scale:.4g} is below {bound.least_scale:.4g}, CosFace's lower bound "
            f"{where} and probability {probability:g}; AdaCos would take {bound.scale:.4g}"
        )
    if isinstance(head, CosFace | ArcFace):
        margin = head.margin if head.margins is None else _largest(head.margins)
        margin *= max(head.ramp["start"], head.ramp["end"])
        largest, what = bound.largest_cosine_margin, "CosFace's upper bound on m as a cosine"
        if not isinstance(head, CosFace | AdaFace):  # AdaFace is CosFace for an average length
            largest = bound.largest_angle_margin
            what = "the largest angle between so many centres"
        if margin > largest:
            found.append(f"margin {margin:.4g} is above {largest:.4g}, {what} {where}")
    return found


def advice(terms: Iterable[nn.Module], num_classes: int, embedding_dim: int) -> list[str]:
    """What a training says at its start: the allowed range, and a warning per setting outside."""
    if num_classes < 2:
        return []
    bound = suggest(num_classes, embedding_dim)
    found = [f"theory for {num_classes} classes in {embedding_dim} dimensions: {bound}"]
    return found + [f"warning: {text}" for term in terms for text in warnings_for(term)]


def _largest_cosine(classes: int, dim: int) -> float:
    """A lower bound on the largest cosine between C unit vectors, exact up to C = 2 D or D = 2."""
    if classes <= dim + 1:
        return -1 / (classes - 1)
    if dim == 1:
        return 1.0  # two of three points on a line coincide
    return math.cos(2 * math.pi / classes) if dim == 2 else 0.0


def _largest(margins: Tensor) -> float:
    return float(torch.max(margins))
