"""Features of pairs, one pair at a time, from the definitions in `pair_features`' docstring."""

import math

import numpy as np

NAN = math.nan


def mean(values):
    return sum(values) / len(values) if values else NAN


def std(values):
    m = mean(values)
    return math.sqrt(sum((v - m) ** 2 for v in values) / len(values)) if values else NAN


def cos(a, b):
    return float(np.float32(np.dot(a.astype(np.float64), b.astype(np.float64))))


def features(index, queries, query_ids, gallery, gallery_ids, labels, sizes):
    """List of (query, column, candidate, {name: value})."""
    own = [list(gallery_ids).index(i) if i in list(gallery_ids) else None for i in query_ids]
    out = []
    for q, row in enumerate(index):
        listed = [g for g in row if g >= 0 and g != own[q]]
        score = {g: cos(queries[q], gallery[g]) for g in listed}
        ranked = sorted(listed, key=lambda g: (-score[g], g))
        others = [g for g in range(len(gallery)) if g != own[q]]
        for column, g in enumerate(row):
            if g not in listed:
                continue
            rank, c = ranked.index(g), score[g]
            f = {
                "cosine": c,
                "rank": rank,
                "gap_best": score[ranked[0]] - c,
                "gap_next": c - score[ranked[rank + 1]] if rank + 1 < len(ranked) else NAN,
            }
            if sizes:
                f |= around(q, g, c, score, ranked, others, gallery, sizes)
            if labels is not None:
                f |= classes(queries[q], g, score, ranked, others, gallery, labels)
            out.append((q, column, g, f))
    return out


def around(q, g, c, score, ranked, others, gallery, sizes):
    theirs = {x: cos(gallery[g], gallery[x]) for x in others if x != g}
    near = sorted(theirs, key=lambda x: (-theirs[x], x))[: sizes[-1]]
    f = {
        "reverse_rank": sum(theirs[x] > c for x in near),
        "reverse_gap": theirs[near[0]] - c if near else NAN,
    }
    for k in sizes:
        for name, values in (
            ("query", [score[x] for x in ranked[:k]]),
            ("candidate", [theirs[x] for x in near[:k]]),
        ):
            m, s = mean(values), std(values)
            f |= {f"{name}_mean_{k}": m, f"{name}_std_{k}": s}
            f[f"{name}_z_{k}"] = (c - m) / s if s > 1e-6 else NAN
        a, b = set(ranked[:k]), {g, *near[: k - 1]}
        f[f"shared_{k}"] = len(a & b) / len(a | b)
    return f


def classes(query, g, score, ranked, others, gallery, labels):
    names = ("size", "listed", "best", "mean_listed", "rank", "lead", "mean", "center")
    if labels[g] < 0:
        return {f"class_{name}": NAN for name in names}
    members = [x for x in others if labels[x] == labels[g]]
    inside = [x for x in ranked if labels[x] == labels[g]]
    outside = [score[x] for x in ranked if labels[x] != labels[g]]
    order = list(dict.fromkeys(labels[x] for x in ranked if labels[x] >= 0))
    center = sum(gallery[x].astype(np.float64) for x in members)
    best = max(score[x] for x in inside)
    values = (
        len(members),
        len(inside),
        best,
        mean([score[x] for x in inside]),
        order.index(labels[g]),
        best - max(outside) if outside else NAN,
        mean([cos(query, gallery[x]) for x in members]),
        float(query.astype(np.float64) @ center / np.linalg.norm(center)),
    )
    return {f"class_{name}": value for name, value in zip(names, values, strict=True)}
