"""Graph-network re-ranking against its dense twin."""

import pytest
import torch

from common.rerank.propagate import gnn_rerank
from tests.oracles.propagate import gnn_rerank as twin
from tests.test_reciprocal import images


@pytest.mark.parametrize(("size", "noise"), [(1, 0.0), (4, 0.5), (30, 1.0)])
@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value", "layers"),
    [(26, 7, 0.3, 2), (26, 7, 0.0, 2), (10, 10, 0.5, 3), (5, 1, 0.3, 1), (12, 4, 0.3, 0)],
)
def test_equals_the_dense_twin(size, noise, k1, k2, lambda_value, layers):
    queries, gallery = images(220, 40, size, noise)
    settings = {"k1": k1, "k2": k2, "lambda_value": lambda_value, "layers": layers}
    found = gnn_rerank(queries, gallery, k=220, **settings)
    score = torch.empty(40, 220).scatter_(1, found.index, found.score)
    torch.testing.assert_close(
        score, twin(queries.vectors, gallery.vectors, **settings), atol=1e-5, rtol=0
    )


def test_lists_longer_than_the_set_equal_the_twin():
    queries, gallery = images(14, 5, 4, 0.5)
    found = gnn_rerank(queries, gallery, k=14)
    score = torch.empty(5, 14).scatter_(1, found.index, found.score)
    torch.testing.assert_close(score, twin(queries.vectors, gallery.vectors), atol=1e-5, rtol=0)


def test_one_image_lists_are_the_plain_search():
    queries, gallery = images(100, 20, 5, 0.5)
    found = gnn_rerank(queries, gallery, k1=1, k2=1, k=10)
    plain = (queries.vectors @ gallery.vectors.T).topk(10)
    assert torch.equal(found.index, plain.indices)
    torch.testing.assert_close(found.score, 0.3 * plain.values)


def test_wrong_settings_are_named():
    queries, gallery = images(20, 4, 4, 0.5)
    for wrong in ({"k1": 3, "k2": 4}, {"layers": -1}, {"lambda_value": -0.1}):
        with pytest.raises(ValueError, match="gnn_rerank: k and k1 must be"):
            gnn_rerank(queries, gallery, **wrong)
