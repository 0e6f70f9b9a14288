"""Pair losses against loop twins, pytorch-metric-learning, gradcheck; never NaN; memory."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning import reducers
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from common.config import ConfigError
from common.losses import pair
from common.losses.batch import distances, distances_at
from common.losses.pair import (
    CircleLoss,
    ContrastiveLoss,
    CosineContrastiveLoss,
    MultiSimilarityLoss,
    TripletLoss,
)
from common.losses.quadruplet import QuadrupletLoss
from common.losses.tuple import InfoNCELoss, NCELoss, SupConLoss
from common.steps import bind, catalog
from tests.oracles import pair_losses as oracle
from tests.oracles.pair_losses import HARD_CASES, agree, batch, learns_nothing, never_nan

VARIANTS = {
    "contrastive": ContrastiveLoss,
    "contrastive, raw": lambda: ContrastiveLoss(normalize=False),
    "contrastive, one mean": lambda: ContrastiveLoss(balanced=False),
    "cosine contrastive": CosineContrastiveLoss,
    "triplet": TripletLoss,
    "triplet, soft": lambda: TripletLoss("soft"),
    "triplet, squared": lambda: TripletLoss(squared=True, normalize=False),
    "triplet, all": lambda: TripletLoss(miner="all_triplets", active_only=True),
    "quadruplet": QuadrupletLoss,
    "quadruplet, adaptive": lambda: QuadrupletLoss(adaptive=True, active_only=False),
    "quadruplet, raw": lambda: QuadrupletLoss(normalize=False),
    "multi-similarity": MultiSimilarityLoss,
    "multi-similarity, all": lambda: MultiSimilarityLoss(epsilon=None),
    "circle": CircleLoss,
    "circle, 256": lambda: CircleLoss(0.25, 256.0),
    "circle, batch": lambda: CircleLoss(reduction="batch"),
}
NORMALIZED = {name: make for name, make in VARIANTS.items() if make().normalize}
MINED = {  # all that need a positive and a negative
    name: make
    for name, make in VARIANTS.items()
    if "contrastive" not in name and name != "multi-similarity, all"
}
each_variant = pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("make", "twin", "options"),
    [
        (ContrastiveLoss, oracle.contrastive, {}),
        (ContrastiveLoss, oracle.contrastive, {"margin": 2.5, "normalize": False}),
        (ContrastiveLoss, oracle.contrastive, {"balanced": False}),
        (CosineContrastiveLoss, oracle.cosine_contrastive, {}),
        (CosineContrastiveLoss, oracle.cosine_contrastive, {"margin": -0.2, "balanced": False}),
        (QuadrupletLoss, oracle.quadruplet, {}),
        (QuadrupletLoss, oracle.quadruplet, {"margin": 0.3, "second_margin": 0.1}),
        (QuadrupletLoss, oracle.quadruplet, {"adaptive": True, "normalize": False}),
        (QuadrupletLoss, oracle.quadruplet, {"adaptive": True, "active_only": False}),
        (MultiSimilarityLoss, oracle.multi_similarity, {}),
        (MultiSimilarityLoss, oracle.multi_similarity, {"epsilon": None, "beta": 40.0}),
        (MultiSimilarityLoss, oracle.multi_similarity, {"alpha": 3.0, "base": 1.0, "epsilon": 0.4}),
        (CircleLoss, oracle.circle, {}),
        (CircleLoss, oracle.circle, {"margin": 0.25, "scale": 20.0}),
        (CircleLoss, oracle.circle, {"reduction": "batch", "scale": 30.0}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_equals_the_loop_twin(make, twin, options, seed):
    x, labels = batch(seed=seed)
    loss = make(**options)(x, labels)
    assert loss > 0
    agree(loss, twin(x, labels, **options), x)


@pytest.mark.parametrize(
    ("miner", "mine"), [("batch_hard", oracle.batch_hard), ("all_triplets", oracle.all_triplets)]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"squared": True},
        {"margin": 1.5, "normalize": False, "active_only": True},
        {"margin": "soft"},
        {"margin": "soft", "squared": True, "normalize": False},
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_triplet_equals_the_loop_twin(miner, mine, options):
    x, labels = batch()
    loss = TripletLoss(miner=miner, **options)(x, labels)
    agree(loss, oracle.triplet(x, labels, mine=mine, **options), x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TripletLoss("soft"),
        lambda: TripletLoss("soft", squared=True),
        lambda: ContrastiveLoss(2.5),
        QuadrupletLoss,
        lambda: MultiSimilarityLoss(beta=5.0, epsilon=None),
    ],
)
def test_gradcheck(make):
    x, labels = batch(rows=8, dim=3, classes=3)
    criterion = make()
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels), (x,))


def test_equals_pytorch_metric_learning():
    x, labels = batch(rows=24, classes=5, ignored=False)
    assert (labels[:, None] == labels).sum(1).min() > 1
    mean = {"reducer": reducers.MeanReducer()}
    hard = pml_miners.BatchHardMiner()(x, labels)
    squared = {"distance": LpDistance(power=2)}
    for ours, theirs, mined in [
        (TripletLoss(), pml.TripletMarginLoss(0.2, **mean), hard),
        (TripletLoss(active_only=True), pml.TripletMarginLoss(0.2), hard),
        (TripletLoss(miner="all_triplets"), pml.TripletMarginLoss(0.2, **mean), None),
        (TripletLoss(miner="all_triplets", active_only=True), pml.TripletMarginLoss(0.2), None),
        (
            TripletLoss(0.4, miner="all_triplets", squared=True),
            pml.TripletMarginLoss(0.4, **mean, **squared),
            None,
        ),
        (
            TripletLoss("soft", miner="all_triplets"),
            pml.TripletMarginLoss(0.0, smooth_loss=True, **mean),
            None,
        ),
        (
            CosineContrastiveLoss(),
            pml.ContrastiveLoss(1, 0.5, distance=CosineSimilarity(), **mean),
            None,
        ),
        (
            CosineContrastiveLoss(miner={"name": "multi_similarity_pairs", "epsilon": 0.05}),
            pml.ContrastiveLoss(1, 0.5, distance=CosineSimilarity(), **mean),
            pml_miners.MultiSimilarityMiner(0.05)(x, labels),
        ),
        (MultiSimilarityLoss(epsilon=None), pml.MultiSimilarityLoss(2, 50, 0.5, **mean), None),
        (
            MultiSimilarityLoss(),
            pml.MultiSimilarityLoss(2, 50, 0.5, **mean),
            pml_miners.MultiSimilarityMiner(0.1)(x, labels),
        ),
        (CircleLoss(), pml.CircleLoss(0.4, 80, **mean), None),
        (CircleLoss(0.25, 256.0), pml.CircleLoss(0.25, 256, **mean), None),
    ]:
        agree(ours(x, labels), theirs(x, labels, mined), x)


def test_contrastive_equals_pytorch_metric_learning_where_no_negative_is_near():
    """Theirs is a hinge on D or D^2, Hadsell's a squared one: they share the positives."""
    x, labels = batch(ignored=False)
    theirs = pml.ContrastiveLoss(
        0, 1e-9, distance=LpDistance(power=2), reducer=reducers.MeanReducer()
    )
    agree(2 * ContrastiveLoss(1e-9)(x, labels), theirs(x, labels), x)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name in VARIANTS
        for case in HARD_CASES
        # Of rows taken as they are, the true gradient of a square lies beyond float16.
        if name in NORMALIZED or case != "float16 full range"
    ],
)
def test_never_nan(name, case):
    never_nan(VARIANTS[name](), *HARD_CASES[case]())


@each_variant
@pytest.mark.parametrize("labels", [[-1, -1], [], [0], [3]], ids=str)
def test_nothing_to_learn_is_a_zero_on_the_graph(make, labels):
    learns_nothing(make(), labels)


@pytest.mark.parametrize("make", MINED.values(), ids=MINED)
@pytest.mark.parametrize("labels", [[4, 4, 4], [0, 1, 2]], ids=str)
def test_without_positives_or_negatives(make, labels):
    learns_nothing(make(), labels)


def test_a_single_pair_counts():
    """A peer gives 0 for a batch that holds a single pair."""
    x = torch.tensor([[0.0, 0], [3, 4]], requires_grad=True)
    criterion = ContrastiveLoss(6.0, normalize=False)
    assert criterion(x, torch.tensor([1, 1])).item() == 12.5
    assert criterion(x, torch.tensor([1, 2])).item() == 0.5
    assert CosineContrastiveLoss(0.0)(x + 1, torch.tensor([1, 2])).item() > 0.9


@each_variant
def test_autocast_changes_nothing(make):
    x, labels = batch(dtype=torch.float32)
    expected = make()(x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make()(x, labels)
    agree(loss, expected, x, rtol=0, atol=0)


@each_variant
def test_ignored_rows_change_nothing_whatever_they_hold(make):
    x, labels = batch()
    known = labels >= 0
    expected = make()(x[known], labels[known])
    (wanted,) = torch.autograd.grad(expected, x)
    spoilt = torch.where(known[:, None], x.detach(), torch.nan).requires_grad_()
    loss = make()(spoilt, labels)
    (got,) = torch.autograd.grad(loss, spoilt)
    assert torch.equal(loss, expected)
    assert torch.equal(got, wanted)


@each_variant
def test_labels_are_compared_as_integers(make):
    """2^24 and 2^24 + 1 are one number in float32, as a peer casts its labels."""
    x, labels = batch()
    far = torch.where(labels >= 0, labels + 2**53, labels)
    assert torch.equal(make()(x, far), make()(x, labels))


@pytest.mark.parametrize("make", NORMALIZED.values(), ids=NORMALIZED)
def test_the_norm_is_differentiated(make):
    """A peer detaches it; then rows get a gradient along themselves and grow."""
    x, labels = batch()
    criterion = make()
    (grad,) = torch.autograd.grad(criterion(x, labels), x)
    assert (grad * x).sum(1).abs().max() < 1e-12
    torch.testing.assert_close(criterion(100 * x, labels), criterion(x, labels))


@each_variant
def test_bad_input_is_said(make):
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="embeddings must be"):
        make()(x[0], labels)
    with pytest.raises(ValueError, match="embeddings must be"):
        make()(labels[:, None], labels)
    with pytest.raises(ValueError, match="int64 of shape"):
        make()(x, labels.int())
    with pytest.raises(ValueError, match="at least 0"):
        make()(x, labels - 2)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ContrastiveLoss, {"margin": 0.0}, "margin must be positive"),
        (CosineContrastiveLoss, {"margin": 1.0}, "a cosine"),
        (CosineContrastiveLoss, {"miner": "batch_hard"}, "miner: .*multi_similarity_pairs"),
        (TripletLoss, {"margin": -0.1}, "margin must be positive"),
        (TripletLoss, {"margin": "hard"}, "a number or soft"),
        (TripletLoss, {"margin": "soft", "active_only": True}, "neither ramp nor active_only"),
        (TripletLoss, {"margin": "soft", "ramp": {"start": 0.2}}, "neither ramp nor active_only"),
        (TripletLoss, {"miner": "hardest"}, "no step 'hardest'.*batch_hard"),
        (TripletLoss, {"miner": {"name": "n_hard", "positives": [3, 1]}}, "ranks are two numbers"),
        (TripletLoss, {"miner": {"name": "semi_hard_band", "margin": -1}}, "at least 0, got -1"),
        (TripletLoss, {"ramp": {"begin": 0.2}}, "ramp has no 'begin'"),
        (QuadrupletLoss, {"margin": 0.0}, "margin must be positive"),
        (QuadrupletLoss, {"second_margin": 2.0}, "at most 1.0"),
        (MultiSimilarityLoss, {"beta": 0.0}, "beta must be positive"),
        (MultiSimilarityLoss, {"epsilon": -0.1}, "epsilon must be at least 0"),
        (CircleLoss, {"margin": 1.0}, "margin must lie"),
        (CircleLoss, {"scale": math.inf}, "scale must be positive"),
        (CircleLoss, {"reduction": "mean"}, "known: anchor, batch"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_bad_arguments_are_said(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_names_and_types_in_yaml():
    known = catalog(pair)
    assert set(known) == {
        "contrastive",
        "cosine_contrastive",
        "triplet",
        "multi_similarity",
        "circle",
    }
    criterion = bind({"name": "triplet", "margin": "soft", "miner": "all_triplets"}, known)()
    assert isinstance(criterion, TripletLoss)
    assert criterion.margin == "soft"
    with pytest.raises(ConfigError, match="circle.reduction must be one of"):
        bind({"name": "circle", "reduction": "mean"}, known)


def test_soft_margin_survives_far_apart_rows():
    """log(1 + e^d), as a peer writes it, is inf from 89 on."""
    x = torch.tensor([[0.0, 0], [1e4, 0], [0, 0]], requires_grad=True)
    loss = TripletLoss("soft", normalize=False)(x, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx((1e4 + math.log(2)) / 2, rel=1e-6)


def test_margin_grows_with_the_training_and_is_saved():
    x, labels = batch()
    criterion = TripletLoss(0.5, miner="all_triplets", ramp={"start": 0.2, "end": 1.0, "over": 0.5})
    for progress, margin in [(0.0, 0.1), (0.25, 0.3), (0.5, 0.5), (1.0, 0.5)]:
        criterion.schedule(progress)
        expected = TripletLoss(margin, miner="all_triplets")(x, labels)
        torch.testing.assert_close(criterion(x, labels), expected, rtol=1e-6, atol=1e-7)
    criterion.schedule(0.25)
    again = TripletLoss(0.5, miner="all_triplets", ramp={"start": 0.2, "end": 1.0, "over": 0.5})
    again.load_state_dict(criterion.state_dict())
    assert torch.equal(again(x, labels), criterion(x, labels))
    with pytest.raises(ValueError, match="part of training"):
        criterion.schedule(7)


def test_statistics_by_hand():
    criterion = TripletLoss(0.5, normalize=False)
    assert criterion.statistics() == {}
    criterion(torch.tensor([[0.0], [1], [1.2]]), torch.tensor([0, 0, 1]))
    found = criterion.statistics()  # of row 0: 1 and 1.2; of row 1: 1 and 0.2
    assert found["active"] == 1
    assert found["positive_distance"] == pytest.approx(1)
    assert found["negative_distance"] == pytest.approx(0.7)
    criterion(torch.tensor([[0.0], [1], [9]]), torch.tensor([0, 0, 1]))
    assert criterion.statistics()["active"] == 0


def test_quadruplet_of_two_classes_is_the_triplet():
    x, labels = batch(classes=2)
    expected = TripletLoss(1.0, miner="all_triplets", squared=True, active_only=True)(x, labels)
    agree(QuadrupletLoss()(x, labels), expected, x)


def test_adaptive_margin_has_no_gradient():
    x, labels = batch()
    x = (x.detach() + 2 * torch.eye(4)[labels]).requires_grad_()
    known = F.normalize(x.detach()[labels >= 0])
    same = labels[labels >= 0][:, None] == labels[labels >= 0]
    d = torch.cdist(known, known).square()
    off = ~torch.eye(len(known), dtype=torch.bool)
    gap = (d[~same].mean() - d[same & off].mean()).item()
    agree(
        QuadrupletLoss(0.8, 0.4, adaptive=True)(x, labels),
        QuadrupletLoss(0.8 * gap, 0.4 * gap)(x, labels),
        x,
    )


def test_circle_weights_have_no_gradient_and_anchors_without_a_pair_no_part():
    x = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1], [-1, 0]], requires_grad=True)
    labels = torch.tensor([0, 0, 1, -1])
    m, g = 0.3, 4.0

    def one(p, n):
        return math.log1p(
            math.exp(g * (n + m) * (n - m)) * math.exp(-g * (1 + m - p) * (p - 1 + m))
        )

    loss = CircleLoss(m, g)(x, labels)  # rows 0 and 1 are anchors, 2 has no positive
    assert loss.item() == pytest.approx((one(0.8, 0.0) + one(0.8, 0.6)) / 2)


WITH_REFERENCES = {
    **{name: VARIANTS[name] for name in VARIANTS if "quadruplet" not in name},
    "infonce": InfoNCELoss,
    "nce": lambda: NCELoss(0.5).eval(),
    "sup con": SupConLoss,
}


@pytest.mark.parametrize("make", WITH_REFERENCES.values(), ids=WITH_REFERENCES)
def test_references_that_are_the_batch_itself(make):
    x, labels = batch()
    agree(make()(x, labels, x, labels, own=True), make()(x, labels), x)


@pytest.mark.parametrize(
    "name", [n for n in WITH_REFERENCES if "batch" not in n and "contrastive" not in n]
)
def test_anchors_one_by_one_weigh_their_mass(name):
    """With a memory behind the batch, an anchor sees all other rows; the means add up by mass."""
    x, labels = batch()
    memory, old = batch(rows=7, seed=9)
    others, their = torch.cat([x, memory.detach()]), torch.cat([labels, old])
    options = {"normalize": False} if "squared" in name else {}
    criterion = WITH_REFERENCES[name]()
    if name == "triplet, all":
        criterion.active_only = False
    assert criterion.normalize == options.get("normalize", True)
    if isinstance(criterion, NCELoss):
        criterion.log_z.fill_(0.3)
    total = mass = 0.0
    for i in range(len(x)):
        rest = torch.arange(len(others)) != i
        one = x[i : i + 1], labels[i : i + 1]
        weight = criterion.mass(one[1], their[rest]).item()
        if name == "triplet, all":
            weight = (
                (their[rest] == one[1]).sum() * ((their[rest] != one[1]) & (their[rest] >= 0)).sum()
                if one[1] >= 0
                else 0
            )
        total = total + weight * criterion(*one, others[rest], their[rest])
        mass += weight
    if name != "triplet, all":
        assert mass == criterion.mass(labels, their, own=True)
    agree(criterion(x, labels, others, their, own=True), total / mass, x)


def test_references_equal_pytorch_metric_learning():
    x, labels = batch(ignored=False)
    memory, old = batch(rows=30, seed=9, ignored=False)
    mean = {"reducer": reducers.MeanReducer()}
    for ours, theirs in [
        (TripletLoss(miner="all_triplets"), pml.TripletMarginLoss(0.2, **mean)),
        (
            CosineContrastiveLoss(),
            pml.ContrastiveLoss(1, 0.5, distance=CosineSimilarity(), **mean),
        ),
        (MultiSimilarityLoss(epsilon=None), pml.MultiSimilarityLoss(2, 50, 0.5, **mean)),
        (CircleLoss(), pml.CircleLoss(0.4, 80, **mean)),
        (InfoNCELoss(0.1), pml.NTXentLoss(0.1, **mean)),
        (SupConLoss(0.1), pml.SupConLoss(0.1, **mean)),
    ]:
        loss = ours(x, labels, memory, old)
        expected = theirs(x, labels, ref_emb=memory, ref_labels=old)
        agree(loss, expected, x)
        agree(loss, expected, memory)


def test_bad_references_are_said():
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="go together"):
        TripletLoss()(x, labels, x)
    with pytest.raises(ValueError, match="references must be"):
        TripletLoss()(x, labels, x[0], labels)
    with pytest.raises(ValueError, match="reference_labels must be int64"):
        TripletLoss()(x, labels, x, labels.int())


@pytest.mark.parametrize("make", WITH_REFERENCES.values(), ids=WITH_REFERENCES)
def test_an_empty_memory_or_one_of_strangers(make):
    x, labels = batch(dtype=torch.float32)
    for references, theirs in [(x[:0], labels[:0]), (x, labels.clamp_max(-1))]:
        loss = make()(x, labels, references, theirs)
        loss.backward()
        assert loss == 0
    for memory in HARD_CASES["float16"](), HARD_CASES["all zero"]():
        loss = make()(x[:, [0, 1, 2, 3, 0]], labels, *memory)
        assert loss.isfinite()


def test_a_mined_miner_option_and_the_margin_reach_the_miner():
    x, labels = batch()
    for margin in (0.1, 0.6):
        loss = TripletLoss(margin, miner="semi_hard_band")(x, labels)
        mined = pml_miners.TripletMarginMiner(margin, type_of_triplets="semihard")(
            x[labels >= 0], labels[labels >= 0]
        )
        theirs = pml.TripletMarginLoss(margin, reducer=reducers.MeanReducer())
        agree(loss, theirs(x[labels >= 0], labels[labels >= 0], mined), x)
    few = TripletLoss(miner={"name": "n_hard", "positives": [1, 1], "negatives": [1, 1]})
    agree(few(x, labels), TripletLoss()(x, labels), x)
    with pytest.raises(ValueError, match="n_hard has no argument 'rank'"):
        TripletLoss(miner={"name": "n_hard", "rank": 2})


def test_distances_keep_their_digits_far_from_the_origin():
    x = torch.randn(20, 8) + 1000
    exact = torch.cdist(x.double(), x.double()).float()
    torch.testing.assert_close(distances(x), exact, rtol=1e-4, atol=1e-4)
    assert not distances(x).diagonal().any()


def test_equal_rows_are_at_distance_zero_and_pull_nowhere():
    """By a product, rounding puts them up to .005 apart, with a gradient of length 1 anywhere."""
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    x.requires_grad_()
    found = distances(x)
    equal = found.diagonal(20)
    assert not equal.any()
    assert found.count_nonzero() == 40 * (40 - 2)  # but itself and its equal
    (gradient,) = torch.autograd.grad(equal.sum(), x)
    assert not gradient.any()


def test_mined_pairs_have_one_mean_too():
    """By hand; with the margin of 0.5 all mined negatives have a loss."""
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.96, 0.28], [0.8, -0.6]])
    loss = CosineContrastiveLoss(balanced=False, miner="multi_similarity_pairs")
    # cosines: 0-1 .6, 2-3 .6; 0-2 .96, 0-3 .8, 1-2 .8, 1-3 0: all but the last are mined twice.
    expected = 2 * (0.4 + 0.4 + 0.46 + 0.3 + 0.3) / 10
    assert loss(x, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(expected)


def test_few_and_many_pairs_measure_alike():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    first, second = torch.randint(0, 6, (2, 10))
    for squared in (False, True):
        given = distances(x, squared=squared), x, x
        few = distances_at(*given, first, second, squared=squared).sum()
        many = distances_at(*given, first.repeat(9), second.repeat(9), squared=squared).sum() / 9
        agree(few, many, x)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (ContrastiveLoss, 6),
        (lambda: ContrastiveLoss(balanced=False), 30),
        (CosineContrastiveLoss, 6),
        (TripletLoss, 5),
        (QuadrupletLoss, 5),
        (CircleLoss, 5),
        (lambda: CircleLoss(reduction="batch"), 1),
    ],
)
def test_mass_is_what_the_mean_divides_by(make, count):
    labels = torch.tensor([0, 0, 0, 1, 1, 2, -1, -1])
    assert make().mass(labels) == count
    assert make().mass(labels[:0]) == 0


@pytest.mark.parametrize("make", [QuadrupletLoss, TripletLoss, CircleLoss, MultiSimilarityLoss])
def test_no_cubic_memory(make):
    """At B = 256 one float per triple of rows is 67 MB."""
    x, labels = batch(rows=256, dim=8, classes=64, ignored=False, dtype=torch.float32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        make()(x, labels).backward()
    events = record.profiler.kineto_results.events()
    assert max(e.nbytes() for e in events if e.name() == "[memory]") < 4 * 256**3 / 16
