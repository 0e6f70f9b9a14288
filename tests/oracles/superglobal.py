"""SuperGlobal's re-ranking, one query and one candidate at a time, in float64."""

import numpy as np


def scores(query, candidates, k=9, beta=0.15, best=10):
    """The final score of every candidate `(M, D)` of one query."""
    query, candidates = np.asarray(query, np.float64), np.asarray(candidates, np.float64)
    refined = []
    for row, vector in enumerate(candidates):
        others = [(float(vector @ other), other) for i, other in enumerate(candidates) if i != row]
        others.sort(key=lambda pair: -pair[0])
        total, weight = vector.copy(), 1.0
        for similarity, other in others[:k]:
            total += beta * max(similarity, 0.0) * other
            weight += beta * max(similarity, 0.0)
        refined.append(total / weight)
    first = [float(query @ vector) for vector in refined]
    leaders = sorted(range(len(refined)), key=lambda row: -first[row])[:best]
    peak = np.max([refined[row] for row in leaders], axis=0)
    if not query.any():
        peak = np.zeros_like(query)
    return np.array(
        [(one + float(peak @ vector)) / 2 for one, vector in zip(first, refined, strict=True)]
    )
