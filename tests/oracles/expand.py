"""Query expansion, one query and one neighbor at a time, in float64."""

import numpy as np


def expand(queries, gallery, k, weigh, own_weight=1.0, exclude_self=False):
    """`weigh(similarity, rank)` is the weight of a neighbor; ties go by row."""
    queries, gallery = np.asarray(queries, np.float64), np.asarray(gallery, np.float64)
    moved = []
    for row, query in enumerate(queries):
        ranked = sorted(
            (-np.float32(query @ vector), other)
            for other, vector in enumerate(gallery)
            if not (exclude_self and other == row)
        )
        total = own_weight * query
        for rank, (negative, other) in enumerate(ranked[:k]):
            total = total + weigh(-float(negative), rank) * gallery[other]
        if not total.any():
            total = query
        norm = np.sqrt((total**2).sum())
        moved.append(total / norm if query.any() else query)
    return np.array(moved)


def dirtorch_augmentation(vectors, k, alpha):
    """alpha-DBA by the algorithm of naver/deep-image-retrieval.

    All similarities at once, a partial sort of every row, then the mean of each row and its
    neighbors, one row and one neighbor at a time. The row itself is left out by its place.
    """
    vectors = np.asarray(vectors)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, 0)
    nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
    moved = np.empty_like(vectors)
    for row, others in enumerate(nearest):
        parts = [vectors[other] * max(similarity[row, other], 0) ** alpha for other in others]
        mean = np.vstack([vectors[row], *parts]).mean(0)
        moved[row] = mean / np.linalg.norm(mean)
    return moved


def augmentation_by_rows(vectors, k, alpha):
    """alpha-DBA one row at a time: a matrix-vector product, a full sort, a sum; no N^2 memory."""
    vectors = np.asarray(vectors)
    moved = np.empty_like(vectors)
    for row, vector in enumerate(vectors):
        similarity = vectors @ vector
        ranked = np.argsort(-similarity, kind="stable")
        ranked = ranked[ranked != row][:k]
        weights = np.maximum(similarity[ranked], 0) ** alpha
        total = vector + (weights[:, None] * vectors[ranked]).sum(0)
        moved[row] = total / np.linalg.norm(total)
    return moved
