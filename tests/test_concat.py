"""Concatenation with other runs: mean cosines by id, over files, and runs that do not fit."""

import numpy as np
import pytest
import torch

from common.blend import blend_embeddings
from common.config import ConfigError
from common.rerank.concat import concat
from common.rerank.known import STEPS
from common.steps import bind
from common.types import Embeddings
from tests.test_search import shuffled_ids, unit


def run(folder, rows, seed, dim=6):
    """A run folder whose embeddings of the same ids lie in two files, in another order."""
    ids = np.sort(rows)
    whole = Embeddings(ids, unit(len(ids), dim, seed), {"run": folder.name})
    for name, part in (("test", ids[:7]), ("train", ids[7:])):
        whole.select(part).save(folder / "embeddings" / f"{name}.safetensors")
    (folder / "embeddings" / "centers.safetensors").write_bytes(b"not embeddings")
    return whole


def test_cosines_are_averaged_by_id(tmp_path):
    ids = shuffled_ids(40)
    own = Embeddings(ids, unit(40, 4))
    other, third = run(tmp_path / "a", ids, 1), run(tmp_path / "b", ids, 2, 3)
    queries, gallery = own.select(ids[:5]), own.select(ids[5:30])
    train = own.select(ids[30:])
    step = {"name": "concat", "runs": [str(tmp_path / "a"), str(tmp_path / "b")]}
    state = {"queries": queries, "gallery": gallery, "train": train, "negatives": None}
    found = bind(step, STEPS)(state)
    assert found[3] is None
    for part, joined in zip((queries, gallery, train), found, strict=False):
        expected = blend_embeddings([part, other.select(part.ids), third.select(part.ids)])
        assert torch.equal(joined.vectors, expected.vectors)
        assert joined.vectors.shape[1] == 13
    weighted = concat(queries, gallery, None, None, runs=[str(tmp_path / "a")], weights=[3, 1])
    cosines = weighted[0].vectors @ weighted[1].vectors.T
    apart = [e.select(queries.ids).vectors @ e.select(gallery.ids).vectors.T for e in (own, other)]
    torch.testing.assert_close(cosines, 0.75 * apart[0] + 0.25 * apart[1])


def test_wrong_runs_are_named(tmp_path):
    ids = shuffled_ids(20)
    own = Embeddings(ids, unit(20, 4))
    run(tmp_path / "a", ids[:12], 1)
    with pytest.raises(KeyError, match="8 images, the first is"):
        concat(own, own, None, None, runs=[str(tmp_path / "a")])
    with pytest.raises(FileNotFoundError, match=r"infer\.py"):
        concat(own, own, None, None, runs=[str(tmp_path / "b")])
    with pytest.raises(ValueError, match="needs runs"):
        concat(own, own, None, None)
    with pytest.raises(ValueError, match="weights"):
        few = own.select(ids[:12])
        concat(few, few, None, None, runs=[str(tmp_path / "a")], weights=[1, 1, 1])
    with pytest.raises(ConfigError, match="has no argument 'run'"):
        bind({"name": "concat", "run": "a"}, STEPS)
