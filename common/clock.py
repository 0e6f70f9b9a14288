"""How long each stage of a script took: read, embed, search, re-rank.

Times are those of the clock on the wall; the report shows them, `Analysis.stages`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Stage:
    """One stage.

    Attributes:
        stage: what was done.
        seconds: of wall time.
        rows: images, queries or listings that went through; 0 where none are counted.
        within: a part of the stage above it.
    """

    stage: str
    seconds: float = 0.0
    rows: int = 0
    within: bool = False


class Clock:
    """Stages in the order in which they began."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    @contextmanager
    def __call__(self, stage: str, rows: int = 0) -> Iterator[Stage]:
        """Time a block; its stage may still be given its `rows` inside."""
        entry = Stage(stage, rows=rows)
        self.stages.append(entry)
        start = time.perf_counter()
        try:
            yield entry
        finally:
            entry.seconds = time.perf_counter() - start

    def parts(self, seconds: Mapping[str, float]) -> None:
        """Parts of the stage that was timed last, by name, such as `Notes.seconds`."""
        self.stages += [Stage(name, spent, within=True) for name, spent in seconds.items()]

    def rows(self) -> list[dict[str, Any]]:
        """The stages as `Analysis.stages` wants them."""
        return [asdict(stage) for stage in self.stages]
