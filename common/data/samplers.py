"""Batch samplers that show every image in every epoch and agree on all ranks.

for rows in PK(labels, batch_size=64, seed=0, k=4): ...   # [(row, stream), ...]

A batch is a list of `(row, stream)`; `stream`, unique per draw, seeds that image's augmentation.
The global batches depend on (seed, epoch) alone; a rank takes its contiguous slice of each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator

import numpy as np

from common.data.folds import check_labels

Array = np.ndarray


class _Batches:
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
        for batch in range(self.start, self._batches):
            first = batch * self._draws // self._batches
            size = (batch + 1) * self._draws // self._batches - first
            low = first + size * self.rank // self.world
            high = first + size * (self.rank + 1) // self.world
            streams = range(stream + low, stream + high)
            yield list(zip(rows[low:high].tolist(), streams, strict=True))


class Shuffled(_Batches):
    """All rows in random order, label -1 included, in batches whose sizes differ by at most one.

    Args:
        labels: `(N,)` integers; only their number matters.
        batch_size: global; N images make `ceil(N / batch_size)` batches.
        seed: with the epoch, all that the order depends on.
        rank: this process; None is torchrun's, 0 without.
        world: number of processes; None is torchrun's, 1 without.

    Raises:
        ValueError: bad labels, or a rank would get an empty slice.
    """

    def __init__(
        self,
        labels: Array,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, world)
        self._cut(len(self.labels), math.ceil(len(self.labels) / batch_size))

    def _plan(self, rng: np.random.Generator) -> Array:
        return rng.permutation(len(self.labels))


class ClassBalanced(_Batches):
    """Every labelled row once, and extra draws that lift rare classes towards shares `n^power`.

    With N labelled rows an epoch has `T = N + round(extra * N)` draws. A class of n images gets
    `max(n, t * n^power)` of them, t such that they add up to T: the closest to the wished shares
    that leaves no image out. Fractions are rounded to a neighbouring integer, at random per epoch.
    The images of a class are drawn equally often, give or take one. Label -1 is left out.

    Args:
        labels: `(N,)` integers, -1 for no class.
        batch_size: global; sizes differ by at most one. `seed`, `rank`, `world` as in `Shuffled`.
        power: 0 aims at equally many draws per class, 1 keeps the natural shares.
        extra: draws beyond the first N, as a share of N; 0 lifts nothing.

    Raises:
        ValueError: bad labels or no class at all, or a rank would get an empty slice.
    """

    def __init__(
        self,
        labels: Array,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
        power: float = 0.0,
        extra: float = 1.0,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, world)
        if not 0 <= power <= 1 or extra < 0:
            raise ValueError(f"power must be in [0, 1] and extra >= 0, got {power} and {extra}.")
        self._classes = _Classes(self.labels)
        images = int(self._classes.counts.sum())
        self._extra = round(extra * images)
        self._cut(images + self._extra, math.ceil((images + self._extra) / batch_size))
        counts = self._classes.counts.astype(np.float64)
        self._lift = _level(counts, counts**power, images + self._extra) - counts

    def _plan(self, rng: np.random.Generator) -> Array:
        # Systematic sampling: one random offset rounds all fractions and keeps their exact sum.
        order = rng.permutation(len(self._lift))
        steps = np.floor(np.cumsum(self._lift[order]) + rng.random()).astype(np.int64)
        steps = np.minimum(steps, self._extra)
        steps[-1] = self._extra
        draws = self._classes.counts.copy()
        draws[order] += np.diff(steps, prepend=0)
        code = np.repeat(np.arange(len(draws)), draws)
        return rng.permutation(self._classes.take(rng, code, _numbers(draws)))


class PK(_Batches):
    """P classes x k images in every batch, and every labelled row at least once per epoch.

    An epoch shuffles each class, cuts it into groups of k (the last one filled from the start of
    the same class, a single image repeated k times), and deals all groups to batches of P; what is
    missing in the end are further groups of random classes. No class is twice in one batch, unless
    it has more groups than the epoch has batches. Every batch has exactly `batch_size` draws, the k
    of a class adjacent. (Classes drawn with replacement leave a third of the images unseen.)

    Args:
        labels: `(N,)` integers, -1 for no class.
        batch_size: global, `P * k` (plus the unknown ones). `seed`, `rank`, `world` as in
            `Shuffled`; when P is a multiple of `world`, a rank gets whole groups.
        k: images per class.
        unknown: share of each batch drawn evenly from the rows labelled -1 (new_whale), as many
            per epoch as its batches need, not all. 0 leaves them out.

    Raises:
        ValueError: `batch_size` does not fit k, fewer than P classes, no -1 for `unknown`.
    """

    def __init__(
        self,
        labels: Array,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
        k: int = 4,
        unknown: float = 0.0,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, world)
        if k < 1 or not 0 <= unknown < 1:
            raise ValueError(f"k must be at least 1 and unknown in [0, 1), got {k} and {unknown}.")
        self._strangers = round(batch_size * unknown)
        self.p, rest = divmod(batch_size - self._strangers, k)
        if rest or not self.p:
            raise ValueError(
                f"batch_size={batch_size}, {self._strangers} of it unknown, must hold P classes x "
                f"{k} images; change it or k."
            )
        self.k = k
        self._unknown = np.flatnonzero(self.labels < 0)
        if self._strangers and not len(self._unknown):
            raise ValueError(f"unknown={unknown} but no row is labelled -1; set it to 0.")
        self._classes = _Classes(self.labels)
        if len(self._classes.counts) < self.p:
            raise ValueError(
                f"A batch of {self.p} classes x {k} needs {self.p} classes, the table has "
                f"{len(self._classes.counts)}; raise k or lower batch_size."
            )
        self._groups = -(-self._classes.counts // k)
        batches = math.ceil(int(self._groups.sum()) / self.p)
        self._cut(batches * batch_size, batches)

    def _plan(self, rng: np.random.Generator) -> Array:
        order = rng.permutation(len(self._groups))
        groups = self._filled(order)
        code = np.repeat(order, groups[order])
        dealt = _deal(code, self.p, rng)  # (M, P)
        number = _numbers(groups[order])[dealt][..., None] * self.k + np.arange(self.k)
        code = np.broadcast_to(code[dealt][..., None], number.shape)
        rows = self._classes.take(rng, code, number)  # (M, P, k)
        strangers = self._strangers * len(rows)
        unknown = rng.permutation(self._unknown)[np.arange(strangers) % max(len(self._unknown), 1)]
        # In equal chunks, so that ranks that take whole chunks get their part of the unknown too.
        chunks = math.gcd(self.p, self._strangers)
        known, unknown = (x.reshape(len(rows), chunks, -1) for x in (rows, unknown))
        return np.concatenate([known, unknown], axis=2).ravel()

    def _filled(self, order: Array) -> Array:
        """`(C,)` groups per class with the extra ones that fill the last batch.

        They go round the first P classes of the random order while those fit in different batches.
        There is room: of their P * M places they need at most G, and P * M - G are missing.
        """
        first, batches = order[: self.p], len(self)
        missing = self.p * batches - int(self._groups.sum())
        room = np.clip(batches - self._groups[first], 0, missing)
        chosen = np.repeat(first, room)[np.argsort(_numbers(room), kind="stable")[:missing]]
        return np.asarray(self._groups + np.bincount(chosen, minlength=len(self._groups)))


class _Classes:
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


def _numbers(counts: Array) -> Array:
    """0 to n - 1 for every n of counts, one after another."""
    return np.asarray(np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts))


def _level(counts: Array, weights: Array, total: int) -> Array:
    """`max(counts, t * weights)` with the t for which they sum to `total`."""
    ratio = counts / weights
    order = np.argsort(ratio, kind="stable")
    # If the first i + 1 classes are lifted, t is what the others leave, over their weights.
    left = total - (counts.sum() - np.cumsum(counts[order]))
    level = left / np.cumsum(weights[order])
    lifted = np.argmax(level <= np.append(ratio[order][1:], np.inf))
    return np.asarray(np.maximum(counts, level[lifted] * weights))


def _deal(code: Array, p: int, rng: np.random.Generator) -> Array:
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
