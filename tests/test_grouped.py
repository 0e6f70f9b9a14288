"""Steps from neighbors to matches, against one-by-one twins."""

import numpy as np
import pytest
import torch

from common.rerank.bridges import cut_bridges
from common.rerank.graph import components, members, neighbor_edges, size_shares
from common.rerank.grouped import fit_sizes, graph_groups, keep_matches, mutual_only
from common.rerank.known import STEPS
from common.steps import chain
from common.types import Embeddings, Neighbors
from tests.oracles import graph as oracle
from tests.test_graph import lists

ROWS = Embeddings(np.array([f"p{i:02d}" for i in range(40)]), torch.zeros(40, 2))


def pairs(neighbors):
    return [
        {i: pytest.approx(s) for i, s in zip(*row, strict=True) if i >= 0}
        for row in zip(neighbors.index.tolist(), neighbors.score.tolist(), strict=True)
    ]


def test_mutual_only_keeps_what_both_list():
    neighbors = lists()
    found = mutual_only(neighbors, ROWS, ROWS)
    rows = [set(row) - {-1} for row in neighbors.index.tolist()]
    scores = pairs(neighbors)
    expected = [
        {j: scores[i][j] for j in rows[i] if j != i and i in rows[j]} for i in range(len(rows))
    ]
    assert pairs(found) == expected
    assert 40 < sum(map(len, expected)) < sum(map(len, rows)) - 40
    assert (found.score.diff(dim=1)[found.index[:, 1:] >= 0] <= 0).all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"larger": 4, "betweenness": 0.05}, {"similarity": 0.9}, {"mean_size": 2.5}, {"most": 3}],
)
def test_graph_groups_lists_the_members(settings):
    neighbors = lists()
    found = graph_groups(neighbors, ROWS, ROWS, threshold=0.85, **settings)
    edges = neighbor_edges(neighbors, threshold=0.85)
    groups = components(edges)
    if "larger" in settings:
        cut = cut_bridges(edges, larger=4, betweenness=0.05)
        assert len(cut) < len(edges)
        groups = components(cut)
    elif settings and "most" not in settings:
        stop = (
            (lambda s, _: s < np.float32(0.9))
            if "similarity" in settings
            else (lambda _, clusters: clusters <= 16)
        )
        weights = dict(
            zip(
                zip(edges.a.tolist(), edges.b.tolist(), strict=True),
                edges.weight.tolist(),
                strict=True,
            )
        )
        for number, cluster in enumerate(oracle.agglomerate(40, weights, 0.0, stop)):
            groups[list(cluster)] = number
    wanted = members(groups, neighbors, most=settings.get("most", 50))
    listed = pairs(neighbors)
    for row, (index, score) in enumerate(
        zip(found.index.tolist(), found.score.tolist(), strict=True)
    ):
        mine = {j: s for j, s in zip(index, score, strict=True) if j >= 0}
        assert set(mine) == set(wanted[row][1:].tolist())
        low = min((float(s.expected) for s in listed[row].values()), default=0.0)
        for j, s in mine.items():
            assert s == (listed[row][j] if j in listed[row] else pytest.approx(low))
    assert (found.index >= 0).any()
    unlisted = (found.index >= 0).sum() - sum(
        j in listed[i] for i in range(40) for j in found.index[i].tolist()
    )
    assert unlisted > 0 or settings, "members join through others"


def test_keep_matches():
    neighbors = Neighbors(
        torch.tensor([[3, 1, 2], [5, 6, 7], [8, 9, -1], [-1, -1, -1]]),
        torch.tensor([[0.9, 0.6, 0.5], [0.45, 0.44, 0.1], [0.2, 0.1, -9.0], [-9.0, -9.0, -9.0]]),
    )
    neighbors.score[neighbors.index < 0] = -torch.inf
    one = keep_matches(neighbors, threshold=0.5)
    assert one.index.tolist() == [[3, 1, 2], [-1] * 3, [-1] * 3, [-1] * 3]
    two = keep_matches(neighbors, threshold=0.5, second=0.4)
    assert two.index.tolist() == [[3, 1, 2], [5, -1, -1], [-1] * 3, [-1] * 3]
    forced = keep_matches(neighbors, threshold=0.5, second=-1.0, most=2)
    assert forced.index.tolist() == [[3, 1], [5, -1], [8, -1], [-1, -1]]
    assert (forced.score[forced.index < 0] == -torch.inf).all()
    empty = Neighbors(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0))
    assert keep_matches(empty, second=0.1).index.shape == (2, 0)


@pytest.mark.parametrize("sizes", [[1], [0, 1], [0.0, 5, 3, 2], [0.2, 0.2, 0.2, 0.2, 0.1, 0.1]])
@pytest.mark.parametrize("ties", [True, False])
def test_fit_sizes_is_the_naive_one(sizes, ties):
    neighbors = lists(ties=ties)
    found = fit_sizes(neighbors, sizes=sizes)
    share = np.array(sizes) / sum(sizes)
    counts = [round(float(share[s:].sum()) * 40) for s in range(1, len(sizes))]
    expected = oracle.fitted(neighbors.score.tolist(), counts)
    assert (found.index >= 0).sum(1).tolist() == expected
    for row, count in enumerate(expected):
        assert found.index[row, :count].tolist() == neighbors.index[row, :count].tolist()


def test_fitted_sizes_are_spread_as_asked():
    neighbors = lists()
    full = Neighbors(neighbors.index[5:], neighbors.score[5:])
    found = fit_sizes(full, sizes=size_shares(np.repeat(np.arange(14), [2] * 10 + [3] * 3 + [6])))
    sizes = torch.bincount((found.index >= 0).sum(1) + 1, minlength=7)
    assert sizes[2:].tolist() == [20, 9, 0, 0, 6]


def test_steps_in_a_list():
    neighbors = lists()
    state = {"queries": ROWS, "gallery": ROWS, "neighbors": neighbors}
    steps = [
        {"name": "mutual_only"},
        {"name": "graph_groups", "threshold": 0.85, "larger": 6},
        {"name": "keep_matches", "threshold": 0.85, "second": 0.5},
        {"name": "fit_sizes", "sizes": [0.2, 0.5, 0.3]},
    ]
    found = chain(steps, STEPS, set(state), "search")(state)["neighbors"]
    assert len(found) == 40
    assert (found.index >= 0).any()
    assert found.index.shape[1] <= 2


def test_bad_input():
    neighbors = lists()
    other = Embeddings(ROWS.ids[::-1], ROWS.vectors)
    for step in (mutual_only, graph_groups):
        with pytest.raises(ValueError, match="the queries must be the gallery, in one order"):
            step(neighbors, ROWS, other)
    with pytest.raises(ValueError, match="most must be at least 1, larger at least 0"):
        graph_groups(neighbors, ROWS, ROWS, most=0)
    with pytest.raises(ValueError, match="second at most threshold, got 49, 0.6, 0.5"):
        keep_matches(neighbors, threshold=0.5, second=0.6)
    for sizes in (None, [], [0.0], [1.0, -1.0], [float("nan")]):
        with pytest.raises(ValueError, match="fit_sizes: sizes are shares"):
            fit_sizes(neighbors, sizes=sizes)
    neighbors.score[0, 0] = torch.nan
    for step in (keep_matches, lambda n: fit_sizes(n, sizes=[0.5, 0.5])):
        with pytest.raises(ValueError, match="1 scores are NaN"):
            step(neighbors)
    none = Neighbors(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3))
    nobody = Embeddings(ROWS.ids[:0], ROWS.vectors[:0])
    assert len(graph_groups(none, nobody, nobody)) == 0
    assert len(mutual_only(none, nobody, nobody)) == 0
