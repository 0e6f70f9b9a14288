"""Humpback's files as tables: train with `new_whale` as label -1, test, boxes.

Kaggle's layout: `train.csv (Image,Id)`, `train/` and `test/` flat, `sample_submission.csv
(Image,Id)`. Any re-identification set in this layout works: the images decide what an Id is.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.dataset import check_files
from common.data.tables import DataError, read_columns
from common.paths import find_data
from common.types import Table

SLUGS = ("humpback-whale-identification", "happy-whale-and-dolphin")
SAMPLE = Path(__file__).parent / "sample"
NAMES = {
    "Image": (r"[^/\\,\s]+", "a plain file name without folders or spaces"),
    "Id": (r"[^\s,]+", "an id without spaces or commas"),
}


@dataclass
class DataConfig:
    """The `data:` section."""

    root: str | None = None
    unknown: str = "new_whale"
    boxes: str | None = None
    box_margin: float = 0.05
    fold: int = 0
    folds: int = 5
    unseen: float = 0.1
    unknown_share: float = 0.276

    def __post_init__(self) -> None:
        if not 0 <= self.box_margin <= 1:
            raise ValueError(f"data.box_margin={self.box_margin}: a share of the box, 0 to 1.")
        if not 0 <= self.unknown_share < 1:
            raise ValueError(f"data.unknown_share={self.unknown_share}: a share in [0, 1).")


@dataclass
class Whale:
    """Everything that was found.

    Attributes:
        root: the data folder; `origin` says why this one.
        classes: `(C,)` Ids of known individuals; a label is a position in it.
        unknown: the Id that stands for all others.
        train: rows of train.csv, label -1 for the unknown.
        test: rows of the sample submission, or else of the test folder.
        boxes: by image name, x0, y0, x1, y1 in pixels; empty without a csv of them.
        sample: the sample submission, or None.
        warnings: one line per oddity that does not stop the work.
    """

    root: Path
    origin: str
    classes: np.ndarray
    unknown: str
    train: Table
    test: Table
    boxes: dict[str, tuple[float, float, float, float]]
    sample: Path | None
    warnings: list[str]

    def describe(self) -> str:
        """What was found, one line, and a line for each warning."""
        new = int((self.train.labels < 0).sum())
        single = int((np.bincount(self.train.labels[self.train.labels >= 0]) == 1).sum())
        text = (
            f"data: {self.root} ({self.origin}): {len(self.train)} train images, {new} of "
            f"{self.unknown}, {len(self.classes)} individuals of which {single} have one image; "
            f"{len(self.test)} test" + (f"; {len(self.boxes)} boxes" if self.boxes else "")
        )
        return "\n".join([text, *(f"warning: {warning}" for warning in self.warnings)])

    def fingerprint(self) -> dict[str, object]:
        """Counts and a digest of the ids, to tell one data set from another in the logs."""
        digest = hashlib.sha256()
        for table in (self.train, self.test):
            digest.update(np.ascontiguousarray(table.ids).tobytes())
        counts = {"train": len(self.train), "test": len(self.test), "classes": len(self.classes)}
        return {**counts, "sha256": digest.hexdigest()[:16]}

    def solution(self) -> Path | None:
        """The solution file, when it lies beside the data."""
        path = self.root / "solution.csv"
        return path if path.is_file() else None


def read(config: DataConfig) -> Whale:
    """All tables, checked.

    Raises:
        FileNotFoundError: no data where `data.root` points, or no images.
        DataError: a csv without its columns, malformed or repeated names, no known individual, no
            test images, boxes that are no boxes.
    """
    root, origin = find_data(config.root, slugs=SLUGS, marker="train.csv", sample=SAMPLE)
    frame = read_columns(root / "train.csv", ["Image", "Id"], NAMES).sort_values("Image")
    ids = frame["Id"].to_numpy(np.str_)
    classes = np.unique(ids[ids != config.unknown])
    if not len(classes):
        raise DataError(
            f"{root / 'train.csv'} has no Id but {config.unknown!r}: there is nobody to recognise."
        )
    labels = np.searchsorted(classes, ids)
    labels = np.where(ids == config.unknown, -1, labels).astype(np.int64)
    train = _table(root / "train", frame["Image"].to_numpy(np.str_), labels)
    sample = root / "sample_submission.csv"
    if sample.is_file():
        names = read_columns(sample, ["Image"], NAMES)["Image"].to_numpy(np.str_)
    else:
        folder = root / "test"
        names = np.array(sorted(p.name for p in folder.glob("*.*")) if folder.is_dir() else [])
    if not len(names):
        raise DataError(f"The test set under {root} is empty: no {sample.name}, no test/*.")
    test = _table(root / "test", names, np.full(len(names), -1, np.int64))
    boxes = _boxes(config, root)
    if boxes:
        train.boxes, test.boxes = _crops(boxes, train), _crops(boxes, test)
    found = Whale(
        root,
        origin,
        classes,
        config.unknown,
        train,
        test,
        boxes,
        sample if sample.is_file() else None,
        [],
    )
    _check(found)
    return found


def _check(found: Whale) -> None:
    """Look at a sample of the files of each table before any long work."""
    for name, table in (("train", found.train), ("test", found.test)):
        missing, looked = check_files(table.paths, table.ids), min(len(table), 1000)
        if missing:
            found.warnings.append(
                f"{missing} of {looked} {name} images looked for are not under {found.root}; they "
                "count as unreadable."
            )
    if not (found.train.labels < 0).any():
        found.warnings.append(
            f"no train image is {found.unknown}: validation rejects only individuals that "
            "training does not see (data.unseen)."
        )
    strange = [n for n in found.boxes if n not in {*found.train.ids, *found.test.ids}]
    if strange:
        found.warnings.append(
            f"{len(strange)} boxes are of images that are in neither train nor test, the first is "
            f"{strange[0]}."
        )


def _boxes(config: DataConfig, root: Path) -> dict[str, tuple[float, float, float, float]]:
    """Boxes by image name, grown by the margin."""
    if config.boxes == "none":
        return {}
    path = Path(config.boxes) if config.boxes else root / "bboxs.csv"
    if not path.is_file() and config.boxes is None:
        return {}
    columns = ["Image", "x0", "y0", "x1", "y1"]
    number = (r"-?\d+(\.\d*)?", "a number of pixels")
    patterns = {"Image": NAMES["Image"], **dict.fromkeys(columns[1:], number)}
    frame = read_columns(path, columns, patterns)
    corners = frame[columns[1:]].to_numpy(np.float64)
    flat = np.flatnonzero((corners[:, 2:] <= corners[:, :2]).any(1))
    if len(flat):
        raise DataError(
            f"{path} row {flat[0] + 2}: the box {corners[flat[0]].tolist()} has no area; columns "
            "are x0,y0,x1,y1 with x1 > x0 and y1 > y0."
        )
    grow = config.box_margin * (corners[:, 2:] - corners[:, :2])
    corners = np.concatenate([np.maximum(corners[:, :2] - grow, 0), corners[:, 2:] + grow], 1)
    names = frame["Image"].tolist()
    return {name: tuple(box) for name, box in zip(names, corners.tolist(), strict=True)}


def _crops(boxes: dict[str, tuple[float, float, float, float]], table: Table) -> np.ndarray:
    """`(N, 4)` box of each row, zeros for none."""
    none = (0.0, 0.0, 0.0, 0.0)
    rows = [boxes.get(str(name), none) for name in table.ids]
    return np.array(rows, np.float64).reshape(-1, 4)


def _table(folder: Path, names: np.ndarray, labels: np.ndarray) -> Table:
    paths = np.array([os.fsencode(folder / str(name)) for name in names])
    return Table(names.astype(np.str_), paths, labels)
