"""Features of a list's candidates, one candidate at a time, in float64."""

import numpy as np


def features(query, candidates):
    """`(M, 8)` of real candidates `(M, D)`; the columns of `listmodel.features_of`."""
    query, candidates = np.asarray(query, np.float64), np.asarray(candidates, np.float64)
    cosine = [float(query @ row) for row in candidates]
    mean, deviation = np.mean(cosine), np.std(cosine)
    rank = [sum(other > own for other in cosine) for own in cosine]
    best = [i for i, place in enumerate(rank) if place < 5]
    found = []
    for i, row in enumerate(candidates):
        products = [float(row @ other) for other in candidates]
        others = [0.0 if j == i else max(product, 0.0) for j, product in enumerate(products)]
        nearest = sorted(others, reverse=True)[:5]
        found.append(
            [
                cosine[i],
                cosine[i] - max(cosine),
                cosine[i] - mean,
                (cosine[i] - mean) / (deviation + 1e-3),
                np.log1p(rank[i]) / 4,
                np.mean([products[j] for j in best]),
                sum(nearest) / 5,
                np.mean(products),
            ]
        )
    return np.array(found)
