"""The loss list: weights that are numbers or move, what is wrong with a list, the log."""

from __future__ import annotations

import pytest
import torch

from common.config import ConfigError
from common.losses.schedule import ramp_factor, read_ramp
from common.losses.total import KNOWN, Total, build, check
from tests.oracles.pair_losses import batch

STATE = {"embedding_dim": 4, "num_classes": 4, "class_counts": [3, 1, 4, 9]}
HAND_OVER = [
    {
        "name": "cosine_softmax",
        "seed": 1,
        "weight": {"start": 1, "end": 0, "from": 0.3, "over": 0.2},
    },
    {"name": "triplet", "weight": {"start": 0, "end": 2, "from": 0.3, "over": 0.2}},
]


def curve(ramp, *progress):
    return [ramp_factor(ramp, part) for part in progress]


def test_ramps_by_hand():
    waits = read_ramp({"start": 0.2, "end": 1.0, "from": 0.5, "over": 0.25})
    assert curve(waits, 0, 0.5, 0.75, 0.9, 1) == [0.2, 0.2, 1.0, 1.0, 1.0]
    assert ramp_factor(waits, 0.625) == pytest.approx(0.6)
    falls = read_ramp({"start": 1, "end": 0.1, "from": 0.6})  # over what is left
    assert curve(falls, 0, 0.6, 1) == [1, 1, 0.1]
    assert ramp_factor(falls, 0.8) == pytest.approx(0.55)
    assert curve(read_ramp(None), 0, 0.3, 1) == [1, 1, 1]
    assert curve(read_ramp({}), 0, 0.25, 1) == [0, 0.25, 1]
    for name in ("start", "end", "from", "over"):
        assert name in str(read_ramp({"start": 0.3, "end": 0.7, "from": 0.3, "over": 0.7}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"from": 1.0},
        {"from": -0.1},
        {"from": 0.5, "over": 0.6},
        {"over": 0.0},
        {"start": -1},
        {"end": -1},
    ],
    ids=str,
)
def test_a_ramp_that_cannot_be_is_named(wrong):
    with pytest.raises(ValueError, match="weight needs start >= 0, end >= 0, from in"):
        read_ramp(wrong, "weight")


def test_one_term_hands_over_to_another():
    x, labels = batch(dtype=torch.float32)
    total = build(HAND_OVER, STATE)
    parts = [term(x, labels) for term in total.terms]
    for progress, weights in [(0.0, (1, 0)), (0.3, (1, 0)), (0.4, (0.5, 1)), (0.6, (0, 2))]:
        total.schedule(progress)
        expected = sum(w * part for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(total(x, labels), expected)
        found = total.statistics()
        assert found["head/weight_0"] == pytest.approx(weights[0])
        assert found["head/weight_1"] == pytest.approx(weights[1])


def test_a_term_of_weight_0_has_a_gradient_of_zeros():
    """DDP waits for every parameter, whatever its term weighs now."""
    x, labels = batch(dtype=torch.float32)
    total = build(HAND_OVER, STATE)
    total.schedule(1.0)
    total(x, labels).backward()
    assert torch.equal(total.terms[0].weight.grad, torch.zeros(4, 4))
    assert x.grad.any()


def test_numbers_stay_exact_and_out_of_the_log():
    total = build([{"name": "triplet", "weight": 0.3}, {"name": "circle"}], STATE)
    for progress in (0.0, 0.123, 0.999):
        total.schedule(progress)
        assert total.weights == [0.3, 1.0]
    assert total.statistics() == {}
    assert Total([torch.nn.Identity()], [2.0]).weights == [2.0]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "loss: is empty, name at least one of: cos"),
        ([{"name": "tripplet"}], "loss\\[0\\]: no step 'tripplet'.*triplet"),
        ([{"name": "triplet"}, {"name": "arcface", "s": 3}], "loss\\[1\\]: arcface has no .*'s'"),
        (
            [{"name": "triplet", "weight": 0}],
            "loss\\[0\\]: weight must be a positive number or a r",
        ),
        ([{"name": "triplet", "weight": {"start": 0, "end": 0}}], "positive number or a ramp"),
        ([{"name": "triplet", "weight": {"from": 0.8, "over": 0.3}}], "loss\\[0\\]: weight needs"),
        ([{"name": "triplet", "weight": {"begin": 0.8}}], "loss\\[0\\]: weight has no 'begin'"),
        ([{"name": "triplet", "weight": True}], "got True"),
        (
            [{"name": "circle"}, {"name": "arcface", "margin": 3}],
            "loss\\[1\\]: margins must lie in",
        ),
        (
            [{"name": "triplet", "miner": "batchhard"}],
            "loss\\[0\\]: miner: .*'batchhard'.*batch_hard",
        ),
        ([{"name": "partial_fc", "head": {"name": "arcfase"}}], "loss\\[0\\]: partial_fc.head: no"),
        (
            [{"name": "momentum_queue", "size": 4}, {"name": "momentum_queue", "momentum": 0.5}],
            "loss: all momentum queues share",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_list_is_said_before_anything_is_built(terms, message):
    with pytest.raises(ConfigError, match=message):
        check(terms)
    with pytest.raises(ConfigError, match=message):
        build(terms, STATE)


def test_a_check_moves_no_later_draw():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    check(HAND_OVER)
    assert torch.equal(torch.rand(2), expected)


def test_terms_of_one_kind_are_told_apart_in_the_log():
    x, labels = batch(dtype=torch.float32)
    terms = [{"name": "triplet", "miner": miner} for miner in ("easy_triplets", "hard_triplets")]
    total = build(terms, STATE)
    total(x, labels)
    found = total.statistics()
    assert (found["head/active"], found["head/active_1"]) == (0, 1)


def test_every_loss_can_be_named():
    assert {"momentum_queue", "cross_batch_memory", "arcface", "triplet", "magnet"} <= set(KNOWN)
    check([{"name": name} for name in KNOWN])
    assert "leave_out_twins" not in KNOWN  # a public function of such a module is no loss
