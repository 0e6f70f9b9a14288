"""Gradient-boosted trees that tell pairs of one class from others, trained in grouped folds.

    model = PairModel(rounds=300).fit(features.values, same, groups, features.names)
    model.auc_, model.out_of_fold_      # honest: no pair was scored by a model that saw its labels
    model.save("runs/pairs"); PairModel.load("runs/pairs").predict(features.values)

LightGBM: Ke et al. (NeurIPS 2017). Origins: landmark recognition 2020 2nd place (learning rate .1,
7 leaves, at least 100 pairs in a leaf, 300 rounds), Shopee 2021 2nd place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.folds import group_folds
from common.lazy import Lazy
from common.paths import write_text

lightgbm = Lazy("lightgbm")
metrics = Lazy("sklearn.metrics")

_CARD = "model.json"


@dataclass
class PairModel:
    """A pair classifier: one LightGBM model per fold, whose mean is the prediction.

    The same input gives the same trees on any number of threads.

    Args:
        folds: parts of the groups; each model is trained without one of them.
        rounds: trees per model.
        rate: learning rate.
        leaves: leaves per tree.
        min_leaf: fewest pairs in a leaf; lower it when there are few pairs.
        share: share of the features that each tree may use.
        seed: of folds and of the features' choice.
        threads: LightGBM's; 0: all cores.

    Attributes:
        names_: of the features.
        boosters_: one per fold.
        out_of_fold_: `(P,)` float32, each pair by the model that saw neither of its groups.
        auc_: area under the ROC curve of those.
        average_precision_: of those.
    """

    folds: int = 5
    rounds: int = 200
    rate: float = 0.1
    leaves: int = 7
    min_leaf: int = 100
    share: float = 0.8
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if min(self.rounds, self.min_leaf) < 1 or self.leaves < 2 or self.folds < 2:
            raise ValueError(
                "PairModel needs rounds and min_leaf of at least 1, leaves and folds of at least "
                f"2; got {self.rounds}, {self.min_leaf}, {self.leaves}, {self.folds}."
            )
        if not self.rate > 0 or not 0 < self.share <= 1:
            raise ValueError(
                f"PairModel needs rate > 0 and share in (0, 1], got {self.rate}, {self.share}."
            )

    def fit(
        self, values: np.ndarray, same: np.ndarray, groups: np.ndarray, names: Sequence[str]
    ) -> PairModel:
        """Itself, trained.

        Args:
            values: `(P, F)` float32; NaN is a missing value.
            same: `(P,)` bool, whether the pair is of one class.
            groups: `(P, 2)` integers, the labels of both images (or `(P,)`, one group): a fold's
                model sees no pair with an image of the groups it is scored on. The first column
                says which fold scores the pair. Give images of no class a number of their own.
            names: F of them.

        Raises:
            ValueError: lengths that do not fit, infinite values, only one kind of pair (in all,
                or in what a fold trains on), fewer groups than folds.
        """
        values, same, groups = np.asarray(values, np.float32), np.asarray(same, bool), groups
        groups = np.asarray(groups).reshape(len(groups), -1)
        self._check(values, same, groups, names)
        fold = group_folds(groups.ravel(), self.folds, self.seed).reshape(groups.shape)
        self.names_ = list(names)
        self.boosters_: list[Any] = []
        self.out_of_fold_ = np.empty(len(values), np.float32)
        for number in range(self.folds):
            rows = np.flatnonzero((fold != number).all(1))
            if same[rows].all() or not same[rows].any():
                raise ValueError(
                    f"PairModel: the {len(rows)} pairs without fold {number} are all "
                    f"{'positive' if len(rows) and same[rows[0]] else 'negative'}: fewer folds, or "
                    "more labelled images."
                )
            booster = self._train(values[rows], same[rows])
            self.boosters_.append(booster)
            held = np.flatnonzero(fold[:, 0] == number)
            if len(held):
                self.out_of_fold_[held] = booster.predict(values[held], num_threads=self.threads)
        self.auc_ = float(metrics.roc_auc_score(same, self.out_of_fold_))
        self.average_precision_ = float(metrics.average_precision_score(same, self.out_of_fold_))
        return self

    def predict(self, values: np.ndarray) -> np.ndarray:
        """Probability that each pair is of one class, `(P,)` float32: the mean of the folds.

        Raises:
            ValueError: not fitted, or another number of features.
        """
        if not getattr(self, "boosters_", None):
            raise ValueError("PairModel.predict: fit it or load it first.")
        if values.ndim != 2 or values.shape[1] != len(self.names_):
            raise ValueError(
                f"PairModel.predict: {values.shape} values for {len(self.names_)} features: "
                f"{', '.join(self.names_)}."
            )
        total = np.zeros(len(values))
        for booster in self.boosters_ if len(values) else ():
            total += booster.predict(values, num_threads=self.threads)
        return (total / len(self.boosters_)).astype(np.float32)

    def importances(self) -> dict[str, float]:
        """Share of the gain of each feature, the largest first; they sum to 1."""
        gain = sum(booster.feature_importance("gain") for booster in self.boosters_)
        share = np.asarray(gain) / max(float(np.sum(gain)), 1e-12)
        order = np.argsort(-share, kind="stable")
        return {self.names_[i]: float(share[i]) for i in order}

    def save(self, folder: str | Path) -> None:
        """Write a folder: one text file of LightGBM per fold, and a card with the settings."""
        for number, booster in enumerate(self.boosters_):
            write_text(Path(folder) / f"fold_{number}.txt", booster.model_to_string())
        learned = {"auc": self.auc_, "average_precision": self.average_precision_}
        card = {"settings": asdict(self), "names": self.names_, **learned}
        write_text(Path(folder) / _CARD, json.dumps(card, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> PairModel:
        """What `save` wrote, without the out-of-fold scores.

        Raises:
            FileNotFoundError: no model there.
            ValueError: a file that is damaged.
        """
        try:
            card = json.loads((Path(folder) / _CARD).read_text(encoding="utf-8"))
            model = cls(**card["settings"])
            model.names_ = card["names"]
            model.auc_ = card["auc"]
            model.average_precision_ = card["average_precision"]
            texts = [Path(folder) / f"fold_{number}.txt" for number in range(model.folds)]
            model.boosters_ = [lightgbm.Booster(model_str=path.read_text()) for path in texts]
        except FileNotFoundError as error:
            raise FileNotFoundError(f"No pair model in {folder}: {error}") from None
        except (ValueError, KeyError, TypeError, lightgbm.basic.LightGBMError) as error:
            raise ValueError(f"{folder} holds no pair model that can be read: {error}") from None
        return model

    def _train(self, values: np.ndarray, same: np.ndarray) -> Any:
        settings: dict[str, Any] = {
            "objective": "binary",
            "learning_rate": self.rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_leaf,
            "feature_fraction": self.share,
            "seed": self.seed,
            "num_threads": self.threads,
            "deterministic": True,
            "force_row_wise": True,  # else a timing decides, and with it the order of the sums
            "verbose": -1,
        }
        data = lightgbm.Dataset(values, same.astype(np.float32), params={"verbose": -1})
        return lightgbm.train(settings, data, self.rounds)

    def _check(
        self, values: np.ndarray, same: np.ndarray, groups: np.ndarray, names: Sequence[str]
    ) -> None:
        if values.ndim != 2 or len({len(values), len(same), len(groups)}) > 1:
            raise ValueError(
                f"PairModel.fit: {values.shape} values for {len(same)} targets and {len(groups)} "
                "groups: one row per pair each."
            )
        if values.shape[1] != len(names):
            raise ValueError(f"PairModel.fit: {values.shape[1]} features but {len(names)} names.")
        if np.isinf(values).any():
            column = int(np.isinf(values).any(0).argmax())
            raise ValueError(f"PairModel.fit: {names[column]} is infinite somewhere.")
        if not len(same) or same.all() or not same.any():
            kind = "positive" if len(same) and same.all() else "negative"
            raise ValueError(
                f"PairModel.fit: all {len(same)} pairs are {kind}: nothing to tell apart. Classes "
                "need two images, and lists long enough to hold both kinds."
            )
        found = len(np.unique(groups))
        if found < self.folds:
            raise ValueError(
                f"PairModel.fit: {found} groups for {self.folds} folds: fewer folds, or more "
                "labelled images."
            )
