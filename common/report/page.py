"""One self-contained `report.html` of a run folder: scores, curves, errors, pictures, commands.

    python -m common.report.page RUN [RUN ...]

It reads what a run leaves (config.yaml, metrics.jsonl, summary.json, track.json, analysis.json,
map.json, tables/*.json); what is missing is left out. The page loads nothing from anywhere: its
Content-Security-Policy forbids every request, and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from common.paths import write_text
from common.report import drawings
from common.report.canvas import CLASSES, COLORS
from common.report.files import (
    WORDS,
    Analysis,
    load_analysis,
    read_json,
    read_lines,
    save_analysis,
)
from common.report.gallery import templates

__all__ = ["Analysis", "Section", "save_analysis", "write_report"]

BUDGET = 9_000_000  # characters of pictures on one page, the map's apart
LIMIT = 15_000_000  # bytes of a page, whatever the run: many viewers and mails take no more
Json = dict[str, Any]


@dataclass
class Section:
    """A part that a caller adds: heading, text, SVG drawings from `plots`, rows of a table."""

    title: str
    text: str = ""
    figures: Sequence[str] = ()
    rows: Sequence[Json] = ()

    def stored(self) -> Json:
        """As `Analysis.sections` keeps it: the drawings as plain text."""
        return {**vars(self), "figures": [str(svg) for svg in self.figures]}


def write_report(folder: str | Path, *sections: Section, title: str | None = None) -> Path:
    """Path of the written `report.html`.

    Args:
        folder: the run folder.
        sections: parts to add behind the built-in ones.
        title: heading; unset, the run's name.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a page that without pictures is larger than LIMIT.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"No run folder {folder}: give the `out` of a training.")
    jobs = read_json(folder / "track.json")
    job: Json = jobs.get("train") or next(iter(jobs.values()), {})
    changes = {key: pair for one in jobs.values() for key, pair in one.get("changes", {}).items()}
    analysis = load_analysis(folder)
    summary, card = read_json(folder / "summary.json"), read_json(folder / "card.json")
    words = {**WORDS, **analysis.words}
    rankings = drawings.rankings(analysis.notes)
    spent = sum(len(match["picture"]) for one in rankings for match in one.matches)
    given = [read_json(path) for path in sorted(folder.glob("tables/[!.]*.json"))]
    needed = {"name", "total", "groups", "confusions", "thumbs"}
    given = [table for table in given if needed <= table.keys() and table["groups"]]
    template = templates().get_template("report.html.j2")
    script = (Path(__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
    parts = dict(
        title=title or job.get("name") or folder.resolve().name,
        job=job,
        colors=COLORS | CLASSES,
        policy=policy(script),
        script=Markup(script),
        cards=headline(analysis, summary),
        scores=score_table(analysis),
        baseline=analysis.baseline,
        curves=drawings.training(read_lines(folder / "metrics.jsonl")),
        words=words,
        recognition=drawings.recognition(analysis.recognition, words),
        retrieval=drawings.retrieval(analysis.retrieval, words),
        thresholds=drawings.thresholds(analysis.thresholds),
        pairs=drawings.pairs(analysis.pairs),
        map=drawings.placed(read_json(folder / "map.json")),
        rankings=rankings,
        stages=drawings.stages(analysis.stages, summary),
        sections=[
            _custom(section)
            for section in (*(Section(**kept) for kept in analysis.sections), *sections)
        ],
        changes={key: list(map(_flow, pair)) for key, pair in changes.items()},
        config=_text(folder / "config.yaml"),
        summary=_scalars(summary),
        card=_scalars(card),
        environment=_environment(job),
        commands=_commands(job, jobs, analysis, folder),
    )
    budget = BUDGET - spent
    while True:
        tables, limit = _fitting(given, budget)
        text = template.render(tables=tables, limit=limit, said=_shortened(given, limit), **parts)
        if (size := len(text.encode())) <= LIMIT:
            break
        if budget <= 0:
            raise ValueError(
                f"The page of {folder} has {size:,} bytes without pictures, more than {LIMIT:,}: "
                "look for what is so long in its config.yaml and analysis.json."
            )
        budget -= max(size - LIMIT, BUDGET // 10)
    write_text(folder / "report.html", text)
    return folder / "report.html"


def policy(script: str) -> str:
    """A Content-Security-Policy that lets a page request nothing and run `script` only."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def headline(analysis: Analysis, summary: Json) -> list[Json]:
    """Cards `{name, value, change, against}`: the last row of scores beside the baseline's."""
    if not analysis.scores:
        values = {k: v for k, v in _scalars(summary).items() if not isinstance(v, str)}
        return [
            {"name": name, "value": value, "change": None, "against": None}
            for name, value in list(values.items())[:4]
        ]
    final = analysis.scores[-1]
    base = next((row for row in analysis.scores if row.get("name") == analysis.baseline), {})
    cards = []
    for name in _metrics([final]):
        change = None
        if base is not final and isinstance(base.get(name), int | float):
            change = final[name] - base[name]
        cards.append(
            {"name": name, "value": final[name], "change": change, "against": base.get(name)}
        )
    return cards


def score_table(analysis: Analysis) -> Json:
    """`{metrics, rows, best}`: the columns, the rows as given, the highest value of each column."""
    metrics = _metrics(analysis.scores)
    best = {
        name: max(row[name] for row in analysis.scores if isinstance(row.get(name), int | float))
        for name in metrics
    }
    return {"metrics": metrics, "rows": analysis.scores, "best": best}


def _metrics(rows: Sequence[Json]) -> list[str]:
    """Names of the numeric columns in order of appearance."""
    names = [
        key for row in rows for key, value in row.items()
        if key not in ("name", "note") and isinstance(value, int | float) and math.isfinite(value)
    ]  # fmt: skip
    return list(dict.fromkeys(names))


def _scalars(values: Json) -> Json:
    return {k: v for k, v in values.items() if isinstance(v, int | float | str)}


def _fitting(tables: list[Json], budget: int) -> tuple[list[Json], int]:
    """The tables, and how many rows of each group keep them under `budget`; none for too little."""
    limit = _longest(tables)
    while limit > 0 and sum(_weight(table, limit) for table in tables) > budget:
        limit -= 1
    return (tables, limit) if limit else ([], 0)


def _longest(tables: Sequence[Json]) -> int:
    return max((len(group["rows"]) for table in tables for group in table["groups"]), default=1)


def _shortened(given: Sequence[Json], limit: int) -> str:
    """What the reader is told where pictures were left out to keep the page small."""
    if limit >= _longest(given):
        return ""
    return (
        f"To stay under {LIMIT // 1_000_000} MB, {limit} of {_longest(given)} stored queries of "
        "each group are shown."
    )


def _weight(table: Json, limit: int) -> int:
    thumbs = table["thumbs"]
    rows = [row for group in table["groups"] for row in group["rows"][:limit]]
    entries = [entry for row in rows for entry in (row["query"], *row["results"])]
    entries += [pair[side] for pair in table["confusions"] for side in ("query", "result")]
    return sum(len(thumbs.get(entry.get("thumb")) or "") for entry in entries)


def _custom(section: Section) -> Json:
    columns = list(dict.fromkeys(key for row in section.rows for key in row))
    figures = [Markup(svg) for svg in section.figures]
    return {**vars(section), "columns": columns, "figures": figures}


def _environment(job: Json) -> Json:
    facts = dict(job.get("environment") or {})
    git = job.get("git") or {}
    if git.get("commit"):
        facts["commit"] = git["commit"][:12] + (" with local changes" if git.get("dirty") else "")
    if job.get("data"):
        facts["data"] = job["data"]
    facts["gpu"] = ", ".join(facts.get("gpu") or []) or ("none" if facts else "")
    return {
        name: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        for name, value in facts.items()
        if value not in ("", None)
    }


def _commands(job: Json, jobs: Json, analysis: Analysis, folder: Path) -> list[str]:
    git = job.get("git") or {}
    found = [f"git checkout {git['commit'][:12]}"] if git.get("commit") else []
    found += [one["command"] for one in jobs.values() if one.get("command")]
    found += analysis.commands
    place = folder.name if folder.is_absolute() else folder.as_posix()
    return [*found, f"python -m common.report.page {place}"] if found else []


def _flow(value: Any) -> str:
    """A config value as it is written on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n...\n").strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def main(arguments: Sequence[str]) -> int:
    """Exit status of the command: builds the page of each run folder and names it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0 if arguments else 2
    for folder in arguments:
        try:
            print(write_report(folder))
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
