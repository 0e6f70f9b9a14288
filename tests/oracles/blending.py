"""Neighborhood blending and min2, one image at a time, in float64."""

import numpy as np


def blend(vectors, ids, gallery, gallery_ids, threshold, second, k, own_weight):
    """One stage of `vectors`; ids tell who is self."""
    vectors, gallery = np.asarray(vectors, np.float64), np.asarray(gallery, np.float64)
    moved = []
    for name, vector in zip(ids, vectors, strict=True):
        others = sorted(
            (-np.float32(vector @ row), other, place)
            for place, (other, row) in enumerate(zip(gallery_ids, gallery, strict=True))
            if other != name
        )[:k]
        near = [(-float(negative), place) for negative, _, place in others]
        taken = [pair for pair in near if pair[0] > threshold]
        if not taken and second is not None and near and near[0][0] > second:
            taken = near[:1]
        total = own_weight * vector
        for similarity, place in taken:
            total = total + max(similarity, 0.0) * gallery[place]
        if not total.any() or not vector.any():
            total = vector
        moved.append(total / np.linalg.norm(total) if total.any() else total)
    return np.array(moved)


def matches(index, score, own, threshold, second):
    """The set of matches of one query whose own row is `own` (-1: not in the gallery)."""
    pairs = [(s, i) for s, i in zip(score, index, strict=True) if i >= 0]
    found = {i for _, i in pairs if i == own}
    others = [(s, i) for s, i in pairs if i != own]
    chosen = {i for s, i in others if s > threshold}
    if not chosen and others and others[0][0] > second:
        chosen = {others[0][1]}
    return found | chosen
