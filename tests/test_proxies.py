"""Proxy losses, class-level Circle and the OHEM sigmoid against loop twins and other libraries."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import losses as pml
from torch.nn import functional as F

from common.losses import cosine, proxies, sigmoid
from common.losses.classify import CosineSoftmax
from common.losses.proxies import ClassCircle, ProxyAnchor, ProxyNCA
from common.losses.sigmoid import OHEMSigmoid
from common.losses.total import Total
from common.steps import bind, catalog
from tests.oracles import heads as oracle
from tests.oracles.margin import batch, gradients

COUNTS = [1, 16, 81, 0, 5]
WEIGHTS = [1 / math.sqrt(n or 1) for n in COUNTS]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[1 << 22, 7], ids=["one_tile", "tiles"])
def tile(request, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", request.param)


def agree(loss, expected, *inputs):
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-8)
    got, wanted = torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"scale": 5.0, "margin": 0.3}, {"margin": 0.0}], ids=str)
@pytest.mark.parametrize("classes", [5, 9])
def test_proxy_anchor_equals_the_loop_twin(options, classes, tile):
    head = ProxyAnchor(4, classes, **options)
    x, labels = batch()
    expected = oracle.proxy_anchor(oracle.cosines(x, head.weight), labels, **options)
    agree(head(x, labels), expected, x, head.weight)


def test_proxy_anchor_equals_pytorch_metric_learning(tile):
    x, labels = batch(ignored=False)
    head, other = ProxyAnchor(4, 9), pml.ProxyAnchorLoss(9, 4, margin=0.1, alpha=32)
    other.proxies.data = head.weight.detach().clone()
    loss, expected = head(x, labels), other(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    wanted = gradients(expected, x, other.proxies)
    torch.testing.assert_close(gradients(loss, x, head.weight), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 18.0}, {"class_weights": "1/sqrt(n)", "class_counts": COUNTS}],
    ids=str,
)
def test_proxy_nca_equals_the_loop_twin(options, tile):
    head = ProxyNCA(4, 5, **options)
    x, labels = batch()
    c = oracle.cosines(x, head.weight)
    weights = WEIGHTS if "class_weights" in options else None
    expected = oracle.proxy_nca(c, labels, scale=head.scale, weights=weights)
    agree(head(x, labels), expected, x, head.weight)


def test_pytorch_metric_learnings_proxy_nca_is_a_cosine_softmax():
    """It has the own proxy in the sum below the fraction; the paper has not."""
    x, labels = batch(ignored=False)
    softmax, other = CosineSoftmax(4, 5, scale=2.0), pml.ProxyNCALoss(5, 4)
    other.proxies.data = softmax.weight.detach().clone()
    ours = ProxyNCA(4, 5)
    ours.weight.data = softmax.weight.data
    torch.testing.assert_close(softmax(x, labels), other(x, labels), rtol=1e-9, atol=1e-9)
    assert ours(x, labels) < softmax(x, labels) - 0.05


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 2, "scale": 80.0, "margin": 0.4},
        {"label_smoothing": 0.2, "focal_gamma": 2.0, "scale": 3.0},
        {"class_weights": "1/sqrt(n)", "class_counts": COUNTS, "scale": 10.0},
    ],
    ids=str,
)
def test_class_circle_equals_the_loop_twin(options, tile):
    head = ClassCircle(4, 5, **options)
    x, labels = batch()
    c = oracle.cosines(x, head.weight, head.k)
    logits = oracle.class_circle(c, labels, scale=head.scale, margin=head.margin)
    expected = oracle.cross_entropy(
        logits,
        labels,
        options.get("label_smoothing", 0.0),
        options.get("focal_gamma", 0.0),
        WEIGHTS if "class_weights" in options else None,
    )
    if head.scale < 256:
        agree(head(x, labels), expected, x, head.weight)
    else:  # exp-then-log of the twin underflows, now and then to a digit or two: by log_softmax
        keep = labels >= 0
        agree(head(x, labels), F.cross_entropy(logits[keep], labels[keep]), x, head.weight)


def test_circle_slows_down_near_its_goal():
    """At c = 1 + m the own bracket is 0; at the goal the gradient is a small share of CosFace's."""
    head = ClassCircle(2, 2, scale=10.0)
    near, far = torch.tensor(0.1, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    for angle in (near, far):
        head.weight.data = torch.tensor([[1.0, 0], [-1.0, 0]])
        head(torch.stack([angle.cos(), angle.sin()])[None], torch.tensor([0])).backward()
    assert near.grad < 0.01 * far.grad


@pytest.mark.parametrize("make", [ProxyAnchor, ProxyNCA])
def test_gradcheck(make, tile):
    x, labels = batch(rows=6, dim=3, classes=4)
    head = make(3, 4, scale=4.0)

    def loss(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (x, labels))

    assert torch.autograd.gradcheck(loss, (x, head.weight))


# --- OHEM sigmoid


@pytest.mark.parametrize(
    "options",
    [
        {"hardest": 2},
        {},
        {"hardest": 1, "scale": 3.0},
        {"hardest": 4, "focal_gamma": 2.0},
        {"hardest": 3, "label_smoothing": 0.2},
        {"hardest": 2, "class_weights": "1/sqrt(n)"},
        {"focal_gamma": 0.5, "label_smoothing": 0.1, "class_weights": "1/sqrt(n)", "scale": 2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("unknown", [True, False])
def test_ohem_sigmoid_equals_the_loop_twin(options, unknown):
    counts = [1, 16, 81, 2, 5]
    head = OHEMSigmoid(4, 5, class_counts=counts, **options)
    head.bias.data.normal_()
    x, labels = batch(ignored=unknown)
    expected = oracle.ohem_sigmoid(
        x,
        head.weight,
        head.bias,
        labels,
        scale=head.scale,
        hardest=head.hardest,
        gamma=options.get("focal_gamma", 0.0),
        smoothing=options.get("label_smoothing", 0.0),
        counts=counts if "class_weights" in options else None,
    )
    agree(head(x, labels), expected, x, head.weight, head.bias)


def test_a_smoothed_sigmoid_is_best_at_the_smoothed_target():
    """Targets of .84 and .04 for a label and .2 of smoothing, and of 0 for an unknown."""
    head = OHEMSigmoid(2, 5, 1.0, 5, label_smoothing=0.2)
    head.weight.data.zero_()
    head.bias.data = torch.logit(torch.tensor([0.84, 0.04, 0.04, 0.04, 0.04]))
    head(torch.ones(1, 2), torch.tensor([0])).backward()
    assert head.bias.grad.abs().max() < 1e-12
    head.zero_grad()
    head(torch.ones(1, 2), torch.tensor([-1])).backward()
    assert (head.bias.grad > 0.007).all()


def test_ohem_sigmoid_equals_torch_over_all_classes():
    x, labels = batch()
    head = OHEMSigmoid(4, 5, hardest=5)
    target = torch.zeros(len(x), 5)
    target[labels >= 0, labels[labels >= 0]] = 1
    logits = 16 * F.linear(F.normalize(x), head.weight, head.bias)
    every = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    expected = every.mean() + (every * target).sum() / len(x)
    agree(head(x, labels), expected, x, head.weight, head.bias)


@pytest.mark.parametrize(("hardest", "count"), [(0.01, 1), (0.4, 2), (0.41, 3), (4, 4), (30, 30)])
def test_hardest_below_one_is_a_share_of_the_classes(hardest, count):
    assert OHEMSigmoid(4, 5, hardest=hardest).hardest == count
    with pytest.raises(ValueError, match="share below 1"):
        OHEMSigmoid(4, 5, hardest=1.5)


def test_hardest_falls_over_the_training():
    head = OHEMSigmoid(4, 300, hardest=0.01, ramp={"start": 1.0, "end": 0.4})
    found = []
    for progress in (0.0, 0.2, 0.5, 0.6, 1.0):
        head.schedule(progress)
        found.append(head.hardest)
    assert found == [3, 3, 3, 2, 2]  # of 3, 2.64, 2.1, 1.92, 1.2
    head = OHEMSigmoid(4, 5, hardest=4, ramp={"start": 1.0, "end": 0.0, "over": 0.5})
    x, labels = batch()
    for progress, hardest in ((0.0, 4), (0.3, 2), (0.9, 1)):
        head.schedule(progress)
        expected = oracle.ohem_sigmoid(
            x, head.weight, head.bias, labels, scale=16.0, hardest=hardest, gamma=0.0
        )
        torch.testing.assert_close(head(x, labels), expected)
    with pytest.raises(ValueError, match="progress"):
        head.schedule(3)


def test_an_unknown_is_pushed_from_all_its_nearest_classes():
    head = OHEMSigmoid(2, 3, hardest=2)
    head.weight.data = torch.tensor([[1.0, 0], [0.5, 0], [-1.0, 0]])
    x = torch.tensor([[1.0, 0.1]])
    head(x, torch.tensor([-1])).backward()
    assert (head.bias.grad[:2] > 0).all()
    assert head.bias.grad[2] == 0
    head.zero_grad()
    head(x, torch.tensor([0])).backward()
    assert head.bias.grad[0] < 0 < head.bias.grad[1]


def test_masses_let_processes_share_unknowns_exactly():
    """Unequal parts, the mean weighted by `mass`, give the loss of all rows."""
    x, labels = batch()
    known, weights = dict(class_counts=COUNTS, class_weights="1/sqrt(n)"), [1.0, 1.0, 1.0]
    heads = [OHEMSigmoid(4, 5, seed=1), ProxyNCA(4, 5, seed=1), OHEMSigmoid(4, 5, **known)]
    total = Total(heads, weights)
    parts = [slice(0, 7), slice(7, 24)]
    masses = torch.stack([total.masses(labels[part]) for part in parts])
    assert masses[:, :2].sum(0).tolist() == [24, (labels >= 0).sum().item()]
    shares = (masses / masses.sum(0)).double()
    joint = sum(
        total(x[part], labels[part], share) for part, share in zip(parts, shares, strict=True)
    )
    torch.testing.assert_close(joint, total(x, labels).to(joint.dtype), rtol=1e-6, atol=1e-6)


def test_by_name():
    known = catalog(proxies, sigmoid)
    assert set(known) == {"proxy_anchor", "proxy_nca", "class_circle", "ohem_sigmoid"}
    state = {"embedding_dim": 4, "num_classes": 5, "class_counts": COUNTS}
    for name in known:
        loss = bind({"name": name, "scale": 20}, known)(state)
        assert loss(*batch()) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ProxyAnchor(4, 5, margin=1.0), "margin must lie"),
        (lambda: ProxyAnchor(4, 5, scale=0.0), "scale must be positive"),
        (lambda: ProxyNCA(4, 5, class_weights="1/n"), "needs class_counts"),
        (lambda: ClassCircle(4, 5, margin=-0.1), "margin must lie"),
        (lambda: OHEMSigmoid(4, 5, hardest=0), "hardest > 0"),
        (lambda: OHEMSigmoid(4, 5, class_weights="1/n"), "needs class_counts"),
        (lambda: OHEMSigmoid(4, 5, scale=math.inf), "scale > 0"),
        (lambda: OHEMSigmoid(4, 5)(torch.ones(2, 4), torch.tensor([0, -2])), "-2 to 0"),
        (lambda: OHEMSigmoid(4, 5)(torch.ones(2, 3), torch.tensor([0, -1])), r"\(B, 4\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
