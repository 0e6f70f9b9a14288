"""Nearest neighbors one pair at a time: float64 dot products, rounded once, a plain sort."""

import numpy as np


def search(query_ids, queries, gallery_ids, gallery, k, exclude_self=False):
    """`(index, score)` lists of lists; ties by id, padding -1 and -inf."""
    indices, scores = [], []
    for query_id, query in zip(query_ids, np.asarray(queries, np.float64), strict=True):
        found = []
        for row, (gallery_id, vector) in enumerate(zip(gallery_ids, gallery, strict=True)):
            if not (exclude_self and gallery_id == query_id):
                score = np.float32(sum(a * float(b) for a, b in zip(query, vector, strict=True)))
                found.append((-score, gallery_id, row))
        found = sorted(found)[:k]
        missing = k - len(found)
        indices.append([row for _, _, row in found] + [-1] * missing)
        scores.append([-score for score, _, _ in found] + [-np.inf] * missing)
    return np.array(indices, np.int64).reshape(-1, k), np.array(scores, np.float32).reshape(-1, k)


def within(query_ids, queries, gallery_ids, gallery, threshold, exclude_self=False):
    """For each query the `(row, score)` pairs of at least `threshold`, best first, ties by id."""
    lists = []
    for index, score in zip(
        *search(query_ids, queries, gallery_ids, gallery, len(gallery_ids), exclude_self),
        strict=True,
    ):
        pairs = zip(index.tolist(), score.tolist(), strict=True)
        lists.append([(i, s) for i, s in pairs if i >= 0 and s >= np.float32(threshold)])
    return lists
