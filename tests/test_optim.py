"""Parameter groups, the rate curve and the average."""

import math

import pytest
import torch
from torch import nn

from common.engine.optim import (
    Average,
    build_optimizer,
    check_covered,
    lr_factor,
    parameter_groups,
    set_lr,
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.neck = nn.Linear(3, 2)


def groups(model, head):
    return parameter_groups(model, head, lr=0.1, head_lr=1.0, weight_decay=0.01)


def test_every_parameter_is_in_one_group_with_its_rate_and_decay():
    model, head = Model(), nn.Linear(2, 5)
    made = groups(model, head)
    where = {id(p): g for g in made for p in g["params"]}
    assert len(where) == sum(1 for _ in (*model.parameters(), *head.parameters()))
    assert where[id(model.backbone[0].weight)]["lr"] == 0.1
    assert where[id(model.neck.weight)]["lr"] == 1.0
    assert where[id(head.weight)]["weight_decay"] == 0.01
    assert where[id(model.backbone[1].weight)]["weight_decay"] == 0.0
    assert where[id(head.bias)]["weight_decay"] == 0.0


def test_a_forgotten_head_is_an_error():
    model, head = Model(), nn.Linear(2, 5)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match="2 parameters are not in the optimiser, the first is wei"):
        check_covered(optimizer, model, head)
    check_covered(build_optimizer("sgd", groups(model, head)), model, head)


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="every parameter is frozen"):
        groups(Model().requires_grad_(False), nn.Identity())


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="choose adamw, adam or sgd"):
        build_optimizer("adamax", groups(Model(), nn.Identity()))


def test_the_rate_rises_then_follows_half_a_cosine():
    curve = [lr_factor(s, 100, warmup=0.1, floor=0.2) for s in range(100)]
    assert 0 < curve[0] < curve[5] < curve[9] < 1
    assert curve[10] == 1
    assert curve[55] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert curve[99] == pytest.approx(0.2, abs=1e-3)
    assert lr_factor(0, 1, warmup=0.5) > 0
    assert lr_factor(0, 10, warmup=0.0) == 1


def test_groups_keep_their_ratio():
    optimizer = build_optimizer("adamw", groups(Model(), nn.Linear(2, 5)))
    set_lr(optimizer, 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {0.05, 0.5}


def test_the_average_is_a_weighted_sum_of_what_it_saw():
    module = nn.BatchNorm1d(1)
    average = Average(module, 0.5)
    seen, expected = [2.0, 4.0], 1.0
    for n, value in enumerate(seen, 1):
        module.weight.data.fill_(value)
        module.num_batches_tracked.fill_(n)
        average.update(module)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert average.state["weight"].item() == pytest.approx(expected)
    assert average.state["num_batches_tracked"].item() == 2
