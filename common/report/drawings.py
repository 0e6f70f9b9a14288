"""The drawings of a report: metrics and `analysis.json` as plots with heading and caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from common.report import plots, plots_matching, plots_ranking
from common.report.canvas import SERIES
from common.report.files import WORDS

Json = dict[str, Any]


@dataclass
class Drawing:
    """A plot with its heading and a caption that says what is seen."""

    title: str
    svg: Markup
    caption: str = ""
    aside: bool = False  # folded away below the others


def training(lines: Sequence[Json]) -> list[Drawing]:
    """Losses, validation metrics, learning rates, then what else was logged, by step."""
    series: dict[str, dict[float, float]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "epoch") and isinstance(value, int | float):
                # A step that was run again after a restart counts once, as it was run last.
                series.setdefault(name, {})[line.get("step", 0)] = value
    drawn = {
        name: (sorted(points), [points[step] for step in sorted(points)])
        for name, points in series.items()
        if len(points) > 1
    }
    kinds: dict[str, list[str]] = {"loss": [], "rate": [], "score": [], "other": [], "clock": []}
    for name in drawn:
        kinds[_kind(name, drawn[name][1])].append(name)
    found = []
    plan = (
        ("loss", "Loss", "loss", "What the optimiser minimises; lower is better."),
        ("score", "Validation", "score", "Higher is better; the best value of each is marked."),
        ("rate", "Learning rates", "learning rate", "By group of parameters, logarithmic."),
    )
    for kind, heading, label, caption in plan:
        if kinds[kind]:
            chosen = {name: drawn[name] for name in kinds[kind][: len(SERIES)]}
            positive = all(value > 0 for _, up in chosen.values() for value in up)
            svg = plots.curves(
                chosen, y_label=label, log=kind == "rate" and positive, best=kind == "score"
            )
            found.append(Drawing(heading, Markup(svg), caption))
    for name in kinds["other"][:8]:
        words = name.rsplit("/", 1)[-1].replace("_", " ")
        svg = plots.curves({name: drawn[name]}, y_label=words)
        found.append(Drawing(words[:1].upper() + words[1:], Markup(svg), aside=True))
    return found


def recognition(data: Json, words: Mapping[str, str] = WORDS) -> list[Drawing]:
    """Scores by outcome, with GAP or a threshold, and accuracy by number of training images."""
    if not data.get("score"):
        return []
    gap = data.get("curve") == "GAP"
    svg = plots.score_histogram(
        data["score"],
        data["kind"],
        none=words["none"],
        gap=gap,
        positives=data.get("positives"),
        threshold=data.get("threshold"),
    )
    sure = f"how sure the right, the wrong and the {words['none']} predictions are (stacked)."
    caption = sure[0].upper() + sure[1:]
    if gap:
        caption = (
            f"Above: {sure} Below: precision and GAP when predictions under a threshold are left "
            f"out. Wrong and {words['none']} bars at the right cost GAP most."
        )
    found = [Drawing("Confidence of the predictions", Markup(svg), caption)]
    if data.get("images"):
        kept = [i for i, kind in enumerate(data["kind"]) if kind != "none"]
        svg = plots.by_size(
            [data["kind"][i] == "right" for i in kept],
            [data["images"][i] for i in kept],
            x_label=f"training images of the {words['thing']} (queries)",
            y_label="share recognised",
        )
        caption = f"Share of queries whose {words['thing']} was found, with its standard error."
        found.append(Drawing(f"Rare and frequent {words['things']}", Markup(svg), caption))
    return found


def retrieval(data: Json, words: Mapping[str, str] = WORDS) -> list[Drawing]:
    """How average precision is distributed, and its mean by the number of right images."""
    if not data.get("ap"):
        return []
    name = data.get("name", "mAP")
    spread = plots.histogram(data["ap"], x_label="average precision of a query")
    sizes = plots.by_size(
        data["ap"], data["relevant"], x_label=f"{words['relevant']} (queries)", y_label=name
    )
    return [
        Drawing("Average precision by query", Markup(spread), words["precision text"]),
        Drawing(words["relevant title"], Markup(sizes), words["relevant text"]),
    ]


def thresholds(items: Sequence[Json]) -> list[Drawing]:
    """Curves of a metric by a threshold, the chosen one marked."""
    return [
        Drawing(
            str(item.get("title", "Threshold")),
            Markup(
                plots.curves(
                    {name: (item["x"], y) for name, y in item["series"].items()},
                    x_label=str(item.get("x_label", "threshold")),
                    y_label=str(item.get("y_label", "score")),
                    chosen=item.get("chosen"),
                    middle=item.get("middle"),
                )
            ),
            str(item.get("caption", "")),
        )
        for item in items
    ]


def pairs(items: Sequence[Json]) -> list[Drawing]:
    """Scores of matches and non-matches."""
    return [
        Drawing(str(item["title"]), Markup(plots_matching.apart(item)), str(item["caption"]))
        for item in items
        if item
    ]


def placed(stored: Json) -> Json:
    """A map of `report.maps` in units of its drawing, 1000 wide; empty where there is none.

    `marks` are the kinds that it has, `data` what its script reads.
    """
    if not stored.get("points"):
        return {}
    points = [
        {**point, "x": round(1000 * point["x"]), "y": round(1000 * point["y"])}
        for point in stored["points"]
    ]
    # Queries lie on top of the gallery, the wrong ones on top of all.
    order = ("gallery", "unknown", "none", "right", "wrong")
    points.sort(key=lambda point: order.index(point["mark"]))
    asked = sum(point["mark"] != "gallery" for point in points)
    caption = (
        f"{stored['method']}, seed {stored['seed']}: {asked:,} of {stored['total'][0]:,} queries "
        f"and {len(points) - asked:,} of {stored['total'][1]:,} gallery images. What is near is "
        "alike; how far apart distant groups are says nothing."
    )
    if stored.get("late"):
        caption += f" {stored['late']:,} pictures could not be read in time."
    keys = ("x", "y", "id", "label", "mark", "picture")
    return {
        **stored,
        "points": points,
        "height": max([point["y"] for point in points] + [1]),
        "marks": [mark for mark in order if any(point["mark"] == mark for point in points)],
        "caption": caption,
        "data": {
            "points": [[point[key] for key in keys] for point in points],
            "cell": stored["cell"],
            "columns": stored["columns"],
        },
    }


def stages(rows: Sequence[Json], summary: Json) -> list[Json]:
    """`{stage, seconds, rows, rate, share, within}`: training, then each stage of the script.

    `share` is of the longest stage, in percent.
    """
    found = []
    if isinstance(summary.get("minutes"), int | float) and summary["minutes"] > 0:
        found.append({"stage": "training", "seconds": 60 * summary["minutes"]})
    found += [row for row in rows if isinstance(row.get("seconds"), int | float)]
    longest = max([row["seconds"] for row in found] + [1e-9])
    return [
        {
            "stage": str(row.get("stage", "")),
            "seconds": row["seconds"],
            "rows": row.get("rows") or None,
            "rate": row["rows"] / row["seconds"] if row.get("rows") and row["seconds"] else None,
            "share": round(100 * row["seconds"] / longest, 2),
            "within": bool(row.get("within")),
        }
        for row in found
    ]


@dataclass
class Ranking:
    """What the ranking steps of one task found out."""

    task: str
    drawings: list[Drawing]
    numbers: Json
    remarks: list[str]
    matches: list[Json]


def rankings(notes: Mapping[str, Json]) -> list[Ranking]:
    """Reliability, importances, numbers, remarks and matches by task that has any."""
    found = []
    for task, note in notes.items():
        shown = []
        if diagrams := note.get("calibration"):
            caption = (
                "Of the pairs that got a probability, the share that is right, by classes that the "
                "calibration has not seen; on the dashed line the two agree. ECE is their mean "
                "distance."
            )
            svg = plots_ranking.reliability(diagrams)
            shown.append(Drawing("Reliability", Markup(svg), caption))
        for model, values in (note.get("importances") or {}).items():
            svg = plots_ranking.bars(values, x_label="share of the gain")
            heading = model[:1].upper() + model[1:]
            more = f"The first 15 of {len(values)} features. " if len(values) > 15 else ""
            shown.append(
                Drawing(
                    f"{heading}: importances",
                    Markup(svg),
                    f"{more}How much of what the trees learnt came from each feature.",
                )
            )
        pictures = [match for match in note.get("matches") or () if match.get("picture")]
        numbers = note.get("numbers") or {}
        remarks = list(note.get("remarks") or ())
        if shown or pictures or numbers or remarks:
            found.append(Ranking(task, shown, numbers, remarks, pictures))
    return found


def _kind(name: str, values: Sequence[float]) -> str:
    last = name.lower().rsplit("/", 1)[-1]
    if "loss" in last:
        return "loss"
    if last in ("minutes", "seconds", "time", "images", "seen"):
        return "clock"  # grows by itself, says nothing as a curve
    if last in ("lr", "learning_rate") or last.endswith("_lr") or name.lower().startswith("lr/"):
        return "rate"
    training_only = name.startswith(("train/", "head/", "system/")) or "threshold" in last
    return "score" if not training_only and all(0 <= v <= 1 for v in values) else "other"
