"""Your own data, a csv in the format of open-metric-learning, as the tables of the kit.

    data = read("shoes.csv")          # label,path,split,is_query,is_gallery
    data.train, data.queries, data.gallery

`split` is train or validation; `is_query` and `is_gallery` say what a validation row is for, a row
may be both, and are empty in train. Optional: `x_1, x_2, y_1, y_2` (left, right, top, bottom: what
to look at, in pixels; empty: all of it) and `sequence` (shots of one moment, which are not compared
with each other). Format: https://open-metric-learning.readthedocs.io, "Dataset format".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.tables import DataError, read_frame
from common.types import Table

COLUMNS = ("label", "path", "split", "is_query", "is_gallery")
BOX = ("x_1", "y_1", "x_2", "y_2")  # as Table.boxes has them
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0", "")


@dataclass
class Own:
    """What the csv says.

    Attributes:
        classes: `(C,)` labels as text, those of train first; a label of a table is a place in it.
        train: rows to learn from, labels 0 to `known - 1`.
        queries: validation rows that ask.
        gallery: validation rows that are searched; a row may be in both, under one id.
        query_groups: `(Q,)` int64, for `common.cmc`: a query is not compared with gallery rows of
            its group, which are itself and its sequence.
        gallery_groups: `(G,)`.
        known: how many classes have train rows.
        warnings: one line per oddity that does not stop the work.
    """

    classes: np.ndarray
    train: Table
    queries: Table
    gallery: Table
    query_groups: np.ndarray
    gallery_groups: np.ndarray
    known: int
    warnings: list[str]

    def describe(self) -> str:
        """What was found, one line, and a line for each warning."""
        asked = len(np.unique(self.queries.labels))
        text = (
            f"{len(self.train)} train images of {self.known} labels; {len(self.queries)} queries "
            f"of {asked} labels in a gallery of {len(self.gallery)}"
        )
        return "\n".join([text, *(f"warning: {warning}" for warning in self.warnings)])


def read(path: str | Path, *, root: str | Path | None = None) -> Own:
    """The tables of a csv, checked.

    Args:
        path: the csv.
        root: what the paths in it are relative to; None: the csv's folder.

    Raises:
        FileNotFoundError: no such csv.
        DataError: a missing column, an empty or unknown value, a file that is not there, an image
            twice, a box that is none, a query without anything to find, or nothing to train on or
            to ask; names the row.
    """
    path = Path(path)
    frame = read_frame(path, keep_default_na=False)
    rows = _Rows(path, frame)
    rows.check()
    split = frame["split"].to_numpy(np.str_)
    train, asks, stands = split == "train", rows.flag("is_query"), rows.flag("is_gallery")
    rows.refuse(train & (asks | stands), "a train row is neither query nor gallery: empty both.")
    rows.refuse(~(train | asks | stands), "this validation row is neither query nor gallery.")
    for what, some in (("train", train), ("query", asks), ("gallery", stands)):
        if not some.any():
            raise DataError(f"{path} has no {what} row.")
    folder = path.parent if root is None else Path(root)
    files = np.array([os.fsencode(folder / name) for name in frame["path"]])
    gone = np.array([not os.path.isfile(bytes(file)) for file in files])
    rows.refuse(gone, "there is no file {path} under {folder}; {count} are missing.", folder=folder)
    boxes = rows.boxes()
    every = frame["path"].to_numpy(np.str_)
    if boxes is not None:  # several things of one picture are as many images
        marks = [":" + ",".join(map(str, box)) if box.any() else "" for box in boxes]
        every = np.char.add(every, np.array(marks))
    again = pd.Series(every).duplicated().to_numpy()
    rows.refuse(
        again, "{path} is here twice, with the same box; {count} are. Keep one row of each."
    )
    classes, labels = _classes(frame["label"].to_numpy(np.str_), train)
    table = Table(every, files, labels, boxes)
    groups = _groups(frame)
    alone = asks & (_partners(labels, groups, stands) == 0)
    rows.refuse(
        alone, "nothing in the gallery has the label of this query, {label}; {count} are so."
    )
    found = Own(
        classes,
        table.take(train),
        table.take(asks),
        table.take(stands),
        groups[asks],
        groups[stands],
        len(np.unique(labels[train])),
        [],
    )
    _warn(found)
    return found


class _Rows:
    """The rows of the csv, to be refused by number."""

    def __init__(self, path: Path, frame: pd.DataFrame) -> None:
        self.path, self.frame = path, frame

    def refuse(self, bad: np.ndarray, text: str, **more: object) -> None:
        """Raise DataError for the first bad row; `text` may name columns, {count} and `more`."""
        rows = np.flatnonzero(bad)
        if len(rows):
            row = self.frame.iloc[rows[0]].to_dict()  # it may have a column count of its own
            words = text.format_map({**row, "count": len(rows), **more})
            raise DataError(f"{self.path} row {rows[0] + 2}: {words}")

    def check(self) -> None:
        """Columns, empty values, values of split."""
        missing = [name for name in COLUMNS if name not in self.frame]
        if missing:
            needed = ", ".join(COLUMNS)
            raise DataError(f"{self.path} has no column {missing[0]!r}; it must have {needed}.")
        for name in ("label", "path"):
            empty = self.frame[name].str.strip() == ""
            self.refuse(empty.to_numpy(), f"{name} is empty; fill it in or delete the row.")
        known = self.frame["split"].isin(["train", "validation"])
        self.refuse(~known.to_numpy(bool), "split {split!r} is neither train nor validation.")

    def flag(self, name: str) -> np.ndarray:
        """`(N,)` bool of a column of True and False, or 1 and 0; empty is False."""
        words = self.frame[name].str.strip().str.lower()
        known = words.isin([*_TRUE, *_FALSE])
        self.refuse(~known.to_numpy(bool), f"{name} {{{name}!r}} is neither True nor False.")
        return np.asarray(words.isin(_TRUE).to_numpy(bool))

    def boxes(self) -> np.ndarray | None:
        """`(N, 4)` int64 x0, y0, x1, y1, zeros for whole images; None without the columns."""
        there = [name for name in BOX if name in self.frame]
        if not there:
            return None
        if len(there) < len(BOX):
            lacking = next(name for name in BOX if name not in there)
            raise DataError(f"{self.path} has {', '.join(there)}, but no column {lacking!r}.")
        words = self.frame[list(BOX)].apply(lambda column: column.str.strip())
        empty = (words == "").to_numpy(bool)
        self.refuse(
            empty.any(1) & ~empty.all(1), "some of x_1, y_1, x_2, y_2 are empty; none or all."
        )
        values = words.replace("", "0").apply(pd.to_numeric, errors="coerce").to_numpy(float)
        self.refuse(~np.isfinite(values).all(1), "a box is not of numbers.")
        whole = empty.all(1)
        x0, y0, x1, y1 = values.T
        bad = ~whole & ~((x0 >= 0) & (x0 < x1) & (y0 >= 0) & (y0 < y1))
        box = "box {x_1}, {y_1}, {x_2}, {y_2} is none"
        self.refuse(bad, f"{box}: it must be 0 <= x_1 < x_2 and 0 <= y_1 < y_2.")
        return np.asarray(
            np.concatenate([np.floor(values[:, :2]), np.ceil(values[:, 2:])], 1), np.int64
        )


def _classes(names: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(C,)` names, those of train first, and the `(N,)` int64 place of each row's."""
    seen = np.unique(names[train])
    classes = np.concatenate([seen, np.setdiff1d(names, seen)])
    order = np.argsort(classes)
    return classes, order[np.searchsorted(classes, names, sorter=order)].astype(np.int64)


def _partners(labels: np.ndarray, groups: np.ndarray, stands: np.ndarray) -> np.ndarray:
    """`(N,)` how many gallery rows have the label of a row and another group."""
    same = np.bincount(labels[stands], minlength=labels.max() + 1)[labels]
    _, pair = np.unique(np.stack([labels, groups]), axis=1, return_inverse=True)
    return np.asarray(same - np.bincount(pair[stands], minlength=pair.max() + 1)[pair])


def _groups(frame: pd.DataFrame) -> np.ndarray:
    """`(N,)` int64, equal within a sequence; a row without one is a group of its own."""
    own = np.arange(len(frame))
    if "sequence" not in frame:
        return own
    words = frame["sequence"].str.strip()
    codes, _ = pd.factorize(words)
    return np.where((words == "").to_numpy(bool), own, len(frame) + codes).astype(np.int64)


def _warn(found: Own) -> None:
    """What is allowed and may still be a mistake."""
    asked = np.unique(found.queries.labels)
    both = int((asked < found.known).sum())
    if both:
        found.warnings.append(
            f"{both} of {len(asked)} labels that are asked for are in train too: the score says "
            "little about new ones."
        )
    sizes = np.bincount(found.train.labels)
    if (sizes == 1).any():
        found.warnings.append(
            f"{int((sizes == 1).sum())} of {found.known} train labels have one image: pair and "
            "triplet losses learn nothing from them."
        )
    shared = np.intersect1d(found.train.paths, np.union1d(found.queries.paths, found.gallery.paths))
    if len(shared):
        found.warnings.append(
            f"{len(shared)} pictures are in train and validation, with other boxes, the first is "
            f"{os.fsdecode(shared[0])}."
        )
