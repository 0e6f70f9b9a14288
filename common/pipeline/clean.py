"""Wrong labels found by a trained sub-centre head, and the list of images to train on again.

python competitions/landmarks/infer.py run=RUN           # leaves embeddings and centres in RUN
python -m common.pipeline.clean RUN TRAIN.csv [--degrees 75]
python competitions/landmarks/train.py data.keep=RUN/cleaned.csv 'loss=[{name: arcface}]' out=AGAIN

Deng et al., ECCV 2020, section 3.3: drop what is more than 75 degrees from the dominant centre of
its class, then train again with one centre per class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from common.data.tables import DataError, read_columns, read_frame
from common.engine.checkpoint import load_tree
from common.entry import entry, say
from common.losses.subcenters import clean, count_wins, dominant_centers
from common.paths import write_text
from common.types import Embeddings, decode_strings


def clean_run(run: Path, table: Path, *, degrees: float = 75.0) -> tuple[Path, str]:
    """The csv file of the ids to keep, in the run folder, and a line of what was found.

    Args:
        run: a run folder in which infer.py has run.
        table: csv with the id of each train image in its first column and its class in its second.
        degrees: an image farther from its class's dominant centre is dropped.

    Raises:
        FileNotFoundError: no such table, no embeddings or no centres.
        ValueError: ids without an embedding, or none of a class of the run.
    """
    columns = [str(name) for name in read_frame(table, nrows=0).columns[:2]]
    if len(columns) < 2:
        raise DataError(f"{table} must have an id and a class in its first two columns.")
    frame = read_columns(table, columns)
    path = run / "embeddings" / "centers.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"No centres at {path}: train with sub_center_arcface, then run infer.py run={run}"
        )
    tree = load_tree(path)
    centers, classes = tree["centers"], decode_strings(tree["classes"])
    ids = frame[columns[0]].to_numpy(np.str_)
    vectors = Embeddings.load(run / "embeddings" / "train.safetensors").select(ids).vectors
    order = np.argsort(classes)
    named = frame[columns[1]].to_numpy(np.str_)
    place = order[np.minimum(np.searchsorted(classes, named, sorter=order), len(classes) - 1)]
    known = (classes[place] == named) & centers.any(2).any(1).numpy()[place]
    if not known.any():
        raise ValueError(
            f"{table}: no image is of a class of {path}, the first of which is {classes[0]}."
        )
    labels = torch.from_numpy(np.where(known, place, -1))
    kept = clean(
        dominant_centers(centers, count_wins(centers, vectors, labels)),
        vectors,
        labels,
        degrees=degrees,
    ).numpy()
    lost = len(np.unique(named)) - len(np.unique(named[kept]))
    out = run / "cleaned.csv"
    write_text(out, "\n".join([columns[0], *ids[kept]]) + "\n")
    return out, (
        f"{out}: {kept.sum()} of {len(kept)} images kept; {(~kept).sum()} lie more than "
        f"{degrees:g} degrees from the dominant one of their class's {centers.shape[1]} centres; "
        f"{lost} classes lose all their images; {(~known).sum()} images of classes without a "
        "centre stay"
    )


def kept_rows(path: str | Path | None, ids: np.ndarray) -> np.ndarray:
    """`(N,)` bool, which ids the csv's first column lists; all without a file.

    Raises:
        FileNotFoundError: no such file.
        DataError: no csv, an id twice, or none of these ids.
    """
    if path is None:
        return np.ones(len(ids), bool)
    file = Path(path)
    name = [str(name) for name in read_frame(file, nrows=0).columns[:1]]
    listed = read_columns(file, name)[name[0]].to_numpy(np.str_)
    found: np.ndarray = np.isin(ids, listed)
    if not found.any():
        raise DataError(f"{file} lists none of the {len(ids)} train images; is it of another set?")
    return found


def main(arguments: list[str]) -> None:
    """Write the list and say what is in it."""
    parser = argparse.ArgumentParser(
        prog="python -m common.pipeline.clean",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("table", type=Path, metavar="TRAIN.csv")
    parser.add_argument("--degrees", type=float, default=75.0)
    options = parser.parse_args(arguments)
    say(clean_run(options.run, options.table, degrees=options.degrees)[1])


if __name__ == "__main__":
    entry(main)
