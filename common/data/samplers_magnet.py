"""The batches of the magnet loss: a cluster of one class and the clusters of others nearest to it.

loss: [{name: magnet}]
train.sampler: {name: magnet_clusters, k: 3, rows: 4}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from common.data.draws import Array, Batches, Classes


class _Looks(Protocol):
    """What finds the clusters; `common.engine.grouping.Grouping` does."""

    def looks(self, k: int, count: int) -> tuple[Array, Array]:
        """`(N,)` cluster of each row, -1 for label -1; `(L, R)` nearest of other classes, or -1."""


class MagnetClusters(Batches):
    """m clusters x `rows` images: one cluster, those of other classes nearest to it; no row missed.

    Rippel et al., ICLR 2016, section 3.2: every class is split into k looks by k-means++ on the
    present vectors, found anew every so many epochs. A batch begins with a random cluster, to which
    come the nearest ones of other classes that still have images for this epoch; when these run
    out, half the batch is the nearest all the same and the rest is any that waits. A class is in a
    batch with one of its clusters only, so `magnet` takes each class of the batch for one cluster.
    Unlike in the paper, where the first cluster is drawn in proportion to its last loss and an
    image may never come, every labelled image comes in every epoch, some twice. Finding the
    clusters embeds all images.

    Args:
        labels: `(N,)` integers, -1 for no class; those rows are left out.
        groups: offered by the pipeline: finds the clusters, see `_Looks`.
        batch_size: global, `m * rows`; the paper has 12 clusters of 4. `seed`, `rank`, `world` as
            in `Shuffled`.
        k: clusters per class; the paper has 2 to 8.
        rows: images of each cluster in a batch.
        every: epochs between two searches for clusters.

    Raises:
        ValueError: `batch_size` does not fit rows, fewer classes than clusters in a batch.
    """

    def __init__(
        self,
        labels: Array,
        groups: _Looks,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
        k: int = 3,
        rows: int = 4,
        every: int = 1,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, world)
        if min(k, rows, every) < 1:
            raise ValueError(f"k, rows and every must be at least 1, got {k}, {rows} and {every}.")
        self.m, rest = divmod(batch_size, rows)
        if rest or not self.m:
            raise ValueError(f"batch_size={batch_size} must be a multiple of rows={rows}.")
        classes = len(Classes(self.labels).counts)
        if classes < self.m:
            raise ValueError(
                f"A batch of {self.m} clusters needs as many classes, the table has {classes}; "
                "raise rows or lower batch_size."
            )
        self.k, self.rows, self.every = k, rows, every
        self._find, self._found_at = groups, -1
        self._clusters: Classes | None = None
        self._planned: tuple[int, Array] | None = None  # the epoch, and its (batches, m) clusters

    def _take(self, of: Array, near: Array) -> None:
        known = np.flatnonzero(self.labels >= 0)
        if of.shape != self.labels.shape or not (of[known] >= 0).all():
            raise ValueError(
                f"Need a cluster for each of the {len(known)} labelled of {len(self.labels)} rows; "
                "was the state saved with another table?"
            )
        self._of, self._near, self._planned = of, near, None
        self._clusters = Classes(of)
        self._owner = self.labels[self._clusters.rows[self._clusters.starts]]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose what the next iteration gives, and find the clusters anew when that is due."""
        due = start == 0 and epoch % self.every == 0 and epoch != self._found_at
        if due or self._clusters is None:
            self._take(*self._find.looks(self.k, 8 * self.m))
            self._found_at = epoch
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._meet(epoch)
            batches = len(self._planned[1])
            self._cut(batches * self.batch_size, batches)
        super().set_epoch(epoch, start)

    def __len__(self) -> int:
        """Batches per epoch; another number in another epoch."""
        if self._planned is None:
            self.set_epoch(self.epoch, self.start)
        return super().__len__()

    def state_dict(self) -> dict[str, Any]:
        """The clusters that were found, and in which epoch."""
        if self._clusters is None:
            return {}
        found = {"of": torch.from_numpy(self._of), "near": torch.from_numpy(self._near)}
        return {**found, "found_at": self._found_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the clusters of a saved state.

        Raises:
            ValueError: clusters of another table.
        """
        if state:
            self._take(state["of"].numpy(), state["near"].numpy())
            self._found_at = int(state["found_at"])

    def _meet(self, epoch: int) -> Array:
        """`(batches, m)` clusters that meet, each as often as it has groups of `rows`, or more."""
        assert self._clusters is not None
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, 2])))
        left = -(-self._clusters.counts // self.rows)
        queue, found = rng.permutation(np.repeat(np.arange(len(left)), left)), []
        for i, seed in enumerate(queue):
            if not left[seed]:
                continue
            near = self._near[seed][self._near[seed] >= 0]
            waits = left[near] > 0
            chosen = self._one_per_class(seed, near[waits])
            if len(chosen) < self.m:
                # Half a batch is near, at the end of an epoch too; the rest is whatever waits.
                nearest = self._one_per_class(seed, np.concatenate([chosen[1:], near[~waits]]))
                nearest = nearest[: max(len(chosen), self.m // 2)]
                others = queue[i : i + 8 * self.m]
                order = [nearest[1:], others[left[others] > 0]]
                chosen = self._one_per_class(seed, np.concatenate(order))
            if len(chosen) < self.m:  # the end: any other class will do
                order = [chosen[1:], near, rng.permutation(len(left))]
                chosen = self._one_per_class(seed, np.concatenate(order))
            left[chosen] = np.maximum(left[chosen] - 1, 0)
            found.append(chosen)
        return np.stack(found)

    def _one_per_class(self, seed: int, near: Array) -> Array:
        """The seed and the first of the near ones of each other class, `m` in all if there are."""
        order = np.concatenate([[seed], near]).astype(np.int64)
        first = np.sort(np.unique(self._owner[order], return_index=True)[1])
        return np.asarray(order[first[: self.m]])

    def _plan(self, rng: np.random.Generator) -> Array:
        assert self._planned is not None
        assert self._clusters is not None
        code = self._planned[1].ravel()
        # How often a cluster was there before, which tells whose images are next.
        order = np.argsort(code, kind="stable")
        number = np.empty_like(code)
        number[order] = np.arange(len(code)) - np.searchsorted(code[order], code[order])
        number = number[:, None] * self.rows + np.arange(self.rows)
        return self._clusters.take(
            rng, np.broadcast_to(code[:, None], number.shape), number
        ).ravel()
