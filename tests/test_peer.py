"""Pair losses in the forms in which the peer has them too: values and gradients in float64."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import reducers
from pytorch_metric_learning.distances import LpDistance
from torch import nn

from common.losses.memory import MomentumQueue
from common.losses.pair import ContrastiveLoss, TripletLoss
from common.losses.tuple import InfoNCELoss, NPairLoss
from tests.oracles.pair_losses import agree, batch


class HalfSquares(reducers.BaseReducer):
    """Their pair losses are hinges of D; Hadsell's are half the squares of those."""

    def pos_pair_reduction(self, losses, indices, embeddings, labels):
        return losses.square().mean() / 2

    neg_pair_reduction = pos_pair_reduction


@pytest.mark.parametrize("margin", [0.5, 1.0, 1.4])
def test_contrastive_is_theirs_with_the_hinges_squared(margin):
    x, labels = batch(ignored=False)
    theirs = pml.ContrastiveLoss(0, margin, reducer=HalfSquares())
    agree(ContrastiveLoss(margin)(x, labels), theirs(x, labels), x)


@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_contrastive_where_all_negatives_are_far(margin):
    """Their hinge on D^2 and Hadsell's squared hinge on D share the zero, and the positives."""
    x, labels = batch(ignored=False)
    spread = (x.detach() * 0.05 + 4 * torch.eye(4, dtype=x.dtype)[labels]).requires_grad_()
    theirs = pml.ContrastiveLoss(
        0, margin, distance=LpDistance(power=2), reducer=reducers.MeanReducer()
    )
    agree(2 * ContrastiveLoss(margin)(spread, labels), theirs(spread, labels), spread)


def test_n_pair_of_unit_rows():
    x, _ = batch(rows=10, ignored=False)
    labels = torch.arange(5).repeat(2)
    agree(NPairLoss(l2=0.0, normalize=True)(x, labels), pml.NPairsLoss()(x, labels), x)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_info_nce_of_queries_and_keys(temperature):
    q, _ = batch(rows=8, ignored=False)
    k, _ = batch(rows=8, ignored=False, seed=3)
    one_each = torch.arange(8)
    theirs = pml.NTXentLoss(temperature)(q, one_each, ref_emb=k, ref_labels=one_each.clone())
    loss = InfoNCELoss(temperature)(q, one_each, k, one_each)
    agree(loss, theirs, q)
    agree(loss, theirs, k)
    logits = nn.functional.normalize(q) @ nn.functional.normalize(k).T / temperature
    agree(loss, nn.functional.cross_entropy(logits, one_each), q)


def test_info_nce_of_a_queue():
    """MoCo: every query has its own key as the positive, and the queue alone as negatives."""
    q, _ = batch(rows=4, ignored=False)
    k, _ = batch(rows=4, ignored=False, seed=3)
    queue, _ = batch(rows=12, ignored=False, seed=5)
    keys = torch.cat([k, queue]).detach()
    a, negatives = torch.arange(4), torch.arange(4, 16)
    tuples = a, a, a.repeat_interleave(12), negatives.repeat(4)
    theirs = pml.NTXentLoss(0.2)(q, a, tuples, ref_emb=keys, ref_labels=torch.arange(16))
    # Ours counts the keys of the batch too: row by row there are none but the query's own.
    momentum = MomentumQueue(4, {"name": "info_nce", "temperature": 0.2}, size=12).double()
    momentum.memory.copy_(queue.detach())
    momentum.memory_labels.copy_(negatives)
    momentum.eval()
    loss = sum(momentum(q[i : i + 1], a[i : i + 1], k[i : i + 1]) for i in range(4)) / 4
    agree(loss, theirs, q)


@pytest.mark.parametrize("squared", [False, True])
def test_triplets_of_raw_rows(squared):
    x, labels = batch(ignored=False)
    distance = LpDistance(normalize_embeddings=False, power=2 if squared else 1)
    theirs = pml.TripletMarginLoss(0.7, distance=distance, reducer=reducers.MeanReducer())
    ours = TripletLoss(0.7, "all_triplets", squared=squared, normalize=False)
    agree(ours(x, labels), theirs(x, labels), x)
