"""Extraction goes on where it was killed, and leaves one whole file."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.engine import extract
from common.engine.extract import ViewConfig, embed_batch, merge
from common.types import Embeddings, Table
from tests.oracles import pooling as oracle

ROWS = 10


class Stop(Exception):
    """Stands for a kill."""


@pytest.fixture
def table():
    ids = np.array([f"{row:02}" for row in range(ROWS)])
    return Table(ids, ids.astype("S"), np.full(ROWS, -1))


def embed(table, path, block, monkeypatch, *, stop=None):
    """Extract with row number + 1 as the vector; returns the rows that were embedded."""
    done = []

    def rows(model, table, rows, *_):
        if len(done) == stop:
            raise Stop
        done.append(rows.tolist())
        return torch.from_numpy(rows[:, None] + 1.0).float(), 0

    monkeypatch.setattr(extract, "embed_rows", rows)
    model = SimpleNamespace(embedding_dim=1)
    with nullcontext() if stop is None else pytest.raises(Stop):
        extract.extract(model, table, path, ViewConfig(block=block), None, torch.device("cpu"))
    return done


def test_finished_blocks_are_not_embedded_again(table, tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    assert embed(table, path, 4, monkeypatch, stop=2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert not path.exists()
    (folder,) = tmp_path.glob("t.*.blocks")
    (folder / ".000002.4711.safetensors").write_bytes(b"half a block")  # kill -9 while writing
    assert embed(table, path, 4, monkeypatch) == [[8, 9]]
    assert Embeddings.load(path).vectors.flatten().tolist() == list(range(1, ROWS + 1))
    assert list(tmp_path.iterdir()) == [path]
    assert embed(table, path, 4, monkeypatch) == []


def test_blocks_of_one_size_are_not_taken_for_another(table, tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    embed(table, path, 4, monkeypatch, stop=2)
    assert embed(table, path, 5, monkeypatch) == [list(range(5)), list(range(5, ROWS))]
    assert Embeddings.load(path).vectors.flatten().tolist() == list(range(1, ROWS + 1))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("how", ["mean", "max", "gem"])
@pytest.mark.parametrize("p", [1.0, 10.0])
def test_merged_views_equal_their_twin(how, p):
    rows = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    vectors = torch.nn.functional.normalize(rows, dim=2)
    found = merge(vectors, how, p)
    torch.testing.assert_close(found.double(), oracle.merged(vectors, how, p), rtol=0, atol=1e-6)
    alone = merge(vectors[:, 1:2], how, p)  # the other images of a batch do not matter
    assert torch.equal(alone[0], found[1])
    torch.testing.assert_close(merge(vectors[:1], how, p), vectors[0])  # a single view is itself


def test_merged_by_gem_lies_between_mean_and_maximum():
    vectors = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(merge(vectors, "gem", 1.0), vectors.mean(0))
    torch.testing.assert_close(merge(vectors, "gem", 500.0), vectors.amax(0), rtol=0, atol=0.03)


def test_a_batch_is_embedded_with_the_merge_of_its_config():
    class Model:
        """The mean colours of the left and right half."""

        def embed(self, images):
            half = images.shape[-1] // 2
            parts = [images[..., :half], images[..., half:]]
            rows = torch.cat([part.float().mean((2, 3)) for part in parts], 1)
            return torch.nn.functional.normalize(rows, dim=1)

    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    images[..., :32] //= 4
    plain, flipped = Model().embed(images), Model().embed(images.flip(-1))
    expected = torch.nn.functional.normalize(torch.maximum(plain, flipped), dim=1)
    found = embed_batch(Model(), (images,), ViewConfig(size=64, flip=True, merge="max"))
    torch.testing.assert_close(found, expected)
    mean = embed_batch(Model(), (images,), ViewConfig(size=64, flip=True))
    torch.testing.assert_close(mean, torch.nn.functional.normalize(plain + flipped, dim=1))


def test_an_unknown_merge_is_an_error():
    with pytest.raises(ValueError, match="view.merge='median'.*mean, max, gem"):
        merge(torch.zeros(1, 1, 1), "median")
    with pytest.raises(ValueError, match="view.merge_p=0.5"):
        merge(torch.zeros(1, 1, 1), "gem", 0.5)


def test_another_merge_is_other_embeddings_and_the_mean_is_as_before(table, tmp_path, monkeypatch):
    settings = extract._settings(ViewConfig())
    assert not {"merge", "merge_p"} & set(settings)
    made = [
        extract._settings(ViewConfig(merge=how, merge_p=p))
        for how, p in (("mean", 10.0), ("max", 10.0), ("gem", 10.0), ("gem", 4.0))
    ]
    assert all(a != b for i, a in enumerate(made) for b in made[:i])
    assert made[1] == extract._settings(ViewConfig(merge="max", merge_p=3.0))  # not read by max
