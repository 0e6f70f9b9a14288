"""Heads spread over processes equal whole ones: loss, gradients, steps, files; on gloo.

What is checked follows what peers get wrong: gradients times the number of processes, batches that
must be of one size, label -1 pushed from all classes, files for one number of processes only.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing import start_processes

from common.engine.checkpoint import load_tree
from common.engine.loop import Loop
from common.engine.optim import share_overflow
from common.engine.settings import FitConfig
from common.losses.partial_fc import HEADS, PartialFC
from common.losses.total import Total

B, C, D = 14, 17, 4  # 9 + 8 classes, or 6 + 6 + 5
CUTS = [9, 14, 5]  # rows of the first process: more, all, fewer
OPTIONS = {
    "cosine_softmax": {"label_smoothing": 0.2},
    "arcface": {"margin": {"formula": "power"}, "class_weights": "1/n"},
    "sub_center_arcface": {"label_smoothing": 0.1, "focal_gamma": 1.5},
    "ada_cos": {"dynamic": True},
    "curricularface": {"k": 2},
}
TWINS = ("sub_center_arcface", "class_circle")
CASES = [(name, rate) for name in HEADS for rate in (1.0, 0.6)]
SETTINGS = FitConfig(optimizer="adamw", lr=0.01, head_lr=0.1, weight_decay=0.1, clip=0.05, ema=0.9)


def make(name, rate):
    torch.manual_seed(0)
    head = {"name": name, **OPTIONS.get(name, {})}
    part = PartialFC(D, C, head, rate, class_counts=[3, 1, 0, 2, 9, *range(12)])
    part.head.twins = 8 if name in TWINS else 0  # class 9 is left out of the loss of class 1, ...
    return part


def rows(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, D, generator=generator)
    labels = torch.randint(-1, C, (B,), generator=generator)
    labels[-2:] = -1
    return x, labels


def mine(rank, world, cut):
    """The rows of a process; of three the last has none."""
    bounds = [0, B] if world == 1 else [0, cut, B, B]
    return slice(bounds[rank], bounds[rank + 1])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Linear(D, D)

    def forward(self, images):
        return self.backbone(images)


def work(rank, world, out, task):
    torch.set_default_dtype(torch.float64)
    if world > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
        os.environ.update(LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="localhost", MASTER_PORT="0")
        meet = f"file://{out}/meet-{world}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    try:
        task(rank, world, out)
    finally:
        torch.set_default_dtype(torch.float32)
        if world > 1:
            dist.destroy_process_group()


def losses(rank, world, out):
    """Loss and gradients of every head over batches of unequal parts."""
    found = {}
    for name, rate in CASES:
        total = Total([part := make(name, rate)], [0.5])
        for number, cut in enumerate(CUTS):
            key = f"{name}-{rate}-{number}"
            x, labels = rows(number)
            some = mine(rank, world, cut)
            x, labels = x[some].requires_grad_(), labels[some]
            share = part.mass(labels).double()  # as `Loop._shares`, there in float32
            everywhere = share.clone()
            if world > 1:
                dist.all_reduce(everywhere)
            share = share[None] * world / everywhere
            loss = total(x, labels, share) / world
            total.zero_grad()
            (loss * world).backward()  # DDP divides what the processes share, not the centres
            gradient = part.head.weight.grad
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            found[f"{key}.x"] = torch.zeros(B, D)
            found[f"{key}.x"][some] = x.grad / world
            found[f"{key}.loss"] = loss.detach()
            found[f"{key}.w"] = part.whole(gradient, per=part.head.k)
            found[f"{key}.count"] = torch.tensor(part.shard.count)
            found[f"{key}.centers"] = part.centers()
            buffers = {k: v for k, v in part.head.named_buffers() if v is not None}
            found |= {f"{key}.buffer.{k}": v.clone() for k, v in buffers.items()}
        part.eval()
        found[f"{name}-{rate}.eval"] = total(x.detach(), labels, share) / world
    found = {k: v.detach().contiguous() for k, v in found.items()}
    save_file(found, out / f"losses-{world}-{rank}.safetensors")


def begin(rank, world, out):
    """What `losses` does; three steps of two batches each, then both files."""
    losses(rank, world, out)
    loop = train(rank, world, out / str(world), range(3))
    loop.keep({}, {})


def go_on(rank, world, out):
    """A fourth step from the state of two processes."""
    train(rank, world, out / f"2-{world}", [3])
    values = torch.nn.Parameter(torch.ones(2))
    values.grad = torch.tensor([1.0, torch.inf if rank == 1 else 1.0])
    share_overflow([values])
    assert bool(values.grad.isnan().any()) == (world > 1)


def train(rank, world, folder, steps):
    loop = Loop(Model(), Total([make("sub_center_arcface", 0.6)], [1.0]), SETTINGS, folder, 0)
    loop.restore()
    loop.trained.train()
    for step in steps:
        for last in (False, True):
            x, labels = rows(10 * step + last)
            some = mine(rank, world, CUTS[step % 3])
            loop._backward({"image": x[some], "label": labels[some]}, last, of=2)
        loop._move()
    assert loop.agreed(rank == world - 1, False) == (True, False)
    loop.save()
    return loop


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    multiprocessing.set_forkserver_preload([__name__])  # five processes import once
    for task, worlds in ((begin, (1, 2)), (go_on, (1, 3))):
        for world in worlds:
            if task is go_on:
                shutil.copytree(folder / "2", folder / f"2-{world}")
            if world == 1:
                work(0, 1, folder, task)
            else:
                start_processes(
                    work, (world, folder, task), nprocs=world, start_method="forkserver"
                )
    work(0, 1, folder, lambda rank, world, out: train(rank, world, out / "1", [3]))
    return folder


@pytest.mark.parametrize(("name", "rate"), CASES)
def test_loss_and_gradients_of_two_processes_are_those_of_one(out, name, rate):
    one, *two = (
        {k: v for k, v in load_file(out / f"losses-{w}.safetensors").items()}
        for w in ("1-0", "2-0", "2-1")
    )
    for number in range(len(CUTS)):
        key = f"{name}-{rate}-{number}"
        for kind in ("loss", "x"):
            got = two[0][f"{key}.{kind}"] + two[1][f"{key}.{kind}"]
            torch.testing.assert_close(got, one[f"{key}.{kind}"], rtol=1e-12, atol=1e-12)
        alike = [k for k in one if k.startswith(f"{key}.") and k[-2:] != ".x" and k[-5:] != ".loss"]
        assert len(alike) >= 3
        for k in alike:
            for found in two:
                torch.testing.assert_close(found[k], one[k], rtol=1e-11, atol=1e-12, msg=k)
        assert one[f"{key}.count"] == (C if rate == 1 else 11)
    key = f"{name}-{rate}.eval"
    torch.testing.assert_close(two[0][key] + two[1][key], one[key], rtol=1e-12, atol=1e-12)


def close(got, expected, path=""):
    """Trees of tensors and plain values."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), path
        for key, value in expected.items():
            close(got[key], value, f"{path}.{key}")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8, msg=path)
    else:
        assert got == expected, path


def state(folder):
    return load_tree(folder / "state" / "last.safetensors")


def test_files_of_two_processes_are_those_of_one(out):
    one, two = (load_tree(out / w / "weights.safetensors") for w in "12")
    close(two, one)
    assert two["criterion"]["terms.0.head.weight"].shape == (3 * C, D)


@pytest.mark.parametrize("world", [1, 3])
def test_a_state_of_two_processes_goes_on_with_another_number(out, world):
    """Weights, averages, moments and each row's number of steps; three processes, one idle."""
    got, expected = state(out / f"2-{world}"), state(out / "1")
    assert expected["progress"]["step"] == 4
    for tree in (got, expected):
        # The log of an epoch counts a batch once for each process that had a part of it.
        del tree["progress"]["minutes"], tree["tally"]
    close(got, expected)
    (steps,) = [s["step"] for s in got["optimizer"]["state"].values() if s["step"].ndim]
    assert steps.shape == (3 * C,)
    assert 0 < steps.min() <= steps.max() <= 4
