"""What a loss knows about its batches beside their value: sums that an epoch adds up on the device.

A loss's `watch()` maps names to (2,) tensors, the sum of a statistic over the last batch and over
how many rows, pairs or triplets it ran. Nothing here waits for the device but `means`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.losses.cosine import ClassCosines


@torch.no_grad()
def head_sums(found: ClassCosines, labels: Tensor, wins: Tensor | None) -> dict[str, Tensor]:
    """`watch` of a head with class centres, over the labelled rows of a batch.

    own_angle: degrees between a row and the nearest centre of its class.
    other_angle: degrees to the nearest centre of another class; 180 where there is none.
    dominant_share: with `wins`, rows whose nearest centre is the one that has won most in their
        class so far; the others are what sub-centre ArcFace takes for noise.

    Args:
        found: what the head was told about the batch.
        labels: (B,) int64, -1 for rows that do not count.
        wins: (C, K) how often each centre was the nearest of its class in training; None for K = 1.
    """
    cosines = torch.stack([found.own, found.hardest]).clamp(-1, 1)
    values = dict(zip(("own_angle", "other_angle"), cosines.acos().rad2deg(), strict=True))
    if wins is not None:
        dominant = wins[labels.clamp_min(0)].argmax(1)
        values["dominant_share"] = (dominant == found.winner).to(found.own.dtype)
    counted = labels >= 0
    sums = torch.where(counted, torch.stack(list(values.values())), 0).sum(1)
    return dict(zip(values, with_number(sums, counted.sum()), strict=True))


def with_number(sums: Tensor, number: Tensor) -> Tensor:
    """(n, 2) of (n,) sums over the same number of things."""
    return torch.stack([sums, number.to(sums).expand_as(sums)], 1)


def means(watched: Mapping[str, Tensor]) -> dict[str, float]:
    """Sum by number of each statistic, without those of nothing; waits for the device."""
    read = {name: pair.tolist() for name, pair in watched.items()}
    return {name: total / number for name, (total, number) in read.items() if number}
