"""Several runs as one ranking: by embeddings, scores, ranks, or trees, fitted on validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import blend, weigh
from common.entry import say
from common.notes import Notes
from common.pipeline.ranking import Question, reads
from common.pipeline.stacked import Stacked
from common.pipeline.vectors import Vectors, side_by_side
from common.steps import Step
from common.types import Neighbors

# Minutes per call, and the same for every weight: left out while weights are searched.
SLOW = ("local", "plausible", "wild_fusion")

# Vectors, steps, whether held-out, notes -> the question and its answer.
Answer = Callable[[Vectors, Sequence[Step], bool, Notes | None], tuple[Question, Neighbors]]


class Join:
    """The vectors of several runs as one answer, for given weights.

    Args:
        settings: the `ensemble:` section: by, weights, steps, whiten.
        vectors: of the runs.
        steps: of the joined vectors, when `by` is embeddings.
        own: each run's own steps, for scores and ranks.
        answer: answers with one run's, or the joined, vectors.
        score: of a held-out answer, higher is better; None when nothing is held out.
        narrow: a run's vectors cut down to what validation compares: joining all embeddings for
            each weight would take hours.
        seed: of the search.
        top: for scores and ranks, so many of each list; 0: all.
        missing: for scores, of what a list lacks: `lowest` or `zero`.
        lists: whether held-out -> further answers to the same question, whose weights come last.
        stacked: learns and answers, when `by` is stacked.
    """

    def __init__(
        self,
        settings: Any,
        vectors: Sequence[Vectors],
        steps: Sequence[Step],
        own: Sequence[Sequence[Step]],
        answer: Answer,
        score: Callable[[Question, Neighbors], float] | None,
        *,
        narrow: Callable[[Vectors], Vectors] | None = None,
        seed: int = 0,
        top: int = 0,
        missing: str = "lowest",
        lists: Callable[[bool], Sequence[Neighbors]] = lambda validation: (),
        stacked: Stacked | None = None,
    ) -> None:
        self.settings, self.vectors, self.respond, self.score = settings, vectors, answer, score
        self.top, self.missing, self.lists, self.stacked = top, missing, lists, stacked
        self.steps = [steps] if settings.by == "embeddings" else list(own)
        self.narrow, self.seed = narrow, seed
        self.answers: dict[tuple[bool, bool], list[tuple[Question, Neighbors]]] = {}

    def weights(self, runs: Sequence[str], what: str = "") -> list[float]:
        """The given weights, or those with the best score on held-out images; said aloud.

        Args:
            runs: the run folders, then the files of `lists`, for the words.
            what: a word before them: the task.
        """
        before = f"{what}: " if what else ""
        if self.stacked is not None:
            return []
        found = self._weights(before, len(runs))
        shares = ", ".join(f"{Path(r).name} {w:.2f}" for r, w in zip(runs, found, strict=True))
        say(f"{before}weights by {self.settings.by}: {shares}")
        return found

    def _weights(self, before: str, count: int) -> list[float]:
        given = self.settings.weights
        if given or count == 1:
            return list(given) or [1.0]
        measure = self.score
        if measure is None:
            say("nothing is held out: equal weights")
            return [1 / count] * count
        used = [step for chosen in self.steps for step in chosen]
        vectors = list(self.vectors)
        if self.narrow is not None and not (self.settings.whiten or reads(used, "train")):
            vectors = [self.narrow(own) for own in vectors]

        def value(weights: Any) -> float:
            return measure(*self.answer(weights, True, slow=False, vectors=vectors))

        found, best = weigh.search_weights(value, count, steps=self.settings.steps, seed=self.seed)
        left_out = sorted({step["name"] for step in used} & set(SLOW))
        without = f", without {' and '.join(left_out)}" if left_out else ""
        say(f"{before}the best weights give {best:.4f} on held-out images{without}")
        return list(found)

    def answer(
        self,
        weights: Sequence[float],
        validation: bool,
        *,
        slow: bool = True,
        vectors: Sequence[Vectors] = (),
        notes: Notes | None = None,
    ) -> tuple[Question, Neighbors]:
        """The question and the joined answer, of `vectors` where these are enough.

        Args:
            weights: one per run.
            validation: the held-out question, else the competition's.
            slow: with the steps that take minutes.
            vectors: in the place of the runs' own.
            notes: filled with what the steps of joined embeddings found out.
        """
        if self.stacked is not None:
            return self.stacked.answer(
                lambda held: self._parts(held, True, self.vectors), validation, notes
            )
        vectors = vectors or self.vectors
        if self.settings.by == "embeddings":
            joined = side_by_side(vectors, weights, whiten=self.settings.whiten)
            return self.respond(joined, self._chosen(slow)[0], validation, notes)
        parts = self._parts(validation, slow, vectors)
        found = [one for _, one in parts] + list(self.lists(validation))
        wide = None  # as many as the longest list has
        if self.top:
            found = [one.top(self.top) for one in found]
            wide = sum(one.index.shape[1] for one in found)
        if self.settings.by == "ranks":
            return parts[0][0], blend.blend_ranks(found, list(weights), k=wide)
        mixed = blend.blend_scores(found, list(weights), missing=self.missing, k=wide)
        return parts[0][0], mixed

    def _parts(
        self, validation: bool, slow: bool, vectors: Sequence[Vectors]
    ) -> list[tuple[Question, Neighbors]]:
        """Each run's own answer; kept, as it does not depend on the weights."""
        key = (validation, slow)
        if key not in self.answers:
            self.answers[key] = [
                self.respond(own, chosen, validation, None)
                for own, chosen in zip(vectors, self._chosen(slow), strict=True)
            ]
        return self.answers[key]

    def _chosen(self, slow: bool) -> list[list[Step]]:
        return [[s for s in chosen if slow or s["name"] not in SLOW] for chosen in self.steps]
