"""How much the training loop costs over bare forward + backward + step of the same model and batch.

    python -m tests.bench.loop_overhead [steps]

Both run in one process, in turns, on batches that are in memory; prints both times and the ratio,
and what the statistics of the log take of a step.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from common.engine.fit import fit
from common.engine.optim import build_optimizer, parameter_groups
from common.engine.settings import FitConfig, Stage, this_device
from common.engine.tally import Tally
from common.environment import machine
from common.losses.total import Total, build
from common.models.embedder import Embedder, ModelConfig

BATCH, SIZE, CLASSES, ROUNDS = 16, 128, 1000, 5


class Steps:
    """The same batch over and over."""

    def __init__(self, count: int) -> None:
        self.count = count

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Nothing depends on the epoch."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        return iter([0] * self.count)


class InMemory(torch.utils.data.Dataset):
    """Hands out one batch, already collated."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.batch = {"image": images, "label": labels}

    def __getitems__(self, keys):
        return self.batch


def make(seed: int = 0) -> tuple[Embedder, Total]:
    """Model and head, the same each time."""
    torch.manual_seed(seed)
    model = Embedder(ModelConfig(weights="none", neck="fc_bn"))
    state = {"embedding_dim": model.embedding_dim, "num_classes": CLASSES, "class_counts": None}
    return model, build([{"name": "sub_center_arcface", "k": 3}], state)


def bare(images: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    """Seconds per step of a loop with nothing but the step."""
    device = this_device()
    model, head = (module.to(device) for module in make())
    groups = parameter_groups(model, head, lr=1e-4, head_lr=1e-3, weight_decay=1e-4)
    optimizer = build_optimizer("adamw", groups)
    images, labels = images.to(device), labels.to(device)
    model.train()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        loss = head(model(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 5.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def looped(images: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    """Seconds per step of `fit` on the same batch."""
    model, head = make()
    times = []
    forward = model.forward

    def stamped(batch: torch.Tensor) -> torch.Tensor:
        times.append(time.perf_counter())
        return forward(batch)

    model.forward = stamped
    config = FitConfig(
        stages=[Stage(epochs=1, size=SIZE)], batch_size=BATCH, precision="fp32", validate=0
    )
    data = DataLoader(
        InMemory(images, labels), batch_sampler=Steps(steps), collate_fn=lambda batch: batch
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            head,
            config,
            Path(folder),
            loader=lambda stage: data,
            validate=lambda model, stage: {},
            log=lambda step, metrics: None,
        )
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def watched(labels: torch.Tensor, times: int = 200) -> tuple[float, float]:
    """Seconds of this thread that the statistics of a batch take, and the head's forward pass."""
    device = this_device()
    _, head = make()
    head, labels = head.to(device), labels.to(device)
    rows = torch.randn(len(labels), head.terms[0].embedding_dim, device=device)
    tally, spent = Tally(device), [0.0, 0.0]
    for _ in range(times):
        for place, action in enumerate(
            (lambda: head(rows, labels), lambda: tally.add(rows.new_ones(()), head.watch()))
        ):
            start = time.thread_time()
            action()
            spent[place] += time.thread_time() - start
    return spent[1] / times, spent[0] / times


def main() -> None:
    """Print the two times, round by round, and the median ratio."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(BATCH)
    ratios = []
    bare(images, labels, 3)  # warm-up
    for number in range(ROUNDS):
        one, two = bare(images, labels, steps), looped(images, labels, steps)
        ratios.append(two / one)
        print(f"round {number + 1}: bare {one * 1e3:7.1f} ms  fit {two * 1e3:7.1f} ms", flush=True)
    seconds, forward = watched(labels)
    print(f"statistics {seconds * 1e3:.2f} ms a step, the head's forward {forward * 1e3:.2f} ms")
    print(f"fit / bare, median of {ROUNDS}: {statistics.median(ratios):.3f}")
    print(f"{machine()['cpu']}, {machine()['cores']} cores, torch {torch.__version__}")


if __name__ == "__main__":
    main()
