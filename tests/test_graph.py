"""Edges, parts, bridges and clusters against Python sets, networkx and scikit-learn."""

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering

from common.rerank import bridges
from common.rerank.agglomerate import agglomerate
from common.rerank.bridges import cut_bridges, edge_betweenness
from common.rerank.graph import (
    Edges,
    components,
    group_neighbors,
    in_order,
    members,
    neighbor_edges,
    size_shares,
)
from common.types import Neighbors
from tests.oracles import graph as oracle


def lists(n=40, k=6, seed=0, ties=False):
    """Neighbors among themselves; some rows name themselves, some are short or empty."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(n, 2, generator=generator)
    score = 1 - torch.cdist(place, place)
    if ties:
        score = (score * 10).round() / 10
    score += 0.02 * torch.rand(n, n, generator=generator) * (not ties)  # not symmetric
    score, index = score.topk(k, dim=1)
    index[3, 2:], score[3, 2:] = -1, -torch.inf
    index[4], score[4] = -1, -torch.inf
    return Neighbors(index, score).sorted()


def graph(weights, n):
    pairs = sorted(weights)
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    return Edges(a, b, np.array([weights[p] for p in pairs], np.float32), n)


def as_dict(edges):
    return {
        (a, b): w
        for a, b, w in zip(edges.a.tolist(), edges.b.tolist(), edges.weight.tolist(), strict=True)
    }


@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("threshold", [None, 0.85])
@pytest.mark.parametrize("ties", [True, False])
def test_edges_and_parts_are_the_naive_ones(mutual, threshold, ties):
    neighbors = lists(ties=ties)
    found = neighbor_edges(neighbors, threshold=threshold, mutual=mutual)
    wall = -np.inf if threshold is None else np.float32(threshold)
    expected = oracle.edges(neighbors.index.tolist(), neighbors.score.tolist(), wall, mutual)
    assert as_dict(found) == pytest.approx(expected)
    assert list(as_dict(found)) == sorted(expected), "ordered"
    assert components(found).tolist() == oracle.parts(40, expected)


def test_a_row_that_lists_another_twice_is_one_listing():
    twice = Neighbors(torch.tensor([[1, 1], [-1, -1]]), torch.tensor([[0.9, 0.8], [0.0, 0.0]]))
    assert len(neighbor_edges(twice)) == 0
    assert as_dict(neighbor_edges(twice, mutual=False)) == {(0, 1): pytest.approx(0.9)}


@pytest.mark.parametrize("cells", [1, 1 << 22])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_betweenness_is_networkxs(seed, cells, monkeypatch):
    monkeypatch.setattr(bridges, "_CELLS", cells)
    found = neighbor_edges(lists(30, 5, seed), mutual=seed != 1)
    other = nx.Graph()
    other.add_nodes_from(range(30))
    other.add_edges_from(zip(found.a.tolist(), found.b.tolist(), strict=True))
    expected = nx.edge_betweenness_centrality(other)
    expected = {tuple(sorted(e)): value for e, value in expected.items()}
    values = edge_betweenness(found).tolist()
    mine = dict(zip(zip(found.a.tolist(), found.b.tolist(), strict=True), values, strict=True))
    assert mine == pytest.approx(expected)
    assert len(mine) > 20


def test_a_bridge_between_two_cliques_is_cut():
    cliques = {(a, b): 0.9 for c in (0, 4) for a in range(c, c + 4) for b in range(a + 1, c + 4)}
    edges = graph(cliques | {(3, 4): 0.5}, 8)
    assert set(as_dict(cut_bridges(edges))) == set(cliques)
    assert len(cut_bridges(edges, larger=8)) == len(edges), "not too large"
    assert len(cut_bridges(edges, weight=0.5)) == len(edges), "too strong to cut"
    assert set(as_dict(cut_bridges(edges, weight=0.51))) == set(cliques)
    assert len(cut_bridges(edges, betweenness=0.6)) == len(edges)  # 16 of 28 pairs is .571
    assert set(as_dict(cut_bridges(edges, betweenness=0.57))) == set(cliques)


@pytest.mark.parametrize(
    ("seed", "larger", "share", "below"), [(0, 6, 0.1, None), (1, 3, 0.0, None), (2, 4, 0.05, 0.97)]
)
def test_cuts_are_the_naive_ones(seed, larger, share, below):
    edges = neighbor_edges(lists(40, 5, seed), mutual=False)
    found = cut_bridges(edges, larger=larger, betweenness=share, weight=below)
    expected = oracle.cut(40, as_dict(edges), larger, share, below)
    assert set(as_dict(found)) == expected
    assert len(found) < len(edges)
    if below is None and share == 0:
        assert np.bincount(components(found)).max() <= larger


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_clusters_are_the_naive_ones(seed, missing):
    edges = neighbor_edges(lists(24, 6, seed), mutual=False)
    for wall in (0.5, 0.8, 0.95):
        found = agglomerate(edges, similarity=wall, missing=missing)
        expected = oracle.agglomerate(24, as_dict(edges), missing, lambda s, _, w=wall: s < w)
        assert {frozenset(np.flatnonzero(found == g).tolist()) for g in set(found)} == expected
        assert found.tolist() == in_order(found).tolist()
    for size, count in ((1.0, 24), (2.0, 12), (3.0, 8)):
        found = agglomerate(edges, mean_size=size, missing=missing)
        assert found.max() + 1 == count
        expected = oracle.agglomerate(
            24, as_dict(edges), missing, lambda _, clusters, c=count: clusters <= c
        )
        assert {frozenset(np.flatnonzero(found == g).tolist()) for g in set(found)} == expected


def test_a_complete_graph_clusters_as_in_scikit_learn():
    generator = np.random.default_rng(0)
    place = generator.random((30, 3))
    apart = np.linalg.norm(place[:, None] - place, axis=2)
    a, b = np.triu_indices(30, 1)
    edges = Edges(a, b, (2 - apart[a, b]).astype(np.float32), 30)
    for wall in (0.2, 0.4, 0.6):
        theirs = AgglomerativeClustering(
            n_clusters=None, distance_threshold=wall, metric="precomputed", linkage="average"
        ).fit(apart)
        found = agglomerate(edges, similarity=2 - wall)
        assert found.tolist() == in_order(theirs.labels_).tolist()
        assert 1 < found.max() + 1 < 30


def test_a_mean_size_that_the_parts_cannot_reach():
    edges = graph({(0, 1): 0.9, (2, 3): 0.8}, 6)
    assert agglomerate(edges, mean_size=6).tolist() == [0, 0, 1, 1, 2, 3]
    assert agglomerate(edges, mean_size=1.2).tolist() == [0, 0, 1, 2, 3, 4]
    assert agglomerate(graph({}, 3), mean_size=3).tolist() == [0, 1, 2]
    assert agglomerate(graph({}, 0), similarity=0.5).tolist() == []


@pytest.mark.parametrize("most", [None, 1, 3, 50])
@pytest.mark.parametrize("listed", [True, False])
def test_members_are_the_naive_ones(most, listed):
    neighbors = lists(40, 6)
    groups = np.random.default_rng(0).integers(0, 5, 40)
    found = members(groups, neighbors if listed else None, most=most)
    index = neighbors.index.tolist() if listed else [[]] * 40
    score = neighbors.score.tolist() if listed else [[]] * 40
    expected = oracle.members(groups.tolist(), index, score, most)
    assert [rows.tolist() for rows in found] == expected
    own = group_neighbors(groups, neighbors)
    for row, near in enumerate(own.index.tolist()):
        kept = [j for j in neighbors.index[row].tolist() if j >= 0 and j != row]
        kept = [j for j in kept if groups[j] == groups[row]]
        assert [j for j in near if j >= 0] == kept


def test_size_shares():
    shares = size_shares(np.array([4, 4, 4, 7, 7, 9, -1, -1]))
    assert shares == pytest.approx([3 / 8, 2 / 8, 3 / 8])
    assert size_shares(np.array([], np.int64)) == []


def test_little_and_bad_input():
    none = neighbor_edges(Neighbors(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3)))
    assert (len(none), components(none).tolist(), members(components(none))) == (0, [], [])
    assert edge_betweenness(none).tolist() == []
    empty = neighbor_edges(Neighbors(torch.full((3, 2), -1), torch.full((3, 2), -torch.inf)))
    assert components(empty).tolist() == [0, 1, 2]
    assert len(cut_bridges(empty)) == 0
    with pytest.raises(ValueError, match="name row 7 of 2: queries and gallery must be the same"):
        neighbor_edges(Neighbors(torch.tensor([[7], [0]]), torch.ones(2, 1)))
    with pytest.raises(ValueError, match="neighbors of row 1 have a NaN score"):
        neighbor_edges(Neighbors(torch.tensor([[1], [0]]), torch.tensor([[1.0], [torch.nan]])))
    edges = graph({(0, 1): 0.9}, 2)
    with pytest.raises(ValueError, match="either similarity or mean_size, got None, None"):
        agglomerate(edges)
    with pytest.raises(ValueError, match="either similarity or mean_size, got 0.5, 2"):
        agglomerate(edges, similarity=0.5, mean_size=2)
    with pytest.raises(ValueError, match="mean_size must be at least 1, got 0.5"):
        agglomerate(edges, mean_size=0.5)
    with pytest.raises(ValueError, match="similarity is NaN or infinite"):
        agglomerate(graph({(0, 1): np.nan}, 2), similarity=0.5)
    with pytest.raises(ValueError, match="larger must be at least 1"):
        cut_bridges(edges, larger=0)
    with pytest.raises(ValueError, match="most must be at least 1"):
        members(np.zeros(2), most=0)
    with pytest.raises(ValueError, match="2 groups but 40 lists"):
        members(np.zeros(2), lists())


def test_a_part_too_large_for_its_distances_says_so(monkeypatch):
    monkeypatch.setattr("common.rerank.agglomerate._LARGEST", 3)
    chain = graph({(i, i + 1): 0.5 for i in range(4)}, 5)
    with pytest.raises(
        ValueError, match="a part of 5 nodes needs all their distances, the most is"
    ):
        agglomerate(chain, similarity=0.5)
