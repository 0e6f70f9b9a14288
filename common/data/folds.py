"""Train, queries and gallery of honest folds: identities and duplicates stay apart.

Every choice is a hash of an id and the seed, so the order of the table's rows changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Validation(NamedTuple):
    """What one validation compares: rows of the table in order, and the labels of the queries."""

    queries: Array  # (Q,)
    gallery: Array  # (G,), none of the queries
    truth: Array  # (Q,), -1 where the right answer is "none of the known"


@dataclass(frozen=True)
class Split:
    """Roles of the table's rows in one fold, `(N,)` each; see `split` for who gets which."""

    labels: Array  # int64, as given
    train: Array  # bool: rows to train on
    queries: Array  # bool: rows to ask about; none is in train or gallery
    gallery: Array  # bool: rows to search; train rows of seen classes, other rows of unseen ones
    unseen: Array  # bool: all rows of the classes that have no row in train

    def recognition(self) -> Validation:
        """Queries and gallery of "which known class, or none?" (whale, landmark recognition).

        The gallery is train images of seen classes. All queries count; those of unseen classes and
        those labelled -1 have truth -1: the pipeline must reject them.
        """
        queries = np.flatnonzero(self.queries)
        truth = np.where(self.unseen, -1, self.labels)[queries]
        return Validation(queries, np.flatnonzero(self.gallery & ~self.unseen), truth)

    def retrieval(self) -> Validation:
        """Queries and gallery of "which images show the same?" (landmark retrieval).

        The gallery holds seen classes' train images and unseen classes' other images. Only queries
        with at least one image of their class in the gallery count, as Kaggle ignores the rest.
        """
        gallery = np.flatnonzero(self.gallery)
        queries = np.flatnonzero(self.queries & np.isin(self.labels, self.labels[gallery]))
        return Validation(queries, gallery, self.labels[queries])


def split(
    labels: Array,
    *,
    fold: int = 0,
    folds: int = 5,
    unseen: float = 0.1,
    seed: int = 0,
    ids: Array | None = None,
    groups: Array | None = None,
    max_queries: int | None = None,
    max_gallery: int | None = None,
) -> Split:
    """One fold of train, queries and gallery, with classes that training never sees.

    Unseen classes, `round(unseen * C)` of the C classes, are wholly out of `train`. Half of their
    images (at least one) are queries, the others gallery. The next fold takes the next classes, so
    no class is unseen twice while `folds * unseen <= 1`.

    Seen classes: each image belongs to one of the folds, about `1 / folds` of every class to each.
    Images of this fold are queries, the others train and gallery. A class with one image is always
    in train and gallery. Images labelled -1 (of no class) go by folds too, but not to the gallery.

    Args:
        labels: `(N,)` integers, -1 for no class; a class is known by its number, so the same
            numbers give the same unseen classes.
        fold: which one, `0 <= fold < folds`.
        folds: how many; at least 2.
        unseen: share of the classes that is held out, `[0, 1)`; at least one class when above 0.
        seed: another one gives other folds.
        ids: `(N,)` unique ids (integers or strings) to hash; the row number when None, and then
            the result depends on the order of the rows.
        groups: `(N,)` integers, equal for near duplicates (`dedupe.duplicate_groups`). Duplicates
            of one class stay together, counting as one image above. Held-out images with a twin in
            train, which then has another label, get no role at all.
        max_queries: keep at most so many queries, drawn by hash; the others get no role.
        max_gallery: keep at most so many gallery images: one of each query's class, if it has any,
            then drawn by hash. `train` is not touched.

    Raises:
        ValueError: an argument out of range or of another length, ids that repeat, nothing to
            hold out, or `max_gallery` below the number of the queries' classes.
    """
    labels = check_labels(labels)
    if folds < 2 or not 0 <= fold < folds:
        raise ValueError(f"fold must be in 0..folds-1 and folds at least 2, got {fold} of {folds}.")
    if not 0 <= unseen < 1:
        raise ValueError(f"unseen is a share of the classes in [0, 1), got {unseen}.")
    for name, cap in (("max_queries", max_queries), ("max_gallery", max_gallery)):
        if cap is not None and cap < 1:
            raise ValueError(f"{name} must be at least 1 or unset, got {cap}.")
    keys = _unique_keys(ids, len(labels))
    values, code = np.unique(labels, return_inverse=True)

    unit, unit_code, unit_hash = _units(code, groups, _mix(keys, seed, 1))
    rank, per_class = _rank(unit_code, unit_hash)
    # A class starts at a fold of its own: else fold 0 would get the odd image of every class.
    first_fold = (_mix(_keys(values), seed, 2) % np.uint64(folds)).astype(np.int64)
    held = ((rank + first_fold[unit_code]) % folds == fold) & (per_class[unit_code] > 1)
    asked = rank < np.maximum(per_class[unit_code] // 2, 1)

    is_unseen = _unseen_classes(values, fold, unseen, seed)[code]
    queries = np.where(is_unseen, asked[unit], held[unit])
    train = ~is_unseen & ~held[unit]
    gallery = (train & (labels >= 0)) | (is_unseen & ~queries)
    if groups is not None:
        clean = ~leaks(groups, train, ~train)
        queries, gallery = queries & clean, gallery & clean
    if not queries.any():
        raise ValueError(
            f"Nothing to hold out in fold {fold} of {folds}: {len(labels)} rows, {len(values)} "
            "labels; use fewer folds or set unseen above 0."
        )
    chance = _mix(keys, seed, 4)
    if max_queries is not None:
        queries = _sample(queries, chance, max_queries)
    if max_gallery is not None:
        gallery = _sample_gallery(gallery, chance, max_gallery, code, np.unique(code[queries]))
    return Split(labels, train, queries, gallery, is_unseen)


def group_folds(groups: Array, folds: int = 5, seed: int = 0) -> Array:
    """`(N,)` int64 fold of every row; rows of a group share one, folds get nearly equal rows.

    Groups go largest first to the fold with the fewest rows, the sizes of scikit-learn's
    `GroupKFold`; among groups of one size a hash of the group decides, so `seed` varies the folds
    and the order of the rows does not.

    Args:
        groups: `(N,)` integers or strings: `label_group`, or `dedupe.duplicate_groups`.
        folds: how many; at least 2 and at most the number of groups.
        seed: another one gives other folds.
    """
    values, code, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if not 2 <= folds <= len(values):
        raise ValueError(f"folds must be between 2 and the {len(values)} groups, got {folds}.")
    order = np.lexsort((_mix(_keys(values), seed, 5), -sizes))
    fold_of = np.empty(len(values), np.int64)
    load = np.zeros(folds, np.int64)
    # One step per distinct size, not per group: N rows have at most sqrt(2 N) distinct sizes.
    ordered = sizes[order]
    for start, stop in pairwise(np.flatnonzero(np.diff(ordered, prepend=-1, append=-1)).tolist()):
        size, count = ordered[start], stop - start
        # The fold with load L takes its j-th group of this size at level L + j * size.
        most = min(count, count // folds + (load.max() - load.min()) // size + 2)
        level = load[:, None] + size * np.arange(most)
        nearest = np.lexsort((np.repeat(np.arange(folds), most), level.ravel()))[:count] // most
        fold_of[order[start:stop]] = nearest
        load += size * np.bincount(nearest, minlength=folds)
    return fold_of[code]


def leaks(groups: Array, train: Array, held_out: Array) -> Array:
    """`(N,)` bool: the held-out rows that have a twin (a row of the same group) in train.

    Args:
        groups: `(N,)` integers, equal for near duplicates.
        train: `(N,)` bool.
        held_out: `(N,)` bool.
    """
    values, code = np.unique(groups, return_inverse=True)
    in_train = np.bincount(code[train], minlength=len(values)) > 0
    return np.asarray(held_out & in_train[code])


def check_labels(labels: Array) -> Array:
    """`labels` as a 1-D int64 array of class indices and -1; ValueError says what else it is."""
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be one integer per row, got shape {array.shape} of {array.dtype}; "
            "encode class names as 0..C-1, and -1 for no class."
        )
    if len(array) == 0:
        raise ValueError("labels are empty: the table has no rows, check how it was filtered.")
    if array.min() < -1:
        row = int(array.argmin())
        raise ValueError(f"Label {array[row]} in row {row}: classes are 0..C-1, no class is -1.")
    return array.astype(np.int64, copy=False)


def _units(code: Array, groups: Array | None, hashes: Array) -> tuple[Array, Array, Array]:
    """Unit of every row, class and hash of every unit; duplicates of one class are one unit."""
    if groups is None:
        return np.arange(len(code)), code, hashes
    groups = np.asarray(groups)
    if groups.shape != code.shape:
        raise ValueError(f"groups must be one per row {code.shape}, got {groups.shape}.")
    values, group = np.unique(groups, return_inverse=True)
    pairs, unit = np.unique(code.astype(np.int64) * len(values) + group, return_inverse=True)
    # The smallest hash of the members: no matter which of them comes first.
    order = np.lexsort((hashes, unit))
    first = np.flatnonzero(np.diff(unit[order], prepend=-1))
    return unit, pairs // len(values), hashes[order][first]


def _rank(code: Array, hashes: Array) -> tuple[Array, Array]:
    """Position of every unit in its class, by hash, and the number of units per class."""
    count = np.bincount(code)
    order = np.lexsort((hashes, code))
    rank = np.empty(len(code), np.int64)
    rank[order] = np.arange(len(code)) - np.repeat(np.cumsum(count) - count, count)
    return rank, count


def _unseen_classes(values: Array, fold: int, share: float, seed: int) -> Array:
    """`(C,)` bool over sorted labels: the classes that this fold holds out; never -1."""
    known = np.flatnonzero(values >= 0)
    count = max(round(share * len(known)), 1) if share > 0 else 0
    if count and count >= len(known):
        raise ValueError(
            f"unseen={share} of {len(known)} classes leaves none to train on; lower unseen."
        )
    order = known[np.argsort(_mix(_keys(values[known]), seed, 3), kind="stable")]
    chosen = np.zeros(len(values), bool)
    if count:
        chosen[order[(fold * count + np.arange(count)) % len(order)]] = True
    return chosen


def _sample(mask: Array, chance: Array, most: int) -> Array:
    """`mask` with only its `most` rows of the smallest chance left."""
    rows = np.flatnonzero(mask)
    kept = np.zeros(len(mask), bool)
    kept[rows[np.argsort(chance[rows], kind="stable")[:most]]] = True
    return kept


def _sample_gallery(mask: Array, chance: Array, most: int, code: Array, wanted: Array) -> Array:
    """`mask` with only `most` rows left: one of every wanted class first, then by chance."""
    rows = np.flatnonzero(mask)
    order = rows[np.lexsort((chance[rows], code[rows]))]
    first = order[np.diff(code[order], prepend=-1) > 0]
    first = first[np.isin(code[first], wanted)]
    if len(first) > most:
        raise ValueError(
            f"max_gallery={most} is less than the {len(first)} classes of the queries; raise it "
            "or lower max_queries."
        )
    chance = chance.copy()
    chance[first] = 0
    return _sample(mask, chance, most)


def _unique_keys(ids: Array | None, count: int) -> Array:
    """One 64-bit key per row; ValueError when ids repeat."""
    if ids is None:
        return _keys(np.arange(count))
    ids = np.asarray(ids)
    if ids.shape != (count,):
        raise ValueError(f"ids must be one per row ({count},), got {ids.shape}.")
    keys = _keys(ids)
    if len(np.unique(keys)) < count:
        values, seen = np.unique(ids, return_counts=True)
        raise ValueError(f"Id {values[seen.argmax()]!r} is in more than one row; ids are unique.")
    return keys


def _keys(values: Array) -> Array:
    """`(N,)` uint64 of integers (themselves) or strings (FNV-1a of their characters)."""
    values = np.asarray(values)
    if values.dtype.kind in "iu":
        return values.astype(np.int64, copy=False).view(np.uint64)
    if values.dtype.kind not in "SU":
        values = values.astype(np.str_)
    letter = np.uint8 if values.dtype.kind == "S" else np.uint32
    letters: Array = np.ascontiguousarray(values).view(letter).reshape(len(values), -1)
    key = np.full(len(values), 0xCBF29CE484222325, np.uint64)
    for column in letters.T:
        # Padding is skipped: the width of the array, the longest id in it, must not matter.
        key = np.where(column > 0, (key ^ column) * np.uint64(0x100000001B3), key)
    return key


def _mix(keys: Array, seed: int, purpose: int) -> Array:
    """`(N,)` uint64 hashes of keys; other seeds and purposes give unrelated ones (splitmix64)."""
    start = np.random.SeedSequence([seed, purpose]).generate_state(1, np.uint64)
    mixed = keys ^ start
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
