"""Slow twins of the tuple losses: one anchor, one positive, one negative at a time."""

from __future__ import annotations

import math

import torch

from tests.oracles.pair_losses import dist, others, rows_of, same, zero


def lifted(x, labels, *, margin=1.0, normalize=True):
    x, labels = rows_of(x, labels, normalize)
    parts = []
    for i in range(len(x)):
        for j in same(labels, i):
            if j < i or not others(labels, i):
                continue
            far = [math.e ** (margin - dist(x[i], x[k])) for k in others(labels, i)]
            far += [math.e ** (margin - dist(x[j], x[k])) for k in others(labels, j)]
            value = torch.log(sum(far)) + dist(x[i], x[j])
            parts.append(value.clamp_min(0) ** 2)
    return sum(parts) / (2 * len(parts)) if parts else zero(x)


def n_pair(x, labels, *, temperature=1.0, l2=0.002, normalize=False):
    x, labels = rows_of(x, labels, normalize)
    pairs = []
    for label in sorted(set(labels)):
        mine = [i for i in range(len(x)) if labels[i] == label]
        pairs += [(mine[i], mine[i + 1]) for i in range(0, len(mine) - 1, 2)]
    parts = []
    for a, p in pairs:
        total = sum(torch.exp(x[a] @ x[q] / temperature) for _, q in pairs)
        targets = [q for b, q in pairs if labels[b] == labels[a]]
        for q in targets:
            share = torch.exp(x[a] @ x[q] / temperature) / total
            parts.append(-torch.log(share) / len(targets))
        parts.append(l2 / 4 * ((x[a] ** 2).sum() + (x[p] ** 2).sum()))
    return sum(parts) / len(pairs) if pairs else zero(x)


def infonce(x, labels, *, temperature=0.07):
    x, labels = rows_of(x, labels, True)
    parts = []
    for a in range(len(x)):
        noise = [torch.exp(x[a] @ x[n] / temperature) for n in others(labels, a)]
        for p in same(labels, a):
            if noise:
                own = torch.exp(x[a] @ x[p] / temperature)
                parts.append(-torch.log(own / (own + sum(noise))))
    return sum(parts) / len(parts) if parts else zero(x)


def sup_con(x, labels, *, temperature=0.1):
    x, labels = rows_of(x, labels, True)
    parts = []
    for a in range(len(x)):
        mine = same(labels, a)
        rest = sum(torch.exp(x[a] @ x[i] / temperature) for i in range(len(x)) if i != a)
        if mine:
            logs = [torch.log(torch.exp(x[a] @ x[p] / temperature) / rest) for p in mine]
            parts.append(-sum(logs) / len(mine))
    return sum(parts) / len(parts) if parts else zero(x)


def nce(x, labels, *, temperature=0.07, z=None):
    x, labels = rows_of(x, labels, True)
    if z is None:
        noise = [
            math.exp((x[a] @ x[n]).item() / temperature)
            for a in range(len(x))
            for n in others(labels, a)
        ]
        z = sum(noise) / len(noise)
    parts = []
    for a in range(len(x)):
        near, far = same(labels, a), others(labels, a)
        if not near or not far:
            continue
        part = zero(x)
        for p in near:
            model = torch.exp(x[a] @ x[p] / temperature) / z
            part = part - torch.log(model / (model + len(far))) / len(near)
        for n in far:
            model = torch.exp(x[a] @ x[n] / temperature) / z
            part = part - torch.log(len(far) / (model + len(far)))
        parts.append(part)
    return sum(parts) / len(parts)


def nmi(clusters, labels):
    def entropy(codes):
        return -sum(
            codes.count(c) / len(codes) * math.log(codes.count(c) / len(codes)) for c in set(codes)
        )

    a, b = entropy(clusters), entropy(labels)
    if a == 0 or b == 0:
        return float(a == b)
    return (a + b - entropy(list(zip(clusters, labels, strict=True)))) / math.sqrt(a * b)


def assign(d, medoids):
    return [i if i in medoids else min(medoids, key=lambda j: d[i][j]) for i in range(len(d))]


def facility_location(x, labels, *, gamma=1.0, swaps=5):
    x, labels = rows_of(x, labels, True)
    table = [[dist(a, b) for b in x] for a in x]
    d = [[v.item() for v in row] for row in table]
    everyone, classes = range(len(x)), sorted(set(labels))

    def wrongness(medoids):
        return gamma * (1 - nmi(assign(d, medoids), labels))

    chosen = []
    for _ in classes:
        scores = {
            c: wrongness([*chosen, c]) - sum(min(d[i][j] for j in [*chosen, c]) for i in everyone)
            for c in everyone
            if c not in chosen
        }
        chosen.append(max(scores, key=scores.get))
    for _ in range(swaps):
        clusters = assign(d, chosen)
        for i, medoid in enumerate(list(chosen)):
            members = [r for r in everyone if clusters[r] == medoid]
            scores = {
                c: wrongness([*chosen[:i], c, *chosen[i + 1 :]]) - sum(d[c][m] for m in members)
                for c in members
            }
            chosen[i] = max(scores, key=scores.get)
    found = sum(min((table[i][j] for j in chosen), key=torch.Tensor.item) for i in everyone)
    best = zero(x)
    for label in classes:
        mine = [i for i in everyone if labels[i] == label]
        costs = [sum(table[i][j] for i in mine) for j in mine]
        best = best + min(costs, key=torch.Tensor.item)
    return (best - found + gamma * (1 - nmi(assign(d, chosen), labels))).clamp_min(0)
