"""Who finds what: true pairs that pictures find and titles miss, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from common.notes import Notes
from common.rerank.transfer import Cut, kept
from common.track import Run

from .analysis import entry
from .data import Shopee
from .matching import Pool

PICTURES, TEXTS = ("image", "joint"), ("text", "words", "pieces")  # the first of each that is there


def found_alone(pool: Pool, cuts: Mapping[str, Cut], notes: Notes, run: Run, data: Shopee) -> None:
    """True pairs that pictures find and titles miss, and the other way round, as tables."""
    truth = pool.truth
    assert truth is not None
    picture = next((name for name in PICTURES if name in cuts), None)
    text = next((name for name in TEXTS if name in cuts), None)
    if picture is None or text is None:
        return
    a, b = _true_pairs(truth.labels, truth.asked)
    found = {name: _passes(pool, name, cuts[name], a, b) for name in (picture, text)}
    one, other = found[picture], found[text]
    total = max(len(a), 1)
    notes.numbers |= {
        f"true pairs found by {picture} and {text}": float((one & other).sum() / total),
        f"true pairs found by {picture} alone": float((one & ~other).sum() / total),
        f"true pairs found by {text} alone": float((~one & other).sum() / total),
        "true pairs found by neither": float((~one & ~other).sum() / total),
    }
    for finds, misses in ((picture, text), (text, picture)):
        rows = np.flatnonzero(found[finds] & ~found[misses])
        if len(rows):
            shown = _pair_rows(pool, a[rows], b[rows], finds, misses, data)
            run.table(f"pairs_found_by_{finds}_alone", shown, top=1)


def _true_pairs(labels: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of every pair of asked listings of one group, the smaller row first."""
    rows = np.flatnonzero(asked)
    order = rows[np.argsort(labels[rows], kind="stable")]
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    parts = np.split(order, cuts)
    ends = [np.triu_indices(len(part), 1) for part in parts]
    a = np.concatenate([part[i] for part, (i, _) in zip(parts, ends, strict=True)])
    b = np.concatenate([part[j] for part, (_, j) in zip(parts, ends, strict=True)])
    return np.minimum(a, b), np.maximum(a, b)


def _passes(pool: Pool, name: str, cut: Cut, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which pairs a source finds from either end."""
    listed = kept(pool.sources.near(name, 50), cut, 50).index.numpy()
    return np.asarray((listed[a] == b[:, None]).any(1) | (listed[b] == a[:, None]).any(1))


def _pair_rows(
    pool: Pool, a: np.ndarray, b: np.ndarray, finds: str, misses: str, data: Shopee
) -> list[dict[str, Any]]:
    one = _similarities(pool, finds, a, b)
    other = _similarities(pool, misses, a, b)
    return [
        {
            "query": entry(pool, int(i), data),
            "results": [entry(pool, int(j), data) | {"score": float(s), "right": True}],
            "note": f"{finds} {s:.2f}, {misses} {t:.2f}",
        }
        for i, j, s, t in zip(a, b, one, other, strict=True)
    ]


def _similarities(pool: Pool, name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`(P,)` similarity of pairs in one source."""
    size = len(pool.table)
    index = torch.full((size, int(np.bincount(a, minlength=1).max(initial=0))), -1)
    order = np.argsort(a, kind="stable")
    column = np.arange(len(a)) - np.searchsorted(a[order], a[order])
    place = torch.from_numpy(a[order]), torch.from_numpy(column)
    index[place] = torch.from_numpy(b[order])
    found = np.empty(len(a), np.float32)
    found[order] = pool.sources.similarity(name, index)[place].numpy()
    return found
