"""Which answers to trust: one scale for scores, non-landmarks pushed down, one label per query.

GAP ranks the answers of all queries in one list, so a confident answer to a picture of nothing
costs more than a missing one. Steps of the landmark recognition winners 2019 to 2021, each named
below.
"""

from __future__ import annotations

import torch

from common.rerank.voting import blocks, check_rows, stack
from common.retrieval.search import search
from common.types import Embeddings, Neighbors

_EDGE = 1e-7  # scikit-learn's: the extreme scores become +-5.2 instead of +-infinity


def quantile_scale(neighbors: Neighbors, *, quantiles: int = 1000) -> Neighbors:
    """Scores mapped to a standard normal by their own quantiles, so that models can be added up.

    One map for the whole table, never decreasing: every ranking stays. The same numbers as
    scikit-learn's QuantileTransformer(output_distribution="normal", subsample=None). Origin:
    landmarks 2020 1st place, whose notebook has it on the embeddings' dimensions of each model;
    on similarities it keeps the ranking. Penalties are cosines and belong before it.

    Raises:
        ValueError: a score is NaN, or fewer than two quantiles.
    """
    if quantiles < 2:
        raise ValueError(f"quantile_scale: quantiles must be at least 2, got {quantiles}.")
    real = neighbors.index >= 0
    values = neighbors.score[real].double()
    if not len(values):
        return Neighbors(neighbors.index, neighbors.score)
    _refuse_nan(values, "quantile_scale")
    ordered = values.sort().values
    last = min(quantiles, len(values)) - 1
    step = torch.arange(last + 1, device=values.device)
    # In whole numbers: a place that rounds to the wrong side moves the edge of a run of ties.
    at, rest = step * (len(values) - 1) // max(last, 1), step * (len(values) - 1) % max(last, 1)
    above = ordered[(at + 1).clamp(max=len(values) - 1)]
    knots = torch.lerp(ordered[at], above, rest.double() / max(last, 1))
    wanted = step.double() / max(last, 1)
    scaled = torch.cat(
        [_normal_score(part, knots, wanted) for part in torch.split(values, 1 << 22)]
    )
    score = neighbors.score.clone()
    score[real] = scaled.float()
    return Neighbors(neighbors.index, score)


def gallery_penalty(
    neighbors: Neighbors,
    gallery: Embeddings,
    negatives: Embeddings | None,
    *,
    top: int = 5,
    weight: float = 1.0,
    device: torch.device | None = None,
) -> Neighbors:
    """Scores less the gallery image's mean similarity to its nearest non-landmarks, re-sorted.

    A_ij - B_j: a train image that looks like pictures of nothing attracts them. Origin: landmarks
    2020 1st place (top 5; arXiv 2010.01650). Only gallery images that are neighbors are searched.

    Raises:
        ValueError: the pipeline has no negatives.
    """
    check_rows(neighbors.index, len(gallery), "gallery_penalty", "the gallery")
    used = torch.unique(neighbors.index[neighbors.index >= 0])
    likeness = _likeness(gallery, negatives, top, "gallery_penalty", device, used)
    by_row = neighbors.score.new_zeros(len(gallery) + 1)  # padding is the last
    by_row[used] = likeness.to(by_row)
    score = neighbors.score - weight * by_row[neighbors.index]
    return Neighbors(neighbors.index, score).sorted()


def query_penalty(
    neighbors: Neighbors,
    queries: Embeddings,
    negatives: Embeddings | None,
    *,
    top: int = 10,
    weight: float = 1.0,
    device: torch.device | None = None,
) -> Neighbors:
    """Scores less the query's mean similarity to its `top` nearest non-landmarks.

    - C_i: the order within a query stays, its place among all queries falls. Origin: landmarks 2020
    1st place (top 10; arXiv 2010.01650). Before or after the vote.

    Raises:
        ValueError: the pipeline has no negatives.
    """
    likeness = _likeness(queries, negatives, top, "query_penalty", device)
    score = neighbors.score - weight * likeness.to(neighbors.score.device)[:, None]
    return Neighbors(neighbors.index, score)


def distractors(
    neighbors: Neighbors,
    queries: Embeddings,
    negatives: Embeddings | None,
    *,
    limit: int = 30,
    similarity: float = 0.0,
    top: int = 3,
    device: torch.device | None = None,
) -> Neighbors:
    """Answers that look like distractors behind all others: too frequent classes, non-landmarks.

    In label space, after `vote`. A class that is the first answer of more than `limit` queries is a
    distractor: the score of these answers becomes -frequency (landmark recognition 2019 3rd place:
    30; arXiv 1906.04087). With `similarity` above 0, so is a query whose mean similarity to its
    `top` nearest negatives is above it: its score becomes minus that similarity (2020 2nd place:
    .3, top 3, limit 20; how its rules combine is ours). Both count from the lowest kept answer when
    that is negative. Other answers of such a query follow at their old distance.

    `limit` fits a test set of 117,577 images and more than 80,000 classes; 0 leaves that rule out.

    Raises:
        ValueError: `similarity` without negatives.
    """
    if not neighbors.index.shape[1]:
        return Neighbors(neighbors.index, neighbors.score)
    first, best = neighbors.index[:, 0], neighbors.score[:, 0]
    answered = first >= 0
    new = torch.full_like(best, torch.inf)
    if similarity > 0:
        alike = _likeness(queries, negatives, top, "distractors", device).to(best.device)
        new = torch.where(alike > similarity, -alike, new)
    if limit > 0 and bool(answered.any()):
        frequency = torch.bincount(first[answered])[first.clamp(min=0)].to(best.dtype)
        new = torch.where(frequency > limit, -frequency, new)
    marked = answered & new.isfinite()
    kept = best[answered & ~marked]
    base = kept.min().clamp(max=0) if len(kept) else best.new_zeros(())
    shift = torch.where(marked, base + new - best, 0.0)
    return Neighbors(neighbors.index, neighbors.score + shift[:, None])


def decide(
    neighbors: Neighbors, *, threshold: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best class of each query and its score, `(Q,)` int64 and `(Q,)` float32; -1 is no answer.

    In label space. Answers that score below `threshold` become -1, score 0. Without it every query
    with a candidate is answered: GAP divides by the queries that have a landmark and only looks at
    the order, so a wrong answer at the very end costs nothing and one more right answer always
    gains. Set it where the metric counts an empty answer as right.

    Raises:
        ValueError: a score is NaN.
    """
    if not neighbors.index.shape[1]:
        empty = neighbors.index.new_full((len(neighbors),), -1)
        return empty, neighbors.score.new_zeros(len(neighbors))
    label, score = neighbors.index[:, 0], neighbors.score[:, 0]
    _refuse_nan(score, "decide")
    answered = label >= 0
    if threshold is not None:
        answered &= score >= threshold
    return torch.where(answered, label, -1), torch.where(answered, score, 0.0)


def _likeness(
    images: Embeddings,
    negatives: Embeddings | None,
    top: int,
    step: str,
    device: torch.device | None,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean similarity of each image (of `rows`) to its `top` nearest negatives but itself."""
    if negatives is None or not len(negatives):
        raise ValueError(
            f"{step} needs embeddings of images known to be of no class, and this pipeline has no "
            "negatives: give such images (for landmarks: data.non_landmark) or remove the step."
        )
    k = min(top, len(negatives))
    parts = [
        search(part, negatives, k, exclude_self=True, device=device)
        for part in blocks(images, rows)
    ]
    near = stack(parts, parts[0])
    real = near.index >= 0
    return near.score.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)


def _normal_score(values: torch.Tensor, knots: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Standard normal deviates of values whose quantiles `knots` lie at `shares`."""
    # Equal knots: the mean of the lowest and the highest share that has this value.
    up = _interpolate(values, knots, shares)
    down = _interpolate(-values, -knots.flip(0), -shares.flip(0))
    share = 0.5 * (up - down)
    share = torch.where(values == knots[0], 0.0, share)
    share = torch.where(values == knots[-1], 1.0, share)
    edge = float(torch.special.ndtri(torch.tensor(_EDGE, dtype=torch.float64)))
    deviates: torch.Tensor = torch.special.ndtri(share)
    return deviates.clamp(edge, -edge)


def _interpolate(at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """numpy.interp for float64 tensors: x ascending, a repeated x gives the y of its last place."""
    right = torch.searchsorted(x, at, right=True).clamp(1, max(len(x) - 1, 1))
    if len(x) == 1:
        return y.expand_as(at)
    left = right - 1
    width = x[right] - x[left]
    part = torch.where(width > 0, (at - x[left]) / width, 1.0)
    return y[left] + part.clamp(0, 1) * (y[right] - y[left])


def _refuse_nan(values: torch.Tensor, step: str) -> None:
    wrong = int(values.isnan().sum())
    if wrong:
        raise ValueError(f"{step}: {wrong} scores are NaN: check the embeddings they came from.")
