"""What changes over a training: settings given as numbers, and the ramp of a factor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_CONSTANT = {"start": 1.0, "end": 1.0, "over": 1.0}


def read_ramp(given: Mapping[str, Any] | None) -> dict[str, float]:
    """`start`, `end` and `over` of a ramp; None is the constant 1.

    Raises:
        ValueError: an unknown name, a negative factor, or `over` outside (0, 1].
    """
    if given is None:
        return _CONSTANT
    ramp = numbers(given, {**_CONSTANT, "start": 0.0}, "ramp")
    if min(ramp["start"], ramp["end"]) < 0 or not 0 < ramp["over"] <= 1:
        raise ValueError(f"ramp needs start >= 0, end >= 0 and over in (0, 1], got {dict(given)}")
    return ramp


def ramp_factor(ramp: Mapping[str, float], progress: float) -> float:
    """The factor when `progress` of the training, 0 to 1, is done: linear up to `over`.

    Raises:
        ValueError: progress outside [0, 1], such as an epoch number.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is the part of training done, 0 to 1; got {progress}")
    start, end, over = ramp["start"], ramp["end"], ramp["over"]
    return start + (end - start) * min(1.0, progress / over)


def numbers(given: Mapping[str, Any], defaults: Mapping[str, float], what: str) -> dict[str, float]:
    """Defaults with the given numbers in place.

    Raises:
        ValueError: an unknown name, or something that is not a finite number; names `what`.
    """
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(f"{what} has no {name!r}; it has: {', '.join(defaults)}")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"{what}: {name} must be a number, got {value!r}")
    return {**defaults, **{name: float(value) for name, value in given.items()}}
