"""Batch samplers that choose which classes meet: balanced categories, clusters of look-alikes.

for rows in CategoryBalanced(labels, categories=of_rows, batch_size=64, seed=0, k=4, c=2): ...

They keep the promises of `common.data.samplers`: every labelled row in every epoch, classes of one
image too, and global batches that depend on (seed, epoch) alone, of which a rank takes its slice.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from common.data.folds import check_labels
from common.data.samplers import Array, _Batches, _Classes, _deal, _level, _numbers


class _Cells(_Batches):
    """Batches of c cells; a cell is p x k images of p classes of one category or cluster."""

    def _prepare(self, kinds: Array, k: int, c: int) -> Array:
        """`(C,)` number of each class's category or cluster, once the arguments fit together."""
        if k < 1 or c < 1:
            raise ValueError(f"k and c must be at least 1, got {k} and {c}.")
        self.k, self.c = k, c
        self.p, rest = divmod(self.batch_size, k * c)
        if rest or not self.p:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of {c * k} = {c} x {k} images; "
                "change it or k."
            )
        self._classes = _Classes(self.labels)
        self._groups = -(-self._classes.counts // k)
        return _per_class(self._classes, kinds, len(self.labels))

    def _needed(self, of: Array) -> Array:
        """Cells that hold all groups of each category or cluster."""
        return -(-np.bincount(of, self._groups).astype(np.int64) // self.p)

    def _arrange(self, of: Array, cells: Array) -> None:
        """Take the number of each class's category or cluster, and how often to draw those."""
        self._members = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])
        self._number = cells
        self._cut(int(cells.sum()) * self.p * self.k, int(cells.sum()) // self.c)

    def _plan(self, rng: np.random.Generator) -> Array:
        order = rng.permutation(len(self._number))
        parts = [self._split(kind, rng) for kind in order]
        dealt = _deal(np.repeat(order, self._number[order]), self.c, rng)  # (M, c)
        code, number = (np.concatenate(x)[dealt][..., None] for x in zip(*parts, strict=True))
        number = number * self.k + np.arange(self.k)  # (M, c, p, k)
        return self._classes.take(rng, np.broadcast_to(code, number.shape), number).ravel()

    def _split(self, kind: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """`(cells, p)` class of each group of k images, and the group's number in the class."""
        order, cells = rng.permutation(self._members[kind]), int(self._number[kind])
        groups = self._groups[order]
        groups = groups + _spread(groups, cells * self.p - int(groups.sum()), cells)
        code = np.repeat(order, groups)
        dealt = _deal(code, self.p, rng)
        return code[dealt], _numbers(groups)[dealt]


class CategoryBalanced(_Cells):
    """c categories in every batch with P / c classes x k images each, and every labelled row.

    No category is twice in a batch, so negatives come both from the own category and from others,
    in fixed parts. As in `PK` a class is drawn in groups of k; it is twice in a category's part of
    a batch only if it has more groups than the category has batches, or if the category has fewer
    classes than P / c. An epoch lasts until the largest category is through; what places are left
    go to the smallest ones, drawn again, so that shares become as even as that allows. For tables
    of several product types or species. After the sampler of that name in open-metric-learning,
    which leaves out what does not fill a batch.

    Args:
        labels: `(N,)` integers, -1 for no class; those rows are left out.
        categories: `(N,)` integers from 0, one per class; what rows without a class have is free.
        batch_size: global, `c * (P / c) * k`. `seed`, `rank`, `world` as in `Shuffled`; when c is a
            multiple of `world`, a rank gets whole categories.
        k: images per class.
        c: categories per batch.

    Raises:
        ValueError: `batch_size` does not fit, fewer than c categories, a class in two categories.
    """

    def __init__(
        self,
        labels: Array,
        categories: Array,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
        k: int = 4,
        c: int = 2,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, world)
        of = self._prepare(categories, k, c)
        cells = self._needed(of)
        if len(cells) < c:
            raise ValueError(f"c={c} categories per batch, but there are {len(cells)}; lower c.")
        total = c * max(-(-int(cells.sum()) // c), int(cells.max()))
        # No level is above the number of batches, so a category need not be twice in one.
        level = _level(cells.astype(np.float64), np.ones(len(cells)), total)
        cells = np.floor(level).astype(np.int64)
        cells[np.argsort(cells, kind="stable")[: total - int(cells.sum())]] += 1
        self._arrange(of, cells)


class IdentityClusters(_Cells):
    """P x k batches inside one cluster of similar classes, and every labelled row.

    Wang et al., ICCV workshops 2017, "How to Train Triplet Networks with 100K Identities?": classes
    are clustered by the mean embedding of an earlier model, and with all classes of a batch from
    one cluster ("subspace") a hard negative is near. Clusters of fewer than P classes are merged.
    A class is twice in a batch only if it has more groups of k than its cluster has batches. The
    batches of all clusters are shuffled, all ranks are in the same cluster at a time. Beware of
    one individual under two labels: here its images meet as negatives. To refresh the clusters,
    make a new sampler. Use it with the miner `batch_ohnm`.

    Args:
        labels: `(N,)` integers, -1 for no class; those rows are left out.
        clusters: `(N,)` integers from 0, one per class, such as `IdentityClusters.find` makes.
        batch_size: global, `P * k`. `seed`, `rank`, `world` as in `Shuffled`.
        k: images per class.

    Raises:
        ValueError: `batch_size` does not fit k, fewer than P classes, a class in two clusters.
    """

    def __init__(
        self,
        labels: Array,
        clusters: Array,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
        k: int = 4,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, world)
        of = self._prepare(clusters, k, 1)
        if len(of) < self.p:
            raise ValueError(
                f"A batch of {self.p} classes x {k} needs {self.p} classes, the table has "
                f"{len(of)}; raise k or lower batch_size."
            )
        of = _merged(of, self.p)
        self._arrange(of, self._needed(of))

    @staticmethod
    def find(vectors: Array, labels: Array, number: int = 10, seed: int = 0) -> Array:
        """`(N,)` cluster of each row's class by k-means over mean embeddings; 0 for label -1.

        Args:
            vectors: `(N, D)` unit embeddings of the rows, by a model trained before.
            labels: `(N,)` integers, -1 for no class.
            number: of clusters, at most the number of classes; the paper has 10 for 100K classes.
            seed: of the k-means.

        Raises:
            ValueError: not as many vectors as labels, or more clusters than classes.
        """
        classes = _Classes(check_labels(labels))
        if len(vectors) != len(labels) or not 1 <= number <= len(classes.counts):
            raise ValueError(
                f"Need a vector per label and 1 to {len(classes.counts)} clusters, got "
                f"{len(vectors)} for {len(labels)} labels and number={number}."
            )
        from sklearn.cluster import KMeans  # slow to import, and only needed here

        ones = np.ones(len(classes.rows), np.float32)
        shape = len(classes.counts), len(labels)
        sums = sparse.csr_array((ones, (classes.code, classes.rows)), shape) @ np.asarray(
            vectors, np.float32
        )
        means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        found = KMeans(number, n_init=1, random_state=seed).fit_predict(means)
        clusters = np.zeros(len(labels), np.int64)
        clusters[classes.rows] = found[classes.code]
        return clusters


def _per_class(classes: _Classes, groups: Array, rows: int) -> Array:
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


def _spread(counts: Array, missing: int, most: int) -> Array:
    """What to add to counts for a sum higher by `missing`: evenly, up to `most` while that fits.

    The first entries get the rest of a division.
    """
    extra = np.zeros_like(counts)
    while missing:
        room = np.maximum(most - counts - extra, 0)
        open_ = np.flatnonzero(room)
        if not len(open_):
            extra += missing // len(counts)
            extra[: missing % len(counts)] += 1
            break
        step = max(1, min(int(room[open_].min()), missing // len(open_)))
        open_ = open_[:missing]
        extra[open_] += step
        missing -= step * len(open_)
    return extra


def _merged(of: Array, least: int) -> Array:
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
