"""Runs read from Weights & Biases: offline folders, or a project or run of its server.

    read_offline(offline_files(Path("wandb")))
    read_online("wandb:entity/project")

An offline file is a LevelDB log (github.com/google/leveldb, doc/log_format.md) of protocol buffers.
W&B's own Python reader of the log is gone since 0.27: the log is read here, the messages by W&B.
"""

from __future__ import annotations

import functools
import importlib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.report.records import Json, Record

PREFIX = "wandb:"
_BLOCK, _HEADER = 32768, 7
_FIRST, _WHOLE = (1, 2), (1, 4)  # kinds of a fragment that begin and that end a message
_MARK = b":W&B"
_EXTRA = ("_wandb", "git", "environment", "fingerprint")  # of a config, beside the settings
# Sections in which an inference equals the training that it belongs to.
_SAME = ("seed", "data", "model", "loss", "train")


def offline_files(folder: Path) -> list[Path]:
    """`run-*.wandb` of an offline run's folder, or of all in a `wandb` folder; oldest first."""
    if folder.suffix == ".wandb" and folder.is_file():
        return [folder]
    found = [*folder.glob("run-*.wandb"), *folder.glob("*run-*/run-*.wandb")]
    # latest-run is a link to one of the others.
    return sorted({path.resolve() for path in found}, key=lambda path: path.parent.name)


def read_offline(files: Sequence[Path]) -> list[Record]:
    """The runs in some `run-*.wandb`, each once: one that was resumed has several.

    Raises:
        ValueError: as `read_file`.
    """
    runs: dict[str, set[Path]] = {}
    for file in files:
        runs.setdefault(file.stem, set()).add(file)  # run-ID
    ordered = (sorted(some, key=lambda file: file.parent.name) for some in runs.values())
    return [functools.reduce(_resumed, map(read_file, some)) for some in ordered]


def read_file(file: Path) -> Record:
    """The run in one `run-*.wandb`; up to where a killed process stopped writing.

    Raises:
        ValueError: this is no such file, it names no run, or W&B's messages cannot be read.
    """
    try:
        messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
        message = messages.Record
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{file} is read with W&B's message definitions, which cannot be loaded ({error}): "
            "pip install 'wandb>=0.19', or compare the run folders that it was logged beside."
        ) from None
    config: Json = {}
    summary: Json = {}
    lines: list[Json] = []
    about: Any = None
    for body in _messages(file):
        record = message()
        try:
            record.ParseFromString(body)
        except Exception as error:  # protobuf's own class moves between its implementations
            raise ValueError(f"{file} holds a message that W&B cannot read ({error}).") from None
        kind = record.WhichOneof("record_type")
        if kind == "run":
            about = record.run
            _merge(config, about.config.update)
        elif kind == "config":
            _merge(config, record.config.update)
        elif kind == "summary":
            _merge(summary, record.summary.update)
        elif kind == "history":
            lines.append(_merge({}, record.history.item))
    if about is None:
        raise ValueError(f"{file} names no run: it was written by a process that died at once.")
    name = about.display_name or about.run_id
    return _record(
        name, str(file), about.job_type, about.run_group, about.project, config, summary, lines
    )


def read_online(address: str) -> list[Record]:
    """The runs of `wandb:entity/project`, or the one of `wandb:entity/project/run`, oldest first.

    Raises:
        ValueError: an address of another form, no W&B, no such project, no network, no login.
    """
    path = address.removeprefix(PREFIX).strip("/")
    if not 1 <= len(path.split("/")) <= 3 or not all(path.split("/")):
        raise ValueError(f"{address}: write {PREFIX}ENTITY/PROJECT or {PREFIX}ENTITY/PROJECT/RUN.")
    try:
        api = importlib.import_module("wandb").Api()
        one = path.count("/") == 2
        found = [api.run(path)] if one else list(api.runs(path, order="+created_at"))
        place = "/".join(path.split("/")[:2])
        return [_fetched(run, f"{PREFIX}{place}") for run in found]
    except Exception as error:  # whatever W&B, its login or the network has to say
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{address} could not be read from W&B: {text[:200]}") from None


def joined(records: Sequence[Record]) -> list[Record]:
    """Trainings with the scores of their inferences, which are W&B runs of their own.

    An inference belongs to the training of its name, seed, data, model and loss; one that fits
    none, or several, stays as it is.
    """
    found = [one for one in records if one.job != "infer"]
    for one in records:
        if one.job != "infer":
            continue
        fits = [other for other in found if other.job == "train" and _belongs(one, other)]
        if len(fits) != 1:
            found.append(one)
            continue
        fits[0].config = one.config
        fits[0].summary = {**fits[0].summary, **one.summary}
    return found


def _resumed(before: Record, record: Record) -> Record:
    """A run that went on in a later file: what it did again counts as it was done last.

    The later file's best values are of its own steps only.
    """
    start = min((line["step"] for line in record.lines), default=float("inf"))
    record.lines = [*(line for line in before.lines if line["step"] < start), *record.lines]
    record.summary = {**before.summary, **record.summary}
    for name in record.summary:
        if name.startswith("valid/") and (values := record.series(name)[1]):
            record.summary[name] = max(values)
    return record


def _belongs(one: Record, other: Record) -> bool:
    same = all(one.config.get(key) == other.config.get(key) for key in _SAME)
    return same and (one.name, one.group) == (other.name, other.group)


def _fetched(run: Any, source: str) -> Record:
    """A run of `wandb.Api`."""
    summary = getattr(run.summary, "_json_dict", run.summary)
    lines = [dict(row) for row in run.scan_history()]
    about = (getattr(run, "job_type", None), getattr(run, "group", None))
    project = getattr(run, "project", None)
    return _record(
        run.name or run.id, f"{source}:{run.id}", *about, project, run.config, summary, lines
    )


def _record(
    name: str,
    source: str,
    job: str | None,
    group: str | None,
    project: str | None,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    lines: Iterable[Json],
) -> Record:
    kept = {key: value for key, value in config.items() if key not in _EXTRA}
    lines = [line for line in lines if isinstance(line.get("step"), int | float)]
    values: Json = {}
    for key, value in summary.items():  # of define_metric(summary="max"): {"max": 0.7}
        best = value.get("max") if isinstance(value, Mapping) else value
        if isinstance(best, int | float | str):
            values[key] = best
    known, _, competition = (project or "").partition("kaggle-")
    return Record(
        name,
        source,
        config=kept,
        summary=values,
        lines=lines,
        competition=competition if competition and not known else None,
        data=config.get("fingerprint"),
        group=group or None,
        job=job or "train",
    )


def _merge(tree: Json, items: Iterable[Any]) -> Json:
    """`tree` with W&B's items in it, nested ones as dicts."""
    for item in items:
        *parents, last = item.nested_key or [item.key]
        inner = tree
        for name in parents:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                break
        else:
            inner[last] = json.loads(item.value_json)
    return tree


def _messages(file: Path) -> Iterator[bytes]:
    """The whole messages of the log, up to its end or its first damage.

    A block of 32 KiB holds fragments of `crc uint32, length uint16, kind uint8`, little-endian, and
    data; what is left of it when a header does not fit is padding. The checksum is zlib's, of kind
    and data.
    """
    data = file.read_bytes()
    if data[: len(_MARK)] != _MARK:
        raise ValueError(f"{file} is no W&B run file: it begins with {data[:4]!r}.")
    place, body = _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + _HEADER : place + _HEADER + length]
        if zlib.crc32(bytes([kind]) + part) != checksum:
            return
        place += _HEADER + length
        body = part if kind in _FIRST else body + part
        if kind in _WHOLE:
            yield body
