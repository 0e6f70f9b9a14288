"""Galleries that stay in their files: the answers of memory, block by block, and bad files."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common.retrieval import stored
from common.retrieval.radius import range_search
from common.retrieval.search import search
from common.retrieval.stored import Stored
from common.types import Embeddings
from tests.test_search import shuffled_ids, unit, whole


def files(folder, gallery, cuts):
    """The gallery as one file per piece."""
    paths = []
    for start, stop in zip([0, *cuts], [*cuts, len(gallery)], strict=True):
        paths.append(folder / f"{start}.safetensors")
        Embeddings(gallery.ids[start:stop], gallery.vectors[start:stop], {"at": start}).save(
            paths[-1]
        )
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("block", [1, 7, 50, 1000])
def test_answers_are_those_of_memory_bit_for_bit(tmp_path, dtype, block):
    gallery = Embeddings(shuffled_ids(230), unit(230, 16).to(dtype))
    queries = Embeddings(shuffled_ids(9, 1, "q"), unit(9, 16, 1))
    held = Stored(files(tmp_path, gallery, [60, 61, 200]), block)
    assert held.ids.tolist() == gallery.ids.tolist()
    assert held.shape == (230, 16)
    assert held.card == {"at": 0}
    for k in (1, 12, 400):
        expected, found = search(queries, gallery, k), search(queries, held, k)
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.score, expected.score)
    expected = range_search(queries, gallery, threshold=0.3)
    assert torch.equal(range_search(queries, held, threshold=0.3).index, expected.index)
    rows = torch.tensor([229, 0, 60, 61, 5])
    assert torch.equal(held.take(rows), gallery.vectors[rows].float())


@pytest.mark.parametrize("seed", range(3))
def test_ties_and_self_across_blocks(tmp_path, seed):
    gallery = Embeddings(shuffled_ids(200, seed), whole(200, 3, seed, 2))
    held = Stored(files(tmp_path, gallery, [90]), 31)
    queries = gallery.select(np.sort(gallery.ids)[::9])
    for own in (False, True):
        expected = search(queries, gallery, 20, exclude_self=own)
        found = search(queries, held, 20, exclude_self=own)
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.score, expected.score)


@pytest.mark.parametrize("query_block", [1, 8, 33])
def test_blocks_of_queries_may_find_more_or_less_in_a_later_block(tmp_path, query_block):
    gallery = Embeddings(shuffled_ids(3000), unit(3000, 8))
    queries = Embeddings(shuffled_ids(70, 1, "q"), unit(70, 8, 1))
    held = Stored(files(tmp_path, gallery, []), 1000)
    expected = search(queries, gallery, 9)
    found = search(queries, held, 9, query_block=query_block)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.score, expected.score)


def test_later_blocks_need_only_what_beats_the_earlier(tmp_path, monkeypatch):
    """Sorted by similarity, best first: nothing of the second half is a candidate."""
    query = unit(1, 16)
    near = torch.nn.functional.normalize(query + 0.02 * unit(400, 16, 1))
    far = unit(4000, 16, 2)
    gallery = Embeddings(np.array([f"{i:04d}" for i in range(4400)]), torch.cat([near, far]))
    held = Stored(files(tmp_path, gallery, []), 2200)
    from common.retrieval import search as module

    widths = []
    original = module.pair_scores
    monkeypatch.setattr(
        module, "pair_scores", lambda q, g, i: widths.append(i.shape[1]) or original(q, g, i)
    )
    assert torch.equal(search(query, held, 50).index, search(query, gallery, 50).index)
    assert len(widths) == 2  # the stored gallery's first block, and the gallery in memory


def test_the_largest_norm_may_come_late(tmp_path):
    gallery = Embeddings(shuffled_ids(300), torch.logspace(-3, 3, 300)[:, None] * unit(300, 8))
    queries = unit(6, 8, 1)
    held = Stored(files(tmp_path, gallery, []), 40)
    expected, found = search(queries, gallery, 10), search(queries, held, 10)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.score, expected.score)


def test_blocks_are_read_once_and_as_needed(tmp_path, monkeypatch):
    gallery = Embeddings(shuffled_ids(100), unit(100, 8))
    held = Stored(files(tmp_path, gallery, [55]), 25)
    reads = []
    original = stored._Part.read
    monkeypatch.setattr(stored._Part, "read", lambda s, *a: reads.append(a) or original(s, *a))
    starts = []
    for start, block in held.blocks():
        starts.append((start, len(block)))
        assert len(reads) <= len(starts) + 1  # one ahead, not all
    assert starts == [(0, 25), (25, 25), (50, 5), (55, 25), (80, 20)]
    assert reads == [(0, 25), (25, 25), (50, 5), (0, 25), (25, 20)]


def test_bad_files_and_values_are_named(tmp_path):
    gallery = Embeddings(shuffled_ids(30), unit(30, 8))
    path = files(tmp_path, gallery, [])[0]
    with pytest.raises(FileNotFoundError, match="missing"):
        Stored(tmp_path / "missing.safetensors")
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"no")
    with pytest.raises(ValueError, match="wrong"):
        Stored(wrong)
    save_file(
        {"ids": torch.zeros(2, 1, dtype=torch.uint8), "vectors": torch.zeros(2, 8).double()}, wrong
    )
    with pytest.raises(ValueError, match="float32 or float16"):
        Stored(wrong)
    Embeddings(shuffled_ids(3), unit(3, 9)).save(wrong)
    with pytest.raises(ValueError, match=r"one D .* \[8, 9\] in 2 files"):
        Stored([path, wrong])
    with pytest.raises(ValueError, match="block >= 1"):
        Stored(path, 0)
    with pytest.raises(ValueError, match="0 files"):
        Stored([])
    bad = unit(30, 8)
    bad[17, 3] = float("inf")
    Embeddings(gallery.ids, bad).save(path)
    with pytest.raises(ValueError, match=rf"gallery.* row 17 \(id '{gallery.ids[17]}'\)"):
        search(unit(2, 8), Stored(path, 10), 3)
    with pytest.raises(ValueError, match="needed in memory"):
        search(Stored(path), gallery, 3)
