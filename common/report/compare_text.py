"""A comparison as text, as a Markdown table, and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from common.paths import write_text
from common.report.bootstrap import Difference
from common.report.comparison import Comparison, title

COSTS = {"minutes": "minutes", "memory": "peak GiB", "images/s": "images/s"}
MARKERS = ("<!-- compare -->", "<!-- /compare -->")
SURE = 0.05  # a difference with a smaller p, among all pairs, is marked
_WIDTH = 110
_LONG = 60  # characters of a setting in a Markdown cell


def text(found: Comparison) -> str:
    """Scores and costs, settings that differ, significance, remarks; aligned."""
    costs = _costs(found)
    head = ["", "runs", *map(title, found.metrics), *(COSTS[name] for name in costs)]
    rows = [head]
    for one in found.experiments:
        scores, cost = one.scores(), one.cost()
        row = [one.name, str(len(one.records))]
        row += [spread(*scores[m]) if m in scores else "" for m in found.metrics]
        rows.append([*row, *(number(cost[c][0]) if c in cost else "" for c in costs)])
    parts = [found.about(), aligned(rows), *_settings(found)]
    for metric, pairs in found.differences.items():
        told = f"{title(metric)}, paired bootstrap over queries ({found.draws} draws, 95 %)"
        lines = [["", "", "queries", "difference", "from", "to", "p", "Holm's p"]]
        lines += [
            [f"{one.second} - {one.first}", _verdict(one), str(one.queries), f"{one.value:+.4f}",
             f"{one.low:+.4f}", f"{one.high:+.4f}", _p(one.p), _p(one.holm)]
            for one in pairs
        ]  # fmt: skip
        parts.append(f"{told}\n{aligned(lines)}")
    if found.differences:
        parts.append("Other queries are drawn, not other seeds: for those see the spread of runs.")
    parts += [f"warning: {remark}" for remark in found.remarks]
    return "\n\n".join(parts)


def markdown(found: Comparison, command: str = "") -> str:
    """A table for a README: an experiment a row, what differs from the first, scores, cost."""
    costs = [name for name in _costs(found) if name != "images/s"]  # minutes tell it already
    head = ["", *(["what differs"] if found.settings else []), *map(title, found.metrics)]
    head += [COSTS[name] for name in costs]
    lines = [_line(head), "|---" * len(head) + "|"]
    starred = False
    for place, one in enumerate(found.experiments):
        scores, row = one.scores(), [cell(one.name)]
        if len(one.records) > 1:
            row[0] += f" ({len(one.records)} runs)"
        if found.settings:
            row.append(_differs(found, place))
        for metric in found.metrics:
            apart = found.apart(metric, one.name)
            sure = apart is not None and apart.holm < SURE
            starred |= sure
            star = r"\*" if sure else ""
            row.append(short(*scores[metric]) + star if metric in scores else "")
        cost = one.cost()
        row += [number(cost[name][0]) if name in cost else "" for name in costs]
        lines.append(_line(row))
    notes = []
    if any(len(one.records) > 1 for one in found.experiments):
        notes.append("± is the standard deviation over runs that differ in seed or fold.")
    if starred:
        notes.append(rf"\* differs from the first row, paired bootstrap over queries, p < {SURE}.")
    notes += [f"Note: {remark}" for remark in found.remarks]
    notes += [f"Made by `{command}`."] if command else []
    return "\n".join(lines) + ("\n\n" + "  \n".join(notes) if notes else "")


def table(found: Comparison) -> str:
    """CSV: a run a row, with its experiment, settings that differ, all scores and costs."""
    scores = list(dict.fromkeys(key for record in found.records for key in record.scores()))
    head = ["experiment", "run", "seed", "fold", *found.settings, *scores, *COSTS]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    for place, one in enumerate(found.experiments):
        settings = [values[place] for values in found.settings.values()]
        for record in one.records:
            config, own, cost = record.config, record.scores(), record.cost()
            fold = (config.get("data") or {}).get("fold")
            row = [one.name, record.source, config.get("seed"), fold, *settings]
            row += [own.get(key) for key in scores]
            writer.writerow([*row, *(cost.get(key) for key in COSTS)])
    return stream.getvalue().rstrip("\n")


def put_into(path: Path, block: str) -> None:
    """Replace what is between the lines of the two markers in a file; prose may name them.

    Raises:
        ValueError: the lines are not there exactly once, in their order.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    first, last = ([n for n, line in enumerate(lines) if line.strip() == one] for one in MARKERS)
    if len(first) != 1 or len(last) != 1 or first > last:
        raise ValueError(
            f"{path} has no place for the table: put {MARKERS[0]} and {MARKERS[1]} on lines of "
            "their own, once."
        )
    write_text(path, "\n".join([*lines[: first[0] + 1], block, *lines[last[0] :]]))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def spread(mean: float, deviation: float) -> str:
    """`0.6180 ± 0.0110`, or the mean alone of one run."""
    return f"{mean:.4f}" + ("" if math.isnan(deviation) else f" ± {deviation:.4f}")


def short(mean: float, deviation: float) -> str:
    """`.618 ± .011`."""
    parts = [f"{mean:.3f}"] + ([] if math.isnan(deviation) else [f"{deviation:.3f}"])
    return " ± ".join(part.removeprefix("0") if part.startswith("0.") else part for part in parts)


def number(value: float) -> str:
    """Three figures, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(value: str) -> str:
    """Text that stays in its cell of a Markdown table, and text."""
    plain = " ".join(value.split())
    for sign in ("\\", "|", "<", "*", "`", "_", "["):
        plain = plain.replace(sign, f"\\{sign}")
    return plain


def code(value: str, most: int = _LONG) -> str:
    """A setting in a Markdown cell, cut where it is long."""
    plain = " ".join(value.split())
    plain = plain if len(plain) <= most else plain[: most - 3] + "..."
    return f"`{plain.replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _costs(found: Comparison) -> list[str]:
    """Those that any experiment knows."""
    return [name for name in COSTS if any(name in one.cost() for one in found.experiments)]


def _settings(found: Comparison) -> list[str]:
    """Differing keys, beside each other where that fits."""
    if not found.settings:
        same = "the experiments differ in data, not in config"
        return [] if len(found.experiments) < 2 else [same]
    names = [one.name for one in found.experiments]
    shown = {key: [v or "-" for v in values] for key, values in found.settings.items()}
    beside = aligned([["what differs", *names], *([key, *row] for key, row in shown.items())])
    if max(map(len, beside.splitlines())) <= _WIDTH:
        return [beside]
    lines = ["what differs"]
    for key, row in shown.items():
        by: dict[str, list[str]] = {}
        for name, value in zip(names, row, strict=True):
            by.setdefault(value, []).append(name)
        lines.append(key)
        lines += [f"  {value}: {', '.join(those)}" for value, those in by.items()]
    return ["\n".join(lines)]


def _differs(found: Comparison, place: int) -> str:
    """The settings of an experiment that are not those of the first; of the first all."""
    own = {key: values[place] for key, values in found.settings.items()}
    first = {key: values[0] for key, values in found.settings.items()}
    if place and found.experiments[place].records[0].config:
        own = {key: value for key, value in own.items() if value != first[key]}
    return ", ".join(code(f"{k}={'-' if v is None else v}") for k, v in own.items())


def _verdict(one: Difference) -> str:
    return "" if one.holm >= SURE else "better" if one.value > 0 else "worse"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
