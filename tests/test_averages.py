"""The mean of the last weights: an explicit mean, BatchNorm statistics, resume to the bit."""

import numpy as np
import pytest
import torch
from torch import nn

from common.engine.averages import WeightMean, moving_norms, refresh_norms, wanted
from common.engine.settings import FitConfig, Stage
from tests.test_fit import IMAGES, Batches, Head, Model, Pictures, Stop, run, weights


def config(**options):
    stages = [Stage(epochs=3, size=8), Stage(epochs=2, size=8, lr=0.5)]
    return FitConfig(
        **{
            "stages": stages,
            "batch_size": 8,
            "lr": 1e-2,
            "head_lr": 1e-2,
            "precision": "fp32",
            "keep": "last",
            **options,
        }
    )


def after_each_epoch(folder, settings):
    """Weights after every epoch of a training without averages."""
    kept = []
    head = Head()

    def watch(model, stage):
        state = {**model.state_dict(), **{f"head.{k}": v for k, v in head.state_dict().items()}}
        kept.append({k: v.clone() for k, v in state.items()})
        return {}

    run(folder, settings, validate=watch, head=head)
    return kept


def loader():
    return torch.utils.data.DataLoader(Pictures(), batch_sampler=batches)


batches = Batches(8)


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"swa": 3}, [2, 3, 4]),
        ({"swa": 9}, [0, 1, 2, 3, 4]),
        ({"swa": 2, "swa_at": "stage"}, [2, 4]),
        ({"swa": 1, "swa_at": "stage", "ema": 0.9}, [4]),
    ],
    ids=str,
)
def test_kept_is_the_mean_with_norms_of_its_own(tmp_path, options, epochs):
    each = after_each_epoch(tmp_path / "plain", config())
    run(tmp_path / "swa", config(**options))
    found = weights(tmp_path / "swa")
    moving = {name for name in found if "running" in name or "num_batches" in name}
    assert len(moving) == 3
    for name, value in found.items():
        if name not in moving:
            expected = torch.stack([each[e][name] for e in epochs]).mean(0)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    # The convolution's output over the pictures of the last epoch, all at once.
    model = Model()
    model.load_state_dict({k: v for k, v in found.items() if not k.startswith("head.")})
    batches.set_epoch(4)
    parts = [model.backbone[0](b["image"].float() / 255).detach() for b in loader()]
    means = torch.stack([p.mean((0, 2, 3)) for p in parts]).mean(0)
    variances = torch.stack([p.transpose(0, 1).flatten(1).var(1) for p in parts]).mean(0)
    torch.testing.assert_close(found["backbone.1.running_mean"], means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["backbone.1.running_var"], variances, rtol=1e-4, atol=1e-5)


def test_training_goes_on_as_without_it(tmp_path):
    _, plain, lines = run(tmp_path / "plain", config())
    _, model, more = run(tmp_path / "swa", config(swa=3))
    for name, value in model.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    assert [line[1]["train/loss"] for line in lines] == [line[1]["train/loss"] for line in more]


@pytest.mark.parametrize("at", [1, 4, 5])
def test_a_killed_training_ends_with_the_same_bits(tmp_path, at):
    run(tmp_path / "whole", config(swa=3))
    calls = []

    def killer(model, stage):
        calls.append(1)
        if len(calls) == at:
            raise Stop
        return {"valid/score": 0.5}

    with pytest.raises(Stop):
        run(tmp_path / "cut", config(swa=3), validate=killer)
    run(tmp_path / "cut", config(swa=3))
    mine, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_moment_is_taken_once():
    module = nn.Linear(2, 1, bias=False)
    mean, values = WeightMean(), [3.0, 5.0, 1.0]
    for number, value in enumerate(values):
        module.weight.data.fill_(value)
        mean.add(module, number)
        mean.add(module, number)
    assert mean.count == 3
    torch.testing.assert_close(mean.state["weight"], torch.full((1, 2), float(np.mean(values))))


def test_frozen_norms_keep_their_statistics_and_dropout_is_off():
    model = Model()

    class Frozen(Model):
        def train(self, mode=True):
            super().train(mode)
            self.backbone.eval()
            return self

    frozen = Frozen()
    assert moving_norms(frozen) == []
    before = frozen.backbone[1].running_mean.clone()
    refresh_norms(frozen, [(torch.ones(4, 3, 8, 8),)])
    assert torch.equal(frozen.backbone[1].running_mean, before)
    seen = []
    model.neck[1].register_forward_hook(lambda module, given, out: seen.append(module.training))
    refresh_norms(model, [(torch.rand(4, 3, 8, 8),)])
    assert seen == [False]
    assert model.backbone[1].momentum == 0.1
    assert not model.training


def test_which_epochs_belong_to_it():
    stages = [2, 0, 3]
    places = [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    for last in range(7):
        found = [wanted("epoch", last, stages, *place) for place in places]
        assert found == [i >= 5 - last for i in range(5)]
    ends = [[wanted("stage", n, stages, *place) for place in places] for n in range(3)]
    assert ends == [[False] * 5, [False] * 4 + [True], [False, True, False, False, True]]


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="swa_at='cycle'"):
        FitConfig(swa_at="cycle")
    with pytest.raises(ValueError, match=r"train\.swa=-1"):
        FitConfig(swa=-1)
    assert IMAGES == 48
