"""What the batch samplers share: cutting into batches and ranks, classes, unknown rows, dealing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np

from common.data.folds import check_labels

Array = np.ndarray


class Batches:
    """Cuts the draws of an epoch into batches; subclasses plan the draws."""

    _plan: Callable[[np.random.Generator], Array]

    def __init__(
        self, labels: Array, batch_size: int, seed: int, rank: int | None, world: int | None
    ) -> None:
        self.labels = check_labels(labels)
        # As torchrun tells them: a default of 0 of 1 would let all ranks train on all images.
        rank = int(os.environ.get("RANK", "0")) if rank is None else rank
        world = int(os.environ.get("WORLD_SIZE", "1")) if world is None else world
        if not 0 <= rank < world or seed < 0:
            raise ValueError(f"Need 0 <= rank < world and seed >= 0, got {rank}, {world}, {seed}.")
        if batch_size < world:
            raise ValueError(
                f"batch_size={batch_size} is for all {world} ranks together; raise it."
            )
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.epoch = self.start = 0
        self._since = (0, 0)  # an epoch, and how many unknown rows were drawn before it

    def _find_unknown(self, share: float) -> None:
        """The rows labelled -1, if a share of the draws shall be of them.

        Raises:
            ValueError: share outside [0, 1), or no such row.
        """
        self._unknown = np.flatnonzero(self.labels < 0)
        if not 0 <= share < 1:
            raise ValueError(f"unknown is a share in [0, 1), got {share}.")
        if share and not len(self._unknown):
            raise ValueError(f"unknown={share} but no row is labelled -1; set it to 0.")

    def _draw_unknown(self, count: int) -> Array:
        """`(count,)` rows labelled -1: all in turn, an epoch goes on where the last one stopped."""
        if not count:
            return self._unknown[:0]
        place = self._drawn_before(self.epoch, count) + np.arange(count)
        rounds, place = np.divmod(place, len(self._unknown))
        first, last = int(rounds[0]), int(rounds[-1])
        seeds = [np.random.SeedSequence([self.seed, turn, 1]) for turn in range(first, last + 1)]
        orders = [np.random.default_rng(seed).permutation(self._unknown) for seed in seeds]
        return np.asarray(np.stack(orders)[rounds - first, place])

    def _drawn_before(self, epoch: int, count: int) -> int:
        """How many unknown rows came before an epoch, of which each has `count` since `_since`."""
        since, drawn = self._since if epoch >= self._since[0] else (0, 0)
        return drawn + (epoch - since) * count

    def _add_unknown(self, rows: Array, count: int, groups: int) -> Array:
        """Draws of M batches of `(M, ...)` rows in `groups`, with `count` unknown ones in each.

        Evenly between the groups, so that each rank gets its part of the unknown too.
        """
        rows = rows.reshape(len(rows), -1)
        unknown = self._draw_unknown(count * len(rows)).reshape(len(rows), count)
        after = (np.arange(count) + 1) * groups // max(count, 1) * (rows.shape[1] // groups)
        return np.insert(rows, after, unknown, axis=1).ravel()

    def _cut(self, draws: int, batches: int) -> None:
        if draws // batches < self.world:
            raise ValueError(
                f"{draws} images in {batches} batches leave some of the {self.world} ranks without "
                "an image; set batch_size to at least twice the number of ranks."
            )
        self._draws, self._batches = draws, batches

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose what the next iteration gives: `epoch`, without its first `start` batches."""
        if epoch < 0 or not 0 <= start <= len(self):
            raise ValueError(
                f"No epoch {epoch} from batch {start}: an epoch has {len(self)}; was the state "
                "saved with another batch size or table?"
            )
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches per epoch, those skipped by `start` included."""
        return self._batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, self.epoch])))
        rows = self._plan(rng)  # (draws,), batch after batch
        stream = self.epoch * 2**32
        for batch in range(self.start, len(self)):
            first = batch * self._draws // self._batches
            size = (batch + 1) * self._draws // self._batches - first
            low = first + size * self.rank // self.world
            high = first + size * (self.rank + 1) // self.world
            streams = range(stream + low, stream + high)
            yield list(zip(rows[low:high].tolist(), streams, strict=True))


class Classes:
    """The labelled rows, sorted by class."""

    def __init__(self, labels: Array) -> None:
        known = np.flatnonzero(labels >= 0)
        if not len(known):
            raise ValueError("All labels are -1: there is no class to draw from; use `shuffled`.")
        _, code, self.counts = np.unique(labels[known], return_inverse=True, return_counts=True)
        order = np.argsort(code, kind="stable")
        self.rows, self.code = known[order], code[order].astype(np.int32)
        self.starts = np.cumsum(self.counts) - self.counts

    def take(self, rng: np.random.Generator, code: Array, number: Array) -> Array:
        """Rows by class and running number; a class is shuffled, then taken cyclically."""
        mixed = rng.permutation(len(self.rows))
        # A stable sort of integers is the same on every machine of one job.
        mixed = mixed[np.argsort(self.code[mixed], kind="stable")]
        return np.asarray(self.rows[mixed[self.starts[code] + number % self.counts[code]]])


def frequent(labels: Array, least: int) -> Array:
    """Rows of the classes with at least so many rows, and those labelled -1.

    Raises:
        ValueError: no class has so many.
    """
    known = labels >= 0
    counts = np.bincount(labels[known], minlength=1)
    kept = ~known | (counts[np.where(known, labels, 0)] >= least)
    if not (kept & known).any():
        raise ValueError(f"min_images={least}, but the largest class has {counts.max()} images.")
    return np.flatnonzero(kept)


def numbers(counts: Array) -> Array:
    """0 to n - 1 for every n of counts, one after another."""
    return np.asarray(np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts))


def levelled(counts: Array, weights: Array, total: int) -> Array:
    """`max(counts, t * weights)` with the t for which they sum to `total`."""
    ratio = counts / weights
    order = np.argsort(ratio, kind="stable")
    # If the first i + 1 classes are lifted, t is what the others leave, over their weights.
    left = total - (counts.sum() - np.cumsum(counts[order]))
    level = left / np.cumsum(weights[order])
    lifted = np.argmax(level <= np.append(ratio[order][1:], np.inf))
    return np.asarray(np.maximum(counts, level[lifted] * weights))


def deal(code: Array, p: int, rng: np.random.Generator) -> Array:
    """`(M, P)` numbers of the groups in each of M batches; `code` is their class, sorted in runs.

    Slot by slot: the next M groups go to the M batches in random order. Only the class that began
    in an earlier slot could meet itself: its groups go first, to the batches with least of it.
    """
    batches = len(code) // p
    table = np.empty((batches, p), np.int64)
    load, open_class = np.zeros(batches, np.int64), -1
    for slot, block in enumerate(code.reshape(p, batches)):
        order = rng.permutation(batches)
        head = np.count_nonzero(block == open_class)
        if head:
            order = order[np.argsort(load[order], kind="stable")]
            order[head:] = rng.permutation(order[head:])
        table[order, slot] = slot * batches + np.arange(batches)
        if block[-1] != open_class:
            load[:] = 0
        load[order[block == block[-1]]] += 1
        open_class = block[-1]
    return table


def spread(counts: Array, missing: int, most: int) -> Array:
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
