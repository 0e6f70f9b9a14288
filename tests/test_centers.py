"""Center loss, modified softmax and SphereFace against loop twins and pytorch-metric-learning."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import losses as pml
from torch.nn import functional as F

from common.losses import centers, cosine
from common.losses.centers import CenterLoss, ModifiedSoftmax, SphereFace
from common.losses.classify import LinearSoftmax
from common.losses.total import Total
from common.steps import bind, catalog
from tests.oracles import heads as oracle
from tests.oracles.margin import batch, gradients

COUNTS = [1, 16, 81, 0, 5]
WEIGHTS = [1 / math.sqrt(n or 1) for n in COUNTS]
OPTIONS = [
    {},
    {"k": 2, "label_smoothing": 0.2, "focal_gamma": 2.0},
    {"class_weights": "1/sqrt(n)", "class_counts": COUNTS},
]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[1 << 22, 7], ids=["one_tile", "tiles"])
def tile(request, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", request.param)


def agree(loss, expected, x, weight):
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-8)
    got, wanted = gradients(loss, x, weight), gradients(expected, x, weight)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def expect(logits, labels, options):
    return oracle.cross_entropy(
        logits,
        labels,
        options.get("label_smoothing", 0.0),
        options.get("focal_gamma", 0.0),
        WEIGHTS if "class_weights" in options else None,
    )


# --- center loss


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_center_loss_equals_the_loop_twin(alpha, normalize, weighted):
    counts = [1, 16, 81, 2, 5, 0]
    criterion = CenterLoss(4, 6, alpha, counts, normalize=normalize)
    if weighted:
        criterion = CenterLoss(4, 6, alpha, counts, class_weights="1/n", normalize=normalize)
    weights = [1 / max(1, n) for n in counts] if weighted else None
    means = torch.zeros(6, 4)
    for seed in range(3):
        x, labels = batch(seed=seed)
        rows = x / x.norm(dim=1, keepdim=True) if normalize else x
        expected = oracle.center_loss(rows, labels, means, weights)
        assert float(criterion.mass(labels)) == pytest.approx(
            sum(weights[c] if weighted else 1 for c in labels.tolist() if c >= 0)
        )
        loss = criterion(x, labels)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
        # Backward after the centres have moved: the gradient is that of the loss as it was.
        (got,), (wanted,) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, x)
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)
        means = oracle.moved_centers(rows, labels, means, alpha)
        torch.testing.assert_close(criterion.means, means, rtol=1e-10, atol=1e-10)
    assert (criterion.means[5] == 0).all()  # a class without images stays


def test_center_update_by_hand():
    """alpha * sum(x - c) / (1 + n): with two rows of a class a third of the sum, not the mean."""
    criterion = CenterLoss(1, 2, alpha=0.5)
    criterion(torch.tensor([[3.0], [6.0], [5.0]]), torch.tensor([0, 0, -1]))
    assert criterion.means.tolist() == [[1.5], [0.0]]


def test_center_gradcheck():
    x, labels = batch(rows=6, dim=3, classes=4)
    criterion = CenterLoss(3, 4).eval()
    criterion.means.normal_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels), (x,))


def test_centers_are_no_parameter_and_their_step_does_not_follow_the_loss_weight():
    x, labels = batch()
    alone = CenterLoss(4, 5)
    total = Total([LinearSoftmax(4, 5), CenterLoss(4, 5)], [1.0, 0.003])
    alone(x, labels)
    total(x, labels).backward()
    assert torch.equal(total.terms[1].means, alone.means)
    assert not list(alone.parameters())
    assert total.centers() is None  # none that predict


def test_a_row_that_is_not_finite_spoils_no_center():
    criterion = CenterLoss(2, 2)
    criterion(torch.tensor([[torch.inf, 1.0], [2.0, 2.0]]), torch.tensor([0, 1]))
    assert criterion.means.tolist() == [[0.0, 0.0], [0.5, 0.5]]


# --- modified softmax and SphereFace


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_modified_softmax_equals_the_loop_twin(options, tile):
    head = ModifiedSoftmax(4, 5, **options)
    x, labels = batch()
    x = (x.detach() * torch.linspace(0.01, 9, len(x))[:, None]).requires_grad_()
    c = oracle.cosines(x, head.weight, head.k)
    logits = x.norm(dim=1, keepdim=True) * c
    agree(head(x, labels), expect(logits, labels, options), x, head.weight)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_sphereface_equals_the_loop_twin(m, options, tile):
    head = SphereFace(4, 5, margin=m, annealing={"start": 4, "decay": 0.5, "end": 1.5}, **options)
    for step in range(1, 5):
        x, labels = batch(seed=step)
        c = oracle.cosines(x, head.weight, head.k)
        blend = max(1.5, 4 / (1 + 0.5 * step))
        logits = oracle.sphereface(x, c, labels, m=m, blend=blend)
        agree(head(x, labels), expect(logits, labels, options), x, head.weight)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
def test_sphereface_equals_pytorch_metric_learning_without_lambda(m):
    x, labels = batch(rows=48, ignored=False)
    head = SphereFace(4, 5, margin=m, annealing={"start": 0, "end": 0})
    other = pml.SphereFaceLoss(5, 4, margin=m, scale=1)
    other.W.data = head.weight.detach().T.clone()
    loss, expected = head(x, labels), other(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    ex, ew = gradients(expected, x, other.W)
    torch.testing.assert_close(gradients(loss, x, head.weight), (ex, ew.T), rtol=1e-8, atol=1e-8)


def test_a_margin_of_one_is_modified_softmax():
    x, labels = batch()
    one, plain = SphereFace(4, 5, margin=1, seed=1), ModifiedSoftmax(4, 5, seed=1)
    torch.testing.assert_close(one(x, labels), plain(x, labels))


def test_annealing_is_the_authors():
    head = SphereFace(4, 5)
    batches = [1, 10, 1000, 1658, 5000]
    expected = [1000 / 1.12, 1000 / 2.2, 1000 / 121, 5, 5]
    for count, value in zip(batches, expected, strict=True):
        head.batches.fill_(count - 1)
        x, labels = batch(ignored=False)
        c = oracle.cosines(x, head.weight)
        logits = oracle.sphereface(x, c, labels, blend=value)
        torch.testing.assert_close(
            head(x, labels), oracle.cross_entropy(logits, labels), rtol=1e-4, atol=1e-4
        )
        assert head.batches == count


def test_psi_falls_all_the_way_to_the_antipode():
    angle = torch.linspace(0.001, math.pi - 0.001, 200)
    for m in (2, 3, 4, 8):
        psi = centers._psi(angle.cos(), m)
        assert (psi.diff() < 1e-12).all()
        assert psi[-1] == pytest.approx(1 - 2 * m, abs=1e-3)
    ends = torch.tensor([1.0, -1.0, 1 + 1e-9, -1 - 1e-9], requires_grad=True)
    psi = centers._psi(ends, 4)
    torch.testing.assert_close(psi, torch.tensor([1.0, -7, 1, -7]), rtol=0, atol=1e-6)
    assert torch.autograd.grad(psi.sum(), ends)[0].isfinite().all()


@pytest.mark.parametrize("make", [ModifiedSoftmax, SphereFace])
def test_gradcheck(make, tile):
    x, labels = batch(rows=6, dim=3, classes=4)
    head = make(3, 4, label_smoothing=0.1, focal_gamma=1.5).eval()

    def loss(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (x, labels))

    assert torch.autograd.gradcheck(loss, (x, head.weight))


@pytest.mark.parametrize("make", [ModifiedSoftmax, SphereFace])
def test_statistics_are_those_of_the_angles(make):
    x, labels = batch()
    head = make(4, 5)
    head(x, labels)
    keep = labels >= 0
    c = F.normalize(x) @ F.normalize(head.weight).T
    own = c.gather(1, labels.clamp_min(0)[:, None])[keep, 0]
    others = c.scatter(1, labels.clamp_min(0)[:, None], -1)[keep].amax(1)
    found = head.statistics()
    assert found["own_angle"] == pytest.approx(own.acos().rad2deg().mean().item())
    assert found["other_angle"] == pytest.approx(others.acos().rad2deg().mean().item())


def test_by_name():
    known = catalog(centers)
    assert set(known) == {"center", "modified_softmax", "sphereface"}
    state = {"embedding_dim": 4, "num_classes": 5, "class_counts": COUNTS}
    assert isinstance(bind({"name": "center", "alpha": 0.1}, known)(state), CenterLoss)
    assert bind({"name": "sphereface", "annealing": {"end": 3}}, known)(state).annealing["end"] == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CenterLoss(4, 5, alpha=0.0), "alpha in"),
        (lambda: CenterLoss(4, 0), "num_classes=0"),
        (lambda: CenterLoss(4, 5, class_weights="1/n"), "needs class_counts"),
        (lambda: CenterLoss(4, 5)(torch.ones(2, 3), torch.tensor([0, 1])), r"\(B, 4\)"),
        (lambda: CenterLoss(4, 5)(torch.ones(2, 4), torch.tensor([0, 5])), r"\[0, 5\)"),
        (lambda: SphereFace(4, 5, margin=0), "whole number"),
        (lambda: SphereFace(4, 5, margin=1.5), "whole number"),
        (lambda: SphereFace(4, 5, annealing={"begin": 1}), "'begin'; it has: start, decay, end"),
        (lambda: SphereFace(4, 5, annealing={"end": -1}), "at least 0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
