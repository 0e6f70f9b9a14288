"""Blends of ranked lists, one query at a time, in dicts."""

import math


def rows(parts):
    """Per query the list of the models' {index: score}."""
    return [
        [
            {i: s for i, s in zip(index[q], score[q], strict=True) if i >= 0}
            for index, score in parts
        ]
        for q in range(len(parts[0][0]))
    ]


def ranked(scores):
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def scores(parts, weights, missing):
    total = sum(weights)
    out = []
    for models in rows(parts):
        low = [min(m.values(), default=0.0) if missing == "lowest" else 0.0 for m in models]
        union = set().union(*models)
        out.append(
            ranked(
                {
                    i: sum(
                        w / total * m.get(i, lowest)
                        for w, m, lowest in zip(weights, models, low, strict=True)
                    )
                    for i in union
                }
            )
        )
    return out


def ranks(parts, weights, points):
    total = sum(weights)
    out = []
    for index, _ in [parts[0]]:
        for q in range(len(index)):
            found = {}
            for (one, _), weight in zip(parts, weights, strict=True):
                for place, i in enumerate(one[q]):
                    if i >= 0:
                        found[i] = found.get(i, 0.0) + weight / total * points(place + 1)
            out.append(ranked(found))
    return out


def votes(parts, thresholds, weights, hard):
    total = sum(weights)
    out = []
    for models in rows(parts):
        found = {}
        for i in set().union(*models):
            value = 0.0
            for m, threshold, weight in zip(models, thresholds, weights, strict=True):
                low = min(m.values(), default=0.0)
                if hard:
                    gain = 0.5 if m.get(i, -1e9) > threshold else -0.5
                elif i in m:
                    gain = m[i] - threshold
                else:
                    gain = min(low - threshold, 0.0)
                value += weight / total * gain
            if value > 1e-6:
                found[i] = value
        out.append(ranked(found))
    return out


def power(parts, weights, p, missing):
    total = sum(weights)
    out = []
    for models in rows(parts):
        low = [min(m.values(), default=0.0) if missing == "lowest" else 0.0 for m in models]
        found = {}
        for i in set().union(*models):
            scores = [m.get(i, lowest) for m, lowest in zip(models, low, strict=True)]
            shares = [(w / total, s) for w, s in zip(weights, scores, strict=True) if w > 0]
            if p <= 0 and any(s == 0 for _, s in shares):
                found[i] = 0.0
            elif p == 0:
                found[i] = math.prod(s**w for w, s in shares)
            else:
                found[i] = sum(w * s**p for w, s in shares) ** (1 / p)
        out.append(ranked(found))
    return out
