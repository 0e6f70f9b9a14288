"""Groups of classes for samplers and splits: categories out of a csv, clusters of look-alikes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import sparse

from common.data.draws import Array, Classes
from common.data.folds import check_labels
from common.data.tables import read_frame


def read_categories(source: str, classes: Array, *, root: Path, column: str) -> Array:
    """`(C,)` category of each class, numbered from 0, from a csv file.

    GLDv2's train_label_to_hierarchical.csv:supercategory is such a file, and a column of train.csv
    will do. Classes without a row, or with an empty cell, form a category of their own.

    Args:
        source: the file, absolute or in `root`, and after a colon the column, which can be left out
            where there is only one beside that of the labels.
        classes: `(C,)` names of the classes, as text.
        root: the data folder.
        column: of the labels, where the file has none called `label`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such column, two categories for one class, or no class of these.
    """
    name, wanted = source, ""
    if not source.endswith(".csv"):
        name, _, wanted = source.rpartition(":")
    path = root / (name or wanted)
    if not path.is_file():
        raise FileNotFoundError(
            f"No file {path} for source={source}: name a csv file with a category per label, or "
            "embeddings or centers for clusters."
        )
    frame = read_frame(path, keep_default_na=False, na_values=[""])
    columns = [str(name) for name in frame.columns]
    key = "label" if "label" in columns else column
    others = [name for name in columns if name != key]
    chosen = wanted or (others[0] if len(others) == 1 else "")
    if key not in columns or chosen not in others:
        raise ValueError(
            f"{path} has columns {', '.join(columns)}: it must have label or {column}, and source="
            f"{path.name}:COLUMN names that of the categories."
        )
    pairs = frame[[key, chosen]].dropna().drop_duplicates()
    twice = pairs[key].duplicated()
    if twice.any():
        label = pairs[key][twice].iloc[0]
        both = " and ".join(pairs[chosen][pairs[key] == label][:2])
        raise ValueError(f"{path}: {key} {label} has two values of {chosen}: {both}.")
    found = pairs.set_index(key)[chosen].reindex(np.asarray(classes, np.str_))
    if not found.notna().any():
        raise ValueError(
            f"{path}: none of its {key}s is one of the {len(classes)} classes, the first of which "
            f"is {classes[0]}."
        )
    return np.unique(found.fillna("").to_numpy(np.str_), return_inverse=True)[1].astype(np.int64)


def cluster_classes(vectors: Array, labels: Array, number: int = 10, seed: int = 0) -> Array:
    """`(N,)` cluster of each row's class by k-means over mean embeddings; 0 for label -1.

    Args:
        vectors: `(N, D)` unit embeddings of the rows, by a model trained before.
        labels: `(N,)` integers, -1 for no class.
        number: of clusters, at most the number of classes; the paper has 10 for 100K classes.
        seed: of the k-means.

    Raises:
        ValueError: not as many vectors as labels, or more clusters than classes.
    """
    classes = Classes(check_labels(labels))
    if len(vectors) != len(labels) or not 1 <= number <= len(classes.counts):
        raise ValueError(
            f"Need a vector per label and 1 to {len(classes.counts)} clusters, got "
            f"{len(vectors)} for {len(labels)} labels and number={number}."
        )
    from sklearn.cluster import KMeans  # slow to import, and only needed here
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    ones = np.ones(len(classes.rows), np.float32)
    shape = len(classes.counts), len(labels)
    sums = sparse.csr_array((ones, (classes.code, classes.rows)), shape) @ np.asarray(
        vectors, np.float32
    )
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    # Several threads add up in the order in which they finish: not the same bits each time.
    with threadpool_limits(1, user_api="openmp"):
        found = KMeans(number, n_init=1, random_state=seed).fit_predict(means)
    clusters = np.zeros(len(labels), np.int64)
    clusters[classes.rows] = found[classes.code]
    return clusters


def per_class(classes: Classes, groups: Array, rows: int) -> Array:
    """`(C,)` group of each class, numbered from 0 without gaps."""
    groups = np.asarray(groups)
    if groups.shape != (rows,) or not np.issubdtype(groups.dtype, np.integer):
        raise ValueError(
            f"Need an integer category or cluster for each of {rows} rows, got {groups.dtype} "
            f"{groups.shape}."
        )
    known = groups[classes.rows]
    own = known[classes.starts]
    for wrong, what in ((known < 0, "is negative"), (known != own[classes.code], "differs")):
        if wrong.any():
            row = int(classes.rows[np.argmax(wrong)])
            raise ValueError(f"Category or cluster {groups[row]} of row {row} {what} in its class.")
    return np.unique(own, return_inverse=True)[1]


def merged(of: Array, least: int) -> Array:
    """`(C,)` cluster of each class, those of fewer than `least` classes joined to larger ones."""
    sizes = np.bincount(of)
    large = np.flatnonzero(sizes >= least)
    joined: list[list[int]] = [[]]
    for cluster in np.flatnonzero(sizes < least):
        joined[-1].append(int(cluster))
        if sizes[joined[-1]].sum() >= least:
            joined.append([])
    rest, target = joined.pop(), np.arange(len(sizes))
    for clusters in joined:
        target[clusters] = clusters[0]
    if rest:  # joined to some cluster: all classes together are at least as many as that
        target[rest] = joined[-1][0] if joined else large[np.argmin(sizes[large])]
    return np.unique(target[of], return_inverse=True)[1]
