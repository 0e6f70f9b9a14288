"""Categories out of csv files, clusters of the model's vectors, and a sampler whose groups move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.data.grouping import read_categories
from common.data.samplers_grouped import IdentityClusters
from common.data.tables import DataError
from common.engine.checkpoint import load_tree
from common.engine.fit import fit
from common.engine.grouping import IMAGES, Grouping
from common.engine.settings import FitConfig, Stage
from common.types import Embeddings, Table
from tests.test_fit import Head, Model, Pictures

NAMES = np.array(["100", "20", "3"])


def write(path, text):
    path.write_text(text)
    return path


# --- csv


def test_categories_of_gldv2s_file(tmp_path):
    write(
        tmp_path / "train_label_to_hierarchical.csv",
        "landmark_id,category,supercategory,natural_or_human_made\n"
        "3,a,lake,natural\n20,b,church,human-made\n100,c,lake,natural\n7,d,NA,natural\n",
    )

    def read(source):
        return read_categories(source, NAMES, root=tmp_path, column="landmark_id").tolist()

    assert read("train_label_to_hierarchical.csv:supercategory") == [1, 0, 1]
    assert read(f"{tmp_path}/train_label_to_hierarchical.csv:natural_or_human_made") == [1, 0, 1]
    assert read("train_label_to_hierarchical.csv:category") == [2, 1, 0]


def test_a_column_of_the_images_and_a_file_of_two_columns(tmp_path):
    write(tmp_path / "train.csv", "id,Id,kind\na,3,x\nb,3,x\nc,20,y\nd,100,x\n")
    write(tmp_path / "two.csv", "label,kind\n3,NA\n20,y\n")
    assert read_categories("train.csv:kind", NAMES, root=tmp_path, column="Id").tolist() == [
        0,
        1,
        0,
    ]
    # A class that the file does not have is in a category of its own; NA is a name.
    assert read_categories("two.csv", NAMES, root=tmp_path, column="Id").tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("text", "source", "error", "message"),
    [
        (None, "no.csv", FileNotFoundError, "No file .*no.csv for source=no.csv: name a csv"),
        (None, "embedings", FileNotFoundError, "embeddings or centers"),
        ("", "a.csv", DataError, "not a readable csv"),
        ("x,kind\n3,a\n", "a.csv", ValueError, "columns x, kind: it must have label or Id"),
        ("Id,one,two\n3,a,b\n", "a.csv", ValueError, "source=a.csv:COLUMN"),
        ("Id,one\n3,a\n", "a.csv:two", ValueError, "columns Id, one"),
        ("Id,one\n3,a\n", "a.csv:Id", ValueError, "source=a.csv:COLUMN"),
        ("Id,one\n3,a\n20,b\n3,c\n", "a.csv", ValueError, "Id 3 has two values of one: a and c"),
        ("Id,one\n4,a\n", "a.csv", ValueError, "none of its Ids is one of the 3 classes.* is 100"),
        ("Id,one\n3,\n", "a.csv", ValueError, "none of its Ids"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, text, source, error, message):
    if text is not None:
        write(tmp_path / "a.csv", text)
    with pytest.raises(error, match=message):
        read_categories(source, NAMES, root=tmp_path, column="Id")


# --- the model's vectors


def grouping(labels, vectors, centers=None, classes=8, **more):
    labels = np.asarray(labels)
    ids = np.array([f"{row:03d}" for row in range(len(labels))])
    seen = []

    def embed(table):
        seen.append(table.ids)
        return Embeddings(table.ids, vectors[[int(name) for name in table.ids]])

    table = Table(ids, ids.astype("S"), labels)
    names = np.arange(classes).astype(str)
    options = {"root": None, "column": "Id", "embed": embed, "centers": lambda: centers, **more}
    return Grouping(table, names, **options), seen


def test_classes_of_alike_vectors_are_one_group_and_few_images_are_embedded():
    labels = np.array([5, 0, 1, -1, 3, 6] * 20)
    truth = np.array([0, 1, 9, 2, 9, 2, 0, 9])  # classes 0 and 6, 3 and 5, and 1 alone
    noise = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    vectors = torch.eye(4)[torch.from_numpy(truth[labels]).clamp(max=3)] + 0.05 * noise
    groups, seen = grouping(labels, vectors)
    found = groups("embeddings", 3)
    assert found.shape == labels.shape
    assert (found[labels < 0] == 0).all()
    known = labels >= 0
    assert len(set(zip(truth[labels[known]], found[known], strict=True))) == 3
    (ids,) = seen
    drawn = labels[[int(name) for name in ids]]
    assert np.bincount(drawn).tolist() == [IMAGES, IMAGES, 0, IMAGES, 0, IMAGES, IMAGES]
    assert len(set(found[known])) == 3
    assert (groups("embeddings", 3) == found).all()


def test_centers_of_the_head_serve_too():
    centers = torch.eye(8)[[0, 1, 0, 2, 2, 1, 0, 2]][:, None].repeat(1, 2, 1)  # K = 2
    labels = np.array([0, 2, 6, 1, 5, 3, 4, 7, -1])
    groups, seen = grouping(labels, torch.zeros(9, 2), centers)
    found = groups("centers", 3)
    assert seen == []
    assert [len(set(found[part])) for part in (slice(0, 3), slice(3, 5), slice(5, 8))] == [1, 1, 1]
    assert len(set(found[:8])) == 3
    with pytest.raises(ValueError, match="no term of the loss has class centres"):
        grouping(labels, torch.zeros(9, 2))[0]("centers", 3)
    with pytest.raises(ValueError, match="number=9"):
        groups("centers", 9)


def test_a_csv_gives_each_row_the_category_of_its_class(tmp_path):
    write(tmp_path / "kinds.csv", "label,kind\n0,b\n1,a\n2,b\n")
    groups, _ = grouping([2, 1, -1, 0], torch.zeros(4, 2), classes=3, root=tmp_path)
    assert groups("kinds.csv", 10).tolist() == [1, 0, 0, 1]


# --- in a training


class Stop(Exception):
    """Stands for a kill."""


def train(folder, *, stop=None, every=2):
    """Draws of every batch; the groups follow the model, whatever it has become."""
    drawn, searches = [], []
    model = Model()
    labels = Pictures().labels * 3 + np.arange(48) % 3
    labels[5] = -1

    class Seen(Pictures):
        def __getitem__(self, key):
            drawn.append(key)
            if stop is not None and len(drawn) > stop:
                raise Stop
            return super().__getitem__(key)

    def groups(source, number):
        with torch.no_grad():
            model.eval()
            images = torch.stack([Pictures()[row, 0]["image"] for row in range(48)])
            vectors = torch.nn.functional.normalize(model(images), dim=1).numpy()
        searches.append(1)
        return IdentityClusters.find(vectors, labels, number)

    def loader(stage):
        sampler = IdentityClusters(labels, groups, batch_size=8, seed=0, k=2, number=3, every=every)
        return DataLoader(Seen(), batch_sampler=sampler)

    config = FitConfig(
        stages=[Stage(epochs=3, size=8), Stage(epochs=2, size=8)],
        batch_size=8,
        lr=3e-2,
        head_lr=3e-2,
        save_minutes=0.0,
    )
    options = {"validate": lambda *_: {}, "log": lambda *_: None}
    fit(model, Head(), config, folder, loader=loader, **options)
    return drawn, len(searches), load_tree(folder / "state" / "last.safetensors")


@pytest.mark.parametrize("stop", [11, 70, 150, 195])
def test_a_killed_training_goes_on_with_the_clusters_it_had(tmp_path, stop):
    whole, searches, state = train(tmp_path / "whole")
    assert searches == 4  # epochs 0, 2 | 3 (a new stage) and 4
    assert len({draw[0] for draw in whole}) == 47
    with pytest.raises(Stop):
        train(tmp_path / "cut", stop=stop)
    rest, _, again = train(tmp_path / "cut")
    assert rest == whole[-len(rest) :]
    assert len(rest) > len(whole) - stop - 8
    for key, value in state["trained"].items():
        assert torch.equal(value, again["trained"][key])
    assert torch.equal(state["sampler"]["groups"], again["sampler"]["groups"])
    assert state["sampler"]["found_at"] == again["sampler"]["found_at"] == 4
