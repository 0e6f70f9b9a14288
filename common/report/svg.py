"""A drawing that is SVG text on a page and a picture in a notebook."""

from __future__ import annotations

import io
from typing import Any

from common.lazy import Lazy

backend_agg = Lazy("matplotlib.backends.backend_agg")

DPI = 110  # of pictures: 570 pixels for the width of a column


class Svg(str):
    """The text of an `<svg>` element; a notebook shows its figure as a PNG on white.

    A notebook's viewers, GitHub's among them, do not agree on what of an SVG they show.
    """

    figure: Any

    def __new__(cls, text: str, figure: Any) -> Svg:
        """The text, and the figure that it was made of."""
        made = super().__new__(cls, text)
        made.figure = figure
        return made

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # copies and pickles are the text

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        backend_agg.FigureCanvasAgg(self.figure)
        # Equal input, equal bytes: the version of matplotlib stays out of the file.
        self.figure.savefig(buffer, dpi=DPI, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"drawing, {len(self):,} characters of SVG")  # not all of them
