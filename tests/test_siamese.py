"""The learned comparison of pairs: its head, its loss, its ranking step, and what carries it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from common.losses import pair_head as pair_head_module
from common.losses.pair_head import PairHead
from common.losses.siamese import SiameseLoss
from common.losses.total import build

D = 6


def trained(dim=D, seed=0, hidden=5):
    """A head that is no cosine any more."""
    torch.manual_seed(seed)
    head = PairHead(dim, hidden)
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return head


def slow_logit(head, a, b):
    """Loops over dimensions and hidden units, in Python's floats."""
    inner, bias = head.inner.tolist(), head.inner_bias.tolist()
    outer, share = head.outer.tolist(), head.share.tolist()

    def unit(row):
        length = math.sqrt(sum(x * x for x in row))
        return [x / length * math.sqrt(len(row)) if length else 0.0 for x in row]

    total = 0.0
    for x, y, weight in zip(unit(a.tolist()), unit(b.tolist()), share, strict=True):
        views = [x * y, x + y, abs(x - y), (x - y) ** 2]
        for row, shift, out in zip(inner, bias, outer, strict=True):
            total += (
                weight * out * max(0.0, sum(w * v for w, v in zip(row, views, strict=True)) + shift)
            )
    return head.scale * total / len(share) + head.bias.item()


def slow_loss(loss, x, labels):
    """Row by row: half the mean of its positives, half the mean of its worst negatives."""
    head, rows = loss.head, [i for i, label in enumerate(labels.tolist()) if label >= 0]
    others = range(len(labels)) if loss.unknown else rows
    found = []
    for i in rows:
        near = [j for j in others if j != i and labels[j] == labels[i]]
        far = [slow_logit(head, x[i], x[j]) for j in others if labels[j] != labels[i]]
        worst = sorted(far, reverse=True)[: loss.negatives]
        right = [math.log1p(math.exp(-slow_logit(head, x[i], x[j]))) for j in near]
        wrong = [math.log1p(math.exp(logit)) for logit in worst]
        parts = [sum(part) / len(part) / 2 for part in (right, wrong) if part]
        found += [sum(parts)] if parts else []
    return sum(found) / len(found) if found else 0.0


def batch(seed=0, count=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, D, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.tensor([0, 0, 1, 2, 2, 2, -1, 3, -1][:count])


def test_it_starts_as_the_cosine():
    x, _ = batch()
    head = PairHead(D, scale=8.0).double()
    cosine = (normalize(x[:4]) * normalize(x[4:8])).sum(1)
    torch.testing.assert_close(head(x[:4], x[4:8]), 8 * cosine - 4, rtol=1e-9, atol=1e-9)


def test_logits_equal_loops_and_are_the_same_either_way():
    x, _ = batch()
    head = trained().double()
    found = head(x[:4], x[4:8])
    wanted = [slow_logit(head, a, b) for a, b in zip(x[:4], x[4:8], strict=True)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)
    half = x.half()
    assert torch.equal(head(half[:4], half[4:8]), head(half[4:8], half[:4]))
    assert head(half[:4], half[4:8]).dtype == torch.float32
    first, second = torch.tensor([0, 3, 3]), torch.tensor([1, 0, 2])
    asked = head.ask(x, x[4:], first, second)
    torch.testing.assert_close(asked, head(x[first], x[4:][second]).detach())
    assert head.ask(x, x, first[:0], first[:0]).shape == (0,)


def test_parts_change_nothing(monkeypatch):
    x, _ = batch()
    head = trained().double()

    def outcome():
        rows = x.clone().requires_grad_()
        value = head(rows[:8], rows[1:]).square().sum()
        return [value.detach(), *torch.autograd.grad(value, [rows, *head.parameters()])]

    whole = outcome()
    with torch.no_grad():
        asked = head(x[:8], x[1:])
    monkeypatch.setattr(pair_head_module, "KEPT", 1)
    monkeypatch.setattr(pair_head_module, "TILE", {"cpu": 2 * D * (5 + 4)})
    for a, b in zip(outcome(), whole, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(head(x[:8], x[1:]), asked)


def test_gradients_and_degenerate_pairs():
    head = trained().double()
    x, _ = batch()
    rows = x[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: head(a, x[3:6]), (rows,))
    zero = torch.zeros(2, D, requires_grad=True)
    for a, b in ((zero, zero), (rows.float()[:2], rows.float()[:2]), (zero, 1e30 * zero.detach())):
        value = head(a, b).sum()
        value.backward()
        assert value.isfinite()
    assert zero.grad.isfinite().all()
    assert rows.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"two \(P, 6\), got \(2, 5\)"):
        head(x[:2, :5], x[:2, :5])


@pytest.mark.parametrize("options", [{}, {"negatives": 2}, {"negatives": 99}, {"unknown": True}])
@pytest.mark.parametrize("count", [9, 2, 3, 8])
def test_the_loss_equals_loops(options, count):
    x, labels = batch(count=count)
    loss = SiameseLoss(D, 5, **options).double()
    loss.head = trained().double()
    rows = x.clone().requires_grad_()
    value = loss(rows, labels)
    assert value.item() == pytest.approx(slow_loss(loss, x, labels), rel=1e-9)
    value.backward()
    ignored = (labels < 0) & (not loss.unknown)
    assert not rows.grad[ignored].any()
    for parameter in loss.parameters():
        assert parameter.grad.isfinite().all()
    assert torch.autograd.gradcheck(lambda a: loss(a, labels), (rows,))


def test_unknown_rows_repel_and_are_counted():
    x, labels = torch.randn(3, D, dtype=torch.float64), torch.tensor([1, -1, -1])
    ignoring, repelled = SiameseLoss(D).double(), SiameseLoss(D, unknown=True).double()
    assert ignoring(x, labels) == 0
    assert repelled(x, labels) > 0
    assert ignoring.mass(labels) == 0
    assert repelled.mass(labels) == 1
    assert repelled.mass(labels[1:]) == 0
    assert ignoring.mass(torch.tensor([1, 1, 2])) == 3
    assert ignoring.mass(torch.tensor([4, 4])) == 2


def test_it_learns_what_no_cosine_can():
    """Classes differ in few dimensions, noise fills the others; the head finds out which."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(40).repeat_interleave(4)
    centers = torch.randn(80, 4, generator=generator)

    def draw(first):
        noise = 1.5 * torch.randn(160, 12, generator=generator)
        return torch.cat([centers[first + labels], noise], 1)

    def rightly(head, x):
        i, j = torch.triu_indices(160, 160, 1)
        logits, same = head.ask(x, x, i, j), labels[i] == labels[j]
        better = (logits[same][:, None] > logits[~same]).float().mean()
        return better.item()

    criterion = build([{"name": "siamese", "hidden": 8}], {"embedding_dim": 16})
    head = criterion.pair_head()
    seen, unseen = draw(0), draw(40)
    before = rightly(head, unseen)
    optimizer = torch.optim.AdamW(criterion.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        criterion(seen, labels).backward()
        optimizer.step()
    assert rightly(head, unseen) > before + 0.1
    assert build([{"name": "triplet"}], {}).pair_head() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 1}, "hidden >= 2"),
        ({"scale": 0.0}, "scale > 0"),
        ({"negatives": 0}, "at least 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SiameseLoss(D, **options)
