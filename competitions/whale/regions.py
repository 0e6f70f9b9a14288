"""What of each image is looked at: boxes, several boxes drawn in turn, points to align by."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.align import frames, mean_layout
from common.data.crops import BoxMix
from common.data.images import ImageError, picture_size
from common.data.tables import DataError, read_columns, read_frame
from common.types import Table

NAME = (r"[^/\\,\s]+", "a plain file name without folders or spaces")
LOOKED_AT = 200  # images whose size is compared with their boxes, of each table

Box = tuple[float, float, float, float]


@dataclass
class BoxShare:
    """A line of `data.box_mix:`: a csv of boxes (or none), and how often training looks at it."""

    boxes: str = "none"
    share: float = 0.0


def read_boxes(root: Path, name: str | None, usual: str, margin: float) -> dict[str, Box]:
    """Boxes by image name, grown by the margin; empty for `none`, or where the usual file is not.

    Args:
        root: the data folder, where a file is looked for first.
        name: of a csv Image,x0,y0,x1,y1 in pixels; None is the usual one.
        usual: its name.
        margin: share of the box added on each side.

    Raises:
        FileNotFoundError: no file of that name.
        DataError: no such columns, values that are no numbers, a box without area.
    """
    path = _find(root, name, usual)
    if path is None:
        return {}
    columns = ["Image", "x0", "y0", "x1", "y1"]
    number = (r"-?\d+(\.\d*)?", "a number of pixels")
    frame = read_columns(path, columns, {"Image": NAME, **dict.fromkeys(columns[1:], number)})
    corners = frame[columns[1:]].to_numpy(np.float64)
    flat = np.flatnonzero((corners[:, 2:] <= corners[:, :2]).any(1))
    if len(flat):
        raise DataError(
            f"{path} row {flat[0] + 2}: the box {corners[flat[0]].tolist()} has no area; columns "
            "are x0,y0,x1,y1 with x1 > x0 and y1 > y0."
        )
    grow = margin * (corners[:, 2:] - corners[:, :2])
    corners = np.concatenate([np.maximum(corners[:, :2] - grow, 0), corners[:, 2:] + grow], 1)
    names = frame["Image"].tolist()
    return {name: tuple(box) for name, box in zip(names, corners.tolist(), strict=True)}


def boxes_of(boxes: dict[str, Box], table: Table) -> np.ndarray:
    """`(N, 4)` box of each row, zeros for none."""
    none = (0.0, 0.0, 0.0, 0.0)
    rows = [boxes.get(str(name), none) for name in table.ids]
    return np.array(rows, np.float64).reshape(-1, 4)


def box_mix(root: Path, lines: list[BoxShare], table: Table, margin: float) -> BoxMix | None:
    """The boxes that training chooses among at each draw, or None without `data.box_mix`.

    Raises:
        DataError: no share above 0; else as `read_boxes`.
    """
    if not lines:
        return None
    if any(line.share < 0 for line in lines) or not any(line.share for line in lines):
        raise DataError("data.box_mix: shares must be positive, as in {boxes: bboxs.csv, share: 1}")
    named = [line for line in lines if line.boxes != "none"]
    columns = [boxes_of(read_boxes(root, n.boxes, "", margin), table) for n in named]
    return BoxMix(
        np.stack(columns, 1) if columns else np.zeros((len(table), 0, 4)),
        np.array([line.share for line in named]),
        sum(line.share for line in lines if line.boxes == "none"),
    )


def read_points(root: Path, name: str | None) -> dict[str, np.ndarray]:
    """`(P, 2)` points x, y by image name, NaN for empty values; as `read_boxes` reads its files.

    Columns are Image,x0,y0,x1,y1,...: at least three points, the same ones in the same order in
    every image.

    Raises:
        FileNotFoundError: no file of that name.
        DataError: fewer points, values that are no numbers, an image twice.
    """
    path = _find(root, name, "keypoints.csv")
    if path is None:
        return {}
    known = set(read_frame(path, nrows=0).columns)
    count = 0
    while {f"x{count}", f"y{count}"} <= known:
        count += 1
    if count < 3:
        raise DataError(
            f"{path} has {count} points; it must have Image,x0,y0,x1,y1,x2,y2 and may have more."
        )
    columns = [f"{axis}{point}" for point in range(count) for axis in "xy"]
    # Each image once, with a well-formed name; values may be missing.
    names = read_columns(path, ["Image"], {"Image": NAME})["Image"].tolist()
    text = read_frame(path, usecols=["Image", *columns])[columns]
    values = text.apply(pd.to_numeric, errors="coerce")
    wrong = np.argwhere((values.isna() & text.notna()).to_numpy())
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{path} row {row + 2}: {columns[column]} {text.iloc[row, column]!r} is not a number "
            "of pixels; leave it empty for a point that cannot be seen."
        )
    points = values.to_numpy(np.float64).reshape(len(names), count, 2)
    return dict(zip(names, points, strict=True))


def frames_of(
    points: dict[str, np.ndarray], train: Table, test: Table, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """`(N, 8)` frames of both tables, aligned to the mean shape of the train images.

    Raises:
        DataError: no train image has all points, or they lie on a line.
    """
    none = np.full_like(next(iter(points.values())), np.nan)
    found = [np.stack([points.get(str(i), none) for i in table.ids]) for table in (train, test)]
    try:
        layout = mean_layout(found[0])
    except ValueError as error:
        raise DataError(f"keypoints: {error}") from None
    return frames(found[0], layout, margin=margin), frames(found[1], layout, margin=margin)


def outside(table: Table, what: str) -> list[str]:
    """A warning if boxes or frames lie outside of their images, of a sample of these."""
    boxes = np.zeros((len(table), 4)) if table.boxes is None else table.boxes
    frame = np.zeros((len(table), 8)) if table.frames is None else table.frames
    rows = np.flatnonzero(boxes.any(1) | frame.any(1))
    rows = (
        rows[np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT).astype(int))] if len(rows) else rows
    )
    wrong: dict[str, list[str]] = {"boxes": [], "points": []}
    for row in rows.tolist():
        try:
            size = picture_size(table.paths[row])
        except ImageError:  # told when it is read
            continue
        if (boxes[row, :2] >= size).any():
            wrong["boxes"].append(str(table.ids[row]))
        if frame[row].any():
            middle = frame[row, :6].reshape(2, 3) @ (frame[row, 6] / 2, frame[row, 7] / 2, 1)
            if (middle < 0).any() or (middle >= size).any():
                wrong["points"].append(str(table.ids[row]))
    then = {"boxes": "such an image counts as unreadable", "points": "its box is looked at instead"}
    return [
        f"{len(names)} of {len(rows)} {what} images looked at have {kind} outside of them, the "
        f"first is {names[0]}: {then[kind]}."
        for kind, names in wrong.items()
        if names
    ]


def mask_files(root: Path, table: Table, what: str) -> tuple[np.ndarray, list[str]]:
    """`(N,)` bytes file `masks/<name>.png` of each image, empty for none, and what to warn of.

    Raises:
        FileNotFoundError: no such folder.
        DataError: no mask at all, or one of another size than its image, of a sample of these.
    """
    folder = root / "masks"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder {folder}: it must hold a png of each image's name, white inside, or set "
            "data.mask=box."
        )
    there = {path.stem for path in folder.glob("*.png")}
    stems = [Path(str(name)).stem for name in table.ids]
    files = np.array([os.fsencode(folder / f"{s}.png") if s in there else b"" for s in stems])
    rows = np.flatnonzero(files != b"")
    if not len(rows):
        raise DataError(f"{folder} has no mask of any {what} image; names are those of the images.")
    for row in rows[np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT).astype(int))].tolist():
        try:
            mask, image = picture_size(files[row]), picture_size(table.paths[row])
        except ImageError:
            continue
        if mask != image:
            raise DataError(
                f"{os.fsdecode(files[row])} has {mask[0]} x {mask[1]} pixels, its image "
                f"{image[0]} x {image[1]}: a mask has its image's pixels."
            )
    if len(rows) == len(files):
        return files, []
    missing = len(files) - len(rows)
    return files, [f"{missing} of {len(files)} {what} images have no mask: theirs is black."]


def _find(root: Path, name: str | None, usual: str) -> Path | None:
    """The file in the data folder, else by its path; None where there is none to be read."""
    if name == "none":
        return None
    if name is None:
        return root / usual if (root / usual).is_file() else None
    return root / name if (root / name).is_file() else Path(name)
