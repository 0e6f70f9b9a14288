"""The training loop: it learns, it resumes with the same bits, two processes equal one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common.engine.checkpoint import load_tree
from common.engine.fit import fit
from common.engine.optim import lr_factor
from common.engine.settings import FitConfig, Stage, resolve_precision, worker_count
from common.losses.classify import LinearSoftmax
from common.losses.total import Total

CLASSES, IMAGES = 4, 48
ROOT = Path(__file__).parents[1]


class Pictures(Dataset):
    """Random pictures whose colour says the class; augmented by noise from the stream number."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.labels = np.arange(IMAGES) % CLASSES
        self.images = rng.integers(0, 60, (IMAGES, 3, 8, 8)).astype(np.uint8)
        coloured = np.flatnonzero(self.labels < 3)
        self.images[coloured, self.labels[coloured]] += 60
        self.labels[5] = -1

    def __len__(self):
        return IMAGES

    def __getitem__(self, key):
        row, stream = key
        noise = np.random.default_rng(stream).integers(0, 20, (3, 8, 8)).astype(np.uint8)
        return {
            "image": torch.from_numpy(self.images[row] + noise),
            "label": int(self.labels[row]),
        }


class Batches:
    """Every picture once an epoch; a rank takes its slice of each batch."""

    def __init__(self, size, rank=0, world=1):
        self.size, self.rank, self.world = size, rank, world
        self.set_epoch(0)

    def set_epoch(self, epoch, start=0):
        self.epoch, self.start = epoch, start

    def __len__(self):
        return -(-IMAGES // self.size)

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(IMAGES)
        for i, rows in enumerate(np.array_split(order, len(self))):
            if i >= self.start:
                cut = np.array_split(np.arange(len(rows)), self.world)[self.rank]
                yield [(int(rows[j]), self.epoch * 1000 + i * 100 + int(j)) for j in cut]


class Model(nn.Module):
    def __init__(self, norm=True):
        super().__init__()
        torch.manual_seed(0)
        middle = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), middle, nn.ReLU())
        self.neck = nn.Sequential(nn.Flatten(), nn.Dropout(0.2 if norm else 0.0), nn.Linear(216, 5))
        self.embedding_dim = 5

    def forward(self, images):
        return self.neck(self.backbone(images.float() / 255))


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(5, CLASSES)
        self.told = []

    def schedule(self, progress):
        self.told.append(progress)

    def forward(self, embeddings, labels):
        valid = labels >= 0
        return nn.functional.cross_entropy(
            self.linear(embeddings[valid].float()), labels[valid], reduction="sum"
        ) / valid.sum().clamp_min(1)


def joint():
    """Two terms whose means divide by different things: rows, and class weights."""
    counts = [30, 2, 9, 7]
    weighted = LinearSoftmax(5, CLASSES, counts, class_weights="1/n", seed=0)
    return Total([Head(), weighted], [1.0, 0.5])


def run(folder, config=None, *, log=None, validate=None, model=None, head=None, **options):
    config = config or FitConfig(
        stages=[Stage(epochs=2, size=8), Stage(epochs=1, size=8, lr=0.5)],
        batch_size=8,
        lr=1e-2,
        head_lr=1e-2,
        ema=0.9,
        precision="fp32",
    )
    model, head = model or Model(), head or Head()
    lines = []
    progress = fit(
        model,
        head,
        config,
        Path(folder),
        loader=lambda stage: DataLoader(Pictures(), batch_sampler=Batches(config.batch_size)),
        validate=validate or (lambda model, stage: {"valid/score": 0.5}),
        log=log or (lambda step, metrics: lines.append((step, metrics))),
        **options,
    )
    return progress, model, lines


def weights(folder):
    tree = load_tree(Path(folder) / "weights.safetensors")
    return {**tree["model"], **{f"head.{k}": v for k, v in tree["criterion"].items()}}


def test_it_learns_and_logs_an_epoch_a_line(tmp_path):
    config = FitConfig(stages=[Stage(epochs=12, size=8)], batch_size=8, lr=1e-2, head_lr=3e-2)
    head = Head()
    progress, _, lines = run(tmp_path, config, head=head)
    assert len(lines) == 12
    assert lines[-1][1]["train/loss"] < 0.5 * lines[0][1]["train/loss"]
    assert lines[-1][1]["epoch"] == 12
    assert progress.step == lines[-1][0] == 12 * 6
    assert head.told[0] == 0
    assert head.told == sorted(head.told)
    assert head.told[-1] < 1


def test_overfits_one_batch(tmp_path):
    config = FitConfig(
        stages=[Stage(epochs=100, size=8)], batch_size=IMAGES, lr=5e-3, head_lr=5e-3, clip=0.0
    )
    _, _, lines = run(tmp_path, config, model=Model(norm=False))
    assert lines[-1][1]["train/loss"] < 0.3  # of 1.39 by chance, through augmentation noise


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("when", ["logging", "validating", "middle"])
def test_a_killed_training_ends_with_the_same_bits(tmp_path, when):
    whole, _, lines = run(tmp_path / "whole")
    calls = []

    def killer(*_):
        calls.append(1)
        if len(calls) == 2:
            raise Stop
        return {"valid/score": 0.5}

    class Killer(Head):
        def forward(self, embeddings, labels):
            if self.training and self.told[-1] > 0.4:
                raise Stop
            return super().forward(embeddings, labels)

    options = {
        "logging": {"log": killer},
        "validating": {"validate": killer},
        "middle": {"head": Killer()},
    }[when]
    with pytest.raises(Stop):
        config = None
        if when == "middle":
            config = FitConfig(
                stages=[Stage(epochs=2, size=8), Stage(epochs=1, size=8, lr=0.5)],
                batch_size=8,
                lr=1e-2,
                head_lr=1e-2,
                ema=0.9,
                precision="fp32",
                save_minutes=0.0,
            )
        run(tmp_path / "cut", config, **options)
    resumed_at = []
    again, _, later = run(tmp_path / "cut", resumed=resumed_at.append)
    assert len(resumed_at) == 1
    assert later[-1][1]["train/loss"] == lines[-1][1]["train/loss"]
    mine, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert again.step == whole.step


def test_a_finished_training_is_left_alone(tmp_path):
    run(tmp_path)
    before = (tmp_path / "weights.safetensors").read_bytes()
    _, _, lines = run(tmp_path)
    assert lines == []
    assert (tmp_path / "weights.safetensors").read_bytes() == before


def test_the_best_epoch_is_kept_or_the_last(tmp_path):
    def validate_with(scores):
        rest = iter(scores)
        return lambda model, stage: {"valid/score": next(rest)}

    for keep, epoch in (("best", 2), ("last", 3)):
        config = FitConfig(stages=[Stage(epochs=3, size=8)], batch_size=8, keep=keep)
        progress, _, _ = run(tmp_path / keep, config, validate=validate_with([0.1, 0.9, 0.5]))
        assert progress.best == 0.9
        assert load_tree(tmp_path / keep / "weights.safetensors")["card"]["epoch"] == epoch


def test_the_average_is_what_is_kept_and_not_what_goes_on(tmp_path):
    _, model, _ = run(tmp_path)
    average = load_tree(tmp_path / "state" / "last.safetensors")["average"]
    kept = weights(tmp_path)["neck.2.weight"]
    assert torch.equal(kept, average["model.neck.2.weight"])
    assert not torch.equal(kept, model.neck[2].weight)


def test_both_rates_are_logged(tmp_path):
    config = FitConfig(
        stages=[Stage(epochs=1, size=8), Stage(epochs=1, size=8, lr=0.5)],
        batch_size=8,
        lr=1e-3,
        head_lr=1e-2,
        warmup=0.0,
    )
    _, _, lines = run(tmp_path, config)
    factor = lr_factor(5, 6, warmup=0.0)  # of the last of six steps
    for (_, metrics), share in zip(lines, (1.0, 0.5), strict=True):
        assert metrics["train/lr"] == pytest.approx(1e-3 * share * factor)
        assert metrics["train/head_lr"] == pytest.approx(1e-2 * share * factor)


def test_without_epochs_the_pretrained_weights_are_written(tmp_path):
    config = FitConfig(stages=[])
    _, model, _ = run(tmp_path, config)
    assert torch.equal(weights(tmp_path)["neck.2.weight"], model.neck[2].weight)


@pytest.mark.parametrize("times", [2, 4])  # with 4 the last step has 2 of the 6 batches
def test_accumulation_equals_a_larger_batch(tmp_path, times):
    ends = []
    for size, accumulate in ((8 * times, 1), (8, times)):
        config = FitConfig(
            stages=[Stage(epochs=1, size=8)],
            batch_size=size,
            accumulate=accumulate,
            optimizer="sgd",
            clip=0.0,
            warmup=0.0,
        )
        folder = tmp_path / str(size)
        images = Pictures()
        images.labels[5] = 1  # equal counts of valid labels
        model, head = Model(norm=False), Head()
        fit(
            model,
            head,
            config,
            folder,
            loader=lambda stage, c=config, i=images: DataLoader(
                i, batch_sampler=Plain(c.batch_size)
            ),
            validate=lambda model, stage: {},
            log=lambda step, metrics: None,
        )
        ends.append(model.neck[2].weight.detach())
    assert torch.allclose(ends[0], ends[1], atol=1e-6)


class Plain(Batches):
    """Rows in order, the stream is the row: the same pixels at any batch size."""

    def __iter__(self):
        for start in range(0, IMAGES, self.size):
            yield [(row, row) for row in range(start, min(start + self.size, IMAGES))]


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    class Broken(Head):
        def forward(self, embeddings, labels):
            return super().forward(embeddings, labels) * float("nan")

    with pytest.raises(ValueError, match="not finite by step 6: lower train.lr"):
        run(tmp_path, head=Broken())


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    class Breaking(Head):
        def forward(self, embeddings, labels):
            return super().forward(embeddings, labels) * (1.0 if len(self.told) < 3 else torch.nan)

    config = FitConfig(stages=[Stage(epochs=1, size=8)], batch_size=8, save_minutes=0.0)
    with pytest.raises(ValueError, match="not finite by step 3"):
        run(tmp_path, config, head=Breaking())
    saved = load_tree(tmp_path / "state" / "last.safetensors")
    assert saved["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in saved["trained"].values())


def test_ctrl_c_saves_first(tmp_path):
    class Interrupting(Head):
        def forward(self, embeddings, labels):
            if self.training and len(self.told) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(embeddings, labels)

    with pytest.raises(KeyboardInterrupt, match="after step 4; the state is saved"):
        run(tmp_path, head=Interrupting())
    progress = load_tree(tmp_path / "state" / "last.safetensors")["progress"]
    assert progress["batch"] == 4
    assert progress["minutes"] > 0


def test_bf16_autocast_trains(tmp_path):
    config = FitConfig(stages=[Stage(epochs=1, size=8)], batch_size=8, precision="bf16")
    _, model, lines = run(tmp_path, config)
    assert np.isfinite(lines[0][1]["train/loss"])
    assert model.neck[2].weight.dtype == torch.float32


def test_settings():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == "fp32"
    with pytest.raises(ValueError, match="choose auto"):
        resolve_precision("fp8", cpu)
    with pytest.raises(ValueError, match="needs a GPU"):
        resolve_precision("fp16", cpu)
    assert worker_count(0) == 0
    assert 1 <= worker_count(-1) <= 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"keep": "first"}, "train.keep='first': choose best or last"),
        ({"accumulate": 0}, "train.accumulate=0: it must be at least 1"),
        ({"warmup": 5}, "train.warmup=5: it must be a share"),
        ({"clip": -1.0}, "train.clip=-1.0: it must be positive"),
        ({"ema": 1.0}, "train.ema=1.0: it must be a decay"),
    ],
)
def test_settings_that_make_no_sense(setting, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**setting)


def test_two_processes_train_like_one(tmp_path):
    """One step with the same global batch, BatchNorm included: the same gradient."""
    script = ROOT / "tests" / "two_processes.py"
    base = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for world in (1, 2):
        command = [*base, str(world), str(script), str(tmp_path / str(world))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    start = {**Model().state_dict(), **{f"head.{k}": v for k, v in joint().state_dict().items()}}
    for name, value in one.items():
        if value.is_floating_point():
            assert torch.allclose(value, two[name], atol=1e-6), name
            assert not torch.equal(value, start[name]), name
    lines = [load_tree(tmp_path / w / f"rank_{r}") for w, r in (("1", 0), ("2", 0), ("2", 1))]
    for name in ("train/loss", "loss/head", "loss/linear_softmax", "train/gradient_norm"):
        assert all(line[name] == pytest.approx(lines[0][name], rel=1e-5) for line in lines), name
