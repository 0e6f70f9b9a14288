"""Losses over pairs and triplets of one batch: contrastive, triplet, multi-similarity, circle.

loss = TripletLoss(margin=0.2, miner="batch_hard")(embeddings, labels)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from common.losses.batch import (
    Pairs,
    ReferenceLoss,
    check_positive,
    distances,
    distances_at,
    entries,
    masked_logsumexp,
    mean,
    softplus,
)
from common.losses.miners import PAIRS, TRIPLETS
from common.losses.schedule import ramp_factor, read_ramp
from common.losses.watch import means, with_number
from common.steps import bind


class ContrastiveLoss(ReferenceLoss):
    """Contrastive loss: positives to distance 0, negatives beyond the margin.

    Hadsell, Chopra, LeCun, CVPR 2006, eq. 4: D^2 / 2 for a positive, max(0, m - D)^2 / 2 for a
    negative; pytorch-metric-learning has other hinges, of D or of D^2. The simplest start, with a
    cross-batch memory a strong one.

    Args:
        margin: the paper's m; distances of unit rows lie in [0, 2].
        balanced: the mean over positives plus that over negatives; False is one mean over all
            pairs, of which in a batch of 64 in fours positives are 1 in 20.
        normalize: rows are scaled to length 1 first.

    Raises:
        ValueError: margin not positive.
    """

    def __init__(
        self, margin: float = 1.0, *, balanced: bool = True, normalize: bool = True
    ) -> None:
        super().__init__()
        check_positive(margin=margin)
        self.margin, self.balanced, self.normalize = margin, balanced, normalize

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        distance = distances(rows, references)
        pull = entries(distance, pairs.near).square() / 2
        close = pairs.far & ~(distance >= self.margin)  # what is NaN stays, and shows
        push = (self.margin - entries(distance, close)).square() / 2
        return _pair_mean(pull, push, _count(pairs), balanced=self.balanced)

    def _mass(self, pairs: Pairs) -> Tensor:
        return _pair_mass(pairs, balanced=self.balanced)


class CosineContrastiveLoss(ReferenceLoss):
    """Contrastive loss on cosines s: 1 - s for a positive, max(0, s - m) for a negative.

    As in XBM, Wang et al., CVPR 2020, there over a memory. Its pull does not fade near the goal, as
    that of `ContrastiveLoss` does; so it suits large memories, of which most pairs are easy.

    Args:
        margin: XBM's 0.5; in [-1, 1).
        balanced: see `ContrastiveLoss`.
        miner: multi_similarity_pairs, or {name: multi_similarity_pairs, epsilon: 0.1}: the means
            are over the pairs that it finds in 1 - s. None is all pairs.

    Raises:
        ValueError: margin outside [-1, 1); ConfigError: an unknown miner or option.
    """

    def __init__(
        self,
        margin: float = 0.5,
        *,
        balanced: bool = True,
        miner: str | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not -1 <= margin < 1:
            raise ValueError(f"margin is a cosine in [-1, 1), got {margin}")
        self.margin, self.balanced, self._mine = margin, balanced, None
        if miner is not None:
            step = {"name": miner} if isinstance(miner, str) else dict(miner)
            self._mine = bind(step, PAIRS, "miner")

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        cosine = rows @ references.T
        near, far, count = pairs.near, pairs.far, _count(pairs)
        if self._mine is not None:
            a, positives, b, others = self._mine(vars(pairs), distances=1 - cosine.detach())
            near = torch.zeros_like(near).index_put_((a, positives), near.new_tensor(True))
            far = torch.zeros_like(far).index_put_((b, others), far.new_tensor(True))
            count = len(positives) + len(others)
        pull = 1 - entries(cosine, near)
        push = entries(cosine, far & ~(cosine <= self.margin)) - self.margin
        return _pair_mean(pull, push, count, balanced=self.balanced)

    def _mass(self, pairs: Pairs) -> Tensor:
        return _pair_mass(pairs, balanced=self.balanced)


class TripletLoss(ReferenceLoss):
    """Triplet loss on mined triplets: the positive nearer than the negative by a margin.

    max(0, D_ap - D_an + m), FaceNet, CVPR 2015, section 3.1 (there with squared distances), or
    log(1 + e^(D_ap - D_an)), Hermans et al. 2017, section 2. Mining sees no gradient; the mined
    pairs are measured again. A loss that stays at the margin has collapsed to one point: watch
    the statistics, start with margin soft or semi-hard triplets, or let the margin grow.

    Args:
        margin: FaceNet's 0.2, or soft.
        miner: name of a function in `common.losses.miners`, or {name: n_hard, negatives: [1, 10]}
            with its options. A margin that it takes is this one, unless it is soft.
        squared: distances are squared, as in FaceNet; Hermans found plain ones steadier.
        normalize: rows are scaled to length 1 first.
        active_only: the mean is over triplets with a loss, which keeps the step size when few are
            left (pytorch-metric-learning's default); False is the mean over all that were mined.
        ramp: {start: 0.2, end: 1.0, over: 0.5}, a factor on the margin that goes linearly from
            start to end over that part of the training and stays there; with from: 0.3 it waits
            so long at start.

    Raises:
        ValueError: margin not positive, unknown miner or option, or one out of range, margin soft
            with a ramp or with active_only.
    """

    margin_factor: Tensor

    def __init__(
        self,
        margin: float | Literal["soft"] = 0.2,
        miner: str | Mapping[str, Any] = "batch_hard",
        *,
        squared: bool = False,
        normalize: bool = True,
        active_only: bool = False,
        ramp: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(margin, str):
            check_positive(margin=margin)
        elif margin != "soft" or active_only or ramp is not None:
            raise ValueError(
                f"margin is a number or soft, and soft has neither ramp nor active_only; got "
                f"margin={margin!r}, ramp={ramp!r}, active_only={active_only}"
            )
        self._mine = bind(
            {"name": miner} if isinstance(miner, str) else dict(miner), TRIPLETS, "miner"
        )
        nothing = torch.zeros(0, dtype=torch.int64)
        # Of no rows: a miner with settings that cannot be says so now, not at the first batch.
        self._mine(distances=torch.zeros(0, 0), labels=nothing)
        self.margin, self.squared = margin, squared
        self.normalize, self.active_only, self.ramp = normalize, active_only, read_ramp(ramp)
        self.register_buffer("margin_factor", torch.tensor(self.ramp["start"]))
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def schedule(self, progress: float) -> None:
        """Set how far the ramp has grown; progress is the part of the training done, 0 to 1.

        Raises:
            ValueError: progress outside [0, 1], such as an epoch number.
        """
        self.margin_factor.fill_(ramp_factor(self.ramp, progress))

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        soft = isinstance(self.margin, str)
        largest = 0.0 if isinstance(self.margin, str) else self.margin
        margin = self.margin_factor.to(rows.dtype) * largest
        state: dict[str, Any] = {} if soft else {"margin": margin.item()}
        state |= vars(pairs)
        matrix = distances(rows, references, squared=self.squared)
        with torch.no_grad():
            anchors, positives, negatives = self._mine(state, distances=matrix.detach())
        second = torch.cat([positives, negatives])
        near, far = distances_at(
            matrix, rows, references, anchors.repeat(2), second, squared=self.squared
        ).chunk(2)
        gap = near - far + margin
        self._last = near.detach(), far.detach(), (gap > 0).detach()
        losses = softplus(gap) if soft else gap.relu()
        loss = losses.sum() / (gap > 0).sum().clamp_min(1) if self.active_only else mean(losses)
        return loss + 0 * rows.detach().sum()  # miners leave out what is NaN, and it must show

    @torch.no_grad()
    def watch(self) -> dict[str, Tensor]:
        """Statistics of the triplets of the last batch: (2,) sum and number, on the device.

        active: those with a loss; for margin soft, whose negative is nearer than the positive.
        positive_distance, negative_distance: D_ap and D_an, squared if the loss is.
        """
        if self._last is None:
            return {}
        near, far, active = self._last
        sums = torch.stack([near, far, active.to(near.dtype)]).sum(1)
        names = ("positive_distance", "negative_distance", "active")
        return dict(zip(names, with_number(sums, sums.new_full((), len(near))), strict=True))

    def statistics(self) -> dict[str, float]:
        """The means of `watch`; empty without a triplet. Waits for the device."""
        return means(self.watch())


class MultiSimilarityLoss(ReferenceLoss):
    """Multi-similarity loss: log-sum-exp over positives and over negatives of every anchor.

    Wang et al., CVPR 2019, s the cosine: log(1 + sum_p e^(-a (s_ap - b))) / a +
    log(1 + sum_n e^(c (s_an - b))) / c, mean over labelled rows. Kept by its mining are
    negatives with s above the lowest positive - epsilon, and positives below the highest negative
    + epsilon. A good first choice among pair losses: it mines by itself.

    Args:
        alpha: a; the paper's 2.
        beta: c; the paper's 50, 40 in its code.
        base: b; 0.5 as in its code.
        epsilon: 0.1; None keeps all pairs.

    Raises:
        ValueError: alpha or beta not positive, epsilon negative.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float | None = 0.1,
    ) -> None:
        super().__init__()
        check_positive(alpha=alpha, beta=beta)
        if epsilon is not None and not epsilon >= 0:
            raise ValueError(f"epsilon must be at least 0, or None to keep all, got {epsilon}")
        self.alpha, self.beta, self.base, self.epsilon = alpha, beta, base, epsilon

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        cosine = rows @ references.T
        near, far = pairs.near, pairs.far
        if self.epsilon is not None and cosine.numel():
            lowest = cosine.detach().masked_fill(~near, torch.inf).amin(1, keepdim=True)
            highest = cosine.detach().masked_fill(~far, -torch.inf).amax(1, keepdim=True)
            near = near & ~(cosine >= highest + self.epsilon)  # what is NaN stays, and shows
            far = far & ~(cosine <= lowest - self.epsilon)
        shifted = cosine - self.base
        pull = softplus(masked_logsumexp(-self.alpha * shifted, near)) / self.alpha
        push = softplus(masked_logsumexp(self.beta * shifted, far)) / self.beta
        return mean(pull + push)

    def _mass(self, pairs: Pairs) -> Tensor:
        return pairs.labels.new_tensor(len(pairs.labels))


class CircleLoss(ReferenceLoss):
    """Circle loss on pairs: each cosine is weighted by how far it is from its optimum.

    Sun et al., CVPR 2020, eq. 4 to 8: log(1 + sum_n e^(g a_n (s_n - m)) sum_p e^(-g a_p
    (s_p - 1 + m))), a_p = max(0, 1 + m - s_p) and a_n = max(0, s_n + m) without gradient. For
    P x K batches. Its gradient goes with the scale: beside other terms give it a small weight.

    Args:
        margin: m; 0.4, or 0.25 for faces and re-identification.
        scale: g; 80, or 256 for faces and 128 for re-identification.
        reduction: anchor is a loss for each row with positive and negative, and their mean, as in
            pytorch-metric-learning; batch is one loss over all pairs of the batch, which its
            hardest ones decide, as in the authors' formula. They are different losses.

    Raises:
        ValueError: margin not in (0, 1), scale not positive, unknown reduction.
    """

    def __init__(
        self,
        margin: float = 0.4,
        scale: float = 80.0,
        reduction: Literal["anchor", "batch"] = "anchor",
    ) -> None:
        super().__init__()
        check_positive(scale=scale)
        if not 0 < margin < 1:
            raise ValueError(f"margin must lie in (0, 1), got {margin}")
        if reduction not in ("anchor", "batch"):
            raise ValueError(f"no reduction {reduction!r}; known: anchor, batch")
        self.margin, self.scale, self.reduction = margin, scale, reduction

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        cosine, m = rows @ references.T, self.margin
        near, far = pairs.near, pairs.far
        push = self.scale * (cosine.detach() + m).relu() * (cosine - m)
        pull = -self.scale * (1 + m - cosine.detach()).relu() * (cosine - 1 + m)
        if self.reduction == "batch":
            if pairs.own:  # each pair of the batch once
                near, far = near.triu(1), far.triu(1)
            pull, push, near, far = (x.view(1, -1) for x in (pull, push, near, far))
        losses = softplus(masked_logsumexp(pull, near) + masked_logsumexp(push, far))
        return mean(losses[near.any(1) & far.any(1)])

    def _mass(self, pairs: Pairs) -> Tensor:
        anchors = super()._mass(pairs)
        return anchors if self.reduction == "anchor" else anchors.clamp_max(1)


def _count(pairs: Pairs) -> int:
    return len(pairs.labels) * (len(pairs.reference_labels) - pairs.own)


def _pair_mean(pull: Tensor, push: Tensor, count: int, *, balanced: bool) -> Tensor:
    """Scalar mean of `count` pairs: (P,) pull, all positives, (N,) push, negatives with a loss."""
    pulled, pushed, negatives = pull.sum(), push.sum(), count - len(pull)
    if balanced:
        return pulled / max(1, len(pull)) + pushed / max(1, negatives)
    return (pulled + pushed) / max(1, count)


def _pair_mass(pairs: Pairs, *, balanced: bool) -> Tensor:
    """Scalar count of pairs, or of rows where two means are added."""
    if balanced:
        return pairs.labels.new_tensor(len(pairs.labels))
    return pairs.near.sum() + pairs.far.sum()
