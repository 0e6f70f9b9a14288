"""Plots of several experiments: curves on top of each other, scores of all runs, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common.lazy import Lazy
from common.report.bootstrap import Difference
from common.report.canvas import (
    COLORS,
    SERIES,
    as_svg,
    label_axes,
    panels,
    plain_text,
    styled,
)

ticker = Lazy("matplotlib.ticker")

COLORED = len(SERIES)  # experiments with a colour of their own
_LONGEST = 24  # characters of a name beside the axis
Points = tuple[Sequence[float], Sequence[float]]


@styled
def overlay(
    curves: Mapping[str, Sequence[Points]],
    *,
    x_label: str = "step",
    y_label: str = "",
    log: bool = False,
) -> str:
    """Curves of experiments, thin ones of their runs and a thick one of the mean; SVG.

    Args:
        curves: experiment -> (x, y) of each run; the first six have colours, the rest is grey.
        x_label: what the horizontal axis counts.
        y_label: what the vertical axis measures.
        log: logarithmic vertical axis.
    """
    figure, (axes,) = panels(height=3.1)
    grey = max(len(curves) - COLORED, 0)
    for place, (name, runs) in enumerate(curves.items()):
        own = place < COLORED
        color = COLORS[SERIES[place]][0] if own else COLORS["unknown"][0]
        label = plain_text(_cut(name)) if own else f"{grey} more"
        width, front = (1.9, 3) if own else (0.9, 1)
        mean = _mean(runs)
        if mean is None or len(runs) == 1:  # of different steps: each run is as thick
            for run, (x, y) in enumerate(runs):
                shown = label if run == 0 and (own or place == COLORED) else None
                axes.plot(x, y, color=color, linewidth=width, label=shown, zorder=front)
            continue
        for x, y in runs:
            axes.plot(x, y, color=color, linewidth=0.7, alpha=0.45, zorder=2)
        shown = label if own or place == COLORED else None
        axes.plot(*mean, color=color, linewidth=width, label=shown, zorder=front)
    if log:
        axes.set_yscale("log")
    label_axes(axes, x_label, y_label, legend=len(curves) > 1, columns=2)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    return as_svg(figure, f"{y_label} over {x_label} of {len(curves)} experiments")


@styled
def dots(scores: Mapping[str, Sequence[float]], *, x_label: str) -> str:
    """A line for each experiment: its runs as dots, their mean as a bar; SVG."""
    figure, (axes,) = panels(height=0.8 + 0.27 * max(len(scores), 1))
    for place, values in enumerate(scores.values()):
        color = COLORS[SERIES[place] if place < COLORED else "unknown"][0]
        axes.plot(values, [place] * len(values), "o", color=color, markersize=5, alpha=0.75)
        axes.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2.2)
        axes.annotate(
            f"{np.mean(values):.3f}", (max(values), place), (9, 0), textcoords="offset points",
            va="center", color=COLORS["ink"][0], fontsize=10,
        )  # fmt: skip
    axes.margins(x=0.16)
    _names(axes, [_cut(name) for name in scores])
    label_axes(axes, x_label, "")
    return as_svg(figure, f"{x_label} of {len(scores)} experiments")


@styled
def forest(differences: Sequence[Difference], *, x_label: str, sure: float) -> str:
    """Differences with their intervals around 0, the sure ones in colour; SVG."""
    figure, (axes,) = panels(height=0.8 + 0.27 * max(len(differences), 1))
    axes.axvline(0, color=COLORS["ink"][0], linewidth=1.0, linestyle=(0, (4, 3)))
    for place, one in enumerate(differences):
        kind = "unknown" if one.holm >= sure else "right" if one.value > 0 else "wrong"
        color = COLORS[kind][0]
        axes.plot([one.low, one.high], [place, place], color=color, linewidth=2.0)
        axes.plot(one.value, place, "o", color=color, markersize=6)
    _names(axes, [f"{_cut(one.second, 17)} - {_cut(one.first, 17)}" for one in differences])
    label_axes(axes, x_label, "")
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:+.3g}"))
    return as_svg(figure, f"Differences in {x_label}")


def _names(axes: object, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [plain_text(name) for name in names])  # type: ignore[attr-defined]
    axes.set_ylim(len(names) - 0.4, -0.6)  # type: ignore[attr-defined]
    axes.grid(axis="y", visible=False)  # type: ignore[attr-defined]


def _mean(runs: Sequence[Points]) -> Points | None:
    """The mean curve, where all runs have the same steps."""
    if not runs or any(list(x) != list(runs[0][0]) for x, _ in runs):
        return None
    return runs[0][0], np.mean([y for _, y in runs], axis=0).tolist()


def _cut(name: str, most: int = _LONGEST) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
