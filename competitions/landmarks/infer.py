"""Embed, search, re-rank and decide with a trained run; writes checked submissions and a report.

python competitions/landmarks/infer.py run=runs/landmarks/baseline [key=value ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:  # run by path: the folder's own name, so that a copied folder finds itself
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here.parents[1]))
    __package__ = f"competitions.{here.name}"
    __import__(__package__)

import torch

from common.data import augment
from common.engine import distributed
from common.engine.checkpoint import fingerprint, load_lasting, load_tree
from common.engine.extract import extract
from common.engine.settings import this_device
from common.entry import entry, say
from common.models.embedder import Embedder
from common.notes import Notes
from common.types import Embeddings, Neighbors, Table, decode_strings

from .config import Config, criterion_of, of_run
from .data import Landmarks, read
from .ranking import Held, Question, Vectors, apply, check_penalties, held_question, test_question
from .results import align, finish, outputs, save_centers, start_run


def main(arguments: list[str]) -> dict[str, float]:
    """Scores of the run; submissions and report are in its folder."""
    config = of_run(__doc__ or "", arguments)
    folder = Path(str(config.run))
    data = read(config.data)
    held = Held.of(data, config)
    paths = outputs(config, data, folder)
    check_penalties(config, data)
    device = this_device()
    with distributed.processes():
        say(data.describe())
        vectors = embed(config, data, folder, device)
        if distributed.rank() != 0:
            return {}
        run = start_run(config, folder, data, "infer")

        def answer(task: str, validation: bool, notes: Notes) -> tuple[Question, Neighbors]:
            inner = held if validation else None
            asked = (
                held_question(task, vectors, inner) if inner else test_question(task, vectors, data)
            )
            steps = getattr(config, task)
            cache = folder.parent / "cache"
            return asked, apply(
                steps, asked, vectors, data, inner, cache=cache, device=device, notes=notes
            )

        scores = finish(paths, data, held, answer, folder, run)
    return scores


def embed(config: Config, data: Landmarks, folder: Path, device: torch.device) -> Vectors:
    """Embeddings of every table by the run's model, from files where they are finished."""
    weights = folder / "weights.safetensors"
    tree = load_tree(weights)
    model = Embedder(config.model, load=False)
    model.load_state_dict(tree["model"])
    model.to(device).eval()
    criterion = criterion_of(config, model.embedding_dim, len(decode_strings(tree["classes"])))
    load_lasting(criterion, tree["criterion"])
    view = config.view
    transform = augment.build("none", view.size, False, fit=view.fit)
    card = {"weights": fingerprint(weights)}

    def of(name: str, table: Table) -> Embeddings:
        path = folder / "embeddings" / f"{name}.safetensors"
        found = extract(model, table, path, view, transform, device, card=card)
        if lost := found.card["unreadable"]:
            first = os.fsdecode(table.paths[int((~found.vectors.any(1)).nonzero()[0])])
            say(
                f"warning: {lost} of {len(table)} {name} images cannot be read, the first is "
                f"{first}: they match nothing and keep their rows."
            )
        return found

    centers = criterion.centers()
    if centers is not None:
        centers = align(centers, decode_strings(tree["classes"]), data.classes)
    vectors = Vectors(
        train=of("train", data.train),
        test=of("test", data.test),
        index=None if data.index is None else of("index", data.index),
        negatives=None if data.negatives is None else of("non_landmark", data.negatives),
        centers=centers,
    )
    save_centers(vectors, data, folder)
    return vectors


if __name__ == "__main__":
    entry(main)
