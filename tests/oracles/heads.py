"""Slow twins of the heads that adapt, keep lengths or use proxies: one row and class at a time."""

from __future__ import annotations

import math

import torch

from tests.oracles.margin import class_cosine


def cosines(x, weight, k=1):
    """(B, C), the largest cosine of each row to the centres of each class."""
    classes = range(len(weight) // k)
    return torch.stack(
        [
            torch.stack([class_cosine(row, weight[c * k : (c + 1) * k]) for c in classes])
            for row in x
        ]
    )


def known(labels):
    return [i for i, label in enumerate(labels.tolist()) if label != -1]


def cross_entropy(logits, labels, smoothing=0.0, gamma=0.0, weights=None):
    """Weighted mean over labelled rows of the smoothed, focal cross entropy of (B, C) logits."""
    losses, norm = [], 0.0
    for i in known(labels):
        y, p = labels[i], logits[i].softmax(0)
        target = [smoothing / len(p) + (1 - smoothing) * (c == y) for c in range(len(p))]
        loss = -sum(t * q.log() for t, q in zip(target, p, strict=True))
        weight = 1.0 if weights is None else weights[y]
        losses.append(weight * (1 - p[y]) ** gamma * loss)
        norm += weight
    return sum(losses) / norm


def adacos_scale(c, labels, scale):
    """The dynamic scale of the next softmax from the last one."""
    rows = known(labels)
    total = 0.0
    for i in rows:
        total += sum(math.exp(scale * v) for j, v in enumerate(c[i].tolist()) if j != labels[i])
    angles = sorted(math.acos(c[i, labels[i]].item()) for i in rows)
    median = angles[(len(angles) - 1) // 2]
    return math.log(total / len(rows)) / math.cos(min(math.pi / 4, median))


def arcface(cosine, margin):
    angle = torch.acos(cosine)
    if angle.item() + margin > math.pi:
        return cosine - margin * math.sin(margin)
    return torch.cos(angle + margin)


def curricular(c, labels, *, t, scale=64.0, margin=0.5, momentum=0.99):
    """(B, C) logits and the new t."""
    rows = known(labels)
    t = momentum * t + (1 - momentum) * sum(c[i, labels[i]].item() for i in rows) / len(rows)
    logits = []
    for i, row in enumerate(c):
        own = arcface(row[labels[i]], margin)
        out = [v * (t + v) if v > own else v for v in row]
        out[labels[i]] = own
        logits.append(scale * torch.stack(out))
    return torch.stack(logits), t


def adaface(x, c, labels, *, mean, std, scale=64.0, margin=0.4, h=0.333, momentum=0.99):
    """(B, C) logits and the new mean and std of the lengths."""
    lengths = [min(max(row.norm().item(), 0.001), 100.0) for row in x]
    found = [lengths[i] for i in known(labels)]
    average = sum(found) / len(found)
    spread = math.sqrt(sum((v - average) ** 2 for v in found) / (len(found) - 1))
    mean = momentum * mean + (1 - momentum) * average
    std = momentum * std + (1 - momentum) * spread
    logits = []
    for i, row in enumerate(c):
        q = min(max((lengths[i] - mean) / (std + 1e-3) * h, -1.0), 1.0)
        angle = torch.acos(row[labels[i]])
        turned = angle - margin * q
        if turned > math.pi:
            own = row[labels[i]] + margin * q * math.sin(-margin * q)
        else:
            own = torch.cos(turned) if turned > 0 else torch.ones_like(angle)
        out = list(row)
        out[labels[i]] = own - (margin * q + margin)
        logits.append(scale * torch.stack(out))
    return torch.stack(logits), mean, std


def psi(cosine, m):
    angle = torch.acos(cosine)
    k = min(int(angle.item() * m / math.pi), m - 1)
    return (-1) ** k * torch.cos(m * angle) - 2 * k


def sphereface(x, c, labels, *, m=4, blend=0.0):
    logits = []
    for i, row in enumerate(c):
        out = list(row)
        out[labels[i]] = (blend * row[labels[i]] + psi(row[labels[i]], m)) / (1 + blend)
        logits.append(x[i].norm() * torch.stack(out))
    return torch.stack(logits)


def center_loss(x, labels, centers, weights=None):
    rows = known(labels)
    each = {i: 1.0 if weights is None else weights[labels[i]] for i in rows}
    parts = [each[i] * ((x[i] - centers[labels[i]]) ** 2).sum() / 2 for i in rows]
    return sum(parts) / sum(each.values())


def moved_centers(x, labels, centers, alpha):
    moved = centers.clone()
    for c in range(len(centers)):
        rows = [x[i].detach() for i in known(labels) if labels[i] == c]
        if rows:
            moved[c] = centers[c] - alpha * sum(centers[c] - row for row in rows) / (1 + len(rows))
    return moved


def proxy_anchor(c, labels, *, scale=32.0, margin=0.1):
    rows, classes = known(labels), range(c.shape[1])
    pulls, pushes = [], []
    for j in classes:
        near = [torch.exp(-scale * (c[i, j] - margin)) for i in rows if labels[i] == j]
        far = [torch.exp(scale * (c[i, j] + margin)) for i in rows if labels[i] != j]
        if near:
            pulls.append(torch.log(1 + sum(near)))
        pushes.append(torch.log(1 + sum(far) + 0 * c.sum()))
    return sum(pulls) / len(pulls) + sum(pushes) / len(pushes)


def proxy_nca(c, labels, *, scale=2.0, weights=None):
    losses, norm = [], 0.0
    for i in known(labels):
        distance = [scale / 2 * (2 - 2 * v) for v in c[i]]
        far = sum(torch.exp(-d) for j, d in enumerate(distance) if j != labels[i])
        weight = 1.0 if weights is None else weights[labels[i]]
        losses.append(-weight * torch.log(torch.exp(-distance[labels[i]]) / far))
        norm += weight
    return sum(losses) / norm


def class_circle(c, labels, *, scale=256.0, margin=0.25):
    logits = []
    for i, row in enumerate(c):
        out = [scale * max(0.0, v.item() + margin) * (v - margin) for v in row]
        own = row[labels[i]]
        out[labels[i]] = scale * max(0.0, 1 + margin - own.item()) * (own - 1 + margin)
        logits.append(torch.stack(out))
    return torch.stack(logits)


def ohem_sigmoid(
    x, weight, bias, labels, *, scale=16.0, hardest=30, gamma=0.0, smoothing=0.0, counts=None
):
    """`counts` are images per class, of which the weights are 1 / sqrt(n)."""
    rows, norm = [], 0.0
    weights = None if counts is None else [n**-0.5 for n in counts]
    for row, label in zip(x, labels.tolist(), strict=True):
        logits = [scale * (row / row.norm() @ w + b) for w, b in zip(weight, bias, strict=True)]
        terms = []
        for c, z in enumerate(logits):
            target = 0.0 if label < 0 else smoothing / len(logits)
            target += (1 - smoothing) * (c == label)
            yes, no = torch.log(1 + (-z).exp()), torch.log(1 + z.exp())
            wrong = -z if c == label else z  # log(1 - sigmoid(z)) would be inf from 37 on
            loss = target * yes + (1 - target) * no
            terms.append((wrong.item(), torch.sigmoid(wrong) ** gamma * loss))
        worst = [term for _, term in sorted(terms, key=lambda one: -one[0])[:hardest]]
        loss = (terms[label][1] if label >= 0 else 0) + sum(worst) / len(worst)
        mine = 1.0
        if weights is not None:
            mean = sum(n * w for n, w in zip(counts, weights, strict=True)) / sum(counts)
            mine = weights[label] if label >= 0 else mean
        rows.append(mine * loss)
        norm += mine
    return sum(rows) / norm
