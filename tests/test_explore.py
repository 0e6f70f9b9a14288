"""Explore-exploit graph traversal against a heap, one query at a time."""

import pytest
import torch
from torch.nn.functional import normalize

from common.rerank import explore
from common.rerank.explore import egt, explore_exploit
from tests.oracles.explore import explore_exploit as twin
from tests.test_reciprocal import embeddings, images


def assert_equals_the_twin(found, expected, similarity):
    plain = similarity.argsort(dim=1, descending=True)
    for q, walk in enumerate(expected):
        rows, edges = [row for row, _ in walk], torch.tensor([edge for _, edge in walk])
        assert found.index[q, : len(walk)].tolist() == rows
        weakest = edges.cummin(0).values - 1e-6 * torch.arange(len(walk))
        torch.testing.assert_close(found.score[q, : len(walk)], weakest)
        rest = [row for row in plain[q].tolist() if row not in rows]
        behind = found.index[q, len(walk) :]
        behind = behind[behind >= 0]
        assert behind.tolist() == rest[: len(behind)]
        score = found.score[q, len(walk) : len(walk) + len(behind)]
        torch.testing.assert_close(score, similarity[q, behind] - 3)


@pytest.mark.parametrize(("size", "noise"), [(1, 0.0), (5, 0.5), (25, 1.0)])
@pytest.mark.parametrize("threshold", [-1.0, 0.42, 0.7, 2.0])
@pytest.mark.parametrize(("k", "degree"), [(1, 3), (20, 4), (60, 12), (150, 400)])
def test_equals_the_heap(size, noise, threshold, k, degree):
    queries, gallery = images(150, 12, size, noise)
    found = explore_exploit(queries, gallery, k=k, degree=degree, threshold=threshold)
    expected = twin(queries.vectors, gallery.vectors, k, degree, threshold)
    assert_equals_the_twin(found, expected, queries.vectors @ gallery.vectors.T)
    assert (found.score.diff(dim=1) < 0).all()


def test_self_is_not_on_the_way():
    _, gallery = images(150, 12, 5, 0.5)
    queries = gallery.select(gallery.ids[:30])
    found = explore_exploit(queries, gallery, k=20, degree=4, threshold=0.6, exclude_self=True)
    expected = twin(queries.vectors, gallery.vectors, 20, 4, 0.6, hidden=list(range(30)))
    similarity = (queries.vectors @ gallery.vectors.T).fill_diagonal_(-9)
    assert_equals_the_twin(found, expected, similarity)


def test_blocks_do_not_change_the_result(monkeypatch):
    queries, gallery = images(150, 30, 5, 0.8)
    expected = explore_exploit(queries, gallery, k=20)
    monkeypatch.setattr(explore, "_CELLS", 151 * 7)
    found = explore_exploit(queries, gallery, k=20)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.score, expected.score)


def test_threshold_is_where_the_walk_turns():
    # Query 0 degrees; a chain at 10, 20, 30 and a stranger at -26: on the query's own list both.
    angle = torch.deg2rad(torch.tensor([10.0, 20.0, 30.0, -26.0]))
    gallery = embeddings(torch.stack([angle.cos(), angle.sin()], 1), "g")
    query = embeddings(torch.tensor([[1.0, 0.0]]), "q")
    # cos 10 is .985, cos 26 is .899: below it the query's list is used up first.
    assert explore_exploit(query, gallery, degree=4, threshold=0.89).index[0, :4].tolist() == [
        0, 1, 3, 2,
    ]  # fmt: skip
    assert explore_exploit(query, gallery, degree=4, threshold=0.95).index[0, :4].tolist() == [
        0, 1, 2, 3,
    ]  # fmt: skip


def test_ties_go_by_row():
    gallery = embeddings(normalize(torch.ones(6, 3)), "g")
    query = embeddings(normalize(torch.ones(1, 3)), "q")
    for threshold in (-1.0, 2.0):
        found = explore_exploit(query, gallery, k=6, degree=5, threshold=threshold)
        assert found.index.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_alias_and_wrong_settings():
    assert egt is explore_exploit
    queries, gallery = images(20, 4, 4, 0.5)
    for wrong in ({"degree": 0}, {"threshold": float("nan")}):
        with pytest.raises(ValueError, match="explore_exploit: k and degree must be"):
            explore_exploit(queries, gallery, **wrong)
