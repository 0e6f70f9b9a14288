"""Miners against loop twins and pytorch-metric-learning; ties, references, limits, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import miners as pml
from pytorch_metric_learning.utils import loss_and_miner_utils as pml_utils
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from common.losses import miners
from common.losses.miners import TRIPLETS
from tests.oracles import miners as oracle

EUCLID = pml_distances.LpDistance(normalize_embeddings=False)


def problem(seed, rows=24, classes=6, ignored=True, grid=False):
    """Distances of random rows with singletons and -1; on a `grid` most of them are ties."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1 if ignored else 0, classes, (rows,), generator=rng)
    labels[0] = classes  # alone in its class
    x = torch.randn(rows, 3, generator=rng, dtype=torch.float64)
    x = x.round() if grid else x
    return x, torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"), labels


def lines(found):
    """Index tensors as a list of tuples."""
    return list(zip(*(tensor.tolist() for tensor in found), strict=True))


@pytest.fixture(params=[miners.COMPARED, 0], ids=["compared", "sorted"])
def way(request, monkeypatch):
    """Both ways to a list: comparing pairs with all columns, and sorting the columns."""
    monkeypatch.setattr(miners, "COMPARED", request.param)
    monkeypatch.setattr(miners, "_FEW", 16 if request.param else 0)


def peak_bytes(step):
    """Largest sum of live allocations made by `step`, temporaries inside operators included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(np.cumsum([e.nbytes() for e in events]))


@pytest.mark.parametrize("grid", [False, True], ids=["plain", "ties"])
@pytest.mark.parametrize(("rows", "classes"), [(24, 6), (30, 2), (20, 15)])
@pytest.mark.parametrize("name", TRIPLETS)
def test_equals_the_loops(name, rows, classes, grid, way):
    for seed in range(4):
        _, distances, labels = problem(seed, rows, classes, grid=grid)
        found = TRIPLETS[name](distances, labels)
        assert [x.dtype for x in found] == [torch.int64] * 3
        listed, expected = lines(found), oracle.MINERS[name](distances, labels)
        assert sorted(listed) == sorted(expected)
        assert [line[:2] for line in listed] == [line[:2] for line in expected]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", TRIPLETS)
def test_equals_the_loops_with_references(name, own, way):
    for seed in range(4):
        _, distances, labels = problem(seed, grid=seed > 1)
        case = distances[:9], labels[:9], labels
        found = sorted(lines(TRIPLETS[name](*case, own=own)))
        assert found == sorted(oracle.MINERS[name](*case, own=own))
        case = distances[:, :5].contiguous(), labels, labels[:5]
        if not own:  # fewer references than rows
            assert sorted(lines(TRIPLETS[name](*case))) == sorted(oracle.MINERS[name](*case))


@pytest.mark.parametrize("name", ["easy_triplets", "semi_hard_band"])
@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 9.0])
def test_margins_equal_the_loops(name, margin, way):
    for seed in range(4):
        _, distances, labels = problem(seed, grid=seed > 1)
        found = TRIPLETS[name](distances, labels, margin=margin)
        expected = oracle.MINERS[name](distances, labels, margin=margin)
        assert sorted(lines(found)) == sorted(expected)


@pytest.mark.parametrize("positives", [(1, 1), (2, 2), (1, 100)])
@pytest.mark.parametrize("negatives", [(1, 1), (3, 5), (20, 22), (1, 100)])
def test_ranks_equal_the_loops(positives, negatives, way):
    for seed in range(4):
        _, distances, labels = problem(seed, grid=seed > 1)
        ranks = {"positives": positives, "negatives": negatives}
        found = miners.n_hard(distances, labels, **ranks)
        assert lines(found) == oracle.n_hard(distances, labels, **ranks)


def test_ranks_at_their_limits_are_the_other_miners():
    _, distances, labels = problem(0)
    first = miners.n_hard(distances, labels, positives=(1, 1), negatives=(1, 1))
    assert lines(first) == lines(miners.batch_hard(distances, labels))
    every = miners.n_hard(distances, labels, positives=(1, 24), negatives=(1, 24))
    assert sorted(lines(every)) == sorted(lines(miners.all_triplets(distances, labels)))
    ohnm = miners.n_hard(distances, labels, positives=(1, 24), negatives=(1, 1))
    assert sorted(lines(ohnm)) == sorted(lines(miners.batch_ohnm(distances, labels)))


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_multi_similarity_equals_the_loops(epsilon):
    for seed in range(6):
        _, distances, labels = problem(seed, classes=2 + seed, grid=seed > 2)
        for more, options in [((), {}), ((labels,), {"own": True}), ((labels,), {})]:
            a1, p, a2, n = miners.multi_similarity_pairs(
                distances, labels, *more, epsilon=epsilon, **options
            )
            positives, negatives = oracle.multi_similarity_pairs(
                distances, labels, *more, epsilon=epsilon, **options
            )
            assert lines((a1, p)) == positives
            assert lines((a2, n)) == negatives


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("easy_triplets", pml.TripletMarginMiner(0.4, "easy", distance=EUCLID), {"margin": 0.4}),
        ("hard_triplets", pml.TripletMarginMiner(0.4, "hard", distance=EUCLID), {}),
        (
            "semi_hard_band",
            pml.TripletMarginMiner(0.4, "semihard", distance=EUCLID),
            {"margin": 0.4},
        ),
        ("batch_hard", pml.BatchHardMiner(distance=EUCLID), {}),
        ("semi_hard_anchor", pml.BatchEasyHardMiner("hard", "semihard", distance=EUCLID), {}),
        ("easy_positive", pml.BatchEasyHardMiner("easy", "hard", distance=EUCLID), {}),
        (
            "easy_positive_semi_hard",
            pml.BatchEasyHardMiner("easy", "semihard", distance=EUCLID),
            {},
        ),
        ("batch_ohnm", pml.BatchEasyHardMiner("all", "hard", distance=EUCLID), {}),
    ],
)
@pytest.mark.parametrize("referenced", [False, True])
def test_equals_pytorch_metric_learning(name, theirs, options, referenced):
    for seed in range(5):
        x, distances, labels = problem(seed, ignored=False)
        case, more = (x, labels), ()
        if referenced:
            case, more = (x[:10], labels[:10], x[10:], labels[10:]), (labels[10:],)
            distances = distances[:10, 10:]
        expected = theirs(*case)
        if len(expected) == 4:  # pairs: those of one anchor belong together
            expected = pml_utils.convert_to_triplets(expected, case[1])
        found = TRIPLETS[name](distances, case[1], *more, **options)
        assert sorted(lines(found)) == sorted(lines(expected))
        assert len(found[0]) > 0


def test_all_equals_pytorch_metric_learning():
    _, distances, labels = problem(1, ignored=False)
    expected = pml_utils.get_all_triplets_indices(labels)
    assert sorted(lines(miners.all_triplets(distances, labels))) == lines(expected)


def test_multi_similarity_equals_pytorch_metric_learning():
    for seed in range(5):
        x, _, labels = problem(seed, ignored=False)
        unit = F.normalize(x)
        a1, p, a2, n = miners.multi_similarity_pairs(1 - unit @ unit.T, labels, epsilon=0.1)
        b1, q, b2, m = pml.MultiSimilarityMiner(epsilon=0.1)(x, labels)
        assert lines((a1, p)) == sorted(lines((b1, q)))
        assert lines((a2, n)) == sorted(lines((b2, m)))
        assert min(len(a1), len(a2)) > 0


def test_the_three_meanings_of_semi_hard():
    # The anchor's positives lie at 1 and 2, the negatives at 0.5, 1.2 and 2.3.
    distances = torch.tensor([[0, 1, 2, 0.5, 1.2, 2.3]])
    case = distances, torch.tensor([7]), torch.tensor([7, 7, 7, 1, 2, 3])
    case_own = {"own": True}
    assert lines(miners.semi_hard_band(*case, margin=0.4, **case_own)) == [(0, 1, 4), (0, 2, 5)]
    assert lines(miners.semi_hard_band(*case, margin=2.0, **case_own)) == [
        (0, 1, 4),
        (0, 1, 5),
        (0, 2, 5),
    ]
    assert lines(miners.semi_hard_pair(*case, **case_own)) == [(0, 1, 4), (0, 2, 5)]
    assert lines(miners.semi_hard_anchor(*case, **case_own)) == [(0, 2, 5)]
    case = distances[:, :5], case[1], case[2][:5]  # no negative beyond 2
    assert lines(miners.semi_hard_pair(*case, **case_own)) == [(0, 1, 4), (0, 2, 4)]
    assert lines(miners.semi_hard_anchor(*case, **case_own)) == []


@pytest.mark.parametrize("name", [*TRIPLETS, "multi_similarity_pairs"])
@pytest.mark.parametrize(
    "labels", [[], [3], [-1, -1], [0, 0, 0], [0, 1, 2], [0, -1, 0, -1], [-1, 5]]
)
def test_nothing_to_mine_is_empty(name, labels):
    labels = torch.tensor(labels, dtype=torch.int64)
    distances = torch.rand(len(labels), len(labels))
    found = getattr(miners, name)(distances, labels)
    assert [x.dtype for x in found] == [torch.int64] * len(found)
    assert [len(x) for x in found] == [0] * len(found)
    found = getattr(miners, name)(distances[:, :0], labels, labels[:0])
    assert [len(x) for x in found] == [0] * len(found)


@pytest.mark.parametrize("name", [*TRIPLETS, "multi_similarity_pairs"])
def test_takes_no_gradient_and_changes_nothing(name):
    _, distances, labels = problem(0)
    before, labels_before = distances.clone(), labels.clone()
    found = getattr(miners, name)(distances.requires_grad_(), labels)
    assert not any(x.requires_grad for x in found)
    assert torch.equal(distances.detach(), before)
    assert torch.equal(labels, labels_before)


def test_ties_go_to_the_lower_index():
    labels = torch.tensor([0, 0, 0, 1, 1])
    equal = torch.ones(5, 5)
    assert lines(miners.batch_hard(equal, labels)) == [
        (0, 1, 3),
        (1, 0, 3),
        (2, 0, 3),
        (3, 4, 0),
        (4, 3, 0),
    ]
    assert lines(miners.semi_hard_pair(equal, labels))[0] == (0, 1, 3)


@pytest.mark.parametrize("name", ["all_triplets", "hard_triplets", "n_hard"])
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_long_lists_are_thinned_evenly(name, limit, monkeypatch):
    _, distances, labels = problem(0, classes=2)
    ranks = {"positives": (1, 9), "negatives": (1, 9)} if name == "n_hard" else {}
    whole = oracle.MINERS[name](distances, labels, **ranks)
    assert len(whole) > 100
    monkeypatch.setattr(miners, "LIMIT", limit)
    found = lines(TRIPLETS[name](distances, labels, **ranks))
    assert found == [whole[i * len(whole) // limit] for i in range(limit)]


@pytest.mark.parametrize("rows", [1024, 64])
@pytest.mark.parametrize("classes", [2, 32, 256])
@pytest.mark.parametrize("name", TRIPLETS)
def test_no_large_tensor(name, classes, rows):
    """A (B, R, R) mask of bytes alone would take 1 GB, or 4 with a memory of 8192 rows."""
    references = 1024 if rows == 1024 else 8192
    distances = torch.rand(rows, references)
    labels = torch.arange(references) % classes
    kept, case = [], (distances, labels[:rows], labels)
    peak = peak_bytes(lambda: kept.append(TRIPLETS[name](*case, own=True)))
    assert peak < 200 * 2**20
    assert all(x.numel() * x.element_size() <= 64 * 2**20 for x in kept[0])


@pytest.mark.parametrize("name", ["batch_hard", "batch_ohnm", "n_hard"])
def test_a_training_that_broke_shows(name):
    """Distances that are NaN give triplets, and so a loss that is NaN, not an empty list and 0."""
    distances, labels = torch.full((4, 4), torch.nan), torch.tensor([0, 0, 1, 1])
    assert {line[:2] for line in lines(TRIPLETS[name](distances, labels))} == {
        (0, 1),
        (1, 0),
        (2, 3),
        (3, 2),
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, y: miners.batch_hard(d[:, :3], y), "got \\(4, 3\\)"),
        (lambda d, y: miners.batch_hard(d, y, y[:3]), "= \\(4, 3\\), got \\(4, 4\\)"),
        (lambda d, y: miners.semi_hard_band(d, y, margin=-0.1), "got -0.1"),
        (lambda d, y: miners.easy_triplets(d, y, margin=-0.1), "got -0.1"),
        (lambda d, y: miners.n_hard(d, y, positives=(0, 2)), "\\(0, 2\\)"),
        (lambda d, y: miners.n_hard(d, y, negatives=(3, 2)), "\\(3, 2\\)"),
        (lambda d, y: miners.n_hard(d, y, positives=[1]), "two numbers .* got \\[1\\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.rand(4, 4), torch.tensor([0, 0, 1, 1]))
