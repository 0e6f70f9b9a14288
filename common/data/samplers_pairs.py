"""The batches of a siamese network: two images of a class, each with a hard negative of its own.

loss: [{name: siamese}]
train.sampler: {name: assigned_pairs, every: 2}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from common.data.draws import Array, Batches, Classes, numbers

_UNIT = 4  # two of a class and the negative of each


class _Partners(Protocol):
    """What finds the negatives; `common.engine.grouping.Grouping` does."""

    def partners(
        self, noise: Sequence[float], *, by: str, unknown: bool, limit: int, seed: Sequence[int]
    ) -> Array:
        """`(rounds, N)` row of another class for each labelled row, see `hard_partners`."""


class AssignedPairs(Batches):
    """m fours: two images of a class, and the negative that a linear assignment gives to each.

    Piotte's "Whale Recognition Model" (Kaggle, 2018), which Humpback Whale 2019, 4th place, took
    over: all images are embedded and compared, and every labelled image gets a different one of
    another class so that the sum of the similarities is as high as can be (a linear assignment):
    hard negatives, and not the same few for everybody. Noise on the similarities falls over the
    epochs. Positives are a random round trip through each class; a class of one image is its own
    positive, augmented differently (the original leaves those out). So an epoch has every labelled
    image once as itself and once as a negative. In the original a batch is of fixed pairs, here the
    loss compares all images of a batch.

    Args:
        labels: `(N,)` integers, -1 for no class.
        groups: offered by the pipeline: finds the negatives, see `_Partners`.
        batch_size: global, a multiple of 4; when it is one of `4 * world`, a rank gets whole fours.
            `seed`, `rank`, `world` as in `Shuffled`.
        noise: height of the noise in the first epoch, beside similarities between 0 and 1. The
            original starts with 1,000, which is luck, for 10 epochs, and goes from 100 to 1 in
            50 more; its network starts from nothing.
        decay: factor on it per epoch; the original's is .912.
        floor: where it ends; the original ends with .25.
        every: epochs between two looks at the present embeddings; in between the assignment is
            solved again without the pairs that it gave. The original has 5.
        by: `head`: the probabilities of the loss that compares pairs; `cosine`: of the embeddings.
        unknown: rows labelled -1 are negatives too; they come where they are hard.
        limit: most rows that are assigned at once; see `common.data.assignment`.

    Raises:
        ValueError: `batch_size` is no multiple of 4, fewer than two classes, a number out of range.
    """

    def __init__(
        self,
        labels: Array,
        groups: _Partners,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world: int | None = None,
        noise: float = 1.0,
        decay: float = 0.8,
        floor: float = 0.25,
        every: int = 2,
        by: str = "head",
        unknown: bool = False,
        limit: int = 4096,
    ) -> None:
        super().__init__(labels, batch_size, seed, rank, world)
        if batch_size % _UNIT:
            raise ValueError(f"batch_size={batch_size} must be a multiple of {_UNIT}.")
        if not (0 <= floor <= noise and 0 < decay <= 1) or every < 1 or limit < 2:
            raise ValueError(
                "Need 0 <= floor <= noise, 0 < decay <= 1, every >= 1 and limit >= 2, got "
                f"{floor}, {noise}, {decay}, {every}, {limit}."
            )
        if by not in ("head", "cosine"):
            raise ValueError(f"by={by!r}: choose head or cosine.")
        self._find_unknown(0.0)
        self._classes = Classes(self.labels)
        if len(self._classes.counts) < 2 - (unknown and len(self._unknown) > 0):
            raise ValueError("assigned_pairs: all images are of one class, nothing is a negative.")
        self.noise, self.decay, self.floor, self.every = noise, decay, floor, every
        self.by, self.strange, self.limit = by, unknown, limit
        self._find, self._found_at = groups, -1
        self._partners: Array | None = None  # (every, N)
        self._units = -(-self._classes.counts // 2)
        self._per_batch = batch_size // _UNIT
        batches = math.ceil(int(self._units.sum()) / self._per_batch)
        self._cut(batches * batch_size, batches)

    def amplitude(self, epoch: int) -> float:
        """Height of the noise in an epoch."""
        return max(self.floor, self.noise * self.decay**epoch)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose what the next iteration gives, and find the negatives anew when that is due."""
        super().set_epoch(epoch, start)
        if self._partners is None or not 0 <= epoch - self._found_at < self.every:
            noise = [self.amplitude(epoch + turn) for turn in range(self.every)]
            self._take(
                self._find.partners(
                    noise,
                    by=self.by,
                    unknown=self.strange,
                    limit=self.limit,
                    seed=[self.seed, epoch, 3],
                )
            )
            self._found_at = epoch

    def _take(self, partners: Array) -> None:
        if partners.shape != (self.every, len(self.labels)):
            raise ValueError(
                f"Need a negative for each of {len(self.labels)} rows and {self.every} epochs, got "
                f"{partners.shape}; was the state saved with another table or another `every`?"
            )
        self._partners = partners

    def state_dict(self) -> dict[str, Any]:
        """The negatives that were found, and in which epoch."""
        if self._partners is None:
            return {}
        return {"partners": torch.from_numpy(self._partners), "found_at": self._found_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the negatives of a saved state.

        Raises:
            ValueError: of another table.
        """
        if state:
            self._take(state["partners"].numpy())
            self._found_at = int(state["found_at"])

    def _plan(self, rng: np.random.Generator) -> Array:
        if self._partners is None:
            self.set_epoch(self.epoch, self.start)
        assert self._partners is not None
        code = np.repeat(np.arange(len(self._units)), self._units)
        number = 2 * numbers(self._units)[:, None] + np.arange(2)
        near = self._classes.take(rng, np.broadcast_to(code[:, None], number.shape), number)
        far = self._partners[self.epoch - self._found_at][near]
        order = rng.permutation(len(near))
        order = np.resize(order, len(self) * self._per_batch)  # the last batch from the start
        return np.concatenate([near, far], 1)[order].ravel()
