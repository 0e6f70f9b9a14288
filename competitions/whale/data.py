"""Humpback's files as tables: train with `new_whale` as label -1, test, boxes.

Kaggle's layout: `train.csv (Image,Id)`, `train/` and `test/` flat, `sample_submission.csv
(Image,Id)`. Any re-identification set in this layout works: the images decide what an Id is.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.data.dataset import check_files
from common.data.tables import DataError, read_columns
from common.paths import find_data
from common.types import Table

from .regions import (
    NAME,
    BoxShare,
    boxes_of,
    frames_of,
    mask_files,
    outside,
    read_boxes,
    read_points,
)

SLUGS = ("humpback-whale-identification",)
SAMPLE = Path(__file__).parent / "sample"
NAMES = {
    "Image": NAME,
    "Id": (r"[^\s,]+", "an id without spaces or commas"),
}


@dataclass
class DataConfig:
    """The `data:` section."""

    root: str | None = None
    unknown: str = "new_whale"
    boxes: str | None = None
    box_margin: float = 0.05
    box_mix: list[BoxShare] = field(default_factory=list)
    keypoints: str | None = "none"
    align: float = 0.5
    mask: str = "none"
    mask_drop: float = 0.5
    pseudo: str | None = None
    keep: str | None = None
    fold: int = 0
    folds: int = 5
    unseen: float = 0.1
    unknown_share: float = 0.276

    def __post_init__(self) -> None:
        if not 0 <= self.box_margin <= 1:
            raise ValueError(f"data.box_margin={self.box_margin}: a share of the box, 0 to 1.")
        if not 0 <= self.align <= 1:
            raise ValueError(f"data.align={self.align}: how often training aligns, 0 to 1.")
        if self.mask not in ("none", "files", "box") or not 0 <= self.mask_drop <= 1:
            raise ValueError(
                f"data.mask={self.mask!r}, data.mask_drop={self.mask_drop}: choose none, files or "
                "box, and how often training leaves it out, 0 to 1."
            )
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
        if self.train.frames is not None and self.test.frames is not None:
            aligned = [int(t.frames.any(1).sum()) for t in (self.train, self.test)]  # type: ignore[union-attr]
            text += f"; {aligned[0]} train and {aligned[1]} test images aligned by points"
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
    boxes = read_boxes(root, config.boxes, "bboxs.csv", config.box_margin)
    if boxes:
        train.boxes, test.boxes = boxes_of(boxes, train), boxes_of(boxes, test)
    points = read_points(root, config.keypoints)
    if points:
        train.frames, test.frames = frames_of(points, train, test, config.box_margin)
    warnings = []
    if config.mask == "box":
        marked = read_boxes(root, config.boxes, "bboxs.csv", 0.0)
        if not marked:
            raise DataError("data.mask=box needs boxes: name their csv in data.boxes.")
        train.masks, test.masks = boxes_of(marked, train), boxes_of(marked, test)
    elif config.mask == "files":
        for name, table in (("train", train), ("test", test)):
            table.masks, said = mask_files(root, table, name)
            warnings += said
    found = Whale(
        root,
        origin,
        classes,
        config.unknown,
        train,
        test,
        boxes,
        sample if sample.is_file() else None,
        warnings,
    )
    _check(found, points)
    return found


def _check(found: Whale, points: dict[str, np.ndarray]) -> None:
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
    images = {*found.train.ids.tolist(), *found.test.ids.tolist()}
    for what, known in (("boxes", found.boxes), ("keypoints", points)):
        strange = [name for name in known if name not in images]
        if strange:
            found.warnings.append(
                f"{len(strange)} {what} are of images that are in neither train nor test, the "
                f"first is {strange[0]}."
            )
    for name, table in (("train", found.train), ("test", found.test)):
        found.warnings += outside(table, name)


def _table(folder: Path, names: np.ndarray, labels: np.ndarray) -> Table:
    paths = np.array([os.fsencode(folder / str(name)) for name in names])
    return Table(names.astype(np.str_), paths, labels)
