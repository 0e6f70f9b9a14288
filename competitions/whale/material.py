"""What a training learns from: rows that are not held out, pseudo-labelled ones, mirrored twins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.data.crops import BoxMix
from common.data.tables import DataError, read_columns
from common.pipeline.clean import kept_rows
from common.types import Table

from .config import Config
from .data import NAMES, Whale
from .ranking import Held
from .regions import box_mix
from .twins import doubled, twin_names


@dataclass
class Material:
    """The rows of a training.

    Attributes:
        table: one row per image; with twins all rows, then all mirrored.
        classes: names of the criterion's classes.
        mix: boxes that each draw chooses among, or None.
        remarks: a line per thing worth saying.
    """

    table: Table
    classes: np.ndarray
    mix: BoxMix | None
    remarks: list[str]

    @classmethod
    def of(cls, data: Whale, config: Config, held: Held | None) -> Material:
        """All of it, for what is held out.

        Raises:
            FileNotFoundError: no file of boxes, of images to keep or of pseudo-labels.
            DataError: one that cannot be used.
        """
        table, remarks = data.train, []
        if held is not None:
            table = data.train.take(held.split.train)
        kept = kept_rows(config.data.keep, table.ids)
        if not kept.all():
            remarks.append(f"keep: {kept.sum()} of {len(kept)} train images")
        table = table.take(kept)
        if config.data.pseudo is not None:
            more, remark = pseudo_rows(Path(config.data.pseudo), data, held)
            table = Table.concatenate([table, more])
            remarks.append(remark)
        mix = box_mix(data.root, config.data.box_mix, table, config.data.box_margin)
        if not config.twins:
            return cls(table, data.classes, mix, remarks)
        rows = np.tile(np.arange(len(table)), 2)
        mix = None if mix is None else mix.take(rows)
        return cls(doubled(table, len(data.classes)), twin_names(data.classes), mix, remarks)


def pseudo_rows(path: Path, data: Whale, held: Held | None) -> tuple[Table, str]:
    """Test images with the labels of a csv Image,Id, and a line about them.

    They are trained on and nothing else: the table that validation takes its queries and gallery
    from does not have them. An individual that is held out as unseen gets none, or validation would
    ask the model to refuse somebody it has met.

    Raises:
        FileNotFoundError: no such file.
        DataError: an image that is not in the test, an Id that is not in train.
    """
    frame = read_columns(path, ["Image", "Id"], NAMES)
    names, ids = (frame[column].to_numpy(np.str_) for column in ("Image", "Id"))
    order = np.argsort(data.test.ids)
    place = order[np.minimum(np.searchsorted(data.test.ids, names, sorter=order), len(order) - 1)]
    strange = np.flatnonzero(data.test.ids[place] != names)
    if len(strange):
        raise DataError(
            f"{path} row {strange[0] + 2}: {names[strange[0]]} is no test image; pseudo-labels are "
            "for the test of this data."
        )
    labels = np.minimum(np.searchsorted(data.classes, ids), len(data.classes) - 1)
    strange = np.flatnonzero((data.classes[labels] != ids) & (ids != data.unknown))
    if len(strange):
        raise DataError(
            f"{path} row {strange[0] + 2}: {ids[strange[0]]} is no Id of train and not "
            f"{data.unknown}."
        )
    labels = np.where(ids == data.unknown, -1, labels).astype(np.int64)
    kept = np.ones(len(labels), bool)
    if held is not None:
        unseen = np.unique(held.split.labels[held.split.unseen & (held.split.labels >= 0)])
        kept = ~np.isin(labels, unseen)
    table = replace(data.test.take(place), labels=labels).take(kept)
    text = f"pseudo-labels: {len(table)} test images of {len(np.unique(table.labels))} Ids"
    if not kept.all():
        text += f", {int((~kept).sum())} left out whose individual is held out"
    return table, text
