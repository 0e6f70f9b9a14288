"""The learned comparison of pairs: its head, its loss, its ranking step, and what carries it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.losses import pair_head as pair_head_module
from common.losses.pair_head import PairHead
from common.losses.siamese import SiameseLoss
from common.losses.total import build
from common.pipeline import vectors
from common.pipeline.vectors import Vectors
from common.rerank import candidates
from common.rerank.known import STEPS
from common.rerank.pair_scores import PairScores, side_by_side
from common.retrieval.search import search
from common.steps import bind
from common.types import Embeddings

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


# --- the ranking step, and what carries the head to it


def scene(count=(5, 20), dim=D, seed=3):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        Embeddings(
            np.array([f"{name}{i:02d}" for i in range(n)]),
            normalize(torch.randn(n, dim, generator=generator)),
        )
        for name, n in zip("qg", count, strict=True)
    ]
    return (*parts, search(*parts, 8))


def ask(neighbors, queries, gallery, scores, **options):
    step = bind({"name": "siamese", **options}, STEPS)
    return step(
        {"neighbors": neighbors, "queries": queries, "gallery": gallery, "pair_head": scores}
    )


@pytest.mark.parametrize("budget", [1 << 25, 1])
def test_the_step_mixes_probability_and_score(monkeypatch, budget):
    monkeypatch.setattr(candidates, "BUDGET", budget)
    queries, gallery, neighbors = scene()
    neighbors.index[2, 6:], neighbors.score[2, 6:] = -1, -torch.inf
    queries.vectors[4] = 0  # could not be read
    head = trained()
    found = ask(neighbors, queries, gallery, PairScores([head], [1.0]), top=5, weight=0.7)
    for q in range(5):
        wanted = []
        for g, before in zip(
            neighbors.index[q, :5].tolist(), neighbors.score[q, :5].tolist(), strict=True
        ):
            logit = slow_logit(head, queries.vectors[q], gallery.vectors[g])
            said = 0.0 if q == 4 else 1 / (1 + math.exp(-logit))
            wanted.append((0.3 * before + 0.7 * said, g))
        wanted.sort(key=lambda pair: (-pair[0], pair[1]))
        assert found.score[q, :5].tolist() == pytest.approx([s for s, _ in wanted], abs=1e-5)
        if q != 4:
            assert found.index[q, :5].tolist() == [g for _, g in wanted]
        assert found.index[q, 5:].tolist() == neighbors.index[q, 5:].tolist()
        assert (found.score[q][found.index[q] >= 0].diff() <= 0).all()
    alone = ask(neighbors, queries, gallery, PairScores([head], [1.0]), top=99, weight=1.0)
    assert ((alone.score >= 0) & (alone.score <= 1))[alone.index >= 0].all()


def test_the_step_says_what_it_cannot_do():
    queries, gallery, neighbors = scene()
    for scores, options, message in (
        (None, {}, "learned no comparison of pairs"),
        (PairScores([trained(4)], [1.0]), {}, "vectors of 4 numbers, these have 6 and 6"),
        (PairScores([trained()], [1.0]), {"top": 0}, "top at least 1"),
        (PairScores([trained()], [1.0]), {"weight": 0.0}, r"weight in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(neighbors, queries, gallery, scores, **options)


def test_runs_and_mirrored_views_side_by_side(tmp_path):
    first, second = PairScores([trained(4, 1)], [1.0]), PairScores([trained(6, 2)], [1.0])
    a, b = torch.randn(2, 5, 10)
    joined = side_by_side([first.doubled(), second], [1.0, 3.0])
    assert joined.dim == 14
    both = (
        torch.cat([a[:, :4], a[:, 1:5], a[:, 4:]], 1),
        torch.cat([b[:, :4], b[:, 1:5], b[:, 4:]], 1),
    )
    plain, mirrored = (
        first.heads[0](x, y) for x, y in ((a[:, :4], b[:, :4]), (a[:, 1:5], b[:, 1:5]))
    )
    other = second.heads[0](a[:, 4:], b[:, 4:])
    wanted = (0.125 * plain + 0.125 * mirrored + 0.75 * other).sigmoid()
    torch.testing.assert_close(joined.probability(*both), wanted.detach())
    joined.save(tmp_path / "pair_head.safetensors")
    again = PairScores.load(tmp_path / "pair_head.safetensors")
    assert torch.equal(again.probability(*both), joined.probability(*both))
    (tmp_path / "pair_head.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="delete it"):
        PairScores.load(tmp_path / "pair_head.safetensors")


def test_a_blend_has_the_heads_of_its_runs():
    def run(dim, scores):
        part = Embeddings(np.array(["a", "b", "c"]), normalize(torch.randn(3, dim)))
        return Vectors(part, part, pair_head=scores)

    first, second = run(4, PairScores([trained(4)], [1.0])), run(D, PairScores([trained()], [1.0]))
    both = vectors.side_by_side([first, second], [0.5, 1.5])
    assert both.pair_head.weights == [0.25, 0.75]
    logit = both.pair_head.probability(both.train.vectors, both.test.vectors.flip(0)).logit()
    parts = [
        own.pair_head.heads[0](own.train.vectors, own.test.vectors.flip(0))
        for own in (first, second)
    ]
    torch.testing.assert_close(
        logit, (0.25 * parts[0] + 0.75 * parts[1]).detach(), rtol=1e-3, atol=1e-4
    )
    assert vectors.side_by_side([first, run(3, None)], [1.0, 1.0]).pair_head is None
    assert vectors.side_by_side([first, second], [1.0, 1.0], whiten=2).pair_head is None
    assert vectors.side_by_side([first, run(3, None)], [1.0, 0.0]).pair_head.dim == 4
