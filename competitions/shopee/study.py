"""What any list of matching steps makes of runs' embeddings, without running infer.py for each.

study = Study.of("runs/shopee/baseline", "runs/shopee/text")     # after infer.py of each
study.scores("[{name: concat}, {name: union}]")
study.table({"pictures": "[{name: nearest, of: image}]", "both": "[{name: union}]"})
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from common.config import ConfigError
from common.engine.settings import this_device
from common.metrics import score as score_file
from common.notes import Notes
from common.pipeline.scores import score_table
from common.pipeline.vectors import load
from common.rerank.graph import size_shares
from common.rerank.transfer import Choice, choose_cut, kept
from common.steps import Step
from common.submission import write
from common.types import Neighbors

from .config import COMMANDS, Config
from .data import Shopee, read
from .held import Held
from .matching import SOURCE, Memory, Pool, Titles, by_kind, held_pool, match, test_pool
from .results import rows_of


class Study:
    """Held-out and test listings, matched and scored by any steps; the threshold by any rule.

    Args:
        config: of the first run: titles, threshold.
        data: the tables.
        pools: held-out listings with their distractors, and the test's.
    """

    def __init__(self, config: Config, data: Shopee, pools: tuple[Pool, Pool]) -> None:
        self.config, self.data, self.pools = config, data, pools
        self._done: dict[str, tuple[Neighbors, Neighbors]] = {}

    @classmethod
    def of(cls, *runs: str | Path) -> Study:
        """The study of run folders in which infer.py has run; runs of one kind are joined.

        Raises:
            ConfigError: no trained run, or one that holds nothing out.
            FileNotFoundError: infer.py has not run there.
        """
        configs = [COMMANDS.infer("", [f"run={run}"]) for run in runs]
        config = configs[0]
        data = read(config.data)
        held = Held.of(data, config.data)
        if held is None:
            raise ConfigError(f"{runs[0]} holds nothing out (data.fold=-1): steps need some to be")
        names = [SOURCE[one.model.uses] for one in configs]
        vectors = [load(Path(run), data.tables(), data.classes) for run in runs]
        sources = by_kind(names, vectors, [1.0] * len(vectors))
        titles = Titles(data, config.tfidf.kinds, config.tfidf.dim, config.seed)
        pools = held_pool(data, held, sources, titles), test_pool(data, sources, titles)
        return cls(config, data, pools)

    def matched(self, steps: Sequence[Step] | str) -> tuple[Neighbors, Neighbors]:
        """Scored pairs of the held-out listings and of the test's; steps are a list or YAML.

        What a step learns, it learns from the held-out ones. Steps that were asked before are not
        run again.
        """
        chosen = yaml.safe_load(steps) if isinstance(steps, str) else list(steps)
        key = yaml.safe_dump(chosen)
        if key not in self._done:
            memory: Memory = {}
            known, found = (match(chosen, p, memory, Notes(), this_device()) for p in self.pools)
            self._done[key] = known, found
        return self._done[key]

    def choice(self, known: Neighbors, found: Neighbors) -> Choice:
        """The thresholds of every rule, and F1 over both thresholds."""
        shares = size_shares(self.data.train.labels)
        return choose_cut(self.config.threshold, shares, found, known, self.pools[0].truth)

    def scores(self, steps: Sequence[Step] | str, *, by: str | None = None) -> dict[str, float]:
        """F1 `held-out` and, with a solution beside the data, `test`; `threshold`, `seconds`.

        Args:
            steps: as `matched` takes them.
            by: rule of the threshold; None: the config's.
        """
        start = time.perf_counter()
        known, found = self.matched(steps)
        seconds = time.perf_counter() - start
        choice = self.choice(known, found)
        cut = choice.cuts[by or choice.by]
        assert cut.f1 is not None, "listings are held out"
        scores = {"held-out": cut.f1}
        solution = self.data.solution()
        if solution is not None:
            answer = kept(found, cut, self.config.threshold.most)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "submission.csv"
                write("shopee", self.pools[1].table.ids, rows_of(answer, self.pools[1]), path)
                scores["test"] = score_file("f1", solution, path)
        return {**scores, "threshold": cut.threshold, "seconds": seconds}

    def table(self, rows: Mapping[str, Sequence[Step] | str]) -> pd.DataFrame:
        """Scores by name of the row, and what each held-out score is above that of the first."""
        return score_table(rows, self.scores)
