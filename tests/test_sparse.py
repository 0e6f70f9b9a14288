"""Sparse search gives what the search of the same rows written out gives; titles become rows."""

import numpy as np
import pytest
import torch
from scipy import sparse

from common.retrieval import sparse as module
from common.retrieval.search import search
from common.retrieval.sparse import SparseEmbeddings, sparse_scores, sparse_search
from common.retrieval.tfidf import Semantic, Tfidf
from common.types import Embeddings
from tests.oracles import search as oracle

TITLES = [
    "Botol Minum 500 ml promo",
    "botol minum 500ml",
    "Gelang paracord hitam",
    "gelang paracrod",
    "😀🎉",
    "",
    "マグ",
]


def rows(count, dim=40, density=0.1, seed=0, prefix="p"):
    rng = np.random.default_rng(seed)
    matrix = sparse.random(count, dim, density, format="csr", rng=rng, dtype=np.float32)
    # Few different numbers: many scores tie.
    matrix.data = np.ceil(matrix.data * 2) / 2
    ids = np.array([f"{prefix}{i}" for i in rng.permutation(count)])
    return SparseEmbeddings(ids, matrix)


def dense(embeddings):
    return Embeddings(embeddings.ids, torch.from_numpy(embeddings.matrix.toarray()))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.6])
@pytest.mark.parametrize("k", [1, 7, 60, 90])
def test_it_equals_its_twin_and_the_search_of_the_rows_written_out(k, density, own, monkeypatch):
    monkeypatch.setattr(module, "_CELLS", 60 * 7)  # nine blocks
    gallery = rows(60, density=density)
    queries = gallery if own else rows(25, density=density, seed=1, prefix="q")
    found = sparse_search(queries, gallery, k, exclude_self=own)
    index, score = oracle.search(
        queries.ids,
        queries.matrix.toarray(),
        gallery.ids,
        gallery.matrix.toarray(),
        k,
        exclude_self=own,
    )
    assert found.index.numpy().tolist() == index.tolist()
    assert found.score.numpy().tolist() == score.tolist()
    same = search(dense(queries), dense(gallery), k, exclude_self=own)
    assert torch.equal(found.index, same.index)
    assert torch.equal(found.score, same.score)
    assert found.index.dtype == torch.int64


def test_threads_and_blocks_change_nothing(monkeypatch):
    gallery = rows(300, dim=30)
    whole = sparse_search(gallery, gallery, 20)
    monkeypatch.setattr(module, "_CELLS", 300)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    pieces = sparse_search(gallery, gallery, 20)
    assert torch.equal(whole.index, pieces.index)
    assert torch.equal(whole.score, pieces.score)


def test_empty_sides_and_rows_of_zeros():
    nothing = SparseEmbeddings(np.zeros(0, np.str_), sparse.csr_matrix((0, 40)))
    some = rows(3)
    assert sparse_search(nothing, some, 2).index.shape == (0, 2)
    assert sparse_search(some, nothing, 2).index.tolist() == [[-1, -1]] * 3
    blank = SparseEmbeddings(np.array(["b", "a", "c"]), sparse.csr_matrix((3, 40)))
    found = sparse_search(blank, blank, 2)
    assert found.index.tolist() == [[1, 0]] * 3  # a, then b
    assert found.score.abs().sum() == 0
    others = sparse_search(blank, blank, 3, exclude_self=True)
    assert others.index.tolist() == [[1, 2, -1], [0, 2, -1], [1, 0, -1]]


def test_scores_of_given_pairs_are_those_of_the_search(monkeypatch):
    queries, gallery = rows(20, seed=3, prefix="q"), rows(30)
    found = sparse_search(queries, gallery, 40)  # ten columns of padding
    monkeypatch.setattr(module, "_pieces", lambda pairs: np.array_split(pairs, 7))
    assert torch.equal(sparse_scores(queries, gallery, found.index), found.score)


def test_bad_rows_and_questions_are_errors():
    some = rows(4)
    with pytest.raises(ValueError, match="k >= 1"):
        sparse_search(some, some, 0)
    with pytest.raises(ValueError, match="40 terms, the gallery 39"):
        sparse_search(some, rows(4, dim=39), 1)
    with pytest.raises(ValueError, match="4 queries, but an index of 3"):
        sparse_scores(some, some, torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 ids and 4 rows"):
        SparseEmbeddings(some.ids[:3], some.matrix)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="negative, NaN or infinite"):
            SparseEmbeddings(np.array(["a"]), sparse.csr_matrix([[wrong, 0.0]]))
    with pytest.raises(KeyError, match="the first is 'x'"):
        some.select(np.array(["p1", "x"]))
    assert some.select(some.ids[::-1]).matrix.toarray().tolist() == (
        some.matrix.toarray()[::-1].tolist()
    )


def test_words_weigh_as_the_formula_says():
    ids = np.array(["a", "b", "c"])
    titles = ["red mug 5 red", "mug 5 kg", "plate"]
    tfidf = Tfidf("word").fit(titles)
    assert tfidf.vocabulary_.tolist() == ["5", "kg", "mug", "plate", "red"]
    idf = [np.log(4 / (1 + n)) + 1 for n in (2, 1, 2, 1, 1)]
    expected = np.array([[1, 0, 1, 0, 2], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0]]) * idf
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = tfidf.transform(ids, titles)
    np.testing.assert_allclose(found.matrix.toarray(), expected, rtol=1e-6)
    unseen = tfidf.transform(ids[:1], ["blue plate"])
    assert unseen.matrix.toarray().tolist() == [[0, 0, 0, 1, 0]]
    once = Tfidf("word", min_df=2, max_df=0.9).fit(titles)
    assert once.vocabulary_.tolist() == ["5", "mug"]
    assert len(Tfidf("word", limit=3).fit(titles).vocabulary_) == 3


def test_pieces_of_words_find_typos_that_words_do_not():
    ids = np.array([f"{i}" for i in range(len(TITLES))])
    for kind, wanted in (("char", True), ("word", False)):
        found = Tfidf(kind).fit(TITLES).transform(ids, TITLES)
        assert (found.matrix[2].multiply(found.matrix[3]).sum() > 0.5) == wanted
        assert found.matrix[5].nnz == 0
        norms = np.sqrt(found.matrix.multiply(found.matrix).sum(1)).A1
        np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-6)


@pytest.mark.parametrize("titles", [["", " "], ["😀", "🎉!"], []])
def test_titles_without_any_term_match_nothing(titles):
    ids = np.array([f"{i}" for i in range(len(titles))])
    tfidf = Tfidf("word").fit(titles)
    assert len(tfidf.vocabulary_) == 0
    found = tfidf.transform(ids, titles)
    assert found.matrix.nnz == 0
    assert sparse_search(found, found, 1).score.abs().sum() == 0
    reduced = Semantic(8).fit(found).transform(found)
    assert reduced.vectors.abs().sum() == 0
    with pytest.raises(ValueError, match="did you mean 'word'"):
        Tfidf("words")


def test_reduced_rows_are_the_full_ones_nearly_and_exactly_with_all_dimensions():
    titles = [f"{a} {b} {n} ml" for a in ("red", "blue") for b in ("mug", "cup") for n in (5, 9)]
    ids = np.array([f"{i}" for i in range(len(titles))])
    full = Tfidf("char").fit(titles).transform(ids, titles)
    cosines = (full.matrix @ full.matrix.T).toarray()
    all_of_them = Semantic(len(titles)).fit(full).transform(full)
    np.testing.assert_allclose(all_of_them.vectors @ all_of_them.vectors.T, cosines, atol=1e-4)
    few = Semantic(4).fit(full).transform(full)
    assert few.vectors.shape == (8, 4)
    torch.testing.assert_close(few.vectors.norm(dim=1), torch.ones(8))
    assert np.abs(few.vectors.numpy() @ few.vectors.numpy().T - cosines).mean() < 0.1
    again = Semantic(4).fit(full).transform(full)
    assert torch.equal(few.vectors, again.vectors)
    with pytest.raises(ValueError, match="dim >= 1"):
        Semantic(0)
