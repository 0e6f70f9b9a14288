"""What any chain of steps makes of a run's embeddings, without running infer.py for each.

study = Study.of("runs/landmarks/baseline")             # after infer.py
study.scores("retrieval", "[{name: alpha_qe}, {name: knn}]")
study.table("retrieval", {"cosine": "[{name: knn}]", "reciprocal": "[{name: k_reciprocal}]"})
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from common.config import ConfigError
from common.engine.settings import this_device
from common.metrics import score as score_file
from common.pipeline.ranking import Question
from common.pipeline.scores import score_table
from common.pipeline.vectors import Vectors, load
from common.steps import Step
from common.submission import write
from common.types import Neighbors

from .config import COMMANDS
from .data import Landmarks, read
from .ranking import Held, apply, held_question, score, test_question, top_label, top_names
from .results import METRICS


class Study:
    """One run's embeddings, ranked and scored by any steps.

    Args:
        vectors: of all tables.
        data: the tables.
        held: what is held out.
        cache: folder for local features and matches.
    """

    def __init__(self, vectors: Vectors, data: Landmarks, held: Held, cache: Path) -> None:
        self.vectors, self.data, self.held, self.cache = vectors, data, held, cache

    @classmethod
    def of(cls, run: str | Path) -> Study:
        """The study of a run folder in which infer.py has run.

        Raises:
            ConfigError: no trained run, or one that holds nothing out.
            FileNotFoundError: infer.py has not run there.
        """
        config = COMMANDS.infer("", [f"run={run}"])
        data = read(config.data)
        held = Held.of(data, config)
        if held is None:
            raise ConfigError(f"{run} holds no images out (data.fold=-1): steps need some to be")
        folder = Path(run)
        vectors = load(folder, data.tables(), data.classes)
        return cls(vectors, data, held, folder.parent / "cache")

    def answer(
        self, task: str, steps: Sequence[Step] | str, *, test: bool = False
    ) -> tuple[Question, Neighbors]:
        """The held-out question (or the test's) and what the steps, a list or YAML, make of it."""
        chosen = yaml.safe_load(steps) if isinstance(steps, str) else list(steps)
        held = None if test else self.held
        asked = (
            test_question(task, self.vectors, self.data)
            if held is None
            else held_question(task, self.vectors, held)
        )
        return asked, apply(
            chosen, asked, self.vectors, self.data, held, cache=self.cache, device=this_device()
        )

    def scores(self, task: str, steps: Sequence[Step] | str) -> dict[str, float]:
        """`held-out` and, with a solution file beside the data, `test`; `seconds` of the test."""
        found = {"held-out": score(task, *self.answer(task, steps))}
        start = time.perf_counter()
        asked, answer = self.answer(task, steps, test=True)
        seconds = time.perf_counter() - start
        solution = self.data.solution(task)
        if solution is not None:
            rows: list[Any]
            if task == "recognition":
                rows = [b and (str(self.data.classes[b[0]]), b[1]) for b in top_label(answer)]
            else:
                rows = top_names(answer, asked.gallery.ids)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "submission.csv"
                write(f"landmarks-{task}", asked.queries.ids, rows, path)
                found["test"] = score_file(METRICS[task][0], solution, path)
        return {**found, "seconds": seconds}

    def table(self, task: str, rows: Mapping[str, Sequence[Step] | str]) -> pd.DataFrame:
        """Scores by name of the row, and what each held-out score is above that of the first."""
        return score_table(rows, lambda steps: self.scores(task, steps))
