"""Train an encoder of pictures, titles or both; leaves a run folder that infer.py reads.

python competitions/shopee/train.py [experiments/x.yaml] [key=value ...]
python competitions/shopee/train.py experiments/text.yaml
torchrun --nproc-per-node 2 competitions/shopee/train.py
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
from .data import Shopee, read
from .held import Held
from .matching import quick_scores
from .results import start_run


def main(arguments: list[str]) -> Path:
    """The run folder, trained."""
    config = COMMANDS.train(__doc__ or "", arguments)
    if config.model.uses != "text":
        check_name(config.model.image.backbone)
    folder = Path(str(config.out))
    data = read(config.data)
    held = Held.of(data, config.data)
    same_run(config, folder, sections=("seed", "data", "model", "loss", "train"))
    with distributed.processes():
        return train(config, data, held, folder)


def train(config: Config, data: Shopee, held: Held | None, folder: Path) -> Path:
    """Fit model and loss to the listings that are not held out."""
    run = start_run(config, folder, data, "train")
    say(f"{data.describe()}\n{held.describe() if held else 'trains on everything'}")
    table = data.train if held is None else data.train.take(held.train)
    known, labels = np.unique(table.labels, return_inverse=True)
    table.labels = labels.astype(np.int64)
    classes = data.classes[known]

    def criterion(embedding_dim: int) -> Total:
        return criterion_of(config, embedding_dim, len(classes), np.bincount(table.labels))

    def images(stage: Stage, transform: Augment) -> tuple[Table, ImageDataset]:
        return table, ImageDataset(
            table.paths, table.labels, size=stage.size, transform=transform, seed=config.seed
        )

    def validate(model: nn.Module, stage: Stage) -> dict[str, float]:
        if held is None:
            return {}
        return quick_scores(model, data, held, stage.size, config.view, this_device())

    return training.train(
        config,
        folder,
        run,
        classes=classes,
        criterion=criterion,
        images=images,
        validate=validate,
        columns={"F1": "valid/f1", "recall@1": "valid/recall1"},
        root=data.root,
        label_column="label_group",
        competition=COMMANDS.runs.name,
        titles=table.titles,
    )


if __name__ == "__main__":
    entry(main)
