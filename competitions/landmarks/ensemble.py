"""Join several runs into one submission; weights are searched on held-out images, never on test.

python competitions/landmarks/ensemble.py runs=[runs/landmarks/a,runs/landmarks/b] \
        [ensemble.by=embeddings|scores|ranks] [key=value ...]
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

import numpy as np
import torch

from common import blend, weigh
from common.engine.settings import this_device
from common.entry import entry, say
from common.retrieval.whiten import Whitening
from common.steps import Step
from common.types import Embeddings, Neighbors

from .config import Config, of_ensemble
from .data import Landmarks, read
from .ranking import Held, Question, Vectors, apply, held_question, score, test_question
from .results import finish, load_vectors, start_run, tasks

# Minutes per call, and the same for every weight: left out while weights are searched.
SLOW = ("local",)


def main(arguments: list[str]) -> dict[str, float]:
    """Scores of the ensemble; submissions and report are in its folder."""
    config, members = of_ensemble(__doc__ or "", arguments)
    folder = Path(str(config.out))
    data = read(config.data)
    held = Held.of(data, config)
    say(data.describe())
    vectors = [load_vectors(Path(run), data) for run in config.runs]
    join = Join(config, members, vectors, data, held)
    weights = {task: join.weights(task) for task in tasks(config, data)}
    for task, found in weights.items():
        shares = ", ".join(
            f"{Path(r).name} {w:.2f}" for r, w in zip(config.runs, found, strict=True)
        )
        say(f"{task}: weights by {config.ensemble.by}: {shares}")

    def answer(task: str, validation: bool) -> tuple[Question, Neighbors]:
        return join.answer(task, weights[task], held if validation else None)

    run = start_run(config, folder, data, "ensemble")
    scores = finish(config, data, held, answer, folder, run)
    return scores


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

        def value(weights: Sequence[float]) -> float:
            return score(task, *self.answer(task, weights, held, slow=False))

        found, best = weigh.search_weights(
            value, len(self.vectors), steps=self.config.ensemble.steps, seed=self.config.seed
        )
        say(f"{task}: best {best:.4f} on held-out images, without {' and '.join(SLOW)}")
        return list(found)

    def answer(
        self, task: str, weights: Sequence[float], held: Held | None, *, slow: bool = True
    ) -> tuple[Question, Neighbors]:
        """The question and the joined answer."""
        if self.config.ensemble.by == "embeddings":
            joined = self._joined(weights)
            return self._one(task, joined, getattr(self.config, task), held, slow)
        key = (task, held is None, slow)
        if key not in self.answers:  # the runs' own answers do not depend on the weights
            self.answers[key] = [
                self._one(task, vectors, getattr(member, task), held, slow)
                for vectors, member in zip(self.vectors, self.members, strict=True)
            ]
        parts = self.answers[key]
        mix = blend.blend_scores if self.config.ensemble.by == "scores" else blend.blend_ranks
        return parts[0][0], mix([found for _, found in parts], list(weights))

    def _one(
        self, task: str, vectors: Vectors, steps: list[Step], held: Held | None, slow: bool
    ) -> tuple[Question, Neighbors]:
        asked = (
            held_question(task, vectors, held) if held else test_question(task, vectors, self.data)
        )
        steps = [step for step in steps if slow or step["name"] not in SLOW]
        return asked, apply(
            steps, asked, vectors, self.data, held, cache=self.cache, device=self.device
        )

    def _joined(self, weights: Sequence[float]) -> Vectors:
        """All runs' embeddings side by side: the cosine is the weighted mean of theirs."""
        keep = [i for i, weight in enumerate(weights) if weight > 0]
        chosen = [self.vectors[i] for i in keep]
        shares = [weights[i] for i in keep]

        def side_by_side(name: str) -> Embeddings | None:
            parts = [getattr(v, name) for v in chosen]
            return None if any(p is None for p in parts) else blend.blend_embeddings(parts, shares)

        train, test = side_by_side("train"), side_by_side("test")
        index, negatives = side_by_side("index"), side_by_side("negatives")
        assert train is not None
        assert test is not None
        joined = Vectors(train, test, index, negatives, _centers(chosen, shares))
        if not self.config.ensemble.whiten:
            return joined
        whitening = Whitening(self.config.ensemble.whiten).fit(train.vectors)

        def whitened(part: Embeddings | None) -> Embeddings | None:
            return part and Embeddings(part.ids, whitening.transform(part.vectors), part.card)

        return Vectors(whitened(train), whitened(test), whitened(index), whitened(negatives), None)


def _centers(vectors: Sequence[Vectors], shares: Sequence[float]) -> torch.Tensor | None:
    """Class centres of the joined space, when all runs have them with as many sub-centres."""
    parts = [v.centers for v in vectors]
    if any(p is None for p in parts) or len({p.shape[1] for p in parts if p is not None}) > 1:
        return None
    scale = np.sqrt(np.asarray(shares) / np.sum(shares))
    return torch.cat([float(s) * p for s, p in zip(scale, parts, strict=True) if p is not None], 2)


if __name__ == "__main__":
    entry(main)
