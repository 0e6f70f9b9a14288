"""Queries with their results as pictures: which rows to show, and the gallery in HTML.

A row is `{query: {id, path, label}, results: [{id, path, label, score, right}, ...], note, ap}`;
`right` is True, False or None (unknown); `box` (x0, y0, x1, y1) and `title` (text shown below) may
stand beside any path, and `measure` beside `ap` if that is another one. Results come best first. A
row's own `score` and `right` stand for its prediction where that is not its first result (a vote
over several). `margin` is how far the score that decides is above the threshold; `solved` says
whether nothing is wrong with the answer where that is more than its first result.
"""

from __future__ import annotations

import base64
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.report.files import plain
from common.report.sheets import Row, contact_sheet, number, sheet, thumbnail, verdict

__all__ = [
    "collect", "confusions", "contact_sheet", "groups", "html", "sheet", "templates", "thumbnail",
]  # fmt: skip


def collect(
    name: str, rows: Sequence[Row], *, each: int = 6, top: int = 5, seed: int = 0
) -> dict[str, Any]:
    """The table that a report shows, JSON values only, with its thumbnails inside.

    Rows are chosen by `groups`; confusions are counted over all rows.

    Args:
        name: title of the table.
        rows: see the module; the order of the file.
        each: rows of each group.
        top: results of each row.
        seed: of the random group.
    """
    thumbs: dict[str, str | None] = {}
    keys: dict[tuple[str, str], str] = {}

    def item(entry: Row) -> Row:
        """The entry with a thumbnail key in place of its path: a report names no folder."""
        path = entry.get("path")
        kept = {k: v for k, v in entry.items() if k not in ("path", "box")}
        if path is not None:
            source = (os.fsdecode(path), str(entry.get("box")))
            if source not in keys:
                keys[source] = str(len(keys))
                picture = thumbnail(path, box=entry.get("box"))
                thumbs[keys[source]] = base64.b64encode(picture).decode() if picture else None
            kept["thumb"] = keys[source]
        return kept

    def shown(row: Row) -> Row:
        results = [item(result) for result in row.get("results", ())[:top]]
        return {**row, "query": item(row["query"]), "results": results}

    chosen = [
        {**group, "rows": [shown(row) for row in group["rows"]]}
        for group in groups(rows, each=each, seed=seed)
    ]
    pairs = [
        {**pair, "query": item(pair["query"]), "result": item(pair["result"])}
        for pair in confusions(rows)
    ]
    table = {"name": name, "total": len(rows), "groups": chosen, "confusions": pairs}
    cleaned: dict[str, Any] = plain({**table, "thumbs": thumbs})
    return cleaned


def groups(rows: Sequence[Row], *, each: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """`{title, caption, rows}` of the worst, best, random queries and those near the threshold.

    One group if there are few; near the threshold are rows with a `margin`, the smallest first.

    Rows are ordered by average precision where they have one; else a right first result counts its
    score and a wrong one minus its score, so the surest mistake is the worst.
    """
    rows = list(rows)
    if not rows:
        return []
    by_ap = all(row.get("ap") is not None for row in rows)
    mistakes = any(_right(row) is False for row in rows)
    quality = np.array([_quality(row, by_ap) for row in rows])
    order = np.argsort(quality, kind="stable")
    if by_ap:
        words = (
            "Worst",
            f"lowest {rows[0].get('measure', 'average precision')} first",
            "Best",
            f"highest {rows[0].get('measure', 'average precision')} first",
        )
    elif mistakes:
        words = ("Worst", "surest mistakes first", "Best", "surest right answers first")
    else:
        words = ("Least sure", "lowest score first", "Surest", "highest score first")
    if len(rows) <= 2 * each:
        return [{"title": "All", "caption": words[1], "rows": [rows[i] for i in order]}]
    rest = order[each : len(rows) - each]
    drawn = np.sort(np.random.default_rng(seed).choice(rest, min(each, len(rest)), replace=False))
    near = sorted(
        (row for row in rows if row.get("margin") is not None), key=lambda row: abs(row["margin"])
    )
    found = [
        {"title": words[0], "caption": words[1], "rows": [rows[i] for i in order[:each]]},
        {"title": words[2], "caption": words[3], "rows": [rows[i] for i in order[::-1][:each]]},
        {
            "title": "Near the threshold",
            "caption": "those whose score is nearest to the threshold first",
            "rows": near[:each],
        },
        {
            "title": "Random",
            "caption": f"drawn with seed {seed} from the others, in the order of the file",
            "rows": [rows[i] for i in drawn],
        },
    ]
    return [group for group in found if group["rows"]]


def confusions(rows: Sequence[Row], *, limit: int = 8) -> list[Row]:
    """Pairs of labels that a wrong first result took for each other, most often first, then score.

    Either way round. Each is `{count, score, query, result}`: the highest score and its example.
    Where `known` is False beside a query or result, its label is nobody's: such queries are left
    out, and of a row the first result counts that is somebody.
    """
    found: dict[frozenset[str], Row] = {}
    for row in rows:
        somebody = [result for result in row.get("results", ()) if result.get("known", True)]
        row = {**row, "results": somebody}
        if not somebody or not row["query"].get("known", True) or _right(row) is not False:
            continue
        result, query = somebody[0], row["query"]
        key = frozenset((str(query.get("label")), str(result.get("label"))))
        score = _score(row)
        pair = found.setdefault(key, {"count": 0, "score": -np.inf})
        pair["count"] += 1
        if score > pair["score"] or "query" not in pair:
            pair |= {"score": score, "query": query, "result": result}
    return sorted(found.values(), key=lambda pair: (-pair["count"], -pair["score"]))[:limit]


def outcome(row: Row) -> str:
    """`right`, `wrong` or `unknown`: what a filter of the rows goes by."""
    return verdict({"right": row.get("solved", _right(row))})


def words_of(row: Row) -> str:
    """Ids, labels and titles of the row and its note, in lower case, to search in."""
    entries = [row["query"], *row.get("results", ())]
    found = [entry.get(key) for entry in entries for key in ("id", "label", "title")]
    texts = dict.fromkeys(str(text) for text in [*found, row.get("note")] if text not in (None, ""))
    return " ".join(texts).lower()


def html(table: dict[str, Any], *, limit: int | None = None) -> str:
    """The gallery of a table from `collect` as HTML text with its own style, escaped.

    `limit` is the number of rows of each group that are shown.
    """
    module: Any = templates().get_template("gallery.html.j2").module
    key = "".join(c if c.isalnum() else "-" for c in str(table.get("name", "table")))
    return str(module.gallery(table, limit, key))


@functools.cache
def templates() -> Environment:
    """The templates of this folder; everything that is put into them is escaped."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number,
        "verdict": verdict,
        "outcome": outcome,
        "words": words_of,
    }
    return environment


def _right(row: Row) -> bool | None:
    right = _first(row, "right")
    return None if right is None else bool(right)


def _score(row: Row) -> float:
    score = _first(row, "score")
    return float("-inf") if score is None or np.isnan(score) else float(score)


def _first(row: Row, key: str) -> Any:
    """What the row says itself, else its first result."""
    results = row.get("results", ())
    return row[key] if key in row else results[0].get(key) if len(results) else None


def _quality(row: Row, by_ap: bool) -> float:
    if by_ap:
        return float(row["ap"])
    score = _score(row)
    if _right(row) is False:  # no prediction at all is the mildest mistake
        return -score if np.isfinite(score) else 0.0
    return score
