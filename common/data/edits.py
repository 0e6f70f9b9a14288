"""Levenshtein similarity of many pairs of texts: rapidfuzz where it is installed, else numpy.

Levenshtein, "Binary codes capable of correcting deletions, insertions, and reversals" (1966).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

Array = np.ndarray
_CELLS = 1 << 22  # letters of a block of pairs
_LONGEST = 256  # letters of a text that are compared
_BITS = 64  # of a word


def similarities(texts: Sequence[str], a: Array, b: Array, *, backend: str = "auto") -> Array:
    """`(P,)` float32: 1 - distance / longer length of texts `a` and `b`; 1 for two empty ones.

    The distance is the least number of letters to put in, take out or change. Of longer texts the
    first 256 letters count. Each pair is computed once, whichever way round it comes.

    Args:
        texts: N of them.
        a: `(P,)` rows.
        b: `(P,)` rows.
        backend: `rapidfuzz` or `numpy`, the same values; `auto`: the first if it is installed.

    Raises:
        ValueError: another backend, or rows of different number.
    """
    if backend not in ("auto", "rapidfuzz", "numpy"):
        raise ValueError(f"similarities: backend is auto, rapidfuzz or numpy, got {backend!r}.")
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"similarities: two arrays of rows (P,), got {a.shape} and {b.shape}.")
    cut = [text[:_LONGEST] for text in texts]
    size = max(len(cut), 1)
    keys, place = np.unique(np.minimum(a, b) * size + np.maximum(a, b), return_inverse=True)
    one, two = keys // size, keys % size
    if backend == "auto":
        backend = "rapidfuzz" if find_spec("rapidfuzz") else "numpy"
    distance = _by_rapidfuzz(cut, one, two) if backend == "rapidfuzz" else _by_numpy(cut, one, two)
    lengths = np.array([len(text) for text in cut], np.int64)
    longer = np.maximum(lengths[one], lengths[two]) if len(cut) else distance
    alike = np.where(longer > 0, 1 - distance / np.maximum(longer, 1), 1.0)
    return np.asarray(alike.astype(np.float32)[place])


def _by_rapidfuzz(texts: Sequence[str], a: Array, b: Array) -> Array:
    process: Any = import_module("rapidfuzz.process")
    levenshtein: Any = import_module("rapidfuzz.distance.Levenshtein")
    left, right = [texts[i] for i in a.tolist()], [texts[i] for i in b.tolist()]
    found = process.cpdist(left, right, scorer=levenshtein.distance, workers=-1, dtype=np.int32)
    return np.asarray(found, np.int64)


def _by_numpy(texts: Sequence[str], a: Array, b: Array) -> Array:
    """Distances `(P,)`: by bits where the shorter text has at most 64 letters, else by rows."""
    found = np.zeros(len(a), np.int64)
    if not len(a):
        return found
    lengths = np.array([len(text) for text in texts], np.int64)
    points = np.zeros((len(texts), max(int(lengths.max()), 1)), np.uint32)
    for row, text in enumerate(texts):
        points[row, : len(text)] = [ord(letter) for letter in text]
    letters, codes = np.unique(points, return_inverse=True)
    codes = codes.reshape(points.shape).astype(np.int32)
    swap = lengths[a] > lengths[b]
    a, b = np.where(swap, b, a), np.where(swap, a, b)  # the shorter text is the pattern
    short = lengths[a] <= _BITS
    # Pairs of one size share a block without padding to the longest of all.
    order = np.lexsort((lengths[b], lengths[a]))
    step = max(1, _CELLS // codes.shape[1])
    for rows in _pieces(order[~short[order]], step):
        found[rows] = _rows(codes, lengths, a[rows], b[rows])
    # Pairs of one pattern share its row of the table.
    order = np.argsort(a, kind="stable")
    step = max(1, min(1 << 16, 2 * _CELLS // len(letters)))
    for rows in _pieces(order[short[order]], step):
        found[rows] = _bits(codes, lengths, a[rows], b[rows], len(letters))
    return found


def _pieces(rows: Array, step: int) -> list[Array]:
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _bits(codes: Array, lengths: Array, a: Array, b: Array, letters: int) -> Array:
    """Distances of pairs whose text `a` has at most 64 letters, a column of the table in one word.

    Myers, "A fast bit-vector algorithm for approximate string matching" (JACM 1999), for whole
    texts (Hyyro 2003): the words hold where the column rises and falls, the end is counted.
    """
    order = np.argsort(-lengths[b], kind="stable")
    patterns, place = np.unique(a[order], return_inverse=True)
    table = np.zeros((len(patterns), letters), np.uint64)
    for number in range(int(lengths[patterns].max())):
        rows = np.flatnonzero(lengths[patterns] > number)
        table[rows, codes[patterns[rows], number]] |= np.uint64(1 << number)
    size, other = lengths[a[order]], b[order]
    last = np.maximum(size - 1, 0).astype(np.uint64)
    rising, falling = np.full(len(a), ~np.uint64(0)), np.zeros(len(a), np.uint64)
    distance, one = size.copy(), np.uint64(1)
    for number in range(int(lengths[other[0]])):
        live = slice(0, int((lengths[other] > number).sum()))
        equal = table[place[live], codes[other[live], number]]
        up, down = rising[live], falling[live]
        vertical = equal | down
        horizontal = (((equal & up) + up) ^ up) | equal
        plus, minus = down | ~(horizontal | up), up & horizontal
        distance[live] += ((plus >> last[live]) & one).astype(np.int64)
        distance[live] -= ((minus >> last[live]) & one).astype(np.int64)
        plus, minus = (plus << one) | one, minus << one
        rising[live], falling[live] = minus | ~(vertical | plus), plus & vertical
    distance[size == 0] = lengths[other[size == 0]]
    found = np.empty(len(a), np.int64)
    found[order] = distance
    return found


def _rows(codes: Array, lengths: Array, a: Array, b: Array) -> Array:
    """Distances of pairs, the table row by row.

    Along a row, d[j] = min over i <= j of (t[i] + j - i), where t is what the row above allows:
    a running minimum of t[i] - i.
    """
    width = int(lengths[b].max())
    columns = np.arange(width + 1, dtype=np.int16)
    other = codes[b][:, :width]
    above = np.broadcast_to(columns, (len(a), width + 1)).copy()
    last = np.where(lengths[a] == 0, lengths[b], 0)
    for number in range(1, int(lengths[a].max()) + 1):
        changed = other != codes[a, number - 1][:, None]
        table = np.empty_like(above)
        table[:, 0] = number
        table[:, 1:] = np.minimum(above[:, :-1] + changed, above[:, 1:] + 1)
        above = np.minimum.accumulate(table - columns, axis=1) + columns
        ends = np.flatnonzero(lengths[a] == number)
        last[ends] = above[ends, lengths[b][ends]]
    return last
