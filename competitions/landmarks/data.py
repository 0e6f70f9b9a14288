"""Google Landmarks' files as tables: train, index, test, known non-landmarks, folds, truth.

Kaggle's layout: `train.csv (id,landmark_id)`, `train|test|index/a/b/c/<id>.jpg`, and sample
submissions with `id,landmarks` or `id,images`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.dataset import check_files
from common.data.tables import DataError, read_columns, read_frame
from common.paths import find_data
from common.types import Table

SLUGS = (
    "landmark-recognition-2021",
    "landmark-retrieval-2021",
    "landmark-recognition-2020",
    "landmark-retrieval-2020",
)
SAMPLE = Path(__file__).parent / "sample"
ID = r"[0-9A-Za-z_-]{3,64}"


@dataclass
class DataConfig:
    """The `data:` section."""

    root: str | None = None
    extended: str | None = None
    non_landmark: str | None = None
    keep: str | None = None
    fold: int = 0
    folds: int = 8
    unseen: float = 0.1
    max_queries: int = 5000
    max_gallery: int = 50000


@dataclass
class Landmarks:
    """Everything that was found.

    Attributes:
        root: the data folder; `origin` says why this one.
        classes: `(C,)` landmark ids as text; a label is a position in it.
        train: rows of train.csv, then the further rows of the extended set.
        clean: how many rows of `train` are from train.csv.
        in_clean: `(C,)` whether a class occurs in train.csv.
        test: every id that a sample submission or the test folder names.
        index: the retrieval gallery, or None.
        negatives: images known to show no landmark, or None.
        samples: sample submission by task (`recognition`, `retrieval`); ids of each in `test_ids`.
        warnings: one line per oddity that does not stop the work.
    """

    root: Path
    origin: str
    classes: np.ndarray
    train: Table
    clean: int
    in_clean: np.ndarray
    test: Table
    index: Table | None
    negatives: Table | None
    samples: dict[str, Path | None]
    test_ids: dict[str, np.ndarray]
    warnings: list[str]

    def describe(self) -> str:
        """What was found, one line, and a line for each warning."""
        counts = [f"{self.clean} train images of {int(self.in_clean.sum())} landmarks"]
        if len(self.train) > self.clean:
            counts.append(f"{len(self.train) - self.clean} further ones")
        for name in ("test", "index", "negatives"):
            table = getattr(self, name)
            if table is not None:
                counts.append(f"{len(table)} {'non-landmarks' if name == 'negatives' else name}")
        lines = [f"data: {self.root} ({self.origin}): {', '.join(counts)}"]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])

    def fingerprint(self) -> dict[str, object]:
        """Counts and a digest of the ids, to tell one data set from another in the logs."""
        digest = hashlib.sha256()
        counts: dict[str, object] = {"classes": len(self.classes)}
        for name in ("train", "test", "index", "negatives"):
            table = getattr(self, name)
            if table is not None:
                digest.update(np.ascontiguousarray(table.ids).tobytes())
                counts[name] = len(table)
        return {**counts, "sha256": digest.hexdigest()[:16]}

    def rows(self, subset: str) -> np.ndarray:
        """Rows of `train` in a stage's subset: clean, extended (same classes) or full."""
        if subset == "clean":
            return np.arange(self.clean)
        if subset not in ("extended", "full"):
            raise DataError(f"stage data={subset!r}: choose clean, extended or full.")
        if self.clean == len(self.train):
            raise DataError(f"stage data={subset} needs data.extended (train.csv of full GLDv2).")
        if subset == "full":
            return np.arange(len(self.train))
        return np.flatnonzero(self.in_clean[self.train.labels])

    def tables(self) -> dict[str, Table | None]:
        """What is embedded, by the field of `common.pipeline.vectors.Vectors`."""
        named = {"train": self.train, "test": self.test}
        return {**named, "index": self.index, "negatives": self.negatives}

    def solution(self, task: str) -> Path | None:
        """The public solution file, when it lies beside the data."""
        path = self.root / f"{task}_solution_v2.1.csv"
        return path if path.is_file() else None


def read(config: DataConfig) -> Landmarks:
    """All tables, checked.

    Raises:
        FileNotFoundError: no data where `data.root` points, or no images.
        DataError: a csv without its columns, duplicate or malformed ids, an empty test set.
    """
    root, origin = find_data(config.root, slugs=SLUGS, marker="train.csv", sample=SAMPLE)
    frame = _csv(root / "train.csv", ["id", "landmark_id"])
    folders = [np.full(len(frame), os.fsencode(root / "train"))]
    clean = len(frame)
    if config.extended:
        more = _csv(Path(config.extended), ["id", "landmark_id"])
        more = more[~more["id"].isin(frame["id"])]
        frame = pd.concat([frame, more], ignore_index=True)
        folders.append(np.full(len(more), os.fsencode(Path(config.extended).parent / "train")))
    classes, labels = np.unique(frame["landmark_id"].to_numpy(np.str_), return_inverse=True)
    ids = frame["id"].to_numpy(np.str_)
    order = np.concatenate([np.argsort(ids[:clean]), clean + np.argsort(ids[clean:])])
    paths = _paths(np.concatenate(folders), ids)
    train = Table(ids[order], paths[order], labels[order].astype(np.int64))
    in_clean = np.bincount(train.labels[:clean], minlength=len(classes)) > 0

    samples, test_ids = _samples(root)
    listed = _list(root / "test") if not test_ids else np.zeros(0, np.str_)
    tests = np.unique(np.concatenate([*test_ids.values(), listed]))
    if len(tests) == 0:
        raise DataError(
            f"The test set under {root} is empty: no ids in a sample submission and no "
            "test/*/*/*/*.jpg."
        )
    test_ids = {task: test_ids.get(task, tests) for task in ("recognition", "retrieval")}
    test = _table(root, "test", tests)
    index = None
    if (root / "index").is_dir():
        index = _table(root, "index", _list(root / "index"))
    found = Landmarks(
        root=root,
        origin=origin,
        classes=classes,
        train=train,
        clean=clean,
        in_clean=in_clean,
        test=test,
        index=index if index is not None and len(index) else None,
        negatives=_negatives(config, root),
        samples=samples,
        test_ids=test_ids,
        warnings=[],
    )
    _check(found)
    return found


def _negatives(config: DataConfig, root: Path) -> Table | None:
    """Non-landmarks known at training time; winners used the 2019 test images for this."""
    file = Path(config.non_landmark) if config.non_landmark else root / "non_landmark.csv"
    if not file.is_file() and config.non_landmark is None:
        return None
    return _table(file.parent, "train", np.sort(_csv(file, ["id"])["id"].to_numpy(np.str_)))


def _check(found: Landmarks) -> None:
    """Look at a sample of the files of each table before any long work."""
    parts = {"train": found.train, "index": found.index, "test": found.test}
    for name, table in {**parts, "non_landmark": found.negatives}.items():
        if table is None:
            continue
        missing, looked = check_files(table.paths, table.ids), min(len(table), 1000)
        if missing:
            found.warnings.append(
                f"{missing} of {looked} {name} images looked for are not under {found.root}; "
                "they count as unreadable."
            )
    sample = found.samples["retrieval"]
    if sample is not None and found.index is None:
        found.warnings.append(
            f"{sample} asks for index images and {found.root}/index has none: no retrieval."
        )
    known = np.isin(found.test.ids, found.train.ids)
    if known.any():
        first = found.test.ids[known][0]
        found.warnings.append(f"{known.sum()} test ids are also train ids, the first is {first}.")


def _csv(path: Path, columns: list[str]) -> pd.DataFrame:
    """The columns of a csv; ids are unique and safe to build paths from."""
    patterns = {
        "id": (ID, "a plain id of 3 or more letters, digits, - or _"),
        # Kaggle refuses a submission with other labels.
        "landmark_id": ("[0-9]+", "a whole number; write it with digits only"),
    }
    return read_columns(path, columns, patterns)


def _samples(root: Path) -> tuple[dict[str, Path | None], dict[str, np.ndarray]]:
    """Sample submissions by task, told apart by their columns, and the ids they ask for."""
    samples: dict[str, Path | None] = {"recognition": None, "retrieval": None}
    ids: dict[str, np.ndarray] = {}
    columns = {"landmarks": "recognition", "images": "retrieval"}
    for path in sorted(root.glob("*sample_submission.csv")):
        header = read_frame(path, nrows=0).columns.tolist()
        task = columns.get(header[1]) if len(header) == 2 and header[0] == "id" else None
        if task is None:
            raise DataError(
                f"{path} has columns {','.join(header)}; a sample submission of this competition "
                "has id,landmarks or id,images."
            )
        before = samples[task]
        if before is not None:
            raise DataError(f"{before} and {path.name} are both for {task}: keep one of them.")
        samples[task] = path
        ids[task] = _csv(path, ["id"])["id"].to_numpy(np.str_)
    return samples, ids


def _list(folder: Path) -> np.ndarray:
    """Sorted ids of all `a/b/c/<id>.jpg` in `folder` (Kaggle ships no csv of them)."""

    def walk(path: str, depth: int) -> Iterator[str]:
        with os.scandir(path) as entries:
            for entry in entries:
                if depth and entry.is_dir():
                    yield from walk(entry.path, depth - 1)
                elif not depth and entry.name.endswith(".jpg"):
                    if not re.fullmatch(ID, entry.name[:-4]):
                        raise DataError(f"{entry.path} is not named by an id: move it elsewhere.")
                    yield entry.name[:-4]

    if not folder.is_dir():
        return np.zeros(0, np.str_)
    return np.sort(np.array(list(walk(str(folder), 3)), np.str_))


def _table(root: Path, split: str, ids: np.ndarray) -> Table:
    folders = np.full(len(ids), os.fsencode(root / split))
    return Table(ids, _paths(folders, ids), np.full(len(ids), -1, np.int64))


def _paths(folders: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """`folder/a/b/c/<id>.jpg` of `(N,)` bytes and ids; a, b, c are the id's first characters."""
    if len(ids) == 0:
        return np.zeros(0, "S1")
    name = ids.astype("S")
    letters = np.ascontiguousarray(name).view("S1").reshape(len(name), -1)
    out = folders
    for piece in (letters[:, 0], letters[:, 1], letters[:, 2], name):
        out = np.strings.add(np.strings.add(out, b"/"), piece)
    return np.strings.add(out, b".jpg")
