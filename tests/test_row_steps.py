"""Optimiser steps of rows with a sparse gradient: torch's own steps, one row at a time."""

from __future__ import annotations

import copy

import pytest
import torch

from common.engine import optim
from common.engine.optim import build_optimizer, clip_gradients, coalesced, share_overflow
from tests.oracles.partial_fc import Row

R, D = 12, 3
each = pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])


@pytest.fixture(params=[1 << 20, 5], ids=["one_chunk", "chunks"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(optim, "_CHUNK", request.param)


def make(name, parameters):
    return build_optimizer(name, [{"params": parameters, "lr": 0.1, "weight_decay": 0.05}])


def sparse(rows, values):
    return torch.sparse_coo_tensor(torch.tensor(rows)[None], values, (R, D), check_invariants=True)


def steps(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        rows = torch.randperm(R, generator=generator)[:5].sort().values.tolist()
        yield rows, torch.randn(5, D, generator=generator)


@each
def test_each_row_moves_as_if_alone(name, chunk):
    torch.manual_seed(0)
    p, bias = torch.nn.Parameter(torch.randn(R, D)), torch.nn.Parameter(torch.randn(2))
    optimizer = make(name, [p, bias])
    twins = [Row(value, lambda groups: make(name, groups[0]["params"])) for value in p.detach()]
    other = Row(bias.detach(), lambda groups: make(name, groups[0]["params"]))
    for rows, values in steps():
        before, state = p.detach().clone(), copy.deepcopy(optimizer.state[p])
        p.grad, bias.grad = sparse(rows, values), torch.ones(2)
        optimizer.step()
        assert p.grad.is_sparse  # given back
        for row, value in zip(rows, values, strict=True):
            twins[row].step(value)
        other.step(torch.ones(2))
        still = [row for row in range(R) if row not in rows]
        assert torch.equal(p.detach()[still], before[still])
        for key, value in state.items():
            assert torch.equal(optimizer.state[p][key][still], value[still]), key
    torch.testing.assert_close(p.detach(), torch.stack([twin.value.detach() for twin in twins]))
    assert torch.equal(bias.detach(), other.value.detach())


@each
def test_all_rows_are_torchs_dense_step(name):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(R, D))
    twin = torch.nn.Parameter(p.detach().clone())
    ours, theirs = make(name, [p]), make(name, [twin])
    for _ in range(5):
        gradient = torch.randn(R, D)
        p.grad, twin.grad = sparse(list(range(R)), gradient), gradient.clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(p, twin)
        for key, value in theirs.state[twin].items():
            got = ours.state[p][key]
            torch.testing.assert_close(got, value.expand_as(got).to(got))


@each
def test_the_state_survives_a_checkpoint(name):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(R, D))
    optimizer = make(name, [p])
    for rows, values in steps(3):
        p.grad = sparse(rows, values)
        optimizer.step()
    q = torch.nn.Parameter(p.detach().clone())
    again = make(name, [q])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for rows, values in steps(3, seed=1):
        p.grad, q.grad = sparse(rows, values), sparse(rows, values)
        optimizer.step()
        again.step()
    assert torch.equal(p, q)


def test_rows_named_twice_count_as_their_sum():
    gradient = coalesced(sparse([7, 2, 7], torch.ones(3, D)))
    assert gradient.indices().tolist() == [[2, 7]]
    assert gradient.values()[1].tolist() == [2.0] * D
    values = torch.ones(2, D)
    assert coalesced(sparse([2, 7], values))._values().data_ptr() == values.data_ptr()


@pytest.mark.parametrize("limit", [0.5, 100.0, float("inf")])
def test_clipping_is_torchs(limit):
    torch.manual_seed(0)
    dense, rows = torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.randn(R, D))
    dense.grad, rows.grad = torch.randn(4), sparse([7, 2, 7], torch.randn(3, D))
    twins = [torch.nn.Parameter(p.detach().clone()) for p in (dense, rows)]
    twins[0].grad, twins[1].grad = dense.grad.clone(), rows.grad.to_dense()
    norm = clip_gradients([dense, rows, torch.nn.Parameter(torch.ones(1))], limit)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(twins, limit))
    torch.testing.assert_close(dense.grad, twins[0].grad)
    torch.testing.assert_close(rows.grad.to_dense(), twins[1].grad)


@each
def test_a_scaler_unscales_or_skips(name):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(R, D))
    twin = torch.nn.Parameter(p.detach().clone())
    optimizer, plain = make(name, [p]), make(name, [twin])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    for spoilt in (False, True, False):
        values = torch.randn(2, D)
        p.grad, twin.grad = sparse([3, 5], values * scaler.get_scale()), sparse([3, 5], values)
        if spoilt:
            p.grad._values()[1, 1] = torch.inf
        share_overflow([p])
        scaler.unscale_(optimizer)
        clip_gradients([p], float("inf"))
        scaler.step(optimizer)
        scaler.update()
        if not spoilt:
            plain.step()
        torch.testing.assert_close(p, twin)
    assert scaler.get_scale() == 512
