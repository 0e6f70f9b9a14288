"""A sweep file of Weights & Biases, read, and checked before the first trial.

The format is W&B's (docs.wandb.ai, Sweep configuration options): program, method, metric,
parameters by dotted key, command, early_terminate, run_cap. What a key may be is asked of the
competition that the program belongs to.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from common.config import ConfigError, suggestion
from common.paths import REPOSITORY
from common.pipeline.sweep_space import Parameter, parameter

METHODS = ("grid", "random", "bayes")
GOALS = ("maximize", "minimize")
# For W&B's server alone: names, places.
_TITLES = ("name", "description", "project", "entity")
_KEYS = ("program", "method", "metric", "parameters", "command", "early_terminate", "run_cap")
_DEFAULT = ["${env}", "${interpreter}", "${program}", "${args}"]
_ARGUMENTS = ("${args}", "${args_no_hyphens}")  # the kit's scripts read both


@dataclass
class Bands:
    """Where trials are stopped early (Hyperband, Li et al., JMLR 2018, as W&B applies it).

    Attributes:
        at: validations after which a trial is looked at, ascending.
        eta: the best 1 / eta of the trials that came so far go on.
        strict: look at the value there, not at the best up to there.
    """

    at: list[int]
    eta: float = 3.0
    strict: bool = False

    def stops(self, history: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """Whether a trial ends here; higher is better.

        Args:
            history: its metric so far, a value for each validation.
            others: those of the trials before.
        """
        if len(history) not in self.at:
            return False
        place = len(history) - 1
        there = [one[place] for one in (*others, history) if len(one) > place]
        limit = sorted(there, reverse=True)[int(len(there) / self.eta)]
        return (history[-1] if self.strict else max(history)) < limit


@dataclass
class Sweep:
    """A sweep file.

    Attributes:
        path: of the file.
        program: the script.
        method: grid, random or bayes.
        metric: name in summary.json.
        maximize: whether more of it is better.
        target: where the sweep has found what it looked for, or None.
        parameters: by dotted key.
        words: what stands before the trial's own `key=value` in the command, after it.
        bands: of early termination, or None.
        cap: most trials, or None.
    """

    path: Path
    program: Path
    method: str
    metric: str
    maximize: bool
    parameters: dict[str, Parameter]
    words: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    target: float | None = None
    bands: Bands | None = None
    cap: int | None = None

    def arguments(self, values: Mapping[str, Any]) -> list[str]:
        """The program's command line of one trial."""
        return [*self.words[0], *(spell(k, v) for k, v in values.items()), *self.words[1]]


def spell(key: str, value: Any) -> str:
    """`key=value` as the config reads it."""
    return f"{key}={json.dumps(value) if not isinstance(value, str) else value}"


def read(path: str | Path) -> Sweep:
    """The sweep in a file; `check` then asks its competition.

    Raises:
        ConfigError: no such file, no YAML, an unknown or missing key, a value that means nothing.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))  # as W&B reads it
    except FileNotFoundError:
        raise ConfigError(f"No sweep file at {path}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold `key: value` lines.")
    try:
        return _sweep(path, tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _sweep(path: Path, tree: dict[str, Any]) -> Sweep:
    _known("key", tree, (*_KEYS, *_TITLES))
    for key in ("program", "method", "metric", "parameters"):
        if key not in tree:
            raise ConfigError(f"{key} is missing.")
    _choice("method", tree["method"], METHODS)
    metric = _mapping("metric", tree["metric"])
    _known("key metric.", metric, ("name", "goal", "target"))
    if not isinstance(metric.get("name"), str):
        raise ConfigError("metric.name is missing: a name in summary.json, as valid/score.")
    goal = metric.get("goal", "minimize")  # W&B's default
    _choice("metric.goal", goal, GOALS)
    target = metric.get("target")
    if target is not None:
        _number("metric.target", target)
    cap = tree.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise ConfigError(f"run_cap={cap!r}: a whole number of at least 1.")
    given = _mapping("parameters", tree["parameters"])
    if not given:
        raise ConfigError("parameters is empty: there is nothing to try.")
    grid = tree["method"] == "grid"
    parameters = {key: parameter(key, one, grid=grid) for key, one in given.items()}
    if all(one.kind == "constant" for one in parameters.values()):
        raise ConfigError("parameters are all constant: there is nothing to try.")
    program = Path(str(tree["program"]))
    found = program if program.is_file() else REPOSITORY / program
    if not found.is_file():
        raise ConfigError(f"program={program}: there is no such file.")
    return Sweep(
        path,
        found,
        tree["method"],
        metric["name"],
        goal == "maximize",
        parameters,
        _words(tree.get("command", _DEFAULT)),
        None if target is None else float(target),
        _bands(tree.get("early_terminate")),
        cap,
    )


def check(sweep: Sweep, extra: Sequence[str] = ()) -> None:
    """Try every value of every parameter on the competition's config.

    Args:
        sweep: from `read`; of a range both ends are tried.
        extra: further `key=value` of all trials.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, one that the competition refuses,
            a further word for what is searched, or a program without a competition's config beside
            it.
    """
    home = sweep.program.resolve().parent
    try:
        commands = importlib.import_module(f"{home.parent.name}.{home.name}.config").COMMANDS
    except (ImportError, AttributeError):
        raise ConfigError(
            f"{sweep.path}: program={sweep.program} is no train.py of a competition: there is no "
            "config.py with COMMANDS beside it."
        ) from None
    for word in extra:
        key = word.partition("=")[0]
        parts = [(f"{one}.", f"{key}.") for one in sweep.parameters]
        if "=" in word and any(a.startswith(b) or b.startswith(a) for a, b in parts):
            raise ConfigError(
                f"{word}: {sweep.path} searches this: take it out of the file or of the command."
            )
    if (error := _refused(commands, extra, ())) is not None:
        raise error
    samples = {key: one.samples for key, one in sweep.parameters.items()}
    for row in range(max(map(len, samples.values()))):
        values = {key: some[min(row, len(some) - 1)] for key, some in samples.items()}
        if _refused(commands, sweep.arguments(values), extra) is None:
            continue
        # Which of them is it? One after the other, the rest as in the first row.
        first = {key: some[0] for key, some in samples.items()}
        for key, value in values.items():
            error = _refused(commands, sweep.arguments({**first, key: value}), extra)
            if error is not None and (row or _refused(commands, [spell(key, value)], extra)):
                raise ConfigError(f"{sweep.path}: with {spell(key, value)}: {error}") from error
        words = sweep.arguments(values)
        error = _refused(commands, words, extra)
        raise ConfigError(f"{sweep.path}: with {' '.join(words)}: {error}") from error


def _refused(commands: Any, words: Sequence[str], extra: Sequence[str]) -> ValueError | None:
    """Why a command line would not run, or None."""
    try:
        commands.train("", [*words, *extra])
    except ValueError as error:
        return error
    return None


def _words(command: Any) -> tuple[list[str], list[str]]:
    """The words of `command` between program and arguments, and behind them."""
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise ConfigError("command is a list of words.")
    rest = [word for word in command if word not in ("${env}", "${interpreter}", "python")]
    if rest[:1] != ["${program}"] or not any(word in _ARGUMENTS for word in rest):
        raise ConfigError(
            "command must be [${env}, python, ${program}, ..., ${args_no_hyphens}]; further words "
            "go behind ${program}."
        )
    place = next(n for n, word in enumerate(rest) if word in _ARGUMENTS)
    before, after = rest[1:place], rest[place + 1 :]
    for word in (*before, *after):
        if "${" in word:
            raise ConfigError(f"command: {word} is known to W&B's agent alone.")
    return before, after


def _bands(given: Any) -> Bands | None:
    if given is None:
        return None
    settings = _mapping("early_terminate", given)
    _known("key early_terminate.", settings, ("type", "min_iter", "max_iter", "s", "eta", "strict"))
    if settings.get("type") != "hyperband":
        raise ConfigError("early_terminate.type: hyperband is the only one.")
    if ("min_iter" in settings) == ("max_iter" in settings):
        raise ConfigError("early_terminate takes min_iter, or max_iter and s.")
    eta, strict = settings.get("eta", 3), bool(settings.get("strict", False))
    _number("early_terminate.eta", eta)
    whole = {key: settings[key] for key in ("min_iter", "max_iter", "s") if key in settings}
    if eta <= 1 or any(not isinstance(value, int) or value < 1 for value in whole.values()):
        raise ConfigError(f"early_terminate: eta above 1, the others whole from 1, got {settings}.")
    if "min_iter" in settings:
        at = [int(settings["min_iter"] * eta**power) for power in range(30)]
    else:
        at = [
            int(settings["max_iter"] / eta**power) for power in range(1, settings.get("s", 1) + 1)
        ]
    at = sorted({place for place in at if place >= 1})
    if not at:
        raise ConfigError("early_terminate looks at no validation: raise max_iter or lower eta.")
    return Bands(at, float(eta), strict)


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{key} must hold `key: value` lines, got {value!r}.")
    return value


def _known(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            joined = what if what.endswith(".") else f"{what} "
            raise ConfigError(
                f"unknown {joined}{key}{suggestion(str(key), known) or f'; choose {known}.'}"
            )


def _choice(key: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{key}={value!r}: choose {', '.join(known)}.")


def _number(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{key}={value!r} is no number (write 1.0e-4, not 1e-4).")
