"""Join several runs into one submission; weights are searched on held-out images, never on test.

python competitions/landmarks/ensemble.py 'runs=[runs/landmarks/a,runs/landmarks/b]' [key=value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: the folder's own name, so that a copied folder finds itself
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here.parents[1]))
    __package__ = f"competitions.{here.name}"
    __import__(__package__)

from collections.abc import Sequence
from dataclasses import replace

from common import blend, weigh
from common.engine.settings import this_device
from common.entry import entry, say
from common.notes import Notes
from common.pipeline.ranking import Question, reads
from common.pipeline.vectors import Vectors, load, side_by_side
from common.steps import Step
from common.types import Neighbors

from .config import COMMANDS, Config
from .data import Landmarks, read
from .ranking import (
    Held,
    apply,
    check_penalties,
    held_question,
    score,
    test_question,
)
from .results import finish, outputs, start_run

# Minutes per call, and the same for every weight: left out while weights are searched.
SLOW = ("local", "plausible", "wild_fusion")


def main(arguments: list[str]) -> dict[str, float]:
    """Scores of the ensemble; submissions and report are in its folder."""
    config, members = COMMANDS.ensemble(__doc__ or "", arguments)
    out = Path(str(config.out))
    folder = out.with_suffix("") if out.suffix == ".csv" else out
    data = read(config.data)
    held = Held.of(data, config)
    paths = outputs(config, data, folder)
    check_penalties(config, data)
    say(data.describe())
    vectors = [load(Path(run), data.tables(), data.classes) for run in config.runs]
    join = Join(config, members, vectors, data, held)
    weights = {task: join.weights(task) for task in paths}
    for task, found in weights.items():
        shares = ", ".join(
            f"{Path(r).name} {w:.2f}" for r, w in zip(config.runs, found, strict=True)
        )
        say(f"{task}: weights by {config.ensemble.by}: {shares}")

    def answer(task: str, validation: bool, notes: Notes) -> tuple[Question, Neighbors]:
        return join.answer(task, weights[task], held if validation else None, notes=notes)

    run = start_run(config, folder, data, "ensemble")
    return finish(paths, data, held, answer, folder, run, joined=config.runs)


class Join:
    """Several runs' vectors as one ranking, for given weights."""

    def __init__(
        self,
        config: Config,
        members: Sequence[Config],
        vectors: Sequence[Vectors],
        data: Landmarks,
        held: Held | None,
    ) -> None:
        self.config, self.members, self.vectors = config, members, vectors
        self.data, self.held = data, held
        self.answers: dict[tuple[str, bool, bool], list[tuple[Question, Neighbors]]] = {}
        self.device = this_device()
        self.cache = Path(config.runs[0]).parent / "cache"

    def weights(self, task: str) -> list[float]:
        """The given weights, or those with the best score on held-out images."""
        given = self.config.ensemble.weights
        if given or len(self.vectors) == 1:
            return list(given) or [1.0]
        held = self.held
        if held is None:
            say("nothing is held out (data.fold=-1): equal weights")
            return [1 / len(self.vectors)] * len(self.vectors)
        used = [step for chosen in self._steps(task) for step in chosen]
        vectors = self.vectors
        if not (self.config.ensemble.whiten or reads(used, "train")):
            vectors = [compared(v, held) for v in vectors]

        def value(weights: Sequence[float]) -> float:
            return score(task, *self.answer(task, weights, held, slow=False, vectors=vectors))

        found, best = weigh.search_weights(
            value, len(vectors), steps=self.config.ensemble.steps, seed=self.config.seed
        )
        left_out = sorted({step["name"] for step in used} & set(SLOW))
        without = f", without {' and '.join(left_out)}" if left_out else ""
        say(f"{task}: the best weights give {best:.4f} on held-out images{without}")
        return list(found)

    def answer(
        self,
        task: str,
        weights: Sequence[float],
        held: Held | None,
        *,
        slow: bool = True,
        vectors: Sequence[Vectors] = (),
        notes: Notes | None = None,
    ) -> tuple[Question, Neighbors]:
        """The question and the joined answer, of `vectors` where these are enough."""
        vectors, steps = vectors or self.vectors, self._steps(task)
        if self.config.ensemble.by == "embeddings":
            return self._one(
                task,
                side_by_side(vectors, weights, whiten=self.config.ensemble.whiten),
                steps[0],
                held,
                slow,
                notes,
            )
        key = (task, held is None, slow)
        if key not in self.answers:  # the runs' own answers do not depend on the weights
            self.answers[key] = [
                self._one(task, own, chosen, held, slow, None)
                for own, chosen in zip(vectors, steps, strict=True)
            ]
        parts = self.answers[key]
        mix = blend.blend_scores if self.config.ensemble.by == "scores" else blend.blend_ranks
        return parts[0][0], mix([found for _, found in parts], list(weights))

    def _steps(self, task: str) -> list[list[Step]]:
        """The ensemble's own steps for joined embeddings, else those of each run."""
        by_embeddings = self.config.ensemble.by == "embeddings"
        return [getattr(c, task) for c in ([self.config] if by_embeddings else self.members)]

    def _one(
        self,
        task: str,
        vectors: Vectors,
        steps: list[Step],
        held: Held | None,
        slow: bool,
        notes: Notes | None,
    ) -> tuple[Question, Neighbors]:
        asked = (
            held_question(task, vectors, held) if held else test_question(task, vectors, self.data)
        )
        steps = [step for step in steps if slow or step["name"] not in SLOW]
        return asked, apply(
            steps,
            asked,
            vectors,
            self.data,
            held,
            cache=self.cache,
            device=self.device,
            notes=notes,
        )


def compared(vectors: Vectors, held: Held) -> Vectors:
    """Only what validation looks at: joining all embeddings for each weight would take hours."""
    ids = held.table.ids[held.split.queries | held.split.gallery]
    none = vectors.test.select(ids[:0])
    return replace(vectors, train=vectors.train.select(ids), test=none, index=None)


if __name__ == "__main__":
    entry(main)
