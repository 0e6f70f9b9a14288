"""Labelled images as queries among the others, so that trees can learn what right candidates are.

Each image against all others would betray the answer: only its own class would lack one image. So
one image of every class leaves the gallery at a time, and these ask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from common.types import Embeddings


@dataclass
class Round:
    """Queries with their gallery.

    Attributes:
        asking: A embeddings, the first L of them rows of the source, or all from elsewhere.
        truth: `(A,)` int64 labels, -1 for images of no class.
        rows: `(L,)` int64 rows of the source, the first L that ask; behind them are negatives.
        left: `(G,)` int64 rows of the source that are the gallery.
    """

    asking: Embeddings
    truth: np.ndarray
    rows: np.ndarray
    left: np.ndarray


def take(images: Embeddings, rows: np.ndarray) -> Embeddings:
    """The embeddings of these rows."""
    place = torch.from_numpy(rows).to(images.vectors.device)
    return Embeddings(images.ids[rows], images.vectors[place])


def rounds(
    source: Embeddings,
    labels: torch.Tensor,
    *,
    count: int = 5,
    most: int = 20_000,
    held_ids: np.ndarray | None = None,
    negatives: Embeddings | None = None,
    seed: int = 0,
) -> list[Round]:
    """`count` rounds in which one image of every class leaves the gallery; most of these ask.

    A class of n images has asked with all of them after n rounds: then it still sends one away, so
    that all classes lack one, but that one does not ask again. A class of one image leaves in one
    of the rounds, and its image asks in vain, as a new identity does. Rounds in which nobody asks
    are left out.

    Args:
        source: N embeddings.
        labels: `(N,)` int64, -1 unknown: these stay and do not ask.
        count: rounds.
        most: at most so many labelled images ask, in all rounds together.
        held_ids: when given, only these ask, and they leave first.
        negatives: images of no class, which ask in one round each.
        seed: of the draws.

    Raises:
        ValueError: no image may ask.
    """
    known = labels.cpu().numpy()
    random = np.random.default_rng(seed)
    chance = random.random(len(source))
    free = known >= 0
    if held_ids is not None:
        held = source.find(held_ids)
        free &= np.isin(np.arange(len(source)), held)
    if not free.any():
        what = "is one of the held_ids" if held_ids is not None else "has a label"
        raise ValueError(f"lightgbm_rerank: no image to learn from {what}.")
    others = np.array([], np.int64)
    if negatives is not None:
        others = np.flatnonzero(source.find(negatives.ids) < 0)
    order = np.lexsort((chance, ~free, known))[int((known < 0).sum()) :]
    _, start, size = np.unique(known[order], return_index=True, return_counts=True)
    single = np.where(size == 1, (chance[order[start]] * count).astype(np.int64), -1)
    outs, asks = [], []
    for number in range(count):
        leaves = (size > 1) | (single == number)
        out = order[(start + number % size)[leaves]]
        first = (number < size[leaves]) | (size[leaves] == 1)
        outs.append(out)
        asks.append(out[first & free[out]])
    everyone = np.concatenate(asks)
    if len(everyone) > most:
        kept = random.choice(everyone, most, replace=False)
        asks = [rows[np.isin(rows, kept)] for rows in asks]
    found = []
    for number, (out, rows) in enumerate(zip(outs, asks, strict=True)):
        new = others[number::count]
        if not len(rows) and not len(new):
            continue
        rows = np.sort(rows)
        asking, truth = take(source, rows), known[rows]
        if negatives is not None and len(new):
            more = take(negatives, new)
            vectors = torch.cat([asking.vectors, more.vectors.to(asking.vectors)])
            asking = Embeddings(np.concatenate([asking.ids, more.ids]), vectors)
            truth = np.concatenate([truth, np.full(len(new), -1)])
        found.append(Round(asking, truth, rows, np.setdiff1d(np.arange(len(source)), out)))
    return found


def outside(askers: Embeddings, labels: torch.Tensor, size: int, most: int, seed: int) -> Round:
    """One round of images that are not in the gallery of `size` images, at most `most` of them.

    They ask as queries do: of their classes nothing is missing, and for -1 nothing is right. Their
    `rows` are of `askers`.
    """
    rows = np.arange(len(askers))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    return Round(take(askers, rows), labels.cpu().numpy()[rows], rows, np.arange(size))
