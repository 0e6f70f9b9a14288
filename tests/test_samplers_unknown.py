"""A share of unknown rows in every batch of the samplers, all of which take turns."""

import numpy as np
import pytest

from common.data.samplers import PK, ClassBalanced
from common.data.samplers_grouped import CategoryBalanced, IdentityClusters
from tests.test_samplers import epoch_draws, epoch_rows
from tests.test_samplers_grouped import kinds_of

UNKNOWN = {
    "balanced": lambda labels, **o: ClassBalanced(labels, batch_size=10, extra=0.0, **o),
    "pk": lambda labels, **o: PK(labels, batch_size=10, k=2, **o),
    "category": lambda labels, **o: CategoryBalanced(labels, labels % 3, batch_size=10, k=1, **o),
    "cluster": lambda labels, **o: IdentityClusters(labels, labels % 3, batch_size=10, k=2, **o),
}
each_unknown = pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)


def with_unknown(strange):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.append(np.arange(12).repeat(4), np.full(strange, -1)))
    return np.where(labels < 0, -1, labels)


@each_unknown
@pytest.mark.parametrize("strange", [7, 25, 300])
def test_a_share_of_each_batch_is_unknown_and_all_take_turns(make, strange):
    labels = with_unknown(strange)
    sampler = make(labels, seed=0, unknown=0.4)
    batches = [epoch_rows(sampler, epoch) for epoch in range(12)]
    for rows in (rows for one in batches for rows in one):
        count = (labels[rows] < 0).sum()
        assert abs(count - 0.4 * len(rows)) < 1  # exactly 4 of 10, whatever the size in proportion
    for one in batches:
        assert set(np.flatnonzero(labels >= 0)) <= set(np.concatenate(one))
    assert_turns(labels, [rows for one in batches for rows in one])
    assert len(set(batches[0][0]) ^ set(batches[1][0])) > 0


def assert_turns(labels, batches):
    """None is drawn again before all others were: an epoch goes on where the last one stopped."""
    drawn = np.concatenate([rows[labels[rows] < 0] for rows in batches])
    unknown = np.flatnonzero(labels < 0)
    whole = len(drawn) // len(unknown) * len(unknown)
    for one in drawn[:whole].reshape(-1, len(unknown)):
        assert sorted(one) == list(unknown)
    assert len(set(drawn[whole:])) == len(drawn) - whole


MOVING = {
    "category": lambda *a, **o: CategoryBalanced(*a, batch_size=10, k=1, c=2, every=2, **o),
    "cluster": lambda *a, **o: IdentityClusters(*a, batch_size=10, k=2, every=2, **o),
}


@pytest.mark.parametrize("make", MOVING.values(), ids=MOVING)
def test_turns_go_on_when_epochs_change_in_length_and_after_a_resume(make):
    """Groups are found anew every other epoch, and with them another number of batches."""
    labels = with_unknown(31)

    def found():
        kinds = iter([4, 3, 2, 4, 3, 2])
        return lambda source, number: kinds_of(labels, next(kinds))

    def new(groups, **options):
        return make(labels, groups, seed=0, unknown=0.4, **options)

    groups = found()
    sampler, halves = new(groups), [new(found(), rank=rank, world=2) for rank in range(2)]
    batches, lengths = [], []
    for epoch in range(12):
        if epoch in (5, 6):  # in the midst of a pair of epochs, and between two pairs
            state, sampler = sampler.state_dict(), new(groups)
            sampler.load_state_dict(state)
        whole = epoch_rows(sampler, epoch)
        for one, *parts in zip(whole, *(epoch_rows(half, epoch) for half in halves), strict=True):
            assert [*parts[0], *parts[1]] == list(one)
        batches += whole
        lengths.append(len(whole))
    assert len(set(lengths)) > 1
    assert_turns(labels, batches)


@each_unknown
def test_ranks_share_the_unknown(make):
    labels = with_unknown(60)
    alone = epoch_draws(make(labels, seed=0, rank=0, world=1, unknown=0.4), 3)
    ranks = [epoch_draws(make(labels, seed=0, rank=r, world=2, unknown=0.4), 3) for r in range(2)]
    for parts, whole in zip(zip(*ranks, strict=True), alone, strict=True):
        assert [*parts[0], *parts[1]] == whole
        for part in parts:
            assert sum(labels[row] < 0 for row, _ in part) in (1, 2, 3)


@each_unknown
def test_without_a_share_no_unknown_row_is_drawn(make):
    labels = with_unknown(20)
    assert (labels[np.concatenate(epoch_rows(make(labels, seed=0)))] >= 0).all()


@each_unknown
def test_a_share_that_cannot_be_is_named(make):
    with pytest.raises(ValueError, match="no row is labelled -1"):
        make(np.arange(12).repeat(4), seed=0, unknown=0.4)
    with pytest.raises(ValueError, match="unknown is a share"):
        make(with_unknown(9), seed=0, unknown=1.0)


def test_whale_as_it_is():
    """38 % new_whale: a shuffle of all rows, and as many of each kind in every batch."""
    labels = with_unknown(29)
    sampler = ClassBalanced(labels, batch_size=10, seed=0, extra=0.0, unknown=29 / 77)
    rows = np.concatenate(epoch_rows(sampler))
    assert sorted(rows) == list(range(77))
