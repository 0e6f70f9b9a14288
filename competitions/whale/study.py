"""What any chain of steps makes of a run's embeddings, without running infer.py for each.

study = Study.of("runs/whale/baseline")                 # after infer.py
study.scores("[{name: knn}, {name: vote, reduce: max, top: 50, power: 1.0}]")
study.table({"nearest image": "[...]", "class centres": "[{name: class_centers}]"})
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from common.config import ConfigError
from common.engine.settings import this_device
from common.pipeline.ranking import Question
from common.pipeline.scores import score_table
from common.pipeline.vectors import Vectors, load
from common.rerank.curves import Curve
from common.steps import Step
from common.types import Neighbors

from .config import COMMANDS, Config
from .data import Whale, read
from .ranking import (
    Held,
    answer,
    apply,
    average_precision,
    curve_of,
    held_question,
    test_question,
    threshold_of,
)


class Study:
    """One run's embeddings, answered and scored by any steps.

    The unknown identity comes in as the run's config says; its `postprocess` is left out.

    Args:
        config: of the run.
        vectors: of train and test.
        data: the tables.
        held: what is held out.
        cache: folder for local features and matches.
    """

    def __init__(
        self, config: Config, vectors: Vectors, data: Whale, held: Held, cache: Path
    ) -> None:
        self.config, self.vectors, self.data, self.held = config, vectors, data, held
        self.cache, self.truth = cache, _truth(data)

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
        tables = {"train": data.train, "test": data.test}
        folder = Path(run)
        vectors = load(folder, tables, data.classes)
        return cls(config, vectors, data, held, folder.parent / "cache")

    def ranked(
        self, steps: Sequence[Step] | str, *, test: bool = False
    ) -> tuple[Question, Neighbors]:
        """The held-out question (or the test's) and its individuals, before the unknown one."""
        chosen = yaml.safe_load(steps) if isinstance(steps, str) else list(steps)
        asked = (
            test_question(self.vectors, self.data, self.held)
            if test
            else held_question(self.vectors, self.held)
        )
        return asked, apply(
            chosen,
            asked,
            self.vectors,
            self.data,
            None if test else self.held,
            cache=self.cache,
            device=this_device(),
        )

    def curve(self, steps: Sequence[Step] | str) -> Curve:
        """MAP@5 of the held-out images by the threshold of the unknown identity."""
        asked, found = self.ranked(steps)
        return curve_of(found, asked, self.config.unknown)

    def scores(self, steps: Sequence[Step] | str) -> dict[str, float]:
        """MAP@5 `held-out` and, with a solution beside the data, `test`; `seconds` of the test."""
        unknown, classes = self.config.unknown, len(self.data.classes)
        asked, known = self.ranked(steps)
        assert asked.truth is not None, "held-out images have one"
        curve = curve_of(known, asked, unknown)
        threshold = threshold_of(known, asked, unknown, curve, classes)
        answers = answer(known, asked, unknown, threshold, classes)
        found = {"held-out": float(average_precision(answers, asked.truth, classes).mean())}
        start = time.perf_counter()
        asked, ranked = self.ranked(steps, test=True)
        seconds = time.perf_counter() - start
        if self.truth is not None:
            threshold = threshold_of(ranked, asked, unknown, curve, classes)
            answers = answer(ranked, asked, unknown, threshold, classes)
            found["test"] = float(average_precision(answers, self.truth, classes).mean())
        return {**found, "seconds": seconds}

    def table(self, rows: Mapping[str, Sequence[Step] | str]) -> pd.DataFrame:
        """Scores by name of the row, and what each held-out score is above that of the first."""
        return score_table(rows, self.scores)


def _truth(data: Whale) -> np.ndarray | None:
    """Labels of the test images by the solution file, -1 for the unknown; None without it."""
    solution = data.solution()
    if solution is None:
        return None
    names = pd.read_csv(solution, dtype=str).set_index("Image")["Id"]
    rows = names.loc[data.test.ids].to_numpy(np.str_)
    place = np.searchsorted(data.classes, rows).clip(max=len(data.classes) - 1)
    return np.where(data.classes[place] == rows, place, -1)
