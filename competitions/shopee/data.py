"""Shopee's files as tables: train with groups, test, what is held out of training.

Kaggle's layout: `train.csv test.csv (posting_id,image,image_phash,title[,label_group])`,
`train_images/ test_images/`. Any product matching in this layout works; `image_phash` may be left
out.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.dataset import check_files
from common.data.phash import dct_hashes, hash_values
from common.data.tables import DataError, read_columns, read_frame
from common.data.titles import SPELLINGS
from common.paths import find_data
from common.types import Table

SLUGS = ("shopee-product-matching",)
SAMPLE = Path(__file__).parent / "sample"
LIMIT = 50  # matches that a row of the submission may name
PATTERNS = {
    "posting_id": (r"[A-Za-z0-9_.-]+", "a plain id of letters, digits, _ . and -"),
    "image": (r"[^/\\,]*[^/\\,.\s][^/\\,]*", "a plain file name without folders"),
    "image_phash": (r"[0-9a-fA-F]{16}", "16 hex digits"),
    "label_group": (r"[^\s,]+", "a group without spaces or commas"),
}


@dataclass
class DataConfig:
    """The `data:` section."""

    root: str | None = None
    titles: str = "plain"
    fold: int = 0
    folds: int = 5
    distractors: int = -1
    strangers: list[str] = field(default_factory=lambda: ["test", "train"])
    hidden: int = 70_000

    def __post_init__(self) -> None:
        if self.titles not in SPELLINGS:
            raise ValueError(f"data.titles={self.titles!r}: choose {', '.join(SPELLINGS)}.")
        if self.folds < 2 or self.fold >= self.folds:
            raise ValueError(
                f"data.fold={self.fold} of data.folds={self.folds}: at least 2 folds, the first "
                "is 0; -1 trains on everything."
            )
        if self.distractors < -1:
            raise ValueError(
                f"data.distractors={self.distractors}: a number, or -1 for as many as the test has."
            )
        if set(self.strangers) - {"test", "train"} or len(set(self.strangers)) != len(
            self.strangers
        ):
            raise ValueError(
                f"data.strangers={self.strangers}: test, train, both in either order, or []."
            )
        if self.hidden < 1:
            raise ValueError(f"data.hidden={self.hidden}: how many listings the hidden test has.")


@dataclass
class Shopee:
    """Everything that was found.

    Attributes:
        root: the data folder; `origin` says why this one.
        classes: `(C,)` label groups as text; a label is a position in it.
        train: rows of train.csv, by posting_id; titles as `data.titles` says, perhaps empty. Two
            listings may have one picture.
        test: rows of test.csv, in its order, label -1.
        phash: by table (train, test) the `(N,)` uint64 of its csv, None without such a column.
        hidden: how many listings the real test has: a visible test of a few rows only stands for
            the one that the kernel is run on.
        sample: the sample submission, or None.
        warnings: one line per oddity that does not stop the work.
    """

    root: Path
    origin: str
    classes: np.ndarray
    train: Table
    test: Table
    phash: dict[str, np.ndarray | None]
    hidden: int
    sample: Path | None
    warnings: list[str]

    def describe(self) -> str:
        """What was found, one line, and a line for each warning."""
        sizes = np.bincount(self.train.labels)
        text = (
            f"data: {self.root} ({self.origin}): {len(self.train)} train listings in "
            f"{len(self.classes)} groups of {sizes.min()} to {sizes.max()}; {len(self.test)} test"
        )
        return "\n".join([text, *(f"warning: {warning}" for warning in self.warnings)])

    def fingerprint(self) -> dict[str, object]:
        """Counts and a digest of ids and titles, to tell one data set from another in the logs."""
        digest = hashlib.sha256()
        for table in (self.train, self.test):
            digest.update(np.ascontiguousarray(table.ids).tobytes())
            digest.update("\0".join(titles_of(table)).encode())
        counts = {"train": len(self.train), "test": len(self.test), "classes": len(self.classes)}
        return {**counts, "sha256": digest.hexdigest()[:16]}

    def tables(self) -> dict[str, Table | None]:
        """What is embedded, by the field of `common.pipeline.vectors.Vectors`."""
        return {"train": self.train, "test": self.test}

    def hashes(self, name: str) -> np.ndarray:
        """`(N,)` uint64 perceptual hashes of a table's pictures, `train` or `test`.

        Made from the pictures where the csv has none; one that cannot be read gets hash 0.
        """
        known = self.phash[name]
        if known is None:
            known = self.phash[name] = dct_hashes(getattr(self, name).paths)[0]
        return known

    def solution(self) -> Path | None:
        """The solution file, when it lies beside the data."""
        path = self.root / "solution.csv"
        return path if path.is_file() else None


def read(config: DataConfig) -> Shopee:
    """All tables, checked.

    Raises:
        FileNotFoundError: no data where `data.root` points, no test.csv, or no images.
        DataError: a csv without its columns or rows, malformed or repeated posting_ids.
    """
    root, origin = find_data(config.root, slugs=SLUGS, marker="train.csv", sample=SAMPLE)
    train = _csv(root / "train.csv", ["label_group"]).sort_values("posting_id")
    classes, labels = np.unique(train["label_group"].to_numpy(np.str_), return_inverse=True)
    test = _csv(root / "test.csv", [])
    shared = np.intersect1d(train["posting_id"].to_numpy(), test["posting_id"].to_numpy())
    if len(shared):
        raise DataError(f"posting_id {shared[0]} is in both train.csv and test.csv of {root}.")
    sample = root / "sample_submission.csv"
    found = Shopee(
        root,
        origin,
        classes,
        _table(train, root / "train_images", labels, config.titles),
        _table(test, root / "test_images", np.full(len(test), -1), config.titles),
        {"train": _phash(train), "test": _phash(test)},
        # Kaggle shows three rows of the test; nobody has a test of 3 and thousands to train on.
        config.hidden if len(test) <= 3 and len(train) > 1000 else len(test),
        sample if sample.is_file() else None,
        [],
    )
    _check(found)
    return found


def _csv(path: Path, more: list[str]) -> pd.DataFrame:
    """The listings of a csv; `image_phash` only if it is there."""
    columns = ["posting_id", "image", "title", *more]
    if "image_phash" in read_frame(path, nrows=0, encoding_errors="replace"):
        columns.append("image_phash")
    return read_columns(path, columns, PATTERNS, texts=["title"])


def _table(frame: pd.DataFrame, folder: Path, labels: np.ndarray, titles: str) -> Table:
    paths = np.array([os.fsencode(folder / name) for name in frame["image"]])
    texts = np.array(
        [SPELLINGS[titles](title) for title in frame["title"]], np.dtypes.StringDType()
    )
    ids = frame["posting_id"].to_numpy(np.str_)
    return Table(ids, paths, labels.astype(np.int64), titles=texts)


def _phash(frame: pd.DataFrame) -> np.ndarray | None:
    return hash_values(frame["image_phash"].to_list()) if "image_phash" in frame else None


def titles_of(table: Table) -> list[str]:
    """The titles as a list of str."""
    assert table.titles is not None, "read() gives every table titles"
    found: list[str] = table.titles.tolist()
    return found


def _check(found: Shopee) -> None:
    """Look at a sample of the files and at the groups before any long work."""
    for name, table in (("train", found.train), ("test", found.test)):
        looked = min(len(table), 1000)
        try:
            missing = check_files(table.paths, table.ids)
        except FileNotFoundError:
            # The three pictures of a stub may be missing; a thousand are a wrong folder.
            if looked > 3 or not (found.root / f"{name}_images").is_dir():
                raise
            missing = looked
        if missing:
            found.warnings.append(
                f"{missing} of {looked} {name} images looked for are not under {found.root}; they "
                "count as unreadable, their titles still match."
            )
        empty = sum(not title.strip() for title in titles_of(table))
        if empty:
            found.warnings.append(f"{empty} of {len(table)} {name} titles are empty.")
    sizes = np.bincount(found.train.labels)
    if sizes.max() > LIMIT:
        found.warnings.append(
            f"{int((sizes > LIMIT).sum())} groups have more than {LIMIT} listings, the most "
            f"{sizes.max()}: a row of the submission may name {LIMIT}."
        )
    if sizes.max() < 2:
        raise DataError(
            f"{found.root / 'train.csv'}: every label_group has one listing; there is nothing to "
            "match. Equal products must have equal groups."
        )
