"""What an epoch's line says, against a twin that keeps every batch; what resuming makes of it."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.engine.checkpoint import load_tree, save_tree
from common.engine.settings import FitConfig, Stage
from common.engine.tally import Tally, memory, peak_memory
from common.losses.total import build
from tests.test_fit import CLASSES, ROOT, Model, Stop, run

CPU = torch.device("cpu")
TERMS = [
    {"name": "sub_center_arcface", "k": 2, "seed": 0},
    {"name": "triplet", "weight": 0.5},
    {"name": "triplet", "weight": 0.5, "miner": "all_triplets"},
]
MOVING = [*TERMS[:2], {"name": "circle", "weight": {"start": 1, "end": 0.5}}]
STATE = {"embedding_dim": 5, "num_classes": CLASSES, "class_counts": [12] * CLASSES}
CONFIG = {"stages": [Stage(epochs=2, size=8)], "batch_size": 8, "precision": "fp32", "clip": 0.1}
TIMED = {"train/minutes", "train/images_per_second", "train/memory_gb"}


class Watched:
    """Every batch of a criterion: embeddings, labels, weight and what its terms say one by one."""

    def __init__(self, criterion):
        self.batches, self.criterion, self.forward = [], criterion, criterion.forward
        criterion.forward = self

    def __call__(self, embeddings, labels):
        before = self.criterion.terms[0].wins.clone()
        loss = self.forward(embeddings, labels)
        weight = self.criterion.terms[0].weight.detach().clone()
        wins = self.criterion.terms[0].wins.clone()
        assert (wins - before).sum() == (labels >= 0).sum()
        self.batches.append((embeddings.detach(), labels, weight, wins, loss.detach()))
        return loss


def angles(batches):
    """Row by row: degrees to the own and to the nearest other class, and whether dominant."""
    rows = []
    for embeddings, labels, weight, wins, _ in batches:
        for x, label in zip(F.normalize(embeddings), labels.tolist(), strict=True):
            if label >= 0:
                cosine = (F.normalize(weight) @ x).view(CLASSES, 2)
                others = torch.cat([cosine[:label], cosine[label + 1 :]]).max()
                own, place = cosine[label].max(0)
                degrees = [math.degrees(math.acos(float(c))) for c in (own, others)]
                rows.append([*degrees, float(place == wins[label].argmax())])
    return np.mean(rows, 0)


def test_an_epoch_says_what_its_batches_say(tmp_path, monkeypatch):
    criterion = build(TERMS, STATE)
    watched, norms = Watched(criterion), []
    from common.engine import loop

    clip = loop.clip_gradients

    def noted(parameters, *rest):
        parameters = list(parameters)
        each = [p.grad.norm() for p in parameters if p.grad is not None]
        norms.append(float(torch.stack(each).norm()))
        return clip(parameters, *rest)

    monkeypatch.setattr(loop, "clip_gradients", noted)
    _, _, lines = run(tmp_path, FitConfig(**CONFIG), head=criterion)
    for epoch, (_, line) in enumerate(lines):
        part = slice(6 * epoch, 6 * epoch + 6)
        own, other, share = angles(watched.batches[part])
        assert line["head/own_angle"] == pytest.approx(own, abs=1e-3)
        assert line["head/other_angle"] == pytest.approx(other, abs=1e-3)
        assert line["head/dominant_share"] == pytest.approx(share)
        losses = [float(batch[-1]) for batch in watched.batches[part]]
        assert line["train/loss"] == pytest.approx(np.mean(losses))
        terms = [line[f"loss/{name}"] for name in ("sub_center_arcface", "triplet", "triplet_2")]
        assert line["train/loss"] == pytest.approx(terms[0] + 0.5 * terms[1] + 0.5 * terms[2])
        assert line["train/gradient_norm"] == pytest.approx(np.mean(norms[part]), rel=1e-5)
        assert line["train/gradient_norm_max"] == pytest.approx(max(norms[part]), rel=1e-5)
        assert max(norms[part]) > 0.1  # as it was before clipping
        assert 0 < line["train/memory_gb"] < 64
        assert line["train/images_per_second"] > 0
    assert lines[0][1].keys() == lines[1][1].keys()


def test_losses_without_centres_have_no_angles(tmp_path):
    _, _, lines = run(tmp_path, FitConfig(**CONFIG), head=build([{"name": "circle"}], STATE))
    assert lines[0][1]["loss/circle"] == pytest.approx(lines[0][1]["train/loss"])
    assert not [name for name in lines[0][1] if name.startswith("head/")]


def test_a_frozen_backbone_has_no_rate(tmp_path):
    model = Model()
    model.backbone.requires_grad_(False)
    _, _, lines = run(tmp_path, FitConfig(**CONFIG), model=model, head=build(TERMS, STATE))
    assert "train/head_lr" in lines[0][1]
    assert "train/lr" not in lines[0][1]


@pytest.mark.parametrize("when", ["middle", "validating"])
def test_a_killed_epoch_says_the_same_in_the_end(tmp_path, when):
    _, _, whole = run(tmp_path / "whole", FitConfig(**CONFIG), head=build(MOVING, STATE))
    criterion, calls = build(MOVING, STATE), []
    forward = criterion.forward

    def killed(*words):
        calls.append(1)
        if len(calls) == 10 and when == "middle":
            raise Stop
        return forward(*words)

    def validate(model, stage):
        if len(calls) == 12:
            raise Stop
        return {"valid/score": 0.5}

    criterion.forward = killed
    config = FitConfig(**CONFIG, save_minutes=0.0)
    with pytest.raises(Stop):
        run(tmp_path / "cut", config, head=criterion, validate=validate)
    _, _, rest = run(tmp_path / "cut", FitConfig(**CONFIG), head=build(MOVING, STATE))
    mine, theirs = rest[-1][1], whole[-1][1]
    assert 0.5 < mine["head/weight_2"] < 0.6
    assert {k: mine[k] for k in mine.keys() - TIMED} == {
        k: theirs[k] for k in theirs.keys() - TIMED
    }


def test_overflowed_steps_are_in_no_norm():
    tally = Tally(CPU)
    tally.norms = [torch.tensor(v) for v in (1.0, math.inf, 3.0, math.nan)]
    found = tally.metrics()
    assert found["train/gradient_norm"] == 2
    assert found["train/gradient_norm_max"] == 3
    assert found["train/overflowed_steps"] == 2


def test_what_is_saved_goes_on_exactly(tmp_path):
    generator = torch.Generator().manual_seed(0)
    whole, part = Tally(CPU), Tally(CPU)
    for step in range(20):
        loss, pair = torch.rand((), generator=generator), torch.rand(2, generator=generator)
        for tally in (whole, part):
            tally.add(loss, {"head/a": pair})
            tally.norms.append(loss * 3)
        if step == 11:
            save_tree(tmp_path / "a.safetensors", {"tally": part.state()})
            part = Tally(CPU, load_tree(tmp_path / "a.safetensors")["tally"])
    assert whole.metrics() == part.metrics()
    assert whole.finite()
    whole.add(torch.tensor(math.nan), {"head/a": pair})
    assert not whole.finite()


def test_nothing_counted_is_nothing_said():
    tally = Tally(CPU, None)
    assert tally.metrics() == {}
    assert tally.finite()
    tally.add(torch.tensor(1.0), {"head/active": torch.zeros(2)})
    assert tally.metrics() == {"train/loss": 1.0}


def test_watching_draws_no_random_number():
    criterion = build(TERMS, STATE)
    criterion(torch.randn(6, 5), torch.tensor([0, 0, 1, 1, 2, -1]))
    before = torch.get_rng_state()
    tally = Tally(CPU)
    tally.add(torch.tensor(1.0), criterion.watch())
    criterion.statistics(), tally.metrics(), tally.state()
    assert torch.equal(before, torch.get_rng_state())


def test_memory_is_this_processes_peak():
    code = "from common.engine.tally import peak_memory\nbefore = peak_memory()\n"
    code += "block = bytearray(300_000_000)\ndel block\nprint(peak_memory() - before)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(3e8, rel=0.1)
    assert memory(CPU).keys() == {"train/memory_gb"}
    if Path("/proc/self/status").exists():
        assert peak_memory() >= os.sysconf("SC_PAGE_SIZE")
