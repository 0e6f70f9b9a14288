"""Batches of near clusters: what they hold, that none is missed, resume, ranks; near clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.data import samplers_magnet
from common.data.samplers_magnet import MagnetClusters
from common.engine.checkpoint import load_tree, save_tree
from common.engine.grouping import Grouping
from common.losses.clusters import cluster_index, nearest_impostors
from common.losses.magnet import MagnetLoss
from common.losses.total import build
from common.pipeline.training import SAMPLERS
from common.steps import bind, catalog
from common.types import Embeddings, Table


class Scene:
    """Eight classes of two looks on a circle: look 1 of class c lies beside look 0 of c + 1."""

    def __init__(self, each=6, seed=0):
        rng = np.random.default_rng(seed)
        self.labels = np.repeat(np.arange(8), 2 * each)
        self.look = np.tile(np.repeat([0, 1], each), 8)
        angle = (self.labels + 0.6 * self.look) * 2 * np.pi / 8 + rng.normal(
            0, 0.01, len(self.look)
        )
        self.labels[5] = -1
        ids = np.array([f"{row:03d}" for row in range(len(self.labels))])
        self.vectors = torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], 1)).float()
        self.asked = 0

        def embed(table):
            self.asked += 1
            return Embeddings(table.ids, self.vectors[[int(name) for name in table.ids]])

        table = Table(ids, ids.astype("S"), self.labels)
        self.groups = Grouping(
            table,
            np.arange(8).astype(str),
            root=None,
            column="Id",
            embed=embed,
            centers=lambda: None,
        )

    def sampler(self, **options):
        given = {"batch_size": 12, "seed": 3, "k": 2, "rows": 3, "rank": 0, "world": 1, **options}
        return MagnetClusters(self.labels, self.groups, **given)


def draws(sampler, epoch, start=0):
    sampler.set_epoch(epoch, start)
    return list(sampler)


def rows_of(batch):
    return np.array([row for row, _ in batch])


def test_nearest_impostors_equal_loops():
    scene = Scene()
    labels = torch.from_numpy(scene.labels)
    clusters = cluster_index(scene.vectors, labels, 2)
    near = nearest_impostors(scene.vectors, labels, clusters, 5)
    means = {c: scene.vectors[clusters == c].mean(0) for c in range(16)}
    owner = {c: labels[clusters == c][0].item() for c in range(16)}
    for c in range(16):
        others = [o for o in range(16) if owner[o] != owner[c]]
        others.sort(key=lambda o: float((means[o] - means[c]).norm()))
        assert near[c].tolist() == others[:5]
    assert (nearest_impostors(scene.vectors, labels, clusters, 99)[:, -2:] == -1).all()


def test_batches_are_clusters_of_different_classes_and_miss_nothing():
    scene = Scene()
    sampler = scene.sampler()
    for epoch in range(3):
        batches = draws(sampler, epoch)
        assert len(batches) == len(sampler)
        seen = set()
        for batch in batches:
            rows = rows_of(batch)
            parts = rows.reshape(4, 3)
            kinds = [{(scene.labels[r], scene.look[r]) for r in part} for part in parts]
            assert all(len(kind) == 1 for kind in kinds), "a part is of one look of one class"
            assert len({label for ((label, _),) in kinds}) == 4, "no class is there twice"
            seen |= set(rows.tolist())
        assert seen == set(np.flatnonzero(scene.labels >= 0).tolist())
        assert len(batches) <= 11  # 32 groups of three in 8 full batches, and few more
    streams = [stream for batch in batches for _, stream in batch]
    assert streams == list(range(2 * 2**32, 2 * 2**32 + len(streams)))


def test_a_batch_starts_with_near_looks():
    """The look of the next class lies nearer than any other; early in an epoch it is there."""
    scene = Scene(each=30)
    sampler = scene.sampler(batch_size=6)
    together = 0
    for batch in draws(sampler, 0)[:10]:
        first, second = rows_of(batch).reshape(2, 3)[:, 0]
        a, b = (scene.labels[r] + 0.6 * scene.look[r] for r in (first, second))
        together += min((a - b) % 8, (b - a) % 8) < 0.5
    assert together >= 8


def test_clusters_are_found_every_few_epochs_and_resumed(tmp_path):
    scene = Scene()
    sampler = scene.sampler(every=2)
    assert scene.asked == 0
    wanted = {epoch: draws(sampler, epoch) for epoch in range(3)}
    assert scene.asked == 2
    assert wanted[0] != wanted[1]
    save_tree(tmp_path / "state", {"sampler": sampler.state_dict()})
    other = Scene()
    again = other.sampler(every=2)
    assert again.state_dict() == {}
    again.load_state_dict({})
    again.load_state_dict(load_tree(tmp_path / "state")["sampler"])
    assert draws(again, 2, 1) == wanted[2][1:]
    assert draws(again, 3) == draws(sampler, 3)
    assert other.asked == 0
    with pytest.raises(ValueError, match="another table"):
        Scene(each=5).sampler().load_state_dict(sampler.state_dict())
    assert len(Scene().sampler()) == len(wanted[0])  # told nothing, it starts by itself


def test_ranks_share_the_batches_of_one_process():
    whole = draws(Scene().sampler(), 1)
    parts = [draws(Scene().sampler(rank=rank, world=2), 1) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_small_classes_and_a_short_list_of_near_ones(monkeypatch):
    scene = Scene(each=1)  # two images per class, each a look
    batches = draws(scene.sampler(batch_size=24, rows=3), 0)
    for batch in batches:
        assert len(set(scene.labels[rows_of(batch)])) == 8
    looks = scene.groups.looks
    scene.groups.looks = lambda k, count: (looks(k, count)[0], looks(k, count)[1][:, :1])
    batches = draws(scene.sampler(batch_size=24, rows=3), 0)
    assert {len(set(scene.labels[rows_of(batch)])) for batch in batches} == {8}


def test_from_yaml_with_the_loss():
    """A batch's classes are clusters, so the loss of a list is the paper's without more input."""
    assert set(catalog(samplers_magnet)) == {"magnet_clusters"}
    scene = Scene()
    sampler = bind({"name": "magnet_clusters", "k": 2, "rows": 3}, SAMPLERS)(
        labels=scene.labels, groups=scene.groups, batch_size=12, seed=0, rank=0, world=1
    )
    criterion = build([{"name": "magnet"}], {"embedding_dim": 2, "num_classes": 8})
    clusters, _ = scene.groups.looks(2, 4)
    for batch in draws(sampler, 0):
        rows = rows_of(batch)
        x, labels = scene.vectors[rows], torch.from_numpy(scene.labels[rows])
        expected = MagnetLoss()(x, labels, torch.from_numpy(clusters[rows]))
        torch.testing.assert_close(criterion(x, labels), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 5}, "multiple of rows=5"),
        ({"rows": 1}, "A batch of 12 clusters needs as many classes, the table has 8"),
        ({"k": 0}, "at least 1"),
        ({"every": 0}, "at least 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Scene().sampler(**options)
