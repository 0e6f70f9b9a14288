"""From a competition's images to a trained run folder; what differs is handed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.data import (
    augment,
    samplers,
    samplers_grouped,
    samplers_magnet,
    samplers_pairs,
    samplers_quadruplet,
)
from common.data.dataset import ImageDataset, loader
from common.data.draws import frequent
from common.engine import distributed
from common.engine.extract import ViewConfig, embed_table
from common.engine.fit import fit
from common.engine.grouping import Grouping
from common.engine.inputs import rows_for
from common.engine.settings import Stage, this_device, worker_count
from common.entry import say
from common.losses import total
from common.losses.theory import advice
from common.losses.total import Total
from common.models.build import build, save_parts
from common.steps import bind, catalog, help_text
from common.track import Run
from common.types import Embeddings, Table, encode_strings

SAMPLERS = catalog(samplers, samplers_grouped, samplers_magnet, samplers_pairs, samplers_quadruplet)

Images = Callable[[Stage, augment.Augment], tuple[Table, ImageDataset]]


def criterion_of(
    settings: Any, embedding_dim: int, num_classes: int, counts: np.ndarray | None = None
) -> Total:
    """The criterion of the loss list; without `counts` (of images per class) for its centres."""
    known = torch.ones(num_classes) if counts is None else torch.from_numpy(counts)
    state = {"embedding_dim": embedding_dim, "num_classes": num_classes, "class_counts": known}
    return total.build(settings.loss, state)


def steps_help(lists: Mapping[str, Mapping[str, Any]]) -> str:
    """The part of `--help` about names in lists; `lists` are the competition's own, by section."""
    known: dict[str, Mapping[str, Any]] = {
        "loss:": total.KNOWN,
        "train.sampler:": SAMPLERS,
        **lists,
    }
    return "\n\n".join(help_text(section, steps) for section, steps in known.items())


def train(
    config: Any,
    folder: Path,
    run: Run,
    *,
    classes: np.ndarray,
    criterion: Callable[[int], Total],
    images: Images,
    validate: Callable[[nn.Module, Stage], Mapping[str, float]],
    columns: Mapping[str, str],
    root: Path,
    label_column: str,
    competition: str,
    titles: np.ndarray | None = None,
) -> Path:
    """The run folder, with the weights that infer.py reads.

    Args:
        config: of the competition: its seed, model, train, view and out are read.
        folder: the run folder.
        run: where metrics are logged; it is finished here.
        classes: `(C,)` names of the criterion's classes, kept beside the weights.
        criterion: makes the criterion from the model's embedding_dim.
        images: the rows of a stage and their pictures, in one order, for a stage and its
            augmentation; the dataset's `second` is set here. A model of titles takes the table's,
            and looks at no picture that it does not need.
        validate: metrics of the model at a stage's image size; `valid/score` decides which epoch
            is kept.
        columns: what an epoch's line shows: `{"GAP": "valid/gap"}`.
        root: the data folder, where the samplers look for categories.
        label_column: of the labels in a csv of categories.
        competition: for the weights' card.
        titles: what the vocabulary of a text net without weights is learned from.
    """
    device = this_device()
    torch.manual_seed(config.seed)
    model = build(config.model, titles=() if titles is None else titles)
    if distributed.rank() == 0:
        save_parts(model, folder)
    heads = criterion(model.embedding_dim)
    if config.train.stages:
        for text in advice(heads.terms, len(classes), model.embedding_dim):
            say(text)

    def batches(stage: Stage) -> DataLoader[Any]:
        recipe = stage.augment or config.train.augment
        table, pictures = images(stage, augment.build(recipe, stage.size, True))
        if stage.min_images > 1:
            try:
                rows = frequent(np.asarray(pictures.labels), stage.min_images)
            except ValueError as error:  # a recipe of a large set on a small one
                say(f"warning: a stage asks for {error} It shows all classes.")
            else:
                table, pictures = table.take(rows), pictures.take(rows)
        pictures.second = heads.second_view
        data = rows_for(model, pictures, table.titles)
        view = ViewConfig(size=stage.size, fit=config.view.fit, batch_size=config.view.batch_size)
        plain = augment.build("none", stage.size, False, fit=view.fit)

        def embed(part: Table) -> Embeddings:
            return embed_table(model, part, view, plain, device)

        sampler = bind(config.train.sampler, SAMPLERS)(
            labels=data.labels,
            groups=Grouping(
                table,
                classes,
                root=root,
                column=label_column,
                embed=embed,
                centers=heads.centers,
                pair_head=heads.pair_head,
                seed=config.seed,
            ),
            batch_size=config.train.batch_size,
            seed=config.seed,
            rank=distributed.rank(),
            world=distributed.world(),
        )
        return loader(data, sampler, workers=worker_count(config.train.workers), device=device)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        run.log(step, **metrics)
        say(line(metrics, columns))

    def resumed(step: int) -> None:
        say(f"found the state after step {step}: goes on from there")
        run.truncate(step)

    progress = fit(
        model,
        heads,
        config.train,
        folder,
        loader=batches,
        validate=lambda net, stage: dict(validate(net, stage)),
        log=log,
        resumed=resumed,
        card={
            "competition": competition,
            "backbone": model.name,
            **{f"weights/{k}": v for k, v in model.card.items()},
        },
        extra={"classes": encode_strings(classes)},
        seed=config.seed,
    )
    run.summary(minutes=progress.minutes, steps=progress.step, best=progress.best)
    sync = run.finish()
    say(f"run folder: {folder}" + (f"\nto W&B: {sync}" if sync else ""))
    return folder


def line(metrics: Mapping[str, float], columns: Mapping[str, str]) -> str:
    """An epoch in one line of text."""
    parts = [f"epoch {metrics['epoch']:.0f}"]
    shown = {"loss": "train/loss", **columns, "images/s": "train/images_per_second"}
    for name, key in shown.items():
        if key in metrics:
            form = {"loss": ".3f", "images/s": ".0f"}.get(name, ".4f")
            parts.append(f"{name} {metrics[key]:{form}}")
    if "train/unreadable" in metrics:
        parts.append(f"warning: {metrics['train/unreadable']:.0f} images could not be read")
    return "  ".join(parts)
