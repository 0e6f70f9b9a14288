"""The pair model: honest folds, the same trees every time, files that read back."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from common.data.folds import group_folds
from common.rerank.boosted import PairModel


def pairs(n=3000, seed=0, groups=40):
    """Pairs whose first column says a little, their second nothing, with a missing value."""
    random = np.random.default_rng(seed)
    label = random.integers(0, groups, (n, 2))
    label[: n // 3, 1] = label[: n // 3, 0]
    same = label[:, 0] == label[:, 1]
    values = np.column_stack([same + random.normal(0, 1, n), random.normal(0, 1, n)])
    values[5, 0] = np.nan
    return values.astype(np.float32), same, label


@pytest.fixture(scope="module")
def fitted():
    values, same, groups = pairs()
    return PairModel(rounds=30, min_leaf=20).fit(values, same, groups, ["good", "noise"])


def test_it_learns_what_there_is(fitted):
    values, same, _ = pairs(seed=1)
    found = fitted.predict(values)
    assert found.dtype == np.float32
    assert roc_auc_score(same, found) == pytest.approx(0.76, abs=0.03)  # Phi(1 / sqrt 2)
    assert list(fitted.importances()) == ["good", "noise"]
    assert fitted.importances()["good"] > 0.8
    assert sum(fitted.importances().values()) == pytest.approx(1)


def test_out_of_fold_scores_are_of_models_that_saw_neither_label():
    values, same, groups = pairs(1500)
    model = PairModel(folds=3, rounds=10, min_leaf=20).fit(values, same, groups, ["a", "b"])
    fold = group_folds(groups.ravel(), 3, 0).reshape(-1, 2)
    for number in range(3):
        held = fold[:, 0] == number
        expected = model.boosters_[number].predict(values[held])
        assert model.out_of_fold_[held] == pytest.approx(expected)
    assert model.auc_ == pytest.approx(roc_auc_score(same, model.out_of_fold_))
    assert model.average_precision_ == pytest.approx(
        average_precision_score(same, model.out_of_fold_)
    )
    # Changing pairs that touch fold 0 on either side changes nothing in its model.
    touched = (fold == 0).any(1)
    assert (touched & (fold[:, 0] != 0)).any()
    other = values.copy()
    other[touched] = -other[touched]
    again = PairModel(folds=3, rounds=10, min_leaf=20).fit(other, same, groups, ["a", "b"])
    assert again.boosters_[0].model_to_string() == model.boosters_[0].model_to_string()
    assert again.boosters_[1].model_to_string() != model.boosters_[1].model_to_string()


def test_a_feature_that_names_the_class_does_not_help_out_of_fold():
    """Labels learned by heart are worth nothing to classes of the held-out fold."""
    random = np.random.default_rng(0)
    groups = random.integers(0, 60, 4000)
    secret = random.random(60) < 0.5
    same = secret[groups]
    values = groups[:, None].astype(np.float32)
    model = PairModel(rounds=100, min_leaf=5, leaves=31).fit(values, same, groups, ["class"])
    assert roc_auc_score(same, model.predict(values)) > 0.9
    assert model.auc_ < 0.75


def test_the_same_trees_every_time_on_any_threads(fitted):
    values, same, groups = pairs()
    again = PairModel(rounds=30, min_leaf=20, threads=2)
    again.fit(values, same, groups, ["good", "noise"])
    assert np.array_equal(again.out_of_fold_, fitted.out_of_fold_)
    other = PairModel(rounds=30, min_leaf=20, seed=1).fit(values, same, groups, ["good", "noise"])
    assert not np.array_equal(other.out_of_fold_, fitted.out_of_fold_)


def test_saved_models_read_back(fitted, tmp_path):
    values, _, _ = pairs(200, seed=3)
    fitted.save(tmp_path / "m")
    files = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert files == [*(f"fold_{i}.txt" for i in range(5)), "model.json"]
    loaded = PairModel.load(tmp_path / "m")
    assert np.array_equal(loaded.predict(values), fitted.predict(values))
    assert (loaded.auc_, loaded.names_, loaded.rounds) == (fitted.auc_, ["good", "noise"], 30)
    (tmp_path / "m" / "fold_3.txt").write_text("tree\nbroken")
    with pytest.raises(ValueError, match="no pair model that can be read"):
        PairModel.load(tmp_path / "m")
    (tmp_path / "m" / "fold_2.txt").unlink()
    with pytest.raises(FileNotFoundError, match="No pair model in"):
        PairModel.load(tmp_path / "m")


def test_bad_input(fitted):
    values, same, groups = pairs(300)
    model = PairModel(rounds=2)
    with pytest.raises(ValueError, match="all 300 pairs are negative: nothing to tell apart"):
        model.fit(values, np.zeros(300, bool), groups, ["a", "b"])
    with pytest.raises(ValueError, match="all 300 pairs are positive"):
        model.fit(values, np.ones(300, bool), groups, ["a", "b"])
    with pytest.raises(ValueError, match="1 groups for 5 folds: fewer folds"):
        model.fit(values, same, np.zeros(300, int), ["a", "b"])
    with pytest.raises(ValueError, match="without fold . are all negative"):
        # every positive pair is of one class
        only = np.where(same, 0, 1 + np.arange(300) % 7)
        model.fit(values, same, only, ["a", "b"])
    with pytest.raises(ValueError, match="2 features but 1 names"):
        model.fit(values, same, groups, ["a"])
    with pytest.raises(ValueError, match="300 targets and 10 groups"):
        model.fit(values, same, groups[:10], ["a", "b"])
    wrong = values.copy()
    wrong[7, 1] = np.inf
    with pytest.raises(ValueError, match="b is infinite"):
        model.fit(wrong, same, groups, ["a", "b"])
    with pytest.raises(ValueError, match="fit it or load it first"):
        model.predict(values)
    with pytest.raises(ValueError, match=r"\(300, 1\) values for 2 features: good, noise"):
        fitted.predict(values[:, :1])
    assert len(fitted.predict(values[:0])) == 0
    for settings in ({"rounds": 0}, {"leaves": 1}, {"folds": 1}, {"rate": 0.0}, {"share": 1.5}):
        with pytest.raises(ValueError, match="PairModel needs"):
            PairModel(**settings)
