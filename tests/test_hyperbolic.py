"""Hyperbolic contrastive loss against Moebius addition, the authors' batches, limits; no NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from common.losses.hyperbolic import HyperbolicContrastiveLoss
from tests.oracles import rank_losses as oracle
from tests.oracles.pair_losses import HARD_CASES, agree, batch, learns_nothing, never_nan

EACH = [
    {},
    {"curvature": 0.01},
    {"curvature": 1.0, "temperature": 1.0},
    {"curvature": 0.5, "clip": 1.0},
    {"curvature": 0.3, "clip": 5.0},
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("options", EACH, ids=str)
def test_equals_the_loop_twin(options, seed):
    x, labels = batch(seed=seed)
    loss = HyperbolicContrastiveLoss(**options)(x, labels)
    agree(loss, oracle.hyperbolic(x, labels, **options), x)


def test_gradcheck():
    x, labels = batch(rows=8, dim=3, classes=3)
    criterion = HyperbolicContrastiveLoss(0.5, clip=1.5)
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels), (x,))


def test_two_rows_per_class_give_the_authors_cross_entropy():
    """Views x0, x1: logits are the distances to the other view, then to the same one but itself."""
    x, _ = batch(rows=12, ignored=False)
    criterion = HyperbolicContrastiveLoss()
    parts = []
    for a, b in [(x[:6], x[6:]), (x[6:], x[:6])]:
        across = -criterion.distances(a, b) / 0.2
        within = -criterion.distances(a, a) / 0.2 - 1e9 * torch.eye(6)
        parts.append(F.cross_entropy(torch.cat([across, within], 1), torch.arange(6)))
    agree(criterion(x, torch.arange(6).repeat(2)), sum(parts) / 2, x)


def test_without_curvature_it_is_twice_the_euclidean_distance():
    x, _ = batch(ignored=False)
    x = F.normalize(x)
    flat = HyperbolicContrastiveLoss(1e-10).distances(x, x)
    torch.testing.assert_close(flat, 2 * torch.cdist(x, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_distance_from_the_origin_is_twice_the_length(c):
    """The map is the exponential one: a geodesic from 0 has twice the length of its tangent."""
    x = torch.tensor([[0.3, 0.4], [1.2, 0.9]], dtype=torch.float64)
    found = HyperbolicContrastiveLoss(c).distances(torch.zeros(1, 2).double(), x)
    torch.testing.assert_close(found, torch.tensor([[1.0, 3.0]], dtype=torch.float64))


def test_it_is_a_metric_and_grows_with_curvature():
    x, _ = batch(ignored=False)
    before = 0.0
    for c in (0.01, 0.1, 0.5, 1.0):
        d = HyperbolicContrastiveLoss(c).distances(x, x)
        assert torch.equal(d.diagonal(), torch.zeros(len(x)).double())
        torch.testing.assert_close(d, d.T)
        assert (d[:, None] <= d[:, :, None] + d[None] + 1e-9).all()
        assert (d > before - 1e-9).all()
        before = d


def test_clipped_rows_keep_their_direction_only():
    x, labels = batch()
    x = (x.detach() * 100).requires_grad_()
    criterion = HyperbolicContrastiveLoss()
    loss = criterion(x, labels)
    torch.testing.assert_close(criterion(3 * x, labels), loss)
    (grad,) = torch.autograd.grad(loss, x)
    assert (grad * x).sum(1).abs().max() < 1e-12
    assert grad.abs().max() > 0


def test_float32_keeps_its_digits_at_the_rim():
    x, _ = batch(rows=30, ignored=False)
    criterion = HyperbolicContrastiveLoss(1.0, clip=3.0)
    exact = criterion.distances(10 * x, 10 * x).float()
    close = criterion.distances(10 * x.float(), 10 * x.float())
    torch.testing.assert_close(close, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", EACH, ids=str)
@pytest.mark.parametrize("case", HARD_CASES)
def test_never_nan(case, options):
    never_nan(HyperbolicContrastiveLoss(**options), *HARD_CASES[case]())


@pytest.mark.parametrize("labels", [[-1, -1], [], [0], [4, 4, 4], [0, 1, 2]], ids=str)
def test_nothing_to_learn_is_a_zero_on_the_graph(labels):
    learns_nothing(HyperbolicContrastiveLoss(), labels)


def test_references_and_mass():
    x, labels = batch()
    criterion = HyperbolicContrastiveLoss()
    agree(criterion(x, labels, x, labels, own=True), criterion(x, labels), x)
    assert criterion.mass(torch.tensor([0, 0, 0, 1, 1, 2, -1, -1])) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": 0.0}, "curvature must be positive"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"clip": math.inf}, "clip must be positive"),
        ({"curvature": 4.0}, "at most 3.0.*got 4.6"),
    ],
    ids=str,
)
def test_bad_arguments_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        HyperbolicContrastiveLoss(**options)
