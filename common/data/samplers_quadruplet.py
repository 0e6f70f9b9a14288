"""Batches of quadruplets: an image, another of its class, one of another class, an unknown one.

train.sampler: {name: quadruplets}              # batch_size: a multiple of 4
train.sampler: {name: quadruplets, unknown: 0}  # triplets: a multiple of 3
"""

from __future__ import annotations

import math

import numpy as np

from common.data.draws import Array, Batches, Classes


class Quadruplets(Batches):
    """[anchor, positive, negative, new_whale], each labelled row anchor once per epoch.

    Humpback 2019, first place. The positive is any other image of the anchor's class, the image
    itself (augmented once more) where there is no other; the negative any image of the other
    classes, frequent ones more often; unknown rows take turns over the epochs. What is missing in
    the last batch are further anchors, no row twice. Every batch has exactly `batch_size` draws,
    quadruplet after quadruplet; the global batches depend on (seed, epoch) alone. For triplet and
    sigmoid losses that want all three kinds of rows in each batch, in fixed shares.

    Args:
        labels: `(N,)` integers, -1 for no class.
        batch_size: global, a multiple of 3 + unknown. `seed`, `rank`, `world` as in `Shuffled`;
            when that multiple is one of `world` too, a rank gets whole quadruplets.
        unknown: rows labelled -1 in each; 0 makes triplets.

    Raises:
        ValueError: `batch_size` does not fit, a single class, no -1 for `unknown`, or a batch of
            more quadruplets than there are labelled rows.
    """

    def __init__(
        self,
        labels: Array,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
        unknown: int = 1,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, world)
        if unknown < 0:
            raise ValueError(f"unknown must be at least 0, got {unknown}.")
        self._find_unknown(0.0)
        if unknown and not len(self._unknown):
            raise ValueError(
                f"unknown={unknown} but no row is labelled -1; set it to 0 for triplets."
            )
        self.width = 3 + unknown
        self._per_batch, rest = divmod(batch_size, self.width)
        if rest or not self._per_batch:
            raise ValueError(
                f"batch_size={batch_size} must be a multiple of {self.width}: anchor, positive, "
                f"negative and {unknown} unknown."
            )
        self._classes = Classes(self.labels)
        images = len(self._classes.rows)
        if len(self._classes.counts) < 2:
            raise ValueError("There is one class: no image can be a negative.")
        if self._per_batch > images:
            raise ValueError(
                f"batch_size={batch_size} holds {self._per_batch} anchors, the table has {images} "
                "labelled rows; lower it."
            )
        batches = math.ceil(images / self._per_batch)
        self._cut(batches * batch_size, batches)

    def _plan(self, rng: np.random.Generator) -> Array:
        classes, images = self._classes, len(self._classes.rows)
        groups = len(self) * self._per_batch
        anchor = np.append(rng.permutation(images), rng.permutation(images)[: groups - images])
        code = classes.code[anchor]
        start, count = classes.starts[code], classes.counts[code]
        # One of the count - 1 others: a step of 1 to count - 1 round the class.
        step = 1 + (rng.random(groups) * (count - 1)).astype(np.int64)
        positive = start + (anchor - start + step) % count
        # One of the rows outside: the class's own, adjacent ones are jumped over.
        negative = (rng.random(groups) * (images - count)).astype(np.int64)
        negative += np.where(negative >= start, count, 0)
        known = classes.rows[np.stack([anchor, positive, negative], 1)]
        strangers = self._draw_unknown(groups * (self.width - 3)).reshape(groups, -1)
        return np.concatenate([known, strangers], 1).ravel()
