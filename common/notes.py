"""What ranking steps find out beside their neighbors, collected for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Notes:
    """A step that has something to show takes `notes: Notes` and adds to it.

    Attributes:
        calibration: by matcher, a reliability diagram: `{confidence, accuracy, count}` lists of one
            value per bin, and `ece`, the expected calibration error.
        importances: by model, the gain of each feature.
        matches: pairs of images with their local matches: `{query, gallery, inliers, ...}`.
        numbers: figures worth a line, such as the recall of an approximate search.
        remarks: sentences worth a line, such as which index was picked and why.
        seconds: by step, how long it took.
    """

    calibration: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    importances: dict[str, Mapping[str, float]] = field(default_factory=dict)
    matches: list[Mapping[str, Any]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def took(self, step: str, seconds: float) -> None:
        """Add to the time of a step: one that runs twice counts twice."""
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds
