"""How far matches and non-matches are apart: their scores, counted for the report's histograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from common.types import Embeddings, Neighbors

QUERIES = 1000  # of which cosines are counted
GALLERY = 20_000
_BINS = 60


def cosines(
    queries: Embeddings,
    gallery: Embeddings,
    truth: np.ndarray,
    relevant: np.ndarray,
    *,
    most: tuple[int, int] = (QUERIES, GALLERY),
    seed: int = 0,
) -> dict[str, Any]:
    """Cosines of queries with what they match and with what they do not, as `counted` has them.

    `match`: with all gallery images of the query's class; `other`: with all of another class;
    `nearest other`: with the nearest of these, which a threshold has to keep out. A query of no
    class matches nothing. An image is not compared with itself.

    Args:
        queries: `(Q, D)`.
        gallery: `(G, D)`.
        truth: `(Q,)` int64 class of each query, -1 for none.
        relevant: `(G,)` int64 class of each gallery image.
        most: so many queries and gallery images at random, images of the queries' classes first.
        seed: of the sample.
    """
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.permutation(len(queries))[: most[0]])
    order = rng.permutation(len(gallery))
    same = np.isin(relevant[order], truth[asked][truth[asked] >= 0])
    searched = np.sort(np.concatenate([order[same], order[~same]])[: most[1]])
    if not len(asked) or not len(searched):
        return {}
    rows, columns = (torch.from_numpy(some) for some in (asked, searched))
    mine, theirs = queries.vectors[rows].float(), gallery.vectors[columns].float()
    scores = (mine.cpu() @ theirs.cpu().T).numpy()
    itself = queries.ids[asked][:, None] == gallery.ids[searched][None]
    known = truth[asked] >= 0
    hit = (truth[asked][:, None] == relevant[searched][None]) & known[:, None] & ~itself
    other = ~hit & ~itself
    nearest = np.where(other, scores, -np.inf).max(1)
    values = {
        "match": scores[hit],
        "other": scores[other],
        "nearest other": nearest[np.isfinite(nearest)],
    }
    of = f"{len(asked):,} of {len(queries):,} queries with {len(searched):,} of {len(gallery):,}"
    caption = (
        "Cosines of embeddings before any ranking step, as shares of each kind: of a query with "
        "every image that it should match, with every other image, and with the nearest of these, "
        f"which is what a threshold must keep out. {of} gallery images"
        + (f", drawn with seed {seed}." if len(asked) < len(queries) or len(searched) < len(gallery)
           else ".")
    )  # fmt: skip
    return counted(values, title="Cosines of matches and others", x_label="cosine", caption=caption)


def candidates(
    found: Neighbors,
    hits: np.ndarray,
    *,
    threshold: float | None = None,
    x_label: str = "score",
    what: str = "candidates",
) -> dict[str, Any]:
    """Final scores of right and wrong candidates, as `counted` has them.

    Args:
        found: `(Q, K)` what the ranking steps list.
        hits: `(Q, K)` bool, which are right.
        threshold: from which score on a candidate is answered.
        x_label: of the score.
        what: how the candidates are called.
    """
    score = found.score.cpu().numpy()
    real = np.isfinite(score) & (found.index.cpu().numpy() >= 0)
    values = {"match": score[real & hits], "other": score[real & ~hits]}
    title = f"Scores of matching and other {what}"
    caption = (
        f"Scores behind the ranking steps, of all {what} that they list for {len(score):,} "
        "queries, as shares of each kind."
        + (" What scores less than the threshold is not answered." if threshold is not None else "")
    )
    return counted(values, title=title, x_label=x_label, caption=caption, threshold=threshold)


def counted(
    values: Mapping[str, np.ndarray],
    *,
    title: str,
    x_label: str,
    caption: str = "",
    threshold: float | None = None,
) -> dict[str, Any]:
    """`{title, edges, middle, counts: {kind: (B,)}, x_label, caption, threshold}` in common bins.

    Empty where there are no values. A thousandth of each kind on either side may lie beyond the
    outer bins and is counted in them: a single score far away must not flatten the rest. `middle`
    as in `bins`.
    """
    shown = [np.asarray(part, np.float64) for part in values.values() if len(part)]
    if not shown:
        return {}
    ends = [*(np.quantile(part, (0.001, 0.999)) for part in shown)]
    if threshold is not None and np.isfinite(threshold):
        ends.append(np.array([threshold, threshold]))
    edges, middle = bins(np.concatenate(shown), np.concatenate(ends), _BINS)
    counts = {
        kind: np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0].tolist()
        for kind, part in values.items()
    }
    return {
        "title": title,
        "edges": edges.tolist(),
        "middle": middle,
        "counts": counts,
        "x_label": x_label,
        "caption": caption,
        "threshold": threshold,
    }


def bins(values: np.ndarray, inside: np.ndarray, count: int) -> tuple[np.ndarray, float | None]:
    """`(count + 1,)` edges that hold `inside`, and None where they are evenly spaced.

    Powers of votes span decades: then edges are even up to the median of `values`, which comes with
    them, and logarithmic behind it.
    """
    low, high = float(inside.min()), float(inside.max())
    high = high if high > low else low + 1e-9 * max(abs(low), 1)
    middle = float(np.median(np.abs(values)))
    if not 0 < 20 * middle < np.abs(inside).max():
        return np.linspace(low, high, count + 1), None
    first, last = np.arcsinh(np.array([low, high]) / middle).tolist()
    return middle * np.sinh(np.linspace(first, last, count + 1)), middle
