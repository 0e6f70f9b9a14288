"""Test images with answers that several runs agree on, for the next round of training.

python competitions/whale/infer.py run=RUN                # of each run: leaves embeddings in it
python -m common.pipeline.pseudo RUN... TRAIN.csv [--confident 0.6] [--agree 2] [--few 3]
python competitions/whale/train.py data.pseudo=RUN/pseudo.csv out=AGAIN   # a round; then of AGAIN

Happywhale 2022, first place: two rounds, confidence .6. Humpback 2019, second place: cosine above
.65, individuals with few images; first place: .96 of its sigmoid.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.tables import DataError, read_columns, read_frame
from common.entry import entry, say
from common.paths import write_text
from common.retrieval.search import search
from common.types import Embeddings


@dataclass
class Answers:
    """What a run says about each test image.

    Attributes:
        label: `(T,)` int64 class of the most similar train image; -1 for an image that could not
            be read.
        score: `(T,)` float64 cosine to it.
    """

    label: np.ndarray
    score: np.ndarray


def answers(run: Path, ids: np.ndarray, labels: np.ndarray, test: np.ndarray) -> Answers:
    """The class of the nearest train image of each test image, in one run's embeddings.

    Args:
        run: a run folder in which infer.py has run.
        ids: `(N,)` train images.
        labels: `(N,)` int64, -1 for images that are nobody's.
        test: `(T,)` test images.

    Raises:
        FileNotFoundError: no embeddings.
        KeyError: embeddings of other images.
    """
    gallery = Embeddings.load(run / "embeddings" / "train.safetensors").select(ids[labels >= 0])
    queries = Embeddings.load(run / "embeddings" / "test.safetensors").select(test)
    near = search(queries, gallery, 1)
    readable = queries.vectors.any(1).numpy()
    label = labels[labels >= 0][near.index[:, 0].numpy()]
    return Answers(np.where(readable, label, -1), near.score[:, 0].double().numpy())


def agreed(
    found: Sequence[Answers], *, confident: float = 0.6, agree: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`(T,)` int64 class that enough runs name with confidence, else -1, and `(T,)` mean score.

    The mean is over the runs that name it so. A run that is confident of somebody else vetoes.

    Args:
        found: of each run.
        confident: the least score of an answer.
        agree: how many runs must name the class; 0 is all.

    Raises:
        ValueError: more runs are to agree than there are.
    """
    if not 0 <= agree <= len(found):
        raise ValueError(f"agree={agree} of {len(found)} runs: name at most so many, 0 for all.")
    label = np.stack([run.label for run in found])
    score = np.stack([run.score for run in found])
    sure = (label >= 0) & (score >= confident)
    # All confident runs must name one class, so the largest and the smallest are the same.
    high = np.where(sure, label, -1).max(0)
    same = np.where(sure, label, np.iinfo(np.int64).max).min(0) == high
    count = sure.sum(0)
    kept = same & (count >= (agree or len(found))) & (count > 0)
    mean = np.where(sure, score, 0).sum(0) / np.maximum(count, 1)
    return np.where(kept, high, -1), mean


def strangers(found: Sequence[Answers], below: float) -> np.ndarray:
    """`(T,)` bool: images that every run places at less than `below` from all of train."""
    label = np.stack([run.label for run in found])
    return np.asarray(((np.stack([r.score for r in found]) < below) & (label >= 0)).all(0))


def label_test(
    runs: Sequence[Path],
    table: Path,
    *,
    confident: float = 0.6,
    agree: int = 0,
    few: int = 0,
    unknown: str = "new_whale",
    below: float | None = None,
    out: Path | None = None,
) -> tuple[Path, str]:
    """The csv with the pseudo-labels, and a line of what is in it.

    Args:
        runs: run folders in which infer.py has run, on the same data.
        table: csv with the id of each train image in its first column and its class in its second.
        confident: see `agreed`.
        agree: see `agreed`.
        few: only classes with at most so many train images; 0 is all.
        unknown: the class in `table` that is nobody; it is never an answer but for `below`.
        below: also give the unknown class to images that all runs score lower than this.
        out: the file; None is `pseudo.csv` in the first run's folder.

    Raises:
        FileNotFoundError: no table, or a run without embeddings.
        DataError: a table without two columns, or with nobody in it.
        ValueError: runs with other test images, more runs to agree than there are, no image left.
    """
    columns = [str(name) for name in read_frame(table, nrows=0).columns[:2]]
    if len(columns) < 2:
        raise DataError(f"{table} must have an id and a class in its first two columns.")
    frame = read_columns(table, columns)
    ids, named = (frame[column].to_numpy(np.str_) for column in columns)
    classes, code, counts = np.unique(named, return_inverse=True, return_counts=True)
    labels = np.where(named == unknown, -1, code).astype(np.int64)
    if not (labels >= 0).any():
        raise DataError(f"{table} has no class but {unknown!r}: there is nobody to name.")
    test = Embeddings.load(runs[0] / "embeddings" / "test.safetensors").ids
    for run in runs[1:]:
        other = Embeddings.load(run / "embeddings" / "test.safetensors").ids
        if set(other.tolist()) != set(test.tolist()):
            raise ValueError(f"{run} has embeddings of other test images than {runs[0]}.")
    found = [answers(run, ids, labels, test) for run in runs]
    label, score = agreed(found, confident=confident, agree=agree)
    if few:
        label = np.where((label >= 0) & (counts[label] <= few), label, -1)
    names = np.where(label >= 0, classes[label], "")
    if below is not None:
        new = strangers(found, below) & (label < 0)
        names, score = np.where(new, unknown, names), np.where(new, found[0].score, score)
    rows = np.flatnonzero(names != "")
    if not len(rows):
        raise ValueError(
            f"No answer of {len(test)} test images passes: lower --confident (now {confident:g}) "
            "or --agree."
        )
    path = out or runs[0] / "pseudo.csv"
    lines = [f"{test[r]},{names[r]},{score[r]:.4f}" for r in rows]
    write_text(path, "\n".join([f"{columns[0]},{columns[1]},score", *lines]) + "\n")
    nobody = int((names[rows] == unknown).sum())
    return path, (
        f"{path}: {len(rows)} of {len(test)} test images, of {len(np.unique(names[rows]))} classes"
        + (f", {nobody} of them {unknown}" if nobody else "")
    )


def main(arguments: list[str]) -> None:
    """Write the list and say what is in it."""
    parser = argparse.ArgumentParser(
        prog="python -m common.pipeline.pseudo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("table", type=Path, metavar="TRAIN.csv")
    parser.add_argument("--confident", type=float, default=0.6, help="least cosine of an answer")
    parser.add_argument("--agree", type=int, default=0, help="runs that must agree; 0: all")
    parser.add_argument("--few", type=int, default=0, help="only classes with at most so many")
    parser.add_argument("--unknown", default="new_whale", help="the class that is nobody")
    parser.add_argument("--below", type=float, help="label what scores lower as unknown")
    parser.add_argument("--out", type=Path, help="the csv; RUN/pseudo.csv of the first run")
    given = parser.parse_args(arguments)
    say(
        label_test(
            given.runs,
            given.table,
            confident=given.confident,
            agree=given.agree,
            few=given.few,
            unknown=given.unknown,
            below=given.below,
            out=given.out,
        )[1]
    )


if __name__ == "__main__":
    entry(main)
