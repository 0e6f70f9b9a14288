"""Submission files: write one, read one, and name what Kaggle would reject before it is uploaded.

    python -m common.submission check COMPETITION SUBMISSION.csv SAMPLE.csv

COMPETITION is landmarks-recognition, landmarks-retrieval, whale or shopee. Prints one line that
begins with `ok`, or one line per kind of problem, with its first place, and exits with 1.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.paths import write_text

_ENTRY_BYTES = (string.ascii_letters + string.digits + "_.-").encode()
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Format:
    """Columns of a competition's submission, entries a row may list, whether it may be empty."""

    key: str
    column: str
    limit: int
    empty: bool


FORMATS = {
    # "LABEL SCORE"; empty for an image without a landmark
    "landmarks-recognition": Format("id", "landmarks", 1, True),
    "landmarks-retrieval": Format("id", "images", 100, True),
    "whale": Format("Image", "Id", 5, False),
    "shopee": Format("posting_id", "matches", 50, False),
}


def write(competition: str, ids: Iterable[Any], rows: Iterable[Any], path: str | Path) -> None:
    """Write a submission whole or not at all.

    Args:
        competition: a key of `FORMATS`.
        ids: one per row.
        rows: for landmarks-recognition `(label, score)` or None, scores written so that they read
            back exactly; else a sequence of entries, best first.
        path: the file.

    Raises:
        ValueError: whatever `check` finds in the rows themselves; nothing is written then.
    """
    form = _format(competition)
    names = [str(i) for i in ids]
    if competition == "landmarks-recognition":
        cells = ["" if row is None else f"{row[0]} {float(row[1])!r}" for row in rows]
    else:
        cells = [row if isinstance(row, str) else " ".join(map(str, row)) for row in rows]
    if len(names) != len(cells):
        raise ValueError(f"{path} not written: {len(names)} ids for {len(cells)} rows.")
    problems = _problems(competition, names, cells, lambda row: f"row {row} ({names[row]!r})")
    odd = [name for name in names if not _plain(name)]
    if odd:
        problems.append(f"{form.key} {odd[0]!r} has characters that break a CSV file")
    if problems:
        raise ValueError(f"{path} not written: {problems[0]}.")
    body = "".join(f"{name},{cell}\n" for name, cell in zip(names, cells, strict=True))
    write_text(path, f"{form.key},{form.column}\n{body}")


def check(competition: str, submission: str | Path, sample: str | Path) -> list[str]:
    """What Kaggle would reject or not count, in its words where they are known; one per kind.

    Args:
        competition: a key of `FORMATS`.
        submission: the file to upload.
        sample: the competition's `sample_submission.csv`.

    Raises:
        ValueError: unknown competition, or a file that is no CSV at all.
        FileNotFoundError: a file is not there.
    """
    form = _format(competition)
    faults, wanted, _, _ = _parse(Path(sample), form)
    if not faults and not wanted:
        faults = ["it has no rows"]
    if not faults and pd.Index(wanted).has_duplicates:
        faults = [f"it has {_repeated(wanted)!r} twice"]
    if faults:
        return [f"{sample} is not the sample submission of {competition}: {faults[0]}"]
    problems, ids, cells, lines = _parse(Path(submission), form)
    if problems and not ids:
        return problems
    if len(ids) != len(wanted):
        problems.append(f"Submission must have {len(wanted)} rows, this one has {len(ids)}")
    absent = pd.Index(wanted).difference(pd.Index(ids), sort=False)
    if len(absent):
        problems.append(
            f"Unable to find {len(absent)} required key values in the '{form.key}' column, the "
            f"first is {absent[0]!r}"
        )
    foreign = np.flatnonzero(~pd.Index(ids).isin(wanted))
    if len(foreign):
        problems.append(
            f"Solution and submission values for {form.key} do not match: {len(foreign)} ids are "
            f"not in the sample, the first is {ids[foreign[0]]!r} in line {lines[foreign[0]]}"
        )
    rows = _problems(competition, ids, cells, lambda row: f"line {lines[row]} ({ids[row]!r})")
    return problems + rows


def read(
    path: str | Path, key: str, column: str, *, others: bool = False
) -> dict[str, dict[str, str]]:
    """Rows of a CSV by its column `key`, each with its `line`.

    Args:
        path: the file.
        key: the id column; an id may occur once.
        column: the other column that must be there.
        others: whether more columns are allowed.

    Raises:
        ValueError: wrong columns, a row of another length, a repeated id, no UTF-8; names the line.
        FileNotFoundError: no such file.
    """
    rows: dict[str, dict[str, str]] = {}
    lines = _lines(Path(path))
    _, header = next(lines)
    missing = not {key, column} <= set(header)
    if missing or (len(header) > 2 and not others) or len(set(header)) < len(header):
        found = _columns(header)
        raise ValueError(f"{path}, line 1: needs the columns {key},{column}, has {found}.")
    for line, cells in lines:
        if len(cells) != len(header):
            raise ValueError(f"{path}, line {line}: {len(cells)} fields instead of {len(header)}.")
        row = dict(zip(header, cells, strict=True), line=str(line))
        if row[key] in rows:
            before = rows[row[key]]["line"]
            raise ValueError(f"{path}, line {line}: {key} {row[key]!r} is in line {before} too.")
        rows[row[key]] = row
    return rows


def _columns(header: Sequence[str]) -> str:
    """A header as an error shows it: of a file that is no csv, too."""
    return ascii(",".join(header))[1:-1][:120] or "none"


def _lines(path: Path, errors: str = "strict") -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of the header ([] in an empty file), then of each non-blank row."""
    try:
        with open(path, newline="", encoding="utf-8", errors=errors) as file:
            csv.field_size_limit(1 << 30)  # a solution may name thousands of images in one field
            reader = csv.reader(file)
            yield 1, next(reader, [])
            yield from ((reader.line_num, fields) for fields in reader if fields)
    except FileNotFoundError:
        raise FileNotFoundError(f"No file at {path}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a UTF-8 CSV file: {error}.") from None


def _parse(path: Path, form: Format) -> tuple[list[str], list[str], list[str], list[int]]:
    """Problems of the file's shape; then ids, cells and line numbers as far as they can be read."""
    rows = _lines(path, errors="replace")
    _, header = next(rows)
    problems = []
    if header and header[0].startswith("\ufeff"):
        problems.append("The file starts with a byte order mark (BOM): save it as plain UTF-8")
        header = [header[0].removeprefix("\ufeff"), *header[1:]]
    for kind, name in (("ID", form.key), ("Prediction", form.column)):
        if name not in header:
            found = _columns(header)
            return (
                [*problems, f"{kind} column {name} not found in submission, found {found}"],
                [],
                [],
                [],
            )
    if len(header) > 2:
        problems.append(f"Submission must have 2 columns, this one has {','.join(header)}")
    key, column = header.index(form.key), header.index(form.column)
    full = list(rows)
    ragged = [line for line, fields in full if len(fields) != len(header)]
    if ragged:
        problems.append(
            f"Not {len(header)} fields in {len(ragged)} of {len(full)} rows, first in line "
            f"{ragged[0]}"
        )
    full = [(line, fields) for line, fields in full if len(fields) > max(key, column)]
    ids, cells = ([fields[place] for _, fields in full] for place in (key, column))
    return problems, ids, cells, [line for line, _ in full]


def _problems(
    competition: str, ids: list[str], cells: list[str], where: Callable[[int], str]
) -> list[str]:
    """Problems of the rows themselves, one per kind, with the first place."""
    seen: dict[str, list[int]] = {}
    if pd.Index(ids).has_duplicates:
        rows = np.flatnonzero(pd.Index(ids).duplicated())
        kind = f"The value {_repeated(ids)!r} in the key column has already been defined"
        seen[kind] = rows.tolist()
    for row, (name, cell) in enumerate(zip(ids, cells, strict=True)):
        for kind in _faults(competition, name, cell):
            seen.setdefault(kind, []).append(row)
    return [
        f"{kind} in {len(rows)} of {len(ids)} rows, first in {where(rows[0])}"
        for kind, rows in seen.items()
    ]


def _faults(competition: str, name: str, cell: str) -> Iterator[str]:
    """What is wrong with one row."""
    form = FORMATS[competition]
    words = cell.split()
    if not (name.isascii() and cell.isascii()):
        yield "Non-ASCII characters"
    elif cell != " ".join(words) or not _plain(cell.replace(" ", "")):
        yield "Entries separated by something else than one space"
    if not words:
        if not form.empty:
            yield "Submission contains null values"
    elif competition == "landmarks-recognition":
        if len(words) > 2:
            yield "More than one LABEL SCORE pair"
        if not words[0].isdigit():
            yield "A label that is not an integer"
        if len(words) == 1:
            yield "A label without a score"
        elif not (_NUMBER.fullmatch(words[1]) and math.isfinite(float(words[1]))):
            yield "A score that is not a finite number"
    else:
        if len(words) > form.limit:
            yield f"More than {form.limit} entries"
        if len(set(words)) < len(words):
            yield "An entry listed twice"
        if competition == "shopee" and name not in words:
            yield "Own posting_id not listed"


def _repeated(ids: list[str]) -> str:
    return ids[int(pd.Index(ids).duplicated().argmax())]


def _plain(text: str) -> bool:
    return not text.encode("utf-8").translate(None, _ENTRY_BYTES)


def _format(competition: str) -> Format:
    if competition not in FORMATS:
        raise ValueError(f"competition must be one of {', '.join(FORMATS)}, got {competition!r}.")
    return FORMATS[competition]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print `ok` or the problems of a submission file; exit code 1 with problems."""
    parser = argparse.ArgumentParser(
        prog="python -m common.submission", description=(__doc__ or "").split("\n")[0]
    )
    command = parser.add_subparsers(dest="command", required=True).add_parser("check")
    command.add_argument("competition", choices=list(FORMATS))
    command.add_argument("submission", metavar="SUBMISSION.csv")
    command.add_argument("sample", metavar="SAMPLE.csv")
    options = parser.parse_args(arguments)
    try:
        problems = check(options.competition, options.submission, options.sample)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    for problem in problems:
        print(problem)
    if problems:
        raise SystemExit(1)
    print(f"ok: {options.submission} is a complete {options.competition} submission")


if __name__ == "__main__":
    main()
