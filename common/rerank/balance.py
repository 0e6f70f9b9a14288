"""First answers spread over classes that nobody has yet: most things are seen once or twice.

ranking:
  - {name: vote, top: 50, power: 1.0, reduce: max}
  - {name: balance, margin: 0.3}
"""

from __future__ import annotations

import numpy as np
import torch

from common.types import Neighbors


def balance(neighbors: Neighbors, *, margin: float = 0.3, unknown: int | None = None) -> Neighbors:
    """The first two classes of a query swapped where the second is close and nobody's first.

    In label space, after `vote` (or `insert_unknown`). A swap needs score 1 - score 2 < margin, no
    query whose first class is the second one, and another query that has the first one, which else
    would go without. The closest call goes first (ties: the lower query), and what it takes is
    taken. The unknown class never moves: a row that has it among its first two stays, so an answer
    that was refused is not let in. Scores stay in their columns. Origin: Humpback 2019 1st place
    (conf1 - conf2 < .3 of sigmoids, +.001 to +.002); the order of the swaps, the other query and
    the unknown class are ours. It reads all queries together: where they are few for the classes,
    as held-out ones may be, it swaps more.

    Args:
        neighbors: `(Q, K)` classes, best first.
        margin: in units of the scores: cosines lie much closer together than sigmoids; 0: nothing.
        unknown: the class of the unknown identity, if it is listed.

    Raises:
        ValueError: a negative margin.
    """
    if not margin >= 0:
        raise ValueError(f"balance: margin must be at least 0, got {margin}.")
    if neighbors.index.shape[1] < 2 or not len(neighbors):
        return neighbors
    index, score = neighbors.index.cpu().numpy().copy(), neighbors.score.cpu().numpy()
    nobody = -1 if unknown is None else unknown
    real = (index[:, :2] >= 0) & (index[:, :2] != nobody)
    size = max(int(index.max()), nobody) + 1
    first = index[:, 0]
    taken = np.bincount(first[first >= 0], minlength=size)
    with np.errstate(invalid="ignore"):  # -inf behind -inf
        gap = score[:, 0] - score[:, 1]
    close = np.flatnonzero(real.all(1) & (gap < margin))
    for row in close[np.argsort(gap[close], kind="stable")].tolist():
        own, other = index[row, :2].tolist()
        if taken[other] == 0 and taken[own] > 1:
            index[row, 0], index[row, 1] = other, own
            taken[own] -= 1
            taken[other] += 1
    return Neighbors(torch.from_numpy(index).to(neighbors.index.device), neighbors.score)
