"""A run's embeddings of every table, made by its model or read from its folder, and class centres.

Files: `<table>.safetensors`, `centers.safetensors` and `pair_head.safetensors` in the run folder's
`embeddings/`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import blend
from common.clock import Clock
from common.data import augment
from common.engine import distributed
from common.engine.checkpoint import fingerprint, load_lasting, load_tree, save_tree
from common.engine.extract import ViewConfig, extract, two_sides
from common.entry import say
from common.losses.total import Total
from common.models.build import Config, build
from common.rerank import pair_scores
from common.rerank.pair_scores import PairScores
from common.retrieval.whiten import Whitening
from common.types import Embeddings, Table, decode_strings, encode_strings


@dataclass
class Vectors:
    """One run's (or one blend's) embeddings of every table, in the tables' order.

    Attributes:
        train: of the train images.
        test: of the test images.
        index: of a gallery of its own, for retrieval.
        negatives: of images known to be of no class.
        centers: `(C, K, D)` unit class centres, zeros for a class that training did not have; None
            without a head that has them.
        pair_head: the trained comparison of two vectors; None without a loss that has one.
    """

    train: Embeddings
    test: Embeddings
    index: Embeddings | None = None
    negatives: Embeddings | None = None
    centers: torch.Tensor | None = None
    pair_head: PairScores | None = None

    def mapped(self, change: Callable[[Embeddings], Embeddings]) -> Vectors:
        """Every table's embeddings changed, without what no longer fits: centres, pair head."""
        return Vectors(
            change(self.train),
            change(self.test),
            None if self.index is None else change(self.index),
            None if self.negatives is None else change(self.negatives),
        )


def embed(
    folder: Path,
    model_config: Config,
    view: ViewConfig,
    tables: Mapping[str, Table | None],
    classes: np.ndarray,
    criterion: Callable[[int, int], Total],
    device: torch.device,
    *,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    clock: Clock | None = None,
) -> Vectors:
    """The embeddings of every table by a run's weights; files that are finished are only read.

    Args:
        folder: the run folder.
        model_config: how the model is built.
        view: how images are looked at.
        tables: what to embed, by the field of `Vectors`.
        classes: `(C,)` names of the classes that the centres are wanted for.
        criterion: makes the run's criterion from embedding_dim and number of classes.
        device: where the model runs.
        change: made of the `(C, K, D)` centres before they are kept, where classes or vectors are
            not those of training.
        clock: times each table.
    """
    clock = Clock() if clock is None else clock
    weights = folder / "weights.safetensors"
    tree = load_tree(weights)
    known = decode_strings(tree["classes"])
    model = build(model_config, run=folder)
    model.load_state_dict(tree["model"])
    model.to(device).eval()
    heads = criterion(model.embedding_dim, len(known))
    load_lasting(heads, tree["criterion"])
    transform = augment.build("none", view.size, False, fit=view.fit)
    card = {"weights": fingerprint(weights)}
    vectors = {}
    for name, table in tables.items():
        if table is None:
            continue
        path = folder / "embeddings" / f"{name}.safetensors"
        done = "read" if path.is_file() else "embed"
        with clock(f"{done} {name}", len(table)):
            vectors[name] = extract(model, table, path, view, transform, device, card=card)
        if lost := vectors[name].card["unreadable"]:
            zero = (~vectors[name].vectors.any(1)).nonzero()
            fate = (
                f"the first is {os.fsdecode(table.paths[int(zero[0])])}: they match nothing and "
                "keep their rows."
                if len(zero)
                else "they match by their titles alone."
            )
            say(f"warning: {lost} of {len(table)} {name} images cannot be read, {fate}")
    centers = heads.centers()
    if centers is not None:
        centers = align(centers.cpu(), known, classes)
        centers = centers if change is None else change(centers)
        if distributed.rank() == 0:
            tree = {"centers": centers, "classes": encode_strings(classes[: len(centers)])}
            save_tree(folder / "embeddings" / "centers.safetensors", tree)
    pairs, file = heads.pair_head(), folder / "embeddings" / "pair_head.safetensors"
    compare = None if pairs is None else PairScores([pairs.cpu()], [1.0])
    if compare is not None:
        compare = compare.doubled() if two_sides(model, view) else compare
        if distributed.rank() == 0:
            compare.save(file)
    return Vectors(**vectors, centers=centers, pair_head=compare)


def load(folder: Path, tables: Mapping[str, Table | None], classes: np.ndarray) -> Vectors:
    """The embeddings that infer.py left in a run folder, in the order of the tables.

    Raises:
        FileNotFoundError: infer.py has not run there.
        KeyError: they are of other images.
    """
    vectors = {}
    for name, table in tables.items():
        if table is not None:
            path = folder / "embeddings" / f"{name}.safetensors"
            vectors[name] = Embeddings.load(path).select(table.ids)
    path, centers = folder / "embeddings" / "centers.safetensors", None
    if path.is_file():
        tree = load_tree(path)
        centers = align(tree["centers"], decode_strings(tree["classes"]), classes)
    path = folder / "embeddings" / "pair_head.safetensors"
    compare = PairScores.load(path) if path.is_file() else None
    return Vectors(**vectors, centers=centers, pair_head=compare)


def align(centers: torch.Tensor, known: np.ndarray, classes: np.ndarray) -> torch.Tensor:
    """Centres `(C, K, D)` in the order of `classes`; zeros for classes that training did not have.

    The gallery at inference may differ from the training set: a hidden rerun, or a larger one.
    """
    if np.array_equal(known, classes):
        return centers
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known, classes, sorter=order), len(known) - 1)]
    found = torch.from_numpy(known[place] == classes)
    return torch.where(found[:, None, None], centers[torch.from_numpy(place)], 0.0)


def side_by_side(runs: Sequence[Vectors], weights: Sequence[float], *, whiten: int = 0) -> Vectors:
    """Several runs as one: a cosine of the joined vectors is the weighted mean of the runs'.

    Args:
        runs: with the same tables.
        weights: one per run; a run of weight 0 is left out.
        whiten: dimensions after PCA whitening learned on the table `train`; 0 leaves them as they
            are. Centres and pair heads are only kept without it, and when all runs have as many
            sub-centres, or pair heads.
    """
    keep = [i for i, weight in enumerate(weights) if weight > 0]
    chosen, shares = [runs[i] for i in keep], [weights[i] for i in keep]

    def joined(name: str) -> Embeddings | None:
        parts = [getattr(run, name) for run in chosen]
        return None if any(p is None for p in parts) else blend.blend_embeddings(parts, shares)

    tables: Any = {name: joined(name) for name in ("train", "test", "index", "negatives")}
    if whiten:
        return Vectors(**tables).mapped(Whitening(whiten).fit(tables["train"].vectors).transform)
    heads = [run.pair_head for run in chosen if run.pair_head is not None]
    if len(heads) == len(chosen):
        tables["pair_head"] = pair_scores.side_by_side(heads, shares)
    parts = [run.centers for run in chosen]
    if any(p is None for p in parts) or len({p.shape[1] for p in parts if p is not None}) > 1:
        return Vectors(**tables)
    scale = np.sqrt(np.asarray(shares) / np.sum(shares))
    centers = [float(s) * p for s, p in zip(scale, parts, strict=True) if p is not None]
    return Vectors(**tables, centers=torch.cat(centers, 2))
