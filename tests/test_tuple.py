"""Tuple losses against loop twins, pytorch-metric-learning, scikit-learn, gradcheck; no NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import reducers
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.regularizers import LpRegularizer
from sklearn.metrics import normalized_mutual_info_score
from torch.nn import functional as F

from common.losses import medoids
from common.losses import tuple as tuple_losses
from common.losses.tuple import (
    FacilityLocationLoss,
    InfoNCELoss,
    LiftedStructureLoss,
    NCELoss,
    NPairLoss,
    SupConLoss,
)
from common.steps import catalog
from tests.oracles import tuple_losses as oracle
from tests.oracles.pair_losses import agree, batch, learns_nothing

LOSSES = [
    FacilityLocationLoss,
    InfoNCELoss,
    LiftedStructureLoss,
    NCELoss,
    NPairLoss,
    SupConLoss,
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("make", "twin", "options"),
    [
        (LiftedStructureLoss, oracle.lifted, {}),
        (LiftedStructureLoss, oracle.lifted, {"margin": 2.5, "normalize": False}),
        (NPairLoss, oracle.n_pair, {}),
        (NPairLoss, oracle.n_pair, {"temperature": 5.0, "l2": 0.3}),
        (NPairLoss, oracle.n_pair, {"temperature": 0.1, "l2": 0.0, "normalize": True}),
        (FacilityLocationLoss, oracle.facility_location, {}),
        (FacilityLocationLoss, oracle.facility_location, {"gamma": 10.0, "swaps": 0}),
        (FacilityLocationLoss, oracle.facility_location, {"gamma": 30.0, "swaps": 2}),
        (InfoNCELoss, oracle.infonce, {}),
        (InfoNCELoss, oracle.infonce, {"temperature": 0.5}),
        (NCELoss, oracle.nce, {}),
        (NCELoss, oracle.nce, {"temperature": 0.5}),
        (SupConLoss, oracle.sup_con, {}),
        (SupConLoss, oracle.sup_con, {"temperature": 0.5}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_equals_the_loop_twin(make, twin, options, seed):
    x, labels = batch(seed=seed)
    loss = make(**options).double()(x, labels)
    assert loss > 0
    agree(loss, twin(x, labels, **options), x)


@pytest.mark.parametrize("make", [InfoNCELoss, LiftedStructureLoss, NPairLoss, SupConLoss, NCELoss])
def test_gradcheck(make):
    x, labels = batch(rows=8, dim=3, classes=3)
    criterion = make().double()
    criterion(x, labels)
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels), (x,))


def test_equals_pytorch_metric_learning():
    x, labels = batch(ignored=False)
    mean = {"reducer": reducers.MeanReducer()}
    agree(LiftedStructureLoss()(x, labels), pml.LiftedStructureLoss(1, 0)(x, labels), x)
    # They clamp a denominator at float32's smallest number, which is why 0.1 and not 0.01.
    agree(InfoNCELoss(0.1)(x, labels), pml.NTXentLoss(0.1, **mean)(x, labels), x)
    agree(SupConLoss(0.1)(x, labels), pml.SupConLoss(0.1, **mean)(x, labels), x)


def test_n_pair_equals_pytorch_metric_learning_on_one_pair_per_class():
    x, _ = batch(rows=10, ignored=False)
    labels = torch.arange(5).repeat(2)
    theirs = pml.NPairsLoss(
        distance=DotProductSimilarity(normalize_embeddings=False),
        embedding_regularizer=LpRegularizer(power=2),
        embedding_reg_weight=0.02,
    )
    agree(NPairLoss(l2=0.04)(x, labels), theirs(x, labels), x)


@pytest.mark.parametrize("make", [FacilityLocationLoss, InfoNCELoss, LiftedStructureLoss, NCELoss])
def test_one_class_has_nothing_to_learn(make):
    learns_nothing(make(), [4, 4, 4])


@pytest.mark.parametrize("make", LOSSES)
def test_bad_input_is_said(make):
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="embeddings must be"):
        make()(x[0], labels)
    with pytest.raises(ValueError, match="int64 of shape"):
        make()(x, labels.int())
    with pytest.raises(ValueError, match="int64 of shape"):
        make()(x, labels[:3])
    with pytest.raises(ValueError, match="at least 0"):
        make()(x, labels - 2)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (LiftedStructureLoss, {"margin": 0.0}, "margin must be positive"),
        (NPairLoss, {"temperature": 0.0}, "temperature must be positive"),
        (NPairLoss, {"normalize": True}, "0 with normalize"),
        (NPairLoss, {"l2": -1.0}, "at least 0"),
        (FacilityLocationLoss, {"gamma": math.nan}, "gamma must be positive"),
        (FacilityLocationLoss, {"swaps": -1}, "swaps must be"),
        (InfoNCELoss, {"temperature": -1.0}, "temperature must be positive"),
        (NCELoss, {"temperature": math.inf}, "temperature must be positive"),
        (SupConLoss, {"temperature": 0.0}, "temperature must be positive"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_bad_arguments_are_said(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_infonce_does_not_saturate(dtype):
    """Exponentials, a ratio and a log give 87 in float32 and 9.7 in float16 at most."""
    x = torch.tensor([[1.0, 0], [-1, 0], [1, 0.0]], dtype=dtype)
    loss = InfoNCELoss(0.01)(x, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(loss, torch.tensor((200 + math.log(2)) / 2))


def test_lifted_uses_the_negatives_of_both_rows():
    x = torch.tensor([[0.0, 0], [1, 0], [0, 3], [4, 0]])
    labels = torch.tensor([0, 0, 1, 2])
    terms = [1 - 3, 1 - 4, 1 - math.sqrt(10), 1 - 3]
    wanted = (math.log(sum(map(math.exp, terms))) + 1) ** 2 / 2
    assert LiftedStructureLoss(normalize=False)(x, labels).item() == pytest.approx(wanted)


def test_n_pair_spreads_the_target_over_repeated_classes():
    x, _ = batch(rows=12, ignored=False)
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 2, 2, 2, 3, -1, 3])
    a, p = x[[0, 4, 2, 6, 9]], x[[1, 5, 3, 7, 11]]
    same = torch.tensor([0, 0, 1, 2, 3])
    target = F.normalize((same[:, None] == same).double(), p=1)
    agree(NPairLoss(l2=0.0)(x, labels), F.cross_entropy(a @ p.T, target), x)


def test_nce_keeps_its_first_normaliser_and_saves_it():
    x, labels = batch()
    criterion = NCELoss(0.5).double()
    criterion.eval()
    criterion(x, labels)
    assert criterion.log_z.isnan(), "validation must not set it"
    criterion.train()
    criterion(x, labels)
    first = criterion.log_z.exp().item()
    other, _ = batch(seed=5)
    agree(criterion(other, labels), oracle.nce(other, labels, temperature=0.5, z=first), other)
    again = NCELoss(0.5).double()
    again.load_state_dict(criterion.state_dict())
    assert torch.equal(again(other, labels), criterion(other, labels))


def test_nce_waits_for_a_batch_with_negatives():
    x, labels = batch()
    criterion = NCELoss().double()
    criterion(x, torch.zeros_like(labels))
    assert criterion.log_z.isnan()
    criterion(x, labels)
    assert criterion.log_z.isfinite()


def test_nmi_equals_scikit_learn():
    rng = np.random.default_rng(0)
    clusters, labels = rng.integers(0, 5, (20, 30)), rng.integers(0, 4, 30)
    clusters[0], clusters[1] = 0, labels * 3 % 7
    found = medoids._nmi(torch.from_numpy(clusters), torch.from_numpy(labels))
    wanted = [
        normalized_mutual_info_score(labels, row, average_method="geometric") for row in clusters
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_facility_location_is_zero_where_clusters_are_clear():
    centers = torch.eye(4, dtype=torch.float64).repeat_interleave(5, 0)
    labels = torch.arange(4).repeat_interleave(5)
    x = (centers + 1e-3 * torch.randn(20, 4, dtype=torch.float64)).requires_grad_()
    assert FacilityLocationLoss(0.5)(x, labels).abs() < 1e-12  # sums in two orders
    assert FacilityLocationLoss(0.5)(x, labels.roll(2)) > 0


@pytest.mark.parametrize(
    ("make", "count"),
    [(LiftedStructureLoss, 8), (InfoNCELoss, 8), (NPairLoss, 2), (NCELoss, 5), (SupConLoss, 5)],
)
def test_mass_is_what_the_mean_divides_by(make, count):
    labels = torch.tensor([0, 0, 0, 1, 1, 2, -1, -1])
    assert make().mass(labels) == count
    assert make().mass(labels[:0]) == 0


def test_names_in_yaml():
    assert set(catalog(tuple_losses)) == {
        "facility_location",
        "info_nce",
        "lifted_structure",
        "n_pair",
        "nce",
        "sup_con",
    }
