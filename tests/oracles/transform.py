"""Learned whitening from its definition: every pair of images is looked at."""

import numpy as np


def learned_whitening(rows, labels, dim):
    """Mean, projection `(dim, D)` and what each row separates; rows float64, no floor."""
    labels = np.asarray(labels)
    matching = np.zeros((rows.shape[1],) * 2)
    every = np.zeros_like(matching)
    for i in range(len(rows)):
        for j in range(len(rows)):
            outer = np.outer(rows[i] - rows[j], rows[i] - rows[j])
            every += outer / len(rows)
            if labels[i] == labels[j]:
                matching += outer / (labels == labels[i]).sum()
    values, vectors = np.linalg.eigh(matching)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    values, vectors = np.linalg.eigh(root @ every @ root)
    best = np.argsort(-values)[:dim]
    return rows.mean(0), vectors[:, best].T @ root, values[best]
