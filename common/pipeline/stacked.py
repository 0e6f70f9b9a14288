"""Runs joined by trees on what each says of every candidate; trained on the held-out question."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from common.entry import say
from common.lazy import Lazy
from common.notes import Notes
from common.pipeline.ranking import Question
from common.rerank.centers import trimmed_centers
from common.rerank.stacking import Candidates, Stack, StackConfig, candidates
from common.types import Neighbors

metrics = Lazy("sklearn.metrics")

Parts = Sequence[tuple[Question, Neighbors]]


class Stacked:
    """Answers by `Stack`: out of fold for held-out queries, by all folds' trees for the test.

    Args:
        settings: of the trees.
        runs: names of the runs, for the features.
        top: so many classes of each run's list; 0: all.
        seed: of folds and trees.
    """

    def __init__(
        self, settings: StackConfig, runs: Sequence[str], *, top: int = 0, seed: int = 0
    ) -> None:
        alike = len(set(runs)) < len(runs)
        self.names = [f"{name} ({i})" if alike else name for i, name in enumerate(runs, 1)]
        self.stack, self.top, self.fitted = Stack(settings, seed), top, False

    def answer(
        self, parts: Callable[[bool], Parts], validation: bool, notes: Notes | None = None
    ) -> tuple[Question, Neighbors]:
        """The first run's question and the stacked answer; the first call trains.

        Args:
            parts: whether held-out -> each run's question and classes.
            validation: the held-out question, else the competition's.
            notes: gets importances and out-of-fold figures when the held-out question is asked.

        Raises:
            ValueError: held-out queries that cannot teach anything; see `Stack.fit`.
        """
        if not self.fitted:
            self._fit(parts(True))
        if validation:
            self._note(Notes() if notes is None else notes)
            return parts(True)[0][0], self.stack.out_of_fold_
        asked = parts(False)
        return asked[0][0], self.stack.predict(self._table(asked))

    def _fit(self, asked: Parts) -> None:
        question = asked[0][0]
        assert question.truth is not None, "the held-out question has its truth"
        groups = np.arange(len(question.truth)) if question.groups is None else question.groups
        table = self._table(asked)
        self.stack.fit(table, question.truth, groups)
        row, column = np.nonzero(table.index.numpy() >= 0)
        self.same = table.index.numpy()[row, column] == question.truth[row]
        self.centre = table.values[:, [name.endswith(": centre") for name in table.names]].mean(1)
        self.fitted = True
        say(
            f"stacked: {len(table.values):,} candidates of {len(asked[0][1])} held-out queries, "
            f"AUC out of fold {self.stack.model_.auc_:.4f}"
        )

    def _table(self, asked: Parts) -> Candidates:
        labels = asked[0][0].gallery_labels.numpy()
        return candidates(
            [found for _, found in asked],
            [question.queries for question, _ in asked],
            [trimmed_centers(question.gallery, question.gallery_labels) for question, _ in asked],
            np.bincount(labels[labels >= 0]),
            names=self.names,
            top=self.top,
        )

    def _note(self, notes: Notes) -> None:
        notes.importances["stacked"] = self.stack.model_.importances()
        notes.numbers |= {
            "stacked: AUC, out of fold": self.stack.model_.auc_,
            "stacked: AUC of the mean cosine to the centre": float(
                metrics.roc_auc_score(self.same, self.centre)
            ),
            "stacked: candidates to learn from": float(len(self.same)),
        }
