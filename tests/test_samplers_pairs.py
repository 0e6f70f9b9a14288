"""Hard negatives by assignment, and the batches of fours that they make."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.data import samplers_pairs
from common.data.assignment import blocks, hard_partners
from common.data.samplers_pairs import AssignedPairs
from common.engine.checkpoint import load_tree, save_tree
from common.engine.grouping import Grouping
from common.losses.total import build
from common.pipeline.training import SAMPLERS
from common.steps import bind, catalog
from common.types import Embeddings, Table
from tests.test_siamese import trained

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 3, -1, -1, 3, 4])
D = 6


def scores_of(vectors):
    return lambda part: vectors[part] @ vectors[part].T


def points(count, seed=0):
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, D))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(4))
def test_partners_are_the_best_of_all_permutations(seed):
    labels, vectors = np.array([0, 0, 1, 2, -1, 1]), points(6, seed)
    asking = np.flatnonzero(labels >= 0)

    def total(choice):
        return sum(vectors[i] @ vectors[j] for i, j in zip(asking, choice, strict=True))

    allowed = [
        choice
        for choice in itertools.permutations(range(6), len(asking))
        if all(labels[i] != labels[j] for i, j in zip(asking, choice, strict=True))
    ]
    found = hard_partners(labels, vectors, scores_of(vectors), [0.0])[0]
    assert found[labels < 0].tolist() == [-1]
    assert total(found[asking]) == pytest.approx(max(map(total, allowed)))


def test_rounds_give_new_pairs_and_noise_makes_them_easier():
    labels, vectors = np.arange(60) // 3, points(60)
    found = hard_partners(labels, vectors, scores_of(vectors), [0.0] * 5)
    pairs = [frozenset((i, j)) for row in found for i, j in enumerate(row.tolist())]
    for row in found:
        assert sorted(row.tolist()) == list(range(60)), "everybody is taken once"
        assert (labels[row] != labels).all()
    twice = sum(pairs.count(pair) > 2 for pair in set(pairs))
    assert twice == 0, "both may choose each other in one round, but never again"
    mean = [np.einsum("nd,nd->n", vectors, vectors[row]).mean() for row in found]
    assert mean[0] == max(mean)
    noisy = hard_partners(labels, vectors, scores_of(vectors), [1000.0])[0]
    assert np.einsum("nd,nd->n", vectors, vectors[noisy]).mean() < mean[0] - 0.3


def test_blocks_are_halves_of_look_alikes():
    vectors = points(203)
    parts = blocks(vectors, 30, np.random.default_rng(0))
    assert sorted(np.concatenate(parts).tolist()) == list(range(203))
    sizes = [len(part) for part in parts]
    assert len(parts) == 8
    assert max(sizes) - min(sizes) <= 1

    def spread(part):
        return (1 - vectors[part] @ vectors[part].T).mean()

    assert np.mean([spread(part) for part in parts]) < spread(np.arange(203)) - 0.1
    labels = np.arange(203) // 2
    near = hard_partners(labels, vectors, scores_of(vectors), [0.0, 0.0], limit=30)
    far = hard_partners(labels, vectors, scores_of(vectors), [0.0, 0.0], limit=300)
    for row in (*near, *far):
        assert sorted(row.tolist()) == list(range(203))
        assert (labels[row] != labels).all()


def test_a_class_too_large_shares_partners():
    labels = np.array([0] * 7 + [1, 2])
    vectors = points(9)
    found = hard_partners(labels, vectors, scores_of(vectors), [0.0])[0]
    assert (labels[found] != labels).all()
    assert set(found[:7].tolist()) == {7, 8}
    # Two blocks, and one of them has a single class.
    labels, vectors = np.array([0, 0, 0, 0, 1, 2, 1, 2]), np.zeros((8, 2))
    vectors[:4, 0], vectors[4:, 1] = 1, 1
    found = hard_partners(labels, vectors, scores_of(vectors), [0.0, 0.0], limit=4, seed=2)
    assert (labels[found] != labels).all()
    for wrong in ({"labels": np.zeros(9, int)}, {"limit": 1}):
        given = {"labels": np.arange(9), "limit": 9, **wrong}
        with pytest.raises(ValueError, match="need two classes and blocks of two rows"):
            hard_partners(
                given["labels"], points(9), scores_of(points(9)), [0.0], limit=given["limit"]
            )


class Scene:
    """Twelve rows with random vectors and a head that has learnt something."""

    def __init__(self, labels=LABELS, seed=0):
        self.labels, self.asked = labels, 0
        ids = np.array([f"{row:03d}" for row in range(len(labels))])
        self.vectors = normalize(
            torch.randn(len(labels), D, generator=torch.Generator().manual_seed(seed))
        )
        self.head = trained(D)

        def embed(table):
            self.asked += 1
            return Embeddings(table.ids, self.vectors[[int(name) for name in table.ids]])

        self.groups = Grouping(
            Table(ids, ids.astype("S"), labels),
            np.arange(5).astype(str),
            root=None,
            column="Id",
            embed=embed,
            centers=lambda: None,
            pair_head=lambda: self.head,
        )

    def sampler(self, **options):
        given = {"batch_size": 8, "seed": 3, "rank": 0, "world": 1, **options}
        return AssignedPairs(self.labels, self.groups, **given)


def draws(sampler, epoch, start=0):
    sampler.set_epoch(epoch, start)
    return list(sampler)


def rows_of(batch):
    return np.array([row for row, _ in batch])


@pytest.mark.parametrize("unknown", [False, True])
def test_fours_hold_positives_and_the_assigned_negatives_and_miss_nothing(unknown):
    scene = Scene()
    sampler = scene.sampler(unknown=unknown)
    for epoch in range(4):
        batches = draws(sampler, epoch)
        assert len(batches) == len(sampler) == 3
        assert {len(batch) for batch in batches} == {8}
        fours = np.concatenate([rows_of(batch) for batch in batches]).reshape(-1, 4)
        a, b, c, d = LABELS[fours].T
        assert (a == b).all()
        assert (a >= 0).all()
        assert (c != a).all()
        assert (d != b).all()
        assert set(fours[:, :2].ravel().tolist()) == set(np.flatnonzero(LABELS >= 0).tolist())
        alone = np.isin(a, [4])
        assert ((fours[:, 0] == fours[:, 1]) == alone).all(), "only one image is its own positive"
        if not unknown:
            assert (c >= 0).all()
        pairs = dict(zip(fours[:, :2].ravel().tolist(), fours[:, 2:].ravel().tolist(), strict=True))
        assert len(set(pairs.values())) == len(pairs), "nobody is a negative twice"
    streams = [stream for batch in batches for _, stream in batch]
    assert streams == list(range(3 * 2**32, 3 * 2**32 + len(streams)))
    assert unknown == any(
        (LABELS[rows_of(batch)] < 0).any() for e in range(4) for batch in draws(sampler, e)
    )


def test_negatives_are_hard_by_the_head_or_the_cosine():
    scene = Scene(np.arange(40) // 2)
    scene.vectors = torch.from_numpy(points(40)).float()
    groups = scene.groups
    partners = {
        by: groups.partners([0.0], by=by, unknown=False, limit=99, seed=[0])[0]
        for by in ("head", "cosine")
    }
    with torch.no_grad():
        logit = scene.head(scene.vectors, scene.vectors[partners["head"]])
        other = scene.head(scene.vectors, scene.vectors[partners["cosine"]])
    assert logit.sigmoid().sum() > other.sigmoid().sum()
    cosine = {by: (scene.vectors * scene.vectors[rows]).sum() for by, rows in partners.items()}
    assert cosine["cosine"] > cosine["head"]
    scene.head = None
    with pytest.raises(ValueError, match="no term of the loss compares pairs; add siamese"):
        scene.sampler().set_epoch(0)
    assert len(draws(scene.sampler(by="cosine"), 0)) == 10


def test_negatives_are_found_every_few_epochs_and_resumed(tmp_path):
    scene = Scene()
    sampler = scene.sampler(every=2)
    assert scene.asked == 0
    wanted = {epoch: draws(sampler, epoch) for epoch in range(3)}
    assert scene.asked == 2
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
        Scene(LABELS[:-1]).sampler().load_state_dict(sampler.state_dict())
    assert list(Scene().sampler()) == wanted[0]  # told nothing, it starts by itself


def test_the_noise_falls_to_its_floor():
    sampler = Scene().sampler(noise=2.0, decay=0.5, floor=0.3)
    assert [sampler.amplitude(e) for e in range(5)] == [2.0, 1.0, 0.5, 0.3, 0.3]


def test_ranks_share_the_batches_of_one_process():
    whole = draws(Scene().sampler(), 1)
    parts = [draws(Scene().sampler(rank=rank, world=2), 1) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_from_yaml_with_the_loss():
    assert set(catalog(samplers_pairs)) == {"assigned_pairs"}
    scene = Scene()
    criterion = build([{"name": "siamese"}], {"embedding_dim": D})
    scene.head = criterion.pair_head()
    sampler = bind({"name": "assigned_pairs", "unknown": True}, SAMPLERS)(
        labels=LABELS, groups=scene.groups, batch_size=8, seed=0, rank=0, world=1
    )
    for batch in draws(sampler, 0):
        rows = rows_of(batch)
        assert criterion(scene.vectors[rows], torch.from_numpy(LABELS[rows])) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6}, "multiple of 4"),
        ({"noise": 0.1}, "floor <= noise"),
        ({"decay": 0.0}, "decay <= 1"),
        ({"every": 0}, "every >= 1"),
        ({"by": "luck"}, "choose head or cosine"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Scene().sampler(**options)


def test_one_class_has_no_negative():
    with pytest.raises(ValueError, match="of one class"):
        Scene(np.zeros(6, int)).sampler()
    labels = np.array([0, 0, 0, -1, -1, -1])
    with pytest.raises(ValueError, match="of one class"):
        Scene(labels).sampler()
    assert len(draws(Scene(labels).sampler(unknown=True), 0)) == 1
