"""Hard negatives by linear assignment: every image gets another one, and nobody is taken twice.

Nearest negatives alone would be the same few images over and over. Piotte, "Whale Recognition
Model" (Kaggle, 2018), with the exact solver of scipy (Crouse, IEEE TAES 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from common.data.draws import Array
from common.lazy import Lazy

optimize = Lazy("scipy.optimize")

_FORBIDDEN, _TAKEN = -1e12, -1e6  # below any score with its noise; a pair may return before a class


def hard_partners(
    labels: Array,
    vectors: Array,
    score: Callable[[Array], Array],
    noise: Sequence[float],
    *,
    limit: int = 4096,
    seed: int | Sequence[int] = 0,
) -> Array:
    """`(rounds, N)` int64: a row of another class for each labelled row, -1 for label -1.

    In each round the partners of a block are different rows, and of all ways to choose them the one
    with the highest sum of scores; no pair comes twice in the rounds while others are left. Rows
    labelled -1 may be partners, and have none. A class of more than half of its block leaves too
    few partners: rows that find none share the most similar one of another class.

    Args:
        labels: `(N,)` integers, -1 for rows that are of none of the classes.
        vectors: `(N, D)`, by which more than `limit` rows are cut into blocks of look-alikes.
        score: rows -> their `(n, n)` scores with each other, symmetric; higher is more similar.
        noise: of each round, the height of the uniform noise that is added to all scores.
        limit: rows of a block. A block of 4,096 takes a second or two and 400 MB; time grows with
            the third power. Cuts are new in each call, so that neighbors meet in the end.
        seed: of noise and cuts.

    Raises:
        ValueError: fewer than two classes (-1 counts as one), or limit below 2.
    """
    if len(np.unique(labels)) < 2 or limit < 2:
        raise ValueError(
            f"Hard negatives need two classes and blocks of two rows, got {len(np.unique(labels))} "
            f"and limit={limit}."
        )
    rng = np.random.default_rng(seed)
    found = np.full((len(noise), len(labels)), -1, np.int64)
    for part in blocks(vectors, limit, rng):
        asking = np.flatnonzero(labels[part] >= 0)
        same = labels[part][asking, None] == labels[part]
        scores = np.asarray(score(part), np.float64)[asking]
        taken = np.zeros(same.shape, bool)
        for turn, height in enumerate(noise):
            gain = scores + height * rng.random(scores.shape)
            gain[taken] += _TAKEN
            gain[same] = _FORBIDDEN
            row, column = optimize.linear_sum_assignment(gain, maximize=True)
            left = same[row, column]  # too many of one class
            column[left] = gain[row[left]].argmax(1)
            some = ~same[row, column]
            found[turn, part[asking[row[some]]]] = part[column[some]]
            taken[row, column] = True
            place = np.full(len(part), -1)
            place[asking] = np.arange(len(asking))
            back = place[column] >= 0
            taken[place[column[back]], asking[row[back]]] = True
        alone = part[asking][found[0, part[asking]] < 0]  # all of the block are of one class
        others = np.flatnonzero(labels != labels[alone[0]]) if len(alone) else alone
        if len(alone):
            found[:, alone] = rng.choice(others, (len(noise), len(alone)))
    return found


def blocks(vectors: Array, limit: int, rng: np.random.Generator) -> list[Array]:
    """Rows in parts of at most `limit`, look-alikes together: halved across random directions.

    A random projection tree (Dasgupta and Freund, STOC 2008), whose directions are differences of
    two rows. Halves are equal, or differ by one.
    """
    waiting, found = [np.arange(len(vectors))], []
    while waiting:
        part = waiting.pop()
        if len(part) <= limit:
            found.append(np.sort(part))
            continue
        first, second = vectors[rng.choice(part, 2, replace=False)].astype(np.float64)
        # Where rows are equal the place decides, or luck would: the first half is as good as any.
        order = np.argsort(vectors[part] @ (first - second), kind="stable")
        waiting += [part[order[: len(part) // 2]], part[order[len(part) // 2 :]]]
    return found
