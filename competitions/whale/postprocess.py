"""What may be done to final answers, all of it off unless asked for: `postprocess:` in the config.

| key | what |
|---|---|
| `balance.margin` | a close second becomes the first where nobody else has it (1st place) |
| `duplicates` | csv `Id,SubId`: individuals with several names; the others follow the first one |
| `leaks` | csv `Image,Id`: test images whose answer is known come with it first |

Duplicates and leaks are what the 3rd place's files hold for Humpback. Leaks are knowledge about the
test set alone: they change the submission and its score, never the held-out one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from common.data.tables import DataError, read_columns
from common.rerank.balance import balance
from common.types import Neighbors

from .data import NAMES, Whale


@dataclass
class BalanceConfig:
    """The `postprocess.balance:` section."""

    margin: float = 0.0

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise ValueError(f"postprocess.balance.margin={self.margin}: at least 0, 0 is off.")


@dataclass
class PostprocessConfig:
    """The `postprocess:` section."""

    balance: BalanceConfig = field(default_factory=BalanceConfig)
    duplicates: str | None = None
    leaks: str | None = None


@dataclass
class Postprocess:
    """The files of the section, read, and what it does to answers.

    Attributes:
        margin: of `balance`, 0 for none.
        others: the other names of an individual, as labels.
        known: the answers of test images, as labels.
        unknown: label of the unknown identity.
        remarks: a line for each thing that is in use.
    """

    margin: float
    others: dict[int, list[int]]
    known: dict[str, int]
    unknown: int
    remarks: list[str]

    @classmethod
    def of(cls, config: PostprocessConfig, data: Whale) -> Postprocess:
        """The section's files read and checked, before any long work.

        Raises:
            FileNotFoundError: no such file.
            DataError: a csv without its columns, with an individual in two rows, with an Id that
                is nobody's, or with nothing that is in the data.
        """
        label = {str(name): number for number, name in enumerate([*data.classes, data.unknown])}
        found = cls(config.balance.margin, {}, {}, len(data.classes), [])
        if config.balance.margin:
            found.remarks.append(
                f"postprocess.balance: a second that scores less than {config.balance.margin:g} "
                "below the first takes its place where no other image has it"
            )
        if config.duplicates is not None:
            path = Path(config.duplicates)
            groups = _groups(path, label, data.unknown)
            for group in groups:
                found.others |= {one: [o for o in group if o != one] for one in group}
            found.remarks.append(
                f"postprocess.duplicates: {len(groups)} individuals of {path} have several names"
            )
        if config.leaks is not None:
            path = Path(config.leaks)
            frame = read_columns(path, ["Image", "Id"], NAMES)
            strange = ~frame["Id"].isin(label)
            if strange.any():
                row = int(np.flatnonzero(strange)[0])
                raise DataError(
                    f"{path} row {row + 2}: nobody in train.csv is {frame['Id'].iloc[row]!r}."
                )
            here = frame[frame["Image"].isin(data.test.ids)]
            if not len(here):
                raise DataError(f"{path}: none of its {len(frame)} images is in the test set.")
            rows = zip(here["Image"], here["Id"], strict=True)
            found.known = {str(image): label[str(name)] for image, name in rows}
            found.remarks.append(
                f"postprocess.leaks: {len(here)} of {len(data.test)} test images are answered by "
                f"{path}, not by the model"
            )
        return found

    def apply(self, answers: Neighbors, ids: np.ndarray, *, test: bool) -> Neighbors:
        """The answers after all that is on; `(Q, K)` different labels still, scores as they were.

        Args:
            answers: `(Q, K)` labels, with the unknown identity in its place.
            ids: `(Q,)` names of the images.
            test: whether these are the test images; leaks are left out of held-out ones.
        """
        if self.margin:
            answers = balance(answers, margin=self.margin, unknown=self.unknown)
        known = self.known if test else {}
        if not self.others and not known:
            return answers
        rows = []
        for name, row in zip(ids.tolist(), answers.index.tolist(), strict=True):
            row = _first([row[0], *self.others.get(row[0], [])], row)
            rows.append(_first([known[name]], row) if name in known else row)
        index = torch.tensor(rows, dtype=torch.int64).reshape(answers.index.shape)
        return Neighbors(index, answers.score)


def _first(names: list[int], row: list[int]) -> list[int]:
    """The names, then the rest of the row, as many as the row has; -1 stays behind."""
    rest = [label for label in row if label not in names]
    return [*names, *rest][: len(row)]


def _groups(path: Path, label: dict[str, int], unknown: str) -> list[list[int]]:
    """The labels that are one individual, ascending; names that are not in train are left out."""
    frame = read_columns(path, ["Id", "SubId"])
    groups: list[list[int]] = []
    seen: set[int] = set()
    for row, (name, more) in enumerate(zip(frame["Id"], frame["SubId"], strict=True), 2):
        names = {str(name).strip(), *str(more).split()}
        if unknown in names:
            raise DataError(f"{path} row {row}: {unknown} is nobody's other name.")
        group = sorted(label[one] for one in names if one in label)
        if seen.intersection(group):
            raise DataError(f"{path} row {row}: an individual is in another row too; join the two.")
        seen.update(group)
        if len(group) > 1:
            groups.append(group)
    if not groups:
        raise DataError(
            f"{path}: no row has two names of train.csv; its columns are Id,SubId, where SubId is "
            "the other name, or all names with a space between, of one individual."
        )
    return groups
