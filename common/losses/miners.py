"""Which pairs and triplets of a batch are worth a loss, by a matrix of distances.

anchors, positives, negatives = batch_hard(torch.cdist(rows, rows), labels)

All functions share their first arguments:
    distances: (B, R), finite, smaller is nearer; a cosine as 1 - cosine.
    labels: (B,) int64 of the rows (anchors), -1 ignored.
    reference_labels: (R,) int64 of the columns (positives, negatives), -1 ignored. None: the
        columns are the rows themselves, R = B, and the diagonal is left out.
    own: the first B columns are the rows themselves; their diagonal is left out.
They give int64 indices without gradient, empty ones where nothing is found; on ties the lower
index counts as nearer and as farther alike. Nothing grows as B R^2 but a list asked for. It is
ordered by anchor and positive and has at most `LIMIT` triplets, evenly spaced over all of them by
anchor, positive, distance of the negative. (For two classes at B = 1024 all would take 6 GB.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.losses.batch import at

Triplets = tuple[Tensor, Tensor, Tensor]  # anchors, positives, negatives: (T,) each
Picker = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # `_nearest` or `_farthest`

LIMIT = 2**21  # 16 MB per tensor of indices
COMPARED = 2**22  # elements, of pairs times references, up to which comparing beats sorting
_FEW = 16  # ranks up to which looking for the next one beats sorting


def all_triplets(
    distances: Tensor, labels: Tensor, reference_labels: Tensor | None = None, *, own: bool = False
) -> Triplets:
    """Every anchor with each of its positives and each of its negatives."""
    return _between(*_split(distances, labels, reference_labels, own), None, None)


def easy_triplets(
    distances: Tensor,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    own: bool = False,
    margin: float = 0.2,
) -> Triplets:
    """Triplets beyond the margin, D_an > D_ap + margin: they have no hinge loss."""
    return _between(*_split(distances, labels, reference_labels, own), margin, None)


def hard_triplets(
    distances: Tensor, labels: Tensor, reference_labels: Tensor | None = None, *, own: bool = False
) -> Triplets:
    """Triplets in the wrong order, D_an <= D_ap."""
    return _between(*_split(distances, labels, reference_labels, own), None, 0.0)


def semi_hard_band(
    distances: Tensor,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    own: bool = False,
    margin: float = 0.2,
) -> Triplets:
    """Semi-hard as in FaceNet's section 3.2: D_ap < D_an <= D_ap + margin, every such triplet.

    The first of three meanings of the word; pytorch-metric-learning's `TripletMarginMiner`.
    """
    return _between(*_split(distances, labels, reference_labels, own), 0.0, margin)


def semi_hard_pair(
    distances: Tensor, labels: Tensor, reference_labels: Tensor | None = None, *, own: bool = False
) -> Triplets:
    """Semi-hard as in TensorFlow: for each positive pair the nearest negative with D_an > D_ap.

    The second meaning. Where no negative is that far, the farthest one.
    """
    distances, near, far = _split(distances, labels, reference_labels, own)
    anchors, positives = near.nonzero(as_tuple=True)
    if not len(anchors):
        return anchors, positives, positives
    bounds = at(distances, anchors, positives)
    if len(anchors) * distances.shape[1] > COMPARED:
        ordered, order = _sorted(distances, far)
        place = _count(ordered, anchors, bounds)
        found = place < far.sum(1)[anchors]
        nearest = order[anchors, place.clamp_max(len(order[0]) - 1)]
    else:
        rows = distances.masked_fill(~far, torch.inf).index_select(0, anchors)
        nearer, nearest = rows.masked_fill_(rows <= bounds[:, None], torch.inf).min(1)
        found = nearer < torch.inf
    if found.all():
        return anchors, positives, nearest
    last, farthest = (part[anchors] for part in _farthest(distances, far))
    kept = last != -torch.inf  # an anchor with negatives
    return anchors[kept], positives[kept], torch.where(found, nearest, farthest)[kept]


def semi_hard_anchor(
    distances: Tensor, labels: Tensor, reference_labels: Tensor | None = None, *, own: bool = False
) -> Triplets:
    """Semi-hard per anchor: its farthest positive, and the nearest negative beyond that one.

    The third meaning; pytorch-metric-learning's `BatchEasyHardMiner("hard", "semihard")`. Anchors
    whose negatives are all nearer are left out.
    """
    distances, near, far = _split(distances, labels, reference_labels, own)
    return _per_anchor(distances, near, far, _farthest, beyond=True)


def batch_hard(
    distances: Tensor, labels: Tensor, reference_labels: Tensor | None = None, *, own: bool = False
) -> Triplets:
    """Each anchor with its farthest positive and nearest negative: Hermans et al. 2017, eq. 5.

    Anchors without a positive or without a negative are left out.
    """
    distances, near, far = _split(distances, labels, reference_labels, own)
    return _per_anchor(distances, near, far, _farthest, beyond=False)


def easy_positive(
    distances: Tensor, labels: Tensor, reference_labels: Tensor | None = None, *, own: bool = False
) -> Triplets:
    """Each anchor with its nearest positive and nearest negative: Xuan et al., WACV 2020.

    For classes with several looks, which batch-hard would press into one.
    """
    distances, near, far = _split(distances, labels, reference_labels, own)
    return _per_anchor(distances, near, far, _nearest, beyond=False)


def easy_positive_semi_hard(
    distances: Tensor, labels: Tensor, reference_labels: Tensor | None = None, *, own: bool = False
) -> Triplets:
    """Each anchor with its nearest positive and the nearest negative beyond it: Xuan et al. 2020.

    Anchors whose negatives are all nearer are left out.
    """
    distances, near, far = _split(distances, labels, reference_labels, own)
    return _per_anchor(distances, near, far, _nearest, beyond=True)


def n_hard(
    distances: Tensor,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    own: bool = False,
    positives: tuple[int, int] = (1, 3),
    negatives: tuple[int, int] = (1, 3),
) -> Triplets:
    """Each anchor with its positives and negatives of given ranks, in all combinations.

    Rank 1 is the hardest: the farthest positive, the nearest negative; (2, 4) takes the second to
    the fourth, as many of them as there are. Leaving out the first ones helps with wrong labels.
    """
    for ends in (positives, negatives):
        if len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
            raise ValueError(f"ranks are two numbers from 1 upwards, first and last; got {ends}")
    distances, near, far = _split(distances, labels, reference_labels, own)
    order = _hardest(-distances, near, positives[1])
    ranks = torch.arange(1, order.shape[1] + 1, device=near.device)
    anchors, place = ((ranks >= positives[0]) & (ranks <= near.sum(1)[:, None])).nonzero(
        as_tuple=True
    )
    others = _hardest(distances, far, negatives[1])
    stop = far.sum(1)[anchors].clamp_max(negatives[1])
    start = stop.clamp_max(negatives[0] - 1)
    return _listed(anchors, order[anchors, place], others, start, stop)


def batch_ohnm(
    distances: Tensor, labels: Tensor, reference_labels: Tensor | None = None, *, own: bool = False
) -> Triplets:
    """Every positive pair with the anchor's nearest negative: Wang et al., ICCV workshops 2017.

    Made for batches of look-alikes, see `common.data.samplers_grouped.IdentityClusters`.
    """
    distances, near, far = _split(distances, labels, reference_labels, own)
    anchors, positives = (near & far.any(1, keepdim=True)).nonzero(as_tuple=True)
    if not len(anchors):
        return anchors, positives, positives
    return anchors, positives, _nearest(distances, far)[1][anchors]


def multi_similarity_pairs(
    distances: Tensor,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    own: bool = False,
    epsilon: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs (anchors, positives, anchors, negatives) of Wang et al., CVPR 2019, eq. 7 and 8.

    Positives farther than the anchor's nearest negative less epsilon, negatives nearer than its
    farthest positive plus epsilon. The paper's epsilon of 0.1 is for 1 - cosine.
    """
    distances, near, far = _split(distances, labels, reference_labels, own)
    if not distances.numel():
        return (near.nonzero()[:, 0],) * 4
    nearest = distances.masked_fill(~far, torch.inf).amin(1, keepdim=True)
    farthest = distances.masked_fill(~near, -torch.inf).amax(1, keepdim=True)
    # Put so that what is NaN is kept, see `_per_anchor`.
    anchors, positives = (near & ~(distances <= nearest - epsilon)).nonzero(as_tuple=True)
    others, negatives = (far & ~(distances >= farthest + epsilon)).nonzero(as_tuple=True)
    return anchors, positives, others, negatives


TRIPLETS: dict[str, Callable[..., Triplets]] = {
    miner.__name__: miner
    for miner in (
        *(all_triplets, easy_triplets, hard_triplets, semi_hard_band, semi_hard_pair),
        *(semi_hard_anchor, batch_hard, easy_positive, easy_positive_semi_hard, n_hard, batch_ohnm),
    )
}

PAIRS = {"multi_similarity_pairs": multi_similarity_pairs}


def _split(
    distances: Tensor, labels: Tensor, reference_labels: Tensor | None, own: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Distances without gradient, and (B, R) bool masks of the positives and the negatives."""
    if reference_labels is None:
        reference_labels, own = labels, True
    if distances.shape != (len(labels), len(reference_labels)):
        raise ValueError(
            f"distances must be (rows, references) = ({len(labels)}, {len(reference_labels)}), "
            f"got {tuple(distances.shape)}"
        )
    near = labels[:, None] == reference_labels
    far = ~near
    known, known_references = labels >= 0, reference_labels >= 0
    if not (known.all() & known_references.all()):  # two (B, R) passes, which losses do not need
        near &= known[:, None]
        far &= known[:, None] & known_references
    return distances.detach(), near.fill_diagonal_(False) if own else near, far


def _nearest(distances: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) smallest distance under the mask and its column; inf and any where the mask is empty."""
    value, column = distances.masked_fill(~mask, torch.inf).min(1)  # faster than argmin
    return value, column


def _farthest(distances: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    value, column = distances.masked_fill(~mask, -torch.inf).max(1)
    return value, column


def _hardest(distances: Tensor, mask: Tensor, count: int) -> Tensor:
    """(B, count or R) columns under the mask from near to far, then any."""
    if count > _FEW or not distances.numel():
        return _sorted(distances, mask)[1][:, :count]
    left, found = distances.masked_fill(~mask, torch.inf), []
    for _ in range(min(count, distances.shape[1])):
        column = left.min(1, keepdim=True)[1]
        left.scatter_(1, column, torch.inf)
        found.append(column)
    return torch.cat(found, 1)


def _per_anchor(
    distances: Tensor, near: Tensor, far: Tensor, positive: Picker, *, beyond: bool
) -> Triplets:
    """One triplet per anchor: a positive, and its nearest negative, beyond the positive or not."""
    if not distances.numel():
        return (near.nonzero()[:, 0],) * 3
    bound, chosen = positive(distances, near)
    if beyond:
        far = far & (distances > bound[:, None])
    nearest, negative = _nearest(distances, far)
    # Not "finite": what is NaN is kept, so that a training that broke is seen by its loss.
    anchors = ((bound.abs() != torch.inf) & (nearest != torch.inf)).nonzero()[:, 0]
    return anchors, chosen[anchors], negative[anchors]


def _between(
    distances: Tensor, near: Tensor, far: Tensor, above: float | None, most: float | None
) -> Triplets:
    """Triplets with D_ap + above < D_an <= D_ap + most; None is no bound."""
    if min(above or 0, most or 0) < 0:
        raise ValueError(f"margin must be at least 0, got {min(above or 0, most or 0)}")
    anchors, positives = near.nonzero(as_tuple=True)
    bounds = at(distances, anchors, positives)
    if len(anchors) * distances.shape[1] <= COMPARED:
        rows = distances.masked_fill(~far, torch.inf).index_select(0, anchors)
        inside = rows <= bounds[:, None] + most if most is not None else rows < torch.inf
        if above is not None:
            inside &= rows > bounds[:, None] + above
        if int(inside.sum()) <= LIMIT:
            pair, negatives = inside.nonzero(as_tuple=True)
            return anchors[pair], positives[pair], negatives
    ordered, order = _sorted(distances, far)
    start, stop = torch.zeros_like(anchors), far.sum(1)[anchors]
    if above is not None:
        start = _count(ordered, anchors, bounds + above)
    if most is not None:
        stop = _count(ordered, anchors, bounds + most)
    return _listed(anchors, positives, order, start, stop)


def _sorted(distances: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """(B, R) distances of the negatives from near to far, then inf, and their columns."""
    ordered, order = distances.masked_fill(~far, torch.inf).sort(dim=1, stable=True)
    return ordered, order


def _count(ordered: Tensor, anchors: Tensor, bounds: Tensor) -> Tensor:
    """(P,) how many of its anchor's ordered distances are at most each bound; anchors ascend."""
    if not len(anchors):
        return anchors
    pairs = torch.bincount(anchors, minlength=len(ordered))
    slot = torch.arange(len(anchors), device=anchors.device) - (pairs.cumsum(0) - pairs)[anchors]
    table = bounds.new_zeros(len(ordered), int(pairs.max()))
    table[anchors, slot] = bounds
    return torch.searchsorted(ordered, table, right=True)[anchors, slot]


def _listed(
    anchors: Tensor, positives: Tensor, order: Tensor, start: Tensor, stop: Tensor
) -> Triplets:
    """The pairs (P,), each with the negatives at places start to stop of its anchor's order."""
    ends = (stop - start).cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    number = torch.arange(min(total, LIMIT), device=order.device)
    if total > LIMIT:
        number = number * total // LIMIT
    pair = torch.searchsorted(ends, number, right=True)
    anchors, positives, place = anchors[pair], positives[pair], number + (stop - ends)[pair]
    return anchors, positives, order[anchors, place]
