"""Slow twins of the pair, triplet and quadruplet losses: plain loops over Python lists."""

from __future__ import annotations

import math

import torch


def rows_of(x, labels, normalize):
    """The labelled rows, of length 1 if asked, and their labels as a list."""
    keep = [i for i, label in enumerate(labels.tolist()) if label != -1]
    rows = [x[i] / x[i].norm() if normalize else x[i] for i in keep]
    return (torch.stack(rows) if rows else x[:0]), [labels[i].item() for i in keep]


def zero(x):
    return x.sum() * 0


def dist(a, b):
    return ((a - b) ** 2).sum().sqrt() if not torch.equal(a, b) else ((a - b) ** 2).sum()


def same(labels, i):
    return [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]


def others(labels, i):
    return [j for j in range(len(labels)) if labels[j] != labels[i]]


def average(parts, x):
    return sum(parts) / len(parts) if parts else zero(x)


def contrastive(x, labels, *, margin=1.0, balanced=True, normalize=True):
    x, labels = rows_of(x, labels, normalize)
    return over_pairs(
        x,
        labels,
        lambda a, b: dist(a, b) ** 2 / 2,
        lambda a, b: (margin - dist(a, b)).clamp_min(0) ** 2 / 2,
        balanced,
    )


def cosine_contrastive(x, labels, *, margin=0.5, balanced=True):
    x, labels = rows_of(x, labels, True)
    return over_pairs(
        x, labels, lambda a, b: 1 - a @ b, lambda a, b: (a @ b - margin).clamp_min(0), balanced
    )


def over_pairs(x, labels, pull, push, balanced):
    near = [pull(x[i], x[j]) for i in range(len(x)) for j in same(labels, i) if i < j]
    far = [push(x[i], x[j]) for i in range(len(x)) for j in others(labels, i) if i < j]
    if balanced:
        return average(near, x) + average(far, x)
    return average(near + far, x)


def batch_hard(d, labels):
    found = []
    for a in range(len(labels)):
        if same(labels, a) and others(labels, a):
            p = max(same(labels, a), key=lambda j: d[a][j])
            n = min(others(labels, a), key=lambda j: d[a][j])
            found.append((a, p, n))
    return found


def all_triplets(d, labels):
    del d
    every = range(len(labels))
    return [(a, p, n) for a in every for p in same(labels, a) for n in others(labels, a)]


def triplet(x, labels, *, mine, margin=0.2, squared=False, normalize=True, active_only=False):
    x, labels = rows_of(x, labels, normalize)

    def measure(a, b):
        return dist(a, b) ** 2 if squared else dist(a, b)

    table = [[measure(a, b).item() for b in x] for a in x]
    parts = []
    for a, p, n in mine(table, labels):
        gap = measure(x[a], x[p]) - measure(x[a], x[n])
        parts.append(torch.log(1 + gap.exp()) if margin == "soft" else (gap + margin).clamp_min(0))
    if active_only:
        parts = [part for part in parts if part > 0]
    return average(parts, x)


def quadruplet(
    x,
    labels,
    *,
    margin=1.0,
    second_margin=0.5,
    adaptive=False,
    active_only=True,
    normalize=True,
):
    x, labels = rows_of(x, labels, normalize)
    every = range(len(x))
    d = [[dist(a, b) ** 2 for b in x] for a in x]
    unit = 1.0
    if adaptive:
        near = [d[i][j].item() for i in every for j in same(labels, i)]
        far = [d[i][k].item() for i in every for k in others(labels, i)]
        unit = sum(far) / len(far) - sum(near) / len(near)
    first, second = [], []
    for i in every:
        for j in same(labels, i):
            for k in others(labels, i):
                first.append((d[i][j] - d[i][k] + margin * unit).clamp_min(0))
                for m in others(labels, i):
                    if labels[m] != labels[k]:
                        second.append((d[i][j] - d[m][k] + second_margin * unit).clamp_min(0))
    if active_only:
        first, second = [v for v in first if v > 0], [v for v in second if v > 0]
    return average(first, x) + average(second, x)


def multi_similarity(x, labels, *, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1):
    x, labels = rows_of(x, labels, True)
    parts = []
    for a in range(len(x)):
        near = [x[a] @ x[p] for p in same(labels, a)]
        far = [x[a] @ x[n] for n in others(labels, a)]
        if epsilon is not None:
            lowest = min((s.item() for s in near), default=math.inf)
            highest = max((s.item() for s in far), default=-math.inf)
            near = [s for s in near if s.item() - epsilon < highest]
            far = [s for s in far if s.item() + epsilon > lowest]
        pull = 1 + sum(torch.exp(-alpha * (s - base)) for s in near) + zero(x)
        push = 1 + sum(torch.exp(beta * (s - base)) for s in far) + zero(x)
        parts.append(torch.log(pull) / alpha + torch.log(push) / beta)
    return average(parts, x)


def circle(x, labels, *, margin=0.4, scale=80.0, reduction="anchor"):
    x, labels = rows_of(x, labels, True)

    def positive(s):
        return torch.exp(-scale * max(0.0, 1 + margin - s.item()) * (s - 1 + margin))

    def negative(s):
        return torch.exp(scale * max(0.0, s.item() + margin) * (s - margin))

    every = range(len(x))
    if reduction == "batch":
        near = [positive(x[i] @ x[j]) for i in every for j in same(labels, i) if i < j]
        far = [negative(x[i] @ x[j]) for i in every for j in others(labels, i) if i < j]
        return torch.log(1 + sum(near) * sum(far)) if near and far else zero(x)
    parts = []
    for a in every:
        near = [positive(x[a] @ x[p]) for p in same(labels, a)]
        far = [negative(x[a] @ x[n]) for n in others(labels, a)]
        if near and far:
            parts.append(torch.log(1 + sum(near) * sum(far)))
    return average(parts, x)


def magnet(x, labels, clusters, *, alpha=1.0, normalize=True):
    clusters = [
        c for c, label in zip(clusters.tolist(), labels.tolist(), strict=True) if label >= 0
    ]
    x, labels = rows_of(x, labels, normalize)
    keys = list(zip(labels, clusters, strict=True))
    means = {}
    for key in set(keys):
        mine = [x[i] for i in range(len(x)) if keys[i] == key]
        means[key] = sum(mine) / len(mine)

    def d(i, key):
        return ((x[i] - means[key]) ** 2).sum()

    variance = sum(d(i, keys[i]) for i in range(len(x))) / (len(x) - 1)
    parts = []
    for i in range(len(x)):
        top = torch.exp(-d(i, keys[i]) / (2 * variance) - alpha)
        rest = [torch.exp(-d(i, key) / (2 * variance)) for key in means if key[0] != labels[i]]
        if rest:
            parts.append((-torch.log(top / sum(rest))).clamp_min(0))
    return average(parts, x)


def batch(rows=16, dim=4, classes=4, ignored=True, seed=0, dtype=torch.float64):
    """Rows of length about 2 with labels of which some come once or are -1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    if ignored:
        labels[1::6] = -1
    return x.to(dtype).requires_grad_(), labels


def agree(loss, expected, x, rtol=1e-8, atol=1e-8):
    """Equal values and equal gradients."""
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=atol)
    (got,) = torch.autograd.grad(loss, x, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, x, retain_graph=True)
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


def never_nan(criterion, x, labels):
    """Finite values and gradients, in float32 at least."""
    x = x.detach().requires_grad_()
    loss = criterion(x, labels)
    loss.backward()
    assert loss.dtype == torch.promote_types(x.dtype, torch.float32)
    assert loss.shape == ()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def learns_nothing(criterion, labels):
    """A zero on the graph, with a gradient of zeros."""
    labels = torch.tensor(labels, dtype=torch.int64)
    x = torch.randn(len(labels), 3).requires_grad_()
    loss = criterion(x, labels)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def _case(x, labels=None, dtype=torch.float32):
    default = [0, 0, 1, 1, 2, -1, 0, 2]
    return lambda: (x.to(dtype), torch.tensor(default if labels is None else labels))


_x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
_axes = torch.eye(5)[[0, 0, 1, 1, 2, 2, 0, 2]]
HARD_CASES = {
    "all equal": _case(torch.ones(8, 5)),
    "all zero": _case(torch.zeros(8, 5)),
    "one zero": _case(_x * (torch.arange(8) != 2)[:, None]),
    "on their centres": _case(_axes),
    "almost equal": _case(torch.ones(8, 5) + 1e-7 * _x),
    "antipodal": _case(_x[:1] * torch.tensor([1.0, -1, 1, -1, 1, -1, -1, 1])[:, None]),
    "positives antipodal, negatives equal": _case(
        _x[:1] * torch.tensor([1.0, -1, 1, -1, 1, 1, -1, -1])[:, None]
    ),
    "one class": _case(_x, [3] * 8),
    "all singletons": _case(_x, list(range(8))),
    "two classes": _case(_x, [0, 0, 0, 1, 1, 1, 1, -1]),
    "one sample": _case(_x[:1], [0]),
    "no label": _case(_x, [-1] * 8),
    "empty": lambda: (_x[:0], torch.zeros(0, dtype=torch.int64)),
    "scale 256": _case(_x * 256),
    "tiny": _case(_x * 1e-30),
    "float16": _case(_x * 256, dtype=torch.float16),
    "float16 full range": _case(_x.sign() * 6e4, dtype=torch.float16),
    "bfloat16": _case(_x * 256, dtype=torch.bfloat16),
    "float64": _case(_x, dtype=torch.float64),
}
