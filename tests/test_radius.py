"""Range search: against the pair-by-pair twin and faiss, ties, bounds, bad input."""

import faiss
import numpy as np
import pytest
import torch

from common.retrieval import tiles
from common.retrieval.radius import range_search
from common.types import Embeddings
from tests.oracles.search import within as twin
from tests.test_search import shuffled_ids, unit, whole


def lists(found):
    return [
        [(i, s) for i, s in zip(index.tolist(), score.tolist(), strict=True) if i >= 0]
        for index, score in zip(found.index, found.score, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("threshold", [-1.0, 0.1, 0.35, 0.9])
def test_equals_the_twin_bit_for_bit(dtype, threshold, monkeypatch):
    monkeypatch.setattr(tiles, "_CPU_COLUMNS", 16)
    queries = Embeddings(shuffled_ids(11, 1, "q"), unit(11, 12, 1).to(dtype))
    gallery = Embeddings(shuffled_ids(70), unit(70, 12).to(dtype))
    found = range_search(queries, gallery, threshold=threshold)
    expected = twin(queries.ids, queries.vectors, gallery.ids, gallery.vectors, threshold)
    assert lists(found) == expected
    assert found.index.shape[1] == max(map(len, expected))
    assert (found.score[found.index < 0] == -torch.inf).all()


@pytest.mark.parametrize("seed", range(3))
def test_what_equals_the_threshold_is_inside_and_self_is_left_out_by_id(seed):
    gallery = Embeddings(shuffled_ids(90, seed), whole(90, 3, seed))
    queries = gallery.select(np.sort(gallery.ids)[::4])
    found = range_search(queries, gallery, threshold=2, exclude_self=True)
    expected = twin(queries.ids, queries.vectors, gallery.ids, gallery.vectors, 2, True)
    assert any(score == 2 for row in expected for _, score in row)
    assert lists(found) == expected
    assert not (gallery.ids[found.index.numpy()] == queries.ids[:, None])[found.index >= 0].any()


def test_a_score_one_rounding_below_the_threshold_is_outside():
    queries, gallery = unit(1, 64, 1), unit(400, 64, 2)
    score = sorted(s for row in twin([0], queries, range(400), gallery, -1) for _, s in row)
    limit = np.float32(score[-5])
    assert len(lists(range_search(queries, gallery, threshold=float(limit)))[0]) == 5
    above = float(np.nextafter(limit, np.float32(1)))
    assert len(lists(range_search(queries, gallery, threshold=above))[0]) == 4


def test_agrees_with_faiss_as_an_independent_library():
    queries, gallery = unit(20, 32, 5), unit(1500, 32, 6)
    index = faiss.IndexFlatIP(32)
    index.add(gallery.numpy())
    ends, _, rows = index.range_search(queries.numpy(), 0.3)
    found = range_search(queries, gallery, threshold=0.3)
    for q in range(20):
        assert {i for i, _ in lists(found)[q]} == set(rows[ends[q] : ends[q + 1]].tolist())


def test_nothing_near_and_nothing_to_search():
    some, none = unit(3, 8), torch.empty(0, 8)
    assert range_search(some, some, threshold=1.5).index.shape == (3, 0)
    assert range_search(some, none).index.shape == (3, 0)
    assert range_search(none, some).index.shape == (0, 0)
    lost = range_search(torch.zeros(1, 8), some, threshold=0)  # a zero row ties with everything
    assert lost.index.tolist() == [[0, 1, 2]]


def test_wrong_calls_say_what_to_do():
    a = unit(20, 8)
    with pytest.raises(ValueError, match="400 cells .* most=399: raise the threshold"):
        range_search(a, a, threshold=-2, most=399)
    crowd = torch.cat([a, a[:1].expand(30, 8)])  # few pairs, but one long row
    with pytest.raises(ValueError, match="most=500"):
        range_search(a, crowd, threshold=0.99, most=500)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite threshold"):
            range_search(a, a, threshold=wrong)
    with pytest.raises(ValueError, match="one D"):
        range_search(a, unit(5, 9))
    bad = a.clone()
    bad[3, 2] = float("nan")
    with pytest.raises(ValueError, match="gallery: 1 embeddings hold NaN.* row 3:"):
        range_search(a, bad)
