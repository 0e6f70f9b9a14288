"""From embeddings to predictions and scores; shared by train.py, infer.py and ensemble.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.config import ConfigError
from common.data import augment
from common.data.folds import Split, split
from common.engine.extract import ViewConfig, embed_table
from common.metrics import gap, map_at_k
from common.notes import Notes
from common.pipeline import ranking
from common.pipeline.ranking import Question
from common.pipeline.vectors import Vectors
from common.rerank.labels import vote
from common.retrieval.search import search
from common.steps import Step
from common.types import Embeddings, Neighbors, Table

from .config import Config
from .data import Landmarks

TOP = 100  # a retrieval submission names at most 100 index images


@dataclass
class Held:
    """What is held out of training, and what validation compares.

    Attributes:
        table: the rows of train.csv; the split's row numbers are of it.
        split: roles of the rows.
        negatives: known non-landmarks that validation must reject. The other half is `reference`,
            which penalties may look at.
    """

    table: Table
    split: Split
    negatives: Table | None
    reference: Table | None

    @classmethod
    def of(cls, data: Landmarks, config: Config) -> Held | None:
        """The fold of `data.fold`, or None when everything is trained on."""
        settings = config.data
        if settings.fold < 0:
            return None
        table = data.train.take(slice(data.clean))
        roles = split(
            table.labels,
            fold=settings.fold,
            folds=settings.folds,
            unseen=settings.unseen,
            seed=0,  # runs with other seeds must hold out the same images to be comparable
            ids=table.ids,
            max_queries=settings.max_queries,
            max_gallery=settings.max_gallery,
        )
        known = data.negatives
        even = None if known is None else known.take(slice(0, None, 2))
        odd = None if known is None or len(known) < 2 else known.take(slice(1, None, 2))
        return cls(table, roles, even, odd)

    def trainable(self, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which of `rows` of data.train, with their labels, may be trained on.

        Rows beyond train.csv (the extended set) are never queries, but may be of an unseen class.
        """
        unseen = np.unique(self.table.labels[self.split.unseen])
        inside = rows < len(self.table)
        allowed = ~np.isin(labels, unseen)
        allowed[inside] = self.split.train[rows[inside]]
        return rows[allowed]

    def describe(self) -> str:
        """One line of counts."""
        recognition, retrieval = self.split.recognition(), self.split.retrieval()
        known = recognition.truth >= 0
        others = int((~known).sum()) + (0 if self.negatives is None else len(self.negatives))
        return (
            f"held out: {known.sum()} images of {len(np.unique(recognition.truth[known]))} classes "
            f"to recognise and {others} images to reject; "
            f"{len(retrieval.queries)} retrieval queries in {len(retrieval.gallery)} images"
        )


def check_penalties(config: Config, data: Landmarks) -> None:
    """Raise before any work where a step compares with known non-landmarks and there are none."""
    for task in ("recognition", "retrieval"):
        for step in getattr(config, task):
            if data.negatives is None and str(step["name"]).endswith("_penalty"):
                raise ConfigError(
                    f"{task}: {step['name']} compares with known non-landmarks, and there are "
                    "none: set data.non_landmark=PATH, or leave the step out."
                )


def test_question(task: str, vectors: Vectors, data: Landmarks) -> Question:
    """What the competition asks."""
    queries = vectors.test.select(data.test_ids[task])
    paths = data.test.paths[vectors.test.rows(queries.ids)]
    if task == "recognition":
        labels = torch.from_numpy(data.train.labels)
        return Question(queries, vectors.train, labels, vectors.negatives, paths, data.train.paths)
    assert vectors.index is not None, "results.outputs looks first"
    assert data.index is not None
    labels = torch.full((len(vectors.index),), -1)
    return Question(queries, vectors.index, labels, vectors.negatives, paths, data.index.paths)


def held_question(task: str, vectors: Vectors, held: Held) -> Question:
    """The same question about held-out images, whose answers are known."""
    asked = held.split.recognition() if task == "recognition" else held.split.retrieval()
    queries = vectors.train.select(held.table.ids[asked.queries])
    paths, truth = held.table.paths[asked.queries], asked.truth
    gallery = vectors.train.select(held.table.ids[asked.gallery])
    reference = None
    if vectors.negatives is not None and held.negatives is not None:
        if held.reference is not None:
            reference = vectors.negatives.select(held.reference.ids)
        if task == "recognition":
            others = vectors.negatives.select(held.negatives.ids)
            queries = Embeddings(
                np.concatenate([queries.ids, others.ids]),
                torch.cat([queries.vectors, others.vectors]),
            )
            paths = np.concatenate([paths, held.negatives.paths])
            truth = np.concatenate([truth, np.full(len(others), -1)])
    relevant = held.table.labels[asked.gallery]
    # Retrieval must not profit from gallery labels: index images come without.
    known = relevant if task == "recognition" else np.full_like(relevant, -1)
    return Question(
        queries,
        gallery,
        torch.from_numpy(known),
        reference,
        paths,
        held.table.paths[asked.gallery],
        truth,
        relevant,
    )


def apply(
    steps: list[Step],
    question: Question,
    vectors: Vectors,
    data: Landmarks,
    held: Held | None,
    *,
    cache: Path,
    device: torch.device,
    notes: Notes | None = None,
) -> Neighbors:
    """What the steps make of a question: labels (recognition) or gallery rows, best first.

    `held` is given for validation: then `train` is without the held-out images.
    """
    rows = np.arange(len(data.train))
    if held is not None:
        rows = held.trainable(rows, data.train.labels)
    table = data.train.take(rows)
    return ranking.apply(
        steps,
        question,
        lambda: vectors.train.select(table.ids),
        table,
        vectors.centers,
        cache=cache,
        device=device,
        pair_head=vectors.pair_head,
        notes=notes,
    )


def score(task: str, question: Question, found: Neighbors) -> float:
    """GAP (recognition) or mAP@100 (retrieval) of a question whose truth is known."""
    assert question.truth is not None
    assert question.relevant is not None
    ids, truth = question.queries.ids.tolist(), question.truth.tolist()
    if task == "recognition":
        known = {i: [t] if t >= 0 else [] for i, t in zip(ids, truth, strict=True)}
        return gap(known, dict(zip(ids, top_label(found), strict=True)))
    names = question.gallery.ids
    same = {t: set(names[question.relevant == t].tolist()) for t in set(truth)}
    wanted = {i: same[t] for i, t in zip(ids, truth, strict=True)}
    return map_at_k(wanted, dict(zip(ids, top_names(found, names), strict=True)), TOP)


def top_label(found: Neighbors) -> list[tuple[int, float] | None]:
    """Best label and its score for each query, None where there is none."""
    label, score = found.index[:, 0].tolist(), found.score[:, 0].tolist()
    return [(i, s) if i >= 0 else None for i, s in zip(label, score, strict=True)]


def top_names(found: Neighbors, names: np.ndarray) -> list[list[str]]:
    """At most 100 gallery ids for each query, best first."""
    index = found.top(TOP).index.cpu().numpy()
    named = names[index]
    return [row[keep].tolist() for row, keep in zip(named, index >= 0, strict=True)]


def quick_scores(
    model: nn.Module, held: Held, size: int, view: ViewConfig, device: torch.device
) -> dict[str, float]:
    """GAP, mAP@100 and their mean on the held-out images by plain nearest neighbors, one view.

    For choosing between epochs; infer.py scores the configured steps.
    """
    settings = ViewConfig(size=size, fit=view.fit, batch_size=view.batch_size, workers=view.workers)
    transform = augment.build("none", size, False, fit=view.fit)
    needed = held.split.queries | held.split.gallery
    table = held.table.take(np.flatnonzero(needed))
    if held.negatives is not None:
        table = Table.concatenate([table, held.negatives])
    embeddings = embed_table(model, table, settings, transform, device)
    vectors = Vectors(embeddings, embeddings, negatives=embeddings)
    held = replace(held, reference=None)  # no penalties here
    scores = {}
    for task, metric in (("recognition", "valid/gap"), ("retrieval", "valid/map100")):
        asked = held_question(task, vectors, held)
        found = search(asked.queries, asked.gallery, TOP)
        if task == "recognition":
            found = vote(found, asked.gallery_labels, None, None)
        scores[metric] = score(task, asked, found)
    return scores | {"valid/score": sum(scores.values()) / 2}
