"""The page of a comparison, `compare.html`: one file that loads nothing, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from common.paths import write_text
from common.report import plots_compare
from common.report.bootstrap import Difference
from common.report.canvas import COLORS
from common.report.compare_text import COSTS, SURE, number, spread
from common.report.comparison import METRICS, Comparison, title
from common.report.experiments import Experiment
from common.report.gallery import templates
from common.report.page import policy

_TEMPLATES = Path(__file__).parent / "templates"
Json = dict[str, Any]


def write_page(found: Comparison, path: str | Path) -> Path:
    """Path of the written page.

    Raises:
        OSError: the file cannot be written.
    """
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    names = [one.name for one in found.experiments]
    costs = [name for name in COSTS if any(name in one.cost() for one in found.experiments)]
    text = templates().get_template("compare.html.j2").render(
        title=" vs ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        about=found.about(),
        remarks=found.remarks,
        colors=COLORS,
        policy=policy(script),
        script=Markup(script),
        metrics=[title(name) for name in found.metrics],
        costs=[COSTS[name] for name in costs],
        rows=[_row(found, one, costs) for one in found.experiments],
        names=names,
        settings={k: [v or "-" for v in row] for k, row in found.settings.items()},
        scores=_scores(found),
        curves=_curves(found),
        tests=[_test(name, pairs) for name, pairs in found.differences.items()],
        draws=found.draws,
        sure=SURE,
    )  # fmt: skip
    write_text(path, text)
    return Path(path)


def _row(found: Comparison, one: Experiment, costs: list[str]) -> Json:
    """An experiment's line of the table of scores."""
    scores, cost = one.scores(), one.cost()
    cells = []
    for metric in found.metrics:
        apart = found.apart(metric, one.name)
        best = max((other.scores()[metric][0] for other in found.experiments
                    if metric in other.scores()), default=None)  # fmt: skip
        known = metric in scores
        cells.append(
            {
                "text": spread(*scores[metric]) if known else "",
                "best": known and scores[metric][0] == best,
                "verdict": _verdict(apart) if apart else "",
            }
        )
    return {
        "name": one.name,
        "runs": [record.source for record in one.records],
        "cells": cells,
        "costs": [number(cost[name][0]) if name in cost else "" for name in costs],
    }


def _scores(found: Comparison) -> list[Json]:
    drawn = []
    for metric in found.metrics:
        values = {
            one.name: [row[metric] for record in one.records if metric in (row := record.scores())]
            for one in found.experiments
        }
        values = {name: row for name, row in values.items() if row}
        svg = plots_compare.dots(values, x_label=title(metric))
        drawn.append({"title": title(metric), "svg": Markup(svg)})
    return drawn


def _curves(found: Comparison) -> list[Json]:
    """Validation by epoch where every line has one, else by step, and the loss."""
    keys = dict.fromkeys(key for record in found.records for line in record.lines for key in line)
    known = [key for key in keys if key.startswith("valid/")]
    drawn = []
    for key in [*known, *(["train/loss"] if "train/loss" in keys else [])]:
        epochs = all("epoch" in line for record in found.records for line in record.lines)
        curves = {}
        for one in found.experiments:
            runs = []
            for record in one.records:
                x, y = record.series(key, "epoch" if epochs else "step")
                if x:
                    runs.append((x, y))
            if runs:
                curves[one.name] = runs
        loss = key == "train/loss"
        name = "Training loss" if loss else title(key)
        positive = all(value > 0 for runs in curves.values() for _, y in runs for value in y)
        if not curves:
            continue
        svg = plots_compare.overlay(
            curves, x_label="epoch" if epochs else "step", y_label=name, log=loss and positive
        )
        drawn.append({"title": name, "svg": Markup(svg)})
    return drawn


def _test(metric: str, pairs: list[Difference]) -> Json:
    """Differences in one metric: a drawing and its numbers."""
    svg = plots_compare.forest(pairs, x_label=f"difference in {title(metric)}", sure=SURE)
    rows = [
        {
            "second": one.second,
            "first": one.first,
            "value": f"{one.value:+.4f}",
            "interval": f"{one.low:+.4f} to {one.high:+.4f}",
            "p": f"{one.p:.4f}",
            "holm": f"{one.holm:.4f}",
            "queries": one.queries,
            "verdict": _verdict(one),
        }
        for one in pairs
    ]
    ranked = metric.partition("/")[2] == "gap"
    note = f"{METRICS['gap']} is ranked anew in each draw." if ranked else ""
    return {"title": title(metric), "svg": Markup(svg), "rows": rows, "note": note}


def _verdict(one: Difference) -> str:
    if one.holm >= SURE:
        return "not sure"
    return "better" if one.value > 0 else "worse"
