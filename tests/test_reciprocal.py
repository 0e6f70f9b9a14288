"""k-reciprocal re-ranking against its dense twin, and the warning about lone positives."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.notes import Notes
from common.rerank import reciprocal
from common.rerank.known import STEPS
from common.rerank.reciprocal import k_reciprocal
from common.steps import ConfigError, bind, chain
from common.types import Embeddings
from tests.oracles.reciprocal import k_reciprocal as twin

pytestmark = pytest.mark.filterwarnings("ignore:k_reciprocal")


def embeddings(vectors, prefix):
    return Embeddings(np.array([f"{prefix}{i:04d}" for i in range(len(vectors))]), vectors)


def images(n, q, size, noise, d=24, seed=0):
    """Queries and a gallery of classes of `size` images, in random order."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(-(-(n + q) // size), d, generator=generator).repeat_interleave(size, 0)
    rows = normalize(centers[: n + q])
    rows = normalize(rows + noise * torch.randn(rows.shape, generator=generator) / d**0.5)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    return embeddings(rows[:q], "q"), embeddings(rows[q:], "g")


def assert_equals_the_twin(queries, gallery, k1, k2, lambda_value):
    n = len(gallery)
    found = k_reciprocal(queries, gallery, k1, k2, lambda_value, k=n)
    expected = 1 - twin(queries.vectors.numpy(), gallery.vectors.numpy(), k1, k2, lambda_value)
    score = torch.empty(len(queries), n).scatter_(1, found.index, found.score)
    np.testing.assert_allclose(score.numpy(), expected, atol=1e-5)
    assert found.index.sort(dim=1).values.tolist() == [list(range(n))] * len(queries)


@pytest.mark.parametrize(("size", "noise"), [(1, 0.0), (4, 0.5), (12, 0.8), (40, 1.5)])
@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value"), [(20, 6, 0.3), (10, 3, 0.3), (5, 1, 0.0), (7, 12, 1.0)]
)
def test_equals_the_dense_twin(size, noise, k1, k2, lambda_value):
    assert_equals_the_twin(*images(220, 40, size, noise), k1, k2, lambda_value)


def test_lists_longer_than_the_set_equal_the_twin():
    assert_equals_the_twin(*images(14, 5, 4, 0.5), 30, 40, 0.3)


def test_memory_blocks_do_not_change_the_result(monkeypatch):
    queries, gallery = images(220, 40, 12, 0.8)
    expected = k_reciprocal(queries, gallery)
    monkeypatch.setattr(reciprocal, "_PAIRS", 50)
    monkeypatch.setattr("common.rerank.nodes.CELLS", 1500)
    found = k_reciprocal(queries, gallery)
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.score, expected.score)


def test_halves_round_to_even():
    # round(5 / 2) is 2 and round(7 / 2) is 4: with 3 and 3 the results would differ.
    queries, gallery = images(220, 40, 12, 0.8)
    for k1 in (5, 7):
        assert_equals_the_twin(queries, gallery, k1, 1, 0.0)


def test_lambda_one_is_plain_search_and_scores_lie_in_0_1():
    queries, gallery = images(220, 40, 12, 0.8)
    plain = (queries.vectors @ gallery.vectors.T).topk(20).indices
    assert torch.equal(k_reciprocal(queries, gallery, lambda_value=1.0, k=20).index, plain)
    found = k_reciprocal(queries, gallery, k=220)
    assert float(found.score.min()) >= 0
    assert float(found.score.max()) <= 1


def test_noisy_classes_are_ranked_better_than_by_similarity():
    queries, gallery = images(600, 40, 20, 1.6, d=48)
    label = {tuple(v.tolist()): None for v in queries.vectors}  # classes by nearest clean centre
    assert len(label) == 40
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(32, 48, generator=generator))
    asked = (queries.vectors @ centers.T).argmax(1)
    classes = (gallery.vectors @ centers.T).argmax(1)

    def precision(index):
        return float((classes[index] == asked[:, None]).float().mean())

    plain = precision((queries.vectors @ gallery.vectors.T).topk(15).indices)
    assert precision(k_reciprocal(queries, gallery, k=15).index) > plain + 0.02


def test_named_in_a_list_with_settings():
    queries, gallery = images(220, 40, 12, 0.8)
    step = {"name": "k_reciprocal", "k": 100, "k1": 20, "k2": 6, "lambda_value": 0.3}
    notes = Notes()
    state = {"queries": queries, "gallery": gallery, "notes": notes}
    found = chain([step], STEPS, set(state), "retrieval")(state)["neighbors"]
    assert torch.equal(found.index, k_reciprocal(queries, gallery).index)
    assert set(notes.numbers) == {"k_reciprocal: queries with a lone first neighbor"}
    with pytest.raises(ConfigError, match="no argument 'k3'"):
        bind({"name": "k_reciprocal", "k3": 1}, STEPS)


def warning(queries, gallery, **arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        k_reciprocal(queries, gallery, **arguments)
    return [str(w.message) for w in caught]


def test_one_positive_per_identity_is_warned_about():
    queries, gallery = images(400, 40, 1, 0.0)
    near = normalize(gallery.vectors[:40] + 0.3 * torch.randn(40, 24) / 24**0.5)
    pairs = embeddings(near, "q")
    (text,) = warning(pairs, gallery)
    assert "of the queries have one reciprocal neighbor that stands alone" in text
    assert "compare with knn" in text
    assert not warning(queries, gallery), "no positive at all is not one"
    for size in (3, 5, 20):
        assert not warning(*images(400, 40, size, 0.5)), "several are what it needs"


def test_labels_decide_over_lone_neighbors():
    queries, gallery = images(220, 40, 12, 0.8)
    (text,) = warning(queries, gallery, gallery_labels=torch.arange(220) // 1)
    assert "1.00 images per label" in text
    assert warning(queries, gallery, gallery_labels=torch.arange(220) % 150)  # 1.47 each
    assert not warning(queries, gallery, gallery_labels=torch.arange(220) % 140)  # 1.57
    assert not warning(queries, gallery, gallery_labels=torch.arange(220) // 4)
    assert not warning(queries, gallery, gallery_labels=torch.full((220,), -1))


def test_wrong_settings_are_named():
    queries, gallery = images(20, 4, 4, 0.5)
    for wrong in ({"k1": 0}, {"k2": 0}, {"lambda_value": 1.5}, {"lambda_value": float("nan")}):
        with pytest.raises(ValueError, match="k_reciprocal: k, k1 and k2 must be"):
            k_reciprocal(queries, gallery, **wrong)
