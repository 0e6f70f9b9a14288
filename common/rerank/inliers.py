"""How many local matches of each candidate survive the geometry: in parallel, resumable."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm import tqdm

from common.data.images import ImageError
from common.rerank.features import LocalFeatures, extract, load
from common.rerank.geometry import Settings, estimate, match
from common.rerank.store import FeatureStore, PairStore, image_key, pair_keys, settings_folder
from common.rerank.voting import check_rows
from common.types import Neighbors

IMAGES_PER_SHARD = 512  # 64 MiB of SIFT, a quarter of a minute on two cores
PAIRS_PER_SHARD = 8192
S = TypeVar("S")
T = TypeVar("T")


def count_inliers(
    neighbors: Neighbors,
    query_paths: np.ndarray,
    gallery_paths: np.ndarray,
    cache: Path,
    settings: Settings,
    *,
    top: int = 50,
    workers: int = 0,
    device: str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inliers and matches of each query with its first `top` neighbors, `(Q, top)` int32 each.

    0 for padding and for an image that cannot be read (a warning counts those). Features of an
    image and inliers of a pair are computed once per settings and file, and kept under `cache`: a
    second call only reads, a call after a kill goes on where the first stopped.

    Args:
        neighbors: `(Q, K)` rows of the gallery.
        query_paths: `(Q,)` bytes array of files.
        gallery_paths: `(G,)` bytes array of files.
        cache: folder for features and results.
        settings: how to match.
        top: neighbors per query.
        workers: threads; 0: one per core. OpenCV and numpy let go of the interpreter's lock.
        device: where networks run.

    Raises:
        ValueError: paths that do not cover the queries or the gallery.
        FileNotFoundError: weights are not installed.
    """
    if len(query_paths) != len(neighbors):
        raise ValueError(f"local: {len(neighbors)} queries but {len(query_paths)} query_paths.")
    check_rows(neighbors.index, len(gallery_paths), "local", "gallery_paths")
    index = neighbors.index[:, :top].cpu().numpy()
    row, column = np.nonzero(index >= 0)
    paths: dict[int, bytes] = {}
    a = _keys(query_paths, row, paths)
    b = _keys(gallery_paths, index[row, column], paths)
    pairs = PairStore(settings_folder(Path(cache), "pairs", asdict(settings)))
    known, _ = pairs.lookup(pair_keys(a, b))
    if not known.all():
        kind = {name: getattr(settings, name) for name in ("features", "keypoints", "size")}
        store = FeatureStore(settings_folder(Path(cache), "features", kind))
        threads = workers or os.cpu_count() or 1
        with _single_threaded():
            _extract_missing(
                store, np.union1d(a[~known], b[~known]), paths, settings, threads, device
            )
            readable = ~known & _stored(store, a) & _stored(store, b)
            _verify_missing(store, pairs, a[readable], b[readable], settings, threads, device)
    _, counts = pairs.lookup(pair_keys(a, b))
    table = np.zeros((2, *index.shape), np.int32)
    table[:, row, column] = counts.T
    inliers, matches = torch.from_numpy(table).to(neighbors.index.device)
    return inliers, matches


def _keys(files: np.ndarray, rows: np.ndarray, paths: dict[int, bytes]) -> np.ndarray:
    """Image keys of the files in `rows`, `(len(rows),)` int64; their paths are added to `paths`."""
    used, place = np.unique(rows, return_inverse=True)
    names = [os.fsencode(name) for name in files[used].tolist()]
    keys = [image_key(name) for name in names]
    paths.update(zip(keys, names, strict=True))
    return np.array(keys, dtype=np.int64)[place]


def _stored(store: FeatureStore, keys: np.ndarray) -> np.ndarray:
    used, place = np.unique(keys, return_inverse=True)
    return np.array([key in store for key in used.tolist()], dtype=bool)[place]


def _extract_missing(
    store: FeatureStore,
    keys: np.ndarray,
    paths: dict[int, bytes],
    settings: Settings,
    threads: int,
    device: str,
) -> None:
    """Fill the store with the features of these images; warn of those that cannot be read."""
    missing = [key for key in keys.tolist() if key not in store]
    network = settings.features != "sift"

    def found_in(image: np.ndarray) -> LocalFeatures:
        return extract(image, settings.features, keypoints=settings.keypoints, device=device)

    def work(key: int) -> np.ndarray | LocalFeatures | ImageError:
        try:
            image = load(paths[key], settings.size)
        except ImageError as error:
            return error
        # One network serves one image at a time, from this thread's caller; SIFT runs here.
        return image if network else found_in(image)

    done: list[tuple[int, LocalFeatures]] = []
    unread: list[ImageError] = []
    with ThreadPoolExecutor(threads) as pool:
        results = _in_order(pool, work, missing, ahead=4 * threads)
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
    if unread:
        warnings.warn(
            f"{len(unread)} of {len(keys)} images could not be read and count as 0 inliers, the "
            f"first is {unread[0]}.",
            stacklevel=2,
        )


def _verify_missing(
    store: FeatureStore,
    pairs: PairStore,
    a: np.ndarray,
    b: np.ndarray,
    settings: Settings,
    threads: int,
    device: str,
) -> None:
    """Fill the pair store; work goes out query by query, so that a query is unpacked once."""
    if not len(a):
        return
    _, first = np.unique(pair_keys(a, b), return_index=True)
    order = first[np.argsort(a[first], kind="stable")]
    a, b = a[order], b[order]
    starts = np.flatnonzero(np.diff(a, prepend=-2))
    tasks = np.split(np.column_stack([a, b]), starts[1:])

    def work(task: np.ndarray) -> np.ndarray:
        query = store.get(int(task[0, 0]))
        query.descriptors = query.unit()
        counts = np.zeros((len(task), 2), np.int32)
        for place, key in enumerate(task[:, 1].tolist()):
            other = store.get(key)
            rows, columns = match(query, other, settings, device)
            _, inlying = estimate(query.points[rows], other.points[columns], settings)
            counts[place] = inlying.sum(), len(rows)
        return counts

    done: list[tuple[np.ndarray, np.ndarray]] = []
    # A network on several threads at once is no faster and needs the memory of all of them.
    threads = 1 if settings.matcher == "lightglue" else threads
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc="local matches", total=len(a), unit="pair", disable=None) as progress,
    ):
        results = _in_order(pool, work, tasks, ahead=4 * threads)
        try:
            for task, counts in zip(tasks, results, strict=True):
                done.append((task, counts))
                progress.update(len(task))
                if sum(len(task) for task, _ in done) >= PAIRS_PER_SHARD:
                    _flush(pairs, done)
                    done = []
        finally:
            if done:
                _flush(pairs, done)


def _flush(pairs: PairStore, done: list[tuple[np.ndarray, np.ndarray]]) -> None:
    tasks = np.concatenate([task for task, _ in done])
    pairs.append(pair_keys(tasks[:, 0], tasks[:, 1]), np.concatenate([c for _, c in done]))


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[S], T], items: Iterable[S], ahead: int
) -> Iterator[T]:
    """`pool.map` that starts only `ahead` items before the one being read, to bound memory."""
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _single_threaded() -> Iterator[None]:
    """OpenCV and BLAS on one thread each, as the pool already has one per core."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        cv2.setNumThreads(before)
