"""The momentum copy by hand, what of it is saved, and the second view that it sees."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.engine.checkpoint import lasting, load_tree
from common.engine.fit import fit
from common.engine.momentum import MomentumCopy
from common.engine.settings import FitConfig, Stage
from common.engine.trained import Trained
from common.losses.memory import MomentumQueue
from common.losses.total import Total
from tests.test_fit import Batches, Model, Pictures


def moved(model, scale=1.0):
    """The model with other weights and statistics."""
    torch.manual_seed(3)
    model = copy.deepcopy(model)
    for value in model.state_dict().values():
        value.copy_(value + scale * torch.rand(value.shape) if value.is_floating_point() else 5)
    return model


def test_it_follows_the_weights_and_batch_statistics_by_hand():
    start = Model()
    later = moved(start)
    follower = MomentumCopy(start, 0.9)
    expected = start.state_dict()
    for _ in range(3):
        follower.update(later)
        expected = {
            k: 0.9 * v + 0.1 * later.state_dict()[k] if v.is_floating_point() else torch.tensor(5)
            for k, v in expected.items()
        }
    torch.testing.assert_close(follower.model.state_dict(), expected)


def test_it_learns_nothing_and_a_key_depends_on_its_image_alone():
    model = Model()
    follower = MomentumCopy(model, 0.9).train()
    assert not any(part.training for part in follower.modules())
    assert not any(p.requires_grad for p in follower.parameters())
    assert all(p.requires_grad for p in model.parameters())
    images = torch.rand(6, 3, 8, 8) * 255
    keys = follower(images)
    assert not keys.requires_grad
    torch.testing.assert_close(keys[2:3], follower(images[2:3]))
    before = copy.deepcopy(follower.state_dict())
    follower(images)
    assert all(torch.equal(value, before[key]) for key, value in follower.state_dict().items())


def test_the_criterion_gets_its_keys_and_says_what_it_wants():
    queue = MomentumQueue(5, size=10, momentum=0.5)
    total = Total([queue], [1.0])
    assert (total.momentum, total.second_view) == (0.5, True)
    same = Total([nn.Identity(), MomentumQueue(5, size=4, view="same")], [1.0, 1.0])
    assert (same.momentum, same.second_view) == (0.999, False)
    assert Trained(Model(), Total([nn.Identity()], [1.0])).copy is None
    trained = Trained(Model(), total)
    images, second = torch.rand(2, 4, 3, 8, 8) * 255
    trained((images,), torch.tensor([0, 0, 1, 1]), None, (second,))
    assert torch.equal(queue.memory[:4], trained.copy(second))
    trained((images,), torch.tensor([0, 0, 1, 1]))
    assert torch.equal(queue.memory[4:8], trained.copy(images))
    with pytest.raises(ValueError, match="one momentum and view"):
        Total([queue, MomentumQueue(5, size=4)], [1.0, 1.0])
    for wrong in ({"momentum": 1.0}, {"momentum": -0.1}, {"view": "third"}):
        with pytest.raises(ValueError, match="momentum must lie in"):
            MomentumQueue(5, **wrong)


def test_without_keys_the_rows_are_their_own():
    x, labels = torch.randn(6, 5, requires_grad=True), torch.tensor([0, 0, 1, 1, 2, -1])
    first, second = MomentumQueue(5, size=10), MomentumQueue(5, size=10)
    assert first(x, labels) == second(x, labels, x)
    assert torch.equal(first.memory, second.memory)


def train(folder, view, *, ema, items=None):
    class Seen(Pictures):
        def __getitem__(self, key):
            item = super().__getitem__(key)
            return item | {"second": 255 - item["image"]} if items is None else items(item)

    config = FitConfig(
        stages=[Stage(epochs=1, size=8)], batch_size=8, accumulate=2, lr=1e-2, ema=ema
    )
    queue = MomentumQueue(5, size=24, momentum=0.9, view=view)
    fit(
        Model(),
        Total([queue], [1.0]),
        config,
        folder,
        loader=lambda stage: DataLoader(Seen(), batch_sampler=Batches(8)),
        validate=lambda model, stage: {},
        log=lambda step, metrics: None,
        card={},
    )
    return load_tree(folder / "state" / "last.safetensors")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_training_moves_it_once_per_step_and_keeps_it_in_the_state_only(tmp_path, ema):
    state = train(tmp_path, "same", ema=ema)
    trained = state["trained"]
    assert int(trained["criterion.terms.0.calls"]) == 6
    assert (trained["criterion.terms.0.memory_labels"] >= 0).all()
    start = Model().state_dict()
    for key in ("neck.2.weight", "backbone.1.running_mean"):
        old, new, follower = start[key], trained[f"model.{key}"], trained[f"copy.model.{key}"]
        # Three steps of 0.1 towards a moving goal: behind it, but under way.
        assert 0 < (follower - old).norm() < 0.5 * (new - old).norm()
    assert not state["average"] or not any("copy" in k or "memory" in k for k in state["average"])
    weights = load_tree(tmp_path / "weights.safetensors")
    assert set(weights["criterion"]) == set()
    assert set(weights["model"]) == set(start)


def test_the_view_decides_what_the_copy_sees(tmp_path):
    rows = [
        train(tmp_path / view, view, ema=0.0)["trained"]["criterion.terms.0.memory"]
        for view in ("same", "second")
    ]
    assert not torch.allclose(*rows)
    with pytest.raises(ValueError, match="needs a second view"):
        train(tmp_path / "without", "second", ema=0.0, items=lambda item: item)


def test_lasting_leaves_out_whole_parts():
    parts = nn.ModuleDict({"queue": MomentumQueue(3, size=4), "queued": nn.Linear(2, 2)})
    assert set(lasting(parts)) == {"queued.weight", "queued.bias"}
