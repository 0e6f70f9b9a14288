"""Several submission files as one, whoever made them; weights are the trust in each.

    python -m common.blend COMPETITION A.csv B.csv ... --weights 2,1 -o OUT.csv

COMPETITION is whale, landmarks-retrieval (ranked lists: reciprocal ranks added), shopee (sets:
kept is what has more than --share of the weight) or landmarks-recognition (labels with scores:
added as they are, or as ranks among the file's own answers with --scale rank).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from common.blend import blend_ranks, blend_scores
from common.submission import FORMATS, check, read, write
from common.types import Neighbors

# Points of rank r are 1 / (offset + r). Humpback's own metric pays 1 / r; 60 is Cormack's, for the
# long lists of retrieval.
OFFSETS = {"whale": 0.0, "landmarks-retrieval": 60.0}


def blend_files(
    competition: str,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    offset: float | None = None,
    share: float = 0.5,
    scale: str = "none",
) -> None:
    """Write one submission made of several; rows are in the order of the first.

    Ties go to the entry that comes first in the alphabet.

    Args:
        competition: a key of `common.submission.FORMATS`.
        paths: the files, each a complete submission.
        out: the file to write.
        weights: one per file, not negative; None: equal.
        offset: for ranked lists: points of rank r are 1 / (offset + r); None: `OFFSETS`.
        share: for shopee: a match needs more than this share of the weight. 0.5 is the majority;
            just below 1 all must agree, 0 takes whatever somebody lists.
        scale: for scores: `none`, or `rank`: the mean rank of the score among the file's answers,
            in (0, 1], for files whose scores cannot be compared.

    Raises:
        ValueError: a file that Kaggle would reject, ids that differ, weights that do not fit.
        FileNotFoundError: a file is not there.
    """
    if competition not in FORMATS:
        raise ValueError(f"competition must be one of {', '.join(FORMATS)}, got {competition!r}.")
    if scale not in ("none", "rank"):
        raise ValueError(f"scale must be none or rank, got {scale!r}.")
    if not 0 <= share < 1:
        raise ValueError(f"share must be in [0, 1), got {share}.")
    if not paths:
        raise ValueError("Nothing to blend: give at least one file.")
    if weights is not None and len(weights) != len(paths):
        raise ValueError(f"{len(weights)} weights for {len(paths)} files.")
    form = FORMATS[competition]
    files = [read(path, form.key, form.column) for path in paths]
    for path in paths:
        problems = check(competition, path, paths[0])
        if problems:
            raise ValueError(f"{path} does not fit (ids are those of {paths[0]}): {problems[0]}.")
    ids = list(files[0])
    if not ids:
        raise ValueError(f"{paths[0]} has no rows.")
    words = [[file[i][form.column].split() for i in ids] for file in files]
    if competition == "landmarks-recognition":
        scores = [[[float(row[1])] if row else [] for row in lists] for lists in words]
        if scale == "rank":
            scores = [_ranks(rows) for rows in scores]
        names, parts = _parts([[row[:1] for row in lists] for lists in words], scores)
        best = blend_scores(parts, weights, missing="zero", k=1)
        answers = zip(best.index[:, 0].tolist(), best.score[:, 0].tolist(), strict=True)
        rows = [(names[i], s) if i >= 0 else None for i, s in answers]
        write(competition, ids, rows, out)
    else:
        names, parts = _parts(words, [[[1.0] * len(row) for row in lists] for lists in words])
        if competition == "shopee":
            found = blend_scores(parts, weights, missing="zero", k=len(names))
            listed = _shopee(found, names, ids, share, form.limit)
        else:
            points = OFFSETS[competition] if offset is None else offset
            if not points >= 0:
                raise ValueError(f"offset must be at least 0, got {points}.")
            found = blend_ranks(parts, weights, offset=points, k=form.limit)
            listed = [[names[i] for i in row if i >= 0] for row in found.index.tolist()]
        write(competition, ids, listed, out)
    problems = check(competition, out, paths[0])
    if problems:
        raise ValueError(f"{out} would be rejected: {problems[0]}.")


def _parts(
    words: list[list[list[str]]], scores: list[list[list[float]]]
) -> tuple[list[str], list[Neighbors]]:
    """The names that occur, in the order of the alphabet, and the files as neighbors of them."""
    names = sorted({word for lists in words for row in lists for word in row})
    number = {name: i for i, name in enumerate(names)}
    parts = []
    for lists, values in zip(words, scores, strict=True):
        width = max([len(row) for row in lists] + [1])
        index = np.full((len(lists), width), -1, np.int64)
        score = np.full(index.shape, -np.inf, np.float32)
        for q, (row, value) in enumerate(zip(lists, values, strict=True)):
            index[q, : len(row)] = [number[word] for word in row]
            score[q, : len(row)] = value
        parts.append(Neighbors(torch.from_numpy(index), torch.from_numpy(score)))
    return names, parts


def _ranks(rows: list[list[float]]) -> list[list[float]]:
    """Scores as their mean rank among all answers, in (0, 1], the highest score 1."""
    values = np.array([value for row in rows for value in row])
    ordered = np.sort(values)
    low, high = np.searchsorted(ordered, values), np.searchsorted(ordered, values, side="right")
    ranks = iter(((low + 1 + high) / 2 / max(len(values), 1)).tolist())
    return [[next(ranks) for _ in row] for row in rows]


def _shopee(
    found: Neighbors, names: list[str], ids: list[str], share: float, limit: int
) -> list[list[str]]:
    """Matches with more than `share` of the weight: the row itself, then the most voted."""
    keep = found.score > share + 1e-6  # a draw is equal but for rounding
    rows = []
    for own, index, kept in zip(ids, found.index.tolist(), keep.tolist(), strict=True):
        others = [names[i] for i, k in zip(index, kept, strict=True) if k and names[i] != own]
        rows.append([own, *others][:limit])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Blend submission files; says where the result is."""
    parser = argparse.ArgumentParser(
        prog="python -m common.blend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("competition", choices=list(FORMATS))
    parser.add_argument("files", nargs="+", metavar="FILE.csv")
    parser.add_argument("-o", "--out", required=True, metavar="OUT.csv")
    parser.add_argument("--weights", help="one number per file, such as 2,1; equal without")
    parser.add_argument("--offset", type=float, help="points of rank r are 1 / (offset + r)")
    parser.add_argument("--share", type=float, default=0.5, help="shopee: share of the votes")
    parser.add_argument("--scale", choices=["none", "rank"], default="none", help="of scores")
    options = parser.parse_args(arguments)
    try:
        weights = options.weights and [float(word) for word in options.weights.split(",")]
        blend_files(
            options.competition,
            options.files,
            options.out,
            weights=weights or None,
            offset=options.offset,
            share=options.share,
            scale=options.scale,
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.out}: {len(options.files)} files as one {options.competition} submission")
