"""SuperGlobal's re-ranking and the candidates' blocks: against a loop, edges, devices, memory."""

import numpy as np
import pytest
import torch

from common.rerank import candidates, voting
from common.rerank.candidates import rescored
from common.rerank.known import STEPS
from common.rerank.superglobal import superglobal
from common.retrieval.search import search
from common.types import Embeddings, Neighbors
from tests.oracles import superglobal as oracle


def images(n, d=8, seed=0, prefix="g"):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    rows = torch.nn.functional.normalize(rows)
    return Embeddings(np.array([f"{prefix}{i:04}" for i in range(n)]), rows)


@pytest.mark.parametrize(
    ("top", "k", "beta", "best"),
    [(400, 9, 0.15, 10), (12, 3, 0.5, 4), (7, 50, 1.0, 50), (3, 0, 1, 1)],
)
def test_scores_equal_the_loop(top, k, beta, best):
    queries, gallery = images(6, seed=1, prefix="q"), images(40)
    near = search(queries, gallery, 25)
    found = superglobal(near, queries, gallery, top=top, k=k, beta=beta, best=best)
    for row, query in enumerate(queries.vectors):
        head = near.index[row, :top]
        expected = oracle.scores(query, gallery.vectors[head], k, beta, best)
        order = np.argsort(-expected, kind="stable")
        assert found.index[row, : len(head)].tolist() == head[order].tolist()
        np.testing.assert_allclose(found.score[row, : len(head)], expected[order], atol=1e-6)
        assert found.index[row, top:].tolist() == near.index[row, top:].tolist()
    assert (found.score.diff(dim=1) <= 0).all()


def test_blocks_of_one_query_give_the_same(monkeypatch):
    queries, gallery = images(9, seed=1, prefix="q"), images(30)
    near = search(queries, gallery, 20)
    expected = superglobal(near, queries, gallery, top=10)
    monkeypatch.setattr(candidates, "BUDGET", 1)
    sizes = [len(query) for _, query, _, _ in candidates.blocks(near, queries, gallery, 10, None)]
    assert sizes == [1] * 9
    found = superglobal(near, queries, gallery, top=10)
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.score, expected.score)
    assert voting.BUDGET > 1


def test_padding_is_no_candidate_and_no_neighbor():
    queries, gallery = images(3, seed=1, prefix="q"), images(5)
    whole = superglobal(search(queries, gallery, 5), queries, gallery)
    padded = superglobal(search(queries, gallery, 9), queries, gallery)
    assert (padded.index[:, 5:] == -1).all()
    assert (padded.score[:, 5:] == -torch.inf).all()
    assert torch.equal(padded.index[:, :5], whole.index)
    torch.testing.assert_close(padded.score[:, :5], whole.score)
    nothing = search(queries, Embeddings(gallery.ids[:0], gallery.vectors[:0]), 4)
    assert (superglobal(nothing, queries, gallery).index == -1).all()


def test_opposite_and_zero_vectors_change_nobody():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    gallery = Embeddings(np.array(["a", "b", "c"]), rows)
    queries = Embeddings(np.array(["q", "dark"]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    found = superglobal(search(queries, gallery, 3), queries, gallery, best=1)
    assert found.index[0].tolist() == [0, 2, 1]
    torch.testing.assert_close(found.score[0], torch.tensor([1.0, 0.0, -1.0]))
    assert found.score[1].tolist() == [0.0, 0.0, 0.0]


def test_copies_of_a_candidate_stay_level_and_ordered_by_row():
    gallery = images(20)
    gallery.vectors[10:] = gallery.vectors[:10]
    queries = images(2, seed=1, prefix="q")
    found = superglobal(search(queries, gallery, 20), queries, gallery, k=4)
    for row in found.index.tolist():
        place = {index: i for i, index in enumerate(row)}
        assert all(place[i + 10] - place[i] == 1 for i in range(10))


def test_it_pulls_a_scattered_class_together():
    generator = torch.Generator().manual_seed(0)
    centers = images(8, 32, seed=5).vectors.repeat_interleave(12, 0)
    rows = centers + 0.22 * torch.randn(96, 32, generator=generator)
    everything = Embeddings(
        np.array([f"{i:03}" for i in range(96)]), torch.nn.functional.normalize(rows)
    )
    near = search(everything, everything, 96, exclude_self=True)
    found = superglobal(near, everything, everything)

    def recall(result):
        label = torch.arange(96) // 12
        return (label[result.index[:, :11]] == label[:, None]).float().mean()

    assert recall(found) > recall(near) + 0.02


def test_half_precision_embeddings_are_scored_in_float32():
    queries, gallery = images(4, seed=1, prefix="q"), images(20)
    half = Embeddings(gallery.ids, gallery.vectors.half())
    near = search(queries, gallery, 10)
    found = superglobal(near, queries, half)
    assert found.score.dtype == torch.float32
    wide = Embeddings(gallery.ids, half.vectors.float())
    assert torch.equal(found.score, superglobal(near, queries, wide).score)


def test_rescored_candidates_stay_above_the_rest():
    near = Neighbors(
        torch.tensor([[4, 2, 7, 1], [3, 5, -1, -1], [6, -1, -1, -1]]),
        torch.tensor([[0.9, 0.8, 0.7, 0.2], [0.5, 0.4, -9.0, -9.0], [0.1, -9.0, -9.0, -9.0]]),
    )
    near.score[near.index < 0] = -torch.inf
    found = rescored(near, torch.tensor([[-2.0, -1.0], [0.1, 0.1], [0.3, 9.0]]))
    assert found.index.tolist() == [[2, 4, 7, 1], [3, 5, -1, -1], [6, -1, -1, -1]]
    torch.testing.assert_close(found.score[0], torch.tensor([-1.0, -2.0, -2.001, -2.501]))
    assert found.score[1].tolist()[2:] == [-torch.inf, -torch.inf]
    assert found.score[2, 0] == torch.tensor(0.3)
    lower = rescored(near, torch.tensor([[3.0, 2.0], [3.0, 2.0], [3.0, 2.0]]))
    assert torch.equal(lower.score[0, 2:], near.score[0, 2:])  # already behind: untouched
    assert torch.equal(rescored(near, near.score).index, near.index)


def test_wrong_arguments_are_named():
    gallery = images(6)
    near = search(gallery, gallery, 3)
    with pytest.raises(ValueError, match="top=0"):
        superglobal(near, gallery, gallery, top=0)
    with pytest.raises(ValueError, match="beta=-1"):
        superglobal(near, gallery, gallery, beta=-1.0)
    with pytest.raises(ValueError, match="neighbors name row"):
        superglobal(near, gallery, images(2))
    assert STEPS["superglobal"] is superglobal
