"""What a notebook shows of tables and run folders: pictures, curves, scores.

classes(data.train, data.classes)                 # a line of pictures for each of some classes
curves(history(RUN, {"GAP": "valid/gap"}), x_label="epoch")
results(RUN, "retrieval", "Worst")                # as infer.py left them in the run folder
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from common.report.files import load_analysis, read_json, read_lines
from common.report.sheets import Row, album, sheet
from common.types import Table

QUALITY = 82


class Picture:
    """An image that a notebook shows as a JPEG: as PNG photographs take ten times the space."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def _repr_jpeg_(self) -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        return buffer.getvalue()

    def __repr__(self) -> str:
        return f"picture of {self.image.width} x {self.image.height} pixels"


def classes(
    table: Table,
    names: Sequence[str] | np.ndarray,
    chosen: Sequence[int] | None = None,
    *,
    rows: int = 5,
    across: int = 7,
    side: int = 110,
) -> Picture:
    """A line of pictures for each class, under its name and number of images; boxes are cut out.

    Args:
        table: images with labels.
        names: `(C,)` of the classes.
        chosen: labels; unset: `rows` classes spread from the most to the least frequent.
        rows: lines.
        across: pictures of a line.
        side: of a picture in pixels.

    Raises:
        ValueError: no image has a label.
    """
    counts = np.bincount(table.labels[table.labels >= 0], minlength=len(names))
    if not counts.any():
        raise ValueError("No image of the table has a label: show(table, groups) needs none.")
    if chosen is None:
        order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
        chosen = order[np.linspace(0, len(order) - 1, rows).round().astype(int)].tolist()
    groups = {
        f"{names[c]} · {counts[c]} image{'s' if counts[c] != 1 else ''}": _entries(
            table, np.flatnonzero(table.labels == c)[:across]
        )
        for c in chosen
    }
    return Picture(album(groups, side=side, across=across))


def show(table: Table, groups: Mapping[str, Sequence[int]], *, side: int = 110) -> Picture:
    """A line of pictures for each group of rows of the table, under its heading."""
    most = max((len(rows) for rows in groups.values()), default=1)
    entries = {heading: _entries(table, np.asarray(rows)) for heading, rows in groups.items()}
    return Picture(album(entries, side=side, across=most))


def history(
    folder: str | Path, columns: Mapping[str, str], *, by: str = "epoch"
) -> dict[str, tuple[list[float], list[float]]]:
    """Logged metrics of a run as `plots.curves` draws them: name -> (x, y).

    Args:
        folder: the run folder.
        columns: what is drawn: `{"GAP": "valid/gap"}`.
        by: what the horizontal axis counts: `epoch` or `step`.

    Raises:
        ValueError: a metric that the run has not logged.
    """
    lines = read_lines(Path(folder) / "metrics.jsonl")
    found = {}
    for name, key in columns.items():
        points = {line[by]: line[key] for line in lines if by in line and line.get(key) is not None}
        if not points:
            known = sorted({key for line in lines for key in line})
            raise ValueError(f"{folder} has logged no {key!r}; it has {', '.join(known)}.")
        found[name] = (list(points), list(points.values()))
    return found


def results(
    folder: str | Path, table: str, group: str = "Worst", *, rows: int = 3, top: int = 5
) -> Picture:
    """Queries with what the run found for them, framed by right and wrong.

    Args:
        folder: the run folder, in which infer.py or ensemble.py has run.
        table: one of its `tables/`: recognition, retrieval, whale, worst_groups.
        group: `Worst`, `Best` or `Random`; `All` where there are few.
        rows: queries.
        top: results of each.

    Raises:
        FileNotFoundError: the run has no such table.
    """
    path = Path(folder) / "tables" / f"{table}.json"
    stored = read_json(path)
    if not stored:
        raise FileNotFoundError(f"No {path}: run infer.py run={folder}")
    groups = {one["title"]: one["rows"] for one in stored["groups"]}
    chosen: list[Row] = groups.get(group) or groups[next(iter(groups))]
    return Picture(sheet(chosen[:rows], stored["thumbs"], top=top, side=120))


def scores(*folders: str | Path) -> pd.DataFrame:
    """The score table of runs, a line each: what infer.py and ensemble.py said at their end."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for row in load_analysis(folder).scores:
            found[str(row["name"])] = {k: v for k, v in row.items() if k not in ("name", "note")}
    return pd.DataFrame.from_dict(found, orient="index").round(4)


def _entries(table: Table, rows: np.ndarray) -> list[Row]:
    """Pictures of rows of a table as `album` takes them."""
    found: list[Row] = []
    for row in rows.tolist():
        entry: Row = {"path": table.paths[row]}
        if table.boxes is not None and table.boxes[row].any():
            entry["box"] = table.boxes[row].round().astype(int).tolist()
        if table.titles is not None:
            entry["title"] = str(table.titles[row])
        found.append(entry)
    return found
