"""A finished run opened again: its competition's tables, its embeddings, its model."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config import ConfigError, suggestion
from common.data import augment
from common.data.tables import DataError
from common.data.titles import SPELLINGS
from common.engine.checkpoint import fingerprint, load_tree
from common.engine.extract import ViewConfig, embed_table
from common.engine.inputs import inputs_of
from common.engine.settings import this_device
from common.models.build import Model, build
from common.paths import REPOSITORY
from common.pipeline.vectors import Vectors, load
from common.report.files import read_json
from common.types import Embeddings, Table

TABLES = ("train", "index", "test", "negatives")


@dataclass
class Finished:
    """What a run folder and its competition's files hold.

    Attributes:
        folder: the run folder.
        competition: the folder under `competitions` that made it.
        config: the run's own.
        classes: `(C,)` names of the labels.
        nobody: what label -1 is called; empty where it only means that nobody says.
        tables: by name, in the order of `TABLES`.
        vectors: the embeddings that infer.py left, in the tables' order.
        model: with the run's weights.
        view: how infer.py looked at images, which need not be what config.yaml says.
        device: where the model is.
        spelling: what is done to a title before it is read.
        said: what the competition's reader says about the data.
    """

    folder: Path
    competition: str
    config: Any
    classes: np.ndarray
    nobody: str
    tables: dict[str, Table]
    vectors: Vectors
    model: Model
    view: ViewConfig
    device: torch.device
    spelling: Callable[[str], str]
    said: str

    @classmethod
    def open(cls, folder: str | Path, *, data: str | Path | None = None) -> Finished:
        """Everything of a run in which infer.py has run.

        Args:
            folder: the run folder.
            data: the data folder, where it is not where the run found it.

        Raises:
            ConfigError: no trained run, or of a competition that is not here.
            FileNotFoundError: no embeddings yet, or no data.
            DataError: embeddings of other images or other weights than those that are here.
        """
        folder = Path(folder)
        name = _competition(folder)
        words = [f"run={folder}", *([] if data is None else [f"data.root={data}"])]
        config = _module(name, "config").COMMANDS.infer("", words)
        try:
            found = _module(name, "data").read(config.data)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} (--data FOLDER says where it is)") from None
        every = {key: getattr(found, key, None) for key in TABLES}
        tables = {key: table for key, table in every.items() if table is not None and len(table)}
        again = f"python competitions/{name}/infer.py run={folder}"
        vectors, view = _vectors(folder, tables, found.classes, again)
        model = build(config.model, run=folder)
        model.load_state_dict(load_tree(folder / "weights.safetensors")["model"])
        device = this_device()
        model.to(device).eval()
        return cls(
            folder,
            name,
            config,
            found.classes,
            str(getattr(found, "unknown", "")),
            tables,
            vectors,
            model,
            view,
            device,
            SPELLINGS[getattr(config.data, "titles", "raw")],
            str(found.describe()),
        )

    def of(self, table: str) -> Embeddings:
        """The embeddings of a table."""
        found: Embeddings = getattr(self.vectors, table)
        return found

    def embed(self, path: bytes, title: str) -> torch.Tensor:
        """`(1, D)` unit embedding of one picture, title or both, on the CPU.

        As infer.py embeds them, the picture whole and without a mask. For a model that takes both,
        a picture that cannot be read is grey.
        """
        reads = "tokens" in inputs_of(self.model)
        row = Table(
            np.array(["query"]),
            np.array([path]),
            np.array([-1]),
            titles=[self.spelling(title)] if reads else None,  # type: ignore[arg-type]
            masks=None if self.tables["train"].masks is None else np.zeros((1, 4), np.int64),
        )
        transform = augment.build("none", self.view.size, False, fit=self.view.fit)
        return embed_table(self.model, row, self.view, transform, self.device).vectors


def _competition(folder: Path) -> str:
    """The competition that the run's card names."""
    name = str(read_json(folder / "card.json").get("competition", ""))
    known = sorted(p.parent.name for p in (REPOSITORY / "competitions").glob("*/infer.py"))
    if not name and (folder / "ensemble.yaml").is_file():
        raise ConfigError(f"{folder} is an ensemble: name one of its runs.")
    if not name:
        raise ConfigError(
            f"{folder} is no trained run, it has no card.json that names its competition: train "
            f"with python competitions/NAME/train.py out={folder}; NAME is {', '.join(known)}."
        )
    if name not in known:
        near = suggestion(name, known) or "."
        raise ConfigError(
            f"{folder} is a run of competitions/{name}, which is not here{near} There are: "
            f"{', '.join(known)}."
        )
    return name


def _module(competition: str, name: str) -> Any:
    """A module of a competition's folder, found by name: `common` knows none of them."""
    return importlib.import_module(f"competitions.{competition}.{name}")


def _vectors(
    folder: Path, tables: dict[str, Table], classes: np.ndarray, again: str
) -> tuple[Vectors, ViewConfig]:
    """The stored embeddings, and how they were made; `again` is the command that makes them."""
    for name in tables:
        if not (folder / "embeddings" / f"{name}.safetensors").is_file():
            raise FileNotFoundError(f"{folder} has no embeddings of {name}: first {again}")
    try:
        vectors = load(folder, tables, classes)
    except KeyError as error:
        raise DataError(
            f"The embeddings in {folder} are of other images than the data ({error.args[0]}): name "
            f"the data that they were made from with --data, or make them anew: {again}"
        ) from None
    card = vectors.train.card
    if card.get("weights") != fingerprint(folder / "weights.safetensors"):
        raise DataError(
            f"The embeddings in {folder} are of other weights than those beside them: the run was "
            f"trained again. Make them anew: {again}"
        )
    known = {item.name for item in fields(ViewConfig)}
    view = {key: value for key, value in card["views"].items() if key in known}
    return vectors, ViewConfig(**view, workers=0)
