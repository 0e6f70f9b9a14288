"""Steps by name: `{name: alpha_qe, k: 10}` calls that function of the pipeline's modules.

The signature is the schema. Arguments without a default come from the pipeline's state by their
name; arguments with a default may be set in YAML (else the state's entry of that name is taken, if
it has one). There is no registry: a public function or class
that a module defines is a step, under its snake_case name (and under any alias it is assigned to).
"""

from __future__ import annotations

import inspect
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from common.config import ConfigError, suggestion
from common.types import Neighbors

Step = dict[str, Any]  # {name: ..., argument: value, ...}


def catalog(*modules: ModuleType) -> dict[str, Callable[..., Any]]:
    """All steps of `modules` by YAML name, in order of definition."""
    found: dict[str, Callable[..., Any]] = {}
    for module in modules:
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if (
                own
                and not name.startswith("_")
                and (inspect.isclass(value) or inspect.isfunction(value))
            ):
                found[step_name(name)] = value
    return found


def bind(
    step: Step, known: Mapping[str, Callable[..., Any]], where: str = ""
) -> Callable[..., Any]:
    """The step's function with its YAML arguments checked and filled in; call it with the state.

    Raises:
        ConfigError: no name, unknown name or argument, wrong type (lists the known ones), a NaN or
            infinite number.
    """
    at = f"{where}: " if where else ""
    name = step.get("name") if isinstance(step, Mapping) else None
    if name is None:
        raise ConfigError(f"{at}a step needs a name, got {step!r}; known: {', '.join(known)}")
    if name not in known:
        near = suggestion(str(name), list(known)) or "."
        raise ConfigError(f"{at}no step {name!r}{near} Known: {', '.join(known)}")
    target = known[name]
    settable, optional = settings(target), _parameters(target, wanted=True)
    given = {key: value for key, value in step.items() if key != "name"}
    hints = _hints(target)
    for key, value in given.items():
        if key not in settable:
            near = suggestion(key, list(settable)) or "."
            raise ConfigError(
                f"{at}{name} has no argument {key!r}{near} It has: {', '.join(settable)}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{at}{name}.{key} must be finite, got {value}")
        if not _fits(value, hints.get(key, Any)):
            raise ConfigError(
                f"{at}{name}.{key} must be {_type_name(hints[key])}, "
                f"got {value!r} ({type(value).__name__})"
            )

    def call(state: Mapping[str, Any] | None = None, **extra: Any) -> Any:
        state = {**(state or {}), **extra}
        needed = _parameters(target, wanted=False)
        missing = [key for key in needed if key not in state]
        if missing:
            raise ConfigError(
                f"{at}{name} needs {missing[0]!r}, which this pipeline does not have here"
            )
        # An argument that YAML left at its default is taken from the state when that has it.
        offered = [key for key in optional if key in state and key not in given]
        return target(**{key: state[key] for key in [*needed, *offered]}, **given)

    call.step = target  # type: ignore[attr-defined]
    call.__name__ = str(name)
    return call


def chain(
    steps: Sequence[Step], known: Mapping[str, Callable[..., Any]], available: set[str], where: str
) -> Callable[..., dict[str, Any]]:
    """The steps as one function from state to state, checked against what will be `available`.

    A step maps its first argument: its result replaces that entry of the state, a tuple replaces
    as many leading arguments, and `Neighbors` always become `neighbors`. The given state stays.
    A second argument of the function is told each step's name and seconds.

    Raises:
        ConfigError: at once, for a step that is unknown, badly set, or needs what nothing makes,
            and when no step makes neighbors.
    """
    bound = [bind(step, known, f"{where}[{i}]") for i, step in enumerate(steps)]
    made = set(available)
    for i, call in enumerate(bound):
        target = call.step  # type: ignore[attr-defined]
        for name in _parameters(target, wanted=False):
            if name not in made:
                raise ConfigError(
                    f"{where}[{i}]: {call.__name__} needs {name}, which nothing before it makes; "
                    f"available: {', '.join(sorted(made))}"
                )
        if get_type_hints(target).get("return") is Neighbors:
            made.add("neighbors")
    if "neighbors" not in made:
        raise ConfigError(f"{where}: ends without neighbors, add for example {{name: knn, k: 100}}")

    def run(
        state: Mapping[str, Any], took: Callable[[str, float], None] | None = None
    ) -> dict[str, Any]:
        current = dict(state)
        for call in bound:
            start = time.perf_counter()
            result = call(current)
            if took is not None:
                took(call.__name__, time.perf_counter() - start)
            if isinstance(result, Neighbors):
                current["neighbors"] = result
                continue
            names = list(inspect.signature(call.step).parameters)  # type: ignore[attr-defined]
            results = result if isinstance(result, tuple) else (result,)
            current.update(zip(names, results, strict=False))
        return current

    return run


def settings(target: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a step that YAML may set, with their defaults.

    Others that have a default, such as a table or notes, come from the pipeline alone.
    """
    hints = _hints(target)
    known = _parameters(target, wanted=True)
    return {key: value for key, value in known.items() if _written(hints.get(key, Any))}


def help_text(title: str, known: Mapping[str, Callable[..., Any]]) -> str:
    """One paragraph per step: call, first docstring line."""
    lines = [title]
    for name, target in known.items():
        arguments = ", ".join(f"{k}: {v!r}" for k, v in settings(target).items())
        first = (inspect.getdoc(target) or "").split("\n")[0]
        lines.append(f"  {{name: {name}{', ' if arguments else ''}{arguments}}}\n      {first}")
    return "\n".join(lines)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(target.__init__ if inspect.isclass(target) else target)


def _written(hint: Any) -> bool:
    """Whether YAML can say a value of this type other than null."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_written(option) for option in get_args(hint))
    kind = origin or hint
    if kind is Any or not isinstance(kind, type):  # a Literal is no type
        return True
    return any(issubclass(own, kind) for own in (bool, int, float, str, list, tuple, dict))


def _parameters(target: Callable[..., Any], *, wanted: bool) -> dict[str, Any]:
    """Arguments with (wanted) or without a default."""
    parameters = inspect.signature(target).parameters.values()
    return {p.name: p.default for p in parameters if (p.default is not p.empty) == wanted}


def step_name(name: str) -> str:
    """YAML name: SubCenterArcFace -> sub_center_arcface, TripletLoss -> triplet."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return snake.replace("_face", "face").removesuffix("_loss")


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any or origin is Callable or hint is Callable:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (list, tuple) or (isinstance(hint, type) and issubclass(hint, list | tuple)):
        options = [o for o in get_args(hint) if o is not Ellipsis] or [Any]
        return isinstance(value, list | tuple) and all(
            any(_fits(v, o) for o in options) for v in value
        )
    if str(origin).endswith("Literal"):
        return value in get_args(hint)
    target = origin or hint
    return isinstance(value, target) if isinstance(target, type) else True


def _type_name(hint: Any) -> str:
    if str(get_origin(hint)).endswith("Literal"):
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")
