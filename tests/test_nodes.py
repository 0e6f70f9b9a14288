"""What the graph re-rankers share: nodes, lists, tiles, and every re-ranker on awkward input."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.rerank import nodes as module
from common.rerank.diffusion import diffusion, offline_diffusion
from common.rerank.explore import explore_exploit
from common.rerank.known import STEPS
from common.rerank.nodes import adjacency, best, nearest, nodes_of
from common.rerank.propagate import gnn_rerank
from common.rerank.reciprocal import k_reciprocal
from common.retrieval.search import search
from common.steps import chain
from common.types import Embeddings

RERANKERS = [k_reciprocal, gnn_rerank, diffusion, offline_diffusion, explore_exploit]
pytestmark = pytest.mark.filterwarnings("ignore:k_reciprocal")


def embeddings(vectors, prefix):
    return Embeddings(np.array([f"{prefix}{i:03d}" for i in range(len(vectors))]), vectors)


def scene(n=60, q=12, d=16, seed=0):
    """Images of 12 places: queries and a gallery of several views of each."""
    generator = torch.Generator().manual_seed(seed)
    places = normalize(torch.randn(12, d, generator=generator))
    noise = 0.1 * torch.randn(n + q, d, generator=generator)
    rows = normalize(places[torch.arange(n + q) % 12] + noise)
    return embeddings(rows[:q], "q"), embeddings(rows[q:], "g")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_nearest_is_the_exact_search_whatever_the_tile(monkeypatch):
    x = normalize(torch.randn(150, 8))
    expected = search(x, x, 9, exclude_self=True)
    for cells in (1 << 24, 1000):
        monkeypatch.setattr(module, "CELLS", cells)
        index, score, lowest = nearest(x, 9)
        assert torch.equal(index, expected.index)
        torch.testing.assert_close(score, expected.score)
        torch.testing.assert_close(lowest, (x @ x.T).amin(1))


def test_best_orders_ties_by_column_also_at_the_edge():
    tile = torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0, 1.0]])
    found = best(tile, 3)
    assert found.index.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert best(tile, 0).index.shape == (2, 0)
    assert best(tile, 9).index.tolist() == [[1, 0, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_an_image_on_both_sides_is_one_node_unless_it_was_moved():
    x = normalize(torch.randn(6, 4))
    gallery = embeddings(x, "x")
    queries = Embeddings(np.array(["x001", "x004", "new"]), x[[1, 3, 5]])
    found = nodes_of(queries, gallery, "step")
    assert found.asked.tolist() == [1, 6, 7]  # x004 has another vector here
    assert len(found) == 8
    twice = Embeddings(np.array(["new", "new"]), x[[5, 5]])
    assert nodes_of(twice, gallery, "step").asked.tolist() == [6, 6]


def test_zero_rows_are_no_nodes():
    queries, gallery = scene()
    gallery.vectors[[3, 7]] = 0
    queries.vectors[2] = 0
    found = nodes_of(queries, gallery, "step")
    assert len(found) == 60 + 12 - 3
    assert found.rows.tolist() == [i for i in range(60) if i not in (3, 7)]
    assert found.place.tolist() == [i for i in range(12) if i != 2]
    torch.testing.assert_close(found.vectors[found.asked], queries.vectors[found.place])


def test_adjacency_leaves_padding_out():
    found = adjacency(torch.tensor([[2, -1], [0, 1]]), torch.tensor([[0.5, 9.0], [0.25, 1.0]]), 3)
    assert found.toarray().tolist() == [[0, 0, 0.5], [0.25, 1.0, 0]]


@pytest.mark.parametrize("step", RERANKERS)
def test_results_are_ordered_rows_of_the_gallery(step):
    queries, gallery = scene()
    kept = queries.vectors.clone(), gallery.vectors.clone()
    found = step(queries, gallery, k=20)
    assert found.index.shape == (12, 20)
    assert found.index.dtype == torch.int64
    assert found.score.dtype == torch.float32
    assert (found.score.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == 20 for row in found.index.tolist())
    same = found.index[:, :5] % 12 == torch.arange(12)[:, None]
    assert same.float().mean() > 0.9, "five views of each place come first"
    assert torch.equal(queries.vectors, kept[0])
    assert torch.equal(gallery.vectors, kept[1])


@pytest.mark.parametrize("step", RERANKERS)
def test_order_of_gallery_and_queries_does_not_matter(step):
    queries, gallery = scene()
    order = torch.randperm(60)
    mixed = Embeddings(gallery.ids[order.numpy()], gallery.vectors[order])
    found, other = step(queries, gallery, k=10), step(queries, mixed, k=10)
    torch.testing.assert_close(other.score, found.score, atol=1e-5, rtol=1e-5)
    assert (order[other.index] == found.index).float().mean() > 0.98
    back = Embeddings(queries.ids[::-1].copy(), queries.vectors.flip(0))
    turned = step(back, gallery, k=10)
    torch.testing.assert_close(turned.score.flip(0), found.score, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("step", RERANKERS)
def test_more_than_the_gallery_is_all_of_it_then_padding(step):
    queries, gallery = scene(n=9)
    found = step(queries, gallery, k=15)
    assert found.index.shape == (12, 15)
    assert found.index[:, :9].sort(dim=1).values.tolist() == [list(range(9))] * 12
    assert (found.index[:, 9:] == -1).all()
    assert (found.score[:, 9:] == -torch.inf).all()
    single = step(queries, gallery.select(gallery.ids[:1]), k=2)
    assert single.index.tolist() == [[0, -1]] * 12
    assert single.score[:, 0].isfinite().all()


@pytest.mark.parametrize("step", RERANKERS)
def test_unreadable_images_come_last_and_change_nothing_else(step):
    queries, gallery = scene()
    expected = step(queries, gallery, k=60)
    dark = embeddings(torch.cat([gallery.vectors, torch.zeros(3, 16)]), "g")
    asked = embeddings(torch.cat([queries.vectors, torch.zeros(1, 16)]), "q")
    found = step(asked, dark, k=63)
    assert torch.equal(found.index[:12, :60], expected.index)
    torch.testing.assert_close(found.score[:12, :60], expected.score)
    assert found.index[:12, 60:].tolist() == [[60, 61, 62]] * 12
    assert found.index[12].tolist() == list(range(63)), "nothing is known: all tie"
    assert found.score[12].unique().numel() == 1
    assert found.score.isfinite().all()
    none = step(queries, embeddings(torch.zeros(4, 16), "g"), k=3)
    assert none.index.tolist() == [[0, 1, 2]] * 12


@pytest.mark.parametrize("step", RERANKERS)
def test_self_is_left_out_by_id_also_among_duplicates(step):
    _, gallery = scene()
    gallery.vectors[30:] = gallery.vectors[:30]  # each image twice, under two names
    queries = gallery.select(gallery.ids[:20])
    found = step(queries, gallery, k=10, exclude_self=True)
    own = torch.arange(20)[:, None]
    assert not (found.index == own).any()
    assert (found.index[:, :5] == own + 30).any(1).all(), "its copy is another image"
    assert (step(queries, gallery, k=5).index == own).any(1).all()
    every = step(queries, gallery, k=60, exclude_self=True)
    assert (every.index[:, :59] >= 0).all()
    assert (every.index[:, 59] == -1).all()


@pytest.mark.parametrize("step", RERANKERS)
def test_ids_that_occur_twice_are_handled(step):
    queries, gallery = scene()
    gallery.ids[1] = gallery.ids[0]
    queries.ids[:2] = gallery.ids[0]
    found = step(queries, gallery, k=58, exclude_self=True)
    assert not (found.index[:2] <= 1).any()
    assert (found.index[:2] >= 0).all()


@pytest.mark.parametrize("step", RERANKERS)
def test_bad_input_is_named_before_work(step):
    queries, gallery = scene()
    name = step.__name__
    with pytest.raises(ValueError, match=f"{name}: the gallery is empty"):
        step(queries, Embeddings(gallery.ids[:0], gallery.vectors[:0]))
    with pytest.raises(ValueError, match="of one D, got 8 and 16"):
        step(Embeddings(queries.ids, queries.vectors[:, :8]), gallery)
    with pytest.raises(ValueError, match=f"{name}.*k=0"):
        step(queries, gallery, k=0)
    queries.vectors[5, 2] = float("nan")
    with pytest.raises(ValueError, match=f"{name}, queries.*row 5 \\(id 'q005'\\)"):
        step(queries, gallery)
    empty = step(Embeddings(queries.ids[:0], queries.vectors[:0]), gallery, k=7)
    assert empty.index.shape == (0, 7)


@pytest.mark.parametrize("step", RERANKERS)
def test_half_precision_in_is_float32_out(step):
    queries, gallery = scene()
    half = [Embeddings(e.ids, e.vectors.half()) for e in (queries, gallery)]
    found = step(*half, k=5)
    assert found.score.dtype == torch.float32
    expected = step(queries, gallery, k=5)
    torch.testing.assert_close(found.score, expected.score, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("step", RERANKERS)
def test_steps_are_named_in_lists(step):
    queries, gallery = scene()
    steps = [{"name": step.__name__, "k": 4}]
    state = {"queries": queries, "gallery": gallery, "gallery_labels": torch.full((60,), -1)}
    found = chain(steps, STEPS, set(state), "retrieval")(state)["neighbors"]
    assert torch.equal(found.index, step(queries, gallery, k=4).index)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("step", RERANKERS)
def test_a_gpu_gives_the_same(step):
    queries, gallery = scene()
    expected = step(queries, gallery, k=10)
    there = [Embeddings(e.ids, e.vectors.cuda()) for e in (queries, gallery)]
    found = step(*there, k=10)
    assert found.index.device == there[0].vectors.device
    torch.testing.assert_close(found.score.cpu(), expected.score, atol=1e-5, rtol=1e-4)
    mixed = step(queries, there[1], k=10)
    assert mixed.index.device == queries.vectors.device
