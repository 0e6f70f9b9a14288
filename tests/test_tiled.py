"""Sums over class tiles, their memory; adaptive, center and proxy losses: never a NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from common.losses import cosine
from common.losses.adaptive import AdaCos, AdaFace, CurricularFace
from common.losses.centers import CenterLoss, ModifiedSoftmax, SphereFace
from common.losses.cosine import class_cosines, unit_rows
from common.losses.proxies import ClassCircle, ProxyAnchor, ProxyNCA
from common.losses.sigmoid import OHEMSigmoid
from common.losses.tiled import other_classes, over_classes, own_cosines
from tests.oracles.margin import batch

LOSSES = {
    "adacos": AdaCos,
    "adacos, dynamic": lambda d, c: AdaCos(d, c, dynamic=True, label_smoothing=0.1),
    "curricularface": CurricularFace,
    "curricularface, k 3": lambda d, c: CurricularFace(
        d, c, 3, 256.0, focal_gamma=0.5, label_smoothing=0.1
    ),
    "adaface": AdaFace,
    "adaface, 256": lambda d, c: AdaFace(d, c, 2, 256.0, 1.5, focal_gamma=0.5),
    "center": CenterLoss,
    "center, unit": lambda d, c: CenterLoss(d, c, normalize=True),
    "modified softmax": lambda d, c: ModifiedSoftmax(d, c, focal_gamma=0.5, label_smoothing=0.1),
    "sphereface": SphereFace,
    "sphereface, no lambda": lambda d, c: SphereFace(
        d, c, 2, annealing={"start": 0, "end": 0}, focal_gamma=0.5
    ),
    "proxy anchor": ProxyAnchor,
    "proxy anchor, 256": lambda d, c: ProxyAnchor(d, c, 256.0),
    "proxy nca": ProxyNCA,
    "proxy nca, 256": lambda d, c: ProxyNCA(d, c, 256.0),
    "class circle": ClassCircle,
    "class circle, k 2": lambda d, c: ClassCircle(d, c, 2, focal_gamma=0.5, label_smoothing=0.1),
    "ohem sigmoid": OHEMSigmoid,
    "ohem sigmoid, 256": lambda d, c: OHEMSigmoid(d, c, 256.0, 2, focal_gamma=0.5),
}
each_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)


@pytest.fixture(params=[1 << 22, 7], ids=["one_tile", "tiles"])
def tile(request, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", request.param)


# --- sums over tiles


@pytest.mark.parametrize("k", [1, 3])
def test_equals_class_cosines(k, tile):
    """With logits that are scaled cosines it is the same function, and has the same gradient."""
    x, labels = batch()
    unit = unit_rows(x.detach().double()).requires_grad_()
    weight = torch.randn(5 * k, 4, dtype=torch.float64, requires_grad=True)

    def part(cosine, mine):
        return other_classes(9.0 * cosine, mine)

    found = over_classes(unit, weight, labels, part, k=k)
    expected = class_cosines(unit, weight, labels, k=k, scale=9.0)
    rest = 9.0 * (expected.total - expected.own)
    pairs = [
        (found.own, expected.own),
        (found.logs, expected.others),
        (found.sums, rest),
        (found.hardest, expected.hardest),
    ]
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted)
    assert torch.equal(found.winner, expected.winner)
    factor = torch.randn(3, len(x), dtype=torch.float64)
    got, wanted = (
        torch.autograd.grad(sum((f * v).sum() for f, v in zip(factor, values, strict=True)), inputs)
        for inputs in [(unit, weight)]
        for values in ([p[0] for p in pairs[:3]], [p[1] for p in pairs[:3]])
    )
    torch.testing.assert_close(got, wanted)
    near = own_cosines(unit, weight, labels, k=k)
    torch.testing.assert_close(near[labels >= 0], expected.own[labels >= 0].detach())


B, C, D = 32, 20_000, 8
BLOCK = 4 * B * C  # bytes


def peak_bytes(step):
    """Largest sum of live allocations made by `step`, temporaries inside operators included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(np.cumsum([e.nbytes() for e in events]))


@pytest.mark.parametrize(
    "make",
    [
        CurricularFace,
        ClassCircle,
        ProxyAnchor,
        AdaFace,
        OHEMSigmoid,
        SphereFace,
        lambda d, c: AdaCos(d, c, dynamic=True),
    ],
)
def test_one_block_is_alive_in_forward_and_backward(make, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", 1 << 14)
    x, labels = batch(rows=B, dim=D, classes=C)
    head = make(D, C)
    weight = 4 * C * D
    limit = BLOCK + BLOCK // 2  # less than a second block
    assert peak_bytes(lambda: head(x, labels)) < limit
    assert peak_bytes(lambda: head(x, labels).backward()) < limit + weight


# --- never NaN


def hard_cases():
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    every = torch.arange(3)
    return {
        "on the center": (None, every),
        "antipode": (None, every),
        "on another center": (None, every),
        "all equal": (torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)),
        "zero rows": (torch.zeros(3, 4), every),
        "tiny rows": (rows * 1e-7, every),
        "long rows": (rows * 1e4, every),
        "one sample": (rows[:1], every[:1]),
        "some ignored": (rows, torch.tensor([-1, 1, -1])),
        "all ignored": (rows, torch.full((3,), -1)),
        "empty": (rows[:0], every[:0]),
    }


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_never_nan(make, dtype, tile):
    for classes in (1, 3):
        for case, (x, labels) in hard_cases().items():
            if case == "tiny rows" and dtype == torch.float16:
                continue  # the true gradient, 1 / length, lies beyond float16
            torch.manual_seed(3)
            criterion = make(4, classes)
            labels = labels.clamp_max(classes - 1)
            if x is None:
                name = "means" if isinstance(criterion, CenterLoss) else "weight"
                centers = getattr(criterion, name).detach()[:: getattr(criterion, "k", 1)]
                x = -centers if case == "antipode" else centers
                x = x.roll(1, 0) if case == "on another center" else x
                labels = labels[: len(x)]
            stays_finite(criterion, x.clone().to(dtype), labels, f"{case}, {classes} classes")


def stays_finite(criterion, x, labels, case):
    x.requires_grad_()
    for training in (True, True, False):
        criterion.train(training)
        criterion.zero_grad()
        x.grad = None
        with torch.autocast("cpu", dtype=x.dtype, enabled=x.dtype != torch.float32):
            loss = criterion(x, labels)
        loss.backward()
        assert loss.dtype == torch.float32, case
        assert loss.shape == (), case
        state = criterion.state_dict().values()
        for value in (loss, x.grad, *(p.grad for p in criterion.parameters()), *state):
            assert value.isfinite().all(), case
        if hasattr(criterion, "statistics"):
            assert all(math.isfinite(value) for value in criterion.statistics().values()), case


@each_loss
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_learn_is_an_attached_zero(make, rows, tile):
    criterion = make(4, 5)
    x = torch.full((rows, 4), torch.nan, requires_grad=True)
    if isinstance(criterion, OHEMSigmoid) and rows:
        return  # there -1 is an unknown, from which it learns
    loss = criterion(x, torch.full((rows,), -1))
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()
    assert all((p.grad == 0).all() for p in criterion.parameters())


@each_loss
def test_ignored_rows_change_nothing(make, tile):
    torch.manual_seed(0)
    one = make(4, 5)
    if isinstance(one, OHEMSigmoid):
        return
    two = make(4, 5)
    two.load_state_dict(one.state_dict())
    x, labels = batch()
    keep = labels >= 0
    expected = one(x[keep], labels[keep])
    (wanted,) = torch.autograd.grad(expected, x)
    spoilt = torch.where(keep[:, None], x.detach(), torch.inf).requires_grad_()
    loss = two(spoilt, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, spoilt)[0], wanted)
    torch.testing.assert_close(two.state_dict(), one.state_dict())


@each_loss
def test_autocast_changes_nothing(make):
    torch.manual_seed(0)
    criterion = make(4, 5).eval()
    x, labels = batch()
    rounded = x.detach().bfloat16().requires_grad_()
    exact = rounded.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(rounded, labels)
        (got,) = torch.autograd.grad(loss, rounded)  # backward under autocast too
    expected = criterion(exact, labels)
    assert torch.equal(loss, expected)
    assert torch.equal(got, torch.autograd.grad(expected, exact)[0].bfloat16())


@each_loss
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scale_of_embeddings_does_not_matter_where_rows_are_unit(make, factor):
    criterion = make(4, 5).eval()
    if isinstance(criterion, AdaFace | ModifiedSoftmax) or not getattr(
        criterion, "normalize", True
    ):
        pytest.skip("lengths count")
    x, labels = batch()
    expected = criterion(x, labels)
    torch.testing.assert_close(criterion(factor * x, labels), expected, rtol=1e-4, atol=1e-5)


def test_every_tensor_that_learns_is_a_parameter():
    for make in LOSSES.values():
        criterion = make(4, 5)
        criterion(*batch()).backward()
        names = {name for name, _ in criterion.named_parameters()}
        assert names <= {"weight", "bias"}
        assert all(p.grad is not None for p in criterion.parameters())
