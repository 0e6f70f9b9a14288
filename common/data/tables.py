"""Kaggle's csv files as text columns, refused with file and row where they cannot be used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


class DataError(ValueError):
    """Files that cannot be used; the message names file and row and says what to do."""


def read_frame(path: Path, **options: Any) -> pd.DataFrame:
    """A csv as text; `options` go to pandas.

    Raises:
        FileNotFoundError: no such file.
        DataError: not a csv.
    """
    try:
        frame: pd.DataFrame = pd.read_csv(path, dtype=str, **options)
        return frame
    except FileNotFoundError:
        raise FileNotFoundError(f"No file {path}: correct the path or leave the key out.") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable csv: {error}") from None


def read_columns(
    path: Path,
    columns: Sequence[str],
    patterns: Mapping[str, tuple[str, str]] | None = None,
    *,
    key: str | None = None,
    texts: Sequence[str] = (),
) -> pd.DataFrame:
    """The columns of a csv as text, at least one row, no empty value, each key once.

    Args:
        path: the file.
        columns: those that must be there; others are not read.
        patterns: for a column, a regular expression that its values match wholly, and what an
            error says they are not: `("[0-9]+", "a whole number; write it with digits only")`.
        key: the column whose values occur once; the first one unless named.
        texts: columns of free text: empty is "", `NA` is a word, bytes that are no UTF-8 become
            the replacement character.

    Raises:
        FileNotFoundError: no such file.
        DataError: a column is missing, no rows, an empty, malformed or repeated value.
    """
    wrong = {"encoding_errors": "replace"} if texts else {}
    frame = read_frame(path, usecols=lambda name: name in columns, **wrong)
    missing = [name for name in columns if name not in frame]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; it must have {', '.join(columns)}.")
    if len(frame) == 0:
        raise DataError(f"{path} has a header but no rows.")

    def refuse(bad: pd.Series, text: str, column: str) -> None:
        rows = np.flatnonzero(bad.to_numpy(bool))
        if len(rows):
            words = text.format(value=frame[column].iloc[rows[0]], count=len(rows))
            raise DataError(f"{path} row {rows[0] + 2}: {words}")

    key = key or columns[0]
    values = frame.drop(columns=list(texts))
    refuse(values.isna().any(axis=1), "empty value; fill it in or delete the row.", key)
    for column, (pattern, what) in (patterns or {}).items():
        if column in columns:
            kept = re.compile(pattern)
            bad = ~frame[column].map(lambda value, kept=kept: bool(kept.fullmatch(value)))
            refuse(bad, f"{column} {{value!r}} is not {what}.", column)
    once = f"{key} {{value}} occurs twice; {{count}} duplicates in all, keep one row of each."
    refuse(frame[key].duplicated(), once, key)
    if texts:
        raw = read_frame(path, usecols=list(texts), na_filter=False, **wrong)
        frame[list(texts)] = raw[list(texts)]
    return frame
