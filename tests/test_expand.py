"""Query expansion and database augmentation: against a twin, edges, bad input."""

import numpy as np
import pytest
import torch

from common.retrieval import expand
from common.retrieval.expand import (
    alpha_query_expansion,
    average_query_expansion,
    database_augmentation,
    decayed_query_expansion,
)
from common.types import Embeddings
from tests.oracles.expand import augmentation_by_rows, dirtorch_augmentation
from tests.oracles.expand import expand as twin


def unit(n, d, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows)


def close(found, expected, atol=1e-6):
    np.testing.assert_allclose(found.float().numpy(), expected, atol=atol)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("k", "own_weight"), [(1, 1.0), (6, 0.3), (90, 2.0), (50, 0.0)])
def test_alpha_expansion_equals_the_twin(alpha, k, own_weight):
    queries, gallery = (
        unit(25, 4, 1),
        unit(60, 4, 2),
    )  # 4 dimensions: many similarities are negative
    found = alpha_query_expansion(queries, gallery, k=k, alpha=alpha, own_weight=own_weight)
    expected = twin(queries, gallery, k, lambda s, _: max(s, 0.0) ** alpha, own_weight)
    close(found, expected)
    close(found.norm(dim=1), np.ones(25))


@pytest.mark.parametrize(
    ("weights", "weigh"),
    [
        ("equal", lambda rank, k: 1.0),
        ("linear", lambda rank, k: (k - rank) / k),
        ("logspace", lambda rank, k: np.logspace(0, -1.5, k + 1)[rank + 1]),
    ],
)
def test_rank_weights_equal_the_twin(weights, weigh):
    queries, gallery = unit(20, 8, 3), unit(40, 8, 4)
    found = average_query_expansion(queries, gallery, k=6, weights=weights)
    close(found, twin(queries, gallery, 6, lambda _, rank: weigh(rank, 6)))
    found = database_augmentation(gallery, k=6, weights=weights)
    close(found, twin(gallery, gallery, 6, lambda _, rank: weigh(rank, 6), exclude_self=True))


def test_bestfitting_weights_with_self_are_ten_from_one_to_ten_to_minus_one_and_a_half():
    gallery = torch.eye(10)  # all similarities tie, so neighbor i is row i
    found = database_augmentation(gallery, k=9, weights="logspace")[0]
    expected = np.logspace(0, -1.5, 10)
    close(found, expected / np.linalg.norm(expected))


def test_augmentation_leaves_self_out_by_row_also_among_duplicates():
    gallery = unit(30, 8, 5)
    gallery[15:] = gallery[:15]
    found = database_augmentation(gallery, k=3, alpha=2.0)
    close(found, twin(gallery, gallery, 3, lambda s, _: max(s, 0.0) ** 2, exclude_self=True))
    single = database_augmentation(gallery[:1], k=5)
    assert torch.equal(single, gallery[:1])


def test_opposite_vectors_with_a_fractional_power_are_no_nan():
    gallery = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    found = alpha_query_expansion(torch.tensor([[1.0, 0.0]]), gallery, k=2, alpha=0.5)
    assert found.tolist() == [[1.0, 0.0]]
    lonely = alpha_query_expansion(
        torch.tensor([[1.0, 0.0]]), gallery[:1], k=1, alpha=3.0, own_weight=0.0
    )
    assert lonely.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("step", [alpha_query_expansion, average_query_expansion])
def test_zero_rows_stay_zero_and_move_nobody(step):
    queries, gallery = unit(5, 8, 1), unit(20, 8, 2)
    queries[2] = 0
    some = step(queries, gallery, k=4)
    assert (some[2] == 0).all()
    assert (some[[0, 1, 3, 4]].norm(dim=1) > 0.99).all()
    gallery = torch.cat([gallery, torch.zeros(3, 8)])
    augmented = database_augmentation(gallery, k=4)
    assert (augmented[20:] == 0).all()


def test_more_neighbors_than_gallery_is_all_of_it():
    queries, gallery = unit(4, 8, 1), unit(6, 8, 2)
    few = average_query_expansion(queries, gallery, k=6)
    assert torch.equal(few, average_query_expansion(queries, gallery, k=60))
    close(average_query_expansion(queries, gallery[:0], k=3), queries.numpy())


def test_embeddings_keep_ids_type_and_card_and_the_input_its_values():
    ids = np.array([f"x{i}" for i in range(12)])
    gallery = Embeddings(ids, unit(12, 16).half(), {"run": "a"})
    kept = gallery.vectors.clone()
    for found in (
        database_augmentation(gallery, k=3),
        alpha_query_expansion(gallery, gallery, k=3),
        average_query_expansion(gallery, gallery, k=3),
    ):
        assert isinstance(found, Embeddings)
        assert found.vectors.dtype == torch.float16
        assert found.ids.tolist() == ids.tolist()
        assert found.card == {"run": "a"}
        assert found.card is not gallery.card
    assert torch.equal(gallery.vectors, kept)
    rows = gallery.vectors.float()
    expected = twin(rows, rows, 3, lambda s, _: max(s, 0.0) ** 3, exclude_self=True)
    close(database_augmentation(gallery, k=3).vectors, expected, atol=6e-4)


def test_a_batch_of_queries_does_not_change_the_result():
    queries, gallery = unit(50, 16, 1), unit(80, 16, 2)
    expected = alpha_query_expansion(queries, gallery, k=5)
    one_by_one = torch.cat([alpha_query_expansion(q[None], gallery, k=5) for q in queries])
    close(one_by_one, expected.numpy(), atol=1e-7)


def test_expansion_pulls_an_outlier_towards_its_class():
    generator = torch.Generator().manual_seed(0)
    centers = unit(10, 32, 7).repeat_interleave(20, 0)
    noise = torch.randn(200, 32, generator=generator)
    gallery = torch.nn.functional.normalize(centers + 0.25 * noise)
    before = (gallery * centers).sum(1).mean()
    after = (database_augmentation(gallery, k=10) * centers).sum(1).mean()
    assert after > before + 0.05


def test_aliases_are_the_same_steps():
    assert expand.alpha_qe is alpha_query_expansion
    assert expand.aqe is average_query_expansion
    assert expand.dba is database_augmentation
    assert expand.aqewd is decayed_query_expansion


def test_wrong_arguments_are_named():
    gallery = unit(6, 4)
    with pytest.raises(ValueError, match="alpha"):
        alpha_query_expansion(gallery, gallery, alpha=-1.0)
    with pytest.raises(ValueError, match="own_weight"):
        alpha_query_expansion(gallery, gallery, own_weight=float("nan"))
    with pytest.raises(ValueError, match="alpha"):
        database_augmentation(gallery, alpha=-0.5)
    with pytest.raises(ValueError, match="similarity, equal, linear, logspace, got 'rank'"):
        database_augmentation(gallery, weights="rank")
    with pytest.raises(ValueError, match="alpha_query_expansion"):
        average_query_expansion(gallery, gallery, weights="similarity")
    with pytest.raises(ValueError, match="k=0"):
        alpha_query_expansion(gallery, gallery, k=0)
    gallery[3, 1] = float("nan")
    with pytest.raises(ValueError, match="row 3"):
        database_augmentation(gallery, k=2)


def test_self_is_left_out_of_the_neighbors_by_id_not_by_rank():
    gallery = unit(20, 8, 3)
    gallery[10:] = gallery[:10]  # a copy may come before the row itself
    ids = np.array([f"x{i:02}" for i in range(20)])
    base = Embeddings(ids, gallery)
    some = Embeddings(ids[[12, 3]], gallery[[12, 3]])
    for step, weigh in (
        (alpha_query_expansion, lambda s, _: max(s, 0.0) ** 3),
        (average_query_expansion, lambda *_: 1.0),
        (decayed_query_expansion, lambda _, rank: (4 - rank) / 4),
    ):
        found = step(some, base, k=4, exclude_self=True).vectors
        expected = twin(gallery, gallery, 4, weigh, exclude_self=True)[[12, 3]]
        close(found, expected)
        stranger = Embeddings(np.array(["new", "x03"]), some.vectors)
        assert not torch.equal(step(stranger, base, k=4, exclude_self=True).vectors[0], found[0])


def test_decay_is_linear_weights_by_rank():
    queries, gallery = unit(20, 8, 3), unit(40, 8, 4)
    found = decayed_query_expansion(queries, gallery, k=5)
    close(found, twin(queries, gallery, 5, lambda _, rank: (5 - rank) / 5))


def test_augmentation_equals_the_twins_of_the_bench():
    gallery = unit(70, 16, 6)
    found = database_augmentation(gallery, k=10)
    close(found, dirtorch_augmentation(gallery, 10, 3.0))
    close(found, augmentation_by_rows(gallery, 10, 3.0))
