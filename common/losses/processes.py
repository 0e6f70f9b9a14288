"""What adaptive losses need to keep the same state on several processes; no gradient passes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def joined() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def summed(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, of the same shape."""
    value = value.clone()
    if joined():
        dist.all_reduce(value)
    return value


@torch.no_grad()
def gathered(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, ...) rows and (N,) labels of all processes; label -1 also where one has fewer rows."""
    if not joined():
        return rows, labels
    most = labels.new_tensor(len(labels))
    dist.all_reduce(most, dist.ReduceOp.MAX)
    empty = int(most) - len(labels)  # all_gather wants equal shapes
    rows = torch.cat([rows, rows.new_zeros(empty, *rows.shape[1:])])
    labels = torch.cat([labels, labels.new_full((empty,), -1)])
    all_rows, all_labels = (
        [torch.empty_like(part) for _ in range(dist.get_world_size())] for part in (rows, labels)
    )
    dist.all_gather(all_rows, rows)
    dist.all_gather(all_labels, labels)
    return torch.cat(all_rows), torch.cat(all_labels)


@torch.no_grad()
def adapt(state: Tensor, new: Tensor) -> None:
    """Set a buffer, unless `new` is not finite: one batch without labels or with NaN is no news."""
    state.copy_(torch.where(new.isfinite(), new, state))
