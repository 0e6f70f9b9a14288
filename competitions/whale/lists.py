"""The individuals of each image with their scores as a csv file, for ensembles without embeddings.

`infer.py` leaves `lists.csv` in the run folder: `Image,Id,Score`, a line per listed individual, of
test and held-out images. `ensemble.lists` reads such files, and submissions (`Image,Id`, up to five
Ids with a space between, which give ranks but no scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.data.tables import DataError, read_columns, read_frame
from common.paths import write_text
from common.types import Neighbors

from .data import NAMES, Whale

Lists = dict[str, list[tuple[int, float]]]  # image -> labels and scores, best first
LONGEST = 20  # individuals of an image: the 2nd place joined the first 10 or 20


def write_lists(path: Path, parts: Sequence[tuple[np.ndarray, Neighbors]], data: Whale) -> None:
    """Write the first `LONGEST` individuals of each image, best first.

    Args:
        path: the file.
        parts: ids `(Q,)` of images and their individuals, before the unknown identity comes in.
        data: its classes name the individuals.
    """
    lines = ["Image,Id,Score"]
    for ids, found in parts:
        some = found.top(LONGEST)
        row, column = np.nonzero(some.index.numpy() >= 0)
        names = data.classes[some.index.numpy()[row, column]]
        scores = some.score.numpy()[row, column].tolist()
        pairs = zip(ids[row].tolist(), names.tolist(), scores, strict=True)
        lines += [f"{image},{name},{score:.7g}" for image, name, score in pairs]
    write_text(path, "\n".join(lines) + "\n")


def read_lists(path: str | Path, data: Whale, *, scores: bool) -> Lists:
    """For each image its individuals' labels and scores, best first; without the unknown identity.

    Of a submission the scores are 1 / rank among the individuals.

    Args:
        path: the file.
        data: whose individuals they are.
        scores: whether scores are needed, or ranks will do.

    Raises:
        FileNotFoundError: no such file.
        DataError: columns that are missing, an Id that is nobody's, one twice, no number.
    """
    file = Path(path)
    if "Score" not in read_frame(file, nrows=0).columns:
        if scores:
            raise DataError(f"{file} has no column 'Score': join it by ranks, ensemble.by=ranks.")
        frame = read_columns(file, ["Image", "Id"], {"Image": NAMES["Image"]})
        frame = frame.assign(Id=frame["Id"].str.split()).explode("Id", ignore_index=True)
        frame = frame[frame["Id"] != data.unknown].reset_index(drop=True)
        frame["Score"] = 1.0 / (frame.groupby("Image").cumcount() + 1)
    else:
        frame = read_frame(file, usecols=lambda name: name in ("Image", "Id", "Score"))
        missing = [name for name in ("Image", "Id") if name not in frame]
        if missing:
            raise DataError(f"{file} has no column {missing[0]!r}; it must have Image, Id, Score.")
        frame["Score"] = pd.to_numeric(frame["Score"], errors="coerce")
        _refuse(~np.isfinite(frame["Score"].to_numpy(float)), file, "the Score is no number.")
        frame = frame[frame["Id"] != data.unknown].reset_index(drop=True)
    if not len(frame):
        raise DataError(f"{file} lists no individual.")
    label = pd.Index(data.classes).get_indexer(pd.Index(frame["Id"].astype(str)))
    strange = np.flatnonzero(label < 0)
    if len(strange):
        name = frame["Id"].iloc[strange[0]]
        raise DataError(f"{file}: nobody in train.csv is {name!r}; is it of another data set?")
    twice = frame.duplicated(["Image", "Id"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise DataError(f"{file} lists {row['Id']} twice for {row['Image']}.")
    order = np.lexsort((label, -frame["Score"].to_numpy(float)))
    found: Lists = {}
    images, values = frame["Image"].to_numpy(), frame["Score"].to_numpy(float)
    for row in order.tolist():
        found.setdefault(str(images[row]), []).append((int(label[row]), float(values[row])))
    return found


def listed(lists: Lists, ids: np.ndarray, path: str | Path) -> Neighbors:
    """The individuals of these images, `(Q, K)`.

    Raises:
        DataError: an image that the file does not list.
    """
    missing = [name for name in ids.tolist() if name not in lists]
    if missing:
        raise DataError(
            f"{path} lists nobody for {len(missing)} of {len(ids)} images, the first is "
            f"{missing[0]}; is it of another data set?"
        )
    width = max((len(lists[name]) for name in ids.tolist()), default=0)
    index = torch.full((len(ids), width), -1)
    score = torch.full((len(ids), width), -torch.inf)
    for row, name in enumerate(ids.tolist()):
        labels, values = zip(*lists[name], strict=True)
        index[row, : len(labels)] = torch.tensor(labels)
        score[row, : len(labels)] = torch.tensor(values)
    return Neighbors(index, score)


def _refuse(bad: np.ndarray, path: Path, text: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        raise DataError(f"{path} row {rows[0] + 2}: {text}")
