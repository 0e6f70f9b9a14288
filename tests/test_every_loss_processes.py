"""Every loss on two gloo processes, through the training loop's own steps and DDP.

Classifier heads end where one process with the joined batch ends; what pairs up rows of a process
ends alike on both. The parts are unequal, one of them is empty, and one has no label.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from common.engine.checkpoint import load_tree
from common.engine.grouping import Grouping
from common.engine.loop import Loop
from common.engine.settings import FitConfig
from common.losses.total import Total
from common.types import Embeddings, Table
from tests.test_every_loss import DIM, EVERY, HEADS, IDS, make, rows

CUTS = [9, 5, 0, 13, 10]  # rows of the first process out of 14
SETTINGS = FitConfig(optimizer="sgd", lr=0.05, head_lr=0.05, weight_decay=0.0, clip=0.0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(DIM, DIM)

    def forward(self, images):
        return self.backbone(images)


def _train(rank, world, out):
    if world > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
        # The processes meet in a file; accelerate looks whether these are set.
        os.environ.update(LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="localhost", MASTER_PORT="0")
        address = f"file://{out}/meet"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    ends = {}
    for key, (name, options) in zip(IDS, EVERY, strict=True):
        loop = Loop(Model(), Total([make(name, options)], [0.5]), SETTINGS, out, 0)
        loop.trained.train()
        for number, cut in enumerate(CUTS):
            x, labels = rows(seed=number)
            labels[10:] = -1  # so the second process has no label where it gets no more than these
            bounds = [0, len(x)] if world == 1 else [0, cut, len(x)]
            mine = slice(bounds[rank], bounds[rank + 1])
            part = {"image": x.detach()[mine], "label": labels[mine]}
            loop._backward({**part, "second": 1.1 * part["image"]}, True, of=1)
            loop._move()
        if world > 1:
            assert not loop.wrapped.broadcast_buffers
        loop.save()  # whole, where processes hold parts of a head
        state = {k: v for k, v in loop.trained.state_dict().items() if k not in loop.parts}
        if rank == 0:
            state = load_tree(out / "state" / "last.safetensors")["trained"]
        ends |= {f"{key}.{k}": v for k, v in state.items()}
    ends["groups"] = torch.from_numpy(_groups(rank))
    save_file(ends, f"{out}/{world}-{rank}.safetensors")
    if world > 1:
        dist.destroy_process_group()


def _groups(rank):
    """Clusters of classes by vectors that differ between the processes, as those of a GPU may."""
    labels = np.arange(60) % 20
    generator = torch.Generator().manual_seed(rank)
    vectors = torch.randn(60, 4, generator=generator)
    ids = np.array([f"{row:02d}" for row in range(60)])
    groups = Grouping(
        Table(ids, ids.astype("S"), labels),
        np.arange(20).astype(str),
        root=Path(),
        column="Id",
        embed=lambda table: Embeddings(table.ids, vectors[[int(i) for i in table.ids]]),
        centers=lambda: None,
    )
    return groups("embeddings", 5)


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """The states after five steps of one process, and of each of two."""
    out = tmp_path_factory.mktemp("processes")
    _train(0, 1, out)
    torch.multiprocessing.spawn(_train, (2, out), nprocs=2)
    return [load_file(out / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1")]


def of(state, key):
    return {k: v for k, v in state.items() if k.startswith(f"{key}.")}


@pytest.mark.parametrize("key", IDS)
def test_both_processes_end_alike(ends, key):
    first, second = of(ends[1], key), of(ends[2], key)
    assert len(second) >= 2
    for name, value in second.items():
        assert torch.equal(value, first[name]), name
    assert all(value.isfinite().all() for value in first.values())


@pytest.mark.parametrize(
    "key",
    [k for k, v in zip(IDS, EVERY, strict=True) if v in HEADS and v[0] != "proxy_anchor"],
)
def test_two_processes_with_parts_are_one_with_all(ends, key):
    """Weights, centres, scales and counts: no gradient is multiplied by the number of processes."""
    one, two, start = of(ends[0], key), of(ends[1], key), Model().state_dict()
    assert not torch.equal(one[f"{key}.model.backbone.weight"], start["backbone.weight"])
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("key", [k for k in IDS if k.startswith(("cross_batch", "momentum_q"))])
def test_memories_hold_the_rows_of_all_processes(ends, key):
    """As many as one process would store, from the same places."""
    one, two = of(ends[0], key), of(ends[1], key)
    for name in one:
        if name.endswith(("memory_labels", "cursor", "calls")):
            assert torch.equal(one[name], two[name])


def test_both_processes_draw_from_the_same_clusters(ends):
    one, first, second = (state["groups"] for state in ends)
    assert torch.equal(first, second)
    assert torch.equal(one, first)
    assert not np.array_equal(_groups(0), _groups(1))
