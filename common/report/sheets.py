"""Thumbnails, and contact sheets of queries with their results; rows as in `gallery`.

    python -m common.report.sheets RUN/tables/retrieval.json SHEET.jpg [2]

draws so many random queries of a run's stored table, and below them so many of the worst.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from PIL import Image, ImageDraw, ImageFont

from common.data.images import read_image
from common.lazy import Lazy
from common.paths import atomic
from common.report.canvas import COLORS

matplotlib = Lazy("matplotlib")

Row = dict[str, Any]
SIDE = 208  # long side of a stored thumbnail in pixels
Thumbs = dict[str, str | None]  # key -> base64 of a JPEG, None where it cannot be read


def thumbnail(
    path: str | bytes | Path, *, side: int = SIDE, box: Sequence[int] | None = None
) -> bytes | None:
    """A JPEG whose long side is at most `side` pixels; None when the picture cannot be read."""
    corners = None if box is None else (int(box[0]), int(box[1]), int(box[2]), int(box[3]))
    try:
        image = read_image(path, size=side, box=corners)
    except (ValueError, OSError):
        return None
    scale = min(1.0, side / max(image.shape[:2]))
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def contact_sheet(
    rows: Sequence[Row], path: str | Path, *, top: int = 5, side: int = 176, title: str = ""
) -> Path:
    """Path of a PNG: one line per row, query first, results framed by right, wrong, unknown."""
    with atomic(path) as temporary:
        sheet(rows, top=top, side=side, title=title).save(temporary, "PNG")
    return Path(path)


def sheet(
    rows: Sequence[Row],
    thumbs: Thumbs | None = None,
    *,
    top: int = 5,
    side: int = 176,
    title: str = "",
) -> Image.Image:
    """The picture of `contact_sheet`; `thumbs` are those of a table from `gallery.collect`."""
    gap, head, foot, above = 10, 24, 36, 34 if title else 8
    columns = 1 + max((min(len(row.get("results", ())), top) for row in rows), default=0)
    size = (columns * (side + gap) + gap + 8, above + len(rows) * (head + side + foot + gap))
    page = Image.new("RGB", size, "#ffffff")
    draw = ImageDraw.Draw(page)
    if title:
        _write(draw, (gap, 9), title, size[0] - 2 * gap, "ink", 16)
    for place, row in enumerate(rows):
        y = above + place * (head + side + foot + gap)
        _write(draw, (gap, y + 4), _heading(row), size[0] - 2 * gap, "ink")
        for column, entry in enumerate([row["query"], *row.get("results", ())[:top]]):
            # The query stands a little apart from its results.
            x = gap + column * (side + gap) + (8 if column else 0)
            color = verdict(entry) if column else "muted"
            page.paste(tile(entry, thumbs, side=side, color=color), (x, y + head))
            first = _caption(entry) if column else "query"
            _write(draw, (x, y + head + side + 3), first, side, color)
            _write(draw, (x, y + head + side + 19), str(entry.get("label", "")), side, "muted")
    return page


def album(groups: Mapping[str, Sequence[Row]], *, side: int = 110, across: int = 8) -> Image.Image:
    """Pictures in lines under their group's heading, each with its `title` below if it has one.

    Args:
        groups: heading -> entries `{path, box, title}`, the last two optional.
        side: of a picture in pixels.
        across: pictures of a line; further ones are left out.
    """
    gap, head = 8, 22
    foot = 18 if any(entry.get("title") for row in groups.values() for entry in row) else 0
    columns = max((min(len(row), across) for row in groups.values()), default=1)
    tall = head + side + foot + gap
    page = Image.new("RGB", (columns * (side + gap) + gap, len(groups) * tall + gap), "#ffffff")
    draw = ImageDraw.Draw(page)
    for line, (heading, row) in enumerate(groups.items()):
        y = gap + line * tall
        _write(draw, (gap, y), heading, page.width - 2 * gap, "ink", 14)
        for column, entry in enumerate(row[:across]):
            x = gap + column * (side + gap)
            page.paste(tile(entry, side=side, color="grid"), (x, y + head))
            _write(draw, (x, y + head + side + 2), str(entry.get("title", "")), side, "muted", 11)
    return page


def tile(
    entry: Row, thumbs: Thumbs | None = None, *, side: int = 176, color: str | None = None
) -> Image.Image:
    """A query or result as a square with a frame; the frame says right, wrong or unknown."""
    frame = COLORS[color or verdict(entry)][0]
    square = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(square)
    draw.rectangle((0, 0, side - 1, side - 1), "#eef0f3", frame, 4)
    picture = _picture(entry, thumbs)
    if picture is None:
        if entry.get("path") is None and entry.get("thumb") is None:
            return square  # nobody's picture, as that of an unknown identity
        _write(draw, (14, side // 2 - 8), "not readable", side - 28, "muted")
        return square
    picture.thumbnail((side - 12, side - 12))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def verdict(entry: Row) -> str:
    """`right`, `wrong` or `unknown`: the name of the frame's colour."""
    right = entry.get("right")
    return "unknown" if right is None else "right" if right else "wrong"


def number(value: Any) -> str:
    """A number for people: three decimals below ten, thousands apart; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 10 and float(value).is_integer()):
        return f"{int(value):,}"
    if value and abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def _heading(row: Row) -> str:
    parts = [str(row["query"].get("id", ""))]
    name = row.get("measure", "AP")
    parts += [f"{name} {number(row['ap'])}"] if row.get("ap") is not None else []
    return " · ".join([*parts, str(row["note"])] if row.get("note") else parts)


def _caption(entry: Row) -> str:
    mark = {"right": "✓", "wrong": "✗", "unknown": "?"}[verdict(entry)]
    return f"{mark} {number(entry.get('score'))}"


def _picture(entry: Row, thumbs: Thumbs | None) -> Image.Image | None:
    if thumbs is not None:
        stored = thumbs.get(str(entry.get("thumb")))
        data = base64.b64decode(stored) if stored else None
    else:
        path = entry.get("path")
        data = None if path is None else thumbnail(path, box=entry.get("box"))
    return None if data is None else Image.open(io.BytesIO(data)).convert("RGB")


@functools.cache
def _font(size: int = 13) -> Any:
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _write(
    draw: Any, corner: tuple[int, int], text: str, width: int, color: str, size: int = 13
) -> None:
    """Draw one line of text, cut to `width` pixels."""
    text = " ".join(text.split())
    while text and draw.textlength(text, _font(size)) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    draw.text(corner, text, COLORS[color][0], _font(size))


def main(arguments: Sequence[str]) -> int:
    """Exit status of the command."""
    if not 2 <= len(arguments) <= 3:
        print((__doc__ or "").strip())
        return 2
    try:
        each = int(arguments[2]) if len(arguments) > 2 else 2
        table = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        groups = {group["title"]: group["rows"][:each] for group in table["groups"]}
        rows = groups.get("Random", []) + groups.get("Worst", [])
        with atomic(arguments[1]) as temporary:
            sheet(rows or groups["All"], table["thumbs"]).save(temporary, quality=88)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {arguments[0]} gives no sheet: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
