"""Train on Humpback's files; leaves a run folder that infer.py reads.

python competitions/whale/train.py [experiments/x.yaml] [key=value ...]
torchrun --nproc-per-node 2 competitions/whale/train.py
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
from common.types import Table

from .config import COMMANDS, Config, criterion_of
from .data import Whale, read
from .material import Material
from .ranking import Held, quick_scores
from .results import start_run


def main(arguments: list[str]) -> Path:
    """The run folder, trained."""
    config = COMMANDS.train(__doc__ or "", arguments)
    check_name(config.model.backbone)
    folder = Path(str(config.out))
    data = read(config.data)
    held = Held.of(data, config)
    same_run(
        config, folder, sections=("seed", "twins", "twin_mask", "data", "model", "loss", "train")
    )
    with distributed.processes():
        return train(config, data, held, folder)


def train(config: Config, data: Whale, held: Held | None, folder: Path) -> Path:
    """Fit model and loss to the images that are not held out."""
    run = start_run(config, folder, data, "train")
    say(f"{data.describe()}\n{held.describe() if held else 'trains on everything'}")
    material = Material.of(data, config, held)
    for text in material.remarks:
        say(text)
    classes = material.classes

    def criterion(embedding_dim: int) -> Total:
        labels = material.table.labels
        counts = np.bincount(labels[labels >= 0], minlength=len(classes))
        return criterion_of(config, embedding_dim, len(classes), counts)

    def images(stage: Stage, transform: Augment) -> tuple[Table, ImageDataset]:
        return material.table, ImageDataset(
            material.table.paths,
            material.table.labels,
            size=stage.size,
            transform=transform,
            seed=config.seed,
            boxes=material.table.boxes,
            mix=material.mix,
            frames=material.table.frames,
            align=config.data.align,
            masks=material.table.masks,
            mask_drop=config.data.mask_drop,
            mirror=material.table.mirror,
        )

    def validate(model: nn.Module, stage: Stage) -> dict[str, float]:
        if held is None:
            return {}
        return quick_scores(model, held, stage.size, config.view, this_device())

    return training.train(
        config,
        folder,
        run,
        classes=classes,
        criterion=criterion,
        images=images,
        validate=validate,
        columns={"MAP@5": "valid/map5", "recall@1": "valid/recall1"},
        root=data.root,
        label_column="Id",
        competition=COMMANDS.runs.name,
    )


if __name__ == "__main__":
    entry(main)
