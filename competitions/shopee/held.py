"""What is held out of training: whole groups, asked among themselves and among distractors.

A threshold is only as good as the crowd it was found in: among a fold's 7,000 listings a stranger
seldom comes near, among the 70,000 of the test one often does. So other listings stand by as
distractors ("in-fold noise" of the 4th place): neighbors that may be predicted, never asked.
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
        wanted: how many distractors there should be; fewer when train.csv has no more.
    """

    table: Table
    train: np.ndarray
    queries: np.ndarray
    distractors: np.ndarray
    wanted: int

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
        return cls(data.train, train, queries, _whole_groups(data, train, wanted), wanted)

    @property
    def gallery(self) -> np.ndarray:
        """`(Q + D,)` rows to search: the queries first, so that query i is gallery row i."""
        return np.concatenate([self.queries, self.distractors])

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
        if self.wanted or len(self.distractors):
            text += f", among {len(self.distractors)} distractors"
        if len(self.distractors) == self.train.sum() < self.wanted:
            text += f", all there are of {self.wanted} wanted"
        return text


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
