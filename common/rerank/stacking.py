"""Several runs' lists of classes as one, by trees that learned when to believe which run.

    table = candidates(lists, queries, centers, images, names=("a", "b"))
    stack = Stack(StackConfig(), seed=0).fit(table, truth, groups)
    stack.out_of_fold_                    # honest answers to the questions it learned from
    stack.predict(candidates(...))        # answers to others

Origins: landmark recognition 2020 2nd place and Shopee 2021 2nd place, whose boosted trees read the
scores of several models for each candidate; their features are in `common.rerank.pairs`, these are
those of whole classes. The unknown identity is no candidate: it comes in by a threshold afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.rerank.boosted import PairModel
from common.rerank.voting import BUDGET, check_rows, group, scores_of
from common.types import Embeddings, Neighbors


@dataclass
class StackConfig:
    """The `ensemble.stack:` section."""

    folds: int = 5
    rounds: int = 100
    leaves: int = 7
    min_leaf: int = 20


@dataclass
class Candidates:
    """The classes that some run lists for a query, with what the runs say of them.

    Attributes:
        index: `(Q, U)` classes, each once in a row, -1 behind.
        values: `(P, F)` float32 features of the P real entries, row by row; NaN where a run does
            not list the class.
        names: F of them.
    """

    index: torch.Tensor
    values: np.ndarray
    names: list[str]

    def answers(self, score: np.ndarray) -> Neighbors:
        """The classes by `score` `(P,)`, best first."""
        real = self.index >= 0
        table = torch.full(self.index.shape, -torch.inf)
        table[real] = torch.from_numpy(np.asarray(score, np.float32))
        return Neighbors(self.index, table).sorted()


def candidates(
    lists: Sequence[Neighbors],
    queries: Sequence[Embeddings],
    centers: Sequence[torch.Tensor],
    images: np.ndarray,
    *,
    names: Sequence[str],
    top: int = 0,
) -> Candidates:
    """The union of the runs' lists with features of each class for its query.

    Of each run: its score, rank (from 1), how far below its best and above its next one it is, and
    the query's cosine to the centre of the class's images. Of the class: its images, and the share
    of the runs that list it.

    Args:
        lists: `(Q, K_m)` classes of each run.
        queries: of each run, the same ids.
        centers: `(C, 1, D_m)` unit class centres of each run, as from `trimmed_centers`.
        images: `(C,)` images of each class.
        names: of the runs, for the features' names.
        top: so many of each list; 0: all.

    Raises:
        ValueError: no run, numbers of runs or queries that differ, a class without a centre.
    """
    if not lists or len({len(lists), len(queries), len(centers), len(names)}) > 1:
        raise ValueError(
            f"stacking: {len(lists)} lists, {len(queries)} sets of queries, {len(centers)} of "
            f"centres and {len(names)} names: one of each per run."
        )
    rows = [len(one) for one in lists] + [len(one) for one in queries]
    if len(set(rows)) > 1:
        raise ValueError(f"stacking: lists and queries of the runs have {rows} rows.")
    cut = [one.top(top) if top else one for one in lists]
    every = torch.cat([one.index for one in cut], 1)
    index = group(every, torch.zeros(every.shape)).index
    check_rows(index, len(images), "stacking", "images")
    index = index[:, : int((index >= 0).sum(1).max())] if len(index) else index
    columns: dict[str, torch.Tensor] = {}
    listed = torch.zeros(index.shape)
    for name, one, asked, center in zip(names, cut, queries, centers, strict=True):
        check_rows(index, len(center), "stacking", "centers")
        for what, value in _of_list(one).items():
            columns[f"{name}: {what}"] = scores_of(index, Neighbors(one.index, value))
        listed += columns[f"{name}: rank"].isfinite()
        columns[f"{name}: centre"] = _cosines(index, asked, center)
    columns["images"] = torch.from_numpy(images)[index.clamp(min=0)].float()
    columns["runs that list it"] = listed / len(lists)
    real = index >= 0
    values = np.stack([column[real].numpy() for column in columns.values()], 1)
    return Candidates(index, values.astype(np.float32), list(columns))


class Stack:
    """Boosted trees on candidates, trained in folds of individuals.

    Args:
        settings: of the trees.
        seed: of folds and trees.

    Attributes:
        model_: the trees of each fold.
        out_of_fold_: `(Q, U)` answers to the training questions, by trees that saw no query of the
            individual. Their scores are of one fold's trees, those of `predict` the mean of all.
    """

    def __init__(self, settings: StackConfig, seed: int = 0) -> None:
        self.settings, self.seed = settings, seed

    def fit(self, table: Candidates, truth: np.ndarray, groups: np.ndarray) -> Stack:
        """Itself, trained.

        Args:
            table: of the questions.
            truth: `(Q,)` right class, -1 for the unknown identity: then no candidate is right.
            groups: `(Q,)` integers, the individual of each query, whoever knows it: its queries
                are in one fold.

        Raises:
            ValueError: no right candidate or no wrong one, fewer individuals than folds, few
                candidates for `min_leaf`.
        """
        settings = self.settings
        row = torch.nonzero(table.index >= 0)[:, 0].numpy()
        same = table.index[table.index >= 0].numpy() == truth[row]
        model = PairModel(
            settings.folds,
            settings.rounds,
            leaves=settings.leaves,
            min_leaf=settings.min_leaf,
            seed=self.seed,
        )
        self.model_ = model.fit(table.values, same, groups[row], table.names)
        self.out_of_fold_ = table.answers(self.model_.out_of_fold_)
        return self

    def predict(self, table: Candidates) -> Neighbors:
        """`(Q, U)` classes by their probability, best first."""
        return table.answers(self.model_.predict(table.values))


def _of_list(one: Neighbors) -> dict[str, torch.Tensor]:
    """Score, rank and gaps of each listing, `(Q, K)` each."""
    rank = torch.arange(1.0, one.score.shape[1] + 1).expand_as(one.score)
    after = torch.nn.functional.pad(one.score[:, 1:], (0, 1), value=-torch.inf)
    following = (one.score - after).masked_fill(after == -torch.inf, torch.nan)
    return {
        "score": one.score,
        "rank": rank,
        "below its best": one.score[:, :1] - one.score,
        "above its next": following,
    }


def _cosines(index: torch.Tensor, queries: Embeddings, centers: torch.Tensor) -> torch.Tensor:
    """`(Q, U)` of each query to the centres of its classes."""
    found = torch.zeros(index.shape)
    step = max(1, BUDGET // max(index.shape[1] * centers.shape[2], 1))
    for start in range(0, len(index), step):
        rows = slice(start, start + step)
        chosen = centers[index[rows].clamp(min=0), 0].float()
        vectors = queries.vectors[rows].float()
        found[rows] = torch.einsum("qd,qud->qu", vectors.to(chosen), chosen).cpu()
    return found
