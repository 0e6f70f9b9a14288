"""Margin heads against pytorch-metric-learning, loop twins and gradcheck; what they report."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import losses as pml
from torch.nn import functional as F

from common.losses import cosine
from common.losses.margin import ArcFace, CosFace, SubCenterArcFace
from tests.oracles import margin as oracle
from tests.oracles.margin import batch, gradients

HEADS = [CosFace, ArcFace, SubCenterArcFace]
COUNTS = [1, 16, 81, 0, 5]


@pytest.fixture(params=[1 << 22, 7], ids=["one_tile", "tiles"])
def tile(request, monkeypatch):
    """The classes in one tile, and in tiles of one or two."""
    monkeypatch.setattr(cosine, "TILE", request.param)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def kind_of(head):
    return "cosface" if isinstance(head, CosFace) else "arcface"


@pytest.mark.parametrize(
    ("ours", "theirs", "m"),
    [
        (CosFace, pml.CosFaceLoss, 0.35),
        (ArcFace, pml.ArcFaceLoss, 1.0),
        (SubCenterArcFace, pml.SubCenterArcFaceLoss, 1.0),
    ],
)
def test_equals_pytorch_metric_learning(ours, theirs, m, tile):
    x, labels = batch(rows=48, dim=3, ignored=False)
    x = x.detach().double().requires_grad_()
    head = ours(3, 5, scale=64, margin=m, seed=1).double()  # converted afterwards, as users do
    head.weight.data[:, 0] = head.weight.data[:, 0].abs() + 0.5  # rows on the other side are far
    options = {"sub_centers": 3} if theirs is pml.SubCenterArcFaceLoss else {}
    degrees = m if ours is CosFace else math.degrees(m)
    other = theirs(num_classes=5, embedding_size=3, margin=degrees, scale=64, **options)
    other.W.data = head.weight.detach().T.clone()

    loss, expected = head(x, labels), other(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-8)
    if ours is not CosFace:
        own = torch.einsum("bd,bkd->bk", F.normalize(x), head.centers()[labels]).amax(1)
        assert (own < -math.cos(m)).any(), "no row beyond pi - m: the fallback would go untested"
    dx, dw = gradients(loss, x, head.weight)
    ex, ew = gradients(expected, x, other.W)
    torch.testing.assert_close(dx, ex, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(dw, ew.T, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"margin": {"formula": "minmax_power", "a": 0.4, "b": 0.1, "lambda": 0.5}},
        {"margin": {"formula": "power", "a": 0.27126, "b": 0.05, "lambda": 0.364399}},
        {"label_smoothing": 0.2},
        {"focal_gamma": 2.0},
        {"focal_gamma": 0.5, "label_smoothing": 0.1, "class_weights": "1/log1p(n)"},
        {"class_weights": "1/sqrt(n)", "margin": {"formula": "power"}},
    ],
    ids=str,
)
def test_equals_the_loop_twin(make, options, double, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", 50)  # classes two by two
    x, labels = batch()
    head = make(4, 5, scale=12.0, class_counts=COUNTS, **options)
    counts = [n or 1 for n in COUNTS]  # the class without images counts like the smallest, of 1
    formula = options.get("margin", {"formula": "fixed"})
    constants = {"a": 0.5, "b": 0.05, "lambda": 0.25} | formula
    a, b, lam = constants["a"], constants["b"], constants["lambda"]
    margins = {
        "fixed": [0.3] * 5,
        "minmax_power": oracle.minmax_power(counts, a, b, lam),
        "power": oracle.power(counts, a, b, lam),
    }[formula["formula"]]
    weights = {
        None: None,
        "1/log1p(n)": [1 / math.log1p(n) for n in counts],
        "1/sqrt(n)": [1 / math.sqrt(n) for n in counts],
    }[options.get("class_weights")]
    expected = oracle.margin_loss(
        kind_of(head),
        x,
        head.weight,
        labels.tolist(),
        k=head.k,
        scale=12.0,
        margins=margins,
        label_smoothing=options.get("label_smoothing", 0.0),
        focal_gamma=options.get("focal_gamma", 0.0),
        class_weights=weights,
    )
    loss = head(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    got, wanted = gradients(loss, x, head.weight), gradients(expected, x, head.weight)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", HEADS)
def test_gradcheck(make, double, tile):
    x, labels = batch(rows=6, dim=3, classes=4)
    head = make(3, 4, scale=5.0, label_smoothing=0.1, focal_gamma=1.5)
    head.eval()

    def loss(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (x, labels))

    assert torch.autograd.gradcheck(loss, (x, head.weight))


def test_smoothing_gives_the_others_no_margin():
    """The known bug mixes the margin into every class in proportion to its smoothed target."""
    x, labels = batch(ignored=False)
    head = ArcFace(4, 5, label_smoothing=0.3)
    c = F.normalize(x) @ F.normalize(head.weight).T
    own = c.gather(1, labels[:, None])
    moved = torch.where(own > -math.cos(0.3), (own.acos() + 0.3).cos(), own - 0.3 * math.sin(0.3))
    logits = 30 * c.scatter(1, labels[:, None], moved)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3)
    torch.testing.assert_close(head(x, labels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("m", [0.1, 0.5, 1.0, math.pi / 2])
def test_loss_rises_all_the_way_to_the_antipode(m, double):
    angle = torch.linspace(0.001, math.pi - 0.001, 100)
    x = torch.stack([angle.cos(), angle.sin(), torch.zeros(100)], 1)
    head = ArcFace(3, 2, scale=10, margin=m)
    head.weight.data = torch.tensor(
        [[1.0, 0, 0], [0, 0, 1.0]]
    )  # the other class stays at 90 degrees
    losses = torch.stack([head(row[None], torch.tensor([0])) for row in x])
    assert (losses.diff() > 0).all()


def test_only_the_nearest_sub_center_learns_and_a_tie_goes_to_the_first():
    head = SubCenterArcFace(2, 2, k=3)
    head.weight.data = torch.tensor([[0, 1.0], [1, 0], [1, 0], [-1, 0], [-1, 0.1], [0, -1]])
    head(torch.tensor([[2.0, 0.2]]), torch.tensor([0])).backward()
    touched = head.weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [False, True, False, False, False, True]


def test_centers_are_unit_and_adjacent():
    head = SubCenterArcFace(4, 5, k=2)
    centers = head.centers()
    assert centers.shape == (5, 2, 4)
    assert not centers.requires_grad
    torch.testing.assert_close(centers[3, 1], F.normalize(head.weight[7], dim=0))


def test_every_tensor_that_learns_is_a_parameter():
    for make in HEADS:
        head = make(4, 5, class_counts=COUNTS, margin={"formula": "power"}, class_weights="1/n")
        assert [name for name, _ in head.named_parameters()] == ["weight"]
        assert head.weight.shape == (5 * head.k, 4)
        head(*batch()).backward()
        assert head.weight.grad is not None


def test_seed_fixes_the_start_and_sub_centers_differ():
    a, b = (SubCenterArcFace(4, 5, seed=7).weight for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, SubCenterArcFace(4, 5, seed=8).weight)
    assert len(a.unique(dim=0)) == 15


def test_statistics_by_hand():
    head = SubCenterArcFace(2, 2, k=2)
    head.weight.data = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    assert head.statistics() == {}
    head(torch.tensor([[1.0, 0], [2, 0]]), torch.tensor([0, 0]))
    half = math.sqrt(0.5)
    x = torch.tensor([[half, half - 1e-3], [0.0, 3], [1, 1]])
    head(x, torch.tensor([0, 0, -1]))
    found = head.statistics()
    assert found["own_angle"] == pytest.approx(45 / 2, abs=0.1)
    assert found["other_angle"] == pytest.approx((135 + 90) / 2, abs=0.1)
    assert found["dominant_share"] == 0.5  # three wins for the first, one for the second
    assert head.wins.tolist() == [[3, 1], [0, 0]]
    head.eval()
    head(x, torch.tensor([0, 0, -1]))
    assert head.wins.sum() == 4
