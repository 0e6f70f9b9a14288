"""faiss indexes: recall against exact search, saved and mapped, picked by cost, bad input."""

import json

import faiss
import numpy as np
import pytest
import torch

import common.retrieval.index as module
from common.notes import Notes
from common.retrieval import choose
from common.retrieval.ann import ann
from common.retrieval.index import build, load
from common.retrieval.order import shared
from common.retrieval.search import search
from common.retrieval.stored import Stored
from common.types import Embeddings
from tests.test_search import shuffled_ids, unit

APPROXIMATE = ["ivf", "ivf_pq", "hnsw"]
ROWS, DIM, K = 10_000, 16, 10


def crowd(n, seed, prefix="g"):
    """Rows around 200 centres: what embeddings of images look like."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 200, (n,), generator=draw)
    rows = unit(200, DIM, 99)[places] + 0.2 * torch.randn(n, DIM, generator=draw)
    return Embeddings(
        np.array([f"{prefix}{i:05d}" for i in np.random.default_rng(seed).permutation(n)]),
        torch.nn.functional.normalize(rows),
        {"run": "a"},
    )


@pytest.fixture(scope="module")
def gallery():
    return crowd(ROWS, 0)


@pytest.fixture(scope="module")
def queries():
    return crowd(300, 1, "q")


@pytest.fixture(scope="module")
def built(gallery, queries):
    return {
        kind: build(gallery, kind=kind, k=K, queries=queries, links=16, nlist=64)
        for kind in ("flat", *APPROXIMATE)
    }


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_reported_recall_is_what_a_search_has(built, gallery, queries, kind):
    index = built[kind]
    exact, found = search(queries, gallery, K), index.search(queries, K)
    assert index.recall >= 0.95
    assert shared(found.index, exact.index) == pytest.approx(index.recall, abs=0.02)
    assert f"recall@{K} {index.recall:.3f}" in index.why
    # A row that both found has the exact score, bit for bit.
    both = found.index == exact.index
    assert both.float().mean() > 0.8  # a miss moves the rest of its row
    assert torch.equal(found.score[both], exact.score[both])
    products = queries.vectors.double() @ gallery.vectors.double().T
    torch.testing.assert_close(
        found.score, products.gather(1, found.index).float(), atol=1e-7, rtol=0
    )
    again = found.sorted()
    assert torch.equal(again.score, found.score)


def test_flat_is_exact(built, gallery, queries):
    exact, found = search(queries, gallery, K), built["flat"].search(queries, K)
    assert torch.equal(found.index, exact.index)
    assert built["flat"].recall == 1


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_self_is_left_out_by_id_and_lists_are_padded(built, gallery, kind):
    asked = gallery.select(gallery.ids[100:140])
    found = built[kind].search(asked, 5, exclude_self=True)
    assert not (gallery.ids[found.index.numpy()] == asked.ids[:, None]).any()
    exact = search(asked, gallery, 5, exclude_self=True)
    assert shared(found.index, exact.index) > 0.9
    few = built["ivf"].search(asked, ROWS)  # not all lists are searched
    assert (few.index[:, -1] == -1).all()
    assert (few.score[few.index < 0] == -torch.inf).all()


def test_ties_go_by_id(gallery):
    twice = Embeddings(
        np.concatenate([gallery.ids, np.char.add("a", gallery.ids)]),
        torch.cat([gallery.vectors, gallery.vectors]),
    )
    index = build(twice, kind="ivf", k=4, nlist=50, nprobe=50)  # all lists: exact
    asked = Embeddings(np.array(["x", "y"]), gallery.vectors[:2])
    found, exact = index.search(asked, 4), search(asked, twice, 4)
    assert torch.equal(found.index, exact.index)
    assert index.recall == 1


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kind", ["flat", *APPROXIMATE])
def test_a_loaded_index_answers_alike(tmp_path, built, gallery, queries, kind, mmap):
    index = built[kind]
    index.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.faiss", "index.safetensors"]
    again = load(tmp_path, gallery=gallery, mmap=mmap)
    expected, found = index.search(queries, K), again.search(queries, K)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.score, expected.score)
    assert (again.kind, again.why, again.recall, again.knob) == (
        index.kind,
        index.why,
        index.recall,
        index.knob,
    )
    assert again.card == {"run": "a"}
    alone = load(tmp_path, mmap=mmap).search(queries, K)  # scores of faiss itself
    if kind != "ivf_pq":
        torch.testing.assert_close(alone.score, expected.score, atol=1e-6, rtol=0)
        assert (alone.index == expected.index).float().mean() > 0.99
    else:
        assert 0.3 < shared(alone.index, expected.index) < 0.999


def test_a_folder_of_two_saves_is_refused(tmp_path, built, gallery):
    built["ivf"].save(tmp_path)
    card = (tmp_path / "index.safetensors").read_bytes()
    built["flat"].save(tmp_path)
    (tmp_path / "index.safetensors").write_bytes(card)
    with pytest.raises(ValueError, match="another save"):
        load(tmp_path)
    (tmp_path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(ValueError, match="build it again"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="No index"):
        load(tmp_path / "nowhere")
    built["ivf"].save(tmp_path)
    other = Embeddings(gallery.ids[::-1].copy(), gallery.vectors)
    with pytest.raises(ValueError, match="ids are not those"):
        load(tmp_path, gallery=other)


def test_a_stored_gallery_is_indexed_and_scored_from_its_files(tmp_path, built, gallery, queries):
    path = tmp_path / "gallery.safetensors"
    gallery.save(path)
    index = build(Stored(path, 3000), kind="ivf", k=K, queries=queries, nlist=64)
    expected, found = built["ivf"].search(queries, K), index.search(queries, K)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.score, expected.score)


def test_more_effort_until_the_recall_is_reached(gallery, queries):
    low = build(gallery, kind="ivf", k=K, queries=queries, nlist=128, nprobe=1)
    assert low.knob == 1
    high = build(gallery, kind="ivf", k=K, queries=queries, nlist=128, recall=0.999)
    assert high.knob > 1
    assert high.recall >= 0.999 > low.recall
    wide = build(gallery, kind="hnsw", k=K, queries=queries, links=4, ef=16)
    wider = build(gallery, kind="hnsw", k=K, queries=queries, links=4, ef=256)
    assert wide.recall < wider.recall


def test_the_coarse_quantiser_of_many_lists_is_a_graph():
    made = module._empty("ivf", 8, 2**15, 8, 32)
    assert isinstance(faiss.downcast_index(made.quantizer), faiss.IndexHNSWFlat)
    assert made.metric_type == faiss.METRIC_INNER_PRODUCT
    few = module._empty("ivf", 8, 64, 8, 32)
    assert isinstance(faiss.downcast_index(few.quantizer), faiss.IndexFlat)


def test_auto_takes_what_costs_less(monkeypatch):
    million = (1_000_000, 512, choose.lists(1_000_000))
    assert million[2] == 4000
    assert choose.kind(*million, None, 1_000)[0] == "flat"
    assert "1000 queries of 1000000 rows cost less" in choose.kind(*million, None, 1_000)[1]
    assert choose.kind(*million, None, 500_000)[0] == "ivf"
    assert choose.kind(*million, None, None)[0] == "ivf"
    assert choose.kind(200_000, 512, 1000, None, None)[0] == "flat"
    monkeypatch.setattr(choose, "memory", lambda: 2**30)
    assert choose.kind(*million, None, None)[0] == "ivf_pq"
    assert choose.kind(0, 512, choose.lists(0), None, 9)[0] == "flat"
    assert [choose.pq_bytes(d) for d in (512, 96, 7, 130, 3)] == [64, 24, 1, 26, 1]


def test_the_step_says_what_was_picked(gallery, queries):
    notes = Notes()
    exact = search(queries, gallery, K)
    found = ann(queries, gallery, notes, k=K)
    assert torch.equal(found.index, exact.index)
    assert notes.remarks == ["flat: 300 queries of 10000 rows cost less than building an index."]
    found = ann(queries, gallery, notes, k=K, kind="ivf", nlist=64, nprobe=2)
    assert "ivf: as asked for; 2 of 64 lists searched, recall@10" in notes.remarks[1]
    assert notes.numbers[f"ann recall@{K} (ivf)"] == pytest.approx(
        shared(found.index, exact.index), abs=0.03
    )
    json.dumps([notes.remarks, notes.numbers])
    nobody = Embeddings(np.array([], str), torch.empty(0, DIM))
    assert (ann(queries, nobody, notes, k=3).index == -1).all()
    assert ann(nobody, gallery, notes, k=3).index.shape == (0, 3)


def test_wrong_calls_say_what_to_do(built, gallery):
    small = Embeddings(shuffled_ids(100), unit(100, DIM))
    for kind in ("ivf", "ivf_pq"):
        with pytest.raises(ValueError, match="kind=flat"):
            build(small, kind=kind, nlist=50)
    with pytest.raises(ValueError, match="nprobe=9"):
        build(small, kind="ivf", nlist=2, nprobe=9)
    with pytest.raises(ValueError, match="divides D"):
        build(gallery, kind="ivf_pq", pq=5)
    with pytest.raises(ValueError, match="4 to 64 links"):
        build(small, kind="hnsw", links=2)
    with pytest.raises(ValueError, match="auto, flat, ivf"):
        build(small, kind="annoy")
    with pytest.raises(ValueError, match="one D"):
        build(small, queries=Embeddings(np.array(["a"]), unit(1, 9)))
    bad = small.vectors.clone()
    bad[7, 3] = float("nan")
    with pytest.raises(ValueError, match=r"gallery: .* row 7"):
        build(Embeddings(small.ids, bad), kind="hnsw")
    index = built["ivf"]
    with pytest.raises(ValueError, match="queries: .* row 7"):
        index.search(Embeddings(small.ids, bad), 3)
    with pytest.raises(ValueError, match="k=0"):
        index.search(small, 0)
    with pytest.raises(ValueError, match=r"\(Q, 16\)"):
        index.search(Embeddings(np.array(["a"]), unit(1, 9)), 3)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or not getattr(faiss, "get_num_gpus", int)(),
    reason="no CUDA device that faiss can use",
)
@pytest.mark.parametrize("kind", ["ivf", "ivf_pq"])
def test_gpu_indexes_answer_and_are_saved(tmp_path, gallery, queries, kind):
    index = build(gallery, kind=kind, k=K, queries=queries, nlist=64, device="cuda")
    assert index.recall >= 0.95
    index.save(tmp_path)
    again = load(tmp_path, gallery=gallery).search(queries, K)
    assert shared(index.search(queries, K).index, again.index) > 0.98
