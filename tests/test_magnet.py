"""Magnet loss against a loop twin and gradcheck; the cluster index on clusters that are clear."""

from __future__ import annotations

import pytest
import torch

from common.losses import magnet
from common.losses.clusters import cluster_index
from common.losses.magnet import MagnetLoss
from common.steps import catalog
from tests.oracles.pair_losses import agree, batch, learns_nothing
from tests.oracles.pair_losses import magnet as twin


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("options", [{}, {"alpha": 4.0, "normalize": False}], ids=str)
def test_equals_the_loop_twin(k, options, seed):
    x, labels = batch(rows=24, seed=seed)
    clusters = torch.arange(24) % k
    loss = MagnetLoss(**options)(x, labels, None if k == 1 else clusters)
    assert loss > 0
    agree(loss, twin(x, labels, clusters, **options), x)


def test_gradcheck():
    x, labels = batch(rows=8, dim=3, classes=3)
    assert torch.autograd.gradcheck(lambda x: MagnetLoss(3.0)(x, labels), (x,))


def test_one_class_has_nothing_to_learn():
    learns_nothing(MagnetLoss(), [4, 4, 4])


def test_rows_on_their_means_are_done():
    """Public ports divide 0 by 0 here."""
    x = torch.eye(3)[[0, 0, 1, 1, 2, 2]].requires_grad_()
    loss = MagnetLoss()(x, torch.tensor([0, 0, 1, 1, 2, 2]))
    loss.backward()
    assert loss == 0
    assert x.grad.isfinite().all()


def test_clusters_belong_to_their_class_and_ignored_rows_to_none():
    x, labels = batch(rows=24)
    clusters = torch.arange(24) % 2
    expected = MagnetLoss()(x, labels, clusters)
    agree(MagnetLoss()(x, labels, clusters + 2 * labels.clamp_min(0)), expected, x)
    agree(MagnetLoss()(x, labels, torch.where(labels < 0, 99, clusters)), expected, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        agree(MagnetLoss()(x, labels, clusters), expected, x, rtol=0, atol=0)


def test_name_mass_and_bad_input():
    assert set(catalog(magnet)) == {"magnet"}
    assert MagnetLoss().mass(torch.tensor([0, 0, 0, 1, 1, 2, -1, -1])) == 6
    assert MagnetLoss().mass(torch.tensor([0, 0, -1])) == 0
    with pytest.raises(ValueError, match="alpha must be positive"):
        MagnetLoss(0.0)
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="clusters must be int64"):
        MagnetLoss()(x, labels, labels[:3])


def test_cluster_index_finds_what_is_there():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([5, 5, 5, 9, 9, 9, -1]).repeat(10)
    part = torch.tensor([0, 1, 2, 0, 1, 1, 0]).repeat(10)
    vectors = torch.eye(4)[part] * 10 + torch.randn(70, 4, generator=generator) * 0.1
    found = cluster_index(vectors, labels, k=3, rounds=50)
    assert (found[labels == -1] == -1).all()
    for label in (5, 9):
        mine = labels == label
        for cluster in found[mine].unique():
            inside = mine & (found == cluster)
            assert part[inside].unique().numel() == 1, "a cluster holds two looks"
            assert (labels[found == cluster] == label).all(), "a cluster holds two classes"
    assert torch.equal(found, cluster_index(vectors, labels, k=3, rounds=50))


def test_cluster_index_of_few_or_equal_rows():
    vectors, labels = torch.ones(5, 2), torch.tensor([0, 0, 1, -1, -1])
    assert cluster_index(vectors, labels, k=3).tolist() == [0, 0, 1, -1, -1]
    with pytest.raises(ValueError, match="k >= 1"):
        cluster_index(vectors, labels, k=0)
    with pytest.raises(ValueError, match="a label per vector"):
        cluster_index(vectors, labels[:3])
