"""Margin softmax against the products it cannot avoid and pytorch-metric-learning; sampled classes.

    python -m tests.bench.margin [--classes 81313] [--rows 64] [--dim 512] [--rounds 5]

Everything runs in one process, in turns; a time is the best of the rounds (others may
use the machine), memory the largest
sum of live allocations beyond the weight and its gradient. "products" are X W^T, G W and G^T X.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from pytorch_metric_learning import losses as pml
from torch.profiler import ProfilerActivity, profile

from common.engine.optim import build_optimizer, coalesced
from common.engine.settings import this_device
from common.environment import machine
from common.losses import cosine
from common.losses.adaptive import AdaCos, AdaFace, CurricularFace
from common.losses.margin import ArcFace, CosFace, SubCenterArcFace
from common.losses.partial_fc import PartialFC
from common.losses.proxies import ClassCircle

RATES = (1.0, 0.5, 0.1)


def seconds(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Best seconds of each step; the steps take turns, so a busy moment hits all of them."""
    device = this_device()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first is for warming up
                times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


def peak_bytes(step: Callable[[], object]) -> int:
    """Largest sum of live allocations made by `step`."""
    if this_device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    usual, cosine.LARGE = cosine.LARGE, 1 << 62  # the profiler sees torch's memory only
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    cosine.LARGE = usual
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return int(max(np.cumsum([e.nbytes() for e in events])))


def both_ways(head: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of a fresh step."""

    def step() -> None:
        head.zero_grad()
        x.grad = None
        head(x, labels).backward()

    return step


def products(rows: torch.Tensor, count: int) -> Callable[[], object]:
    """The three matrix products of `count` centres."""
    weight = torch.randn(count, rows.shape[1], device=rows.device)
    grad = torch.randn(len(rows), count, device=rows.device)
    return lambda: (rows @ weight.T, grad @ weight, grad.T @ rows)


def heads(dim: int, classes: int) -> Iterator[tuple[str, int, torch.nn.Module]]:
    """Name, centres per class and head of each row."""
    yield "SubCenterArcFace", 3, SubCenterArcFace(dim, classes, k=3)
    yield "SubCenterArcFace, smoothing", 3, SubCenterArcFace(dim, classes, 3, label_smoothing=0.1)
    for make in (CosFace, ArcFace, AdaCos, AdaFace, CurricularFace, ClassCircle):
        yield make.__name__, 1, make(dim, classes)
    yield "AdaCos, dynamic", 1, AdaCos(dim, classes, dynamic=True)


def compare_heads(dim: int, classes: int, rows: int, rounds: int) -> None:
    """A line per head: its time, its ratio to the bare products, its memory."""
    x, labels = inputs(dim, classes, rows)
    for name, k, head in heads(dim, classes):
        step = both_ways(head.to(x.device), x, labels)
        steps = {"products": products(x.detach(), classes * k), "ours": step}
        other = None
        if name == "SubCenterArcFace":
            other = pml.SubCenterArcFaceLoss(
                num_classes=classes, embedding_size=dim, sub_centers=k
            ).to(x.device)
            steps["theirs"] = both_ways(other, x, labels)
        found = seconds(steps, rounds)
        head.zero_grad()
        extra = peak_bytes(step) - 4 * classes * k * dim
        print(
            f"{name:28s} K={k}  products {found['products'] * 1e3:6.0f} ms  "
            f"head {found['ours'] * 1e3:6.0f} ms  ratio {found['ours'] / found['products']:.2f}  "
            f"memory {extra / 1e6:.0f} MB",
            flush=True,
        )
        if other is not None:
            other.zero_grad()
            extra = peak_bytes(steps["theirs"]) - 4 * classes * k * dim
            print(
                f"{'pytorch-metric-learning':28s} K={k}  {found['theirs'] * 1e3:.0f} ms, "
                f"{found['theirs'] / found['ours']:.1f} times ours  memory {extra / 1e6:.0f} MB",
                flush=True,
            )


def compare_rates(dim: int, classes: int, rows: int, rounds: int) -> None:
    """A line per sampling rate: forward and backward, and the same with AdamW's step."""
    x, labels = inputs(dim, classes, rows)
    whole: dict[str, float] = {}
    for rate in RATES:
        part = PartialFC(dim, classes, {"name": "sub_center_arcface", "k": 3}, rate).to(x.device)
        groups = [{"params": [part.head.weight], "lr": 1e-3, "weight_decay": 1e-4}]
        optimizer = build_optimizer("adamw", groups)
        step = both_ways(part, x, labels)

        def train(step: Callable[[], None] = step, optimizer=optimizer) -> None:
            step()
            optimizer.step()

        found = seconds({"step": step, "train": train}, rounds)
        whole = whole or found
        part.zero_grad()
        extra = peak_bytes(step)
        gradient = part.head.weight.grad
        own = coalesced(gradient)._values() if gradient.is_sparse else gradient
        print(
            f"partial_fc, rate {rate:<4}  head {found['step'] * 1e3:6.0f} ms, "
            f"{found['step'] / whole['step']:.2f} of all  "
            f"with AdamW {found['train'] * 1e3:6.0f} ms, "
            f"{found['train'] / whole['train']:.2f} of all  "
            f"memory beyond the gradient {(extra - 4 * own.numel()) / 1e6:.0f} MB",
            flush=True,
        )


def inputs(dim: int, classes: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and labels, the same each time."""
    torch.manual_seed(0)
    device = this_device()
    x = torch.randn(rows, dim, device=device, requires_grad=True)
    return x, torch.randint(0, classes, (rows,), device=device)


def main() -> None:
    """Print a line per head and per rate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--classes", type=int, default=81_313)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    size = given.dim, given.classes, given.rows, given.rounds
    print(f"C={given.classes}, D={given.dim}, B={given.rows}, float32, forward and backward")
    compare_heads(*size)
    compare_rates(*size)
    print(f"{machine()['cpu']}, {machine()['cores']} cores, torch {torch.__version__}")


if __name__ == "__main__":
    main()
