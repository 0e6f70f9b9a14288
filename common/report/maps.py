"""A map of embeddings in two dimensions: queries among their gallery, with a picture of each.

`embedding_map` gives what `map.json` of a run folder holds and the report shows. UMAP lays it out
where it is installed (McInnes et al., 2018), else t-SNE (van der Maaten and Hinton, 2008), and
principal components where there are too few images for either.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from common.data.images import read_image
from common.lazy import Lazy
from common.types import Embeddings

manifold = Lazy("sklearn.manifold")

POINTS = 1500  # on the map: what a person can tell apart, and t-SNE lays out in seconds
COLORED = 8  # most frequent classes that get a colour
CELL = 64  # side of a picture in the sheet of all pictures
SHEET = 2_000_000  # bytes of that sheet
PATIENCE = 20.0  # seconds for reading pictures
_FEW = 20  # images that are laid out by principal components
_INNER = 50  # dimensions before UMAP and t-SNE, as both papers do it


@dataclass
class Images:
    """Images of one role on the map: those that are asked, or those that are searched.

    Attributes:
        embeddings: `(N, D)`.
        paths: `(N,)`.
        labels: `(N,)` int64 class, -1 for none.
        marks: `(N,)` each `right`, `wrong` or `none` (of nothing known) for a query, `gallery`.
        boxes: `(N, 4)`, as `Table.boxes`.
    """

    embeddings: Embeddings
    paths: np.ndarray
    labels: np.ndarray
    marks: np.ndarray
    boxes: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Images:
        """Some of them."""
        return Images(
            Embeddings(self.embeddings.ids[rows], self.embeddings.vectors[torch.from_numpy(rows)]),
            self.paths[rows],
            self.labels[rows],
            self.marks[rows],
            None if self.boxes is None else self.boxes[rows],
        )


def embedding_map(
    queries: Images,
    gallery: Images,
    classes: np.ndarray,
    *,
    none: str = "",
    points: int = POINTS,
    seed: int = 0,
) -> dict[str, Any]:
    """Places, marks and colours of sampled images and a sheet of their pictures; JSON values only.

    `{method, seed, total, points, classes, sheet, cell, columns, late}`: `total` counts all queries
    and gallery images that have an embedding, a point is `{x, y, id, label, mark, color, picture}`
    with x and y in [0, 1], its class's place in `classes` or -1, its cell of the sheet or -1;
    `late` pictures were not read in time. Empty where there is nothing to show.

    At most half of the points are queries; of the gallery images those of the queries' classes
    come first, then others at random.

    Args:
        queries: what is asked.
        gallery: what is searched.
        classes: `(C,)` names of the classes.
        none: name of label -1.
        points: at most so many.
        seed: of the sample and of the layout.
    """
    rows = [_readable(part.embeddings) for part in (queries, gallery)]
    chosen = sampled(queries.labels[rows[0]], gallery.labels[rows[1]], points, seed)
    parts = queries.take(rows[0][chosen[0]]), gallery.take(rows[1][chosen[1]])
    vectors = np.concatenate([part.embeddings.vectors.float().cpu().numpy() for part in parts])
    if not len(vectors):
        return {}
    places, method = laid_out(vectors, seed)
    labels = np.concatenate([part.labels for part in parts]).tolist()
    colored = frequent(labels)
    sheet, where, late = picture_sheet(parts)
    marks = np.concatenate([part.marks for part in parts]).tolist()
    ids = np.concatenate([part.embeddings.ids for part in parts]).tolist()
    shown = [
        {
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "id": str(name),
            "label": str(classes[label]) if label >= 0 else none,
            "mark": str(mark),
            "color": colored.index(label) if label in colored else -1,
            "picture": picture,
        }
        for (x, y), name, label, mark, picture in zip(
            places, ids, labels, marks, where, strict=True
        )
    ]
    return {
        "method": method,
        "seed": seed,
        "total": [len(some) for some in rows],
        "points": shown,
        "classes": [str(classes[label]) for label in colored],
        "sheet": base64.b64encode(sheet).decode(),
        "cell": CELL,
        "columns": _columns(len(shown)),
        "late": late,
    }


def sampled(
    queries: np.ndarray, gallery: np.ndarray, points: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the queries and of the gallery, ascending, `points` at most together.

    Args:
        queries: `(Q,)` labels, -1 for none.
        gallery: `(G,)` labels.
        points: a gallery smaller than half of it leaves its places to the queries.
        seed: of the sample.
    """
    rng = np.random.default_rng(seed)
    few = max(points - len(gallery), points // 2)
    asked = np.sort(rng.permutation(len(queries))[:few])
    order = rng.permutation(len(gallery))
    wanted = np.unique(queries[asked])
    same = np.isin(gallery[order], wanted[wanted >= 0])
    order = np.concatenate([order[same], order[~same]])
    return asked, np.sort(order[: points - len(asked)])


def laid_out(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """`(N, 2)` places in [0, 1], near vectors near each other, and the name of the method.

    Neighborhoods mean something, distances between far groups do not. Equal vectors and an equal
    seed give equal places. Both axes have one scale.
    """
    count = len(vectors)
    centered = vectors - vectors.mean(0)
    # Principal components from the small side: N is at most a few thousand.
    left, size, _ = np.linalg.svd(centered, full_matrices=False)
    inner = (left * size)[:, :_INNER]
    method = "principal components"
    places = np.zeros((count, 2))
    places[:, : inner.shape[1]] = inner[:, :2]
    umap = _umap() if count >= _FEW else None
    if umap is not None:
        found = umap.UMAP(n_neighbors=15, min_dist=0.1, random_state=seed, n_jobs=1)
        places, method = np.asarray(found.fit_transform(inner), np.float64), "UMAP"
    elif count >= _FEW:
        near = min(30.0, (count - 1) / 4)
        start = places / max(float(places[:, 0].std()), 1e-12) * 1e-4
        with threadpool_limits(1):  # sums in one order: equal input, equal map
            found = manifold.TSNE(
                perplexity=near,
                init=start.astype(np.float32),
                learning_rate="auto",
                max_iter=500,
                random_state=seed,
                n_jobs=1,
            )
            places, method = np.asarray(found.fit_transform(inner), np.float64), "t-SNE"
    if np.ptp(places[:, 1]) > np.ptp(places[:, 0]):  # lying it leaves no screen empty
        places = places[:, ::-1]
    low, span = places.min(0), float(np.ptp(places, axis=0).max())
    return (places - low) / max(span, 1e-12), method


def frequent(labels: Sequence[int], most: int = COLORED) -> list[int]:
    """The `most` labels that occur most often, at least three times; ties: the smaller label."""
    counts = Counter(label for label in labels if label >= 0)
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [label for label, count in order[:most] if count >= 3]


def picture_sheet(parts: Sequence[Images]) -> tuple[bytes, list[int], int]:
    """A JPEG of all pictures in cells, row by row, each one's cell or -1, how many came too late.

    Its quality falls until it has at most SHEET bytes.
    """
    jobs = [
        (path, None if part.boxes is None or not part.boxes[row].any() else part.boxes[row])
        for part in parts
        for row, path in enumerate(part.paths)
    ]
    end = time.monotonic() + PATIENCE
    late = 0
    columns = _columns(len(jobs))
    lines = -(-len(jobs) // columns)
    canvas = np.full((lines * CELL, columns * CELL, 3), 128, np.uint8)
    where = []

    def small(job: tuple[Any, np.ndarray | None]) -> np.ndarray | None | bool:
        return _small(*job) if time.monotonic() < end else False

    with ThreadPoolExecutor(4) as pool:  # OpenCV decodes without the interpreter's lock
        for place, image in enumerate(pool.map(small, jobs)):
            late += image is False
            if not isinstance(image, np.ndarray):
                where.append(-1)
                continue
            height, width = image.shape[:2]
            y = place // columns * CELL + (CELL - height) // 2
            x = place % columns * CELL + (CELL - width) // 2
            canvas[y : y + height, x : x + width] = image
            where.append(place)
    data = b""
    for quality in (75, 60, 45, 30, 15):
        buffer = io.BytesIO()
        Image.fromarray(canvas).save(buffer, "JPEG", quality=quality, optimize=True)
        data = buffer.getvalue()
        if len(data) <= SHEET:
            break
    return data, where, late


def _small(path: Any, box: np.ndarray | None) -> np.ndarray | None:
    corners = None if box is None else (int(box[0]), int(box[1]), int(box[2]), int(box[3]))
    try:
        image = read_image(path, size=CELL, box=corners)
    except (ValueError, OSError):
        return None
    factor = CELL / max(image.shape[:2])
    size = (max(round(image.shape[1] * factor), 1), max(round(image.shape[0] * factor), 1))
    small: np.ndarray = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small


def _readable(embeddings: Embeddings) -> np.ndarray:
    """Rows with a vector: what could not be read has zeros, which lie nowhere."""
    return np.flatnonzero(embeddings.vectors.any(1).cpu().numpy())


def _columns(count: int) -> int:
    return max(int(np.ceil(np.sqrt(count))), 1)


def _umap() -> Any:
    """The module when `umap-learn` is installed; None without it."""
    if importlib.util.find_spec("umap") is None:
        return None
    module = importlib.import_module("umap")
    return module if hasattr(module, "UMAP") else None
