"""Plots of a report as SVG text: pure functions of arrays. What they share is `canvas`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.lazy import Lazy
from common.report.canvas import (
    COLORS,
    SERIES,
    as_svg,
    decades_across,
    label_axes,
    mark_threshold,
    panels,
    plain_text,
    rounded,
    short,
    styled,
)
from common.report.files import KINDS
from common.report.separation import bins

ticker = Lazy("matplotlib.ticker")

_KIND_COLOR = {"right": "right", "wrong": "wrong", "none": "unknown"}


@styled
def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str = "step",
    y_label: str = "",
    log: bool = False,
    best: bool = False,
    chosen: float | None = None,
    middle: float | None = None,
) -> str:
    """Lines over a common axis; SVG.

    Args:
        series: name -> (x, y); values that are not finite leave a gap.
        x_label: what the horizontal axis counts.
        y_label: what the vertical axis measures.
        log: logarithmic vertical axis.
        best: mark the highest point of each line with its value.
        chosen: an x that is marked with a vertical line (a threshold that was chosen).
        middle: the horizontal axis is linear up to here and logarithmic behind it.
    """
    figure, (axes,) = panels()
    for place, (name, (x, y)) in enumerate(series.items()):
        across, up = np.asarray(x, float), np.asarray(y, float)
        rows = extremes(up)
        across, up = across[rows], up[rows]
        color = COLORS[SERIES[place % len(SERIES)]][0]
        few = np.isfinite(up).sum() <= 40
        axes.plot(
            across, up, color=color, label=plain_text(name), marker="o" if few else "", markersize=3
        )
        if best and np.isfinite(up).any():
            top = int(np.nanargmax(up))
            axes.plot(across[top], up[top], "o", color=color, markersize=6)
            axes.annotate(
                f"{up[top]:.3f}", (across[top], up[top]), (0, 6), textcoords="offset points",
                ha="center", color=color, fontweight="bold",
            )  # fmt: skip
    if log:
        axes.set_yscale("log")
    if chosen is not None:
        axes.axvline(chosen, color=COLORS["ink"][0], linestyle=(0, (4, 3)), linewidth=1.2)
        axes.annotate(
            f"chosen {rounded(chosen, middle or np.ptp(axes.get_xlim()))}", (chosen, 0.99), (5, 0),
            textcoords="offset points", xycoords=("data", "axes fraction"), va="top",
            color=COLORS["ink"][0],
        )  # fmt: skip
    if best or chosen is not None:
        axes.margins(y=0.14)
    label_axes(axes, x_label, y_label, legend=len(series) > 1)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(short))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=x_label in ("step", "epoch")))
    if middle is not None:
        every = np.concatenate([np.asarray(x, float) for x, _ in series.values()])
        decades_across(axes, np.array([every.min(), every.max()]), middle)
    return as_svg(figure, f"{y_label} over {x_label}")


def extremes(values: np.ndarray, most: int = 1000) -> np.ndarray:
    """Rows that draw a long line as it looks: the ends, the lowest and highest of each stretch."""
    if len(values) <= most:
        return np.arange(len(values))
    cuts = np.linspace(0, len(values), most // 2).astype(int)
    kept = [0, len(values) - 1]
    for start, end in itertools.pairwise(cuts.tolist()):
        part = values[start:end]
        if np.isfinite(part).any():
            kept += [start + int(np.nanargmin(part)), start + int(np.nanargmax(part))]
    return np.unique(kept)


def gap_curve(
    score: np.ndarray, kind: np.ndarray, *, positives: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds (descending) with precision and GAP when only scores at or above them are kept.

    GAP sums precision x right over the predictions by descending score and divides by the queries
    that show something known (Google Landmark Recognition 2020, evaluation).

    Args:
        score: `(Q,)` confidence of each query's prediction.
        kind: `(Q,)` one of `right`, `wrong`, `none` (it shows nothing known) each.
        positives: queries that show something known, those without a prediction included; unset:
            the right and wrong ones.
    """
    order = np.argsort(-score, kind="stable")
    right = kind[order] == "right"
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    total = positives if positives is not None else int((kind != "none").sum())
    gap = np.cumsum(precision * right) / max(total, 1)
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))  # ties are kept or cut together
    return score[order][last], precision[last], gap[last]


@styled
def score_histogram(
    score: Sequence[float],
    kind: Sequence[str],
    *,
    none: str = "none",
    gap: bool = True,
    positives: int | None = None,
    threshold: float | None = None,
) -> str:
    """Scores of right and wrong predictions and of queries of nothing known; SVG.

    Args:
        score: `(Q,)`, see `gap_curve`; what is not finite (nothing was found) has no place.
        kind: `(Q,)`.
        none: what the kind `none` is called.
        gap: below them precision and GAP by threshold.
        positives: for GAP.
        threshold: a score that is marked.
    """
    scores, kinds = np.asarray(score, float), np.asarray(kind, dtype=np.str_)
    real = np.isfinite(scores)
    scores, kinds = scores[real], kinds[real]
    figure, drawn = panels(2, height=4.3, ratios=(1.25, 1)) if gap else panels()
    upper = drawn[0]
    edges, middle = bins(scores, scores, 40)
    present = [name for name in KINDS if (kinds == name).any()]
    upper.hist(
        [scores[kinds == name] for name in present], bins=edges, stacked=True, rwidth=0.92,
        color=[COLORS[_KIND_COLOR[name]][0] for name in present],
        label=[
            plain_text(f"{none if name == 'none' else name} ({(kinds == name).sum():,})")
            for name in present
        ],
    )  # fmt: skip
    mark_threshold(upper, threshold, edges, middle)
    if gap:
        _gap_panel(drawn[1], scores, kinds, positives)
        drawn[1].sharex(upper)
        upper.tick_params(labelbottom=False)
    if middle is not None:
        decades_across(drawn[-1], edges, middle)
    label_axes(upper, "" if gap else "score of the prediction", "queries", legend=True)
    return as_svg(figure, "Scores by outcome" + (", precision and GAP by threshold" if gap else ""))


def _gap_panel(axes: Any, scores: np.ndarray, kinds: np.ndarray, positives: int | None) -> None:
    threshold, precision, gap = gap_curve(scores, kinds, positives=positives)
    few = np.unique(np.linspace(0, len(threshold) - 1, 300).astype(int))
    lines = (("precision of what is kept", precision, "second"), ("GAP", gap, "first"))
    for name, line, color in lines:
        axes.plot(threshold[few], line[few], color=COLORS[color][0], label=name)
    axes.set_ylim(0, 1.04)
    label_axes(axes, "threshold: predictions with a lower score are left out", "", legend=True)


@styled
def histogram(values: Sequence[float], *, x_label: str, y_label: str = "queries") -> str:
    """How values in [0, 1] are distributed, with their mean; SVG. `values` is `(Q,)`."""
    array = np.asarray(values, float)
    figure, (axes,) = panels()
    axes.hist(array, bins=np.linspace(0, 1, 21), color=COLORS["first"][0], rwidth=0.92)
    mean = float(array.mean())
    axes.axvline(mean, color=COLORS["ink"][0], linestyle=(0, (4, 3)), linewidth=1.2)
    axes.annotate(
        f"mean {mean:.3f}", (mean, 0.96), (-5 if mean > 0.6 else 5, 0), textcoords="offset points",
        xycoords=("data", "axes fraction"), ha="right" if mean > 0.6 else "left", va="top",
        color=COLORS["ink"][0], fontweight="bold",
    )  # fmt: skip
    label_axes(axes, x_label, y_label)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    return as_svg(figure, f"Distribution of {x_label}")


@styled
def by_size(values: Sequence[float], sizes: Sequence[int], *, x_label: str, y_label: str) -> str:
    """Mean value of the queries by a count (1, 2-3, 4-7, ... images), with its standard error; SVG.

    `values` and `sizes` are `(Q,)`; queries with size 0 form a group of their own.
    """
    array, counts = np.asarray(values, float), np.asarray(sizes, dtype=np.int64)
    group = np.where(counts > 0, np.floor(np.log2(np.maximum(counts, 1))) + 1, 0).astype(int)
    used = np.unique(group)
    figure, (axes,) = panels()
    for place, number in enumerate(used):
        chosen = array[group == number]
        mean = float(chosen.mean())
        error = float(chosen.std(ddof=1) / np.sqrt(len(chosen))) if len(chosen) > 1 else 0.0
        axes.bar(place, mean, color=COLORS["first"][0], width=0.72)
        axes.errorbar(place, mean, error, color=COLORS["ink"][0], linewidth=1.1, capsize=0)
        axes.annotate(
            f"{mean:.2f}", (place, mean + error), (0, 3), textcoords="offset points", ha="center",
            color=COLORS["ink"][0],
        )  # fmt: skip
    amounts = [int((group == number).sum()) for number in used]
    names = [f"{_span(number)}\n({n:,})" for number, n in zip(used, amounts, strict=True)]
    axes.set_xticks(range(len(used)), names, fontsize=11 if len(used) < 8 else 9)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, None)
    axes.margins(y=0.12)
    label_axes(axes, x_label, y_label)
    return as_svg(figure, f"{y_label} by {x_label}")


def _span(number: int) -> str:
    low, high = 2 ** max(number - 1, 0), 2**number - 1
    return "0" if number == 0 else str(low) if low == high else f"{low}-{high}"
