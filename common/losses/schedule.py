"""What changes over a training: settings given as numbers, and the ramp of a factor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_CONSTANT = {"start": 1.0, "end": 1.0, "from": 0.0, "over": 1.0}


def read_ramp(given: Mapping[str, Any] | None, what: str = "ramp") -> dict[str, float]:
    """`start`, `end`, `from` and `over` of a ramp; None is the constant 1.

    Left out, start is 0, end 1, from 0, and over what is left of the training after `from`.

    Raises:
        ValueError: an unknown name, a negative factor, `from` outside [0, 1), or `over` not in
            (0, 1 - from]; names `what`.
    """
    if given is None:
        return _CONSTANT
    ramp = numbers(given, {**_CONSTANT, "start": 0.0}, what)
    left = 1 - ramp["from"]
    if "over" not in given:
        ramp["over"] = left
    fits = min(ramp["start"], ramp["end"]) >= 0 and 0 < left <= 1
    if not fits or not 0 < ramp["over"] <= left + 1e-9:
        raise ValueError(
            f"{what} needs start >= 0, end >= 0, from in [0, 1) and over in (0, 1 - from], got "
            f"{dict(given)}"
        )
    return ramp


def ramp_factor(ramp: Mapping[str, float], progress: float) -> float:
    """The factor when `progress` of the training, 0 to 1, is done: linear, from `from` on.

    Raises:
        ValueError: progress outside [0, 1], such as an epoch number.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is the part of training done, 0 to 1; got {progress}")
    done = min(1.0, max(0.0, progress - ramp["from"]) / ramp["over"])
    # At both ends exactly the numbers that were given.
    return ramp["start"] * (1 - done) + ramp["end"] * done


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
