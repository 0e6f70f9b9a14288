"""What a parameter of a sweep may be, and how it is drawn: by its inverse distribution.

Everything but a constant is one number for the search, a choice or a share between 0 and 1: a
normal distribution or weighted choices are then drawn as W&B draws them, by any method.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import norm

from common.config import ConfigError, suggestion

_TAIL = 1e-6  # a normal distribution is cut there: its ends are infinite
# Keys of each distribution, beside `distribution`; those in brackets may be left out.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values", "(probabilities)"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "(q)"),
    "int_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "normal": ("(mu)", "(sigma)"),
}
GRID = ("constant", "categorical", "int_uniform", "q_uniform")  # what a grid can list
_MOST = 10_000  # points of a grid along one parameter


@dataclass
class Parameter:
    """One parameter.

    Attributes:
        kind: name of the distribution.
        values: choices of a categorical, the one of a constant, all of a grid.
        weights: `(V,)` probabilities of the choices, or None for equal ones.
        low: of a range; mean of a normal distribution.
        high: of a range; its standard deviation.
        q: step of q_uniform.
    """

    kind: str
    values: list[Any] = field(default_factory=list)
    weights: list[float] | None = None
    low: float = 0.0
    high: float = 1.0
    q: float = 1.0

    @property
    def samples(self) -> list[Any]:
        """Values that stand for all: every choice, or both ends of a range."""
        return self.values if self.values else [self.at(0.0), self.at(1.0)]

    def at(self, share: float) -> Any:
        """The value that this share of the draws does not exceed."""
        if self.weights is not None:
            ends = np.cumsum(self.weights) / sum(self.weights)
            place = int(np.searchsorted(ends, share, side="right"))
            last = max(n for n, weight in enumerate(self.weights) if weight > 0)
            return self.values[min(place, last)]
        if self.kind == "normal":
            return _short(norm.ppf(min(max(share, _TAIL), 1 - _TAIL), self.low, self.high))
        if self.kind == "log_uniform_values":
            low, high = math.log(self.low), math.log(self.high)
            return min(max(_short(math.exp(low + share * (high - low))), self.low), self.high)
        if self.kind == "int_uniform":
            step = math.floor(share * (self.high - self.low + 1))  # also right below 0
            return min(int(self.low) + step, int(self.high))
        value = self.low + share * (self.high - self.low)
        if self.kind == "q_uniform":
            steps = round(value / self.q)
            whole = float(self.q).is_integer()
            return int(steps * self.q) if whole else _short(steps * self.q)
        return _short(value)

    def suggest(self, trial: Any, key: str) -> Any:
        """The value that an Optuna trial chooses."""
        if self.kind == "constant":
            return self.values[0]
        if self.values and self.weights is None:
            # As text: Optuna stores no lists.
            return json.loads(trial.suggest_categorical(key, [json.dumps(v) for v in self.values]))
        return self.at(trial.suggest_float(key, 0.0, 1.0))


def parameter(key: str, given: Any, *, grid: bool = False) -> Parameter:
    """The parameter of a sweep file; without `distribution` W&B's rules say which it is.

    Args:
        key: its name.
        given: what stands under it.
        grid: whether all its values must be listed.

    Raises:
        ConfigError: an unknown distribution or key, a missing one, values that are none.
    """
    if not isinstance(given, dict):
        raise ConfigError(f"parameters.{key}={given!r}: write {{value: {given!r}}} for a constant.")
    rest = {name: value for name, value in given.items() if name != "distribution"}
    kind = given.get("distribution") or _guess(key, rest)
    if kind not in DISTRIBUTIONS:
        hint = suggestion(str(kind), list(DISTRIBUTIONS)) or f"; choose {', '.join(DISTRIBUTIONS)}."
        raise ConfigError(f"parameters.{key}: unknown distribution {kind!r}{hint}")
    _check_keys(key, kind, rest)
    if kind == "constant":
        return Parameter(kind, [rest["value"]])
    if kind == "categorical":
        found = _choices(key, rest)
        if grid and found.weights is not None:
            raise ConfigError(f"parameters.{key}: a grid takes all values, no probabilities.")
        return found
    if kind == "normal":
        mu, sigma = (
            _number(key, "mu", rest.get("mu", 0.0)),
            _number(key, "sigma", rest.get("sigma", 1.0)),
        )
        if sigma <= 0:
            raise ConfigError(f"parameters.{key}.sigma={sigma}: above 0.")
        found = Parameter(kind, low=mu, high=sigma)
    else:
        found = _range(key, kind, rest)
    if grid:
        if kind not in GRID:
            raise ConfigError(
                f"parameters.{key}: a grid cannot list {kind}; give values, or method random."
            )
        found.values = _listed(key, found)
    return found


def combinations(parameters: dict[str, Parameter]) -> int:
    """How many points a grid has."""
    return math.prod(len(one.values) for one in parameters.values())


def grid_of(parameters: dict[str, Parameter]) -> dict[str, Sequence[str]]:
    """Choices by parameter, as `suggest` names them to Optuna."""
    return {
        key: [json.dumps(value) for value in one.values]
        for key, one in parameters.items()
        if one.kind != "constant"
    }


def _guess(key: str, given: dict[str, Any]) -> str:
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical"
    if "mu" in given or "sigma" in given:
        return "normal"
    if "min" in given and "max" in given:
        both = [given["min"], given["max"]]
        whole = all(isinstance(one, int) and not isinstance(one, bool) for one in both)
        return "int_uniform" if whole else "uniform"
    raise ConfigError(f"parameters.{key}: give value, values, or min and max.")


def _check_keys(key: str, kind: str, given: dict[str, Any]) -> None:
    known = [name.strip("()") for name in DISTRIBUTIONS[kind]]
    for name in given:
        if name == "parameters":
            raise ConfigError(f"parameters.{key}: write nested parameters as one dotted key.")
        if name not in known:
            raise ConfigError(
                f"parameters.{key}: {kind} has no {name}{suggestion(name, known) or f'; {known}.'}"
            )
    for name in DISTRIBUTIONS[kind]:
        if not name.startswith("(") and name not in given:
            raise ConfigError(f"parameters.{key}: {kind} needs {name}.")


def _choices(key: str, given: dict[str, Any]) -> Parameter:
    values, weights = given["values"], given.get("probabilities")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"parameters.{key}.values must be a list that is not empty.")
    for one, other in itertools.combinations(values, 2):
        if json.dumps(one) == json.dumps(other):
            raise ConfigError(f"parameters.{key}.values lists {one!r} twice.")
    if weights is not None:
        fits = isinstance(weights, list) and len(weights) == len(values)
        if not fits or any(_number(key, "probabilities", weight) < 0 for weight in weights):
            raise ConfigError(f"parameters.{key}.probabilities: one of at least 0 for each value.")
        if abs(sum(weights) - 1) > 1e-6:
            raise ConfigError(f"parameters.{key}.probabilities add up to {sum(weights):g}, not 1.")
    return Parameter("categorical", values, weights)


def _range(key: str, kind: str, given: dict[str, Any]) -> Parameter:
    low, high = _number(key, "min", given["min"]), _number(key, "max", given["max"])
    q = _number(key, "q", given.get("q", 1))
    if low >= high:
        raise ConfigError(f"parameters.{key}: min {low:g} is not below max {high:g}.")
    if kind == "log_uniform_values" and low <= 0:
        raise ConfigError(f"parameters.{key}: a logarithm needs min above 0, got {low:g}.")
    if kind == "int_uniform" and not (float(low).is_integer() and float(high).is_integer()):
        raise ConfigError(f"parameters.{key}: int_uniform between whole numbers.")
    if q <= 0:
        raise ConfigError(f"parameters.{key}.q={q:g}: above 0.")
    return Parameter(kind, low=low, high=high, q=q)


def _listed(key: str, one: Parameter) -> list[Any]:
    """All values of a range of steps; q_uniform ends before max, as W&B's grid does."""
    step = one.q if one.kind == "q_uniform" else 1
    end = one.high if one.kind == "q_uniform" else one.high + 1
    if (end - one.low) / step > _MOST:
        raise ConfigError(f"parameters.{key}: a grid of more than {_MOST} values.")
    points = np.arange(one.low, end, step)
    if float(step).is_integer() and float(one.low).is_integer():
        return [int(point) for point in points]
    return [float(f"{point:.12g}") for point in points]


def _short(value: float) -> float:
    """Six figures: no trial needs more, and 3 * 0.1 has too many."""
    return float(f"{value:.6g}")


def _number(key: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(
            f"parameters.{key}.{name}={value!r} is no number (YAML reads 1e-4 as text: write "
            "1.0e-4)."
        )
    return value
