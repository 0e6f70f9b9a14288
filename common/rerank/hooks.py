"""A user's own function by its import path, checked before any long work."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

OFFERED = ("neighbors", "queries", "gallery", "query_paths", "gallery_paths")


def load_hook(
    function: str, arguments: Mapping[str, Any] | None = None
) -> Callable[[Mapping[str, Any]], Any]:
    """What calls `package.module:callable` with `arguments` and the parts of a state that it names.

    Raises:
        ValueError: no such module or callable, or a signature that these arguments do not fit.
    """
    module_name, _, name = function.partition(":")
    if not module_name or not name:
        raise ValueError(
            f"hook: function must be package.module:callable, got {function!r}; "
            "the package must be importable, for example with PYTHONPATH=."
        )
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"hook: cannot import {function} ({error}).") from error
    if not callable(target):
        raise ValueError(f"hook: {function} is a {type(target).__name__}, not a function.")
    given = dict(arguments or {})
    parameters = inspect.signature(target).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    wanted = [key for key in OFFERED if key not in given and (anything or key in parameters)]
    try:
        inspect.signature(target).bind(**dict.fromkeys(wanted), **given)
    except TypeError as error:
        raise ValueError(
            f"hook: {function} does not fit ({error}); it is offered {', '.join(OFFERED)} and "
            f"arguments {sorted(given)}."
        ) from None
    return lambda state: target(**{key: state[key] for key in wanted}, **given)
