"""The report of matches: thresholds by rule, F1 by size of group, worst groups, the map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.clock import Clock
from common.pipeline import publish
from common.pipeline.ranking import Question
from common.report import plots, plots_matching, separation
from common.report.files import Analysis
from common.report.page import Section
from common.rerank.curves import Curve
from common.rerank.transfer import Choice, MatchConfig, kept
from common.track import Run
from common.types import Neighbors

from .data import Shopee, titles_of
from .matching import Pool

_POINTS = 200  # of a drawn curve
EACH = 8  # listings of each group in the gallery
MEANING = {
    "validation": "highest F1 of held-out listings among distractors",
    "weighted": "the same, where a false match counts more: the test is a larger crowd",
    "sizes": "groups of the test as large as those of the training listings",
    "value": "as set",
}


def rule_rows(choice: Choice) -> list[dict[str, Any]]:
    """A row for each rule of the threshold: the cut, its F1, the one in use marked."""
    rows = []
    for rule, cut in choice.cuts.items():
        row: dict[str, Any] = {"name": f"by {rule}{' *' if rule == choice.by else ''}"}
        row["threshold"] = cut.threshold
        row["second"] = cut.second if np.isfinite(cut.bonus) else float("-inf")
        if cut.f1 is not None:
            row["F1 (held-out)"] = cut.f1
        rows.append(row)
    return rows


def analyse(
    analysis: Analysis,
    pool: Pool,
    found: Neighbors,
    choice: Choice,
    config: MatchConfig,
    run: Run,
    data: Shopee,
) -> None:
    """Threshold curves into the analysis, the worst and best groups into a table of the run."""
    truth = pool.truth
    assert truth is not None
    places = sorted({0, _row_of(choice), len(choice.bonuses) - 1})
    x = _grid(choice.surface)
    analysis.thresholds = [
        {
            "title": "F1 by threshold",
            "x": x.tolist(),
            "series": {
                _bonus(choice.bonuses[p]): _at(choice.surface[p], x).tolist() for p in places
            },
            "chosen": choice.cut.threshold,
            "x_label": "threshold",
            "y_label": "F1",
            "caption": "Held-out listings among distractors. A line for each rule of a listing's "
            "best match: it counts down to so far below the threshold when nothing else does.",
        }
    ]
    analysis.words = {"thing": "product", "things": "products"}
    answer = kept(found, choice.cut, config.most)
    values = truth.row_f1(answer)
    rows = torch.from_numpy(np.flatnonzero(truth.asked))
    asked = Neighbors(found.index[rows], found.score[rows])
    analysis.pairs = [
        separation.cosines(
            pool.sources.first.select(pool.table.ids[rows.numpy()]),
            pool.sources.first,
            truth.labels[truth.asked],
            truth.labels,
        ),
        separation.candidates(
            asked, truth.hits(found.index), threshold=choice.cut.threshold, what="listings"
        ),
    ]
    shown = _rows(pool, found, answer, values, choice.cut.threshold, data)
    run.table("worst_groups", shown, each=EACH)


def draw_map(
    folder: Path,
    pool: Pool,
    found: Neighbors | None,
    choice: Choice,
    config: MatchConfig,
    data: Shopee,
    clock: Clock,
) -> None:
    """Write the map of a pool: what is asked among its distractors, right if F1 is 1."""
    truth, vectors, paths = pool.truth, pool.sources.first, pool.table.paths
    asked = np.ones(len(pool.table), bool) if truth is None else truth.asked
    labels = pool.table.labels
    first = labels[asked]
    if truth is not None and found is not None:
        whole = truth.row_f1(kept(found, choice.cut, config.most)) == 1
        first = np.where(whole, first, -2)
    question = Question(
        vectors.select(pool.table.ids[asked]),
        vectors.select(pool.table.ids[~asked]),
        torch.from_numpy(labels[~asked]),
        None,
        paths[asked],
        paths[~asked],
        truth=None if truth is None else labels[asked],
    )
    publish.draw_map(folder, question, first, data.classes, clock)


def sections(
    choice: Choice,
    config: MatchConfig,
    test: Neighbors,
    shares: Sequence[float],
    held: Pool | None,
    known: Neighbors | None,
) -> list[dict[str, Any]]:
    """Parts of the page behind the built-in ones, as `Analysis.sections`."""
    rows = []
    for rule, cut in choice.cuts.items():
        row: dict[str, Any] = {"rule": rule, "threshold": round(cut.threshold, 4)}
        row["best match down to"] = round(cut.second, 4) if np.isfinite(cut.bonus) else "always"
        if cut.f1 is not None:
            row["F1, held out"] = round(cut.f1, 4)
        size = float((1 + (kept(test, cut, config.most).index >= 0).sum(1).float()).mean())
        row["listings in a test row"] = round(size, 3)
        row["what it is"] = MEANING[rule] + ("; in use" if rule == choice.by else "")
        rows.append(row)
    mean = float(np.sum(np.arange(1, len(shares) + 1) * np.asarray(shares)))
    text = why(choice, held) + f" A training listing's group has {mean:.3f} listings on average."
    found = [Section("Which threshold, and why", text, rows=rows).stored()]
    if held is None or known is None or held.truth is None:
        return found
    values = held.truth.row_f1(kept(known, choice.cut, config.most))
    sizes = plots.by_size(
        values.tolist(),
        held.truth.totals.tolist(),
        x_label="listings of the product (queries)",
        y_label="F1",
    )
    x = _grid(choice.surface)
    surface = plots_matching.surface(
        x.tolist(),
        [_bonus(bonus, short=True) for bonus in choice.bonuses],
        np.stack([_at(curve, x) for curve in choice.surface]),
        x_label="threshold",
        y_label="best match from",
        chosen=(choice.cut.threshold, _row_of(choice)),
    )
    counts = np.bincount(1 + (kept(test, choice.cut, config.most).index >= 0).sum(1).numpy())[1:]
    spread = plots_matching.shares(
        {"train": list(shares), "test, predicted": (counts / max(counts.sum(), 1)).tolist()},
        x_label="listings of a group",
        y_label="share of the listings",
    )
    text = (
        "Of held-out listings: F1 by both thresholds, and by how many listings their product has. "
        "Sizes of the predicted groups of the test beside those of train."
    )
    return [*found, Section("F1", text, figures=[surface, sizes, spread]).stored()]


def why(choice: Choice, held: Pool | None) -> str:
    """The reason of the rule in use, with what it was found on."""
    text = f"In use: {choice.by}, {MEANING[choice.by]}."
    if held is None or held.truth is None:
        return text + " Nothing is held out."
    asked, all_ = int(held.truth.asked.sum()), len(held.table)
    text += f" Held out are {asked} listings among {all_ - asked} distractors"
    if unseen := int((held.table.labels < 0).sum()):  # the tables' own: nobody knows the test's
        text += f", {unseen} of them listings of the test"
    text += "."
    if held.truth.crowd > 1:
        text += (
            f" The test has {held.truth.crowd:.2f} times as many strangers: a false match counts "
            "so often."
        )
    others = [cut.threshold for rule, cut in choice.cuts.items() if rule != choice.by]
    if others:
        apart = max(abs(limit - choice.cut.threshold) for limit in others)
        text += f" The other rules differ from it by at most {apart:.3g}."
    return text


def _rows(
    pool: Pool,
    found: Neighbors,
    answer: Neighbors,
    values: np.ndarray,
    threshold: float,
    data: Shopee,
) -> list[dict[str, Any]]:
    """Each asked listing with its best candidates; what is not answered is named so."""
    truth = pool.truth
    assert truth is not None
    rows = []
    near, totals = found.sorted().top(5), truth.totals
    for place, row in enumerate(np.flatnonzero(truth.asked).tolist()):
        taken = set(answer.index[row].tolist())
        results = []
        for other, score in zip(near.index[row].tolist(), near.score[row].tolist(), strict=True):
            if other >= 0:
                shown = entry(pool, other, data) | {"score": score}
                shown["right"] = bool(truth.labels[other] == truth.labels[row])
                if other not in taken:
                    shown["title"] = f"(not answered) {shown['title']}"
                results.append(shown)
        count = int((answer.index[row] >= 0).sum()) + 1
        apart = (found.score[row][found.index[row] >= 0] - threshold).tolist()
        rows.append(
            {
                "query": entry(pool, row, data),
                "results": results,
                "ap": float(values[place]),
                "measure": "F1",
                "note": f"{count} answered, {totals[place]} right",
                "margin": min(apart, key=abs, default=None),
                "solved": bool(values[place] == 1),
            }
        )
    return rows


def entry(pool: Pool, row: int, data: Shopee) -> dict[str, Any]:
    """A listing as the gallery shows it."""
    label = pool.table.labels[row]
    return {
        "id": str(pool.table.ids[row]),
        "path": pool.table.paths[row],
        "label": str(data.classes[label]) if label >= 0 else "",
        "title": titles_of(pool.table)[row],
    }


def _finite(bonus: float) -> float:
    return bonus if np.isfinite(bonus) else 1e9


def _row_of(choice: Choice) -> int:
    return int(np.argmin([abs(_finite(b) - _finite(choice.cut.bonus)) for b in choice.bonuses]))


def _bonus(bonus: float, short: bool = False) -> str:
    if not np.isfinite(bonus):
        return "always" if short else "best match always"
    if bonus == 0:
        return "never" if short else "threshold alone"
    return f"-{bonus:.2g}" if short else f"best match down to {bonus:.2g} below"


def _grid(curves: Sequence[Curve]) -> np.ndarray:
    """Thresholds between those that matter in the plain curve."""
    return np.linspace(float(curves[0].x[0]), float(curves[0].x[-1]), _POINTS)


def _at(curve: Curve, x: np.ndarray) -> np.ndarray:
    """The curve at thresholds: between two of its points that of the higher one."""
    place = np.searchsorted(curve.x, x, side="left").clip(0, len(curve.x) - 1)
    return np.asarray(curve.y[place])
