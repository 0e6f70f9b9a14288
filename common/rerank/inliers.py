"""How many local matches of each candidate survive the geometry: in parallel, resumable."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.data.images import ImageError
from common.rerank.evidence import Evidence, describe
from common.rerank.features import COUNTED, PAIRED, LocalFeatures, extract, load
from common.rerank.geometry import Settings, compare
from common.rerank.store import FeatureStore, PairStore, image_key, pair_keys, settings_folder
from common.rerank.threads import in_order, single_threaded
from common.rerank.voting import check_rows
from common.types import Neighbors

IMAGES_PER_SHARD = 512  # 64 MiB of SIFT, a quarter of a minute on two cores
PAIRS_PER_SHARD = 8192
_Source = tuple[bytes, np.ndarray | None]  # a file and the box to look at
_TASK = 32  # pairs of one query that a thread takes at once: a lone query uses every core


def count_inliers(
    neighbors: Neighbors,
    query_paths: np.ndarray,
    gallery_paths: np.ndarray,
    cache: Path,
    settings: Settings,
    *,
    query_boxes: np.ndarray | None = None,
    gallery_boxes: np.ndarray | None = None,
    top: int = 50,
    workers: int = 0,
    device: str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inliers and matches of each query with its first `top` neighbors, `(Q, top)` int32 each.

    0 for padding and for an image that cannot be read. Arguments and errors as `verify_neighbors`.
    """
    row, column, found = verify_neighbors(
        neighbors, query_paths, gallery_paths, cache, settings, query_boxes=query_boxes,
        gallery_boxes=gallery_boxes, top=top, workers=workers, device=device,
    )  # fmt: skip
    table = np.zeros((2, *neighbors.index[:, :top].shape), np.int32)
    table[:, row, column] = found.counts.T
    inliers, matches = torch.from_numpy(table).to(neighbors.index.device)
    return inliers, matches


def verify_neighbors(
    neighbors: Neighbors,
    query_paths: np.ndarray,
    gallery_paths: np.ndarray,
    cache: Path,
    settings: Settings,
    *,
    query_boxes: np.ndarray | None = None,
    gallery_boxes: np.ndarray | None = None,
    top: int = 50,
    workers: int = 0,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray, Evidence]:
    """The pairs of each query with its first `top` neighbors: rows, columns `(P,)`, evidence.

    Args:
        neighbors: `(Q, K)` rows of the gallery; padding is left out.
        query_paths: `(Q,)` bytes array of files.
        gallery_paths: `(G,)` bytes array of files.
        cache: folder for features and results.
        settings: how to match.
        query_boxes: `(Q, 4)` what to look at in each, as `Table.boxes`; None: whole images.
        gallery_boxes: `(G, 4)`.
        top: neighbors per query.
        workers: threads; 0: one per core. OpenCV and numpy let go of the interpreter's lock.
        device: where networks run.

    Raises:
        ValueError: paths that do not cover the queries or the gallery.
        FileNotFoundError: weights are not installed, or not given.
    """
    if len(query_paths) != len(neighbors):
        raise ValueError(f"local: {len(neighbors)} queries but {len(query_paths)} query_paths.")
    for paths, boxes in ((query_paths, query_boxes), (gallery_paths, gallery_boxes)):
        if boxes is not None and boxes.shape != (len(paths), 4):
            raise ValueError(f"local: {len(paths)} files but boxes of shape {boxes.shape}.")
    check_rows(neighbors.index, len(gallery_paths), "local", "gallery_paths")
    index = neighbors.index[:, :top].cpu().numpy()
    row, column = np.nonzero(index >= 0)
    found = verify_pairs(
        query_paths, row, gallery_paths, index[row, column], cache, settings, boxes_a=query_boxes,
        boxes_b=gallery_boxes, workers=workers, device=device,
    )  # fmt: skip
    return row, column, found


def verify_pairs(
    files_a: np.ndarray,
    rows_a: np.ndarray,
    files_b: np.ndarray,
    rows_b: np.ndarray,
    cache: Path,
    settings: Settings,
    *,
    boxes_a: np.ndarray | None = None,
    boxes_b: np.ndarray | None = None,
    workers: int = 0,
    device: str = "cpu",
) -> Evidence:
    """The evidence of pairs `files_a[rows_a[i]]`, `files_b[rows_b[i]]`, each `(P,)`.

    A pair with an image that cannot be read has none (a warning counts those). Features of an image
    and evidence of a pair are computed once per settings, file and box, and kept under `cache`: a
    second call only reads, a call after a kill goes on where the first stopped.
    """
    paths: dict[int, _Source] = {}
    a, b = _keys(files_a, rows_a, boxes_a, paths), _keys(files_b, rows_b, boxes_b, paths)
    pairs = PairStore(settings_folder(Path(cache), "pairs", _identity(settings)))
    known, _ = pairs.lookup(pair_keys(a, b))
    if not known.all():
        threads = workers or os.cpu_count() or 1
        needed = np.union1d(a[~known], b[~known])
        store: FeatureStore | _Pictures
        with single_threaded():
            if settings.features in PAIRED:
                store = _Pictures(needed, paths, settings, threads)
            else:
                store = FeatureStore(
                    settings_folder(Path(cache), "features", _identity(settings, pair=False))
                )
                _extract_missing(store, needed, paths, settings, threads, device)
            readable = ~known & _stored(store, a) & _stored(store, b)
            _verify_missing(store, pairs, a[readable], b[readable], settings, threads, device)
    return pairs.lookup(pair_keys(a, b))[1]


class _Pictures:
    """The images themselves, for matchers of whole images: read when they are asked for."""

    def __init__(
        self, keys: np.ndarray, paths: dict[int, _Source], settings: Settings, threads: int
    ) -> None:
        self._paths, self._settings = paths, settings

        def wrong(key: int) -> ImageError | None:
            try:
                load(paths[key][0], settings.size, paths[key][1])
            except ImageError as error:
                return error
            return None

        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(wrong, keys.tolist()))
        self._readable = {k for k, error in zip(keys.tolist(), found, strict=True) if not error}
        _warn([error for error in found if error], len(keys))

    def __contains__(self, key: int) -> bool:
        return key in self._readable

    def get(self, key: int) -> LocalFeatures:
        path, box = self._paths[key]
        return extract(load(path, self._settings.size, box), self._settings.features)


def _identity(settings: Settings, *, pair: bool = True) -> dict[str, Any]:
    """What results depend on: for features less than for pairs; weights as the file is now."""
    values = asdict(settings)
    if not pair:
        values = {name: values[name] for name in ("features", "keypoints", "size", "weights")}
        if settings.features in COUNTED:
            values["features"] = COUNTED[0]
    for name in ("weights", "matcher_weights"):
        if values.get(name):
            values[name] = image_key(os.fsencode(values[name]))
    return values


def _keys(
    files: np.ndarray, rows: np.ndarray, boxes: np.ndarray | None, paths: dict[int, _Source]
) -> np.ndarray:
    """Image keys of the files in `rows`, `(len(rows),)` int64; their sources go to `paths`."""
    used, place = np.unique(rows, return_inverse=True)
    names = [os.fsencode(name) for name in files[used].tolist()]
    parts = [None] * len(used) if boxes is None else list(boxes[used])
    keys = [image_key(name, box) for name, box in zip(names, parts, strict=True)]
    paths.update(zip(keys, zip(names, parts, strict=True), strict=True))
    return np.array(keys, dtype=np.int64)[place]


def _stored(store: FeatureStore | _Pictures, keys: np.ndarray) -> np.ndarray:
    used, place = np.unique(keys, return_inverse=True)
    return np.array([key in store for key in used.tolist()], dtype=bool)[place]


def _extract_missing(
    store: FeatureStore,
    keys: np.ndarray,
    paths: dict[int, _Source],
    settings: Settings,
    threads: int,
    device: str,
) -> None:
    """Fill the store with the features of these images; warn of those that cannot be read."""
    missing = [key for key in keys.tolist() if key not in store]

    def found_in(image: np.ndarray) -> LocalFeatures:
        return extract(
            image,
            settings.features,
            keypoints=settings.keypoints,
            device=device,
            weights=settings.weights,
        )

    def work(key: int) -> np.ndarray | LocalFeatures | ImageError:
        try:
            image = load(paths[key][0], settings.size, paths[key][1])
        except ImageError as error:
            return error
        # One network serves one image at a time, from this thread's caller; SIFT runs here.
        return image if settings.network else found_in(image)

    done: list[tuple[int, LocalFeatures]] = []
    unread: list[ImageError] = []
    with ThreadPoolExecutor(threads) as pool:
        results = in_order(pool, work, missing, ahead=4 * threads)
        progress = tqdm(results, "local features", total=len(missing), disable=None)
        try:
            for key, found in zip(missing, progress, strict=True):
                if isinstance(found, ImageError):
                    unread.append(found)
                    continue
                if isinstance(found, np.ndarray):
                    found = found_in(found)
                done.append((key, found))
                if len(done) == IMAGES_PER_SHARD:
                    store.append(done)
                    done = []
        finally:  # what is done is kept, also at Ctrl-C
            if done:
                store.append(done)
    _warn(unread, len(keys))


def _warn(unread: list[ImageError], total: int) -> None:
    if unread:
        warnings.warn(
            f"{len(unread)} of {total} images could not be read and count as 0 inliers, the "
            f"first is {unread[0]}.",
            stacklevel=5,
        )


def _verify_missing(
    store: FeatureStore | _Pictures,
    pairs: PairStore,
    a: np.ndarray,
    b: np.ndarray,
    settings: Settings,
    threads: int,
    device: str,
) -> None:
    """Fill the pair store; work goes out query by query, so that a query is unpacked rarely."""
    if not len(a):
        return
    _, first = np.unique(pair_keys(a, b), return_index=True)
    order = first[np.argsort(a[first], kind="stable")]
    a, b = a[order], b[order]
    starts = np.flatnonzero(np.diff(a, prepend=-2))
    queries = np.split(np.column_stack([a, b]), starts[1:])
    tasks = [q[i : i + _TASK] for q in queries for i in range(0, len(q), _TASK)]

    def work(task: np.ndarray) -> Evidence:
        query = store.get(int(task[0, 0]))
        query.descriptors = settings.unit(query)
        counts, shape = [], []
        for key in task[:, 1].tolist():
            other = store.get(key)
            seen = compare(query, other, settings, device)
            counts.append((seen.inlying.sum(), len(seen.inlying)))
            shape.append(describe(seen, query.size, other.size, settings))
        return Evidence(np.array(counts, np.int32), np.array(shape, np.float32))

    done: list[tuple[np.ndarray, Evidence]] = []
    # A network on several threads at once is no faster and needs the memory of all of them.
    network = settings.matcher == "lightglue" or settings.features in PAIRED
    threads = 1 if network else threads
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc="local matches", total=len(a), unit="pair", disable=None) as progress,
    ):
        results = in_order(pool, work, tasks, ahead=4 * threads)
        try:
            for task, found in zip(tasks, results, strict=True):
                done.append((task, found))
                progress.update(len(task))
                if sum(len(task) for task, _ in done) >= PAIRS_PER_SHARD:
                    _flush(pairs, done)
                    done = []
        finally:
            if done:
                _flush(pairs, done)


def _flush(pairs: PairStore, done: list[tuple[np.ndarray, Evidence]]) -> None:
    tasks = np.concatenate([task for task, _ in done])
    counts = np.concatenate([found.counts for _, found in done])
    shape = np.concatenate([found.shape for _, found in done])
    pairs.append(pair_keys(tasks[:, 0], tasks[:, 1]), Evidence(counts, shape))
