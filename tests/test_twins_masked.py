"""An image's mirrored class left out of its loss: against loops, in every head that can."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from common.losses import cosine
from common.losses.adaptive import AdaCos, AdaFace, CurricularFace
from common.losses.centers import ModifiedSoftmax, SphereFace
from common.losses.classify import CosineSoftmax, LinearSoftmax, leave_out_twins
from common.losses.cosine import twin_of
from common.losses.margin import ArcFace, CosFace, SubCenterArcFace
from common.losses.pair import TripletLoss
from common.losses.partial_fc import PartialFC
from common.losses.proxies import ClassCircle, ProxyAnchor, ProxyNCA
from common.losses.sigmoid import OHEMSigmoid
from tests.oracles import margin as oracle
from tests.oracles.margin import batch, gradients
from tests.test_cosine import BLOCK, WEIGHT, B, D, K, peak_bytes
from tests.test_cosine import C as MANY

C, TWINS = 8, 4  # classes, individuals


@pytest.fixture(params=[1 << 22, 7], ids=["one_tile", "tiles"])
def tile(request, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", request.param)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def masked(head):
    leave_out_twins(head)
    return head


def test_twin_of_goes_both_ways():
    labels = torch.tensor([0, 3, 4, 7, -1])
    assert twin_of(labels, 4).tolist() == [4, 7, 0, 3, -1]


@pytest.mark.parametrize(
    ("make", "k"),
    [(CosFace, 1), (ArcFace, 1), (SubCenterArcFace, 1), (SubCenterArcFace, 3)],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.2}, {"focal_gamma": 2.0}, {"class_weights": "1/sqrt(n)"}],
    ids=str,
)
def test_margin_heads_equal_the_loop_without_the_twin(make, k, options, tile):
    x, labels = batch(rows=30, classes=C)
    counts = [1, 16, 81, 2, 5, 3, 9, 4]
    head = masked(make(4, C, k, 20.0, 0.3, class_counts=counts, seed=2, **options))
    more = {**options, "class_weights": None}
    if "class_weights" in options:
        more["class_weights"] = [n**-0.5 for n in counts]
    expected = oracle.margin_loss(
        "cosface" if make is CosFace else "arcface",
        x,
        head.weight,
        labels.tolist(),
        k=k,
        scale=20.0,
        margins=[0.3] * C,
        twins=TWINS,
        **more,
    )
    loss = head(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    pairs = zip(gradients(loss, x, head.weight), gradients(expected, x, head.weight), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    plain = make(4, C, k, 20.0, 0.3, class_counts=counts, seed=2, **options)
    assert plain(x, labels) > loss + 0.01, "the twin would not be missed"


SOFTMAX = {
    "cosine": CosineSoftmax,
    "adacos": AdaCos,
    "adacos, dynamic": lambda d, c: AdaCos(d, c, dynamic=True),
    "adaface": AdaFace,
    "curricularface": lambda d, c: CurricularFace(d, c, 2, 16.0),
    "class circle": lambda d, c: ClassCircle(d, c, 2, 16.0, label_smoothing=0.1),
    "modified": ModifiedSoftmax,
    "sphereface": lambda d, c: SphereFace(d, c, 2),
    "proxy nca": ProxyNCA,
    "ohem": lambda d, c: OHEMSigmoid(d, c, hardest=3),
    "ohem, focal": lambda d, c: OHEMSigmoid(d, c, hardest=4, focal_gamma=2.0),
    "ohem, all, smooth": lambda d, c: OHEMSigmoid(d, c, hardest=30, label_smoothing=0.1),
}


@pytest.mark.parametrize("make", SOFTMAX.values(), ids=SOFTMAX)
def test_no_head_sees_or_moves_the_twin(make, tile):
    """All rows of one class: its twin's centre may be anywhere, and gets no gradient."""
    x, _ = batch(rows=6, ignored=False)
    labels = torch.full((6,), 1)
    torch.manual_seed(0)
    head = masked(make(4, C)).eval()
    before = head(x, labels)
    dx, dw = gradients(before, x, head.weight)
    twin = dw.view(C, -1)[1 + TWINS]
    assert (twin == 0).all()
    assert (dw.view(C, -1)[[0, 2, 3, 4, 6, 7]] != 0).any()
    with torch.no_grad():
        head.weight.view(C, -1)[1 + TWINS] = x.detach().mean(0).repeat(head.weight.shape[0] // C)
    after = head(x, labels)
    assert torch.equal(before, after)
    assert torch.equal(dx, gradients(after, x, head.weight)[0])
    head.twins = 0
    assert head(x, labels) > before


@pytest.mark.parametrize("make", SOFTMAX.values(), ids=SOFTMAX)
def test_without_the_twin_is_the_head_of_the_other_classes(make):
    """Rows of one class against a head that never had the twin's centre."""
    x, _ = batch(rows=6, ignored=False)
    labels, keep = torch.full((6,), 1), [0, 1, 2, 3, 4, 6, 7]
    torch.manual_seed(0)
    head, other = masked(make(4, C)).eval(), make(4, C - 1).eval()
    if isinstance(head, AdaCos):
        other.scale = head.scale
        if head.dynamic:
            other.dynamic_scale = head.dynamic_scale
    with torch.no_grad():
        other.weight.view(C - 1, -1).copy_(head.weight.view(C, -1)[keep])
    loss, expected = head(x, labels), other(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        gradients(loss, x, head.weight)[1].view(C, -1)[keep],
        gradients(expected, x, other.weight)[1].view(C - 1, -1),
        rtol=1e-8,
        atol=1e-10,
    )


def test_sigmoids_equal_the_loop_and_unknown_rows_keep_all_classes():
    x, labels = batch(rows=20, classes=C)
    head = masked(OHEMSigmoid(4, C, hardest=3, seed=1))
    logits = 16 * (F.normalize(x) @ head.weight.T + head.bias)
    rows = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        there = [c for c in range(C) if label < 0 or c != oracle.twin(label, TWINS)]
        parts = [F.softplus(-row[c] if c == label else row[c]) for c in there]
        own = F.softplus(-row[label]) if label >= 0 else 0.0
        rows.append(own + torch.stack(parts).topk(3).values.mean())
    expected, loss = torch.stack(rows).mean(), head(x, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, x, head.weight), gradients(expected, x, head.weight))


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_sampled_classes_leave_it_out_where_it_is_drawn(rate):
    x, labels = batch(rows=12, classes=3)  # labels 0..2, so few classes are drawn for certain
    head = {"name": "sub_center_arcface", "k": 2, "label_smoothing": 0.2}
    part = masked(PartialFC(4, C, head, rate))
    for _ in range(6):
        loss = part(x, labels)
        drawn = range(C) if part.shard.drawn is None else part.shard.drawn.tolist()
        assert rate == 1 or len(drawn) == 4
        weight = part.head.weight.view(C, 2, 4)
        rows = []
        for row, label in zip(x, labels.tolist(), strict=True):
            if label < 0:
                continue
            there = [c for c in drawn if c != oracle.twin(label, TWINS)]
            logits = torch.stack([30 * oracle.class_cosine(row, weight[c]) for c in there])
            own = there.index(label)
            logits[own] = 30 * oracle.with_margin("arcface", logits[own] / 30, 0.3)
            mean = logits.logsumexp(0) - logits.mean()
            rows.append(0.8 * (logits.logsumexp(0) - logits[own]) + 0.2 * mean)
        expected = torch.stack(rows).mean()
        torch.testing.assert_close(loss, expected)
        dense = gradients(loss, x, part.head.weight)[1].to_dense()
        torch.testing.assert_close(dense, gradients(expected, x, part.head.weight)[1])


def test_no_second_block_is_held(monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(cosine, "TILE", 1 << 14)
    x, labels = batch(rows=B, dim=D, classes=MANY)
    head = masked(SubCenterArcFace(D, MANY, k=K))
    allowed = BLOCK + BLOCK // 4 + WEIGHT + 4 * MANY * K
    assert peak_bytes(lambda: head(x, labels).backward()) < allowed + BLOCK // 3


def test_heads_that_cannot_say_so_and_pair_losses_stay():
    for head in (LinearSoftmax(4, C), ProxyAnchor(4, C)):
        with pytest.raises(ValueError, match="cannot leave the mirrored class out"):
            leave_out_twins(head)
    with pytest.raises(ValueError, match="are not plain and mirrored"):
        leave_out_twins(ArcFace(4, 7))
    leave_out_twins(TripletLoss())
