"""What all plots of a report share: one colour scheme, axes with names, SVG that follows its page.

Colours come out as CSS variables with a fallback (`var(--right, #...)`), so one drawing serves a
light page, a dark page and a notebook. Text stays text.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from common.lazy import Lazy
from common.report.svg import Svg

matplotlib, figures = Lazy("matplotlib"), Lazy("matplotlib.figure")
backend_svg = Lazy("matplotlib.backends.backend_svg")

# name: (light, dark). Right and wrong also differ in lightness, for readers who do not see red.
COLORS = {
    "ink": ("#1c2127", "#e8eaed"),
    "muted": ("#626b75", "#9aa4af"),
    "grid": ("#e3e6ea", "#2d343c"),
    "right": ("#12906a", "#35c796"),
    "wrong": ("#d1412d", "#ff7a66"),
    "unknown": ("#8a939d", "#7d8792"),
    "first": ("#2b63d9", "#7ba5ff"),
    "second": ("#c77700", "#f2b04a"),
    "third": ("#7a4fc4", "#b99bf5"),
    "fourth": ("#0d8a9e", "#4cc5d8"),
}
# Of the map's most frequent classes; as far apart as eight can be, in either theme.
CLASSES = {
    f"class{place}": pair
    for place, pair in enumerate(
        (
            COLORS["first"],
            COLORS["second"],
            COLORS["third"],
            COLORS["fourth"],
            ("#b8327e", "#f287c2"),
            ("#6b7d0f", "#b3c94e"),
            ("#85552e", "#cc9b6d"),
            ("#3d4a9e", "#98a4f0"),
        )
    )
}
SERIES = ("first", "second", "third", "fourth", "right", "wrong")
_STYLE = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLORS["muted"][0],
    "axes.labelcolor": COLORS["muted"][0],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLORS["grid"][0],
    "grid.linewidth": 0.8,
    "xtick.color": COLORS["muted"][0],
    "ytick.color": COLORS["muted"][0],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}

_LETTERS = 60  # of a legend, side by side in the width of a column

P = ParamSpec("P")


def styled(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw under this module's style, whatever the caller's matplotlib settings are."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> str:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return inside


def panels(
    rows: int = 1, height: float = 2.8, ratios: tuple[float, ...] = (1,)
) -> tuple[Any, list[Any]]:
    """A figure of the width of a column, and its axes from top to bottom."""
    figure = figures.Figure(figsize=(5.2, height), layout="constrained")
    grid = figure.subplots(rows, 1, height_ratios=ratios, squeeze=False)
    return figure, [grid[row, 0] for row in range(rows)]


def label_axes(
    axes: Any, x_label: str, y_label: str, legend: bool = False, columns: int = 3
) -> None:
    """Name the axes and put the legend above them, in so many columns or as many as fit."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.tick_params(which="both", length=0)
    axes.tick_params(axis="x", pad=6)
    if legend:
        longest = max((len(name) for name in axes.get_legend_handles_labels()[1]), default=0)
        fit = max(1, _LETTERS // (longest + 4))  # a legend wider than the figure leaves no axes
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(columns, fit), borderaxespad=0.2,
            handlelength=1.0, columnspacing=1.2, labelcolor=COLORS["ink"][0],
        )  # fmt: skip


def rounded(value: float, span: float) -> str:
    """A threshold with three figures, and 0 where on an axis of this span it cannot be told from 0.

    Thresholds lie between two scores: of 0 and the next one that is 1e-8.
    """
    return "0" if abs(value) < 1e-6 * span else f"{value:.3g}"


def mark_threshold(
    axes: Any, threshold: float | None, edges: np.ndarray, middle: float | None = None
) -> None:
    """A line at the threshold, named, where it lies between the edges; `middle` as of the axis."""
    if threshold is None or not edges[0] <= threshold <= edges[-1]:
        return
    axes.axvline(threshold, color=COLORS["ink"][0], linestyle=(0, (4, 3)), linewidth=1.2)
    left = threshold > edges[len(edges) // 2]
    axes.annotate(
        f"threshold {rounded(threshold, middle or edges[-1] - edges[0])}",
        (threshold, 0.99), (-5 if left else 5, 0),
        textcoords="offset points", xycoords=("data", "axes fraction"), va="top",
        ha="right" if left else "left", color=COLORS["ink"][0],
    )  # fmt: skip
    axes.margins(y=0.14)


def decades_across(axes: Any, edges: np.ndarray, middle: float) -> None:
    """A horizontal axis that is linear up to `middle` and logarithmic behind it."""
    axes.set_xscale("asinh", linear_width=middle)
    decades = 10.0 ** np.arange(np.ceil(np.log10(middle)), np.log10(edges[-1]))
    axes.set_xticks([0.0, *decades], [f"{tick:g}" for tick in (0.0, *decades)])
    axes.minorticks_off()
    axes.set_xlim(edges[0], edges[-1])


def plain_text(text: str) -> str:
    """`text` as matplotlib shows it unchanged: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def short(value: float, _: int) -> str:
    """A number beside a tick: thousands as k."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def as_svg(figure: Any, title: str) -> str:
    """The drawing as an `<svg>` element that fits its column and follows the page's colours."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):  # equal input, equal bytes
        backend_svg.FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    inner = text[text.index(">", text.index("<svg")) + 1 :]
    # Of several drawings on one page, none may carry ids, styles or fonts that reach the others.
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inner, flags=re.S)
    inner = re.sub(r'<g id="[^"]*"', "<g", inner)
    inner = re.sub(r" ?font-family: [^;\"]*;?", "", inner)
    for name, (light, _) in COLORS.items():
        inner = inner.replace(light, f"var(--{name}, {light})")
    size = re.search(r'viewBox="[^"]*"', text)
    label = re.sub(r"[^\w ,.:-]", "", title)
    head = f'<svg {size.group() if size else ""} role="img" aria-label="{label}" '
    head += 'stroke-linejoin="round" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Svg(head + re.sub(r"\s+", " ", inner).strip(), figure)
