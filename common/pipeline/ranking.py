"""A question about embeddings, and the chain of steps that answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.notes import Notes
from common.rerank.known import STEPS
from common.rerank.pair_scores import PairScores
from common.steps import Step, chain
from common.types import Embeddings, Neighbors, Table

# What a chain starts from; every chain must leave `neighbors`.
STATE = {
    "queries",
    "gallery",
    "gallery_labels",
    "negatives",
    "centers",
    "pair_head",
    "train",
    "train_labels",
    "train_paths",
    "train_boxes",
    "query_paths",
    "query_boxes",
    "gallery_paths",
    "gallery_boxes",
    "held_ids",
    "askers",
    "asker_labels",
    "asker_paths",
    "asker_boxes",
    "cache",
    "device",
    "notes",
}


@dataclass
class Question:
    """Queries and a gallery with their files, and, for validation, the truth.

    Attributes:
        gallery_labels: what the steps may know, -1 throughout for a gallery without labels.
        negatives: images known to be of no class.
        query_boxes: `(Q, 4)` what to look at in each image, as `Table.boxes`; None: whole images.
        gallery_boxes: `(G, 4)`.
        truth: `(Q,)` int64 label of each query, -1 to be rejected; None where nobody knows.
        relevant: `(G,)` int64 label of each gallery row, for scoring retrieval only.
        groups: `(Q,)` int64, equal for queries that show one thing, whether the gallery has it or
            not: what learns from the truth must not see one of them and be scored on the other.
        held_ids: ids of gallery images that training has not seen, from which steps had better
            learn; None: nothing is known of that.
    """

    queries: Embeddings
    gallery: Embeddings
    gallery_labels: torch.Tensor
    negatives: Embeddings | None
    query_paths: np.ndarray
    gallery_paths: np.ndarray
    truth: np.ndarray | None = None
    relevant: np.ndarray | None = None
    groups: np.ndarray | None = None
    query_boxes: np.ndarray | None = None
    gallery_boxes: np.ndarray | None = None
    held_ids: np.ndarray | None = None


def apply(
    steps: Sequence[Step],
    question: Question,
    train: Callable[[], Embeddings],
    table: Table,
    centers: torch.Tensor | None,
    *,
    cache: Path,
    device: torch.device,
    pair_head: PairScores | None = None,
    more: Mapping[str, Any] | None = None,
    notes: Notes | None = None,
) -> Neighbors:
    """What the steps make of a question, best first.

    Args:
        steps: as in YAML.
        question: queries and gallery.
        train: embeddings of `table`, made only for steps that read them: it may be a large copy.
        table: rows that steps may learn from, for validation without what is held out.
        centers: `(C, K, D)` class centres of the head, or None.
        cache: folder for local features and matches.
        device: where networks run.
        pair_head: the run's trained comparison of two vectors, or None.
        more: further entries of the state: `askers`, see `common.pipeline.halves`, or `neighbors`
            that the steps go on from.
        notes: filled with what the steps found out.
    """
    notes = Notes() if notes is None else notes
    state: dict[str, Any] = {
        "queries": question.queries,
        "gallery": question.gallery,
        "gallery_labels": question.gallery_labels,
        "negatives": question.negatives,
        "centers": centers,
        "pair_head": pair_head,
        "train": train() if reads(steps, "train") else None,
        "train_labels": torch.from_numpy(table.labels),
        "train_paths": table.paths,
        "train_boxes": table.boxes,
        "query_paths": question.query_paths,
        "query_boxes": question.query_boxes,
        "gallery_paths": question.gallery_paths,
        "gallery_boxes": question.gallery_boxes,
        "held_ids": question.held_ids,
        **dict.fromkeys(("askers", "asker_labels", "asker_paths", "asker_boxes")),
        "cache": cache,
        "device": device,
        "notes": notes,
        **(more or {}),
    }
    answer = chain(steps, STEPS, STATE | set(more or {}), "steps")
    neighbors: Neighbors = answer(state, notes.took)["neighbors"]
    return neighbors


def reads(steps: Sequence[Step], name: str) -> bool:
    """Whether one of the steps takes `name` from the state."""
    return any(name in signature(STEPS[step["name"]]).parameters for step in steps)
