"""k-reciprocal re-ranking as published: every matrix dense, one image at a time.

Zhong et al., CVPR 2017, with the quirks of the authors' implementation, written from their
description.
"""

import numpy as np


def k_reciprocal(queries, gallery, k1=20, k2=6, lambda_value=0.3, dtype=np.float32):
    """Distances `(Q, G)`; the rows are unit vectors.

    The authors' is float32; float64 has no neighbors that rounding swaps.
    """
    images = np.concatenate([queries, gallery]).astype(dtype)
    number = len(images)
    distance = 2 - 2 * images @ images.T
    # The largest of each column, then transposed: each row divided by its own largest distance.
    distance = np.transpose(distance / distance.max(axis=0))
    ranking = np.argsort(distance, axis=1).astype(np.int32)

    encoding = np.zeros((number, number), np.float32)
    for image in range(number):
        close = _reciprocal(ranking, image, k1 + 1)
        expanded = close
        for candidate in close:
            # numpy rounds halves to even: k1=5 looks at 2 + 1 neighbors, k1=7 at 4 + 1.
            others = _reciprocal(ranking, candidate, int(np.around(k1 / 2)) + 1)
            if len(np.intersect1d(others, close)) > 2 / 3 * len(others):
                expanded = np.append(expanded, others)
        expanded = np.unique(expanded)
        weight = np.exp(-distance[image, expanded])
        encoding[image, expanded] = weight / weight.sum()
    if k2 > 1:
        encoding = np.stack([encoding[row[:k2]].mean(axis=0) for row in ranking])

    holders = [np.flatnonzero(encoding[:, image]) for image in range(number)]
    result = np.empty((len(queries), number), np.float32)
    for query in range(len(queries)):
        shared = np.zeros(number, np.float32)
        for image in np.flatnonzero(encoding[query]):
            rows = holders[image]
            shared[rows] += np.minimum(encoding[query, image], encoding[rows, image])
        jaccard = 1 - shared / (2 - shared)
        result[query] = (1 - lambda_value) * jaccard + lambda_value * distance[query]
    return result[:, len(queries) :]


def _reciprocal(ranking, image, size):
    """Those of the first `size` images in the list of `image` whose own lists have it."""
    forward = ranking[image, :size]
    backward = ranking[forward, :size]
    return forward[(backward == image).any(axis=1)]
