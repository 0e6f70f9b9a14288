"""Cross entropy and plain heads against torch, pytorch-metric-learning and sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml
from torch.nn import functional as F

from common.config import ConfigError
from common.losses import total
from common.losses.classify import CosineSoftmax, LinearSoftmax
from common.losses.cross_entropy import cross_entropy, images_per_class, weights_by_count
from common.losses.margin import ArcFace

COUNTS = [1, 16, 81, 0, 5]


def batch(dtype=torch.float64, rows=20, dim=6):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator, dtype=dtype)
    labels = torch.randint(0, 5, (rows,), generator=generator)
    labels[[2, 9]] = -1
    return x.requires_grad_(), labels


def close(loss, expected, *inputs, **tolerance):
    torch.testing.assert_close(loss, expected, **tolerance)
    got, wanted = torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(got, wanted, **tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(smoothing):
    logits, labels = batch(dim=5)
    ours = cross_entropy(logits, labels, label_smoothing=smoothing)
    theirs = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing)
    close(ours, theirs, logits, rtol=1e-10, atol=1e-12)


def test_class_weights_equal_torch():
    logits, labels = batch(dim=5)
    weights = torch.rand(5, dtype=torch.float64)
    ours = cross_entropy(logits, labels, class_weights=weights)
    close(ours, F.cross_entropy(logits, labels, weights, ignore_index=-1), logits)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_and_row_weights_by_loop(gamma):
    logits, labels = batch(dim=5)
    weights = torch.rand(5, dtype=torch.float64)
    ours = cross_entropy(
        logits, labels, focal_gamma=gamma, label_smoothing=0.2, class_weights=weights
    )
    total = norm = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits, labels.tolist(), strict=True):
        if label < 0:
            continue
        p = row.softmax(0)
        target = torch.full((5,), 0.2 / 5, dtype=torch.float64)
        target[label] += 0.8
        total = total - weights[label] * (1 - p[label]) ** gamma * (target * p.log()).sum()
        norm = norm + weights[label]
    close(ours, total / norm, logits, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_huge_logits_stay_finite(dtype, gamma):
    logits = torch.tensor([[6e4, -6e4], [-6e4, 6e4], [0, 0]], dtype=dtype, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 0, 1]), focal_gamma=gamma)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_a_certain_row_costs_nothing_exactly():
    """Through probabilities this would be -log(1 + tiny) or log(0)."""
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    assert cross_entropy(logits, torch.tensor([0])) == 0
    assert cross_entropy(logits, torch.tensor([1])) == 200


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_ignored_logits_change_nothing(value):
    logits, labels = batch(dim=5)
    expected = cross_entropy(logits, labels, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(expected, logits)
    spoilt = logits.detach().clone()
    spoilt[labels < 0] = value
    loss = cross_entropy(spoilt.requires_grad_(), labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, spoilt)[0], gradient)


def test_linear_head_equals_torch():
    x, labels = batch()
    head = LinearSoftmax(6, 5, COUNTS, class_weights="1/n").double()
    with torch.no_grad():
        head.bias.normal_()
    weights = 1 / torch.tensor([1, 16, 81, 1, 5]).double()
    expected = F.cross_entropy(
        F.linear(x, head.weight, head.bias), labels, weights, ignore_index=-1
    )
    close(head(x, labels), expected, x, head.weight, head.bias, rtol=1e-6, atol=1e-7)
    assert {name for name, _ in head.named_parameters()} == {"weight", "bias"}


def test_cosine_head_equals_pytorch_metric_learning():
    x, labels = batch()
    x, labels = x[labels >= 0].detach().requires_grad_(), labels[labels >= 0]
    head = CosineSoftmax(6, 5, scale=20.0).double()
    other = pml.NormalizedSoftmaxLoss(num_classes=5, embedding_size=6, temperature=1 / 20)
    other.W.data = head.weight.detach().T.clone()
    loss, expected = head(x, labels), other(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    got = torch.autograd.grad(loss, (x, head.weight))
    wanted = torch.autograd.grad(expected, (x, other.W))
    torch.testing.assert_close(got, (wanted[0], wanted[1].T), rtol=1e-8, atol=1e-9)


def test_cosine_head_is_a_margin_of_zero():
    x, labels = batch(torch.float32)
    plain = CosineSoftmax(6, 5, k=2, seed=1, label_smoothing=0.1)
    margin = ArcFace(6, 5, k=2, margin=0.0, seed=1, label_smoothing=0.1)
    assert torch.equal(plain.weight, margin.weight)
    torch.testing.assert_close(plain(x, labels), margin(x, labels))


def test_terms_of_a_loss_list_add_up_with_their_weights():
    x, labels = batch(torch.float32)
    terms = [
        {"name": "cosine_softmax", "scale": 20.0, "seed": 1},
        {"name": "arcface", "weight": 0.3, "ramp": {"start": 0.5}, "seed": 2},
    ]
    loss = total.build(terms, {"embedding_dim": 6, "num_classes": 5})
    loss.schedule(0.5)
    alone = [CosineSoftmax(6, 5, scale=20.0, seed=1), ArcFace(6, 5, margin=0.225, seed=2)]
    expected = alone[0](x, labels) + 0.3 * alone[1](x, labels)
    torch.testing.assert_close(loss(x, labels), expected)
    assert torch.equal(loss.centers(), alone[0].centers())
    found = loss.statistics()
    assert found.keys() == {
        f"head/{name}{of}" for name in ("own_angle", "other_angle") for of in ("", "_1")
    }
    for of, head in zip(("", "_1"), alone, strict=True):
        assert found[f"head/own_angle{of}"] == head.statistics()["own_angle"]


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf, True, "1"])
def test_weights_of_a_loss_list_are_positive_numbers(weight):
    with pytest.raises(ConfigError, match=r"loss\[0\]: weight must be a positive number"):
        total.build([{"name": "arcface", "weight": weight}], {})
    with pytest.raises(ConfigError, match="is empty"):
        total.build([], {})


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("1/n", [1, 1 / 16, 1 / 81, 1, 1 / 5]),
        ("1/sqrt(n)", [1, 1 / 4, 1 / 9, 1, 5**-0.5]),
        ("1/log1p(n)", [1 / math.log(n + 1) for n in (1, 16, 81, 1, 5)]),
        ("1/log(n)", [1 / math.log(n) for n in (2, 16, 81, 2, 5)]),
    ],
)
def test_class_weight_formulas(formula, expected):
    weights = weights_by_count(formula, images_per_class(COUNTS, 5))
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    head = CosineSoftmax(6, 5, class_counts=torch.tensor(COUNTS), class_weights=formula)
    np.testing.assert_allclose(head.class_weights, expected, rtol=1e-6)
    assert "class_weights" not in head.state_dict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cross_entropy(torch.ones(2, 3), torch.tensor([0, 3])), r"\[0, 3\).*0 to 3"),
        (lambda: cross_entropy(torch.ones(2, 3), torch.tensor([0, -2])), "-2 to 0"),
        (lambda: cross_entropy(torch.ones(2, 3), torch.tensor([0, 1], dtype=torch.int32)), "int64"),
        (lambda: cross_entropy(torch.ones(2, 3), torch.tensor([0])), r"\(2,\)"),
        (lambda: cross_entropy(torch.ones(2, 0), torch.tensor([-1, -1])), r"\(B, C\)"),
        (lambda: LinearSoftmax(0, 5), "embedding_dim=0"),
        (lambda: LinearSoftmax(6, 5)(torch.ones(2, 7), torch.tensor([0, 1])), r"\(B, 6\)"),
        (lambda: LinearSoftmax(6, 5, class_weights="1/n"), "needs class_counts"),
        (lambda: LinearSoftmax(6, 5, COUNTS, class_weights="n"), "1/sqrt"),
        (lambda: images_per_class([1, math.nan], 2), "finite"),
        (lambda: images_per_class([1, 2, 3], 2), "bincount"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
