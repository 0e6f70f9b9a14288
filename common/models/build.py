"""The model that a `model:` section describes, image, text or both, and what a run keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.models.embedder import Embedder, ModelConfig
from common.models.joint import USES, JointConfig, JointEmbedder, keys_of
from common.models.neck import choose
from common.models.text import TextConfig, TextEncoder

Config = ModelConfig | TextConfig | JointConfig
Model = Embedder | TextEncoder | JointEmbedder


def build(
    config: Config, *, run: Path | None = None, titles: Sequence[str] | np.ndarray = ()
) -> Model:
    """The model; every kind has `inputs`, `embed(*inputs)`, `embedding_dim`, `name` and `card`.

    Args:
        config: of an image, a text or a joint model; of the last, `uses` says which halves.
        run: a run folder whose state dict follows: no pretrained weights are then looked for.
        titles: what the vocabulary of a text net without weights is learned from.

    Raises: as the kinds.
    """
    if isinstance(config, ModelConfig):
        return Embedder(config, load=run is None)
    if isinstance(config, TextConfig):
        return TextEncoder(config, run=run, titles=titles)
    choose("model.uses", config.uses, USES)
    if config.uses == "image":
        with keys_of("image", ModelConfig):
            return build(config.image, run=run)
    if config.uses == "text":
        with keys_of("text", TextConfig):
            return build(config.text, run=run, titles=titles)
    return JointEmbedder(config, run=run, titles=titles)


def save_parts(model: Model, run: Path) -> None:
    """Write what a run needs beside its weights: tokenizer and architecture of a text half."""
    for part in model.modules():
        if isinstance(part, TextEncoder):
            part.save(run)
