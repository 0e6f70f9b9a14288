"""Who trains, who asks and who answers in each fold."""

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold

from common.data.folds import check_labels, group_folds, leaks, split
from tests.oracles import folds as oracle


def random_table(seed, classes=30, unknown=12):
    """Labels with singletons, gaps and -1 in random order, and their ids."""
    rng = np.random.default_rng(seed)
    counts = np.minimum(rng.zipf(1.5, classes), 30)
    counts[:8] = 1
    labels = np.append(np.repeat(rng.permutation(classes * 2)[:classes], counts), [-1] * unknown)
    ids = np.array([f"{number:05x}" for number in rng.permutation(10**6)[: len(labels)]])
    return rng.permutation(labels), ids


def roles(result):
    return np.stack([result.train, result.queries, result.gallery, result.unseen])


# --- split


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("unseen", [0.0, 0.2])
def test_roles_of_every_row(seed, folds, unseen):
    labels, ids = random_table(seed)
    asked = np.zeros(len(labels), int)
    held_out = []
    for fold in range(folds):
        result = split(labels, fold=fold, folds=folds, unseen=unseen, seed=seed, ids=ids)
        hidden = {int(v) for v in np.unique(labels[result.unseen])}
        held_out.append(hidden)
        assert -1 not in hidden
        assert len(hidden) == round(unseen * len(np.unique(labels[labels >= 0])))
        for value in np.unique(labels):
            own = labels == value
            train, queries, gallery = (
                m[own] for m in (result.train, result.queries, result.gallery)
            )
            assert not (queries & (train | gallery)).any()
            assert result.unseen[own].all() == (value in hidden) == result.unseen[own].any()
            if value in hidden:
                assert not train.any()
                assert queries.sum() == max(own.sum() // 2, 1)
                assert (gallery == ~queries).all()
                continue
            assert (train == ~queries).all()
            assert gallery.tolist() == (train & (value >= 0)).tolist()
            assert train.any()
            if own.sum() == 1:
                assert not queries.any()
            else:
                assert own.sum() // folds <= queries.sum() <= -(-own.sum() // folds)
            asked[own] += queries
    if not unseen:
        several = np.array([(labels == value).sum() > 1 for value in labels])
        assert asked.tolist() == several.astype(int).tolist()
    assert sum(map(len, held_out)) == len(set().union(*held_out))


@pytest.mark.parametrize("seed", range(4))
def test_order_of_rows_changes_nothing(seed):
    labels, ids = random_table(seed)
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, len(labels) // 2, len(labels))
    order = rng.permutation(len(labels))
    options = {
        "unseen": 0.2,
        "folds": 3,
        "fold": 1,
        "seed": 7,
        "max_queries": 15,
        "max_gallery": 40,
    }
    straight = split(labels, ids=ids, groups=groups, **options)
    # Also not the names of the groups, nor the type of the ids.
    mixed = split(
        labels[order], ids=ids[order].astype("S9"), groups=1000 - groups[order], **options
    )
    assert (roles(straight)[:, order] == roles(mixed)).all()


def test_an_id_keeps_its_fold_when_other_classes_come_and_go():
    labels, ids = random_table(3)
    longer = np.append(ids, "an id that is much longer than the others")
    before = split(labels, unseen=0, ids=ids, fold=2)
    after = split(np.append(labels, 999), unseen=0, ids=longer, fold=2)
    assert (roles(before) == roles(after)[:, :-1]).all()


def test_seeds_and_folds_differ():
    labels, ids = random_table(0)
    kinds = {
        roles(split(labels, fold=f, seed=s, ids=ids)).tobytes() for f in range(5) for s in (0, 1)
    }
    assert len(kinds) == 10


def test_small_classes_spread_over_the_folds():
    # Pairs: were the first image always in fold 0, three of five folds would get no query.
    labels = np.repeat(np.arange(500), 2)
    sizes = [split(labels, fold=fold, unseen=0).queries.sum() for fold in range(5)]
    assert sum(sizes) == 1000
    assert min(sizes) > 140


def test_recognition_and_retrieval_of_a_small_table():
    labels = np.array([0, 0, 0, 0, 1, 2, 2, 2, 3, -1, -1])
    hidden_once = set()
    for seed in range(12):
        result = split(labels, fold=seed % 2, folds=2, unseen=0.25, seed=seed)
        (hidden,) = np.unique(labels[result.unseen])
        hidden_once.add(int(hidden))
        known = result.recognition()
        assert known.queries.tolist() == np.flatnonzero(result.queries).tolist()
        assert known.gallery.tolist() == np.flatnonzero(result.train & (labels >= 0)).tolist()
        expected = [-1 if labels[q] == hidden else labels[q] for q in known.queries]
        assert known.truth.tolist() == expected
        assert -1 in expected
        found = result.retrieval()
        rest = np.flatnonzero((labels == hidden) & ~result.queries)
        assert found.gallery.tolist() == sorted([*known.gallery, *rest])
        answerable = [q for q in known.queries if labels[q] in labels[found.gallery]]
        assert found.queries.tolist() == answerable
        assert found.truth.tolist() == labels[answerable].tolist()
        assert -1 not in found.truth
    assert hidden_once == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", range(8))
def test_no_twin_of_a_held_out_image_is_in_train(seed):
    labels, ids = random_table(seed)
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, len(labels) // 2, len(labels))  # within and across classes
    for fold in range(3):
        result = split(labels, fold=fold, folds=3, unseen=0.2, ids=ids, groups=groups)
        held_out = result.queries | (result.gallery & result.unseen)
        twins = oracle.leaks(groups, result.train, held_out)
        assert not any(twins)
        assert result.train.any()
        plain = split(labels, fold=fold, folds=3, unseen=0.2, ids=ids)
        assert any(oracle.leaks(groups, plain.train, plain.queries))
        # Same-class twins have one role.
        for group in np.unique(groups):
            for value in np.unique(labels[groups == group]):
                same = (groups == group) & (labels == value)
                assert len(np.unique(roles(result)[:3, same], axis=1).T) == 1 or value < 0


def test_a_class_of_copies_counts_as_one_image():
    labels = np.array([0, 0, 0, 1, 1, 1])
    groups = np.array([5, 5, 5, 1, 2, 3])
    for fold in range(2):
        result = split(labels, fold=fold, folds=2, unseen=0, groups=groups)
        assert result.train[:3].all()
        assert 1 <= result.queries[3:].sum() <= 2


def test_leaks_are_those_of_the_twin():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 60)
    train, held_out = rng.random((2, 60)) < 0.4
    expected = oracle.leaks(groups, train, held_out)
    assert 0 < sum(expected) < sum(held_out)
    assert leaks(groups, train, held_out).tolist() == expected


def test_caps():
    labels, ids = random_table(1, classes=80)
    full = split(labels, ids=ids, unseen=0.2)
    some = split(labels, ids=ids, unseen=0.2, max_queries=20, max_gallery=60)
    assert some.queries.sum() == 20
    assert some.gallery.sum() == 60
    assert not (some.queries & ~full.queries).any()
    assert not (some.gallery & ~full.gallery).any()
    assert (some.train == full.train).all()
    assert (some.unseen == full.unseen).all()
    # Who could be answered still can.
    answerable = full.queries & np.isin(labels, labels[full.gallery])
    assert set(some.retrieval().queries) == set(np.flatnonzero(some.queries & answerable))
    # Larger caps only add; caps above the number change nothing.
    more = split(labels, ids=ids, unseen=0.2, max_queries=30)
    assert not (some.queries & ~more.queries).any()
    assert (
        roles(split(labels, ids=ids, unseen=0.2, max_queries=999, max_gallery=999)) == roles(full)
    ).all()


def test_input_stays_as_it_is():
    labels, ids = random_table(1)
    before = labels.copy()
    labels.setflags(write=False)
    ids.setflags(write=False)
    split(labels, ids=ids, max_queries=5, max_gallery=60)
    assert (labels == before).all()


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 0], {"folds": 1}, "at least 2"),
        ([0, 0], {"fold": 5}, "got 5 of 5"),
        ([0, 0], {"fold": -1}, "got -1 of 5"),
        ([0, 0], {"unseen": 1.0}, "share of the classes"),
        ([0, 0], {"unseen": 0.3}, "leaves none to train on"),
        ([0, 1, 2], {"unseen": 0.0}, "Nothing to hold out"),
        ([-1, 0], {"unseen": 0.0}, "Nothing to hold out"),
        ([0, 0, 1, 1], {"max_queries": 0}, "max_queries"),
        ([0, 0, 1, 1], {"folds": 2, "max_gallery": 1, "unseen": 0.0}, "max_gallery=1"),
        ([0, 0, 1, 1], {"ids": np.array(["a", "b", "b", "c"])}, "'b'"),
        ([0, 0, 1, 1], {"ids": np.array(["a", "b"])}, "one per row"),
        ([0, 0, 1, 1], {"groups": np.array([1, 2])}, "one per row"),
        ([], {}, "empty"),
        ([0.5, 1.0], {}, "float64"),
        ([0, -3], {}, "Label -3 in row 1"),
    ],
)
def test_bad_input_is_named(labels, options, message):
    array = np.array(labels) if labels else np.zeros(0, int)
    with pytest.raises(ValueError, match=message):
        split(array, **options)


def test_labels_of_other_integers_become_int64():
    assert check_labels(np.array([1, 2], np.uint16)).dtype == np.int64
    kept = np.array([1, -1])
    assert check_labels(kept) is kept


# --- group folds


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("folds", [2, 3, 7])
def test_group_folds_have_the_sizes_of_the_greedy_twin_and_of_scikit_learn(seed, folds):
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.zipf(1.5, 40), 200)
    groups = rng.permutation(np.repeat(rng.permutation(1000)[:40], sizes))
    fold = group_folds(groups, folds, seed)
    assert fold.dtype == np.int64
    for group in np.unique(groups):
        assert len(np.unique(fold[groups == group])) == 1
    load = sorted(np.bincount(fold, minlength=folds).tolist())
    assert load == oracle.longest_first(sizes.tolist(), folds)
    parts = GroupKFold(folds).split(groups, groups=groups)
    assert load == sorted(len(held_out) for _, held_out in parts)


def test_group_folds_depend_on_names_and_seed_only():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"g{n}" for n in range(50)], rng.integers(1, 5, 50))
    order = rng.permutation(len(groups))
    fold = group_folds(groups, 4, 1)
    assert (group_folds(groups[order], 4, 1) == fold[order]).all()
    assert (group_folds(groups, 4, 2) != fold).any()
    assert (group_folds(groups.astype("S"), 4, 1) == fold).all()
    assert (group_folds(groups.astype(object), 4, 1) == fold).all()


@pytest.mark.parametrize(("groups", "folds"), [([1, 1, 2], 3), ([1, 2], 1), ([], 2)])
def test_group_folds_need_as_many_groups(groups, folds):
    with pytest.raises(ValueError, match="folds must be between 2"):
        group_folds(np.array(groups, int), folds)


def test_a_million_rows():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 80_000, 1_000_000) % rng.integers(1, 80_000, 1_000_000)
    ids = np.char.mod("%016x", np.arange(1_000_000) * 7919)
    result = split(labels, ids=ids, groups=np.arange(1_000_000) // 2, max_queries=5000)
    assert len(result.recognition().queries) == 5000
    counts = np.bincount(group_folds(labels))
    assert np.ptp(counts) <= 1
