"""Embeddings and Neighbors: files, order, bad input."""

import numpy as np
import pytest
import torch

from common.types import Embeddings, Neighbors, Table, decode_strings, encode_strings


def made(n=5, dtype=torch.float32):
    ids = np.array([f"id{i}é" for i in range(n)])
    return Embeddings(ids, torch.randn(n, 3).to(dtype), {"run": "a", "views": [1, 2]})


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_file_loads_as_the_same(tmp_path, n, dtype):
    before = made(n, dtype)
    before.save(tmp_path / "e.safetensors")
    after = Embeddings.load(tmp_path / "e.safetensors")
    assert after.ids.tolist() == before.ids.tolist()
    assert torch.equal(after.vectors, before.vectors)
    assert after.vectors.dtype == dtype
    assert after.card == before.card


def test_select_follows_the_asked_order_and_names_what_is_missing():
    embeddings = made()
    picked = embeddings.select(np.array(["id3é", "id0é", "id3é"]))
    assert torch.equal(picked.vectors, embeddings.vectors[[3, 0, 3]])
    whole = embeddings.select(embeddings.ids)
    assert whole.vectors.data_ptr() == embeddings.vectors.data_ptr(), "no second copy"
    assert whole.card is not embeddings.card
    assert embeddings.find(np.array(["id4é", "nobody", "id0é"])).tolist() == [4, -1, 0]
    assert made(0).find(np.array(["nobody"])).tolist() == [-1]
    with pytest.raises(KeyError, match="1 ids have no embedding, the first is 'nobody'"):
        embeddings.select(np.array(["id1é", "nobody"]))
    with pytest.raises(KeyError, match="nobody"):
        made(0).select(np.array(["nobody"]))


def test_files_that_are_not_embeddings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"first run infer\.py run="):
        Embeddings.load(tmp_path / "none.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"\x08")
    with pytest.raises(ValueError, match="is not an embeddings file"):
        Embeddings.load(tmp_path / "half.safetensors")


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="ids and"):
        Embeddings(np.array(["a"]), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one shape"):
        Neighbors(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 2))


def test_sorted_neighbors_break_ties_by_index_and_put_padding_last():
    found = Neighbors(
        torch.tensor([[5, -1, 2, 9, 1]]),
        torch.tensor([[0.5, float("-inf"), 0.5, 0.9, 0.1]]),
    ).sorted()
    assert found.index.tolist() == [[9, 2, 5, 1, -1]]
    assert found.top(2).index.tolist() == [[9, 2]]


def test_strings_survive_any_width():
    for words in (["a", "", "日本語", "x" * 40], [], ["abc"]):
        array = np.array(words, dtype=np.str_)
        assert decode_strings(encode_strings(array)).tolist() == words


def test_tables_take_and_join():
    table = Table(np.array(["a", "b"]), np.array([b"/a", b"/b"]), np.array([0, -1]))
    both = Table.concatenate([table.take(np.array([1])), table])
    assert both.ids.tolist() == ["b", "a", "b"]
    assert both.labels.tolist() == [-1, 0, -1]


def test_boxes_of_a_table_follow_its_rows():
    ids, paths, labels = np.array(["a", "b"]), np.array([b"a", b"b"]), np.array([0, 1])
    boxed = Table(ids, paths, labels, np.array([[0, 0, 2, 2], [1, 1, 3, 3]]))
    assert boxed.take(np.array([1])).boxes.tolist() == [[1, 1, 3, 3]]
    plain = Table(np.array(["c"]), np.array([b"c"]), np.array([0]))
    assert Table.concatenate([boxed, plain]).boxes.tolist()[2] == [0, 0, 0, 0]
    assert Table.concatenate([plain, plain]).boxes is None


def listings(titles):
    ids = np.array([f"{i}" for i in range(len(titles))])
    return Table(ids, ids.astype("S"), np.zeros(len(titles), np.int64), titles=titles)


def test_titles_of_a_table_follow_its_rows_whatever_is_in_them():
    strange = ["a", "", "x" * 100_000, "日本 😀", "a\0b\0"]
    table = listings(strange)
    assert table.titles.nbytes == 16 * 5  # no row is as wide as the longest
    assert table.take(np.array([3, 1])).titles.tolist() == ["日本 😀", ""]
    assert table.take(slice(2)).titles.tolist() == ["a", ""]
    assert Table.concatenate([table, table.take(slice(1))]).titles.tolist() == [*strange, "a"]
    assert listings(np.array(["a", "bc"])).titles.tolist() == ["a", "bc"]


def test_titles_that_are_no_text_are_errors():
    with pytest.raises(ValueError, match="row 1 is nan.*keep_default_na"):
        listings(np.array(["a", np.nan], object))
    with pytest.raises(ValueError, match=r"'.udc80'.*encoding_errors"):
        listings(["\udc80"])
    with pytest.raises(ValueError, match="2 ids, but 1 titles"):
        Table(np.array(["a", "b"]), np.array([b"a", b"b"]), np.array([0, 0]), titles=["a"])
    plain = Table(np.array(["c"]), np.array([b"c"]), np.array([0]))
    with pytest.raises(ValueError, match="some have none"):
        Table.concatenate([listings(["a"]), plain])
