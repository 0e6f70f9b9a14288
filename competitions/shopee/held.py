"""What is held out of training: whole groups, asked among themselves and among distractors.

A threshold is only as good as the crowd it was found in: among a fold's 7,000 listings a stranger
seldom comes near, among the 70,000 of the test one often does. So other listings stand by as
distractors ("in-fold noise" of the 4th place): neighbors that may be predicted, never asked. Those
of the train table the encoders have learned to keep apart, so they come near less often than the
test's do; the listings of the test itself, whose products are not those of train, are the crowd
that the threshold has to stand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.data.folds import group_folds
from common.types import Table

from .data import DataConfig, Shopee


@dataclass
class Held:
    """One fold.

    Attributes:
        table: all rows of train.csv.
        train: `(N,)` bool, rows to train on.
        queries: `(Q,)` rows that are held out; each is asked for its group among the gallery.
        distractors: `(D,)` rows that training saw, whole groups; they are in the gallery only.
        wanted: how many distractors there should be; fewer when there are no more.
        strangers: `(S,)` rows of the test that are distractors too.
    """

    table: Table
    train: np.ndarray
    queries: np.ndarray
    distractors: np.ndarray
    wanted: int
    strangers: np.ndarray

    @classmethod
    def of(cls, data: Shopee, config: DataConfig) -> Held | None:
        """The fold of `data.fold`, or None when everything is trained on.

        Raises:
            ValueError: fewer groups than folds.
        """
        if config.fold < 0:
            return None
        labels = data.train.labels
        # Runs with other seeds must hold out the same listings to be comparable: the seed is fixed.
        fold = group_folds(data.classes[labels], config.folds, seed=0)
        train, queries = fold != config.fold, np.flatnonzero(fold == config.fold)
        wanted = config.distractors
        if wanted < 0:
            wanted = max(data.hidden - len(queries), 0)
        taken, left = {"test": np.zeros(0, np.int64), "train": np.zeros(0, np.int64)}, wanted
        for name in config.strangers:
            rows = _some(data.test, left) if name == "test" else _whole_groups(data, train, left)
            taken[name], left = rows, left - len(rows)
        return cls(data.train, train, queries, taken["train"], wanted, taken["test"])

    @property
    def gallery(self) -> np.ndarray:
        """`(Q + D,)` rows of train to search, the queries first: query i is gallery row i."""
        return np.concatenate([self.queries, self.distractors])

    @property
    def size(self) -> int:
        """Listings that are searched: queries and distractors of both tables."""
        return len(self.gallery) + len(self.strangers)

    def truth(self) -> dict[str, list[str]]:
        """Posting_ids of each query's group, itself included, as `common.metrics.mean_f1` wants."""
        labels, ids = self.table.labels[self.queries], self.table.ids[self.queries].tolist()
        members: dict[int, list[str]] = {}
        for label, name in zip(labels.tolist(), ids, strict=True):
            members.setdefault(label, []).append(name)
        return {name: members[label] for label, name in zip(labels.tolist(), ids, strict=True)}

    def describe(self) -> str:
        """One line of counts."""
        groups = len(np.unique(self.table.labels[self.queries]))
        text = f"held out: {len(self.queries)} listings in {groups} groups"
        counts = {"the test": len(self.strangers), "train": len(self.distractors)}
        there = [f"{count} of {name}" for name, count in counts.items() if count]
        if self.wanted or there:
            text += f", among {' and '.join(there) or 'no'} distractors"
        # Whole groups seldom add up to the very number.
        if sum(counts.values()) < 0.95 * self.wanted:
            text += f", {self.wanted} are wanted"
        return text


def _some(table: Table, count: int) -> np.ndarray:
    """At most `count` rows at random, in the table's order."""
    rows = np.random.default_rng(0).permutation(len(table))[:count]
    return np.sort(rows)


def _whole_groups(data: Shopee, train: np.ndarray, count: int) -> np.ndarray:
    """At most `count` rows of `train`, whole groups at random, in the table's order."""
    labels = data.train.labels
    if count >= int(train.sum()):
        return np.flatnonzero(train)
    groups = np.unique(labels[train])
    groups = np.random.default_rng(0).permutation(groups)  # sorted before: rows in any order do
    sizes = np.bincount(labels, minlength=len(data.classes))[groups]
    taken = groups[np.cumsum(sizes) <= count]
    return np.flatnonzero(train & np.isin(labels, taken))
