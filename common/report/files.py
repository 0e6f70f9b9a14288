"""The JSON files of a run folder: how they are written, read back leniently, and what they hold."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.config import suggestion
from common.paths import write_text

KINDS = ("right", "wrong", "none")
# How a page calls what it shows; a competition has its own, `Analysis.words`.
WORDS = {
    "thing": "class",
    "things": "classes",
    "none": "of no class",
    "recognition": "Recognition",
    "recognition text": "One prediction per query: which class, and how sure.",
    "retrieval": "Retrieval",
    "retrieval text": "A ranked list of gallery images per query.",
    "precision text": "Left: queries whose right images are missed or ranked low. Right: solved "
    "queries.",
    "relevant": "right images of a query",
    "relevant title": "Few and many right images",
    "relevant text": "Mean over the queries of each group, with its standard error.",
}


@dataclass
class Analysis:
    """What a competition's script hands to the report, `analysis.json` in the run folder.

    Attributes:
        scores: rows of the score table, best last: `{name: "frozen", "GAP": 0.682, note: "..."}`;
            every key but `name` and `note` is a metric, higher is better.
        baseline: name of the row that headline numbers are compared with.
        recognition: `{score: (Q,), kind: (Q,)}`, the confidence of each query's prediction and one
            of `right`, `wrong`, `none` (it shows nothing known); optional `images: (Q,)`, training
            images of the true class (0 for none); `curve: "GAP"` for precision and GAP by
            threshold, with `positives`, the number of queries that show something known when some
            of them have no prediction; or `threshold`, what a prediction must score.
        retrieval: `{ap: (Q,), relevant: (Q,)}`, average precision of each query and how many
            gallery (or training) images are right for it; optional `name` of the metric.
        words: wording of the page where it is not that of `WORDS`.
        thresholds: curves `{title, x, series: {name: y}}` with optional `x_label, y_label, chosen`,
            `caption` and `middle` (of x that spans decades, see `report.separation.bins`): F1 by
            threshold, MAP@5 by the threshold of new_whale.
        pairs: histograms of scores of matches and non-matches, `report.separation.counted`.
        stages: how long each took, `Clock.rows`.
        notes: what the ranking steps of each task found, the fields of `common.notes.Notes`.
        sections: parts of the page behind the built-in ones, the fields of `report.page.Section`.
        commands: commands that reproduce the result, after the one that the run recorded itself.
    """

    scores: list[dict[str, Any]] = field(default_factory=list)
    baseline: str = "frozen"
    recognition: dict[str, Any] = field(default_factory=dict)
    retrieval: dict[str, Any] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    thresholds: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    sections: list[dict[str, Any]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def save_analysis(folder: str | Path, analysis: Analysis | dict[str, Any]) -> Path:
    """Path of `analysis.json`, merged with what is there.

    Fields that are empty keep the stored value; rows of `scores` replace the row of their name, so
    training, inference and ensembling each add their part.

    Raises:
        ValueError: unknown key, arrays of different length, unknown kind.
    """
    given = analysis if isinstance(analysis, dict) else dataclasses.asdict(analysis)
    known = [item.name for item in dataclasses.fields(Analysis)]
    for key in given:
        if key not in known:
            raise ValueError(f"Unknown analysis key {key!r}{suggestion(key, known)}")
    _check(given)
    path = Path(folder) / "analysis.json"
    merged = read_json(path)
    rows = {row.get("name"): row for row in given.get("scores", [])}
    before = [row for row in merged.get("scores", []) if row.get("name") not in rows]
    merged |= {key: value for key, value in given.items() if value}
    merged["scores"] = [*before, *rows.values()]  # the headline is the last row
    write_json(path, merged)
    return path


def load_analysis(folder: str | Path) -> Analysis:
    """The stored analysis; empty when there is none."""
    known = {item.name for item in dataclasses.fields(Analysis)}
    stored = read_json(Path(folder) / "analysis.json")
    return Analysis(**{key: value for key, value in stored.items() if key in known})


def plain(value: Any) -> Any:
    """`value` with JSON types only: NumPy and torch values as numbers and lists, NaN as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return plain(np.round(value.astype(np.float64), 6).tolist())
    if hasattr(value, "tolist"):  # arrays, NumPy scalars, tensors
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def json_line(value: dict[str, Any]) -> str:
    """`value` as one line of a JSONL file."""
    return json.dumps(plain(value), ensure_ascii=False) + "\n"


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; empty when it is missing, damaged or something else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def parse_lines(text: str) -> list[dict[str, Any]]:
    """The objects of a JSONL text that end with a line break and can be read, in order.

    What a killed process left half written has no line break, or is no JSON.
    """
    found = []
    for line in text.split("\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The readable lines of a JSONL file, see `parse_lines`; empty when it is missing."""
    try:
        return parse_lines(Path(path).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []


def _check(given: dict[str, Any]) -> None:
    for word in given.get("words") or {}:
        if word not in WORDS:
            raise ValueError(
                f"Unknown word {word!r} in analysis.words{suggestion(word, list(WORDS))}"
            )
    for name, keys in (("recognition", ("score", "kind")), ("retrieval", ("ap", "relevant"))):
        part = given.get(name) or {}
        if not part:
            continue
        optional = [key for key in ("images",) if key in part]
        lengths = {key: len(part.get(key, ())) for key in (*keys, *optional)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"analysis.{name} needs arrays of one length, got {lengths}.")
    kinds = (given.get("recognition") or {}).get("kind", ())
    strange = sorted(set(map(str, np.unique(np.asarray(kinds, dtype=np.str_)))) - set(KINDS))
    if strange:
        raise ValueError(f"analysis.recognition.kind holds {strange[0]!r}; choose among {KINDS}.")
