"""Concatenation as a step: the images' embeddings of other runs, models or scales, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.blend import blend_embeddings
from common.retrieval.stored import Stored
from common.types import Embeddings

_NOT_ROWS = "centers.safetensors"  # lies beside the embeddings, has no ids


def concat(
    queries: Embeddings,
    gallery: Embeddings,
    train: Embeddings | None,
    negatives: Embeddings | None,
    *,
    runs: list[str] | tuple[str, ...] = (),
    weights: list[float] | None = None,
) -> tuple[Embeddings, Embeddings, Embeddings | None, Embeddings | None]:
    """Every embedding beside those that other runs have of the image: cosines are averaged.

    A run at another `view.size` is another scale, a run of another backbone another model. Steps
    before this one work on the run's own embeddings, steps after it on all. Class centres stay as
    they are: steps that use them go in front. See `common.blend.blend_embeddings`.

    Args:
        queries: `(Q, D)` embeddings.
        gallery: `(N, D)` embeddings.
        train: `(T, D)` embeddings of the training images, or None.
        negatives: embeddings of known negatives, or None.
        runs: run folders that infer.py has filled.
        weights: of this run, then of the others; None: equal.

    Raises:
        FileNotFoundError: a run has no embeddings.
        KeyError: a run lacks an image.
        ValueError: no run, or weights that are not one for each.
    """
    if not runs:
        raise ValueError("concat needs runs: folders that infer.py has filled.")
    others = [_Run(folder) for folder in runs]
    joined = [
        None
        if part is None
        else blend_embeddings([part, *(run.of(part) for run in others)], weights)
        for part in (queries, gallery, train, negatives)
    ]
    assert joined[0] is not None
    assert joined[1] is not None
    return joined[0], joined[1], joined[2], joined[3]


class _Run:
    """All embeddings of a run folder, read as asked for."""

    def __init__(self, folder: str) -> None:
        files = sorted((Path(folder) / "embeddings").glob("*.safetensors"))
        paths = [path for path in files if path.name != _NOT_ROWS]
        if not paths:
            raise FileNotFoundError(f"No embeddings in {folder}: first run infer.py run={folder}")
        self.stored, self.folder = Stored(paths), folder
        self.names = Embeddings(self.stored.ids, torch.empty(len(self.stored), 0))

    def of(self, part: Embeddings) -> Embeddings:
        rows = self.names.find(part.ids)
        wrong = np.flatnonzero(rows < 0)
        if len(wrong):
            raise KeyError(
                f"{self.folder} has no embedding of {len(wrong)} images, the first is "
                f"{str(part.ids[wrong[0]])!r}."
            )
        vectors = self.stored.take(torch.from_numpy(rows)).to(part.vectors.device)
        return Embeddings(part.ids, vectors, dict(self.stored.card))
