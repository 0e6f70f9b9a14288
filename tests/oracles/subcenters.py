"""Slow twins of label cleaning, after insightface's drop.py: one row at a time."""

from __future__ import annotations

import math


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def count_wins(centers, vectors, labels):
    wins = [[0] * len(of_class) for of_class in centers]
    for row, label in zip(vectors, labels, strict=True):
        if label != -1:
            near = [cosine(row, center) for center in centers[label]]
            wins[label][near.index(max(near))] += 1
    return wins


def clean(centers, vectors, labels, degrees):
    wins = count_wins(centers, vectors, labels)
    keep = []
    for row, label in zip(vectors, labels, strict=True):
        if label == -1:
            keep.append(True)
            continue
        dominant = centers[label][wins[label].index(max(wins[label]))]
        keep.append(math.degrees(math.acos(cosine(row, dominant))) <= degrees)
    return keep
