"""Plots of what is a match: scores of matches and others, F1 over two thresholds, group sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.report.canvas import (
    COLORS,
    SERIES,
    as_svg,
    decades_across,
    label_axes,
    mark_threshold,
    panels,
    plain_text,
    styled,
)

_LEVELS = 12  # colours of the surface: as rectangles of one colour it stays small
_CELLS = 60  # across


_KINDS = {"match": ("matches", "right"), "other": ("others", "unknown")}


@styled
def apart(counted: Mapping[str, Any]) -> str:
    """Histograms of scores of matches, of others and of the nearest others, as shares; SVG.

    `counted` is what `report.separation.counted` gives.
    """
    edges = np.asarray(counted["edges"], float)
    figure, (axes,) = panels()
    for kind, amounts in counted["counts"].items():
        total = int(np.sum(amounts))
        name, color = _KINDS.get(kind, (kind, "wrong"))
        axes.stairs(
            np.asarray(amounts) / max(total, 1), edges, color=COLORS[color][0], linewidth=1.4,
            fill=kind in _KINDS, alpha=0.55 if kind in _KINDS else None,
            label=plain_text(f"{name} ({total:,})"),
        )  # fmt: skip
    mark_threshold(axes, counted.get("threshold"), edges, counted.get("middle"))
    label_axes(axes, counted["x_label"], "share of the kind", legend=True, columns=2)
    if counted.get("middle"):
        decades_across(axes, edges, counted["middle"])
    return as_svg(figure, f"{counted['x_label']} of matches and others")


@styled
def surface(
    x: Sequence[float],
    rows: Sequence[str],
    values: np.ndarray,
    *,
    x_label: str,
    y_label: str,
    chosen: tuple[float, int] | None = None,
) -> str:
    """A measure by a number and a named choice as a map of colours, its best value marked; SVG.

    Args:
        x: `(T,)` ascending.
        rows: names of the R choices, from the bottom.
        values: `(R, T)`.
        x_label: of the number.
        y_label: of the choice.
        chosen: x and row of what is in use.
    """
    across = np.unique(np.linspace(0, len(x) - 1, min(_CELLS, len(x))).round().astype(int))
    top, right = divmod(int(np.argmax(values)), len(x))
    figure, (axes,) = panels(height=3.6)
    at, shown = np.asarray(x, float)[across], np.asarray(values, float)[:, across]
    edges = np.concatenate([[at[0]], (at[1:] + at[:-1]) / 2, [at[-1]]]) if len(at) > 1 else at
    drawn = axes.pcolormesh(
        edges if len(at) > 1 else [at[0] - 0.5, at[0] + 0.5],
        np.arange(len(rows) + 1) - 0.5,
        np.floor((shown - shown.min()) / max(float(np.ptp(shown)), 1e-9) * _LEVELS),
        cmap="Blues",
    )
    drawn.set_edgecolor("face")
    axes.plot(x[right], top, "o", color=COLORS["wrong"][0], markersize=6)
    axes.annotate(
        f"{values[top, right]:.3f}", (x[right], top), (7, 0), textcoords="offset points",
        va="center", color=COLORS["wrong"][0], fontweight="bold",
    )  # fmt: skip
    if chosen is not None:
        axes.plot(*chosen, "x", color=COLORS["wrong"][0], markersize=8)
    axes.set_yticks(range(len(rows)), [plain_text(name) for name in rows])
    axes.grid(visible=False)
    label_axes(axes, x_label, y_label)
    return as_svg(figure, f"{y_label} and {x_label}")


@styled
def shares(series: Mapping[str, Sequence[float]], *, x_label: str, y_label: str) -> str:
    """Shares of 1, 2, 3, ... side by side; SVG. `series` holds name -> `(S,)` from 1 on."""
    figure, (axes,) = panels()
    width = 0.8 / max(len(series), 1)
    for place, (name, values) in enumerate(series.items()):
        at = np.arange(1, len(values) + 1) + (place - (len(series) - 1) / 2) * width
        color = COLORS[SERIES[place % len(SERIES)]][0]
        axes.bar(at, values, width=0.92 * width, color=color, label=plain_text(name))
    axes.grid(axis="x", visible=False)
    label_axes(axes, x_label, y_label, legend=len(series) > 1)
    return as_svg(figure, f"{y_label} by {x_label}")
