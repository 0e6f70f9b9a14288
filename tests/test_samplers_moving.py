"""Grouped samplers whose groups are found anew while the model learns, and their state."""

import pytest
import torch

from common.data.samplers_grouped import CategoryBalanced, IdentityClusters
from common.engine.checkpoint import load_tree, save_tree
from tests.test_samplers import epoch_draws, random_labels
from tests.test_samplers_grouped import kinds_of


class Moving:
    """Another clustering at each search."""

    def __init__(self, labels):
        self.labels, self.asked = labels, []

    def __call__(self, source, number):
        self.asked.append((source, number))
        return kinds_of(self.labels, number, seed=len(self.asked))


EACH_MOVING = {
    "category": lambda *a, **o: CategoryBalanced(*a, batch_size=12, seed=3, k=3, c=2, **o),
    "cluster": lambda *a, **o: IdentityClusters(*a, batch_size=12, seed=3, k=3, **o),
}
each_moving = pytest.mark.parametrize("make", EACH_MOVING.values(), ids=EACH_MOVING)


@each_moving
def test_groups_are_found_when_an_epoch_begins_and_every_few(make):
    labels = random_labels(1, classes=14)
    moving = Moving(labels)
    sampler = make(labels, moving, number=3, every=2, source="centers")
    assert moving.asked == []  # not before training: the model is not there yet
    counts = []
    for epoch in range(1, 6):  # a stage that starts in an epoch of no search
        sampler.set_epoch(epoch)
        counts.append(len(moving.asked))
        for start in (0, 1, len(sampler)):
            sampler.set_epoch(epoch, start)
        fixed = make(labels, kinds_of(labels, 3, seed=counts[-1]))
        assert epoch_draws(sampler, epoch) == epoch_draws(fixed, epoch)
        assert len(moving.asked) == counts[-1]
    assert counts == [1, 2, 2, 3, 3]
    assert set(moving.asked) == {("centers", 3)}


@each_moving
def test_a_sampler_that_was_told_nothing_starts_by_itself(make):
    labels = random_labels(1, classes=14)
    sampler = make(labels, Moving(labels), number=3)
    assert len(sampler) > 1
    assert len(list(make(labels, Moving(labels), number=3))) == len(sampler)


@each_moving
def test_a_resumed_sampler_has_the_groups_of_the_state(make, tmp_path):
    labels = random_labels(1, classes=14)
    sampler = make(labels, Moving(labels), number=3, every=2)
    for epoch in range(3):
        sampler.set_epoch(epoch)
    save_tree(tmp_path / "state", {"sampler": sampler.state_dict()})
    moving = Moving(labels)
    again = make(labels, moving, number=3, every=2)
    again.load_state_dict(load_tree(tmp_path / "state")["sampler"])
    for epoch, start in [(2, 1), (3, 0)]:
        assert epoch_draws(again, epoch, start) == epoch_draws(sampler, epoch, start)
    assert moving.asked == []
    again.set_epoch(4)
    assert len(moving.asked) == 1
    with pytest.raises(ValueError, match="groups of 14 classes, the table has 13"):
        other = labels[labels != labels.max()]
        make(other, Moving(other), number=3).load_state_dict(sampler.state_dict())


@each_moving
def test_groups_that_stay_have_no_state(make):
    labels = random_labels(1, classes=14)
    moving = Moving(labels)
    sampler = make(labels, moving, source="categories.csv", number=3)
    assert moving.asked == [("categories.csv", 3)]  # at once: a wrong file is said before training
    list(sampler)
    assert sampler.state_dict() == make(labels, kinds_of(labels, 3)).state_dict() == {}
    sampler.load_state_dict({"groups": torch.zeros(14, dtype=torch.int64), "found_at": 3})
    assert len(moving.asked) == 1
