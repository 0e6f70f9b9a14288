"""Coverage, categories, clusters, ranks and resume of the grouped batch samplers."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from common.config import ConfigError
from common.data import samplers_grouped
from common.data.grouping import merged
from common.data.samplers import PK
from common.data.samplers_grouped import CategoryBalanced, IdentityClusters
from common.steps import bind, catalog
from tests.oracles import samplers_grouped as oracle
from tests.test_samplers import epoch_draws, epoch_rows, random_labels


def kinds_of(labels, kinds, seed=0):
    """A random category or cluster per class, all of them used, with gaps; -1 without a class."""
    rng = np.random.default_rng(seed)
    values = np.unique(labels[labels >= 0])
    own = rng.permutation(np.arange(len(values)) % kinds) * 5 + 1
    return np.where(labels < 0, -1, own[np.searchsorted(values, labels.clip(0)) % len(values)])


def category(labels, **more):
    options = {"batch_size": 12, "seed": 3, "k": 3, "c": 2, **more}
    return CategoryBalanced(labels, kinds_of(labels, 4), **options)


def cluster(labels, **more):
    options = {"batch_size": 12, "seed": 3, "k": 3, **more}
    return IdentityClusters(labels, kinds_of(labels, 2), **options)


MAKERS = {"category": category, "cluster": cluster}
each_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


# --- what all samplers have in common


@each_maker
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


@each_maker
def test_same_seed_and_epoch_give_the_same_draws_and_nothing_else_matters(make):
    labels = random_labels(0)
    first = epoch_draws(make(labels), 1)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    again = make(labels)
    list(again)
    assert epoch_draws(again, 1) == first
    assert epoch_rows(again, 1)[0].tolist() != epoch_rows(again, 0)[0].tolist()
    other = [r.tolist() for r in epoch_rows(make(labels, seed=4), 1)]
    assert other != [[r for r, _ in b] for b in first]


@each_maker
def test_resume_continues_where_it_stopped(make):
    sampler = make(random_labels(1))
    whole = epoch_draws(sampler, 3)
    assert len(whole) == len(sampler) > 1
    for start in range(len(sampler) + 1):
        assert epoch_draws(sampler, 3, start) == whole[start:]


@each_maker
def test_streams_number_the_draws(make):
    sampler = make(random_labels(2))
    for epoch in (0, 1, 70_000):
        streams = [stream for batch in epoch_draws(sampler, epoch) for _, stream in batch]
        assert streams == list(range(epoch * 2**32, epoch * 2**32 + len(streams)))


@each_maker
def test_inputs_stay_as_they_are_and_a_loader_takes_them(make):
    class Keys(Dataset):
        def __getitem__(self, key):
            return key

    labels = random_labels(2)
    before = labels.copy()
    labels.setflags(write=False)
    sampler = make(labels)
    loaded = [
        list(zip(rows.tolist(), streams.tolist(), strict=True))
        for rows, streams in DataLoader(Keys(), batch_sampler=sampler)
    ]
    assert loaded == list(sampler)
    assert (labels == before).all()


def check_groups(labels, batches, k, allowed):
    """Every row covered, k rows of a class adjacent, no class more often than `allowed` says."""
    values, counts = np.unique(labels[labels >= 0], return_counts=True)
    for rows in batches:
        for group in rows.reshape(-1, k):
            assert len(np.unique(labels[group])) == 1
            images = counts[values == labels[group[0]]][0]
            assert len(np.unique(group)) == min(images, k)
    drawn = np.bincount(np.concatenate(batches), minlength=len(labels))
    assert (drawn[labels >= 0] >= 1).all()
    assert (drawn[labels < 0] == 0).all()
    for value in values:
        assert np.ptp(drawn[labels == value]) <= 1
        most = max((labels[rows] == value).sum() // k for rows in batches)
        assert most <= allowed(value)


# --- categories


@pytest.mark.parametrize("seed", range(40))
def test_category_batches_hold_c_categories_and_miss_nothing(seed):
    rng = np.random.default_rng(seed)
    labels = random_labels(seed, classes=int(rng.integers(6, 30)))
    k, p, c = (int(rng.integers(1, n)) for n in (5, 4, 4))
    kinds = kinds_of(labels, int(rng.integers(c, 6)), seed)
    sampler = CategoryBalanced(labels, kinds, batch_size=c * p * k, seed=seed, k=k, c=c)
    names = np.unique(kinds[labels >= 0])
    groups = {n: -(-np.sum(labels == n) // k) for n in np.unique(labels[labels >= 0])}
    kind_of = {n: kinds[labels == n][0] for n in groups}
    need = [sum(g for n, g in groups.items() if kind_of[n] == name) for name in names]
    cells = oracle.cells_per_category(need, p, c)

    batches = epoch_rows(sampler, seed)
    assert len(batches) == len(sampler) == sum(cells) // c
    drawn = dict.fromkeys(names, 0)
    for rows in batches:
        assert len(rows) == c * p * k
        own = kinds[rows].reshape(c, p * k)
        assert (own == own[:, :1]).all()
        assert len(np.unique(own[:, 0])) == c
        for name in own[:, 0]:
            drawn[name] += 1
    assert sorted(drawn.values()) == sorted(cells)
    # Among equally large ones it is left open which gets the last places.
    assert all(abs(drawn[n] - m) <= 1 for n, m in zip(names, cells, strict=True))

    def allowed(value):
        own = kind_of[value]
        spare = -(-p // sum(kind == own for kind in kind_of.values()))  # too few classes
        return max(-(-groups[value] // drawn[own]), spare)

    check_groups(labels, batches, k, allowed)


def test_categories_are_drawn_as_evenly_as_the_largest_allows():
    labels = np.arange(111)  # 100 classes, 10 and 1
    kinds = np.repeat([0, 1, 2], [100, 10, 1])
    sampler = CategoryBalanced(labels, kinds, batch_size=4, seed=0, k=2, c=2)
    assert len(sampler) == 100
    rows = np.concatenate(epoch_rows(sampler))
    assert np.bincount(kinds[rows]).tolist() == [200, 100, 100]
    every = CategoryBalanced(labels, kinds, batch_size=6, seed=0, k=2, c=3)
    rows = np.concatenate(epoch_rows(every))
    assert np.bincount(kinds[rows]).tolist() == [200, 200, 200]


def test_extra_draws_of_a_category_go_round_its_classes():
    labels = np.concatenate([np.zeros(60, int), np.arange(1, 7).repeat(2)])
    kinds = (labels > 0).astype(int)
    sampler = CategoryBalanced(labels, kinds, batch_size=4, seed=0, k=2, c=2)
    rows = np.concatenate(epoch_rows(sampler))  # 30 cells each: class 0, and 6 classes in turn
    assert np.bincount(labels[rows]).tolist() == [60] + [10] * 6


def test_all_pairs_of_categories_meet():
    labels = np.arange(80)
    kinds = np.arange(80) % 4
    sampler = CategoryBalanced(labels, kinds, batch_size=4, seed=0, k=1, c=2)
    met = set()
    for epoch in range(20):
        met |= {tuple(np.unique(kinds[rows])) for rows in epoch_rows(sampler, epoch)}
    assert len(met) == 6


def test_a_rank_gets_whole_categories():
    labels = random_labels(5, classes=12)
    kinds = kinds_of(labels, 4)
    for rank in range(2):
        sampler = CategoryBalanced(
            labels, kinds, batch_size=24, seed=0, rank=rank, world=2, k=2, c=4
        )
        for rows in epoch_rows(sampler):
            assert len(rows) == 12
            assert len(np.unique(kinds[rows])) == 2


def test_one_category_of_all_is_pk():
    labels = random_labels(3, classes=12)
    sampler = CategoryBalanced(labels, labels * 0, batch_size=12, seed=0, k=3, c=1)
    assert len(sampler) == len(PK(labels, batch_size=12, seed=0, k=3))


# --- clusters


@pytest.mark.parametrize("seed", range(40))
def test_cluster_batches_stay_in_a_cluster_and_miss_nothing(seed):
    rng = np.random.default_rng(seed)
    labels = random_labels(seed, classes=int(rng.integers(6, 30)))
    k, p = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    kinds = kinds_of(labels, int(rng.integers(1, 7)), seed)
    sampler = IdentityClusters(labels, kinds, batch_size=p * k, seed=seed, k=k)
    values = np.unique(labels[labels >= 0])
    kind_of = {n: int(kinds[labels == n][0]) for n in values}
    groups = {n: -(-np.sum(labels == n) // k) for n in values}
    sets = oracle.merged([kind_of[n] for n in values], p)
    need = [-(-sum(g for n, g in groups.items() if kind_of[n] in one) // p) for one in sets]

    batches = epoch_rows(sampler, seed)
    assert len(batches) == len(sampler) == sum(need)
    found = [next(i for i, one in enumerate(sets) if kinds[rows[0]] in one) for rows in batches]
    for rows, one in zip(batches, found, strict=True):
        assert set(kinds[rows].tolist()) <= sets[one]
        assert len(rows) == p * k
    assert np.bincount(found).tolist() == need

    def allowed(value):
        one = next(i for i, one in enumerate(sets) if kind_of[value] in one)
        return max(-(-groups[value] // need[one]), 1)

    check_groups(labels, batches, k, allowed)


@pytest.mark.parametrize("seed", range(30))
def test_small_clusters_are_merged_as_by_the_twin(seed):
    rng = np.random.default_rng(seed)
    of = np.unique(rng.integers(0, 9, 25) ** 2, return_inverse=True)[1]
    for least in (1, 2, 4, 9, 25):
        found = merged(of, least)
        sets = {frozenset(of[found == one].tolist()) for one in np.unique(found)}
        assert sets == {frozenset(one) for one in oracle.merged(of.tolist(), least)}
        assert np.bincount(found).min() >= least


def test_batches_of_clusters_are_shuffled():
    labels = np.arange(80)
    kinds = labels // 40
    first = [
        kinds[rows[0]]
        for rows in epoch_rows(IdentityClusters(labels, kinds, batch_size=4, seed=0, k=1))
    ]
    assert np.bincount(first).tolist() == [10, 10]
    assert 4 < np.count_nonzero(np.diff(first)) < 19


def test_look_alikes_meet():
    """The hardest negatives of a batch are nearer than in batches of random classes."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(60, 8))
    labels = np.repeat(np.arange(60), 4)
    vectors = centers[labels] + 0.1 * rng.normal(size=(240, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def nearest(sampler):
        found = []
        for rows in epoch_rows(sampler):
            cosine = vectors[rows] @ vectors[rows].T
            cosine[labels[rows][:, None] == labels[rows]] = -1
            found.append(cosine.max(1).mean())
        return np.mean(found)

    clusters = IdentityClusters.find(vectors, labels, number=6)
    near = nearest(IdentityClusters(labels, clusters, batch_size=16, seed=0, k=4))
    assert near > nearest(PK(labels, batch_size=16, seed=0, k=4)) + 0.2


def test_find_gives_each_class_the_cluster_of_its_mean():
    rng = np.random.default_rng(1)
    corners = np.eye(5)[:3]
    labels = rng.permutation(np.append(np.arange(30).repeat(3), [-1, -1]))
    truth = labels % 3
    vectors = corners[truth] + 0.02 * rng.normal(size=(92, 5))
    found = IdentityClusters.find(vectors.astype(np.float16), labels, number=3, seed=2)
    assert found.dtype == np.int64
    assert (found[labels < 0] == 0).all()
    known = labels >= 0
    pairs = set(zip(truth[known].tolist(), found[known].tolist(), strict=True))
    assert len(pairs) == len({b for _, b in pairs}) == 3
    again = IdentityClusters.find(vectors.astype(np.float16), labels, number=3, seed=2)
    assert (found == again).all()
    assert (IdentityClusters.find(vectors, labels, number=1) == 0).all()


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_find_takes_equal_and_zero_vectors():
    labels = np.arange(12)
    for vectors in (np.zeros((12, 4)), np.ones((12, 4))):
        found = IdentityClusters.find(vectors, labels, number=5)
        sampler = IdentityClusters(labels, found, batch_size=4, seed=0, k=1)
        assert sorted(np.concatenate(epoch_rows(sampler))) == list(range(12))


# --- size, configuration and bad input


def test_a_million_rows():
    rng = np.random.default_rng(0)
    labels = (rng.pareto(1.0, 1_000_000) * 2000).astype(np.int64) % 80_000
    for sampler in (
        CategoryBalanced(labels, labels % 50, batch_size=256, seed=0, k=4, c=4),
        IdentityClusters(labels, labels % 1000, batch_size=256, seed=0, k=4),
    ):
        sampler.set_epoch(0, len(sampler) - 1)
        (last,) = list(sampler)
        assert len(last) == 256
        assert last[-1][1] >= 999_999


def test_steps_by_name():
    known = catalog(samplers_grouped)
    assert set(known) == {"category_balanced", "identity_clusters"}
    labels = random_labels(0)
    state = {"labels": labels, "batch_size": 12, "seed": 0}
    step = {"name": "category_balanced", "k": 2, "c": 3}
    made = bind(step, known)({**state, "groups": kinds_of(labels, 3)})
    assert (made.p, made.k, made.c) == (2, 2, 3)
    made = bind({"name": "identity_clusters"}, known)({**state, "groups": kinds_of(labels, 2)})
    assert (made.p, made.k) == (3, 4)
    with pytest.raises(ConfigError, match="needs 'groups'"):
        bind({"name": "category_balanced"}, known)(state)


NINE, THREES = np.arange(9), np.arange(9) % 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CategoryBalanced(NINE, THREES, batch_size=6, seed=0, k=4), "multiple of 8 = 2 x"),
        (lambda: CategoryBalanced(NINE, THREES, batch_size=6, seed=0, k=4, c=2), "batch_size=6"),
        (lambda: CategoryBalanced(NINE, THREES, batch_size=8, seed=0, k=2, c=4), "there are 3"),
        (lambda: CategoryBalanced(NINE, THREES, batch_size=8, seed=0, k=0), "got 0, 2 and 1"),
        (lambda: CategoryBalanced(NINE, THREES, batch_size=8, seed=0, c=0), "got 4, 0 and 1"),
        (lambda: CategoryBalanced(NINE, THREES[:8], batch_size=8, seed=0), "each of 9 rows"),
        (lambda: CategoryBalanced(NINE, THREES / 1, batch_size=8, seed=0), "float64"),
        (lambda: CategoryBalanced(NINE, THREES - 1, batch_size=8, seed=0), "-1 of row 0 is neg"),
        (
            lambda: CategoryBalanced(NINE // 2, THREES, batch_size=8, seed=0),
            "1 of row 1 differs",
        ),
        (lambda: CategoryBalanced(NINE * 0 - 1, THREES, batch_size=8, seed=0), "no class"),
        (lambda: IdentityClusters(NINE, THREES, batch_size=6, seed=0, k=4), "batch_size=6"),
        (lambda: IdentityClusters(NINE, THREES, batch_size=10, seed=0, k=1), "needs 10 classes"),
        (lambda: IdentityClusters(NINE // 2, THREES, batch_size=4, seed=0), "differs"),
        (lambda: IdentityClusters(NINE, NINE, batch_size=4, seed=0, rank=0, world=5), "5 ranks"),
        (lambda: IdentityClusters.find(np.ones((8, 2)), NINE, number=2), "8 for 9"),
        (lambda: IdentityClusters.find(np.ones((9, 2)), NINE, number=10), "number=10"),
        (lambda: IdentityClusters.find(np.ones((9, 2)), NINE - 9, number=2), "Label -9"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
