"""Diffusion by dense linear systems in float64."""

import numpy as np


def transition(gallery, kd, gamma):
    """S `(N, N)` of the mutual nearest neighbor graph."""
    similarity = np.asarray(gallery, np.float64) @ np.asarray(gallery, np.float64).T
    number = len(similarity)
    lists = [
        set(sorted((j for j in range(number) if j != i), key=lambda j: -similarity[i, j])[:kd])
        for i in range(number)
    ]
    affinity = np.zeros((number, number))
    for i in range(number):
        for j in lists[i]:
            if i in lists[j]:
                affinity[i, j] = max(similarity[i, j], 0) ** gamma
    degree = affinity.sum(1)
    scale = np.array([1 / np.sqrt(d) if d > 0 else 0 for d in degree])
    return scale[:, None] * affinity * scale


def sources(queries, gallery, kq, gamma):
    """Start of the flow `(Q, N)`."""
    similarity = np.asarray(queries, np.float64) @ np.asarray(gallery, np.float64).T
    start = np.zeros_like(similarity)
    for q, row in enumerate(similarity):
        for i in np.argsort(-row)[:kq]:
            start[q, i] = max(row[i], 0) ** gamma
    return start


def diffusion(queries, gallery, kd, kq, gamma, alpha):
    """Flow `(Q, N)` on the whole graph."""
    system = np.eye(len(gallery)) - alpha * transition(gallery, kd, gamma)
    return np.linalg.solve(system, sources(queries, gallery, kq, gamma).T).T


def offline_diffusion(queries, gallery, size, kd, kq, gamma, alpha):
    """Flow `(Q, N)` as the sum of that of single images, each on its `size` nearest."""
    graph = transition(gallery, kd, gamma)
    similarity = np.asarray(gallery, np.float64) @ np.asarray(gallery, np.float64).T
    np.fill_diagonal(similarity, np.inf)
    own = np.zeros_like(graph)
    for i in range(len(graph)):
        near = np.argsort(-similarity[i])[:size]
        system = np.eye(len(near)) - alpha * graph[np.ix_(near, near)]
        right = np.zeros(len(near))
        right[0] = 1
        own[i, near] = np.linalg.solve(system, right)
    return sources(queries, gallery, kq, gamma) @ own
