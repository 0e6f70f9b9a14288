"""A siamese network: the backbone is the branch, a learned head compares two of its embeddings.

loss: [{name: siamese}]
train.sampler: {name: assigned_pairs}
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.losses.batch import BatchLoss, Pairs, at, mean, softplus
from common.losses.pair_head import PairHead


class SiameseLoss(BatchLoss):
    """Binary cross entropy of a learned comparison, of one class or not (Piotte; Humpback, 4th).

    The head is `pair_head.PairHead`; it trains with the backbone, alone or beside other terms, and
    the ranking step `siamese` asks it again. A row counts the mean over its positives and the mean
    over its `negatives` worst ones, half each, so that both kinds weigh the same as in the
    original. There the pairs of a batch are fixed; here all positives of the batch count and the
    worst negatives are chosen among all, the assigned ones of `assigned_pairs` among them: the
    images are embedded anyway, and comparing them is cheap.

    Args:
        embedding_dim: D.
        hidden: width of the head's network.
        scale: slope of the logit in the cosine at the start.
        negatives: of each row that count, the ones that look most like it.
        unknown: label -1 is of another class than every labelled row, not ignored.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        embedding_dim: int,
        hidden: int = 32,
        scale: float = 10.0,
        *,
        negatives: int = 1,
        unknown: bool = False,
    ) -> None:
        super().__init__()
        if negatives < 1:
            raise ValueError(f"negatives must be at least 1, got {negatives}")
        self.head = PairHead(embedding_dim, hidden, scale)
        self.negatives, self.unknown = negatives, unknown

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, D) embeddings of any scale and (B,) int64 labels.

        Label -1 is ignored, or with `unknown` a negative. Computed in float32 (float64 if
        embeddings are) whatever the autocast. With nothing to learn from it is a zero attached to
        the graph.

        Raises:
            ValueError: embeddings or labels of another shape or type, a label below -1.
        """
        rows, known = self._rows(embeddings, labels)
        others, theirs = rows, known
        if self.unknown:
            strange = labels < 0
            more, marks = self._rows(embeddings[strange], labels[strange] + 1)
            others, theirs = torch.cat([rows, more]), torch.cat([known, marks - 1])
        with torch.autocast(rows.device.type, enabled=False):
            return self._compare(rows, known, others, theirs)

    def _compare(self, rows: Tensor, labels: Tensor, others: Tensor, theirs: Tensor) -> Tensor:
        """Of (B, D) labelled rows against (R, D), whose first B they are; theirs may be -1."""
        near = labels[:, None] == theirs
        far = ~near
        near[:, : len(rows)].fill_diagonal_(False)
        anchors, positives = near.nonzero(as_tuple=True)
        rivals, negatives = self._worst(rows.detach(), others.detach(), far)
        first, second = torch.cat([anchors, rivals]), torch.cat([positives, negatives])
        logits = self.head(rows.index_select(0, first), others.index_select(0, second))
        right = logits[: len(anchors)].neg()
        losses = torch.cat([softplus(right), softplus(logits[len(anchors) :])])
        # Both means of a row: each of its pairs weighs 1 / how many of its kind it has.
        share = torch.cat([_shares(anchors, len(rows)), _shares(rivals, len(rows))])
        each = losses.new_zeros(len(rows)).index_add(0, first, losses * share.to(losses))
        return mean((each / 2)[(near | far).any(1)])

    def _worst(self, rows: Tensor, others: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        """Row and reference of each row's worst negatives, (P,) each."""
        half, size = far.clone(), len(rows)
        half[:, :size] = far[:, :size].triu(1)  # the head says the same both ways
        i, j = half.nonzero(as_tuple=True)
        found, mine = self.head.ask(rows, others, i, j), j < size
        logits = torch.full(far.shape, -torch.inf, dtype=found.dtype, device=found.device)
        logits[i, j] = found
        logits[j[mine], i[mine]] = found[mine]
        count = min(self.negatives, far.shape[1])
        worst = logits.topk(count, 1).indices
        taken = far.gather(1, worst)
        row, place = taken.nonzero(as_tuple=True)
        return row, at(worst, row, place)

    def mass(self, labels: Tensor) -> Tensor:
        """Scalar that the mean over (B,) labels divides by: rows with a pair."""
        known = labels[labels >= 0]
        pairs = Pairs(known, known, own=True)
        if self.unknown and bool((labels < 0).any()):
            return known.new_tensor(len(known))
        return self._mass(pairs)

    def _mass(self, pairs: Pairs) -> Tensor:
        return (pairs.near.any(1) | pairs.opposed).sum()

    def pair_head(self) -> PairHead:
        """What was learned, for the sampler that looks for hard pairs and for the ranking step."""
        return self.head


def _shares(rows: Tensor, count: int) -> Tensor:
    """(P,) float: 1 over how often each row is among `rows`."""
    return 1 / torch.bincount(rows, minlength=count)[rows]
