"""Which neighbors are matches: both ends agree, one graph or cluster, sizes as groups have them.

For galleries that ask about themselves, as Shopee's listings do: queries and gallery are the same
images in one order. What is left in a row are its matches, without itself.

    search:
      - {name: knn, k: 51, exclude_self: true}
      - {name: graph_groups, threshold: 0.5, larger: 6}
      - {name: keep_matches, threshold: 0.5, second: 0.3, most: 49}
"""

from __future__ import annotations

import numpy as np
import torch

from common.rerank.agglomerate import agglomerate
from common.rerank.bridges import cut_bridges
from common.rerank.graph import components, members, neighbor_edges
from common.rerank.voting import row_range, scores_of
from common.types import Embeddings, Neighbors


def mutual_only(neighbors: Neighbors, queries: Embeddings, gallery: Embeddings) -> Neighbors:
    """Neighbors that list the query too, their scores as they are; the others are taken away.

    Raises:
        ValueError: the queries are not the gallery.
    """
    _same(neighbors, queries, gallery, "mutual_only")
    edges = neighbor_edges(neighbors)
    keys = torch.from_numpy(edges.a * edges.size + edges.b).to(neighbors.index.device)
    row = torch.arange(len(neighbors), device=keys.device)[:, None].expand_as(neighbors.index)
    low, high = torch.minimum(row, neighbors.index), torch.maximum(row, neighbors.index)
    wanted = low * edges.size + high
    keep = torch.zeros_like(wanted, dtype=torch.bool)
    if len(keys):
        at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        keep = (keys[at] == wanted) & (neighbors.index >= 0)
    return _only(neighbors, keep)


def graph_groups(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    *,
    threshold: float = 0.5,
    mutual: bool = True,
    larger: int = 0,
    betweenness: float = 0.1177,
    weight: float | None = None,
    similarity: float | None = None,
    mean_size: float | None = None,
    most: int = 50,
) -> Neighbors:
    """The members of each row's group in the graph of neighbors, whether listed or not.

    Edges join rows that score at least `threshold`. With `larger` groups above that size are taken
    apart at their bridges (`cut_bridges`: Shopee 2021 2nd place); with `similarity` or `mean_size`
    they are clusters of average linkage (`agglomerate`: 3rd place), else connected parts. A member
    that a row does not list gets the row's lowest score: what joined them are the others.

    Args:
        neighbors: `(N, K)` rows of the gallery.
        queries: N embeddings.
        gallery: the same images.
        threshold: smallest score of an edge.
        mutual: whether both ends must list the other.
        larger: groups of more nodes are taken apart; 0: none.
        betweenness: only bridges above it are cut.
        weight: only bridges below this score are cut; null: any.
        similarity: clusters merge down to this mean score.
        mean_size: clusters merge down to this mean size.
        most: at most so many members, the row itself included.

    Raises:
        ValueError: the queries are not the gallery, or settings that do not fit.
    """
    _same(neighbors, queries, gallery, "graph_groups")
    if most < 1 or larger < 0:
        raise ValueError(
            f"graph_groups: most must be at least 1, larger at least 0, got {most}, {larger}."
        )
    edges = neighbor_edges(neighbors, threshold=threshold, mutual=mutual)
    if larger:
        edges = cut_bridges(edges, larger=larger, betweenness=betweenness, weight=weight)
    if similarity is None and mean_size is None:
        groups = components(edges)
    else:
        groups = agglomerate(edges, similarity=similarity, mean_size=mean_size)
    found = members(groups, neighbors, most=most)
    sizes = np.array([len(rows) - 1 for rows in found], np.int64)
    table = np.full((len(found), int(sizes.max(initial=0))), -1)
    if table.size:
        inside = np.arange(table.shape[1]) < sizes[:, None]
        table[inside] = np.concatenate([rows[1:] for rows in found])
    index = torch.from_numpy(table).to(neighbors.index.device)
    low, _ = row_range(neighbors)
    score = scores_of(index, neighbors)
    score = torch.where(score.isnan(), low[:, None].expand_as(score), score)
    return Neighbors(index, score.masked_fill(index < 0, -torch.inf)).sorted()


def keep_matches(
    neighbors: Neighbors,
    *,
    threshold: float = 0.5,
    second: float | None = None,
    most: int = 49,
) -> Neighbors:
    """The neighbors that score at least `threshold`; a row without any may keep its best.

    Args:
        neighbors: `(Q, K)`, best first, without the query itself.
        threshold: smallest score of a match.
        second: a row without a match keeps its best neighbor from this score on: Shopee's groups
            have two members at least (1st place: min2; 6th place: force two, always). Null: none.
        most: at most so many. Shopee counts 50 with the row itself.

    Raises:
        ValueError: `second` above `threshold`, `most` below 1, or a NaN score.
    """
    if most < 1 or (second is not None and second > threshold):
        raise ValueError(
            f"keep_matches: most must be at least 1 and second at most threshold, got {most}, "
            f"{second}, {threshold}."
        )
    _refuse_nan(neighbors, "keep_matches")
    near = neighbors.sorted().top(most)
    keep = near.score >= threshold
    if second is not None and near.index.shape[1]:
        keep[:, 0] |= near.score[:, 0] >= second
    return _only(near, keep & (near.index >= 0))


def fit_sizes(neighbors: Neighbors, *, sizes: list[float] | None = None) -> Neighbors:
    """So many neighbors per row that the sizes of groups are spread as they are known to be.

    The share of rows with at least s members, s = 2, 3, ..., is met by the rows whose neighbor
    s - 1 scores highest among the rows that have s - 1 members; ties: first row. So each rank gets
    a threshold of its own. Origin: Shopee 2021 18th place chiselled its predictions to the sizes of
    the training groups; this way to do it is ours.

    Args:
        neighbors: `(N, K)`, without the query itself.
        sizes: shares of the rows whose group has 1, 2, 3, ... members (`size_shares`), divided by
            their sum. Rows with more than the last size do not occur.

    Raises:
        ValueError: no sizes, a negative or non-finite one, or a NaN score.
    """
    share = np.asarray(sizes or [], np.float64)
    if not len(share) or not np.isfinite(share).all() or (share < 0).any() or share.sum() == 0:
        raise ValueError(
            f"fit_sizes: sizes are shares of rows with 1, 2, ... members, at least 0, got {sizes}."
        )
    _refuse_nan(neighbors, "fit_sizes")
    near = neighbors.sorted().top(len(share) - 1)
    keep = torch.zeros_like(near.index, dtype=torch.bool)
    at_least = np.cumsum(share[::-1])[::-1] / share.sum()
    before = torch.ones(len(near), dtype=torch.bool, device=near.index.device)
    for place in range(near.index.shape[1]):
        count = round(float(at_least[place + 1]) * len(near))
        score = near.score[:, place].masked_fill(~before, -torch.inf)
        chosen = score.argsort(descending=True, stable=True)[:count]
        keep[chosen, place] = score[chosen] > -torch.inf
        before = keep[:, place]
    return _only(near, keep & (near.index >= 0))


def _only(neighbors: Neighbors, keep: torch.Tensor) -> Neighbors:
    return Neighbors(
        neighbors.index.masked_fill(~keep, -1), neighbors.score.masked_fill(~keep, -torch.inf)
    ).sorted()


def _same(neighbors: Neighbors, queries: Embeddings, gallery: Embeddings, step: str) -> None:
    if len(neighbors) != len(queries) or not np.array_equal(queries.ids, gallery.ids):
        raise ValueError(
            f"{step}: the queries must be the gallery, in one order; there are {len(neighbors)} "
            f"lists of {len(queries)} queries in {len(gallery)} images."
        )


def _refuse_nan(neighbors: Neighbors, step: str) -> None:
    wrong = int(neighbors.score.isnan().sum())
    if wrong:
        raise ValueError(f"{step}: {wrong} scores are NaN: check the embeddings they came from.")
