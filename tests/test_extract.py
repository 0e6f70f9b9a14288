"""Extraction goes on where it was killed, and leaves one whole file."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.engine import extract
from common.engine.extract import ViewConfig
from common.types import Embeddings, Table

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
