"""Coverage, balance, ranks and resume of the batch samplers."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from common.config import ConfigError
from common.data import samplers
from common.data.draws import deal
from common.data.samplers import PK, ClassBalanced, Shuffled
from common.steps import bind, catalog
from tests.oracles.samplers import balanced_shares

MAKERS = {
    "shuffled": lambda labels, **more: Shuffled(labels, batch_size=12, seed=3, **more),
    "balanced": lambda labels, **more: ClassBalanced(labels, batch_size=12, seed=3, **more),
    "pk": lambda labels, **more: PK(labels, batch_size=12, seed=3, k=3, **more),
    "pk unknown": lambda labels, **more: PK(
        labels, batch_size=12, seed=3, k=2, unknown=0.34, **more
    ),
}


def random_labels(seed, classes=9, unknown=True):
    """Long-tailed: many classes of one image, some -1, class numbers with gaps, in random order."""
    rng = np.random.default_rng(seed)
    counts = np.minimum(rng.zipf(1.6, classes), 40)
    counts[: classes // 3] = 1
    labels = np.repeat(np.arange(classes) * 3 + 2, counts)
    if unknown:
        labels = np.append(labels, np.full(7, -1))
    return rng.permutation(labels).astype(np.int64)


def epoch_rows(sampler, epoch=0, start=0):
    sampler.set_epoch(epoch, start)
    return [np.array([row for row, _ in batch]) for batch in sampler]


def epoch_draws(sampler, epoch=0, start=0):
    sampler.set_epoch(epoch, start)
    return list(sampler)


# --- what all have in common


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("seed", range(3))
def test_ranks_share_the_batches_of_one_process(make, seed):
    labels = random_labels(seed)
    alone = epoch_draws(make(labels, rank=0, world=1), 2)
    for world in (1, 2, 3, 5):
        ranks = [epoch_draws(make(labels, rank=r, world=world), 2) for r in range(world)]
        parts = list(zip(*ranks, strict=True))
        assert [[draw for part in batch for draw in part] for batch in parts] == alone
        sizes = [[len(part) for part in batch] for batch in parts]
        assert all(min(s) >= 1 and max(s) - min(s) <= 1 for s in sizes)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_same_seed_and_epoch_give_the_same_draws_and_nothing_else_matters(make):
    labels = random_labels(0)
    first = epoch_draws(make(labels), 1)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    again = make(labels)
    list(again)
    assert epoch_draws(again, 1) == first
    assert epoch_rows(again, 1)[0].tolist() != epoch_rows(again, 0)[0].tolist()
    other = make(labels)
    other.seed = 4
    assert [r.tolist() for r in epoch_rows(other, 1)] != [[r for r, _ in b] for b in first]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_resume_continues_where_it_stopped(make):
    sampler = make(random_labels(1))
    whole = epoch_draws(sampler, 3)
    assert len(whole) == len(sampler)
    for start in range(len(sampler) + 1):
        assert epoch_draws(sampler, 3, start) == whole[start:]
    assert len(sampler) == len(whole)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_streams_number_the_draws(make):
    sampler = make(random_labels(2))
    for epoch in (0, 1, 70_000):
        streams = [stream for batch in epoch_draws(sampler, epoch) for _, stream in batch]
        assert streams == list(range(epoch * 2**32, epoch * 2**32 + len(streams)))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_input_labels_stay_as_they_are(make):
    labels = random_labels(2)
    before = labels.copy()
    labels.setflags(write=False)
    list(make(labels))
    assert (labels == before).all()


def test_data_loader_takes_them():
    class Keys(Dataset):
        def __getitem__(self, key):
            return key

    sampler = PK(random_labels(0), batch_size=4, seed=0, k=2)
    loaded = [
        list(zip(rows.tolist(), streams.tolist(), strict=True))
        for rows, streams in DataLoader(Keys(), batch_sampler=sampler)
    ]
    assert loaded == list(sampler)


def test_ranks_default_to_those_of_torchrun(monkeypatch):
    labels = random_labels(0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    sampler = Shuffled(labels, batch_size=8, seed=0)
    assert (sampler.rank, sampler.world) == (1, 2)
    sampler = Shuffled(labels, batch_size=8, seed=0, rank=0, world=1)
    assert (sampler.rank, sampler.world) == (0, 1)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    sampler = Shuffled(labels, batch_size=8, seed=0)
    assert (sampler.rank, sampler.world) == (0, 1)


def test_steps_by_name():
    known = catalog(samplers)
    assert set(known) == {"shuffled", "class_balanced", "pk"}
    state = {"labels": random_labels(0), "batch_size": 12, "seed": 0}
    made = bind({"name": "pk", "k": 2, "unknown": 0.5}, known)(state)
    assert isinstance(made, PK)
    assert (made.p, made.k) == (3, 2)
    made = bind({"name": "class_balanced", "power": 0.5}, known)(state, rank=0, world=1)
    assert isinstance(made, ClassBalanced)
    with pytest.raises(ConfigError, match="images"):
        bind({"name": "pk", "images": 2}, known)
    with pytest.raises(ConfigError, match="batch_size"):
        bind({"name": "shuffled"}, known)({"labels": state["labels"], "seed": 0})


# --- shuffled


@pytest.mark.parametrize(("rows", "batch"), [(1, 5), (5, 5), (6, 5), (24, 5), (25, 5), (101, 7)])
def test_shuffled_takes_every_row_once_in_nearly_equal_batches(rows, batch):
    sampler = Shuffled(np.full(rows, -1), batch_size=batch, seed=0)
    batches = epoch_rows(sampler, 4)
    sizes = [len(b) for b in batches]
    assert len(sizes) == len(sampler) == -(-rows // batch)
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(batches)) == list(range(rows))


# --- class balanced


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("extra", [0.0, 0.37, 1.0, 6.0])
def test_balanced_draws_are_the_shares_of_the_twin(power, extra):
    labels = random_labels(4, classes=14)
    known = labels[labels >= 0]
    values, counts = np.unique(known, return_counts=True)
    total = len(known) + round(extra * len(known))
    wanted = np.array(balanced_shares(counts.tolist(), power, total))
    sampler = ClassBalanced(labels, batch_size=10, seed=0, power=power, extra=extra)
    mean = np.zeros(len(values))
    for epoch in range(60):
        rows = np.concatenate(epoch_rows(sampler, epoch))
        assert len(rows) == total
        assert (labels[rows] >= 0).all()
        drawn = (labels[rows][:, None] == values).sum(axis=0)
        assert (np.abs(drawn - wanted) < 1 + 1e-6).all()
        mean += drawn / 60
        per_image = np.bincount(rows, minlength=len(labels))
        assert (per_image[labels >= 0] >= 1).all()
        for value in values:
            images = per_image[labels == value]
            assert images.max() - images.min() <= 1
    # The fractions are rounded without bias: 60 coins deviate by .5 with probability e-14.
    assert (np.abs(mean - wanted) < 0.5).all()


def test_balanced_with_power_0_and_enough_extra_is_uniform_over_classes():
    labels = np.repeat([0, 1, 2], [1, 5, 12])
    sampler = ClassBalanced(labels, batch_size=6, seed=0, power=0, extra=1.0)
    rows = np.concatenate(epoch_rows(sampler))
    assert np.bincount(labels[rows]).tolist() == [12, 12, 12]


def test_balanced_with_power_1_keeps_natural_shares():
    labels = np.repeat([0, 1, 2], [1, 5, 12])
    sampler = ClassBalanced(labels, batch_size=6, seed=0, power=1, extra=1.0)
    assert np.bincount(labels[np.concatenate(epoch_rows(sampler))]).tolist() == [2, 10, 24]


def test_balanced_lifts_another_image_each_time():
    labels = np.repeat([0, 1], [5, 6])
    sampler = ClassBalanced(labels, batch_size=3, seed=0, extra=1 / 11)
    twice = {int(np.bincount(np.concatenate(epoch_rows(sampler, e))).argmax()) for e in range(40)}
    assert twice == {0, 1, 2, 3, 4}


def test_balanced_mixes_classes_over_the_epoch():
    labels = np.repeat(np.arange(4), 50)
    batches = epoch_rows(ClassBalanced(labels, batch_size=40, seed=0))
    assert all(len(np.unique(labels[rows])) == 4 for rows in batches)


# --- P x K


@pytest.mark.parametrize("seed", range(40))
def test_pk_batches_hold_p_classes_of_k_and_miss_nothing(seed):
    rng = np.random.default_rng(seed)
    labels = random_labels(seed, classes=int(rng.integers(4, 30)))
    k, p = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    sampler = PK(labels, batch_size=p * k, seed=seed, k=k)
    values, counts = np.unique(labels[labels >= 0], return_counts=True)
    groups = -(-counts // k)
    assert (sampler.p, len(sampler)) == (p, -(-groups.sum() // p))
    batches = epoch_rows(sampler, seed)
    assert len(batches) == len(sampler)
    for rows in batches:
        assert len(rows) == p * k
        for group in rows.reshape(p, k):
            assert len(np.unique(labels[group])) == 1
            images = counts[values == labels[group[0]]][0]
            assert len(np.unique(group)) == min(images, k)
    drawn = np.bincount(np.concatenate(batches), minlength=len(labels))
    assert (drawn[labels >= 0] >= 1).all()
    assert (drawn[labels < 0] == 0).all()
    for value in values:
        assert np.ptp(drawn[labels == value]) <= 1
    # A class is twice in a batch only if it has more groups than there are batches.
    for value, own in zip(values, groups, strict=True):
        per_batch = max((labels[rows] == value).sum() // k for rows in batches)
        assert per_batch <= max(-(-own // len(batches)), 1)


def test_pk_repeats_a_single_image():
    labels = np.array([0, 1, 1, 1, 1, -1])
    batches = epoch_rows(PK(labels, batch_size=8, seed=0, k=4))
    assert len(batches) == 1
    assert sorted(batches[0].tolist()) == [0, 0, 0, 0, 1, 2, 3, 4]


def test_pk_with_a_class_that_fills_the_table_spreads_it_evenly():
    labels = np.repeat([0, 1, 2], [90, 3, 3])
    sampler = PK(labels, batch_size=9, seed=0, k=3)
    batches = epoch_rows(sampler, 1)
    own = [int((labels[rows] == 0).sum()) // 3 for rows in batches]
    assert len(batches) == 11  # 30 + 1 + 1 groups and one that fills
    assert max(own) == 3
    assert min(own) >= 2
    assert set(np.concatenate(batches)) == set(range(96))


def test_pk_fills_the_last_batch_with_classes_that_are_not_in_every_batch():
    # 2 classes have a group in each of the 3 batches, 7 groups + 2 that fill.
    labels = np.repeat([0, 1, 2], [3, 3, 1])
    for epoch in range(20):
        batches = epoch_rows(PK(labels, batch_size=3, seed=0, k=1), epoch)
        assert [sorted(labels[rows]) for rows in batches] == [[0, 1, 2]] * 3


def test_pk_pairs_large_classes_anew():
    # Dealt in a fixed order, classes 0 and 1 would meet in all of their batches or in none.
    labels = np.repeat(np.arange(4), 40)
    sampler = PK(labels, batch_size=2, seed=0, k=1)
    for epoch in range(5):
        pairs = [tuple(sorted(labels[rows])) for rows in epoch_rows(sampler, epoch)]
        # Two of the classes share a slot: they never meet, the other four pairs all do.
        assert len(set(pairs)) == 4
        assert min(map(pairs.count, set(pairs))) >= 5
    met = {
        pair
        for e in range(20)
        for pair in (tuple(sorted(labels[r])) for r in epoch_rows(sampler, e))
    }
    assert len(met) == 6


@pytest.mark.parametrize("seed", range(60))
def test_pk_never_repeats_a_class_when_batches_are_just_enough(seed):
    rng = np.random.default_rng(seed)
    p, batches = int(rng.integers(2, 7)), int(rng.integers(2, 9))
    # As many groups as fit, none with more than one per batch: hardly any freedom is left.
    counts = np.ones(p + int(rng.integers(0, 4)), int)
    while counts.sum() < min(p * batches, len(counts) * batches):
        counts[rng.choice(np.flatnonzero(counts < batches))] += 1
    labels = np.repeat(np.arange(len(counts)), counts)
    sampler = PK(labels, batch_size=p, seed=seed, k=1)
    for epoch in range(5):
        drawn = epoch_rows(sampler, epoch)
        if len(drawn) >= counts.max():
            assert all(len(np.unique(labels[rows])) == p for rows in drawn)


def test_deal_leaves_no_trace_of_the_class_before():
    # Class 1 fills a slot and has 2 groups left. Of the 28 batches then free class 2 takes 16 at
    # random: it meets class 1 in 8 of 14 on average, not in the 2 that are left at the end.
    code = np.repeat([0, 1, 2, 3], [16, 16, 16, 12])
    rng = np.random.default_rng(0)
    met = [
        sum({1, 2} <= set(code[batch].tolist()) for batch in deal(code, 2, rng)) for _ in range(200)
    ]
    assert 7.5 < np.mean(met) < 8.5


def test_images_of_a_class_meet_others_in_every_epoch():
    labels = np.repeat([0, 1], 12)
    sampler = PK(labels, batch_size=4, seed=0, k=2)
    pairs = {
        frozenset(pair)
        for epoch in range(30)
        for rows in epoch_rows(sampler, epoch)
        for pair in rows.reshape(2, 2).tolist()
    }
    assert len(pairs) > 100  # of 2 * 66; 12 if classes were cut into the same groups each time


def test_pk_ranks_get_whole_groups_and_their_part_of_the_unknown():
    labels = random_labels(5, classes=12)
    for rank in range(2):
        sampler = PK(labels, batch_size=16, seed=0, rank=rank, world=2, k=2, unknown=0.25)
        assert sampler.p == 6
        for rows in epoch_rows(sampler):
            own = labels[rows]
            assert (own < 0).sum() == 2
            assert [(own == value).sum() % 2 for value in np.unique(own)] == [0] * len(
                np.unique(own)
            )


def test_pk_unknown_images_take_turns():
    labels = np.append(np.repeat(np.arange(6), 4), np.full(5, -1))
    batches = epoch_rows(PK(labels, batch_size=6, seed=0, k=2, unknown=1 / 3))
    rows = np.concatenate(batches)
    drawn = np.bincount(rows, minlength=len(labels))[labels < 0]
    assert all((labels[b] < 0).sum() == 2 for b in batches)
    assert drawn.sum() == 2 * len(batches)
    assert np.ptp(drawn) <= 1


# --- size and bad input


def test_a_million_rows():
    rng = np.random.default_rng(0)
    labels = (rng.pareto(1.0, 1_000_000) * 2000).astype(np.int64) % 80_000
    for sampler in (
        Shuffled(labels, batch_size=256, seed=0),
        ClassBalanced(labels, batch_size=256, seed=0),
        PK(labels, batch_size=256, seed=0, k=4),
    ):
        sampler.set_epoch(0, len(sampler) - 1)
        (last,) = list(sampler)
        assert len(last) >= 255
        assert last[-1][1] >= 999_999


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Shuffled(np.zeros((2, 2), int), batch_size=2, seed=0), "one integer per row"),
        (lambda: Shuffled(np.zeros(4), batch_size=2, seed=0), "float64"),
        (lambda: Shuffled(np.array([], int), batch_size=2, seed=0), "empty"),
        (lambda: Shuffled(np.array([0, -2]), batch_size=2, seed=0), "Label -2 in row 1"),
        (lambda: Shuffled(np.zeros(4, int), batch_size=0, seed=0), "batch_size=0"),
        (lambda: Shuffled(np.zeros(4, int), batch_size=2, seed=0, rank=0, world=3), "all 3 ranks"),
        (lambda: Shuffled(np.zeros(4, int), batch_size=3, seed=0, rank=2, world=2), "rank"),
        (lambda: Shuffled(np.zeros(4, int), batch_size=3, seed=-1), "seed"),
        (lambda: Shuffled(np.zeros(10, int), batch_size=4, seed=0, rank=0, world=4), "3 batches"),
        (lambda: ClassBalanced(np.full(4, -1), batch_size=2, seed=0), "no class"),
        (lambda: ClassBalanced(np.zeros(4, int), batch_size=2, seed=0, power=2.0), "power"),
        (lambda: ClassBalanced(np.zeros(4, int), batch_size=2, seed=0, extra=-0.1), "extra"),
        (lambda: PK(np.arange(9), batch_size=6, seed=0, k=4), "4 images"),
        (lambda: PK(np.arange(9), batch_size=3, seed=0, k=4), "4 images"),
        (lambda: PK(np.arange(9), batch_size=6, seed=0, k=0), "k must be"),
        (lambda: PK(np.arange(2), batch_size=6, seed=0, k=2), "needs 3 classes"),
        (lambda: PK(np.full(9, -1), batch_size=6, seed=0, k=2), "no class"),
        (lambda: PK(np.arange(9), batch_size=6, seed=0, k=2, unknown=0.34), "labelled -1"),
        (lambda: PK(np.arange(9), batch_size=6, seed=0, k=2, unknown=1.0), "share"),
        (lambda: Shuffled(np.arange(9), batch_size=3, seed=0).set_epoch(0, 4), "batch 4"),
        (lambda: Shuffled(np.arange(9), batch_size=3, seed=0).set_epoch(-1), "epoch -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
