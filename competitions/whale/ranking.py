"""From embeddings to five identities per image, and their MAP@5; shared by all three scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.config import ConfigError
from common.data import augment
from common.data.folds import Split, Validation, split
from common.engine.extract import ViewConfig, embed_table
from common.notes import Notes
from common.pipeline import ranking
from common.pipeline.halves import by_halves
from common.pipeline.ranking import Question
from common.pipeline.vectors import Vectors
from common.rerank.curves import Curve, refused_listings, unknown_curve
from common.rerank.labels import vote
from common.rerank.unknown import insert_unknown, unknown_threshold
from common.retrieval.search import search
from common.steps import Step
from common.types import Embeddings, Neighbors, Table

from .config import Config, UnknownConfig
from .data import Whale

TOP = 5  # entries of an answer


@dataclass
class Held:
    """What is held out of training: images of known individuals, and all of some individuals.

    Attributes:
        table: the rows of train.csv.
        split: their roles.
        asked: queries, gallery and truth, with no more unknown queries than the test has.
    """

    table: Table
    split: Split
    asked: Validation

    @classmethod
    def of(cls, data: Whale, config: Config) -> Held | None:
        """The fold of `data.fold`, or None when everything is trained on."""
        settings = config.data
        if settings.fold < 0:
            return None
        roles = split(
            data.train.labels,
            fold=settings.fold,
            folds=settings.folds,
            unseen=settings.unseen,
            seed=0,  # runs with other seeds must hold out the same images to be comparable
            ids=data.train.ids,
        )
        return cls(data.train, roles, _like_test(roles.recognition(), settings.unknown_share))

    def describe(self) -> str:
        """One line of counts."""
        known = int((self.asked.truth >= 0).sum())
        return (
            f"held out: {known} images of known individuals, {len(self.asked.truth) - known} to be "
            f"called unknown; {len(self.asked.gallery)} images to compare with"
        )


def _like_test(asked: Validation, share: float) -> Validation:
    """The validation with every so many unknown queries, so that they are `share` of all.

    A threshold fitted to more of them refuses too much.
    """
    unknown = np.flatnonzero(asked.truth < 0)
    wanted = round((len(asked.truth) - len(unknown)) * share / (1 - share))
    if not share or not 0 < wanted < len(unknown):
        return asked
    spread = np.linspace(0, len(unknown) - 1, wanted).round().astype(np.int64)
    keep = np.union1d(np.flatnonzero(asked.truth >= 0), unknown[spread])
    return Validation(asked.queries[keep], asked.gallery, asked.truth[keep])


def test_question(vectors: Vectors, data: Whale, held: Held | None) -> Question:
    """What the competition asks; `held` are gallery images that training has not seen."""
    known = np.flatnonzero(data.train.labels >= 0)
    question = _question(vectors.test, data.test, vectors.train, data.train.take(known))
    if held is not None:
        question.held_ids = data.train.ids[known[~held.split.train[known]]]
    return question


def held_question(vectors: Vectors, held: Held) -> Question:
    """The same question about held-out images, whose answers are known."""
    asked = held.asked
    queries, gallery = held.table.take(asked.queries), held.table.take(asked.gallery)
    question = _question(vectors.train, queries, vectors.train, gallery)
    question.truth, question.relevant = asked.truth, gallery.labels
    # Who it is even where nobody shall know; strangers without a name are all different.
    nameless = -1 - np.arange(len(queries))
    question.groups = np.where(queries.labels < 0, nameless, queries.labels)
    return question


def _question(of: Embeddings, asked: Table, among: Embeddings, known: Table) -> Question:
    labels = torch.from_numpy(known.labels)
    queries, gallery = of.select(asked.ids), among.select(known.ids)
    return Question(
        queries,
        gallery,
        labels,
        None,
        asked.paths,
        known.paths,
        query_boxes=asked.boxes,
        gallery_boxes=known.boxes,
    )


def apply(
    steps: list[Step],
    question: Question,
    vectors: Vectors,
    data: Whale,
    held: Held | None,
    *,
    cache: Path,
    device: torch.device,
    notes: Notes | None = None,
) -> Neighbors:
    """Individuals for each query, best first; `held` is given for validation."""
    rows = np.flatnonzero(data.train.labels >= 0)
    if held is not None:
        rows = rows[held.split.train[rows]]
    table = data.train.take(rows)

    def answer(asked: Question, more: dict[str, Any], own: Notes) -> Neighbors:
        return ranking.apply(
            steps,
            asked,
            lambda: vectors.train.select(table.ids),
            table,
            vectors.centers,
            cache=cache,
            device=device,
            pair_head=vectors.pair_head,
            more=more,
            notes=own,
        )

    notes = Notes() if notes is None else notes
    if held is not None and ranking.reads(steps, "askers"):
        return by_halves(question, answer, notes)
    return answer(question, {}, notes)


def curve_of(found: Neighbors, question: Question, unknown: UnknownConfig) -> Curve:
    """MAP@5 by the threshold below which the unknown identity comes first, with all its rules."""
    assert question.truth is not None
    score, index = found.score.numpy(), found.index.numpy()
    images = _images(question.gallery_labels, int(index.max(initial=0)) + 1)
    return unknown_curve(
        score,
        index,
        question.truth,
        top=TOP,
        offset=np.where(images == 1, unknown.single, 0.0),
        refused=refused_listings(index, score, images, unknown.accept),
    )


def _images(labels: torch.Tensor, classes: int) -> np.ndarray:
    """`(C,)` images of each individual in the gallery."""
    known = labels.numpy()
    return np.bincount(known[known >= 0], minlength=classes)


def check_unknown(held: Held | None, unknown: UnknownConfig) -> None:
    """Raise before any work where the threshold cannot be fitted to what is held out.

    Raises:
        ConfigError: unknown.by=validation, and nobody to reject or nobody to recognise.
    """
    if unknown.by != "validation":
        return
    if held is None:
        raise ConfigError(
            "unknown.by=validation needs held-out images and there are none: set unknown.by=share, "
            "or threshold with the value that an earlier run printed."
        )
    strange = held.asked.truth < 0
    if strange.all() or not strange.any():
        what = "shows somebody known" if strange.all() else "is to be called unknown"
        raise ConfigError(
            f"No held-out image {what}, so unknown.by=validation has no threshold to find: set "
            "unknown.by=share or threshold; or train again with "
            + (
                "less folds or a lower data.unseen."
                if strange.all()
                else "data.unseen above 0, which holds some individuals out."
            )
        )


def threshold_of(
    found: Neighbors, question: Question, unknown: UnknownConfig, curve: Curve | None, classes: int
) -> float:
    """Where the unknown identity comes in among these answers, by the rule of `unknown.by`."""
    if unknown.by == "validation":
        assert curve is not None, "config.check looks first"
        return curve.threshold
    return unknown_threshold(
        found,
        question.gallery_labels,
        unknown=classes,
        single=unknown.single,
        accept=unknown.accept,
        **{unknown.by: unknown.value},
    )


def answer(
    found: Neighbors, question: Question, unknown: UnknownConfig, threshold: float, classes: int
) -> Neighbors:
    """Five different identities per query; `classes` stands for the unknown one."""
    return insert_unknown(
        found,
        question.gallery_labels,
        unknown=classes,
        top=TOP,
        threshold=threshold,
        single=unknown.single,
        accept=unknown.accept,
    )


def average_precision(answers: Neighbors, truth: np.ndarray, classes: int) -> np.ndarray:
    """`(Q,)` 1 / rank of the right identity among five, else 0; truth -1 is the unknown one."""
    wanted = torch.from_numpy(np.where(truth < 0, classes, truth))
    hit = (answers.index[:, :TOP] == wanted[:, None]).numpy()
    return np.asarray((hit / np.arange(1, hit.shape[1] + 1)).sum(1))


def quick_scores(
    model: nn.Module, held: Held, size: int, view: ViewConfig, device: torch.device
) -> dict[str, float]:
    """MAP@5 at its best threshold, and recall, of held-out images by nearest image, one view."""
    settings = ViewConfig(size=size, fit=view.fit, batch_size=view.batch_size, workers=view.workers)
    transform = augment.build("none", size, False, fit=view.fit)
    asked = held.asked
    rows = np.union1d(asked.queries, asked.gallery)
    vectors = embed_table(model, held.table.take(rows), settings, transform, device)
    question = held_question(Vectors(vectors, vectors), held)
    near = search(question.queries, question.gallery, 50)
    found = vote(near, question.gallery_labels, None, None, top=50, power=1.0, reduce="max")
    known = asked.truth >= 0
    first = found.index[:, 0].numpy() == asked.truth
    score = curve_of(found, question, UnknownConfig()).value
    recall = float(first[known].mean()) if known.any() else 0.0
    return {"valid/map5": score, "valid/recall1": recall, "valid/score": score}
