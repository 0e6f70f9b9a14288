"""Threads over many small pieces of work: bounded in memory, one core each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

S = TypeVar("S")
T = TypeVar("T")


def in_order(
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
def single_threaded() -> Iterator[None]:
    """OpenCV and BLAS on one thread each, as the pool already has one per core."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        cv2.setNumThreads(before)
