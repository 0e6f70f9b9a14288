"""Slow twins of the ranking and hyperbolic losses: plain loops, Moebius addition as written."""

from __future__ import annotations

import math

import torch

from tests.oracles.pair_losses import average, others, rows_of, same


def smooth_ap(x, labels, *, temperature=0.01):
    x, labels = rows_of(x, labels, True)
    parts = []
    for q in range(len(x)):
        near, far = same(labels, q), others(labels, q)
        terms = []
        for i in near:
            ahead = {j: ((x[q] @ x[j] - x[q] @ x[i]) / temperature).sigmoid() for j in near + far}
            own = 1 + sum(ahead[j] for j in near if j != i)
            terms.append(own / (own + sum(ahead[j] for j in far)))
        if near:
            parts.append(1 - sum(terms) / len(near))
    return average(parts, x)


def recall_at_k(x, labels, *, ks=(1, 2, 4, 8, 16), temperature=0.01, step=1.0):
    x, labels = rows_of(x, labels, True)
    parts = []
    for q in range(len(x)):
        near = same(labels, q)
        if not near:
            continue
        for k in ks:
            found = 0
            for i in near:
                rank = 1
                for j in range(len(x)):
                    if j not in (q, i):
                        rank = rank + ((x[q] @ x[j] - x[q] @ x[i]) / temperature).sigmoid()
                found = found + ((k - rank) / (k * step)).sigmoid()
            parts.append(1 - found.clamp_max(k) / min(k, len(near)))
    return average(parts, x)


def ball(v, c, clip):
    """Clipped and mapped onto the ball of radius 1 / sqrt(c)."""
    if v.norm() > clip:
        v = v / v.norm() * clip
    return torch.tanh(math.sqrt(c) * v.norm()) * v / (math.sqrt(c) * v.norm())


def hyperbolic_distance(x, y, c):
    """2 / sqrt(c) artanh(sqrt(c) |(-x) (+) y|)."""
    x = -x
    xy, xx, yy = x @ y, x @ x, y @ y
    top = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
    added = top / (1 + 2 * c * xy + c * c * xx * yy)
    return 2 / math.sqrt(c) * torch.atanh(math.sqrt(c) * added.norm())


def hyperbolic(x, labels, *, curvature=0.1, temperature=0.2, clip=2.3):
    x, labels = rows_of(x, labels, False)
    points = [ball(v, curvature, clip) for v in x]

    def weight(i, j):
        return torch.exp(-hyperbolic_distance(points[i], points[j], curvature) / temperature)

    parts = []
    for a in range(len(x)):
        noise = sum(weight(a, n) for n in others(labels, a))
        for p in same(labels, a):
            if others(labels, a):
                parts.append(-torch.log(weight(a, p) / (weight(a, p) + noise)))
    return average(parts, x)
