"""Several runs as one ranking: by embeddings, scores or ranks, with weights found on validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import blend, weigh
from common.entry import say
from common.notes import Notes
from common.pipeline.ranking import Question, reads
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
    ) -> None:
        self.settings, self.vectors, self.respond, self.score = settings, vectors, answer, score
        self.steps = [steps] if settings.by == "embeddings" else list(own)
        self.narrow, self.seed = narrow, seed
        self.answers: dict[tuple[bool, bool], list[tuple[Question, Neighbors]]] = {}

    def weights(self, runs: Sequence[str], what: str = "") -> list[float]:
        """The given weights, or those with the best score on held-out images; said aloud.

        Args:
            runs: the run folders, for the words.
            what: a word before them: the task.
        """
        before = f"{what}: " if what else ""
        found = self._weights(before)
        shares = ", ".join(f"{Path(r).name} {w:.2f}" for r, w in zip(runs, found, strict=True))
        say(f"{before}weights by {self.settings.by}: {shares}")
        return found

    def _weights(self, before: str) -> list[float]:
        given = self.settings.weights
        if given or len(self.vectors) == 1:
            return list(given) or [1.0]
        measure = self.score
        if measure is None:
            say("nothing is held out (data.fold=-1): equal weights")
            return [1 / len(self.vectors)] * len(self.vectors)
        used = [step for chosen in self.steps for step in chosen]
        vectors = list(self.vectors)
        if self.narrow is not None and not (self.settings.whiten or reads(used, "train")):
            vectors = [self.narrow(own) for own in vectors]

        def value(weights: Any) -> float:
            return measure(*self.answer(weights, True, slow=False, vectors=vectors))

        found, best = weigh.search_weights(
            value, len(vectors), steps=self.settings.steps, seed=self.seed
        )
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
        vectors = vectors or self.vectors
        steps = [[s for s in chosen if slow or s["name"] not in SLOW] for chosen in self.steps]
        if self.settings.by == "embeddings":
            joined = side_by_side(vectors, weights, whiten=self.settings.whiten)
            return self.respond(joined, steps[0], validation, notes)
        key = (validation, slow)
        if key not in self.answers:  # the runs' own answers do not depend on the weights
            self.answers[key] = [
                self.respond(own, chosen, validation, None)
                for own, chosen in zip(vectors, steps, strict=True)
            ]
        parts = self.answers[key]
        mix = blend.blend_scores if self.settings.by == "scores" else blend.blend_ranks
        return parts[0][0], mix([found for _, found in parts], list(weights))
