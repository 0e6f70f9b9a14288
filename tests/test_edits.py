"""Levenshtein similarity of many pairs against the textbook's table of one."""

from importlib.util import find_spec

import numpy as np
import pytest

from common.data.edits import similarities

BACKENDS = ["numpy", *(["rapidfuzz"] if find_spec("rapidfuzz") else [])]


def distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_similarities_are_those_of_the_table(backend):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abé 毫"), rng.integers(0, 14))) for _ in range(30)] + [""]
    texts += ["".join(rng.choice(list("abcdef"), n)) for n in (63, 64, 65, 66, 90, 130)]
    a, b = rng.integers(0, 37, (2, 600))
    a[:2], b[:2] = 30, (30, 0)
    a[2:8], b[2:8] = (31, 32, 33, 34, 35, 36), (33, 33, 34, 36, 36, 30)
    expected = [
        1 - distance(texts[i], texts[j]) / max(len(texts[i]), len(texts[j]), 1)
        for i, j in zip(a, b, strict=True)
    ]
    found = similarities(texts, a, b, backend=backend)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found, similarities(texts, b, a, backend=backend))


def test_of_a_long_title_its_head_counts():
    texts = ["x" * 300, "x" * 256 + "y" * 9]
    assert similarities(texts, np.array([0]), np.array([1])).tolist() == [1.0]


def test_no_pairs_and_bad_arguments():
    nothing = np.zeros(0, int)
    assert similarities(["a"], nothing, nothing).shape == (0,)
    assert similarities([], nothing, nothing).shape == (0,)
    with pytest.raises(ValueError, match="backend is auto, rapidfuzz or numpy"):
        similarities(["a"], nothing, nothing, backend="c")
    with pytest.raises(ValueError, match="two arrays of rows"):
        similarities(["a"], nothing, np.zeros(1, int))
