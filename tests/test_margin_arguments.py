"""Arguments of the margin heads: formulas by hand, the ramp, what is saved, bad values."""

from __future__ import annotations

import copy
import inspect
import math

import numpy as np
import pytest
import torch

from common.losses import margin
from common.losses.margin import ArcFace, CosFace, SubCenterArcFace
from tests.oracles.margin import batch

COUNTS = [1, 16, 81, 0, 5]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_margin_formulas_by_hand():
    minmax = {"formula": "minmax_power", "a": 0.45, "b": 0.05, "lambda": 0.25}
    got = ArcFace(2, 4, margin=minmax, class_counts=[1, 16, 81, 0]).margins
    r = (1 / 2 - 1 / 3) / (1 - 1 / 3)  # n^-1/4 is 1, 1/2, 1/3
    np.testing.assert_allclose(got, [0.5, 0.45 * r + 0.05, 0.05, 0.5], rtol=1e-6)
    power = {"formula": "power", "a": 0.4, "b": 0.1, "lambda": 0.5}
    got = ArcFace(2, 4, margin=power, class_counts=torch.tensor([4, 100, 25, 0])).margins
    np.testing.assert_allclose(got, [0.3, 0.14, 0.18, 0.3], rtol=1e-6)


def test_an_absent_class_moves_no_other_margin():
    both = [
        ArcFace(2, len(n), margin={"formula": "minmax_power"}, class_counts=n).margins
        for n in ([4, 9, 30], [4, 9, 30, 0])
    ]
    np.testing.assert_array_equal(both[0], both[1][:3])
    assert both[1][3] == both[0].max()


@pytest.mark.parametrize("counts", [[7, 7, 7], [0, 0, 0], [3, 0, 0]])
def test_equal_counts_give_the_middle_margin(counts):
    head = ArcFace(2, 3, margin={"formula": "minmax_power"}, class_counts=counts)
    np.testing.assert_allclose(head.margins, [0.275] * 3, rtol=1e-6)


def test_ramp_is_a_factor_on_the_margin(double):
    x, labels = batch()
    ramp = {"start": 0.2, "end": 1.0, "over": 0.5}
    head = SubCenterArcFace(4, 5, margin=1.0, ramp=ramp, seed=1)
    for progress, expected in [(0, 0.2), (0.25, 0.6), (0.5, 1.0), (0.75, 1.0), (1, 1.0)]:
        head.schedule(progress)
        fixed = SubCenterArcFace(4, 5, margin=expected, seed=1)
        torch.testing.assert_close(head(x, labels), fixed(x, labels), rtol=1e-12, atol=1e-12)
    formula = {"formula": "power", "a": 0.5, "b": 0.1, "lambda": 0.5}
    head = CosFace(4, 5, margin=formula, class_counts=[4] * 5, ramp={"start": 0.5}, seed=1)
    before = head(x, labels)
    torch.testing.assert_close(before, CosFace(4, 5, margin=0.175, seed=1)(x, labels))
    head.schedule(1.0)
    torch.testing.assert_close(head(x, labels), CosFace(4, 5, margin=0.35, seed=1)(x, labels))


def test_state_survives_and_leaves_arguments_alone():
    x, labels = batch()
    head = SubCenterArcFace(4, 5, margin=0.8, ramp={"start": 0.25, "over": 0.8})
    head.schedule(0.4)
    expected = head(x, labels)
    state = copy.deepcopy(head.state_dict())
    assert set(state) == {"weight", "wins", "margin_factor"}
    assert state["wins"].sum() == (labels >= 0).sum()
    again = SubCenterArcFace(4, 5, margin=0.8, ramp={"start": 0.25, "over": 0.8})
    again.load_state_dict(state)
    assert again(x, labels) == expected
    assert again.wins.sum() == 2 * (labels >= 0).sum()
    # A later stage with other margins loads the same state.
    other = SubCenterArcFace(4, 5, margin={"formula": "power"}, class_counts=COUNTS)
    other.load_state_dict(state)
    other.schedule(0.1)
    assert other.margin_factor == 1
    assert other.margins[0] == pytest.approx(0.55)


def test_contract_of_the_signature():
    names = ["embedding_dim", "num_classes", "k", "scale", "margin", "class_counts"]
    for make, k in [(CosFace, 1), (ArcFace, 1), (SubCenterArcFace, 3)]:
        parameters = inspect.signature(make).parameters
        assert list(parameters)[:6] == names
        assert [parameters[n].default for n in names[2:]] == [k, 30.0, 0.3, None]
    head = SubCenterArcFace(4, 5, 2, 16.0, 0.2, np.array([3, 2, 1, 0, 9]))
    assert (head.k, head.scale, head.margin) == (2, 16.0, 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": {"formula": "linear"}}, "minmax_power, power"),
        ({"margin": {"a": 0.3}}, "minmax_power, power"),
        ({"margin": {"formula": "power", "coef": 1}}, "'coef'; it has: a, b, lambda"),
        ({"margin": {"formula": "power", "a": "big"}}, "a must be a number"),
        ({"margin": {"formula": "power"}, "class_counts": None}, "needs class_counts"),
        ({"margin": {"formula": "power", "a": 9.0}}, "margins must lie in"),
        ({"margin": 28.6}, "radians"),
        ({"margin": -0.1}, "margins must lie in"),
        ({"margin": math.nan}, "margins must lie in"),
        ({"margin": 1.0, "ramp": {"end": 2.0}}, "margins must lie in"),
        ({"ramp": {"begin": 0.1}}, "'begin'; it has: start, end, from, over"),
        ({"ramp": {"over": 0}}, "over in"),
        ({"ramp": {"start": -0.5}}, "start >= 0"),
        ({"class_counts": [1, 2]}, "each of 5 classes"),
        ({"class_counts": [1, 2, 3, 4, -1]}, "at least 0"),
        ({"class_weights": "1/n", "class_counts": None}, "needs class_counts"),
        ({"class_weights": "n"}, "1/log1p"),
        ({"k": 0}, "1..255"),
        ({"k": 256}, "1..255"),
        ({"scale": 0.0}, "scale"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
        ({"num_classes": 0}, "one class"),
    ],
    ids=str,
)
def test_bad_arguments_name_what_is_known(options, message):
    arguments = {"embedding_dim": 4, "num_classes": 5, "class_counts": COUNTS} | options
    with pytest.raises(ValueError, match=message):
        SubCenterArcFace(**arguments)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (torch.ones(2, 4), torch.tensor([0, 5]), r"\[0, 5\).*got 0 to 5"),
        (torch.ones(2, 4), torch.tensor([0, -2]), "-2 to 0"),
        (torch.ones(2, 4), torch.tensor([0.0, 1.0]), "int64"),
        (torch.ones(2, 4), torch.tensor([0]), r"shape \(2,\)"),
        (torch.ones(2, 3), torch.tensor([0, 1]), r"\(B, 4\)"),
    ],
)
def test_bad_input(x, labels, message):
    with pytest.raises(ValueError, match=message):
        ArcFace(4, 5)(x, labels)


def test_whole_numbers_ramp_in_fractions():
    head = ArcFace(4, 5, ramp={"start": 0, "end": 1, "over": 1})
    head.schedule(0.5)
    assert head.margin_factor == 0.5


@pytest.mark.parametrize("progress", [-0.1, 3, math.nan])
def test_progress_is_a_part(progress):
    with pytest.raises(ValueError, match="0 to 1"):
        ArcFace(4, 5).schedule(progress)


def test_only_heads_are_public():
    own = {
        name
        for name, value in vars(margin).items()
        if getattr(value, "__module__", None) == margin.__name__ and not name.startswith("_")
    }
    assert own == {"CosFace", "ArcFace", "SubCenterArcFace"}
