"""The report of matches: thresholds by rule, F1 by size of group, worst groups, who finds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.clock import Clock
from common.notes import Notes
from common.pipeline import publish
from common.pipeline.ranking import Question
from common.report import plots, plots_matching, separation
from common.report.files import Analysis
from common.report.page import Section
from common.rerank.curves import Curve
from common.rerank.transfer import Choice, Cut, MatchConfig, kept
from common.track import Run
from common.types import Neighbors

from .data import Shopee, titles_of
from .matching import Pool

_POINTS = 200  # of a drawn curve
EACH = 8  # listings of each group in the gallery
PICTURES, TEXTS = ("image", "joint"), ("text", "words", "pieces")  # the first of each that is there
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
    chosen = int(np.argmin([abs(_finite(b) - _finite(choice.cut.bonus)) for b in choice.bonuses]))
    places = sorted({0, chosen, len(choice.bonuses) - 1})
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


def found_alone(pool: Pool, cuts: Mapping[str, Cut], notes: Notes, run: Run, data: Shopee) -> None:
    """True pairs that pictures find and titles miss, and the other way round, as tables."""
    truth = pool.truth
    assert truth is not None
    picture = next((name for name in PICTURES if name in cuts), None)
    text = next((name for name in TEXTS if name in cuts), None)
    if picture is None or text is None:
        return
    a, b = _true_pairs(truth.labels, truth.asked)
    found = {name: _passes(pool, name, cuts[name], a, b) for name in (picture, text)}
    one, other = found[picture], found[text]
    total = max(len(a), 1)
    notes.numbers |= {
        f"true pairs that {picture} and {text} find": float((one & other).sum() / total),
        f"true pairs that only {picture} finds": float((one & ~other).sum() / total),
        f"true pairs that only {text} finds": float((~one & other).sum() / total),
        "true pairs that neither finds": float((~one & ~other).sum() / total),
    }
    for finds, misses in ((picture, text), (text, picture)):
        rows = np.flatnonzero(found[finds] & ~found[misses])
        if len(rows):
            shown = _pair_rows(pool, a[rows], b[rows], finds, misses, data)
            run.table(f"{finds}_finds_what_{misses}_misses", shown, top=1)


def _true_pairs(labels: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of every pair of asked listings of one group, the smaller row first."""
    rows = np.flatnonzero(asked)
    order = rows[np.argsort(labels[rows], kind="stable")]
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    ends = [np.triu_indices(len(part), 1) for part in np.split(order, cuts)]
    parts = np.split(order, cuts)
    a = np.concatenate([part[i] for part, (i, _) in zip(parts, ends, strict=True)])
    b = np.concatenate([part[j] for part, (_, j) in zip(parts, ends, strict=True)])
    return np.minimum(a, b), np.maximum(a, b)


def _passes(pool: Pool, name: str, cut: Cut, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which pairs a source finds from either end."""
    listed = kept(pool.sources.near(name, 50), cut, 50).index.numpy()
    return np.asarray((listed[a] == b[:, None]).any(1) | (listed[b] == a[:, None]).any(1))


def _pair_rows(
    pool: Pool, a: np.ndarray, b: np.ndarray, finds: str, misses: str, data: Shopee
) -> list[dict[str, Any]]:
    one = _similarities(pool, finds, a, b)
    other = _similarities(pool, misses, a, b)
    return [
        {
            "query": _entry(pool, int(i), data),
            "results": [_entry(pool, int(j), data) | {"score": float(s), "right": True}],
            "note": f"{finds} {s:.2f}, {misses} {t:.2f}",
        }
        for i, j, s, t in zip(a, b, one, other, strict=True)
    ]


def _similarities(pool: Pool, name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`(P,)` similarity of pairs in one source."""
    size = len(pool.table)
    index = torch.full((size, int(np.bincount(a, minlength=1).max(initial=0))), -1)
    order = np.argsort(a, kind="stable")
    column = np.arange(len(a)) - np.searchsorted(a[order], a[order])
    place = torch.from_numpy(a[order]), torch.from_numpy(column)
    index[place] = torch.from_numpy(b[order])
    found = np.empty(len(a), np.float32)
    found[order] = pool.sources.similarity(name, index)[place].numpy()
    return found


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
                entry = _entry(pool, other, data) | {"score": score}
                entry["right"] = bool(truth.labels[other] == truth.labels[row])
                if other not in taken:
                    entry["title"] = f"(not answered) {entry['title']}"
                results.append(entry)
        count = int((answer.index[row] >= 0).sum()) + 1
        apart = (found.score[row][found.index[row] >= 0] - threshold).tolist()
        rows.append(
            {
                "query": _entry(pool, row, data),
                "results": results,
                "ap": float(values[place]),
                "measure": "F1",
                "note": f"{count} answered, {totals[place]} right",
                "margin": min(apart, key=abs, default=None),
                "solved": bool(values[place] == 1),
            }
        )
    return rows


def _entry(pool: Pool, row: int, data: Shopee) -> dict[str, Any]:
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
