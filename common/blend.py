"""Several models as one: embeddings concatenated, scores, ranks or votes added, weights searched.

Embeddings before the search (landmarks 2020 3rd place, Shopee 1st place), neighbors after it
(landmarks 2020 1st, Shopee 2nd and 6th place). Weights are relative: they are divided by their sum.
Other people's submission files (`common.blend_files`):

    python -m common.blend whale A.csv B.csv --weights 2,1 -o OUT.csv
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.rerank.voting import group, row_range, scores_of
from common.types import Embeddings, Neighbors
from common.weigh import search_weights as search_weights


def blend_embeddings(
    parts: Sequence[Embeddings], weights: Sequence[float] | None = None
) -> Embeddings:
    """One embedding whose cosine is the weighted mean of the models' cosines.

    Every part's rows are normalised, multiplied by sqrt(w_m) (weights summing to 1), and
    concatenated: <q, g> = sum_m sqrt(w_m) q_m . sqrt(w_m) g_m = sum_m w_m cos_m, and a row's
    squared norm is sum_m w_m = 1. A row that is zero in some model is normalised over the others.
    Origin: landmarks 2020 3rd place (concatenation), Shopee 2021 1st place (normalise first).

    Args:
        parts: `(N, D_m)` each, the same ids in the same order.
        weights: one per part, not negative; None: equal.

    Returns:
        `(N, sum D_m)` float32 (float16 when all parts are); the card lists the parts' cards.

    Raises:
        ValueError: no part, ids that differ, or weights that are not one per part or negative.
    """
    share = _shares(len(parts), weights, "blend_embeddings")
    for number, part in enumerate(parts[1:], 1):
        _same_ids(parts[0].ids, part.ids, number)
    half = all(part.vectors.dtype == torch.float16 for part in parts)
    width = sum(part.vectors.shape[1] for part in parts)
    first = parts[0].vectors
    out = torch.empty(
        len(first), width, dtype=torch.float16 if half else torch.float32, device=first.device
    )
    rows = max(1, (1 << 24) // max(width, 1))  # 64 MiB of float32 beside the result
    for start in range(0, len(out), rows):
        block = [
            torch.nn.functional.normalize(
                part.vectors[start : start + rows].to(out.device).float(), dim=1
            ).mul_(weight**0.5)
            for part, weight in zip(parts, share, strict=True)
        ]
        out[start : start + rows] = torch.nn.functional.normalize(torch.cat(block, 1), dim=1)
    card = {"blend": [part.card for part in parts], "weights": [float(w) for w in share]}
    return Embeddings(parts[0].ids, out, card)


def blend_scores(
    parts: Sequence[Neighbors],
    weights: Sequence[float] | None = None,
    *,
    missing: str = "lowest",
    k: int | None = None,
) -> Neighbors:
    """Weighted mean of the models' scores over the union of their candidates, re-sorted.

    All models must score on one scale (see `quantile_scale`). Works on rows of the gallery and on
    classes. Origin: landmarks 2020 1st place (missing zero, after `vote` with top 3, power 1).

    Args:
        parts: `(Q, K_m)` each, the same queries and the same gallery.
        weights: one per part; None: equal.
        missing: the score of a candidate that a model does not list: `lowest` of that model's
            row (it cannot be higher), or `zero` (no list, no evidence).
        k: columns to keep; None: as many as the widest part.

    Raises:
        ValueError: no part, another number of queries, bad weights or `missing`.
    """
    share = _shares(len(parts), weights, "blend_scores")
    _same_queries(parts)
    return _union(parts, share, _missing(parts, missing), k)


def blend_power(
    parts: Sequence[Neighbors],
    weights: Sequence[float] | None = None,
    *,
    power: float = 2.0,
    missing: str = "lowest",
    k: int | None = None,
) -> Neighbors:
    """Weighted power mean of the models' scores, (sum w s^p)^(1/p), over the union, re-sorted.

    1 is the arithmetic mean, 0 the geometric, -1 the harmonic; above 1 one sure model is enough,
    below 1 all must agree: with p <= 0 one zero makes a zero. Origins: Shopee 2021 4th place
    (squared cosines, then the mean), landmark retrieval 2021 5th place (cubes).

    Args:
        parts: `(Q, K_m)` each, the same queries and the same gallery; scores of at least 0.
        weights: one per part; None: equal.
        power: p.
        missing: the score of a candidate that a model does not list, see `blend_scores`.
        k: columns to keep; None: as many as the widest part.

    Raises:
        ValueError: a negative or NaN score, and as `blend_scores`.
    """
    share = _shares(len(parts), weights, "blend_power")
    _same_queries(parts)
    for number, part in enumerate(parts):
        wrong = (part.index >= 0) & ~(part.score >= 0)
        if bool(wrong.any()):
            raise ValueError(
                f"blend_power: model {number} has {int(wrong.sum())} negative or NaN scores, the "
                f"first is {float(part.score[wrong][0]):.4g}: bring them to [0, 1] first."
            )
    device = parts[0].index.device
    index = torch.cat([part.index.to(device) for part in parts], 1)
    union = group(index, torch.zeros_like(index, dtype=torch.float32)).index
    total = torch.zeros(union.shape, dtype=torch.float64, device=device)
    for part, weight, low in zip(parts, share, _missing(parts, missing), strict=True):
        score = scores_of(union, part).double()
        score = torch.where(score.isnan(), low.to(device).double()[:, None], score)
        if weight > 0:
            total += weight * (score.log() if power == 0 else score**power)
    mean = total.exp() if power == 0 else total ** (1 / power)
    mean = mean.float().masked_fill(union < 0, -torch.inf)
    width = k if k is not None else max(part.index.shape[1] for part in parts)
    return Neighbors(union, mean).sorted().top(width)


def blend_ranks(
    parts: Sequence[Neighbors],
    weights: Sequence[float] | None = None,
    *,
    method: str = "reciprocal",
    offset: float = 60.0,
    k: int | None = None,
) -> Neighbors:
    """Ranks added up, for models whose scores cannot be compared; a missing candidate adds 0.

    `reciprocal`: sum of w / (offset + rank), rank from 1 (Cormack, Clarke and Buettcher, SIGIR
    2009, offset 60). `borda`: sum of w * (K - rank + 1) / K with K the longest list.

    Raises:
        ValueError: no part, another number of queries, bad weights or `method`.
    """
    share = _shares(len(parts), weights, "blend_ranks")
    _same_queries(parts)
    longest = max(part.index.shape[1] for part in parts)
    ranked = []
    for part in parts:
        rank = torch.arange(1, part.index.shape[1] + 1, device=part.score.device).float()
        if method == "reciprocal":
            points = 1 / (offset + rank)
        elif method == "borda":
            points = (longest - rank + 1) / longest
        else:
            raise ValueError(f"blend_ranks: method must be reciprocal or borda, got {method!r}.")
        ranked.append(Neighbors(part.index, points.expand_as(part.score)))
    return _union(ranked, share, _missing(parts, "zero"), k)


def blend_votes(
    parts: Sequence[Neighbors],
    thresholds: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    hard: bool = False,
    refuse: bool = True,
    k: int | None = None,
) -> Neighbors:
    """Candidates that the models accept together: sum of w * (score - threshold of the model) > 0.

    Origin: Shopee 2021 2nd place (LightGBM 1, graph attention 3, the team's third model 2). With
    `hard` each model has a plain vote and more than half of the weight must be for the candidate
    (6th place, 24 votes). A candidate that a model does not list counts as its lowest listed score,
    at most the threshold; the rest of the row is padding, or stays without `refuse`, for rules that
    look at it. `k` None keeps every one.

    Raises:
        ValueError: no part, another number of queries, weights or thresholds not one per part.
    """
    share = _shares(len(parts), weights, "blend_votes")
    _same_queries(parts)
    if len(thresholds) != len(parts):
        raise ValueError(f"blend_votes: {len(parts)} models but {len(thresholds)} thresholds.")
    voted, absent = [], []
    for part, threshold, low in zip(parts, thresholds, _missing(parts, "lowest"), strict=True):
        above = part.score - threshold
        voted.append(Neighbors(part.index, (above > 0).float() - 0.5 if hard else above))
        absent.append(torch.full_like(low, -0.5) if hard else (low - threshold).clamp(max=0))
    wide = sum(part.index.shape[1] for part in parts)
    total = _union(voted, share, absent, wide if k is None else k)
    if not refuse:
        return total
    keep = total.score > 1e-6  # a hard draw is 0 up to rounding
    return Neighbors(total.index.masked_fill(~keep, -1), total.score.masked_fill(~keep, -torch.inf))


def _union(
    parts: Sequence[Neighbors], share: np.ndarray, absent: Sequence[torch.Tensor], k: int | None
) -> Neighbors:
    """Sum of share * score over the models, with `absent` `(Q,)` for models that do not list it."""
    device = parts[0].index.device
    index = torch.cat([part.index.to(device) for part in parts], 1)
    gain = torch.cat(
        [
            float(weight) * (part.score - low[:, None]).to(device)
            for part, weight, low in zip(parts, share, absent, strict=True)
        ],
        1,
    )
    # What a listing adds to the score that a candidate listed by nobody would have.
    total = group(index, gain.masked_fill(index < 0, 0.0))
    base = sum(float(weight) * low.to(device) for weight, low in zip(share, absent, strict=True))
    width = k if k is not None else max(part.index.shape[1] for part in parts)
    return Neighbors(total.index, total.score + torch.as_tensor(base)[:, None]).top(width)


def _missing(parts: Sequence[Neighbors], missing: str) -> list[torch.Tensor]:
    if missing == "zero":
        return [part.score.new_zeros(len(part)) for part in parts]
    if missing == "lowest":
        return [row_range(part)[0] for part in parts]
    raise ValueError(f"blend: missing must be lowest or zero, got {missing!r}.")


def _shares(count: int, weights: Sequence[float] | None, where: str) -> np.ndarray:
    """Weights divided by their sum, `(count,)`."""
    if count == 0:
        raise ValueError(f"{where}: nothing to blend.")
    given = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (count,):
        raise ValueError(f"{where}: {count} models but weights {list(given.ravel())}.")
    if not np.isfinite(given).all() or (given < 0).any() or given.sum() == 0:
        raise ValueError(f"{where}: weights must be at least 0 and not all 0, got {list(given)}.")
    return np.asarray(given / given.sum())


def _same_ids(first: np.ndarray, other: np.ndarray, number: int) -> None:
    if len(first) != len(other):
        raise ValueError(
            f"blend_embeddings: model 0 has {len(first)} ids, model {number} has {len(other)}: "
            "blend runs on the same images."
        )
    different = np.flatnonzero(first != other)
    if len(different):
        row = different[0]
        raise ValueError(
            f"blend_embeddings: ids differ from row {row} on: {str(first[row])!r} in model 0, "
            f"{str(other[row])!r} in model {number}; bring them in one order with select()."
        )


def _same_queries(parts: Sequence[Neighbors]) -> None:
    for number, part in enumerate(parts):
        if len(part) != len(parts[0]):
            raise ValueError(
                f"blend: model 0 has {len(parts[0])} queries, model {number} has {len(part)}."
            )


if __name__ == "__main__":
    # Submissions come after blends in the order of imports; the command is theirs.
    from common.blend_files import main

    main()
