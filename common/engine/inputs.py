"""What a model takes of its rows: pictures, titles or both, in the order of its arguments.

A model says so by `inputs`, a tuple of `image` and `tokens`; without it takes pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from common.data.dataset import ImageDataset
from common.data.listings import ListingDataset

Inputs = tuple[Any, ...]  # images (B, 3, H, W), tokens {input_ids, attention_mask} (B, L)


def inputs_of(model: nn.Module) -> tuple[str, ...]:
    """Names of what the model takes of a batch."""
    names: Any = getattr(model, "inputs", ("image",))
    return tuple(names)


def rows_for(
    model: nn.Module, images: ImageDataset, titles: np.ndarray | None
) -> ImageDataset | ListingDataset:
    """The rows as the model takes them.

    Args:
        model: with a `tokenizer` if it takes tokens.
        images: the rows and their pictures, of which nothing has been read.
        titles: `(N,)` of the same rows, for a model that takes tokens.

    Raises:
        ValueError: the model takes titles, and there are none.
    """
    names = inputs_of(model)
    if "tokens" not in names:
        return images
    if titles is None:
        raise ValueError(
            "This model reads titles, and the table has none: give Table(titles=...), or use a "
            "model of images."
        )
    return ListingDataset(images, model.tokenizer(titles), pictures="image" in names)  # type: ignore[operator]


def inputs_from(model: nn.Module, batch: dict[str, Any], device: torch.device) -> Inputs:
    """The model's arguments from a batch of a loader, on the device."""
    return tuple(moved(batch[name], device) for name in inputs_of(model))


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a dict of them, on the device; from pinned memory without waiting."""
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return value.to(device, non_blocking=True)
