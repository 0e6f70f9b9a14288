"""A held-out question in two halves, each answered by what was learned from the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from common.data.folds import group_folds
from common.notes import Notes
from common.pipeline.ranking import Question
from common.types import Neighbors

Answer = Callable[[Question, dict[str, Any], Notes], Neighbors]


def by_halves(question: Question, answer: Answer, notes: Notes) -> Neighbors:
    """`(Q, K)`, each half of the queries answered with the other half as `askers`.

    Held-out images are the only labelled ones that the backbone has not been trained on, and those
    that a step learns from must not be those that it is scored on. No identity is in both halves.
    What the steps note is of the second half; the pairs of matches and seconds are of both.

    Args:
        question: with truth, and groups where what the gallery lacks shall not be split either.
        answer: of a question, with more entries of the state and notes.
        notes: filled.
    """
    assert question.truth is not None, "only what is held out can be learned from"
    groups = question.truth if question.groups is None else question.groups
    if len(np.unique(groups)) < 2:
        return answer(question, {}, notes)
    half = group_folds(groups, 2)
    parts: list[tuple[np.ndarray, Neighbors]] = []
    for side in (0, 1):
        rows, others = np.flatnonzero(half == side), np.flatnonzero(half != side)
        asking = part_of(question, others)
        assert asking.truth is not None
        state = {
            "askers": asking.queries,
            "asker_labels": torch.from_numpy(asking.truth),
            "asker_paths": asking.query_paths,
            "asker_boxes": asking.query_boxes,
        }
        own = Notes()
        parts.append((rows, answer(part_of(question, rows), state, own)))
        for match in own.matches:
            notes.matches.append({**match, "query": rows[match["query"]]})
        for name in ("importances", "numbers", "calibration"):
            getattr(notes, name).update(getattr(own, name))
        notes.remarks.extend(own.remarks)
        for step, seconds in own.seconds.items():
            notes.took(step, seconds)
    order = torch.from_numpy(np.argsort(np.concatenate([rows for rows, _ in parts])))
    width = max(found.index.shape[1] for _, found in parts)
    index = torch.cat([_wide(found.index, width, -1) for _, found in parts])
    score = torch.cat([_wide(found.score, width, -torch.inf) for _, found in parts])
    return Neighbors(index[order.to(index.device)], score[order.to(score.device)])


def part_of(question: Question, rows: np.ndarray) -> Question:
    """The same question about some of its queries."""

    def some(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[rows]

    return replace(
        question,
        queries=question.queries.select(question.queries.ids[rows]),
        query_paths=question.query_paths[rows],
        query_boxes=some(question.query_boxes),
        truth=some(question.truth),
        groups=some(question.groups),
    )


def _wide(values: torch.Tensor, width: int, padding: float) -> torch.Tensor:
    behind = (0, width - values.shape[1])
    return torch.nn.functional.pad(values, behind, value=padding)
