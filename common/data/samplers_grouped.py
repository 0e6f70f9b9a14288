"""Batch samplers that choose which classes meet: balanced categories, clusters of look-alikes.

train.sampler: {name: category_balanced, k: 4, c: 2, source: categories.csv}
train.sampler: {name: identity_clusters, k: 4, number: 20, every: 2}

They keep the promises of `common.data.samplers`: every labelled row in every epoch, classes of one
image too, and global batches that depend on (seed, epoch) alone, of which a rank takes its slice.
Clusters of the model's present vectors are found anew every so many epochs; `state_dict` holds
them, so that a training resumed within an epoch goes on with the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from common.data.draws import Array, Batches, Classes, deal, levelled, numbers, spread
from common.data.grouping import cluster_classes, merged, per_class

# A group for each row, or a function of source and number that finds them when it is called.
Groups = Array | Callable[[str, int], Array]
MOVING = ("embeddings", "centers")  # sources that change as the model learns


class _Cells(Batches):
    """Batches of c cells; a cell is p x k images of p classes of one category or cluster."""

    _arrange_groups: Callable[[Array], None]

    def __init__(
        self,
        labels: Array,
        groups: Groups,
        batch_size: int,
        seed: int,
        rank: int | None,
        world: int | None,
        k: int,
        c: int,
        source: str,
        number: int,
        every: int,
        unknown: float,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, world)
        if k < 1 or c < 1 or every < 1:
            raise ValueError(f"k, c and every must be at least 1, got {k}, {c} and {every}.")
        self._find_unknown(unknown)
        self._strangers = round(batch_size * unknown)
        self.k, self.c, self.every = k, c, every
        self.p, rest = divmod(batch_size - self._strangers, k * c)
        if rest or not self.p:
            strange = f" without its {self._strangers} unknown" if self._strangers else ""
            raise ValueError(
                f"batch_size={batch_size}{strange} must be a multiple of {c * k} = {c} x {k} "
                "images; change it or k."
            )
        self._classes = Classes(self.labels)
        self._groups = -(-self._classes.counts // k)
        self._of: Array | None = None  # (C,) group of each class
        self._found_at = -1
        self._find: Callable[[], Array] | None = None
        if callable(groups) and source in MOVING:
            self._find = lambda: groups(source, number)
        else:
            self._group(groups(source, number) if callable(groups) else groups)

    def _group(self, groups: Array) -> None:
        self._regroup(per_class(self._classes, groups, len(self.labels)))

    def _regroup(self, of: Array) -> None:
        self._of = of
        self._arrange_groups(of)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose what the next iteration gives, and find the groups anew when that is due."""
        due = start == 0 and epoch % self.every == 0 and epoch != self._found_at
        if self._find is not None and (due or self._of is None):
            if self._of is not None:  # epochs will be of another length, the unknown's turns go on
                self._since = epoch, self._drawn_before(epoch, self._strangers * len(self))
            self._group(self._find())
            self._found_at = epoch
        super().set_epoch(epoch, start)

    def __len__(self) -> int:
        """Batches per epoch; another number after groups were found anew."""
        if self._of is None:
            self.set_epoch(self.epoch, self.start)
        return super().__len__()

    def state_dict(self) -> dict[str, Any]:
        """The groups that were found, in which epoch, and what came before; empty if they stay."""
        if self._find is None or self._of is None:
            return {}
        since, drawn = self._since
        found = {"groups": torch.from_numpy(self._of), "found_at": self._found_at}
        return {**found, "since": since, "unknown_drawn": drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the groups of a saved state.

        Raises:
            ValueError: groups of another number of classes.
        """
        if not state or self._find is None:
            return
        if len(state["groups"]) != len(self._groups):
            raise ValueError(
                f"The state has groups of {len(state['groups'])} classes, the table has "
                f"{len(self._groups)} classes: was it saved with another table?"
            )
        self._regroup(state["groups"].numpy())
        self._found_at = int(state["found_at"])
        self._since = int(state["since"]), int(state["unknown_drawn"])

    def _needed(self, of: Array) -> Array:
        """Cells that hold all groups of each category or cluster."""
        return -(-np.bincount(of, self._groups).astype(np.int64) // self.p)

    def _arrange(self, of: Array, cells: Array) -> None:
        """Take the number of each class's category or cluster, and how often to draw those."""
        self._members = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])
        self._number = cells
        batches = int(cells.sum()) // self.c
        self._cut(batches * self.batch_size, batches)

    def _plan(self, rng: np.random.Generator) -> Array:
        order = rng.permutation(len(self._number))
        parts = [self._split(kind, rng) for kind in order]
        dealt = deal(np.repeat(order, self._number[order]), self.c, rng)  # (M, c)
        code, number = (np.concatenate(x)[dealt][..., None] for x in zip(*parts, strict=True))
        number = number * self.k + np.arange(self.k)  # (M, c, p, k)
        rows = self._classes.take(rng, np.broadcast_to(code, number.shape), number)
        return self._add_unknown(rows, self._strangers, self.c * self.p)

    def _split(self, kind: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """`(cells, p)` class of each group of k images, and the group's number in the class."""
        order, cells = rng.permutation(self._members[kind]), int(self._number[kind])
        groups = self._groups[order]
        groups = groups + spread(groups, cells * self.p - int(groups.sum()), cells)
        code = np.repeat(order, groups)
        dealt = deal(code, self.p, rng)
        return code[dealt], numbers(groups)[dealt]


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
        labels: `(N,)` integers, -1 for no class.
        groups: offered by the pipeline; or `(N,)` integers from 0, one per class, which stay.
        batch_size: global, `c * (P / c) * k` (plus the unknown ones). `seed`, `rank`, `world` as in
            `Shuffled`; when c is a multiple of `world`, a rank gets whole categories.
        k: images per class.
        c: categories per batch.
        source: a csv file with a category per label (`file.csv`, or `file.csv:column`), looked for
            in the data folder; or, where nobody named categories, embeddings or centers for
            clusters of classes as in `IdentityClusters`.
        number: of clusters, for embeddings and centers.
        every: epochs between two searches for clusters.
        unknown: as in `PK`.

    Raises:
        ValueError: `batch_size` does not fit, fewer than c categories, a class in two categories,
            no -1 for `unknown`.
    """

    def __init__(
        self,
        labels: Array,
        groups: Groups,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
        k: int = 4,
        c: int = 2,
        source: str = "embeddings",
        number: int = 10,
        every: int = 1,
        unknown: float = 0.0,
    ) -> None:
        super().__init__(
            labels, groups, batch_size, seed, rank, world, k, c, source, number, every, unknown
        )

    def _arrange_groups(self, of: Array) -> None:
        cells, c = self._needed(of), self.c
        if len(cells) < c:
            raise ValueError(f"c={c} categories per batch, but there are {len(cells)}; lower c.")
        total = c * max(-(-int(cells.sum()) // c), int(cells.max()))
        # No level is above the number of batches, so a category need not be twice in one.
        level = levelled(cells.astype(np.float64), np.ones(len(cells)), total)
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
    one individual under two labels: here its images meet as negatives. Use it with the miner
    `batch_ohnm`.

    Args:
        labels: `(N,)` integers, -1 for no class.
        groups: offered by the pipeline; or `(N,)` integers from 0, one per class, which stay, such
            as `IdentityClusters.find` makes.
        batch_size: global, `P * k` (plus the unknown ones). `seed`, `rank`, `world` as in
            `Shuffled`.
        k: images per class.
        source: what classes are clustered by: embeddings, the mean of the present model's for a few
            images of each class; centers, those of the head, which cost nothing and mean nothing
            before it has learnt; or a csv as in `CategoryBalanced`.
        number: of clusters; the paper has 10 for 100K classes.
        every: epochs between two searches for clusters.
        unknown: as in `PK`.

    Raises:
        ValueError: `batch_size` does not fit k, fewer than P classes, a class in two clusters, no
            -1 for `unknown`.
    """

    def __init__(
        self,
        labels: Array,
        groups: Groups,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
        k: int = 4,
        source: str = "embeddings",
        number: int = 10,
        every: int = 1,
        unknown: float = 0.0,
    ) -> None:
        super().__init__(
            labels, groups, batch_size, seed, rank, world, k, 1, source, number, every, unknown
        )
        if len(self._groups) < self.p:
            raise ValueError(
                f"A batch of {self.p} classes x {k} needs {self.p} classes, the table has "
                f"{len(self._groups)}; raise k or lower batch_size."
            )

    def _arrange_groups(self, of: Array) -> None:
        of = merged(of, min(self.p, len(of)))
        self._arrange(of, self._needed(of))

    find = staticmethod(cluster_classes)
