"""Listings by row, the title's tokens with or without the picture, for text and joint models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, default_collate

from common.data.dataset import ImageDataset, Key
from common.data.tokens import Tokens, pad_batch


class ListingDataset(Dataset[dict[str, Any]]):
    """Row -> `tokens` of its title, `label`, `row`, `ok`; with `pictures` also `image`.

    Keys are those of `ImageDataset`. A picture that cannot be read is grey, `ok` is False, and the
    row keeps its label all the same: the title is as good as ever.

    Args:
        images: the rows, their labels and pictures.
        tokens: of the rows' titles.
        pictures: False reads no file at all.

    Raises:
        ValueError: as many titles as rows are needed.
    """

    def __init__(self, images: ImageDataset, tokens: Tokens, *, pictures: bool) -> None:
        if len(tokens) != len(images):
            raise ValueError(f"{len(images)} rows, but {len(tokens)} titles.")
        self.images, self.tokens, self.pictures = images, tokens, pictures
        #: there is nothing to read or decode: loader workers would only copy
        self.in_memory = not pictures

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> np.ndarray | None:
        """`(N,)` int64, or None."""
        return self.images.labels

    def __getitem__(self, key: Key) -> dict[str, Any]:
        row = int(key[0] if isinstance(key, tuple) else key)
        item = self.images[key] if self.pictures else {"row": row, "ok": True}
        label = -1 if self.labels is None else int(self.labels[row])
        return {**item, "label": label, "tokens": self.tokens[row]}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch: `tokens` are `input_ids` and `attention_mask` `(B, L)`, all else as usual."""
        plain = [{k: v for k, v in item.items() if k != "tokens"} for item in items]
        titles = pad_batch([item["tokens"] for item in items], self.tokens.pad)
        return {**default_collate(plain), "tokens": titles}
