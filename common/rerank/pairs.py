"""Features of (query, candidate) pairs for trees: similarity, ranks, gaps, density, classes.

What the pair models of the winners look at (landmarks 2020 2nd place; Shopee 2021 2nd, 3rd and 5th
place): not how similar two images are, but how similar for images of that neighborhood. Made block
by block: 3.5 million pairs of 40 features are 560 MB of float32, and one block beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.rerank.pair_columns import Block, Classes, dots
from common.rerank.voting import blocks, check_rows, stack
from common.retrieval.search import search
from common.types import Embeddings, Neighbors

_BLOCK = 1 << 23  # elements of the largest tensor of a block: 64 MiB of float64


@dataclass
class PairFeatures:
    """One row per real pair, query by query in the order of the lists.

    Attributes:
        names: of the F columns.
        values: `(P, F)` float32; NaN where a feature does not exist, which LightGBM understands.
        query: `(P,)` int64 row of the query.
        column: `(P,)` int64 place in the query's list.
        candidate: `(P,)` int64 row of the gallery.
    """

    names: list[str]
    values: np.ndarray
    query: np.ndarray
    column: np.ndarray
    candidate: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    @staticmethod
    def concatenate(parts: Mapping[str, PairFeatures]) -> PairFeatures:
        """The columns of several models' features of the same pairs, named `model.feature`.

        Raises:
            ValueError: nothing given, or other pairs.
        """
        if not parts:
            raise ValueError("PairFeatures.concatenate: nothing given.")
        first, *others = parts.values()
        for name, part in zip(list(parts)[1:], others, strict=True):
            same = np.array_equal(first.query, part.query)
            if not same or not np.array_equal(first.candidate, part.candidate):
                raise ValueError(f"PairFeatures.concatenate: {name!r} has other pairs.")
        names = [f"{model}.{name}" for model, part in parts.items() for name in part.names]
        values = np.concatenate([part.values for part in parts.values()], 1)
        return PairFeatures(names, values, first.query, first.column, first.candidate)

    def table(self, values: np.ndarray, like: Neighbors) -> Neighbors:
        """`(P,)` values as the scores of the lists, in their order; other places get NaN."""
        score = torch.full(like.score.shape, torch.nan)
        score[torch.from_numpy(self.query), torch.from_numpy(self.column)] = torch.from_numpy(
            np.asarray(values, np.float32)
        )
        return Neighbors(like.index, score.to(like.score.device))


def pair_features(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    *,
    gallery_labels: torch.Tensor | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    around: Sequence[int] = (5, 15, 30),
    device: torch.device | None = None,
) -> PairFeatures:
    """Features of every listed pair but those of an image with itself.

    A query that is in the gallery (same id) is left out of everything it is compared with: the
    candidate's own neighbors, the sizes and centres of classes. To learn with features of classes
    let images ask that are not in the gallery (`common.rerank.asking`): where every class has six
    images, the one with five that are not the query is the query's own.

    Of the pair: `cosine`; `rank` (0 is best) by it in this list, `gap_best` and `gap_next` to the
    list's best and next. For each k of `around`: `query_mean_k, query_std_k` of the k highest
    cosines of the list, `candidate_mean_k, candidate_std_k` of the candidate's k nearest in the
    gallery, `query_z_k, candidate_z_k` of the cosine by these, `shared_k`, the Jaccard overlap of
    the query's k best and the candidate's (itself and k - 1 more); `reverse_rank`, how many (at
    most the largest k) are nearer to the candidate than the query, and `reverse_gap`, by how much
    the nearest is. Of the candidate's class: `class_size` in the gallery, `class_listed` in the
    list, `class_best, class_mean_listed` cosine of those, `class_rank` among the listed classes by
    their best, `class_lead` of its best over the best other candidate, `class_mean` cosine to all
    its images and `class_center` to the normalised mean of them.

    Args:
        neighbors: `(Q, K)` rows of the gallery, in any order, each once in a row.
        queries: Q of them.
        gallery: G of them.
        gallery_labels: `(G,)` int64, -1 unknown; None leaves the features of classes out.
        extra: more columns, `(Q, K)` in the order of the lists: other models' similarities
            (`pair_cosine`), inliers, distances of texts. Name each as it shall be reported.
        around: sizes of neighborhoods, at most the length of the lists to mean what they say; ()
            leaves these features, and the search for the candidates' neighbors, out.
        device: searches the candidates' neighbors.

    Raises:
        ValueError: rows that the gallery does not have, lengths that do not fit, NaN embeddings.
    """
    check_rows(neighbors.index, len(gallery), "pair_features", "the gallery")
    extra, sizes, home = extra or {}, sorted(set(around)), gallery.vectors.device
    _check(neighbors, queries, gallery, gallery_labels, extra, sizes)
    own = torch.from_numpy(gallery.find(queries.ids)).to(home)
    index = neighbors.index.to(home)
    real = (index >= 0) & (index != own[:, None])
    query, column = (part.cpu().numpy() for part in real.nonzero(as_tuple=True))
    candidate = index[real].cpu().numpy()
    if not len(query):
        return PairFeatures([], np.empty((0, 0), np.float32), query, column, candidate)
    near, place = _own_lists(gallery, index, real, sizes, device)
    classes = None if gallery_labels is None else Classes(gallery, gallery_labels.to(home), index)
    width, dim = index.shape[1], gallery.vectors.shape[1]
    cells = width * max(dim, width if classes else 1, (sizes[-1] + 1) if sizes else 1)
    step = max(1, _BLOCK // max(cells, 1))
    values, names, start = None, list[str](), 0
    for first in range(0, len(index), step):
        rows = slice(first, first + step)
        block = Block(queries, gallery, index[rows], real[rows], own[rows], rows)
        columns = block.own_columns()
        if sizes:
            columns |= block.neighborhood(near, place, sizes)
        if classes is not None:
            columns |= block.of_classes(classes)
        columns |= {name: value[rows].to(home) for name, value in extra.items()}
        if values is None:
            names = list(columns)
            values = np.empty((len(query), len(names)), np.float32)
        kept = torch.stack([value[real[rows]].float() for value in columns.values()], 1)
        values[start : start + len(kept)] = kept.cpu().numpy()
        start += len(kept)
    assert values is not None
    return PairFeatures(names, values, query, column, candidate)


def pair_cosine(neighbors: Neighbors, queries: Embeddings, gallery: Embeddings) -> torch.Tensor:
    """Cosine of every listed pair by any model's embeddings, `(Q, K)` float32; NaN at padding."""
    check_rows(neighbors.index, len(gallery), "pair_cosine", "the gallery")
    if not len(gallery):
        return torch.full_like(neighbors.score, torch.nan)
    index, home = neighbors.index.to(gallery.vectors.device), neighbors.score.device
    cosine = torch.empty(index.shape, dtype=torch.float32)
    step = max(1, _BLOCK // max(index.shape[1] * gallery.vectors.shape[1], 1))
    for first in range(0, len(index), step):
        rows = slice(first, first + step)
        cosine[rows] = dots(queries.vectors[rows], gallery.vectors, index[rows]).float().cpu()
    return cosine.to(home).masked_fill(neighbors.index < 0, torch.nan)


def _own_lists(
    gallery: Embeddings,
    index: torch.Tensor,
    real: torch.Tensor,
    sizes: list[int],
    device: torch.device | None,
) -> tuple[Neighbors, torch.Tensor]:
    """Neighbors in the gallery of each listed image, and where a gallery row is among these."""
    place = torch.zeros(len(gallery), dtype=torch.int64, device=index.device)
    if not sizes:
        return Neighbors(index[:0], torch.zeros(0, index.shape[1])), place
    used = torch.unique(index[real])
    place[used] = torch.arange(len(used), device=index.device)
    parts = [
        search(part, gallery, sizes[-1] + 1, exclude_self=True, device=device)
        for part in blocks(gallery, used)
    ]
    empty = torch.empty(0, sizes[-1] + 1, device=index.device)
    return stack(parts, Neighbors(empty.long(), empty)), place


def _check(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    labels: torch.Tensor | None,
    extra: Mapping[str, torch.Tensor],
    sizes: list[int],
) -> None:
    if len(neighbors) != len(queries):
        raise ValueError(f"pair_features: {len(neighbors)} lists for {len(queries)} queries.")
    if labels is not None and len(labels) != len(gallery):
        raise ValueError(f"pair_features: {len(labels)} labels for {len(gallery)} gallery images.")
    for name, value in extra.items():
        if value.shape != neighbors.index.shape:
            raise ValueError(
                f"pair_features: {name!r} is {tuple(value.shape)}, the lists are "
                f"{tuple(neighbors.index.shape)}."
            )
    if sizes and sizes[0] < 1:
        raise ValueError(f"pair_features: around holds sizes of at least 1, got {sizes[0]}.")
    for name, part in (("queries", queries), ("gallery", gallery)):
        if not bool(torch.linalg.vector_norm(part.vectors, dim=1).isfinite().all()):
            raise ValueError(f"pair_features: the {name} hold NaN or infinite embeddings.")
