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

import numpy as np
from torch import nn

from common.config import same_run
from common.data.augment import Augment
from common.data.dataset import ImageDataset
from common.engine import distributed
from common.engine.settings import Stage, this_device
from common.entry import entry, say
from common.losses.total import Total
from common.models.weights import check_name
from common.pipeline import training
from common.pipeline.clean import kept_rows
from common.types import Table

from .config import COMMANDS, Config, criterion_of
from .data import Landmarks, read
from .ranking import Held, quick_scores
from .results import start_run


def main(arguments: list[str]) -> Path:
    """The run folder, trained."""
    config = COMMANDS.train(__doc__ or "", arguments)
    check_name(config.model.backbone)
    folder = Path(str(config.out))
    data = read(config.data)
    held = Held.of(data, config)
    for stage in config.train.stages:
        data.rows(stage.data)  # a subset that is not there: said now, not when its stage begins
    kept = kept_rows(config.data.keep, data.train.ids)
    same_run(config, folder, sections=("seed", "data", "model", "loss", "train"))
    with distributed.processes():
        return train(config, data, held, folder, kept)


def train(
    config: Config, data: Landmarks, held: Held | None, folder: Path, kept: np.ndarray
) -> Path:
    """Fit model and loss to the images that are not held out."""
    run = start_run(config, folder, data, "train")
    say(f"{data.describe()}\n{held.describe() if held else 'trains on everything'}")

    def rows(given: np.ndarray) -> np.ndarray:
        given = given[kept[given]]
        return given if held is None else held.trainable(given, data.train.labels[given])

    def criterion(embedding_dim: int) -> Total:
        labels = data.train.labels[rows(np.arange(len(data.train)))]
        counts = np.bincount(labels, minlength=len(data.classes))
        return criterion_of(config, embedding_dim, len(data.classes), counts)

    def images(stage: Stage, transform: Augment) -> tuple[Table, ImageDataset]:
        table = data.train.take(rows(data.rows(stage.data)))
        return table, ImageDataset(
            table.paths, table.labels, size=stage.size, transform=transform, seed=config.seed
        )

    def validate(model: nn.Module, stage: Stage) -> dict[str, float]:
        if held is None:
            return {}
        return quick_scores(model, held, stage.size, config.view, this_device())

    return training.train(
        config,
        folder,
        run,
        classes=data.classes,
        criterion=criterion,
        images=images,
        validate=validate,
        columns={"GAP": "valid/gap", "mAP@100": "valid/map100"},
        root=data.root,
        label_column="landmark_id",
        competition=COMMANDS.runs.name,
    )


if __name__ == "__main__":
    entry(main)
