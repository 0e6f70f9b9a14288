"""Tables of scores: a run beside its parts, and the rows of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from common.report.files import read_json

T = TypeVar("T")


def score_rows(
    folder: Path, scores: Mapping[str, float], joined: Sequence[Path], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """This run's scores; above them the frozen backbone, if it lies beside, and the joined runs.

    Args:
        folder: the run folder.
        scores: `{"test/gap": ..., "held-out/gap": ...}`.
        joined: run folders of an ensemble.
        names: how each metric is called in print: `{"gap": "GAP"}`.
    """
    frozen = folder.parent / "frozen"
    others = {path.resolve(): path for path in (frozen, *joined)}
    others.pop(folder.resolve(), None)
    rows = []
    for path in others.values():
        before = read_json(path / "summary.json")
        known = {k: before[k] for k in scores if k in before}
        if known:
            note = {"note": "ImageNet weights, untrained"} if path == frozen else {}
            rows.append({"name": path.name, **named(known, names), **note})
    return [*rows, {"name": folder.name, **named(scores, names)}]


def named(scores: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    """`{"GAP (test)": ...}` from `{"test/gap": ...}`, validation last."""
    order = sorted(scores, key=lambda key: (key.startswith("held-out"), key))
    return {f"{names[k.split('/')[1]]} ({k.split('/')[0]})": scores[k] for k in order}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("name", "note")))
    width = max([len(str(row["name"])) for row in rows] + [4])
    lines = [" " * width + "".join(f"{c:>20}" for c in columns)]
    for row in rows:
        cells = "".join(f"{row[c]:20.4f}" if c in row else " " * 20 for c in columns)
        lines.append(f"{row['name']:<{width}}{cells}")
    return "\n".join(lines)


def inline(scores: Mapping[str, float], metric: str, name: str) -> str:
    """`; GAP held-out 0.97, test 0.88`, or nothing where neither is known."""
    known = [k for k in ("held-out", "test") if f"{k}/{metric}" in scores]
    parts = [f"{k} {scores[f'{k}/{metric}']:.4f}" for k in known]
    return f"; {name} {', '.join(parts)}" if parts else ""


def score_table(rows: Mapping[str, T], scores: Callable[[T], Mapping[str, float]]) -> pd.DataFrame:
    """Scores by name of the row, and what each held-out score is above that of the first.

    Args:
        rows: name -> what `scores` takes.
        scores: `held-out` first, then what else is shown; `seconds` are not.
    """
    frame = pd.DataFrame({name: scores(row) for name, row in rows.items()}).T
    frame.insert(1, "change", frame["held-out"] - frame["held-out"].iloc[0])
    return frame.drop(columns="seconds").round(4)
