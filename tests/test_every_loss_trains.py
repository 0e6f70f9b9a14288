"""Every name in a `loss:` list through `fit`: it trains, and a killed training ends the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from common.engine.checkpoint import load_lasting, load_tree
from common.engine.fit import fit
from common.engine.settings import FitConfig, Stage
from common.losses.total import KNOWN, build
from tests.test_every_loss import OPTIONS, takes
from tests.test_fit import CLASSES, Batches, Model, Pictures

QUEUE = {"name": "momentum_queue", "size": 30, "momentum": 0.5}
LISTS = {name: [{"name": name, **OPTIONS.get(name, [{}])[-1]}] for name in KNOWN}
LISTS |= {
    "momentum_queue": [QUEUE],
    "arcface + 0.3 * triplet": [{"name": "arcface"}, {"name": "triplet", "weight": 0.3}],
    "softmax, then triplets with a growing margin": [
        {"name": "cosine_softmax", "weight": {"start": 1, "end": 0, "from": 0.2, "over": 0.3}},
        {
            "name": "triplet",
            "weight": {"start": 0, "end": 1, "from": 0.2, "over": 0.3},
            "ramp": {"start": 0.2, "from": 0.2},
        },
    ],
    "sub-centres, memory and queue": [
        {"name": "sub_center_arcface", "class_weights": "1/n"},
        {"name": "cross_batch_memory", "size": 20, "start": 2, "weight": 0.5},
        {**QUEUE, "loss": {"name": "nce"}, "view": "same", "weight": 0.1},
    ],
}


class Stop(Exception):
    """Stands for a kill."""


class Seen(Pictures):
    """With a second view."""

    def __getitem__(self, key):
        row, stream = key
        return {
            **super().__getitem__(key),
            "second": super().__getitem__((row, stream + 7))["image"],
        }


def terms(given):
    given = copy.deepcopy(given)
    for term in given:
        if isinstance(term.get("loss"), str):
            term["loss"] = {"name": term["loss"]}
    return given


def criterion_of(given):
    torch.manual_seed(2)
    state = {"embedding_dim": 5, "num_classes": CLASSES, "class_counts": [20, 10, 10, 8]}
    return build(terms(given), state)


def train(folder, given, *, epochs=2, stop_after=None, ema=0.5):
    """Losses per epoch, the model and criterion."""
    config = FitConfig(
        stages=[Stage(epochs=epochs, size=8)],
        batch_size=16,
        accumulate=2,
        lr=1e-2,
        head_lr=1e-2,
        ema=ema,
        precision="bf16",
        save_minutes=0.0,
    )
    model, criterion = Model(), criterion_of(given)
    lines, seen = [], []

    def watch(module, inputs):
        seen.append(1)
        if len(seen) == stop_after:
            raise Stop

    model.register_forward_pre_hook(watch)
    fit(
        model,
        criterion,
        config,
        Path(folder),
        loader=lambda stage: DataLoader(Seen(), batch_sampler=Batches(16)),
        validate=lambda model, stage: {"valid/score": 0.5},
        log=lambda step, metrics: lines.append(metrics["train/loss"]),
    )
    return lines, model, criterion


def flat(tree, at=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{at}{key}.")
        elif key != "minutes":
            yield f"{at}{key}", value


@pytest.mark.parametrize("name", LISTS)
def test_it_trains_and_a_killed_training_ends_with_the_same_bits(name, tmp_path):
    given = LISTS[name]
    start, head = Model().state_dict(), criterion_of(given).state_dict()
    lines, model, criterion = train(tmp_path / "whole", given)
    assert all(torch.isfinite(torch.tensor(lines)))
    moved = dict(model.named_parameters())
    assert any(not torch.equal(start[key], value) for key, value in moved.items())
    for key, value in criterion.named_parameters():
        assert not torch.equal(head[key], value), f"{key} never learnt"
    with pytest.raises(Stop):  # in the second epoch, between two optimiser steps
        train(tmp_path / "cut", given, stop_after=6)
    train(tmp_path / "cut", given)
    whole, cut = (
        dict(flat(load_tree(tmp_path / part / "state" / "last.safetensors")))
        for part in ("whole", "cut")
    )
    assert whole.keys() == cut.keys()
    for key, value in whole.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(cut[key], value, rtol=0, atol=0, equal_nan=True, msg=key)
        else:
            assert cut[key] == value, key


LEARNS = [name for name in LISTS if name != "center"]  # alone it would pull all rows together


@pytest.mark.parametrize("name", LEARNS)
def test_it_puts_rows_of_a_class_nearer(name, tmp_path):
    """A classifier, or a batch of pairs, sorts colours within a few epochs."""

    def gap(model):
        torch.manual_seed(0)
        data = [Pictures()[row, row] for row in range(48) if row != 5]
        images = torch.stack([item["image"] for item in data])
        labels = torch.tensor([item["label"] for item in data])
        rows = torch.nn.functional.normalize(model.eval()(images), dim=1)
        same = labels[:, None] == labels
        cosine = rows @ rows.T
        return (cosine[same].mean() - cosine[~same].mean()).item()

    given = terms(LISTS[name])
    for term in given:
        if takes(term["name"], "start"):
            term["start"] = 0
    _, model, _ = train(tmp_path, given, epochs=12, ema=0.0)
    assert gap(model) > gap(Model()) + 0.02


def test_weights_hold_no_memory_and_load_without(tmp_path):
    given = LISTS["sub-centres, memory and queue"]
    train(tmp_path, given)
    tree = load_tree(tmp_path / "weights.safetensors")
    assert set(tree["model"]) == set(Model().state_dict())
    assert set(tree["criterion"]) == {
        "terms.0.weight",
        "terms.0.wins",
        "terms.0.margin_factor",
    }
    state = load_tree(tmp_path / "state" / "last.safetensors")["trained"]
    assert state["criterion.terms.1.memory"].any()
    assert state["criterion.terms.2.memory"].any()
    assert any(key.startswith("copy.") for key in state)
    again = criterion_of(given)
    load_lasting(again, tree["criterion"])
    assert not again.terms[1].memory.any()
    assert not torch.equal(again.centers(), criterion_of(given).centers())
    with pytest.raises(RuntimeError, match="Missing key.*wins"):
        load_lasting(again, {k: v for k, v in tree["criterion"].items() if "wins" not in k})
    with pytest.raises(RuntimeError, match="Unexpected key.*extra"):
        load_lasting(again, {**tree["criterion"], "extra": torch.zeros(1)})
