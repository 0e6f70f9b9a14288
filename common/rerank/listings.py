"""What is known of listings beside their embeddings, and what pairs of them have in common.

    columns = listing_columns(listings, a, b)     # {name: (P,) float32} for rows a and b

The columns are those of the pair models of Shopee 2021 2nd, 3rd and 5th place: edit distances and
word statistics of titles, distances of perceptual hashes, sizes of files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image
from scipy import sparse

from common.data.amounts import Amounts
from common.data.edits import similarities
from common.data.titles import Brands, clean, words

Array = np.ndarray
_PAIRS = 1 << 17  # rows of a block of pairs


@dataclass
class Listings:
    """N listings.

    Attributes:
        titles: as they are shown.
        hashes: `(N,)` uint64 perceptual hashes; None: no pictures to compare.
        paths: `(N,)` picture files; None: none.
    """

    titles: Sequence[str]
    hashes: Array | None = None
    paths: Array | None = None

    def __len__(self) -> int:
        return len(self.titles)

    @cached_property
    def cleaned(self) -> list[str]:
        """Titles in lower case, words alone."""
        return [clean(title) for title in self.titles]

    @cached_property
    def amounts(self) -> Amounts:
        """What the titles say of sizes and numbers."""
        return Amounts.parse(self.titles)

    @cached_property
    def files(self) -> Array:
        """`(N, 3)` float64 bytes, width and height of the pictures; NaN where that is not known."""
        if self.paths is None:
            return np.full((len(self), 3), np.nan)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = list(pool.map(_file_facts, self.paths.tolist(), chunksize=256))
        return np.array(rows, np.float64).reshape(-1, 3)

    @cached_property
    def tokens(self) -> list[list[str]]:
        """Words of the cleaned titles, without those that every shop writes."""
        return [words(text) for text in self.cleaned]

    @cached_property
    def brands(self) -> Array:
        """`(N,)` int64 brand of each title as these titles themselves tell it, -1 for none."""
        return Brands().fit(self.tokens).transform(self.tokens)

    @cached_property
    def words(self) -> sparse.csr_matrix:
        """`(N, V)` float32, 1 for a word of `tokens` that the title has."""
        number: dict[str, int] = {}
        rows, columns = [], []
        for row, found in enumerate(self.tokens):
            for word in set(found):
                rows.append(row)
                columns.append(number.setdefault(word, len(number)))
        shape = (len(self), max(len(number), 1))
        return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape)

    @cached_property
    def sorted_words(self) -> list[str]:
        """Cleaned titles with their words in alphabetical order: sellers shuffle them."""
        return [" ".join(sorted(text.split())) for text in self.cleaned]


def listing_columns(listings: Listings, a: Array, b: Array) -> dict[str, Array]:
    """Columns `(P,)` float32 for rows `a` and `b`, `(P,)` each; NaN where a thing is not known.

    `edits, sorted_edits`: 1 - Levenshtein distance / longer length of titles, and of titles with
    their words sorted; `letters, words` of each with their difference; `shared_words` as a Jaccard
    index, stop words left out of both; `brand`: 1 for the same, 0 for two; `agree, differ`:
    quantities that both titles state; `hash` bits that differ; `bytes` and `pixels_per_byte` of
    each and the ratio of bytes.
    """
    letters = np.array([len(text) for text in listings.cleaned], np.float32)
    counts = np.asarray(listings.words.sum(1), np.float32).ravel()
    shared = _shared(listings.words, a, b)
    union = counts[a] + counts[b] - shared
    compared = listings.amounts.compare(a, b)
    brand = listings.brands
    size, width, height = (listings.files[:, place] for place in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.where(size > 0, width * height / size, np.nan)
        ratio = np.minimum(size[a], size[b]) / np.maximum(size[a], size[b])
    columns = {
        "edits": similarities(listings.cleaned, a, b),
        "sorted_edits": similarities(listings.sorted_words, a, b),
        "letters_a": letters[a],
        "letters_b": letters[b],
        "letters_apart": np.abs(letters[a] - letters[b]),
        "words_a": counts[a],
        "words_b": counts[b],
        "words_apart": np.abs(counts[a] - counts[b]),
        "shared_words": np.where(union > 0, shared / np.maximum(union, 1), np.nan),
        "brand": np.where((brand[a] < 0) | (brand[b] < 0), np.nan, brand[a] == brand[b]),
        "agree": (compared == 1).sum(1),
        "differ": (compared == -1).sum(1),
        "hash": _hash_distance(listings.hashes, a, b),
        "bytes_a": size[a],
        "bytes_b": size[b],
        "bytes_ratio": ratio,
        "pixels_per_byte_a": density[a],
        "pixels_per_byte_b": density[b],
    }
    return {name: np.asarray(values, np.float32) for name, values in columns.items()}


def _shared(words: sparse.csr_matrix, a: Array, b: Array) -> Array:
    """`(P,)` words that both titles have."""
    found = np.empty(len(a), np.float32)
    for start in range(0, len(a), _PAIRS):
        part = slice(start, start + _PAIRS)
        both = words[a[part]].multiply(words[b[part]])
        found[part] = np.asarray(both.sum(1), np.float32).ravel()
    return found


def _hash_distance(hashes: Array | None, a: Array, b: Array) -> Array:
    if hashes is None:
        return np.full(len(a), np.nan)
    return np.asarray(np.bitwise_count(hashes[a] ^ hashes[b]), np.float32)


def _file_facts(path: str | bytes) -> tuple[float, float, float]:
    """Bytes, width and height by the header alone; NaN for what cannot be read."""
    try:
        size = float(os.stat(path).st_size)
    except OSError:
        return (np.nan, np.nan, np.nan)
    try:
        with Image.open(os.fsdecode(path)) as image:
            return (size, float(image.width), float(image.height))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return (size, np.nan, np.nan)
