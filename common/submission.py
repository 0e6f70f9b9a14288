"""Write submissions, and find what Kaggle would reject before Kaggle does.

python -m common.submission check COMPETITION SUBMISSION.csv SAMPLE.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.config import suggestion
from common.paths import atomic


@dataclass(frozen=True)
class Format:
    """What a competition's csv looks like.

    Attributes:
        columns: id and answer.
        most: entries of an answer at most.
        least: entries of an answer at least.
        scored: the answer is `LABEL SCORE`.
        own: the row's own id must be among the entries.
    """

    columns: tuple[str, str]
    most: int
    least: int
    scored: bool = False
    own: bool = False


FORMATS = {
    "landmarks-recognition": Format(("id", "landmarks"), most=2, least=0, scored=True),
    "landmarks-retrieval": Format(("id", "images"), most=100, least=0),
    "whale": Format(("Image", "Id"), most=5, least=1),
    "shopee": Format(("posting_id", "matches"), most=50, least=1, own=True),
}


def write(
    competition: str, ids: Sequence[str] | np.ndarray, answers: Iterable[Any], path: str | Path
) -> None:
    """Write a submission whole or not at all.

    Args:
        competition: one of `FORMATS`.
        ids: row ids in the order of the file.
        answers: for each id a list of entries, best first; for landmarks-recognition a pair
            (label, score) or None for an empty answer.
        path: the csv.

    Raises:
        ValueError: unknown competition, or as many answers as ids are not given.
    """
    form = _format(competition)
    ids = np.asarray(ids, np.str_)
    if form.scored:
        # 8 digits: enough for float32 scores to keep their order.
        texts = ["" if a is None else f"{a[0]} {a[1]:.8g}" for a in answers]
    else:
        texts = [" ".join(map(str, answer)) for answer in answers]
    if len(texts) != len(ids):
        raise ValueError(f"{path}: {len(texts)} answers for {len(ids)} ids.")
    with atomic(path) as temporary:
        pd.DataFrame(dict(zip(form.columns, (ids, texts), strict=True))).to_csv(
            temporary, index=False, lineterminator="\n"
        )


def check(competition: str, submission: str | Path, sample: str | Path) -> list[str]:
    """What is wrong with a submission, one line per kind of problem; empty when nothing is.

    Args:
        competition: one of `FORMATS`.
        submission: the csv to hand in.
        sample: the competition's sample submission.

    Raises:
        ValueError: unknown competition, or the sample itself is not one of this competition.
    """
    form = _format(competition)
    wanted, trouble = _read(sample, form)
    if trouble:
        raise ValueError(f"The sample is not one of {competition}: {trouble}")
    given, trouble = _read(submission, form)
    if trouble:
        return [trouble]
    key, answer = form.columns
    problems = _rows(given[key], wanted[key], submission)
    words = given[answer].str.split()
    count = words.str.len()  # type: ignore[misc]
    rules = [
        (count > form.most, f"more than {form.most} entries"),
        (count < form.least, f"fewer than {form.least} entries"),
        (given[answer].str.contains(r"[,;|\t\n]", regex=True), "a separator other than a space"),
    ]
    if form.scored:
        rules += _scored(given[answer])
    else:
        rules.append((_repeats(words, count), "an entry twice"))
    if form.own:
        flat = words.explode()
        own = (flat == given[key].reindex(flat.index)).groupby(level=0).any()
        rules.append((~own.reindex(given.index, fill_value=False), "not its own id"))
    for wrong, what in rules:
        if wrong.any():
            row = int(np.flatnonzero(wrong.to_numpy(bool))[0])
            problems.append(
                f"Scoring Error: {int(wrong.sum())} rows have {what}, the first is row {row + 2}: "
                f"{given[key].iloc[row]},{given[answer].iloc[row][:60]}"
            )
    return problems


def _format(competition: str) -> Format:
    if competition not in FORMATS:
        near = suggestion(competition, list(FORMATS)) or "."
        raise ValueError(f"No competition {competition!r}{near} Known: {', '.join(FORMATS)}")
    return FORMATS[competition]


def _read(path: str | Path, form: Format) -> tuple[pd.DataFrame, str]:
    """The csv as text, and in Kaggle's words why it cannot be read (or an empty string)."""
    empty = pd.DataFrame(columns=list(form.columns), dtype=str)
    try:
        raw = Path(path).read_bytes()[:4]
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        return empty, f"Submission CSV Not Found: there is no {path}"
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        return empty, f"Scoring Error: {path} is not a csv ({' '.join(str(error).split())})"
    if raw.startswith(b"\xef\xbb\xbf"):
        return empty, f"Scoring Error: {path} starts with a byte order mark, save it as plain UTF-8"
    if list(frame.columns) != list(form.columns):
        return empty, (
            f"Scoring Error: {path} has columns {','.join(frame.columns)}, "
            f"expected {','.join(form.columns)}"
        )
    return frame, ""


def _rows(given: pd.Series[str], wanted: pd.Series[str], path: str | Path) -> list[str]:
    """Ids that are missing, extra or repeated."""
    found = []
    for label, ids in (
        ("are missing", wanted[~wanted.isin(given)]),
        ("are not in the sample", given[~given.isin(wanted)]),
        ("occur more than once", given[given.duplicated()]),
    ):
        if len(ids):
            found.append(
                f"Scoring Error: {len(ids)} of {len(wanted)} ids {label} in {path}, "
                f"the first is {ids.iloc[0]}"
            )
    return found


def _scored(answers: pd.Series[str]) -> list[tuple[pd.Series[bool], str]]:
    """Rules of `LABEL SCORE`."""
    filled = answers.str.strip() != ""
    parts = answers.str.extract(r"^\s*(\S+)\s+(\S+)\s*$")
    score = pd.to_numeric(parts[1], errors="coerce")
    label = parts[0].str.fullmatch(r"\d+").fillna(False).astype(bool)
    whole = parts[0].notna()
    return [
        (filled & ~whole, "no 'LABEL SCORE'"),
        (filled & whole & ~label, "a label that is not a number"),
        (filled & whole & ~np.isfinite(score), "a score that is not a finite number"),
    ]


def _repeats(words: pd.Series[Any], count: pd.Series[int]) -> pd.Series[bool]:
    """Rows that name an entry twice."""
    flat = words.explode().dropna()
    different = flat.groupby(level=0).nunique().reindex(words.index, fill_value=0)
    return different < count


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exit status 1 when there are problems."""
    parser = argparse.ArgumentParser(prog="python -m common.submission")
    check_parser = parser.add_subparsers(required=True).add_parser("check", help="name problems")
    check_parser.add_argument("competition", choices=list(FORMATS))
    check_parser.add_argument("submission")
    check_parser.add_argument("sample")
    given = parser.parse_args(arguments)
    try:
        problems = check(given.competition, given.submission, given.sample)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if problems:
        print("\n".join(problems))
        raise SystemExit(1)
    print(f"{given.submission}: Kaggle would accept it")


if __name__ == "__main__":
    main()
