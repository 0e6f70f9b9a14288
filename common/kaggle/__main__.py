"""Kaggle's data and kernels from the command line; every command takes key=value, and --help.

python -m common.kaggle download COMPETITION [task=] [data=] [into=]
python -m common.kaggle pack RUN... [competition=] [out=] [owner=] [name=] [limit=] [wheels=]
python -m common.kaggle kernel COMPETITION runs=[RUN,...] [owner=] [hours=] [key=value of infer]
python -m common.kaggle rehearse COMPETITION [scenes=] [kit=] [data=] [seconds=] [memory=] [gpus=]
python -m common.kaggle push|status|output COMPETITION [kit=] [first=true] [out=]
python -m common.kaggle submit COMPETITION version=N message=TEXT
python -m common.kaggle record competition=NAME run=RUN [cv=] [public=] [private=] [note=]
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from common.config import ConfigError, suggestion
from common.entry import entry, say
from common.kaggle import client
from common.kaggle.download import download
from common.kaggle.kernel import kernel
from common.kaggle.ledger import record
from common.kaggle.pack import pack
from common.kaggle.rehearse import PASS, rehearse

COMMANDS: dict[str, Callable[..., Any]] = {
    "download": download,
    "pack": pack,
    "kernel": kernel,
    "rehearse": rehearse,
    "push": client.push,
    "status": client.status,
    "output": client.output,
    "submit": client.submit,
    "record": record,
}


def main(arguments: list[str]) -> None:
    """Run one command; exit code 1 when a rehearsal does not pass."""
    name, *words = arguments or ["--help"]
    if name in ("-h", "--help"):
        print((__doc__ or "").strip())
        return
    if name not in COMMANDS:
        raise ConfigError(f"No command {name!r}{suggestion(name, list(COMMANDS))}")
    command = COMMANDS[name]
    if {"-h", "--help"} & set(words):
        print(inspect.getdoc(command))
        return
    given = positional(name, command, words)
    result = command(*given, **named(name, command, words))
    if name == "pack":
        say(f"{result}: done. Next: python -m common.kaggle kernel COMPETITION 'runs=[RUN,...]'")
    elif name == "kernel":
        say(f"{result}: done. Next: python -m common.kaggle rehearse {given[0]}")
    elif name == "download":
        say(f"{result}: complete; python competitions/{words[0]}/train.py data.root={result}")
    elif name == "record":
        say(",".join(result.values()))
    elif name == "rehearse" and any(outcome.result != PASS for outcome in result):
        raise SystemExit(1)


def positional(name: str, command: Callable[..., Any], words: Sequence[str]) -> list[Any]:
    """The words without `=`, as the command's leading arguments: one, or as many as there are."""
    found = [word for word in words if "=" not in word]
    wanted = [
        key
        for key, parameter in inspect.signature(command).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if wanted == ["runs"]:
        return [found]
    if len(found) != len(wanted):
        raise ConfigError(
            f"{name} takes {' '.join(wanted).upper() or 'no plain word'}, got {found}"
        )
    return list(found)


def named(name: str, command: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """The `key=value` words with values of the types that the command declares.

    What `kernel` does not know itself goes to the competition's scripts.
    """
    hints = get_type_hints(command)
    keys = {
        key: parameter
        for key, parameter in inspect.signature(command).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.lstrip("-").partition("=")
        if not equals:
            continue
        if key in keys and key != "arguments":
            given[key] = parsed(f"{name} {key}", value, hints[key])
        elif "arguments" in keys:
            given.setdefault("arguments", []).append(word.lstrip("-"))
        else:
            raise ConfigError(f"{name} has no {key!r}{suggestion(key, list(keys))}")
    missing = [k for k, p in keys.items() if p.default is p.empty and k not in given]
    if missing:
        raise ConfigError(f"{name} needs {missing[0]}=VALUE: python -m common.kaggle {name} --help")
    return given


def parsed(where: str, text: str, hint: Any) -> Any:
    """The value of `text` as `hint` has it: str, int, float, bool or a list of these."""
    kinds = [hint]
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    (kind,) = kinds
    if kind is str:
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if get_origin(kind) is Sequence:
        (item,) = get_args(kind)
        values = value if isinstance(value, list) else [value]
        return [parsed(where, str(one), item) for one in values]
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise ConfigError(f"{where}={text}: must be {kind.__name__}")


if __name__ == "__main__":
    entry(main)
