"""Batch samplers that show every image in every epoch and agree on all ranks.

for rows in PK(labels, batch_size=64, seed=0, k=4): ...   # [(row, stream), ...]

A batch is a list of `(row, stream)`; `stream`, unique per draw, seeds that image's augmentation.
The global batches depend on (seed, epoch) alone; a rank takes its contiguous slice of each.
"""

from __future__ import annotations

import math

import numpy as np

from common.data.draws import Array, Batches, Classes, deal, levelled, numbers


class Shuffled(Batches):
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


class ClassBalanced(Batches):
    """Every labelled row once, and extra draws that lift rare classes towards shares `n^power`.

    With N labelled rows an epoch has `T = N + round(extra * N)` draws. A class of n images gets
    `max(n, t * n^power)` of them, t such that they add up to T: the closest to the wished shares
    that leaves no image out. Fractions are rounded to a neighbouring integer, at random per epoch.
    The images of a class are drawn equally often, give or take one. With `extra` 0 this is a
    shuffle of the labelled rows, with `unknown` one that has a wished share of unknown ones.

    Args:
        labels: `(N,)` integers, -1 for no class.
        batch_size: global; sizes differ by at most one. `seed`, `rank`, `world` as in `Shuffled`.
        power: 0 aims at equally many draws per class, 1 keeps the natural shares.
        extra: draws beyond the first N, as a share of N; 0 lifts nothing.
        unknown: share of all draws that are of rows labelled -1 (new_whale), evenly over the
            batches; all take their turn, over several epochs if need be. 0 leaves them out.

    Raises:
        ValueError: bad labels or no class at all, no -1 for `unknown`, or a rank would get an
            empty slice.
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
        unknown: float = 0.0,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, world)
        self._find_unknown(unknown)
        if not 0 <= power <= 1 or extra < 0:
            raise ValueError(f"power must be in [0, 1] and extra >= 0, got {power} and {extra}.")
        self._classes = Classes(self.labels)
        images = int(self._classes.counts.sum())
        self._extra = round(extra * images)
        self._strangers = round((images + self._extra) * unknown / (1 - unknown))
        draws = images + self._extra + self._strangers
        self._cut(draws, math.ceil(draws / batch_size))
        counts = self._classes.counts.astype(np.float64)
        self._lift = levelled(counts, counts**power, images + self._extra) - counts

    def _plan(self, rng: np.random.Generator) -> Array:
        # Systematic sampling: one random offset rounds all fractions and keeps their exact sum.
        order = rng.permutation(len(self._lift))
        steps = np.floor(np.cumsum(self._lift[order]) + rng.random()).astype(np.int64)
        steps = np.minimum(steps, self._extra)
        steps[-1] = self._extra
        draws = self._classes.counts.copy()
        draws[order] += np.diff(steps, prepend=0)
        code = np.repeat(np.arange(len(draws)), draws)
        rows = np.empty(self._draws, np.int64)
        strange = np.zeros(self._draws, bool)
        spread = (np.arange(self._strangers) + 0.5) * (self._draws / max(self._strangers, 1))
        strange[spread.astype(np.int64)] = True
        rows[strange] = self._draw_unknown(self._strangers)
        rows[~strange] = rng.permutation(self._classes.take(rng, code, numbers(draws)))
        return rows


class PK(Batches):
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
        unknown: share of each batch drawn from the rows labelled -1 (new_whale), which take turns
            over the epochs. 0 leaves them out.

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
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        self._find_unknown(unknown)
        self._strangers = round(batch_size * unknown)
        self.p, rest = divmod(batch_size - self._strangers, k)
        if rest or not self.p:
            raise ValueError(
                f"batch_size={batch_size}, {self._strangers} of it unknown, must hold P classes x "
                f"{k} images; change it or k."
            )
        self.k = k
        self._classes = Classes(self.labels)
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
        dealt = deal(code, self.p, rng)  # (M, P)
        number = numbers(groups[order])[dealt][..., None] * self.k + np.arange(self.k)
        code = np.broadcast_to(code[dealt][..., None], number.shape)
        rows = self._classes.take(rng, code, number)  # (M, P, k)
        return self._add_unknown(rows, self._strangers, self.p)

    def _filled(self, order: Array) -> Array:
        """`(C,)` groups per class with the extra ones that fill the last batch.

        They go round the first P classes of the random order while those fit in different batches.
        There is room: of their P * M places they need at most G, and P * M - G are missing.
        """
        first, batches = order[: self.p], len(self)
        missing = self.p * batches - int(self._groups.sum())
        room = np.clip(batches - self._groups[first], 0, missing)
        chosen = np.repeat(first, room)[np.argsort(numbers(room), kind="stable")[:missing]]
        return np.asarray(self._groups + np.bincount(chosen, minlength=len(self._groups)))
