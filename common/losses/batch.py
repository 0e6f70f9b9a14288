"""What the losses over pairs of one batch share: checked rows, masks, distances without NaN."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common.losses.cosine import unit_rows


class BatchLoss(nn.Module):
    """A loss over the rows of one batch; subclasses define `_loss` of labelled float rows."""

    normalize = True

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (B, D) embeddings of any scale and (B,) int64 labels, -1 ignored.

        Computed in float32 (float64 if embeddings are) whatever the autocast. With nothing to
        learn from it is a zero attached to the graph.

        Raises:
            ValueError: embeddings or labels of another shape or type, a label below -1.
        """
        rows, labels = self._rows(embeddings, labels)
        with torch.autocast(rows.device.type, enabled=False):
            return self._loss(rows, labels)

    def _rows(self, embeddings: Tensor, labels: Tensor, which: str = "") -> tuple[Tensor, Tensor]:
        """The labelled rows, of length 1 if the loss wants that, and their labels."""
        rows, labels = _labelled(embeddings, labels, which)
        with torch.autocast(rows.device.type, enabled=False):
            return (unit_rows(rows) if self.normalize else rows), labels

    def _loss(self, rows: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def mass(self, labels: Tensor) -> Tensor:
        """Scalar that the mean over (B,) labels divides by; tells processes their shares."""
        labels = labels[labels >= 0]
        return self._mass(Pairs(labels, labels, own=True))

    def _mass(self, pairs: Pairs) -> Tensor:
        return (pairs.near.any(1) & pairs.opposed).sum()


class ReferenceLoss(BatchLoss):
    """A loss of rows against references: the batch itself, or more, such as a memory of rows."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
        *,
        own: bool = False,
    ) -> Tensor:
        """Scalar loss of (B, D) embeddings of any scale and (B,) int64 labels, -1 ignored.

        Computed in float32 (float64 if embeddings are) whatever the autocast. With nothing to
        learn from it is a zero attached to the graph.

        Args:
            embeddings: (B, D), the anchors.
            labels: (B,) int64, -1 ignored.
            references: (R, D), what anchors are compared with; None is the embeddings.
            reference_labels: (R,) int64, -1 ignored.
            own: the first B references are the embeddings, no row is compared with itself.

        Raises:
            ValueError: tensors of another shape or type, a label below -1, references without
                labels or labels without references.
        """
        if (references is None) != (reference_labels is None):
            raise ValueError("references and reference_labels go together, only one was given")
        if references is None or reference_labels is None:
            return super().forward(embeddings, labels)
        rows, labels = self._rows(embeddings, labels)
        others, reference_labels = self._rows(references, reference_labels, "reference_")
        pairs = Pairs(labels, reference_labels, own=own)
        with torch.autocast(rows.device.type, enabled=False):
            return self._compare(rows, others.to(rows.dtype), pairs)

    def _loss(self, rows: Tensor, labels: Tensor) -> Tensor:
        return self._compare(rows, rows, Pairs(labels, labels, own=True))

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        raise NotImplementedError

    def mass(
        self, labels: Tensor, reference_labels: Tensor | None = None, *, own: bool = False
    ) -> Tensor:
        """Scalar that the mean over (B,) labels divides by; tells processes their shares."""
        if reference_labels is None:
            reference_labels, own = labels, True
        pairs = Pairs(labels[labels >= 0], reference_labels[reference_labels >= 0], own=own)
        return self._mass(pairs)


class Pairs:
    """Which references are of an anchor's class: (B, R) bool `near` and, of another, `far`."""

    def __init__(self, labels: Tensor, reference_labels: Tensor, *, own: bool) -> None:
        self.labels, self.reference_labels, self.own = labels, reference_labels, own

    @property
    def near(self) -> Tensor:
        """(B, R) bool, of the anchor's class."""
        return self._masks[0]

    @property
    def far(self) -> Tensor:
        """(B, R) bool, of another class."""
        return self._masks[1]

    @property
    def opposed(self) -> Tensor:
        """(B,) bool, whether an anchor has a negative: `far.any(1)` without its pass."""
        if not len(self.reference_labels):
            return torch.zeros_like(self.labels, dtype=torch.bool)
        low, high = self.reference_labels.aminmax()
        return (self.labels != low) | (self.labels != high)

    @cached_property
    def _masks(self) -> tuple[Tensor, Tensor]:  # miners make their own, so not before asked
        same = self.labels[:, None] == self.reference_labels
        far = ~same
        return (same.fill_diagonal_(False) if self.own else same), far


def distances(rows: Tensor, references: Tensor | None = None, *, squared: bool = False) -> Tensor:
    """(B, R) distances of (B, D) to (R, D) rows, or to each other with an exact zero diagonal.

    What rounding cannot tell from 0 is 0, with zero gradient: the bare root has an infinite slope
    there, and 0 * inf is NaN. Rows are moved to their mean first, which keeps digits where they
    lie far from the origin.
    """
    found: Tensor = _Distances.apply(rows, None if references is rows else references, squared)
    return found


class _Distances(torch.autograd.Function):
    """One (B, R) block for the way back, and the products that it takes at least."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, references: Tensor | None, squared: bool) -> Tensor:
        center = rows.mean(0)
        rows = rows - center
        others = rows if references is None else references - center
        square = rows.square().sum(1)
        both = square[:, None] + (square if references is None else others.square().sum(1))
        found = torch.addmm(both, rows, others.T, alpha=-2)
        found.masked_fill_(found <= both.mul_(4 * torch.finfo(rows.dtype).eps), 0)
        if references is None:
            found.fill_diagonal_(0)
        if not squared:
            found.sqrt_()
        ctx.squared = squared
        ctx.save_for_backward(rows, None if references is None else others, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, others, found = ctx.saved_tensors
        # The gradient of D_ij is the unit vector between the rows, that of D_ij^2 twice the vector.
        pull = 2 * grad if ctx.squared else grad / found
        pull.masked_fill_(found == 0, 0)
        if others is None:
            pull += pull.T.contiguous()  # a sum of it and its transpose jumps through memory
            return _pulled(rows, pull, rows), None, None
        to_others = _pulled(others, pull.T, rows) if ctx.needs_input_grad[1] else None
        return _pulled(rows, pull, others), to_others, None


def _pulled(rows: Tensor, pull: Tensor, others: Tensor) -> Tensor:
    """(B, D) sum over j of pull_ij * (rows_i - others_j)."""
    # Backward runs under whatever autocast its caller has.
    with torch.autocast(rows.device.type, enabled=False):
        return torch.addmm(pull.sum(1, keepdim=True) * rows, pull, others, alpha=-1)


def distances_at(
    matrix: Tensor,
    rows: Tensor,
    references: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    squared: bool,
) -> Tensor:
    """(P,) distances between rows[first] and references[second], differentiable.

    Few pairs are subtracted, which is exact and spares the way back of the (B, R) matrix of all;
    many are taken out of it.
    """
    if len(first) > 4 * len(rows):
        return at(matrix, first, second)
    found: Tensor = _FewDistances.apply(
        rows, None if references is rows else references, first, second, squared
    )
    return found


class _FewDistances(torch.autograd.Function):
    """Differences kept for the way back, which sums them into one gradient where rows are shared.

    Autograd's way back of an index in brackets alone takes longer than all of this.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        references: Tensor | None,
        first: Tensor,
        second: Tensor,
        squared: bool,
    ) -> Tensor:
        others = rows if references is None else references
        difference = rows.index_select(0, first).sub_(others.index_select(0, second))
        found: Tensor = torch.linalg.vector_norm(difference, dim=1)
        ctx.squared, ctx.sizes = squared, (len(rows), None if references is None else len(others))
        ctx.save_for_backward(difference, found, first, second)
        if squared:
            found = found.square()
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        difference, found, first, second = ctx.saved_tensors
        pull = 2 * grad if ctx.squared else grad / found
        pull = difference * pull.masked_fill_(found == 0, 0)[:, None]
        size, others = ctx.sizes
        to_rows = pull.new_zeros(size, pull.shape[1]).index_add_(0, first, pull)
        if others is None:
            return to_rows.index_add_(0, second, pull, alpha=-1), None, None, None, None
        to_others = None
        if ctx.needs_input_grad[1]:
            to_others = pull.new_zeros(others, pull.shape[1]).index_add_(0, second, pull, alpha=-1)
        return to_rows, to_others, None, None, None


def at(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(P,) entries of (B, R) values at places given by rows (P,) and columns (P,)."""
    # With two indices in brackets both ways are several times as slow.
    return values.reshape(-1).index_select(0, rows * values.shape[1] + columns)


def entries(values: Tensor, mask: Tensor) -> Tensor:
    """(P,) entries of (B, R) values under the mask, row by row."""
    return at(values, *mask.nonzero(as_tuple=True))


def masked_logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) logsumexp of each row's entries under the mask; hugely negative, finite without any."""
    return torch.where(mask, values, torch.finfo(values.dtype).min / 4).logsumexp(1)


def infonce(similarity: Tensor, pairs: Pairs) -> Tensor:
    """Scalar mean of -log e^s_ap / (e^s_ap + sum over negatives n of e^s_an) over pairs (a, p).

    Pairs whose anchor has no negative are left out. By softplus of a logsumexp: a ratio of
    exponentials and its log saturate, at 87 in float32 and at 9.7 in float16.
    """
    anchors, positives = with_negative(pairs).nonzero(as_tuple=True)
    negatives = masked_logsumexp(similarity, pairs.far).index_select(0, anchors)
    return mean(softplus(negatives - at(similarity, anchors, positives)))


def with_negative(pairs: Pairs) -> Tensor:
    """(B, R) bool mask of the positive pairs whose anchor has a negative."""
    return pairs.near & pairs.opposed[:, None]


def softplus(values: Tensor) -> Tensor:
    """log(1 + e^x), to the last digit; `F.softplus` is x from 20 on."""
    return torch.logaddexp(values, torch.zeros_like(values))


def mean(values: Tensor) -> Tensor:
    """Scalar mean; without values a zero attached to the graph, where `Tensor.mean` is NaN."""
    return values.sum() / max(1, values.numel())


def check_positive(**numbers: float) -> None:
    """Nothing, or an error for an argument that is not a finite number above 0."""
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive, got {value}")


def _labelled(embeddings: Tensor, labels: Tensor, which: str) -> tuple[Tensor, Tensor]:
    """The labelled rows in float32 at least: what others hold, NaN included, reaches neither pass.

    Raises:
        ValueError: a shape or type that does not fit, a label below -1.
    """
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"{'references' if which else 'embeddings'} must be (B, D) floats, got "
            f"{embeddings.dtype} {tuple(embeddings.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{which}labels must be int64 of shape ({len(embeddings)},), got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    valid = (labels >= -1).all()
    if labels.device.type != "cpu":  # to read the answer the host would wait for the device
        torch._assert_async(valid, "a label lies below -1")
    elif not valid:
        raise ValueError(
            f"{which}labels must be at least 0, or -1 to ignore a row, got {labels.min().item()}"
        )
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    known = labels >= 0
    if known.all():
        return embeddings, labels
    place = known.nonzero()[:, 0]
    return embeddings.index_select(0, place), labels[place]
