"""Near-duplicate images by difference hash: found exactly, grouped, and dropped from a table.

    hashes, readable = difference_hashes(paths)
    groups = duplicate_groups(hashes, distance=3, valid=readable)
    table = drop_duplicates(table, groups)          # or folds.split(labels, groups=groups)

Search: multi-index hashing (Norouzi, Punjani, Fleet, CVPR 2012, arXiv 1307.2982).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from common.data.folds import check_labels
from common.data.images import ImageError, read_image

Array = np.ndarray

FARTHEST = 10  # of 64 bits; beyond, the bands are so short that most pairs share one
BUCKET = 256  # hashes that are compared each with each; a larger bucket is split by more bits
DEPTH = 3  # splits, each into distance + 1 bands; what is still together then is compared
PENDING = 4_000_000  # pairs held before they are folded into groups, 64 MB


def difference_hash(image: Array) -> np.uint64:
    """64-bit difference hash: is a cell brighter than its left neighbour, on 9 x 8 grey cells?

    Survives resizing, recompression and changes of brightness; not crops, flips or rotation. It
    sees no colour and no detail: things of one outline on white (clothes on a model) come within
    2 or 3 bits of each other, so allow 0 or 1 there. Images of one colour all have hash 0.

    Args:
        image: `(H, W, 3)` uint8 RGB.

    Source: N. Krawetz, "Kind of Like That" (dHash), hackerfactor.com, 2013.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"Need an (H, W, 3) uint8 RGB image, got {image.shape} {image.dtype}.")
    # Floats, since whole grey levels tie at random; and by more than one level, since otherwise
    # JPEG noise decides on every white background.
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    return np.uint64(np.packbits(np.diff(cells, axis=1) > 1).view(">u8")[0])


def difference_hashes(
    paths: Sequence[str | bytes] | Array, *, workers: int = 0
) -> tuple[Array, Array]:
    """`(N,)` uint64 hashes of image files and `(N,)` bool: which of them could be read.

    Args:
        paths: image files; an unreadable one gets hash 0 and False.
        workers: threads (decoding releases the interpreter lock); 0 is one per CPU core.
    """

    def chunk(start: int) -> tuple[Array, Array]:
        part = paths[start : start + 256]
        hashes, readable = np.zeros(len(part), np.uint64), np.ones(len(part), bool)
        for row, path in enumerate(part):
            try:
                hashes[row] = difference_hash(read_image(path, size=32))
            except ImageError:
                readable[row] = False
        return hashes, readable

    starts = range(0, len(paths), 256)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        bar = tqdm(pool.map(chunk, starts), "hash", len(starts), unit_scale=256, disable=None)
        chunks = [(np.empty(0, np.uint64), np.empty(0, bool)), *bar]
    return np.concatenate([h for h, _ in chunks]), np.concatenate([ok for _, ok in chunks])


def near_duplicates(hashes: Array, distance: int = 3, *, most: int = 10_000_000) -> Array:
    """`(P, 2)` int64 row pairs i < j whose hashes differ in at most `distance` bits, in order.

    Exact: any two within d bits agree in one of d + 1 bands of bits, so only rows that share a band
    are compared.

    Args:
        hashes: `(N,)` uint64.
        distance: bits, 0 to 10.
        most: pairs that may come back.

    Raises:
        ValueError: more than `most` pairs (100,000 equal hashes alone make 5e9); use
            `duplicate_groups`, which needs no list of pairs.
    """
    values, code, counts = _distinct(hashes)
    members = np.argsort(code, kind="stable")
    starts = np.cumsum(counts) - counts
    equal = np.flatnonzero(counts > 1)
    total = int((counts * (counts - 1) // 2).sum())
    blocks = [np.stack([equal, equal], axis=1)]
    for pairs in _close(values, distance):
        total += int(counts[pairs].prod(axis=1).sum())
        if total > most:
            break
        blocks.append(pairs)
    if total > most:
        raise ValueError(
            f"At least {total} pairs within {distance} bits, more than most={most}; "
            "use duplicate_groups or a smaller distance."
        )
    a, b = np.concatenate(blocks).T
    size = counts[a] * counts[b]  # a block of equal hashes is written out twice, then halved
    number = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    a, b = np.repeat(a, size), np.repeat(b, size)
    i, j = members[starts[a] + number // counts[b]], members[starts[b] + number % counts[b]]
    kept = (a != b) | (i < j)
    i, j = np.minimum(i, j)[kept], np.maximum(i, j)[kept]
    order = np.lexsort((j, i))
    return np.stack([i[order], j[order]], axis=1)


def duplicate_groups(hashes: Array, distance: int = 3, *, valid: Array | None = None) -> Array:
    """`(N,)` int64 group of every row, named by the smallest row in it; most rows are alone.

    Rows are in one group when a chain of steps of at most `distance` bits joins them, so the ends
    of a long chain can be further apart. Memory is O(N), however many hashes are equal.

    Args:
        hashes: `(N,)` uint64.
        distance: bits, 0 to 10.
        valid: `(N,)` bool; a row with False (an unreadable image) stays alone.
    """
    alone = np.zeros(len(hashes), bool) if valid is None else ~np.asarray(valid)
    values, code, _ = _distinct(np.asarray(hashes)[~alone])
    joined = np.arange(len(values))
    pending: list[Array] = []
    held = 0
    for pairs in _close(values, distance):
        pairs = joined[pairs]
        pending.append(pairs[pairs[:, 0] != pairs[:, 1]])
        held += len(pending[-1])
        if held > PENDING:
            joined, pending, held = _join(joined, pending), [], 0
    joined = _join(joined, pending)
    label = np.empty(len(hashes), np.int64)
    label[~alone] = joined[code]
    label[alone] = len(values) + np.arange(alone.sum())
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def drop_duplicates(
    table: pd.DataFrame, groups: Array, *, conflicts: Literal["drop", "keep"] = "drop"
) -> pd.DataFrame:
    """The table with one row per label and duplicate group: the one with the smallest id.

    Label -1 says nothing about a twin: such a row goes when its group holds a labelled one. Give
    the training rows only, or test rows that resemble them would go too.

    Args:
        table: columns `id` and `label`; order and index stay.
        groups: `(N,)` integers from `duplicate_groups`.
        conflicts: what to do where the labels of a group differ. `drop` removes the whole group:
            nothing tells which label is right, and a margin loss pulls hardest at exactly those
            images. `keep` leaves one row per label.

    Raises:
        ValueError: another length, a missing column, or another word for `conflicts`.
    """
    if conflicts not in ("drop", "keep"):
        raise ValueError(f"conflicts is drop or keep, got {conflicts!r}.")
    if missing := {"id", "label"} - set(table.columns):
        raise ValueError(f"The table has no column {missing.pop()!r}: {list(table.columns)}.")
    if np.shape(groups) != (len(table),):
        raise ValueError(f"Need one group per row ({len(table)},), got {np.shape(groups)}.")
    rows = pd.DataFrame({"group": groups, "label": check_labels(table["label"].to_numpy())})
    labels = rows["label"].where(rows["label"] >= 0).groupby(rows["group"]).transform("nunique")
    by_id = np.argsort(table["id"].to_numpy(), kind="stable")
    repeated = np.empty(len(rows), bool)
    repeated[by_id] = rows.iloc[by_id].duplicated().to_numpy()
    kept = ~repeated & ((rows["label"] >= 0) | (labels == 0)).to_numpy()
    if conflicts == "drop":
        kept &= (labels <= 1).to_numpy()
    return table[kept]


def _distinct(hashes: Array) -> tuple[Array, Array, Array]:
    """Sorted distinct hashes, the place of each row in them, and how many rows each has."""
    hashes = np.asarray(hashes)
    if hashes.ndim != 1 or hashes.dtype != np.uint64:
        raise ValueError(f"hashes must be (N,) uint64, got {hashes.shape} {hashes.dtype}.")
    values, code, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    return values, code, counts


def _close(values: Array, distance: int) -> Iterator[Array]:
    """All pairs (a, b), a < b, of distinct hashes within `distance` bits, each once, in pieces.

    Free bits fall into `distance + 1` bands. Hashes that agree in a band share a bucket; a bucket
    that is too large is the same problem again, with the bits of that band no longer free.
    """
    if not 0 <= distance <= FARTHEST:
        raise ValueError(f"distance must be 0 to {FARTHEST} of the 64 bits, got {distance}.")
    if len(values) < 2:
        return
    # Neighbouring pixels are alike: in shuffled order they spread over the bands.
    bits = np.uint64(1) << np.random.default_rng(0).permutation(64).astype(np.uint64)
    todo: list[tuple[int, Array, Array, list[np.uint64]]] = [(1, np.arange(len(values)), bits, [])]
    while todo:
        depth, rows, free, earlier = todo.pop()
        agreed = ~np.bitwise_or.reduce(free)
        for offset in range(distance + 1):
            band = np.bitwise_or.reduce(free[offset :: distance + 1])
            rest = np.delete(free, np.s_[offset :: distance + 1])
            key = values[rows] & (agreed | band)
            order = np.argsort(key, kind="stable")
            ordered = key[order]
            stops = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
            size = np.diff(stops, prepend=0)
            left = np.repeat(stops, size) - np.arange(len(rows))
            splittable = depth < DEPTH and len(rest) > distance  # a bit for every band
            large = np.repeat((size > BUCKET) & splittable, size)
            yield from _compare(values, rows[order[~large]], left[~large], distance, earlier)
            if large.any():
                todo.append((depth + 1, rows[order[large]], rest, earlier))
            # A pair that agrees in this band has been found here: not again in a later one.
            earlier = [*earlier, band]


def _compare(
    values: Array, rows: Array, left: Array, distance: int, earlier: list[np.uint64]
) -> Iterator[Array]:
    """Close pairs among rows whose bucket goes on for `left` rows, themselves included."""
    hashes = values[rows]
    here, step = np.arange(len(rows)), 1
    while len(here := here[left[here] > step]):
        bits = hashes[here] ^ hashes[here + step]
        near = np.bitwise_count(bits) <= distance
        found, bits = here[near], bits[near]
        for band in earlier:
            found, bits = found[bits & band > 0], bits[bits & band > 0]
        if len(found):
            yield np.sort(np.stack([rows[found], rows[found + step]], axis=1), axis=1)
        step += 1


def _join(joined: Array, pairs: list[Array]) -> Array:
    """`(V,)` component of every hash after adding edges between components."""
    if not pairs:
        return joined
    a, b = np.concatenate(pairs).T
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(joined), len(joined)))
    return np.asarray(connected_components(graph, directed=False)[1][joined], np.int64)
