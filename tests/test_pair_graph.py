"""The graph attention network against a dense twin, and what trees and network learn of pairs."""

import numpy as np
import pytest
import torch
from torch.nn.functional import elu, leaky_relu, normalize

from common.config import ConfigError
from common.notes import Notes
from common.rerank import matches
from common.rerank.edge_attention import (
    AttentionLayer,
    EdgeAttention,
    PairGraph,
    around,
    scatter_softmax,
)
from common.rerank.listings import Listings
from common.rerank.pair_graph import graph_attention, pair_graph
from common.rerank.pair_trees import asked_pairs, lightgbm_pairs, pair_table
from common.rerank.sources import Sources
from common.rerank.truth import Truth
from common.types import Embeddings, Neighbors

N = 60
LABELS = np.repeat(np.arange(N // 3), 3)
SMALL = {"around": (3,), "rounds": 20, "min_leaf": 5, "folds": 3, "threads": 1}


@pytest.fixture(scope="module")
def pool():
    torch.manual_seed(0)
    ids = np.array([f"p{i:02d}" for i in range(N)])
    centers = torch.randn(N // 3, 6)[torch.from_numpy(LABELS)]
    noise = (("image", 0.7), ("text", 0.8))
    parts = {n: Embeddings(ids, normalize(centers + s * torch.randn(N, 6))) for n, s in noise}
    titles = [f"thing {label} of kind {i % 3}" for i, label in enumerate(LABELS)]
    return Sources(parts), Listings(titles), Truth(LABELS, np.arange(N) < 45)


@pytest.fixture(scope="module")
def near(pool):
    return matches.mean(pool[0], k=12)


def graph_of(seed=0, n=7, pairs=9):
    rng = np.random.default_rng(seed)
    ends = [(i, j) for i in range(n) for j in range(i + 1, n)]
    chosen = np.array(ends)[rng.choice(len(ends), pairs, replace=False)]
    a, b = torch.from_numpy(chosen[:, 0]), torch.from_numpy(chosen[:, 1])
    torch.manual_seed(seed)
    edges = torch.randn(pairs, 4).repeat(2, 1)
    return PairGraph(torch.cat([a, b]), torch.cat([b, a]), edges, torch.randn(n, 5))


def test_the_layer_is_attention_written_with_matrices():
    graph = graph_of()
    layer = AttentionLayer(5, 4, heads=3, hidden=2, dropout=0.6).eval()
    n = len(graph.nodes)
    h = layer.node(graph.nodes).view(n, 3, 2)
    e = torch.zeros(n, n, 3, 2)  # [to, from]
    linked = torch.eye(n, dtype=torch.bool)
    e[graph.target, graph.source] = layer.edge(graph.edges).view(-1, 3, 2)
    linked[graph.target, graph.source] = True
    logits = (h * layer.mine).sum(2)[:, None] + (h * layer.theirs).sum(2)[None]
    logits = leaky_relu(logits + (e * layer.between).sum(3), 0.2)
    weight = logits.masked_fill(~linked[..., None], -torch.inf).softmax(1)
    expected = elu((weight[..., None] * (h[None] + e)).sum(1).flatten(1))
    torch.testing.assert_close(layer(graph.nodes, graph), expected)


def test_softmax_over_edges_survives_large_logits():
    logits, own = torch.tensor([[1000.0], [999.0], [-50.0]]), torch.tensor([[998.0], [0.0]])
    edge, self_ = scatter_softmax(logits, torch.tensor([0, 0, 1]), own)
    expected = torch.tensor([1000.0, 999.0, 998.0]).softmax(0)
    torch.testing.assert_close(torch.cat([edge[:2, 0], self_[:1, 0]]), expected)
    assert float(edge[2] + self_[1]) == pytest.approx(1)


def test_both_directions_of_a_pair_and_any_order_of_nodes_agree():
    graph = graph_of()
    model = EdgeAttention(5, 4, heads=2, hidden=3).eval()
    half = graph.pairs
    turned = PairGraph(
        torch.cat([graph.source[half:], graph.source[:half]]),
        torch.cat([graph.target[half:], graph.target[:half]]),
        graph.edges,
        graph.nodes,
    )
    torch.testing.assert_close(model(graph), model(turned))
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    moved = PairGraph(place[graph.source], place[graph.target], graph.edges, graph.nodes[order])
    torch.testing.assert_close(model(graph), model(moved))


def test_what_is_around_some_pairs_judges_them_as_the_whole_graph_does():
    graph = graph_of(n=40, pairs=45)
    model = EdgeAttention(5, 4, heads=2, hidden=3).eval()
    rows = torch.tensor([7, 0, 30])
    part, mine = around(graph, rows)
    assert part.pairs < graph.pairs
    torch.testing.assert_close(model(part)[mine], model(graph)[rows])
    assert torch.equal(part.edges[: part.pairs], part.edges[part.pairs :])


def test_the_graph_holds_each_pair_once_with_equal_edges_both_ways(pool, near):
    a, b, graph = pair_graph(near.top(4), pool[0], ["image", "text"])
    listed = {
        (min(i, j), max(i, j)) for i, row in enumerate(near.index[:, :4].tolist()) for j in row
    }
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == listed
    assert len(a) == graph.pairs == len(listed)
    assert torch.equal(graph.edges[: len(a)], graph.edges[len(a) :])
    cosine = (pool[0].parts["text"].vectors[a] * pool[0].parts["text"].vectors[b]).sum(1)
    torch.testing.assert_close(graph.edges[: len(a), 4], cosine)


def test_pairs_with_an_asked_end_are_learned_by_its_group(pool):
    truth = pool[2]
    a, b = np.array([0, 0, 50, 50]), np.array([1, 50, 3, 51])
    rows, groups, same = asked_pairs(truth, a, b)
    assert rows.tolist() == [0, 1, 2]
    assert groups.tolist() == [[0, 0], [0, 16], [1, 16]]
    assert same.tolist() == [True, False, False]


def test_trees_learn_pairs_out_of_fold(pool, near, tmp_path):
    where, listings, truth = pool
    memory, notes = {}, Notes()
    folder = str(tmp_path / "trees")
    found = lightgbm_pairs(near, where, listings, truth, memory, notes=notes, model=folder, **SMALL)
    assert truth.best(found)[1] > truth.best(near)[1]
    assert "listing.edits" in notes.importances["lightgbm_pairs"]
    # Nobody but the fold's own model: changing a group's own truth does not change its scores.
    table = pair_table(near, where, listings, ["image", "text"], (3,))
    rows, _, _ = asked_pairs(truth, table.query, table.candidate)
    scored = found_scores(found, table.query[rows], table.candidate[rows])
    np.testing.assert_allclose(scored, memory["model"].out_of_fold_, atol=1e-6)
    with pytest.raises(ConfigError, match="lightgbm_pairs looks for pairs to learn from"):
        lightgbm_pairs(near, where, listings, None, {}, **SMALL)
    with pytest.raises(ValueError, match=r"lightgbm_pairs learns.*groups for 99 folds.*leave the"):
        lightgbm_pairs(near, where, listings, truth, {}, **{**SMALL, "folds": 99})
    test = lightgbm_pairs(near, where, listings, None, memory, **SMALL)
    kept = lightgbm_pairs(near, where, listings, None, {}, model=folder, **SMALL)
    torch.testing.assert_close(test.score, kept.score)


def found_scores(found, query, candidate):
    hit = found.index[torch.from_numpy(query)] == torch.from_numpy(candidate)[:, None]
    assert hit.any(1).all()
    return found.score[torch.from_numpy(query)][hit].numpy()


def test_the_network_learns_pairs_and_is_kept_for_the_test(pool, near, tmp_path):
    where, _, truth = pool
    settings = {"epochs": 60, "heads": 4, "hidden": 4, "folds": 3, "dropout": 0.2, "top": 8}
    memory, notes, file = {}, Notes(), str(tmp_path / "graph.safetensors")
    found = graph_attention(near, where, truth, memory, notes=notes, model=file, **settings)
    again = graph_attention(near, where, truth, {}, model=file, **settings)  # learned anew
    assert torch.equal(found.score, again.score)
    values = notes.numbers["graph_attention: average precision, out of fold"]
    share = (LABELS[near.index.numpy()] == LABELS[:, None]).mean()
    assert values > 2 * share
    assert truth.best(found)[1] > truth.best(near)[1] - 0.05
    test = graph_attention(near, where, None, memory, **settings)
    assert ((test.score[:, 0] >= 0) & (test.score[:, 0] <= 1)).all()
    kept = graph_attention(near, where, None, {}, model=file, **settings)
    assert torch.equal(test.score, kept.score)
    with pytest.raises(ValueError, match="learned from image, text, 5 features of an edge and 6"):
        graph_attention(near, where, None, {}, of=["text"], model=file, **settings)
    (tmp_path / "graph.safetensors").write_bytes(b"no network")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        graph_attention(near, where, None, {}, model=file, **settings)
    with pytest.raises(ConfigError, match="graph_attention looks for pairs"):
        graph_attention(near, where, None, {}, **settings)
    with pytest.raises(ValueError, match="folds of at least 2"):
        graph_attention(near, where, truth, {}, folds=1)


def test_three_listings_and_nothing_listed(pool):
    where, listings, _ = pool
    three = Sources({"image": where.first.select(where.first.ids[:3])})
    few = matches.nearest(three, k=50)
    memory = {}
    graph_attention(
        matches.mean(where, k=8), Sources({"image": where.first}), pool[2], memory, epochs=2
    )
    found = graph_attention(few, three, None, memory)
    assert (found.index >= 0).sum(1).tolist() == [2, 2, 2]
    nothing = Neighbors(torch.full((3, 2), -1), torch.full((3, 2), -torch.inf))
    assert (graph_attention(nothing, three, None, memory).index == -1).all()
    assert (lightgbm_pairs(nothing, three, listings, None, {}).index == -1).all()
