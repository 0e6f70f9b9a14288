"""Sampled classes against the softmax over the drawn set; what is drawn, kept and left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from common.config import ConfigError
from common.engine.checkpoint import load_tree
from common.engine.optim import AdamW
from common.engine.settings import FitConfig, Stage
from common.losses import cosine
from common.losses.centers import ModifiedSoftmax
from common.losses.margin import ArcFace, CosFace, SubCenterArcFace
from common.losses.partial_fc import HEADS, PartialFC
from common.losses.theory import warnings_for
from common.losses.total import Total, build
from tests.oracles.margin import batch
from tests.oracles.partial_fc import sampled_loss
from tests.test_fit import CLASSES, run, weights

C, D = 40, 4


@pytest.fixture(params=[1 << 22, 7], ids=["one_tile", "tiles"])
def tile(request, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", request.param)


def part(rate=0.5, head=None, **options):
    torch.manual_seed(0)
    return PartialFC(D, C, head or {"name": "arcface", "scale": 12.0}, rate, **options)


def drawn(criterion):
    return criterion.shard.drawn.tolist()


def dense(gradient):
    return gradient.to_dense() if gradient.is_sparse else gradient


# --- loss and gradient


@pytest.mark.parametrize("make", [CosFace, ArcFace, SubCenterArcFace])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equals_the_softmax_over_the_drawn_set(make, smoothing, tile):
    x, labels = batch(classes=C)
    x = x.detach().double().requires_grad_()
    head = make(D, C, scale=12.0, label_smoothing=smoothing, seed=1).double()
    criterion = PartialFC(D, C, head, 0.5)
    loss = criterion(x, labels)
    loss.backward()
    got, got_x = dense(head.weight.grad), x.grad
    head.weight.grad = x.grad = None
    kind = "cosface" if make is CosFace else "arcface"
    expected = sampled_loss(
        kind,
        x,
        head.weight,
        labels,
        drawn(criterion),
        k=head.k,
        scale=12.0,
        margin=0.3,
        label_smoothing=smoothing,
    )
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got, head.weight.grad, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(got_x, x.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_equals_itself_over_fewer_classes(name, tile):
    """The head that knows only the drawn classes is the same loss; state that adapts included."""
    options = {"dynamic": True} if name == "ada_cos" else {}
    criterion = part(0.5, {"name": name, **options})
    head = criterion.head
    for seed in range(3):  # what adapts moves
        x, labels = batch(classes=C, seed=seed)
        loss = criterion(x, labels)
        places = drawn(criterion)
        if seed == 0:
            other = HEADS[name](D, len(places), **options)
            if name == "ada_cos":  # its first scale is by the number of classes
                other.dynamic_scale.fill_(math.sqrt(2) * math.log(C - 1))
        k = head.k
        rows = [c * k + j for c in places for j in range(k)]
        other.weight.data = head.weight.detach()[rows]
        among = torch.tensor([-1 if v < 0 else places.index(v) for v in labels.tolist()])
        expected = other(x, among)
        torch.testing.assert_close(loss, expected)
        (got_x, got), (want_x, want) = (
            torch.autograd.grad(value, (x, module.weight))
            for value, module in ((loss, head), (expected, other))
        )
        torch.testing.assert_close(got_x, want_x)
        torch.testing.assert_close(dense(got)[rows], want)
        assert dense(got).count_nonzero() == want.count_nonzero()
    found = criterion.statistics()
    assert found.pop("classes") == len(places)
    found.pop("dominant_share", None)  # counted over different batches' classes
    assert found == pytest.approx({k: other.statistics()[k] for k in found}, rel=1e-4)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_eval_and_a_rate_of_one_are_the_plain_head(rate):
    x, labels = batch(classes=C)
    criterion = part(rate)
    if rate < 1:
        criterion.eval()
    plain = ArcFace(D, C, scale=12.0)
    plain.weight.data = criterion.head.weight.detach().clone()
    loss, expected = criterion(x, labels), plain(x, labels)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    assert not criterion.head.weight.grad.is_sparse
    assert torch.equal(criterion.head.weight.grad, plain.weight.grad)
    assert torch.equal(criterion.centers(), plain.centers())
    assert criterion.mass(labels) == plain.mass(labels)


def test_a_loss_above_70_is_not_cut():
    """The known bug clamps p at 1e-30, so that no loss is above 69.08."""
    criterion = part(0.5, {"name": "cosface", "scale": 64.0, "margin": 0.35})
    x = -criterion.head.weight.detach()[:1]
    criterion.head.weight.data[1:] = x  # all others lie where the row is
    loss = criterion(x, torch.tensor([0]))
    assert loss.item() == pytest.approx(64 * 2.35 + math.log(criterion.shard.count - 1), rel=1e-5)


def test_ignored_labels_stay_as_they_are_and_pull_or_push_nothing():
    """The known bugs: -1 is pushed from all classes, and the caller's labels are changed."""
    x, labels = batch(classes=C)
    before = labels.clone()
    criterion = part()
    loss = criterion(x, labels)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.equal(labels, before)
    assert (gradient[labels < 0] == 0).all()
    again = part()
    keep = labels >= 0
    torch.testing.assert_close(again(x[keep], labels[keep]), loss)
    for rows in (0, 3):
        x = torch.full((rows, D), torch.nan, requires_grad=True)
        loss = criterion(x, torch.full((rows,), -1))
        loss.backward()
        assert loss == 0
        assert (x.grad == 0).all()


# --- the set


def test_the_set_holds_the_batch_and_has_the_wanted_size():
    criterion = part(0.25)
    sets = []
    for rows in (6, 1, 24, 3):  # batch sizes may change
        x, labels = batch(rows=rows, classes=C, seed=rows)
        criterion(x, labels)
        found = drawn(criterion)
        present = set(labels[labels >= 0].tolist())
        assert present <= set(found)
        assert len(set(found)) == len(found) == max(len(present), 10)
        assert found == sorted(found)
        sets.append(frozenset(found) - present)
    assert len(set(sets)) > 2
    assert max(len(s) for s in sets) == 9


def test_every_class_is_drawn_as_often():
    criterion = part(0.25)
    x, labels = torch.randn(1, D), torch.tensor([0])
    times = torch.zeros(C)
    for _ in range(800):
        criterion(x, labels)
        times[drawn(criterion)] += 1
    assert times[0] == 800
    assert ((times[1:] / 800 - 9 / 39).abs() < 0.08).all()  # 5 sigma


def test_seed_and_draws_fix_the_set_and_are_saved():
    x, labels = batch(classes=C)
    one, two, other = part(), part(), part(seed=1)
    seen = []
    for _ in range(3):
        for criterion in (one, two, other):
            criterion(x, labels)
        assert drawn(one) == drawn(two)
        assert drawn(one) != drawn(other)
        seen.append(drawn(one))
    assert seen[0] != seen[1]
    again = part()
    again.load_state_dict(one.state_dict())
    for criterion in (one, again):
        criterion(x, labels)
    assert drawn(one) == drawn(again)
    one.eval()(x, labels)
    assert one.draws == 4  # validation draws nothing


def test_only_drawn_centers_have_a_gradient():
    criterion = part(0.25, {"name": "sub_center_arcface", "k": 3})
    x, labels = batch(rows=4, classes=C)
    for _ in range(2):  # a second batch before the step adds to it
        before = criterion.head.weight.grad
        criterion(x, labels).backward()
        gradient = criterion.head.weight.grad
        assert gradient.is_sparse
        rows = set(gradient.coalesce().indices()[0].tolist())
        now = {c * 3 + j for c in drawn(criterion) for j in range(3)}
        assert rows == now if before is None else rows > now


# --- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, r"rate is a share of the classes in \(0, 1\], got 0.0"),
        ({"rate": 1.5}, "rate is a share"),
        ({"head": ModifiedSoftmax(D, C)}, "ModifiedSoftmax has no classes to sample; known"),
        ({"head": {"name": "proxy_anchor"}}, "no step 'proxy_anchor'"),
        ({"head": {"name": "arcface", "margn": 1}}, "arcface has no argument 'margn'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        PartialFC(D, C, **options)


def test_by_name_with_class_counts_and_advice():
    state = {"embedding_dim": D, "num_classes": C, "class_counts": [3] * C}
    head = {"name": "sub_center_arcface", "k": 2, "margin": {"formula": "power"}, "scale": 1.0}
    head["ramp"] = {"start": 0.2, "end": 0.5}
    total = build([{"name": "partial_fc", "rate": 0.2, "head": head, "weight": 0.5}], state)
    assert isinstance(total, Total)
    criterion = total.terms[0]
    assert criterion.head.margins.shape == (C,)
    assert total.centers().shape == (C, 2, D)
    total.schedule(1.0)
    assert criterion.head.margin_factor == 0.5
    x, labels = batch(rows=3, classes=C)
    assert total(x, labels) > 0
    assert total.statistics()["head/classes"] == 8
    assert any("scale 1 is below" in text for text in warnings_for(criterion))


# --- training


def shared(rate=0.5):
    torch.manual_seed(1)
    return Total([PartialFC(5, CLASSES, {"name": "sub_center_arcface", "k": 2}, rate)], [1.0])


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_a_killed_training_ends_with_the_same_bits(tmp_path, optimizer):
    def config():
        return FitConfig(
            stages=[Stage(epochs=2, size=8)],
            batch_size=2,
            accumulate=2,
            optimizer=optimizer,
            ema=0.9,
            precision="fp32",
            save_minutes=0.0,
        )

    class Stop(Exception):
        pass

    run(tmp_path / "whole", config(), head=shared())
    head = shared()
    schedule, calls = head.schedule, []

    def killer(progress):
        calls.append(progress)
        if len(calls) == 31:
            raise Stop
        schedule(progress)

    head.schedule = killer
    with pytest.raises(Stop):
        run(tmp_path / "cut", config(), head=head)
    resumed = []
    run(tmp_path / "cut", config(), head=shared(), resumed=resumed.append)
    assert len(resumed) == 1
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    start = shared().state_dict()
    assert not torch.equal(whole["head.terms.0.head.weight"], start["terms.0.head.weight"])
    moments = load_tree(tmp_path / "cut" / "state" / "last.safetensors")["optimizer"]["state"]
    by_row = [s["step"] for s in moments.values() if "step" in s and s["step"].ndim]
    if optimizer != "sgd":
        assert len(by_row) == 1
        assert len(by_row[0].unique()) > 1  # rows have had different numbers of steps


def test_it_learns_from_part_of_the_classes():
    torch.manual_seed(0)
    criterion = part(0.3, {"name": "cosface", "margin": 0.2, "scale": 16.0})
    x = torch.nn.Parameter(torch.randn(C, D))
    labels = torch.arange(C)
    optimizer = AdamW([x, criterion.head.weight], lr=0.03)
    for step in range(250):
        rows = torch.arange(step % 5, C, 5)
        optimizer.zero_grad()
        criterion(x[rows], labels[rows]).backward()
        optimizer.step()
    cosines = F.normalize(x, dim=1) @ criterion.centers()[:, 0].T
    assert (cosines.argmax(1) == labels).float().mean() > 0.9
