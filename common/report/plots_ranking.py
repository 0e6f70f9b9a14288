"""Plots of what ranking steps found out: reliability diagrams, importances of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from common.report.canvas import COLORS, SERIES, as_svg, label_axes, panels, plain_text, styled

_LONGEST = 26  # characters of a feature's name


@styled
def reliability(diagrams: Mapping[str, Mapping[str, Any]]) -> str:
    """Share of right pairs by predicted probability, below it how many pairs; SVG.

    `diagrams` holds `{confidence, accuracy, count, ece}` by matcher, as `Notes.calibration`.
    """
    figure, (upper, lower) = panels(2, height=4.3, ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=COLORS["muted"][0], linestyle=(0, (4, 3)), linewidth=1.1)
    width = 0.09 / max(len(diagrams), 1)
    for place, (name, diagram) in enumerate(diagrams.items()):
        color = COLORS[SERIES[place % len(SERIES)]][0]
        across, up = diagram["confidence"], diagram["accuracy"]
        upper.plot(
            across, up, color=color, linewidth=1.4,
            label=plain_text(f"{name}  ECE {diagram['ece']:.3f}"),
        )  # fmt: skip
        # Few pairs say little: their point is small.
        share = np.asarray(diagram["count"]) / max(np.sum(diagram["count"]), 1)
        upper.scatter(across, up, s=12 + 130 * share, color=color, zorder=3)
        middle = (np.minimum(np.floor(np.asarray(across) * 10), 9) + 0.5) / 10
        shift = (place - (len(diagrams) - 1) / 2) * width
        lower.bar(middle + shift, diagram["count"], width=0.9 * width, color=color)
    for axes in (upper, lower):
        axes.set_xlim(-0.02, 1.02)
    upper.set_ylim(-0.03, 1.05)
    upper.tick_params(labelbottom=False)
    label_axes(upper, "", "share that is right", legend=True, columns=2)
    label_axes(lower, "predicted probability", "pairs")
    return as_svg(figure, f"Reliability of {', '.join(diagrams)}")


@styled
def bars(values: Mapping[str, float], *, x_label: str, most: int = 15) -> str:
    """The `most` largest values as horizontal bars, the largest on top; SVG."""
    chosen = sorted(values.items(), key=lambda item: (-item[1], item[0]))[:most]
    figure, (axes,) = panels(height=0.75 + 0.25 * max(len(chosen), 1))
    places = np.arange(len(chosen))
    sizes = [value for _, value in chosen]
    axes.barh(places, sizes, height=0.72, color=COLORS["first"][0])
    names = [plain_text(_short(name)) for name, _ in chosen]
    axes.set_yticks(places, names, color=COLORS["ink"][0])
    axes.invert_yaxis()
    for place, value in zip(places, sizes, strict=True):
        axes.annotate(
            f"{value:.2f}" if value < 10 else f"{value:,.0f}", (value, place), (4, 0),
            textcoords="offset points", va="center", color=COLORS["ink"][0], fontsize=10,
        )  # fmt: skip
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12, y=0.02)
    axes.set_xlim(0, None)
    label_axes(axes, x_label, "")
    return as_svg(figure, f"{x_label} of {', '.join(name for name, _ in chosen)}")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
