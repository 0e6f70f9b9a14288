"""Losses over many negatives at once: lifted, N-pair, facility location, InfoNCE, NCE, SupCon.

loss = SupConLoss(temperature=0.1)(embeddings, labels)
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.losses.batch import (
    BatchLoss,
    Pairs,
    ReferenceLoss,
    at,
    check_positive,
    distances,
    infonce,
    masked_logsumexp,
    mean,
    softplus,
    with_negative,
)
from common.losses.medoids import worst_clustering
from common.losses.processes import gathered


class LiftedStructureLoss(BatchLoss):
    """Lifted structured loss: each positive pair against all negatives of both its rows.

    Song et al., CVPR 2016, eq. 4: half the mean over positive pairs (i, j) of max(0, J_ij)^2 with
    J_ij = D_ij + log(sum_k e^(m - D_ik) + sum_l e^(m - D_jl)), k and l of other classes. A pair
    without negatives is left out. For batches with several images of many classes; smoother than
    a hard-mined triplet.

    Args:
        margin: the paper's alpha.
        normalize: rows are scaled to length 1 first; the authors' code does not, most others do.

    Raises:
        ValueError: margin not positive.
    """

    def __init__(self, margin: float = 1.0, *, normalize: bool = True) -> None:
        super().__init__()
        check_positive(margin=margin)
        self.margin, self.normalize = margin, normalize

    def _loss(self, rows: Tensor, labels: Tensor) -> Tensor:
        pairs = Pairs(labels, labels, own=True)
        distance = distances(rows)
        others = masked_logsumexp(self.margin - distance, pairs.far)
        # Both orders of a pair count, with the same value.
        i, j = with_negative(pairs).nonzero(as_tuple=True)
        lifted = torch.logaddexp(*(others.index_select(0, k) for k in (i, j)))
        lifted = lifted + at(distance, i, j)
        return mean(lifted.relu().square()) / 2

    def _mass(self, pairs: Pairs) -> Tensor:
        return with_negative(pairs).sum()


class NPairLoss(BatchLoss):
    """N-pair loss: softmax over the dot products of anchors with one positive of every pair.

    Sohn, NeurIPS 2016, the N-pair-mc loss with its L2 term. The rows of a class pair up in their
    order, 1st and 2nd, 3rd and 4th. With one pair per class this is the paper's loss; where a class
    has more, its target mass is spread evenly over them, as in TensorFlow's `npairs_loss`. For
    batches of two images per class and very many classes. Normalised and without a temperature, as
    pytorch-metric-learning has it, the logits stay in [-1, 1] and the loss is almost flat.

    Args:
        temperature: divides the dot products; the paper has 1, unit rows want 0.05 to 0.1.
        l2: factor on a quarter of mean |anchor|^2 plus mean |positive|^2; TensorFlow's numbers.
        normalize: rows are scaled to length 1 first; then set l2 to 0, it is a constant.

    Raises:
        ValueError: temperature not positive, l2 negative, or l2 with normalize.
    """

    def __init__(
        self, temperature: float = 1.0, l2: float = 0.002, *, normalize: bool = False
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        if not 0 <= l2 < float("inf") or (normalize and l2):
            raise ValueError(f"l2 must be at least 0, and 0 with normalize, got {l2}")
        self.temperature, self.l2, self.normalize = temperature, l2, normalize

    def _loss(self, rows: Tensor, labels: Tensor) -> Tensor:
        first, second = _pairs(labels)
        anchors, positives = rows[first], rows[second]
        target = (labels[first][:, None] == labels[first]).to(rows.dtype)
        target = target / target.sum(1, keepdim=True)
        logits = anchors @ positives.T / self.temperature
        losses = -(target * logits.log_softmax(1)).sum(1)
        length = anchors.square().sum(1) + positives.square().sum(1)
        return mean(losses + self.l2 / 4 * length)

    def _mass(self, pairs: Pairs) -> Tensor:
        return pairs.labels.new_tensor(len(_pairs(pairs.labels)[0]))


class FacilityLocationLoss(BatchLoss):
    """Facility-location clustering loss: the true clusters must beat the worst wrong clustering.

    Song et al., CVPR 2017, eq. 4 to 6, with D the distance of unit rows:
    [max over S, |S| = C, of (-sum_i min_{j in S} D_ij + gamma * (1 - NMI(S, labels))) + sum over
    classes of the smallest sum_{i in class} D_ij, j in the class]_+. S is found as in Algorithms 1
    and 2: greedily, then by swapping each medoid inside its cluster. Gradient flows through D
    alone. NMI divides by the geometric mean of the entropies, eq. 9. It looks at the whole batch,
    where pairs all seem easy; the search costs C (1 + swaps) passes over a (B, B) matrix.

    Args:
        gamma: weight of the wrongness of a clustering against distances, summed over rows.
        swaps: rounds of Algorithm 2; the authors' 5.

    Raises:
        ValueError: gamma not positive, swaps negative.
    """

    def __init__(self, gamma: float = 1.0, swaps: int = 5) -> None:
        super().__init__()
        check_positive(gamma=gamma)
        if swaps < 0:
            raise ValueError(f"swaps must be at least 0, got {swaps}")
        self.gamma, self.swaps = gamma, swaps

    def _loss(self, rows: Tensor, labels: Tensor) -> Tensor:
        if not len(rows):
            return mean(rows)
        classes, code = torch.unique(labels, return_inverse=True)
        distance = distances(rows)
        with torch.no_grad():
            medoids, mutual = worst_clustering(
                distance, code, len(classes), gamma=self.gamma, swaps=self.swaps
            )
        found = distance[:, medoids].amin(1).sum()
        within = (distance * (code[:, None] == code)).sum(0)
        best = within.new_full((len(classes),), torch.inf).scatter_reduce(0, code, within, "amin")
        return torch.relu(best.sum() - found + self.gamma * (1 - mutual))

    def _mass(self, pairs: Pairs) -> Tensor:
        return pairs.labels.new_tensor(len(pairs.labels))  # a sum over rows, not a mean


class InfoNCELoss(ReferenceLoss):
    """InfoNCE: for each pair (a, p), cross entropy of p against the negatives of a in the batch.

    van den Oord et al. 2018, eq. 4, and MoCo, CVPR 2020, eq. 1: mean over ordered pairs of
    -log e^(s_ap/t) / (e^(s_ap/t) + sum_n e^(s_an/t)), s the cosine; other positives are not in the
    denominator. Anchors without a negative are left out. For two views or images per class and
    large batches; with more images per class see `SupConLoss`.

    Args:
        temperature: MoCo's 0.07; 0.2 in its second version.

    Raises:
        ValueError: temperature not positive.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        return infonce(rows @ references.T / self.temperature, pairs)

    def _mass(self, pairs: Pairs) -> Tensor:
        return with_negative(pairs).sum()


class NCELoss(ReferenceLoss):
    """NCE: each pair alone is judged as positive or noise, without a softmax over the negatives.

    Wu et al., CVPR 2018, eq. 6 and 7: with m negatives of an anchor as the noise and h(s) =
    sigmoid(s/t - log(m) - log(z)), the mean over anchors of -mean_p log h(s_ap) -
    sum_n log(1 - h(s_an)). As there, z, the mean of e^(s/t) over negatives, comes from the first
    training batch and stays. Anchors without a positive or a negative are left out. For very
    many negatives out of a memory; else `InfoNCELoss`, which needs no z, is easier to tune.

    Args:
        temperature: the paper's 0.07.

    Raises:
        ValueError: temperature not positive.
    """

    log_z: Tensor

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature
        self.register_buffer("log_z", torch.tensor(torch.nan))  # not seen yet

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        logits = rows @ references.T / self.temperature
        near, far = pairs.near, pairs.far
        noise = far.sum(1, keepdim=True).clamp_min(1).to(rows.dtype)
        logits = logits - self._log_z(logits.detach(), far) - noise.log()
        judged = (softplus(-logits) * near).sum(1) / near.sum(1).clamp_min(1)
        judged = judged + (softplus(logits) * far).sum(1)
        return mean(judged[near.any(1) & pairs.opposed])

    @torch.no_grad()
    def _log_z(self, logits: Tensor, far: Tensor) -> Tensor:
        total, count = masked_logsumexp(logits.view(1, -1), far.view(1, -1)), far.sum()[None]
        if self.training:
            total, count = gathered(total, count)
        count = count.sum()
        now = total.logsumexp(0) - count.to(total.dtype).log()
        log_z = torch.where(self.log_z.isnan() & (count > 0), now.to(self.log_z), self.log_z)
        if self.training:
            self.log_z.copy_(log_z)
        return log_z.nan_to_num(0).to(logits)


class SupConLoss(ReferenceLoss):
    """Supervised contrastive loss: the mean log-probability of all positives of an anchor.

    Khosla et al., NeurIPS 2020, eq. 2 (L_out): mean over anchors of -1/|P| sum_p log of
    e^(s_ap/t) / sum over all other rows of e^(s/t), s the cosine. Anchors without a positive are
    left out. For several images per class; with a single class it still spreads the rows apart.

    Args:
        temperature: the paper's 0.1.

    Raises:
        ValueError: temperature not positive.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        logits = rows @ references.T / self.temperature
        near = pairs.near
        own = (logits * near).sum(1) / near.sum(1).clamp_min(1)
        return mean((masked_logsumexp(logits, near | pairs.far) - own)[near.any(1)])

    def _mass(self, pairs: Pairs) -> Tensor:
        return pairs.near.any(1).sum()


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (P,) and (P,): the 1st and 2nd of each class, its 3rd and 4th, and so on."""
    ordered, order = labels.sort(stable=True)
    start = torch.searchsorted(ordered, ordered)  # where the run of each entry begins
    even = (torch.arange(len(order), device=labels.device) - start) % 2 == 0
    place = (even[:-1] & (ordered[1:] == ordered[:-1])).nonzero()[:, 0]
    return order[place], order[place + 1]
