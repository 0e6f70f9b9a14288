"""Exact search: against a pair-by-pair twin and faiss, ties, masks, padding, bad input."""

import faiss
import numpy as np
import pytest
import torch

import common.retrieval.search as module
from common.retrieval import faiss_top, tiles
from common.retrieval.search import knn, search
from common.types import Embeddings
from tests.oracles.search import search as twin

BACKENDS = ["torch", "faiss"]


def unit(n, d, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows)


def whole(n, d, seed=0, high=3):
    """Small whole numbers: every product is exact, so ties are plentiful and certain."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, high, (n, d), generator=generator).float()


def shuffled_ids(n, seed=0, prefix="g"):
    order = np.random.default_rng(seed).permutation(n)
    return np.array([f"{prefix}{i:04d}" for i in order])


def same(found, expected):
    index, score = expected
    np.testing.assert_array_equal(found.score.numpy(), score)
    np.testing.assert_array_equal(found.index.numpy(), index)
    assert found.index.dtype == torch.int64
    assert found.score.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(70, 5), (70, 70), (9, 20), (1, 1)])
def test_equals_the_twin_bit_for_bit(backend, dtype, n, k):
    queries = Embeddings(shuffled_ids(11, 1, "q"), unit(11, 24, 1).to(dtype))
    gallery = Embeddings(shuffled_ids(n), unit(n, 24).to(dtype))
    found = search(queries, gallery, k, backend=backend, query_block=4, gallery_block=16)
    same(found, twin(queries.ids, queries.vectors, gallery.ids, gallery.vectors, k))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(4))
def test_ties_go_by_id_also_at_the_boundary(backend, seed):
    queries = Embeddings(shuffled_ids(12, seed, "q"), whole(12, 3, seed, 2))
    gallery = Embeddings(shuffled_ids(300, seed), whole(300, 3, seed + 9, 2))
    expected = twin(queries.ids, queries.vectors, gallery.ids, gallery.vectors, 10)
    tied = expected[1][:, -1:] == (queries.vectors @ gallery.vectors.T).numpy()
    assert (tied.sum(1) > 27).sum() > 3  # more ties at the boundary than spare candidates
    same(search(queries, gallery, 10, backend=backend, gallery_block=64), expected)
    same(search(queries, gallery, 10, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_exclude_self_masks_the_id_not_the_first_column(backend):
    vectors = whole(200, 3)  # many exact duplicates: self is rarely column 0
    gallery = Embeddings(shuffled_ids(200), vectors)
    queries = gallery.select(np.sort(gallery.ids)[::3])
    queries = Embeddings(
        np.concatenate([queries.ids, ["unknown"]]), torch.cat([queries.vectors, vectors[:1]])
    )
    found = search(queries, gallery, 7, backend=backend, exclude_self=True, gallery_block=64)
    expected = twin(queries.ids, queries.vectors, gallery.ids, vectors, 7, exclude_self=True)
    same(found, expected)
    assert not (gallery.ids[found.index.numpy()] == queries.ids[:, None]).any()


def test_exclude_self_of_tensors_goes_by_row_and_pads():
    vectors = whole(6, 3)
    rows = np.arange(6)
    found = search(vectors, vectors, 6, exclude_self=True)
    same(found, twin(rows, vectors, rows, vectors, 6, exclude_self=True))
    assert (found.index[:, -1] == -1).all()
    assert (found.score[:, -1] == -torch.inf).all()


def test_a_query_that_is_its_own_only_neighbor_has_none():
    alone = Embeddings(np.array(["only"]), unit(1, 8))
    found = search(alone, alone, 3, exclude_self=True)
    assert found.index.tolist() == [[-1, -1, -1]]
    assert (found.score == -torch.inf).all()


def test_an_id_that_occurs_twice_ties_by_row():
    twice = Embeddings(np.array(["b", "a", "b", "a"]), unit(1, 8).expand(4, 8))
    assert search(twice, twice, 4).index.tolist() == [[1, 3, 0, 2]] * 4


def test_zero_vectors_tie_with_everything_in_id_order():
    gallery = Embeddings(shuffled_ids(500), unit(500, 8))
    queries = Embeddings(np.array(["lost"]), torch.zeros(1, 8))
    found = search(queries, gallery, 20)
    assert gallery.ids[found.index[0].numpy()].tolist() == sorted(gallery.ids)[:20]
    assert (found.score == 0).all()


def test_negative_zero_ties_with_zero():
    gallery = torch.tensor([[-1e-30], [1e-30], [0.0], [-1e-30]])  # products of -1e-60 round to -0.0
    found = search(torch.tensor([[1e-30]]), gallery, 4)
    assert found.index.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_threads_and_batches_do_not_change_a_bit(backend):
    queries, gallery = unit(40, 96, 3), unit(700, 96, 4)
    gallery[350:] = gallery[:350]  # each row twice, in other places of the tiles
    whole_search = search(queries, gallery, 30, backend=backend)
    assert torch.equal(whole_search.score[:, ::2], whole_search.score[:, 1::2])
    assert torch.equal(whole_search.index[:, ::2] + 350, whole_search.index[:, 1::2])
    for query_block, gallery_block in [(1, 700), (7, 64), (40, 333)]:
        found = search(
            queries,
            gallery,
            30,
            backend=backend,
            query_block=query_block,
            gallery_block=gallery_block,
        )
        assert torch.equal(found.index, whole_search.index)
        assert torch.equal(found.score, whole_search.score)
    single = search(queries[3:4], gallery, 30, backend=backend)
    assert torch.equal(single.score, whole_search.score[3:4])


def test_low_precision_settings_neither_matter_nor_change():
    queries, gallery = unit(9, 64, 3), unit(400, 64, 4)
    expected = search(queries, gallery, 12)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = search(queries, gallery, 12)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.score, expected.score)


@pytest.mark.parametrize("seed", range(5))
def test_a_product_with_the_worst_rounding_still_gives_the_exact_answer(seed, monkeypatch):
    """Candidates from a product that errs by the whole bound allowed to float32 sums."""
    queries, gallery = unit(20, 32, seed), unit(600, 32, seed + 1)
    gallery = torch.nn.functional.normalize(gallery[:60].repeat(10, 1) + 3e-7 * gallery)
    rows = np.arange(600)
    expected = twin(np.arange(20), queries, rows, gallery, 15)
    noise = torch.Generator().manual_seed(seed)

    def rough(device):
        def product(q, block):
            worst = 32 * 2.0**-24 * (2 * torch.rand(len(q), len(block), generator=noise) - 1)
            tile = (q.double() @ block.double().T + worst).float()
            return torch.nn.functional.pad(tile, (0, -len(block) % 8), value=-torch.inf)

        return product

    monkeypatch.setattr(tiles, "_product", rough)
    same(search(queries, gallery, 15, backend="torch", gallery_block=128), expected)


def test_the_slow_way_is_for_ties_only(monkeypatch):
    def never(*_):
        raise AssertionError("searched again")

    monkeypatch.setattr(module, "block_keys", never)
    search(unit(50, 64, 1), unit(3000, 64, 2), 20)
    with pytest.raises(AssertionError, match="searched again"):
        search(torch.zeros(1, 64), unit(3000, 64, 2), 20)


def test_agrees_with_faiss_as_an_independent_library():
    queries, gallery = unit(30, 64, 5), unit(2000, 64, 6)
    score, index = faiss.knn(queries.numpy(), gallery.numpy(), 25, metric=0)
    found = search(queries, gallery, 25)
    np.testing.assert_allclose(found.score.numpy(), score, atol=1e-6)
    assert (found.index.numpy() == index).mean() > 0.999


@pytest.mark.parametrize("ahead", [True, False])
def test_auto_takes_whichever_is_faster_here_and_answers_the_same(monkeypatch, ahead):
    tried = []
    monkeypatch.setattr(faiss_top, "_CPU_WORK", 30 * 2000 * 64)
    monkeypatch.setattr(faiss_top, "_ahead", lambda threads: tried.append(threads) or ahead)
    asked = []
    plain = tiles.faiss_top
    monkeypatch.setattr(tiles, "faiss_top", lambda *a: asked.append(1) or plain(*a))
    queries, gallery = unit(30, 64, 5), unit(2000, 64, 6)
    found = search(queries, gallery, 25)
    assert bool(asked) is ahead
    same(found, twin(range(30), queries, range(2000), gallery, 25))
    assert tried == [torch.get_num_threads()]
    search(queries[:29], gallery, 25)  # too small for a trial
    search(queries, gallery, 1000)  # more than faiss selects fast
    assert len(tried) == 1


def test_the_trial_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    faiss_top._ahead.cache_clear()
    assert faiss_top._ahead(torch.get_num_threads()) in (True, False)
    assert torch.equal(state, torch.get_rng_state())


def test_vectors_of_any_length_are_inner_products():
    queries, gallery = 1e3 * unit(10, 16, 1), torch.rand(90, 1) * unit(90, 16, 2)
    same(search(queries, gallery, 8), twin(range(10), queries, range(90), gallery, 8))


def test_inputs_stay_as_they_are_and_views_and_graphs_are_fine():
    vectors = unit(30, 16).T.contiguous().T.requires_grad_()  # not contiguous
    kept = vectors.detach().clone()
    for backend in BACKENDS:
        same(
            search(vectors, vectors, 4, backend=backend),
            twin(range(30), kept, range(30), kept, 4),
        )
    assert torch.equal(vectors, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_search(backend):
    some, none = unit(3, 8), torch.empty(0, 8)
    assert search(none, some, 2, backend=backend).index.shape == (0, 2)
    empty = search(some, none, 2, backend=backend)
    assert empty.index.tolist() == [[-1, -1]] * 3
    assert (empty.score == -torch.inf).all()
    nobody = Embeddings(np.array([], str), none)
    named = Embeddings(np.array(["a", "b", "c"]), some)
    assert (search(named, nobody, 2, exclude_self=True).index == -1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_named(value):
    good, bad = unit(40, 8), unit(40, 8)
    bad[33, 5] = value
    with pytest.raises(ValueError, match=r"gallery: 1 embeddings hold NaN.* row 33:"):
        search(good, bad, 3, gallery_block=16)
    with pytest.raises(ValueError, match=r"queries: 1 embeddings hold NaN.* row 33:"):
        search(bad, good, 3)
    named = Embeddings(shuffled_ids(40), bad)
    with pytest.raises(ValueError, match=rf"gallery.* row 33 \(id '{named.ids[33]}'\)"):
        search(good, named, 3)


def test_wrong_calls_say_what_to_do():
    a, b = unit(4, 8), unit(5, 8)
    with pytest.raises(ValueError, match="one D"):
        search(a, unit(5, 9), 2)
    with pytest.raises(ValueError, match="one D"):
        search(a[0], b, 2)
    with pytest.raises(ValueError, match="k=0"):
        search(a, b, 0)
    with pytest.raises(ValueError, match="auto, torch, faiss"):
        search(a, b, 2, backend="annoy")
    with pytest.raises(ValueError, match="4 queries, 5 gallery rows"):
        search(a, b, 2, exclude_self=True)
    twice = Embeddings(np.array(["x", "y", "x", "z"]), a)
    with pytest.raises(ValueError, match="'x' twice"):
        search(twice, twice, 2, exclude_self=True)


def test_knn_is_the_step():
    gallery = Embeddings(shuffled_ids(150), unit(150, 8))
    found = knn(gallery, gallery)
    assert found.index.shape == (150, 100)
    assert torch.equal(found.index, search(gallery, gallery, 100).index)
    assert (knn(gallery, gallery, k=3, exclude_self=True).index != torch.arange(150)[:, None]).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_gpu_gives_the_answers_of_the_cpu(backend):
    queries, gallery = unit(40, 96, 3), unit(5000, 96, 4)
    gallery[2500:] = gallery[:2500]
    expected = search(queries, gallery, 101)
    before = torch.get_float32_matmul_precision()
    for placed, precision in [(gallery, before), (gallery.cuda(), "medium")]:
        torch.set_float32_matmul_precision(precision)
        found = search(queries, placed, 101, backend=backend, device="cuda", gallery_block=2048)
        torch.set_float32_matmul_precision(before)
        assert found.index.device.type == "cpu"
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.score, expected.score)
