"""Quadruplets: who is in them, that nobody is forgotten, ranks and bad settings."""

import numpy as np
import pytest

from common.data.samplers_quadruplet import Quadruplets
from common.pipeline.training import SAMPLERS
from common.steps import bind
from tests.test_samplers import epoch_draws, epoch_rows, random_labels


def of(sampler, epoch=0):
    return np.concatenate(epoch_rows(sampler, epoch)).reshape(-1, sampler.width)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unknown", [0, 1, 2])
def test_each_is_anchor_same_class_other_class_and_unknown(seed, unknown):
    labels = random_labels(seed)
    known = np.flatnonzero(labels >= 0)
    sampler = Quadruplets(labels, batch_size=4 * (3 + unknown), seed=seed, unknown=unknown)
    assert len(sampler) == -(-len(known) // 4)
    for epoch in range(3):
        found = of(sampler, epoch)
        anchor, positive, negative = labels[found[:, :3]].T
        assert (anchor >= 0).all()
        assert (positive == anchor).all()
        assert (negative != anchor).all()
        assert (negative >= 0).all()
        assert (labels[found[:, 3:]] == -1).all()
        alone = np.bincount(labels[known])[anchor] == 1
        assert ((found[:, 0] == found[:, 1]) == alone).all()
        times = np.bincount(found[:, 0], minlength=len(labels))[known]
        assert times.min() == 1
        assert times.max() <= 2
        assert times.sum() == 4 * len(sampler)
        assert not np.array_equal(found, of(sampler, epoch + 1))
        assert np.array_equal(found, of(sampler, epoch))


def test_positives_and_negatives_are_drawn_evenly():
    labels = np.repeat([0, 1, 2], [4, 2, 6])
    sampler = Quadruplets(labels, batch_size=6, seed=0, unknown=0)
    draws = np.concatenate([of(sampler, epoch) for epoch in range(800)])
    for row in range(12):
        mine = draws[draws[:, 0] == row]
        same = np.flatnonzero((labels == labels[row]) & (np.arange(12) != row))
        others = np.flatnonzero(labels != labels[row])
        for column, rows in ((1, same), (2, others)):
            shares = np.bincount(mine[:, column], minlength=12)[rows] / len(mine)
            np.testing.assert_allclose(shares, 1 / len(rows), atol=0.07)


def test_unknown_rows_take_turns():
    labels = np.append(np.arange(10).repeat(2), np.full(33, -1))
    sampler = Quadruplets(labels, batch_size=16, seed=0)
    drawn = np.concatenate([of(sampler, epoch)[:, 3] for epoch in range(5)])
    assert np.ptp(np.bincount(drawn, minlength=53)[20:]) <= 1


def test_ranks_share_the_batches_and_an_epoch_goes_on_where_it_stopped():
    labels = random_labels(1)
    alone = epoch_draws(Quadruplets(labels, batch_size=16, seed=3, rank=0, world=1), 2)
    ranks = [
        epoch_draws(Quadruplets(labels, batch_size=16, seed=3, rank=r, world=2), 2)
        for r in range(2)
    ]
    parts = list(zip(*ranks, strict=True))
    assert [[*a, *b] for a, b in parts] == alone
    assert {len(a) for a, _ in parts} == {8}  # two whole quadruplets
    assert epoch_draws(Quadruplets(labels, batch_size=16, seed=3), 2, 3) == alone[3:]
    streams = [stream for batch in alone for _, stream in batch]
    assert len(set(streams)) == len(streams)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 0, 1], {}, "set it to 0 for triplets"),
        ([0, 0, 1, -1], {"batch_size": 6}, "multiple of 4"),
        ([0, 0, -1], {}, "no image can be a negative"),
        ([-1, -1], {}, "All labels are -1"),
        ([0, 0, 1, -1], {"batch_size": 16}, "3 labelled rows"),
        ([0, 0, 1, -1], {"unknown": -1}, "at least 0"),
    ],
)
def test_what_cannot_be_is_named(labels, options, message):
    with pytest.raises(ValueError, match=message):
        Quadruplets(np.array(labels), **{"batch_size": 4, "seed": 0, **options})


def test_it_is_named_in_yaml():
    step = {"name": "quadruplets", "unknown": 0}
    made = bind(step, SAMPLERS)(labels=np.arange(6) // 2, batch_size=3, seed=0)
    assert made.width == 3
