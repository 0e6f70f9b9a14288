"""Contrastive loss in hyperbolic space: rows on a Poincare ball, as in Hyp-ViT.

loss = HyperbolicContrastiveLoss(curvature=0.1)(embeddings, labels)
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.losses.batch import (
    Pairs,
    ReferenceLoss,
    check_positive,
    distances,
    infonce,
    with_negative,
)
from common.losses.cosine import unit_rows

_REACH = 3.0  # largest sqrt(c) * clip: at 3 float32 still tells distances of 0.2 / sqrt(c) apart


class HyperbolicContrastiveLoss(ReferenceLoss):
    """InfoNCE of distances on a Poincare ball, where there is room for a hierarchy of classes.

    Ermolov et al. (Hyp-ViT), CVPR 2022: rows shortened to at most `clip`, mapped by
    x = tanh(sqrt(c) |v|) v / (sqrt(c) |v|), compared by the distance of curvature c, and the mean
    over positive pairs of -log e^(-D_ap/t) / (e^(-D_ap/t) + sum_n e^(-D_an/t)). With two rows per
    class this is the authors' loss; with more they take two at a time. Rows are not normalised:
    lengths carry how general an image is. For fine-grained classes with a transformer.

    Args:
        curvature: c; the paper's 0.1. Towards 0 the distance becomes 2 |v_a - v_p|.
        temperature: the paper's 0.2.
        clip: the paper's 2.3; longer rows have a vanishing gradient near the rim.

    Raises:
        ValueError: an argument not positive, sqrt(curvature) * clip above 3.
    """

    normalize = False

    def __init__(self, curvature: float = 0.1, temperature: float = 0.2, clip: float = 2.3) -> None:
        super().__init__()
        check_positive(curvature=curvature, temperature=temperature, clip=clip)
        if curvature**0.5 * clip > _REACH:
            raise ValueError(
                f"sqrt(curvature) * clip must be at most {_REACH}, beyond which rounding blurs the "
                f"rim of the ball; got {curvature**0.5 * clip:.4g}"
            )
        self.curvature, self.temperature, self.clip = curvature, temperature, clip

    def distances(self, embeddings: Tensor, references: Tensor) -> Tensor:
        """(B, R) hyperbolic distances of (B, D) to (R, D) float32 or float64 rows.

        D = 2 / sqrt(c) * artanh |(-x) (+) y| is 2 / sqrt(c) * asinh(|x - y| / sqrt((1 - x^2)
        (1 - y^2))) for x, y scaled to the unit ball, which keeps its digits near 0.
        """
        points, stretch = self._ball(embeddings)
        others, far = (points, stretch) if references is embeddings else self._ball(references)
        ratio = distances(points, others) * (stretch[:, None] * far)
        found: Tensor = 2 / self.curvature**0.5 * ratio.asinh()
        return found

    def _ball(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) points in the unit ball and (B,) 1 / sqrt(1 - |x|^2)."""
        length = torch.linalg.vector_norm(rows, dim=1).clamp_max(self.clip)
        angle = self.curvature**0.5 * length
        return unit_rows(rows) * angle.tanh()[:, None], angle.cosh()

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        return infonce(-self.distances(rows, references) / self.temperature, pairs)

    def _mass(self, pairs: Pairs) -> Tensor:
        return with_negative(pairs).sum()
