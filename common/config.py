"""One config: dataclass schema + commented YAML + experiment YAML + `key=value`, checked early.

config = load(Config, "config.yaml", sys.argv[1:])
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.paths import write_text

T = TypeVar("T")


class ConfigError(ValueError):
    """A config that cannot be run; the message says which key and what to do."""


def keys(config: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a nested dict or dataclass, sections included."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    found = []
    for name, value in config.items() if isinstance(config, Mapping) else []:
        found += [f"{prefix}{name}", *keys(value, f"{prefix}{name}.")]
    return found


def suggestion(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` or an empty string."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # `lr` for `train.lr`
        close = [key for key in known if key.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    return f"; did you mean {close[0]!r}?" if close else ""


def load(
    schema: type[T], base: str | Path, arguments: Sequence[str] = (), *, stored: Path | None = None
) -> T:
    """The resolved config as a plain dataclass.

    Args:
        schema: dataclass that names every key with its type and default.
        base: the commented YAML of the competition.
        arguments: command line: paths of experiment YAMLs, then `key=value`; later wins.
        stored: `config.yaml` of a run, merged between `base` and `arguments`.

    Raises:
        ConfigError: unknown key, wrong type, missing value, unreadable YAML; with a suggestion.
    """
    base = Path(base)
    layers = [base] + ([Path(stored)] if stored else [])
    pairs = []
    for argument in arguments:
        word = argument.lstrip("-")
        if word.endswith((".yaml", ".yml")) and "=" not in word:
            layers.append(_experiment(word, base.parent))
        elif "=" in word:
            key, _, value = word.partition("=")
            pairs.append((key, value))
        else:
            raise ConfigError(
                f"{argument!r} is neither an experiment YAML nor key=value (no spaces around =)."
            )
    config = OmegaConf.structured(schema)
    known = keys(OmegaConf.to_container(config))
    for path in layers:
        config = _merge(config, _read(path), known, str(path))
    for key, value in pairs:
        config = _update(config, key, value, known)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{missing[0]} has no value: add {missing[0]}=VALUE.")
    try:
        return OmegaConf.to_object(config)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{_first_line(error)} (in {base})") from error


def save(config: Any, path: str | Path) -> None:
    """Write the resolved config as YAML."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))))


def same_run(config: Any, folder: str | Path, *, sections: Sequence[str]) -> None:
    """Write `config` as the run's config.yaml, or check that a run begun there had the same.

    A key that the run's file lacks, because it came later, had its default.

    Raises:
        ConfigError: the folder holds a run with other values in one of `sections`.
    """
    path = Path(folder) / "config.yaml"
    if path.is_file() and (Path(folder) / "state").is_dir():
        before, now = dataclasses.asdict(load(type(config), path)), dataclasses.asdict(config)
        for key in keys(now):
            if key.split(".")[0] not in sections or isinstance(_value(now, key), Mapping):
                continue
            old, new = _value(before, key), _value(now, key)
            if old != new:
                raise ConfigError(
                    f"{folder} holds a run with {key}={old}, this one has {new}: choose another "
                    f"out=, or delete {folder} to start again."
                )
    save(config, path)


def explain(base: str | Path, config: Any) -> str:
    """The commented text of `base` with the resolved values of `config` in place."""
    text = Path(base).read_text(encoding="utf-8")
    resolved = dataclasses.asdict(config)
    edits: list[tuple[int, int, str]] = []

    def walk(node: yaml.Node, value: Any) -> None:
        if isinstance(node, yaml.MappingNode) and isinstance(value, Mapping):
            for key, child in node.value:
                if key.value in value:
                    walk(child, value[key.value])
        elif loader.construct_document(node) != value:
            flow = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
            edits.append(
                (node.start_mark.index, node.end_mark.index, flow.split("\n...")[0].strip())
            )

    loader = _Loader(text)
    root = loader.get_single_node()
    if root is not None:
        walk(root, resolved)
    for start, end, new in sorted(edits, reverse=True):
        # A block list ends where the next key's comment begins: keep the white space before it.
        tail = text[start:end][len(text[start:end].rstrip()) :]
        text = text[:start] + new + tail + text[end:]
    return text


def command(
    schema: type[T],
    base: str | Path,
    doc: str,
    arguments: Sequence[str],
    *,
    steps: str = "",
    stored: Path | None = None,
) -> T:
    """What a script starts with: the config, or the answer to `--help`."""
    words = [word for word in arguments if word not in ("-h", "--help")]
    config = load(schema, base, words, stored=stored)
    if len(words) < len(arguments):
        print(f"{doc.strip()}\n\n{explain(base, config)}\n{steps}".rstrip())
        raise SystemExit(0)
    return config


def _value(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `off` and `no` are words, `1e-4` is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf)|\.(nan|NaN))$"),
    list("-+0123456789."),
)


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)


def _experiment(word: str, folder: Path) -> Path:
    for path in (Path(word), folder / word, folder / "experiments" / word):
        if path.is_file():
            return path
    known = [path.name for path in sorted((folder / "experiments").glob("*.yaml"))]
    raise ConfigError(
        f"No experiment {word}{suggestion(Path(word).name, known) or '.'} "
        f"There are: {', '.join(known) or 'none'} in {folder / 'experiments'}."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"No config at {path}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} must hold `key: value` lines, it holds a {type(content).__name__}."
        )
    return content


def _merge(config: Any, layer: dict[str, Any], known: list[str], where: str) -> Any:
    for key in keys(layer):
        if key not in known and not _inside_free(key, known, config):
            raise ConfigError(f"{where}: unknown key {key!r}{suggestion(key, known)}")
    try:
        return OmegaConf.merge(config, layer)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from None


def _inside_free(key: str, known: list[str], config: Any) -> bool:
    """Whether `key` lies in a section that admits any key (`dict[str, Any]`)."""
    while "." in key:
        key = key.rsplit(".", 1)[0]
        if key in known:
            node = OmegaConf.select(config, key)
            free = OmegaConf.is_dict(node) and OmegaConf.get_type(node) is dict
            return free or OmegaConf.is_list(node)
    return False


def _update(config: Any, key: str, value: str, known: list[str]) -> Any:
    """The config with one key set; `loss.0.scale` reaches into a list."""
    if key not in known and not _inside_free(key, known, config):
        raise ConfigError(f"unknown key {key!r}{suggestion(key, known)}")
    parent = key.rpartition(".")[0]
    if parent and OmegaConf.select(config, parent) is None:
        raise ConfigError(f"{key}: the config has no {parent} to change")
    try:
        parsed = _parse(value)
        if key not in known:
            OmegaConf.update(config, key, parsed, merge=False)
            return config
        tree = parsed
        for name in reversed(key.split(".")):
            tree = {name: tree}
        return OmegaConf.merge(config, tree)
    except yaml.YAMLError:
        raise ConfigError(f"{key}={value} is not a YAML value (quote it?)") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}={value}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].strip()
