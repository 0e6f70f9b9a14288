"""Penalties and distractor rules, one query at a time."""

import numpy as np


def likeness(vector, own_id, negatives, negative_ids, top):
    cosines = [
        float(np.dot(vector, other))
        for other, name in zip(negatives, negative_ids, strict=True)
        if name != own_id
    ]
    best = sorted(cosines, reverse=True)[:top]
    return sum(best) / max(len(best), 1)


def resorted(index, score):
    """Rows sorted by score descending, then index; padding (-1) last."""
    out = []
    for row, scores in zip(index, score, strict=True):
        pairs = [(i, s) for i, s in zip(row, scores, strict=True) if i >= 0]
        out.append(sorted(pairs, key=lambda p: (-p[1], p[0])))
    return out


def distractors(index, score, alike, limit, similarity):
    """New scores, `(Q, K)` lists."""
    firsts = [row[0] for row in index]
    new = []
    for q, first in enumerate(firsts):
        frequency = firsts.count(first)
        if first < 0:
            new.append(None)
        elif limit and frequency > limit:
            new.append(-float(frequency))
        elif similarity > 0 and alike[q] > similarity:
            new.append(-alike[q])
        else:
            new.append(None)
    kept = [score[q][0] for q in range(len(index)) if firsts[q] >= 0 and new[q] is None]
    base = min([0.0, *kept])
    out = []
    for q, row in enumerate(score):
        shift = 0.0 if new[q] is None else base + new[q] - row[0]
        out.append([s + shift for s in row])
    return out
