"""Smooth ranking losses, the metric itself as the loss: average precision and recall at k.

loss = SmoothAPLoss(temperature=0.01)(embeddings, labels)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from common.losses.batch import Pairs, ReferenceLoss, check_positive, mean

TILE = 1 << 22  # elements of the largest temporary: 16 MiB in float32


class SmoothAPLoss(ReferenceLoss):
    """1 - smooth average precision: ranks counted by sigmoids of differences of cosines.

    Brown et al., ECCV 2020: mean over queries of 1 - AP, AP the mean over positives i of
    (1 + sum over other positives j of G(s_j - s_i)) / (1 + sum over all j of G), G(x) =
    1 / (1 + e^(-x/t)). Queries without a positive are left out. The query is not ranked itself;
    the authors' code and pytorch-metric-learning's count it as a first hit, which flatters AP, and
    want equally large classes. For large batches with four or more images per class.

    Args:
        temperature: the paper's 0.01.

    Raises:
        ValueError: temperature not positive.
    """

    def __init__(self, temperature: float = 0.01) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        query, among, overall = _ranks(rows @ references.T, pairs, self.temperature)
        precision = _per_query(among / overall, query, pairs)
        return mean((1 - precision)[pairs.near.any(1)])

    def _mass(self, pairs: Pairs) -> Tensor:
        return pairs.near.any(1).sum()


class RecallAtKLoss(ReferenceLoss):
    """1 - smooth recall at k, mean over several k.

    Patel et al., CVPR 2022: recall at k is the sum over positives of
    sigmoid((k - r) / (k * step)), r = 1 + sum over others of sigmoid((s_j - s_i) / t), at most k,
    over min(k, positives). Queries without a positive are left out. The authors' code counts the
    query itself, which puts every rank one too far; here it is not ranked. For very large batches.

    Args:
        ks: the authors' 1, 2, 4, 8, 16.
        temperature: t; the authors' 0.01.
        step: softness of the cut at k, in units of k; the authors' 1.

    Raises:
        ValueError: no k or one below 1, temperature or step not positive.
    """

    def __init__(
        self, ks: tuple[int, ...] = (1, 2, 4, 8, 16), temperature: float = 0.01, step: float = 1.0
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, step=step)
        if not ks or min(ks) < 1:
            raise ValueError(f"ks must be numbers from 1, got {list(ks)}")
        self.ks, self.temperature, self.step = list(ks), temperature, step

    def _compare(self, rows: Tensor, references: Tensor, pairs: Pairs) -> Tensor:
        query, _, rank = _ranks(rows @ references.T, pairs, self.temperature)
        positives = pairs.near.sum(1)
        recalls = []
        for k in self.ks:
            inside = _per_query(((k - rank) / (k * self.step)).sigmoid(), query, pairs, total=True)
            recalls.append(inside.clamp_max(k) / positives.clamp(1, k))
        recall = torch.stack(recalls).mean(0)
        return mean((1 - recall)[positives > 0])

    def _mass(self, pairs: Pairs) -> Tensor:
        return pairs.near.any(1).sum()


def _per_query(values: Tensor, query: Tensor, pairs: Pairs, *, total: bool = False) -> Tensor:
    """(B,) sum of the (P,) values of each query, or their mean."""
    found = values.new_zeros(len(pairs.near)).index_add(0, query, values)
    return found if total else found / pairs.near.sum(1).clamp_min(1)


def _ranks(similarity: Tensor, pairs: Pairs, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Query (P,) of each positive, its smooth rank among positives (P,) and among all (P,).

    Blocks of at most `TILE` elements, computed again on the way back: P R of them is O(B^3).
    """
    query, item = pairs.near.nonzero(as_tuple=True)
    size = max(1, TILE // max(1, similarity.shape[1]))
    blocks = [
        checkpoint(
            *(_block, similarity, pairs, q, i, temperature),
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in it is random
        )
        for q, i in zip(torch.split(query, size), torch.split(item, size), strict=True)
    ]
    among, overall = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return query, among, overall


def _block(
    similarity: Tensor, pairs: Pairs, query: Tensor, item: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    every = similarity[query]
    ahead = ((every - every.gather(1, item[:, None])) / temperature).sigmoid()
    # The item itself is half ahead of itself.
    among = 0.5 + (ahead * pairs.near[query]).sum(1)
    return among, among + (ahead * pairs.far[query]).sum(1)
