"""The tiled cosines under every margin head: one block of memory, and never a NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from common.losses import cosine
from common.losses.margin import ArcFace, CosFace, SubCenterArcFace
from tests.oracles.margin import batch, gradients

HEADS = [CosFace, ArcFace, SubCenterArcFace]
COUNTS = [1, 16, 81, 0, 5]
B, C, D, K = 32, 20_000, 8, 3
BLOCK, WEIGHT = 4 * B * C, 4 * C * K * D  # bytes


@pytest.fixture(params=[1 << 22, 7], ids=["one_tile", "tiles"])
def tile(request, monkeypatch):
    """The classes in one tile, and in tiles of one or two."""
    monkeypatch.setattr(cosine, "TILE", request.param)


def peak_bytes(step):
    """Largest sum of live allocations made by `step`, temporaries inside operators included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(np.cumsum([e.nbytes() for e in events]))


def plain_loss(x, weight, labels):
    c = (F.normalize(x) @ F.normalize(weight).T).view(B, C, K).amax(2)
    return F.cross_entropy(30 * (c - 0.3 * F.one_hot(labels, C)), labels)


@pytest.mark.parametrize("k", [1, K])
def test_one_block_is_alive_in_forward_and_backward(k, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", 1 << 14)
    x, labels = batch(rows=B, dim=D, classes=C)
    head = SubCenterArcFace(D, C, k=k)
    gradient = WEIGHT * k // K
    allowed = BLOCK + (BLOCK // 4 if k > 1 else 0) + gradient + 4 * C * k
    limit = allowed + BLOCK // 3  # less than a second block, less than a copy of the weight
    assert peak_bytes(lambda: head(x, labels)) < limit - gradient
    assert peak_bytes(lambda: head(x, labels).backward()) < limit
    if k > 1:  # the measure sees what the usual way costs
        plain = head.weight.detach().clone().requires_grad_()
        labels = labels.clamp_min(0)
        assert peak_bytes(lambda: plain_loss(x, plain, labels).backward()) > limit + 2 * BLOCK


def test_kept_for_backward_is_one_block_and_its_winners():
    x, labels = batch(rows=B, dim=D, classes=500)
    head = SubCenterArcFace(D, 500)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tensor.numel(), tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        head(x, labels)
    del kept[head.weight.untyped_storage().data_ptr()]
    large = sorted((str(d), n) for n, d in kept.values() if n >= 500 * K)
    assert large == [
        ("torch.float32", 500 * K),
        ("torch.float32", B * 500),
        ("torch.uint8", B * 500),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_pages_hold_the_same_gradient(dtype, monkeypatch):
    x, labels = batch()
    head = SubCenterArcFace(4, 5).to(dtype)
    head(x, labels).backward()
    expected, head.weight.grad = head.weight.grad, None
    monkeypatch.setattr(cosine, "LARGE", 0)
    head(x, labels).backward()
    assert torch.equal(head.weight.grad, expected)
    assert head.weight.grad.data_ptr() % 64 == 0


def extremes(head):
    """(embeddings, labels) of hard cases for a head of 4 dimensions and 3 classes, by name."""
    w, labels = head.weight.detach()[:: head.k], torch.arange(3)
    return {
        "on the center": (w * 5, labels),
        "antipode": (-w, labels),
        "on another center": (w[[1, 2, 0]], labels),
        "all equal": (torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)),
        "zero rows": (torch.zeros(3, 4), labels),
        "one sample": (w[:1], labels[:1]),
        "some ignored": (w, torch.tensor([-1, 1, -1])),
    }


@pytest.mark.parametrize("scale", [30.0, 256.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", HEADS)
def test_finite_in_extreme_places(make, dtype, scale, tile):
    head = make(4, 3, scale=scale, focal_gamma=0.5, label_smoothing=0.1, seed=3)
    for name, (x, labels) in extremes(head).items():
        head.zero_grad()
        x = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = head(x, labels)
        loss.backward()
        assert loss.dtype == torch.float32, name
        for value in (loss, x.grad, head.weight.grad):
            assert value.isfinite().all(), name
        assert all(math.isfinite(value) for value in head.statistics().values()), name


def test_many_rows_on_their_centers_stay_finite():
    """Rounding puts some of these cosines above 1, where a bare sqrt(1 - c * c) is NaN."""
    head = ArcFace(64, 500, seed=0)
    c = torch.einsum("cd,cd->c", F.normalize(head.weight), F.normalize(head.weight))
    assert (c > 1).any()
    x = head.weight.detach().clone().requires_grad_()
    loss = head(x, torch.arange(500))
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("make", HEADS)
def test_a_center_of_length_zero_is_left_alone(make):
    head = make(4, 5)
    with torch.no_grad():
        head.weight[head.k] = 0
    x, labels = batch()
    head(x, labels).backward()
    assert x.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()
    assert (head.weight.grad[head.k] == 0).all()
    assert head.centers().isfinite().all()


@pytest.mark.parametrize("make", HEADS)
def test_scale_of_embeddings_does_not_matter(make):
    x, labels = batch()
    head = make(4, 5)
    expected = head(x, labels)
    for factor in (1e-8, 1e18, 1e30):
        far = (x.detach() * factor).requires_grad_()
        loss = head(far, labels)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        loss.backward()
        assert far.grad.isfinite().all()


@pytest.mark.parametrize("make", HEADS)
def test_a_single_class_has_nothing_to_tell_apart(make, tile):
    x, _ = batch(rows=4)
    head = make(4, 1, scale=256.0)
    loss = head(x, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()
    assert (head.weight.grad == 0).all()


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_learn_is_an_attached_zero(make, rows, tile):
    head = make(4, 5, focal_gamma=2.0, class_weights="1/n", class_counts=COUNTS)
    x = torch.full((rows, 4), torch.nan, requires_grad=True)
    loss = head(x, torch.full((rows,), -1))
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()
    assert (head.weight.grad == 0).all()
    assert head.statistics() == {}


@pytest.mark.parametrize("make", HEADS)
def test_ignored_rows_change_nothing(make, tile):
    x, labels = batch()
    head = make(4, 5, label_smoothing=0.1)
    keep = labels >= 0
    expected = head(x[keep], labels[keep])
    with torch.no_grad():
        x[~keep] = torch.inf
    loss = head(x, labels)
    torch.testing.assert_close(loss, expected)
    dx, dw = gradients(loss, x, head.weight)
    torch.testing.assert_close(dw, gradients(expected, x, head.weight)[1])
    assert (dx[~keep] == 0).all()


@pytest.mark.parametrize("make", HEADS)
def test_autocast_changes_nothing(make):
    x, labels = batch()
    rounded = x.detach().bfloat16().requires_grad_()
    exact = rounded.detach().float().requires_grad_()
    head = make(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(rounded, labels)
        dx, dw = gradients(loss, rounded, head.weight)  # backward under autocast too
    expected = head(exact, labels)
    ex, ew = gradients(expected, exact, head.weight)
    assert loss.dtype == dw.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert torch.equal(dw, ew)
    assert torch.equal(dx, ex.bfloat16())
