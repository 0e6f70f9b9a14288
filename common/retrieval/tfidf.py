"""Titles as TF-IDF vectors over words or over pieces of words, sparse or reduced to a few hundred.

tfidf = Tfidf("char").fit(titles); found = sparse_search(*2 * [tfidf.transform(ids, titles)], 50)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse

from common.config import suggestion
from common.lazy import Lazy
from common.retrieval.sparse import SparseEmbeddings
from common.types import Embeddings

decomposition = Lazy("sklearn.decomposition")
texts = Lazy("sklearn.feature_extraction.text")

KINDS: dict[str, dict[str, Any]] = {
    # Numbers and single letters are sizes and models: they count as words.
    "word": {"analyzer": "word", "token_pattern": r"(?u)\b\w+\b", "ngram_range": (1, 1)},
    "char": {"analyzer": "char_wb", "ngram_range": (3, 4)},
}
Titles = Sequence[str] | np.ndarray


class Tfidf:
    """Unit TF-IDF vectors of titles, by scikit-learn's formula: tf * (ln((1 + N) / (1 + df)) + 1).

    Args:
        kind: `word`, or `char`: pieces of 3 and 4 characters inside words, which a typo or a
            missing space leaves mostly as they were.
        min_df: a term of fewer titles is left out: nobody else has it, but its weight in the norm
            makes a title with it less like any other.
        max_df: nor is a term of more than this share of the titles kept; it costs most and says
            least.
        limit: the most terms, those of most titles; None keeps all.
        sublinear: 1 + ln(tf) in place of tf.

    Raises:
        ValueError: no such kind.

    Attributes:
        vocabulary_: `(D,)` the terms, sorted; empty when no title has one.
    """

    def __init__(
        self,
        kind: str = "word",
        *,
        min_df: int = 1,
        max_df: float = 1.0,
        limit: int | None = None,
        sublinear: bool = False,
    ) -> None:
        if kind not in KINDS:
            near = suggestion(kind, list(KINDS)) or "."
            raise ValueError(f"tfidf: no kind {kind!r}{near} Known: {', '.join(KINDS)}")
        self.kind = kind
        self.vectorizer = texts.TfidfVectorizer(
            **KINDS[kind],
            min_df=min_df,
            max_df=float(max_df),
            max_features=limit,
            sublinear_tf=sublinear,
            dtype=np.float32,
        )

    def fit(self, titles: Titles) -> Tfidf:
        """Itself, with the terms of these titles; those of the test may be among them."""
        try:
            self.vectorizer.fit(_texts(titles))
            self.vocabulary_ = self.vectorizer.get_feature_names_out()
        except ValueError as error:
            if "vocabulary" not in str(error) and "no terms remain" not in str(error):
                raise
            self.vocabulary_ = np.zeros(0, np.str_)  # titles of nothing but signs
        return self

    def transform(self, ids: np.ndarray, titles: Titles) -> SparseEmbeddings:
        """`(N, D)` rows of titles; a title without any known term is a row of zeros."""
        if not len(self.vocabulary_):
            return SparseEmbeddings(ids, sparse.csr_matrix((len(ids), 1), dtype=np.float32))
        return SparseEmbeddings(ids, self.vectorizer.transform(_texts(titles)))


class Semantic:
    """Sparse rows as dense ones of a few hundred dimensions, for everything that works on those.

    Truncated singular value decomposition without centring: latent semantic analysis (Deerwester
    et al., JASIS 1990). Similarities are those of the full rows nearly.

    Args:
        dim: dimensions; fewer come out of fewer terms.
        seed: of the randomised decomposition.
    """

    def __init__(self, dim: int = 256, seed: int = 0) -> None:
        if dim < 1:
            raise ValueError(f"Semantic needs dim >= 1, got {dim}.")
        self.dim, self.seed = dim, seed

    def fit(self, rows: SparseEmbeddings) -> Semantic:
        """Itself, with the main directions of these rows."""
        dim = min(self.dim, *(max(1, side) for side in rows.matrix.shape))
        if not rows.matrix.nnz:
            self.components_ = np.zeros((dim, rows.matrix.shape[1]), np.float32)
            return self
        found = decomposition.TruncatedSVD(dim, random_state=self.seed).fit(rows.matrix)
        self.components_ = found.components_.astype(np.float32)
        return self

    def transform(self, rows: SparseEmbeddings) -> Embeddings:
        """Unit vectors `(N, dim)` float32; a row of zeros stays one."""
        vectors = torch.from_numpy(np.asarray(rows.matrix @ self.components_.T, np.float32))
        return Embeddings(rows.ids, torch.nn.functional.normalize(vectors, dim=1))


def _texts(titles: Titles) -> list[str]:
    return titles.tolist() if isinstance(titles, np.ndarray) else list(titles)
