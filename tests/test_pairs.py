"""Pair features against loops over pairs; a query in the gallery must not see itself."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.rerank import pairs
from common.rerank.pairs import PairFeatures, pair_cosine, pair_features
from common.rerank.voting import scores_of
from common.retrieval.search import search
from common.types import Embeddings, Neighbors
from tests.oracles import pairs as oracle


def embeddings(n, seed, prefix, d=5):
    generator = torch.Generator().manual_seed(seed)
    vectors = normalize(torch.randn(n, d, generator=generator), dim=1)
    return Embeddings(np.array([f"{prefix}{i:03d}" for i in range(n)]), vectors)


@pytest.fixture
def scene():
    """14 queries, some of them in the gallery; lists in no order, short, empty, naming self."""
    gallery, others = embeddings(24, 1, "g"), embeddings(8, 0, "q")
    queries = Embeddings(
        np.concatenate([others.ids, gallery.ids[:6]]),
        torch.cat([others.vectors, gallery.vectors[:6]]),
    )
    index = torch.stack(
        [torch.randperm(24, generator=torch.Generator().manual_seed(q))[:9] for q in range(14)]
    )
    index[9, 4] = 1 if 1 not in index[9] else index[9, 4]  # the query's own row
    index[2, 5:], index[3] = -1, -1
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, -1] * 3)
    return queries, gallery, Neighbors(index, torch.zeros(14, 9)), labels


@pytest.mark.parametrize("around", [(), (2, 4), (3, 7, 40)])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("block", [1, 1 << 23])
def test_features_are_the_naive_ones(scene, around, labelled, block, monkeypatch):
    monkeypatch.setattr(pairs, "_BLOCK", block)
    queries, gallery, neighbors, labels = scene
    found = pair_features(
        neighbors, queries, gallery, gallery_labels=labels if labelled else None, around=around
    )
    expected = oracle.features(
        neighbors.index.tolist(),
        queries.vectors.numpy(),
        queries.ids,
        gallery.vectors.numpy(),
        gallery.ids,
        labels.tolist() if labelled else None,
        around,
    )
    assert len(found) == len(expected) > 80
    assert found.names == list(expected[0][3])
    for i, (q, column, candidate, values) in enumerate(expected):
        assert (found.query[i], found.column[i], found.candidate[i]) == (q, column, candidate)
        mine = dict(zip(found.names, found.values[i].tolist(), strict=True))
        assert mine == pytest.approx(values, abs=2e-5, rel=1e-5, nan_ok=True), (q, column)


def test_a_query_in_the_gallery_is_left_out_of_it(scene):
    """A query with its own id in the gallery has the features it has when it is not there."""
    _, gallery, _, labels = scene
    row = 3
    query = gallery.select(gallery.ids[[row]])
    rest = np.delete(np.arange(24), row)
    without = gallery.select(gallery.ids[rest])
    inside = pair_features(
        search(query, gallery, 8, exclude_self=True),
        query,
        gallery,
        gallery_labels=labels,
        around=(3, 6),
    )
    outside = pair_features(
        search(query, without, 8), query, without, gallery_labels=labels[rest], around=(3, 6)
    )
    assert inside.values == pytest.approx(outside.values, abs=1e-5, nan_ok=True)
    assert rest[outside.candidate].tolist() == inside.candidate.tolist()


def test_extra_columns_and_joined_models(scene):
    queries, gallery, neighbors, _ = scene
    other = embeddings(24, 7, "g"), embeddings(14, 8, "q")
    cosine = pair_cosine(neighbors, other[1], other[0])
    rows = neighbors.index.clamp(min=0)
    expected = (other[1].vectors[:, None] * other[0].vectors[rows]).sum(2)
    real = neighbors.index >= 0
    torch.testing.assert_close(cosine[real], expected[real])
    assert cosine[~real].isnan().all()
    one = pair_features(neighbors, queries, gallery, extra={"text": cosine}, around=())
    assert one.names[-1] == "text"
    kept = torch.from_numpy(one.query), torch.from_numpy(one.column)
    assert one.values[:, -1].tolist() == cosine[kept].tolist()
    both = PairFeatures.concatenate({"image": one, "again": one})
    assert both.names[:2] == ["image.cosine", "image.rank"]
    assert both.values.shape == (len(one), 2 * len(one.names))
    table = one.table(one.values[:, 0], neighbors)
    assert table.score[kept].tolist() == one.values[:, 0].tolist()
    assert table.score[3].isnan().all()
    with pytest.raises(ValueError, match="'b' has other pairs"):
        PairFeatures.concatenate(
            {"a": one, "b": pair_features(neighbors.top(4), queries, gallery, around=())}
        )
    with pytest.raises(ValueError, match="nothing given"):
        PairFeatures.concatenate({})


def test_scores_of_candidates_in_another_order():
    neighbors = Neighbors(
        torch.tensor([[5, 2, -1], [7, 1, 0]]),
        torch.tensor([[0.9, 0.5, -torch.inf], [0.8, 0.7, 0.1]]),
    )
    found = scores_of(torch.tensor([[2, 9, 5, -1], [0, 1, 2, 7]]), neighbors)
    expected = torch.tensor([[0.5, torch.nan, 0.9, torch.nan], [0.1, 0.7, torch.nan, 0.8]])
    assert torch.allclose(found, expected, equal_nan=True)
    empty = Neighbors(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0))
    assert scores_of(neighbors.index, empty).isnan().all()


def test_nothing_listed(scene):
    queries, gallery, _, labels = scene
    none = Neighbors(torch.full((14, 3), -1), torch.full((14, 3), -torch.inf))
    assert len(pair_features(none, queries, gallery, gallery_labels=labels)) == 0
    empty = Neighbors(torch.zeros(14, 0, dtype=torch.int64), torch.zeros(14, 0))
    assert len(pair_features(empty, queries, gallery)) == 0


def test_bad_input(scene):
    queries, gallery, neighbors, labels = scene
    with pytest.raises(ValueError, match="14 lists for 8 queries"):
        pair_features(neighbors, queries.select(queries.ids[:8]), gallery)
    with pytest.raises(ValueError, match="3 labels for 24 gallery images"):
        pair_features(neighbors, queries, gallery, gallery_labels=labels[:3])
    with pytest.raises(ValueError, match=r"'text' is \(14, 2\), the lists are \(14, 9\)"):
        pair_features(neighbors, queries, gallery, extra={"text": torch.zeros(14, 2)})
    with pytest.raises(ValueError, match="name row 23 but the gallery has 20"):
        pair_features(neighbors, queries, gallery.select(gallery.ids[:20]))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        pair_features(neighbors, queries, gallery, around=(0, 3))
    broken = Embeddings(gallery.ids, gallery.vectors.clone())
    broken.vectors[5, 0] = torch.nan
    with pytest.raises(ValueError, match="the gallery hold NaN or infinite"):
        pair_features(neighbors, queries, broken)
