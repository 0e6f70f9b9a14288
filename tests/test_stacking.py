"""Features of candidates one at a time, and trees that learn which run to believe."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.rerank.centers import trimmed_centers
from common.rerank.labels import vote
from common.rerank.stacking import Stack, StackConfig, candidates
from common.retrieval.search import search
from common.types import Embeddings, Neighbors

SMALL = StackConfig(folds=3, rounds=20, min_leaf=3)


def ids(n, prefix):
    return np.array([f"{prefix}{i:04d}" for i in range(n)])


@pytest.fixture(scope="module")
def scene():
    """Two runs of 20 classes; run b is blind for half of the queries, which a threshold on its
    best score would show. Every fifth query is of nobody."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 20
    truth = torch.arange(150) % 20
    truth[::5] = -1
    runs = []
    for run in range(2):
        spots = torch.randn(21, 12, generator=generator)
        noise = torch.randn(150, 12, generator=generator)
        asked = spots[truth] + 0.8 * noise
        if run:
            asked[1::2] = 0.3 * noise[1::2] + torch.randn(12, generator=generator)
        gallery = spots[labels] + 0.8 * torch.randn(80, 12, generator=generator)
        runs.append(
            (
                Embeddings(ids(150, "q"), normalize(asked, dim=1)),
                Embeddings(ids(80, "g"), normalize(gallery, dim=1)),
            )
        )
    lists = [
        vote(search(q, g, 12), labels, None, None, top=12, power=1.0, reduce="max") for q, g in runs
    ]
    centers = [trimmed_centers(g, labels) for _, g in runs]
    images = np.bincount(labels.numpy())
    table = candidates(lists, [q for q, _ in runs], centers, images, names=("a", "b"))
    groups = np.where(truth.numpy() < 0, 1000 + np.arange(150), truth.numpy())
    return lists, [q for q, _ in runs], centers, images, table, truth.numpy(), groups


def naive(lists, queries, centers, images, names, top=0):
    """{(query, class): {feature: value}}."""
    found = {}
    for q in range(len(lists[0])):
        told = []
        for one in lists:
            pairs = [
                (c, s)
                for c, s in zip(one.index[q].tolist(), one.score[q].tolist(), strict=True)
                if c >= 0
            ]
            told.append(pairs)
        cut = [[c for c, _ in (pairs[:top] if top else pairs)] for pairs in told]
        for c in sorted({c for row in cut for c in row}):
            out = {"images": float(images[c])}
            out["runs that list it"] = sum(c in row for row in cut) / len(cut)
            for name, pairs, row, asked, center in zip(
                names, told, cut, queries, centers, strict=True
            ):
                out[f"{name}: centre"] = float(asked.vectors[q] @ center[c, 0])
                out |= {f"{name}: {k}": np.nan for k in ("score", "rank")}
                out |= {f"{name}: {k}": np.nan for k in ("below its best", "above its next")}
                if c in row:
                    at = row.index(c)
                    score = pairs[at][1]
                    out[f"{name}: score"], out[f"{name}: rank"] = score, at + 1
                    out[f"{name}: below its best"] = pairs[0][1] - score
                    if at + 1 < (len(row) if top else len(pairs)):
                        out[f"{name}: above its next"] = score - pairs[at + 1][1]
            found[q, c] = out
    return found


@pytest.mark.parametrize("top", [0, 3])
def test_features_are_the_naive_ones(scene, top, monkeypatch):
    monkeypatch.setattr("common.rerank.stacking.BUDGET", 1000)
    lists, queries, centers, images, _, _, _ = scene
    lists = [lists[0], Neighbors(lists[1].index.clone(), lists[1].score.clone())]
    lists[1].index[7], lists[1].score[7] = -1, -torch.inf  # run b says nothing of query 7
    table = candidates(lists, queries, centers, images, names=("a", "b"), top=top)
    wanted = naive(lists, queries, centers, images, ("a", "b"), top)
    rows, columns = torch.nonzero(table.index >= 0, as_tuple=True)
    pairs = list(zip(rows.tolist(), table.index[rows, columns].tolist(), strict=True))
    assert sorted(pairs) == sorted(wanted)
    assert len(pairs) == len(set(pairs))
    assert sorted(table.names) == sorted(wanted[pairs[0]])
    for values, pair in zip(table.values, pairs, strict=True):
        np.testing.assert_allclose(
            values, [wanted[pair][name] for name in table.names], atol=1e-5, err_msg=str(pair)
        )


def first_right(found, truth):
    known = truth >= 0
    return float((found.index[:, 0].numpy() == truth)[known].mean())


def test_the_stack_is_better_than_its_runs_on_individuals_it_has_not_seen(scene):
    lists, _, _, _, table, truth, groups = scene
    stack = Stack(SMALL, seed=0).fit(table, truth, groups)
    alone = [first_right(one, truth) for one in lists]
    honest = first_right(stack.out_of_fold_, truth)
    assert honest > max(alone) + 0.02, (honest, alone)
    again = Stack(SMALL, seed=0).fit(table, truth, groups)
    assert torch.equal(again.out_of_fold_.score, stack.out_of_fold_.score), "deterministic"
    seen = stack.predict(table)
    assert seen.index.shape == stack.out_of_fold_.index.shape
    assert first_right(seen, truth) >= honest - 0.05
    assert (seen.score.diff(dim=1).nan_to_num(0) <= 0).all()


def test_out_of_fold_scores_do_not_know_their_own_individual(scene):
    """With noise in place of truth there is nothing to learn but by heart."""
    _, _, _, _, table, _, _ = scene
    random = np.random.default_rng(0)
    truth = random.integers(0, 20, 150)
    stack = Stack(StackConfig(folds=3, rounds=60, min_leaf=2), 0).fit(table, truth, truth)
    assert stack.model_.auc_ < 0.62
    assert first_right(stack.out_of_fold_, truth) < 0.15, "one in twenty by chance"
    assert first_right(stack.predict(table), truth) > 0.4, "what it saw it knows by heart"


def test_bad_input(scene):
    lists, queries, centers, images, table, truth, groups = scene
    with pytest.raises(ValueError, match="2 lists, 1 sets of queries"):
        candidates(lists, queries[:1], centers, images, names=("a", "b"))
    short = Neighbors(lists[1].index[:9], lists[1].score[:9])
    with pytest.raises(ValueError, match=r"have \[150, 9, 150, 150\] rows"):
        candidates([lists[0], short], queries, centers, images, names=("a", "b"))
    with pytest.raises(ValueError, match="centers has 2"):
        candidates(lists, queries, [centers[0][:2], centers[1]], images, names=("a", "b"))
    with pytest.raises(ValueError, match="pairs are negative"):
        Stack(SMALL).fit(table, np.full(150, -1), groups)
    with pytest.raises(ValueError, match="fewer folds"):
        Stack(StackConfig(folds=9)).fit(table, truth, np.where(truth > 5, 1, 0))
    nobody = Neighbors(lists[0].index[:0], lists[0].score[:0])
    none = [Embeddings(q.ids[:0], q.vectors[:0]) for q in queries]
    assert len(candidates([nobody] * 2, none, centers, images, names=("a", "b")).index) == 0
