"""Ranking losses against loop twins, scikit-learn's average precision, gradcheck; no NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from common.config import ConfigError
from common.losses import rank
from common.losses.rank import RecallAtKLoss, SmoothAPLoss
from common.steps import bind, catalog
from tests.oracles import rank_losses as oracle
from tests.oracles.pair_losses import HARD_CASES, agree, batch, learns_nothing, never_nan

LOSSES = [SmoothAPLoss, RecallAtKLoss]


@pytest.fixture(params=[1 << 22, 40], ids=["one_block", "blocks"], autouse=True)
def tile(request, monkeypatch):
    monkeypatch.setattr(rank, "TILE", request.param)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("make", "twin", "options"),
    [
        (SmoothAPLoss, oracle.smooth_ap, {}),
        (SmoothAPLoss, oracle.smooth_ap, {"temperature": 0.3}),
        (RecallAtKLoss, oracle.recall_at_k, {}),
        (RecallAtKLoss, oracle.recall_at_k, {"temperature": 0.3}),
        (RecallAtKLoss, oracle.recall_at_k, {"ks": (1,), "step": 0.2}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_equals_the_loop_twin(make, twin, options, seed):
    x, labels = batch(seed=seed)
    agree(make(**options)(x, labels), twin(x, labels, **options), x)


@pytest.mark.parametrize("make", LOSSES)
def test_gradcheck(make):
    x, labels = batch(rows=8, dim=3, classes=3)
    criterion = make(temperature=0.2)
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels), (x,))


def ranking(x, labels):
    """For each query with positives: is a hit or not, and the similarity, of all other rows."""
    known = labels >= 0
    x, labels = F.normalize(x.detach()[known]), labels[known]
    for q in range(len(x)):
        rest = torch.arange(len(x)) != q
        hits = (labels[rest] == labels[q]).numpy()
        if hits.any():
            yield hits, (x[rest] @ x[q]).numpy()


def test_cold_smooth_ap_is_average_precision():
    x, labels = batch(rows=30)
    expected = np.mean([average_precision_score(h, s) for h, s in ranking(x, labels)])
    loss = SmoothAPLoss(1e-6)(x, labels)
    assert loss.item() == pytest.approx(1 - expected, abs=1e-9)


def test_cold_recall_counts_hits_before_k_and_half_a_hit_at_k():
    x, labels = batch(rows=30)
    parts = []
    for hits, similarity in ranking(x, labels):
        order = hits[np.argsort(-similarity)]
        for k in (2, 5):
            parts.append((order[: k - 1].sum() + order[k - 1] / 2) / min(k, hits.sum()))
    loss = RecallAtKLoss([2, 5], temperature=1e-6, step=1e-6)(x, labels)
    assert loss.item() == pytest.approx(1 - np.mean(parts), abs=1e-9)


def test_perfect_order_is_zero_whatever_the_sizes_of_the_classes():
    x = torch.eye(3, dtype=torch.float64)[[0, 0, 0, 1, 1, 2]] + 1e-3
    assert SmoothAPLoss()(x, torch.tensor([0, 0, 0, 1, 1, 2])) < 1e-9


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("case", HARD_CASES)
def test_never_nan(make, case):
    never_nan(make(), *HARD_CASES[case]())


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("labels", [[-1, -1], [], [0], [0, 1, 2]], ids=str)
def test_nothing_to_learn_is_a_zero_on_the_graph(make, labels):
    learns_nothing(make(), labels)


@pytest.mark.parametrize("make", LOSSES)
def test_references_and_mass(make):
    x, labels = batch()
    agree(make()(x, labels, x, labels, own=True), make()(x, labels), x)
    assert make().mass(torch.tensor([0, 0, 0, 1, 1, 2, -1, -1])) == 5


def test_memory_is_one_block_at_a_time(monkeypatch):
    """Two classes at B = 256: 32,640 positives times 256 floats would be 33 MB a tensor."""
    monkeypatch.setattr(rank, "TILE", 1 << 18)
    x, labels = batch(rows=256, classes=2, ignored=False, dtype=torch.float32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        SmoothAPLoss()(x, labels).backward()
    events = sorted(
        (e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    )
    assert max(np.cumsum([e.nbytes() for e in events])) < 12 * 2**20


def test_names_and_bad_arguments():
    assert set(catalog(rank)) == {"smooth_ap", "recall_at_k"}
    for bad in ({"ks": []}, {"ks": [0, 1]}, {"step": 0.0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="ks must be|must be positive"):
            RecallAtKLoss(**bad)
    with pytest.raises(ValueError, match="temperature must be positive"):
        SmoothAPLoss(0.0)


@pytest.mark.parametrize("ks", ["abc", [1, 2.5], 4], ids=str)
def test_ks_are_whole_numbers_in_yaml(ks):
    with pytest.raises(ConfigError, match="recall_at_k.ks must be tuple"):
        bind({"name": "recall_at_k", "ks": ks}, catalog(rank))
    assert bind({"name": "recall_at_k", "ks": [1, 4]}, catalog(rank))().ks == [1, 4]
