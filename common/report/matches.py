"""Pictures of local matches: which pairs to show, both images side by side with lines between.

Ranking steps note for each query the candidate with the most inliers (`Notes.matches`). Once it is
known which of them are right, `show_matches` keeps a handful of each kind and draws them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image

from common.data.images import ImageError
from common.notes import Notes
from common.report.canvas import COLORS
from common.rerank.features import load
from common.rerank.geometry import Verification, verify
from common.types import Embeddings

HEIGHT = 250  # largest sides of each image in pixels
WIDEST = 380
_MOST = 12  # pictures of one task
_LINES = 90
_SMOOTH = 8  # OpenCV draws at 1 / 2^3 of a pixel


class Asked(Protocol):
    """Queries and a gallery with their files, such as `common.pipeline.ranking.Question`.

    Attributes:
        query_boxes: `(Q, 4)` what was looked at; None: whole images.
        gallery_boxes: `(G, 4)`.
        truth: `(Q,)` label of each query, -1 for none; None where nobody knows.
        relevant: `(G,)` label of each gallery image.
    """

    queries: Embeddings
    gallery: Embeddings
    query_paths: np.ndarray
    gallery_paths: np.ndarray
    query_boxes: np.ndarray | None
    gallery_boxes: np.ndarray | None
    truth: np.ndarray | None
    relevant: np.ndarray | None


def show_matches(notes: Notes, asked: Asked) -> None:
    """Replace what steps noted in `notes.matches` by a few pairs that a page can show.

    Of each matcher the right and the wrong pairs with the most inliers, one per query: at most 12
    in all. Each is `{matcher, query, gallery, inliers, matches, right, picture}`, the picture a
    JPEG in base64. Only these pairs are matched again; one whose image is gone is left out.
    """
    each = max(_MOST // max(2 * len(notes.matches), 1), 1)
    shown: list[dict[str, Any]] = []
    for entry in notes.matches:
        for query, gallery, verdict in _chosen(entry, asked.truth, asked.relevant, each):
            try:
                mine = _seen(asked.query_paths, asked.query_boxes, query)
                theirs = _seen(asked.gallery_paths, asked.gallery_boxes, gallery)
                found = verify(mine, theirs, **entry["settings"])
                picture = drawn(mine, theirs, found)
            except ImageError:
                continue
            shown.append(
                {
                    "matcher": entry["matcher"],
                    "query": str(asked.queries.ids[query]),
                    "gallery": str(asked.gallery.ids[gallery]),
                    "inliers": found.inliers,
                    "matches": found.matches,
                    "right": verdict,
                    "picture": base64.b64encode(picture).decode(),
                }
            )
    notes.matches[:] = shown


def _seen(paths: np.ndarray, boxes: np.ndarray | None, row: int) -> np.ndarray:
    """What the matcher looked at."""
    return load(paths[row], None, None if boxes is None else boxes[row])


def _chosen(
    entry: Mapping[str, Any], truth: np.ndarray | None, relevant: np.ndarray | None, each: int
) -> list[tuple[int, int, bool | None]]:
    """Query and gallery rows with their verdict: right ones, wrong ones, most inliers first."""
    query, gallery = np.asarray(entry["query"]), np.asarray(entry["gallery"])
    order = np.argsort(-np.asarray(entry["inliers"]), kind="stable")
    if truth is None or relevant is None:
        return [(int(query[i]), int(gallery[i]), None) for i in order[: 2 * each]]
    right = (relevant[gallery] == truth[query]) & (truth[query] >= 0)
    return [
        (int(query[i]), int(gallery[i]), kind)
        for kind in (True, False)
        for i in order[right[order] == kind][:each]
    ]


def drawn(image_a: np.ndarray, image_b: np.ndarray, found: Verification) -> bytes:
    """A JPEG of both images side by side: inliers joined in green, other matches faintly in red.

    Args:
        image_a: `(H, W, 3)` uint8 RGB.
        image_b: the other one, of any size.
        found: their matches, in pixels of these images.
    """
    small, scale = zip(*(_fitted(image) for image in (image_a, image_b)), strict=True)
    gap = 4
    left, height = small[0].shape[1] + gap, max(image.shape[0] for image in small)
    canvas = np.full((height, left + small[1].shape[1], 3), 128, np.uint8)
    top = [(height - image.shape[0]) // 2 for image in small]
    for image, x, y in zip(small, (0, left), top, strict=True):
        canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
    scales = np.array([*scale[0], *scale[1]])
    corner = np.array([0, top[0], left, top[1]])
    for points, color, share in ((found.rejected, "wrong", 0.35), (found.points, "right", 0.75)):
        places = (_some(points) + 0.5) * scales - 0.5 + corner
        lines = canvas.copy()
        for place in np.rint(places * _SMOOTH).astype(int).tolist():
            ends = (place[0], place[1]), (place[2], place[3])
            cv2.line(lines, *ends, _rgb(color), 1, cv2.LINE_AA, 3)
        canvas = cv2.addWeighted(lines, share, canvas, 1 - share, 0)
        if color == "right":
            for place in np.rint(places * _SMOOTH).astype(int).tolist():
                for spot in ((place[0], place[1]), (place[2], place[3])):
                    cv2.circle(canvas, spot, 2 * _SMOOTH, _rgb(color), -1, cv2.LINE_AA, 3)
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def _fitted(image: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The image inside HEIGHT x WIDEST pixels, and how many pixels became one, in x and y."""
    height, width = image.shape[:2]
    factor = min(HEIGHT / height, WIDEST / width)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=way), (size[0] / width, size[1] / height)


def _some(points: np.ndarray) -> np.ndarray:
    """At most _LINES of the points, evenly spread over their list: more hide the images."""
    step = np.linspace(0, len(points) - 1, min(len(points), _LINES)).astype(int)
    return np.asarray(points[step])


def _rgb(color: str) -> tuple[int, int, int]:
    text = COLORS[color][1]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
