"""Train on Google Landmarks' files; leaves a run folder that infer.py reads.

python competitions/landmarks/train.py [experiments/x.yaml] [key=value ...]
torchrun --nproc-per-node 2 competitions/landmarks/train.py
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: the folder's own name, so that a copied folder finds itself
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here.parents[1]))
    __package__ = f"competitions.{here.name}"
    __import__(__package__)

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.config import same_run
from common.data import augment
from common.data.dataset import ImageDataset, loader
from common.engine import distributed
from common.engine.extract import ViewConfig, embed_table
from common.engine.fit import fit
from common.engine.grouping import Grouping
from common.engine.settings import Stage, this_device, worker_count
from common.entry import entry, say
from common.losses.theory import advice
from common.models.embedder import Embedder
from common.steps import bind
from common.types import Embeddings, Table, encode_strings

from .config import RUNS, SAMPLERS, Config, command, criterion_of
from .data import Landmarks, read
from .ranking import Held, quick_scores
from .results import start_run


def main(arguments: list[str]) -> Path:
    """The run folder, trained."""
    config = command(__doc__ or "", arguments)
    folder = Path(str(config.out))
    data = read(config.data)
    held = Held.of(data, config)
    for stage in config.train.stages:
        data.rows(stage.data)  # a subset that is not there: said now, not when its stage begins
    same_run(config, folder, sections=("seed", "data", "model", "loss", "train"))
    with distributed.processes():
        return train(config, data, held, folder)


def train(config: Config, data: Landmarks, held: Held | None, folder: Path) -> Path:
    """Build model, criterion and loaders, and fit them."""
    run = start_run(config, folder, data, "train")
    say(f"{data.describe()}\n{held.describe() if held else 'trains on everything'}")
    device = this_device()
    torch.manual_seed(config.seed)
    model = Embedder(config.model)
    rows = np.arange(len(data.train))
    rows = rows if held is None else held.trainable(rows, data.train.labels)
    counts = np.bincount(data.train.labels[rows], minlength=len(data.classes))
    criterion = criterion_of(config, model.embedding_dim, len(data.classes), counts)
    if config.train.stages:
        for text in advice(criterion.terms, len(data.classes), model.embedding_dim):
            say(text)

    def batches(stage: Stage) -> DataLoader[Any]:
        rows = data.rows(stage.data)
        if held is not None:
            rows = held.trainable(rows, data.train.labels[rows])
        table = data.train.take(rows)
        transform = augment.build(stage.augment or config.train.augment, stage.size, True)
        images = ImageDataset(
            table.paths,
            table.labels,
            size=stage.size,
            transform=transform,
            seed=config.seed,
            second=criterion.second_view,
        )
        view = ViewConfig(size=stage.size, fit=config.view.fit, batch_size=config.view.batch_size)
        plain = augment.build("none", stage.size, False, fit=view.fit)

        def embed(table: Table) -> Embeddings:
            return embed_table(model, table, view, plain, device)

        sampler = bind(config.train.sampler, SAMPLERS)(
            labels=table.labels,
            groups=Grouping(
                table,
                data.classes,
                root=data.root,
                column="landmark_id",
                embed=embed,
                centers=criterion.centers,
                seed=config.seed,
            ),
            batch_size=config.train.batch_size,
            seed=config.seed,
            rank=distributed.rank(),
            world=distributed.world(),
        )
        workers = worker_count(config.train.workers)
        return loader(images, sampler, workers=workers, device=device)

    def validate(model: nn.Module, stage: Stage) -> dict[str, float]:
        metrics = criterion.statistics()
        return metrics | (
            quick_scores(model, held, stage.size, config.view, device) if held else {}
        )

    def log(step: int, metrics: dict[str, float]) -> None:
        run.log(step, **metrics)
        say(line(metrics))

    def resumed(step: int) -> None:
        say(f"found the state after step {step}: goes on from there")
        run.truncate(step)

    progress = fit(
        model,
        criterion,
        config.train,
        folder,
        loader=batches,
        validate=validate,
        log=log,
        resumed=resumed,
        card={
            "competition": RUNS.name,
            "backbone": config.model.backbone,
            **{f"weights/{k}": v for k, v in model.card.items()},
        },
        extra={"classes": encode_strings(data.classes)},
        seed=config.seed,
    )
    run.summary(minutes=progress.minutes, steps=progress.step, best=progress.best)
    say(f"run folder: {folder}")
    run.finish()
    return folder


def line(metrics: dict[str, float]) -> str:
    """An epoch in one line of text."""
    parts = [f"epoch {metrics['epoch']:.0f}"]
    for name, key, form in (
        ("loss", "train/loss", ".3f"),
        ("GAP", "valid/gap", ".4f"),
        ("mAP@100", "valid/map100", ".4f"),
        ("images/s", "train/images_per_second", ".0f"),
    ):
        if key in metrics:
            parts.append(f"{name} {metrics[key]:{form}}")
    if "train/unreadable" in metrics:
        parts.append(f"warning: {metrics['train/unreadable']:.0f} images could not be read")
    return "  ".join(parts)


if __name__ == "__main__":
    entry(main)
