"""The `train:` section of every competition's config."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Stage:
    """A part of the training with its own images: winners go clean -> extended, small -> large."""

    epochs: int = 1
    size: int = 224  # image side in pixels
    data: str = "clean"  # which rows: clean | extended | full
    min_images: int = 0  # only classes with so many images, all if none has; the head keeps all
    lr: float = 1.0  # factor on train.lr and train.head_lr
    augment: str | None = None  # recipe for this stage, when it differs from train.augment


@dataclass
class FitConfig:
    """The `train:` section."""

    stages: list[Stage] = field(default_factory=lambda: [Stage()])
    batch_size: int = 32  # images per step over all processes
    accumulate: int = 1  # steps whose gradients are averaged before the optimiser moves
    sampler: dict[str, Any] = field(default_factory=lambda: {"name": "shuffled"})
    augment: str = "crop"
    optimizer: str = "adamw"  # adamw | adam | sgd
    lr: float = 1e-4  # backbone
    head_lr: float = 1e-3  # neck, pooling and heads
    weight_decay: float = 1e-4
    warmup: float = 0.1  # share of each stage's steps
    min_lr: float = 0.0  # share of the peak at the end of a stage
    clip: float = 5.0  # gradient norm; 0 = off
    ema: float = 0.0  # decay of the weight average; 0 = off
    swa: int = 0  # mean of the weights after so many last epochs, in place of ema's; 0 = off
    swa_at: str = "epoch"  # epoch | stage: so many last epochs, or last ends of stages (cycles)
    precision: str = "auto"  # auto | fp32 | bf16 | fp16
    workers: int = -1  # loader processes; -1 = as many as the cores allow, at most 4
    save_minutes: float = 10.0  # also save in the middle of an epoch this often
    validate: int = 1  # every so many epochs; 0 = never
    keep: str = "best"  # which weights infer reads: best | last

    def __post_init__(self) -> None:
        if self.keep not in ("best", "last"):
            raise ValueError(f"train.keep={self.keep!r}: choose best or last.")
        if self.swa_at not in ("epoch", "stage"):
            raise ValueError(f"train.swa_at={self.swa_at!r}: choose epoch or stage.")
        for name, fits, wanted in (
            ("accumulate", self.accumulate >= 1, "at least 1"),
            ("warmup", 0 <= self.warmup <= 1, "a share, 0 to 1"),
            ("clip", self.clip >= 0, "positive, or 0 for off"),
            ("ema", 0 <= self.ema < 1, "a decay in [0, 1)"),
            ("swa", self.swa >= 0, "a number of epochs, or 0 for off"),
        ):
            if not fits:
                raise ValueError(f"train.{name}={getattr(self, name)}: it must be {wanted}.")


def resolve_precision(name: str, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16` for a setting that may be `auto`.

    `auto` is bf16 from compute capability 8.0, fp16 below (a T4 only emulates bf16), float32 on
    the CPU.
    """
    if name == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if name not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"precision={name!r}: choose auto, fp32, bf16 or fp16.")
    if name == "fp16" and device.type == "cpu":
        raise ValueError("precision=fp16 needs a GPU: use auto, fp32 or bf16 here.")
    return name


def this_device() -> torch.device:
    """The GPU of this process (torchrun numbers them), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def worker_count(workers: int) -> int:
    """Loader processes for a setting that may be -1: the cores this process may use, at most 4."""
    if workers >= 0:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(4, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
