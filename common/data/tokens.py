"""Titles as token ids: all in one buffer, cut at a maximal length, padded batch by batch.

tokens = Tokenizer(rust, max_length=64, pad=0)(titles); batch = pad_batch([tokens[3], tokens[8]], 0)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_CHUNK = 4096  # titles whose encodings, some kilobytes each, are in memory at one time


@dataclass
class Tokens:
    """Token ids of N titles, one after another: loader workers share one buffer.

    Attributes:
        ids: `(T,)` int32.
        starts: `(N + 1,)` int64, where each title begins; every title has at least one token.
        pad: the id that batches are filled up with.
    """

    ids: np.ndarray
    starts: np.ndarray
    pad: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> torch.Tensor:
        """The ids of one title, `(L,)` int64."""
        return torch.from_numpy(self.ids[self.starts[row] : self.starts[row + 1]].astype(np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """`(N,)` tokens of each title."""
        return np.diff(self.starts)


class Tokenizer:
    """Titles to `Tokens`: the model's own tokenizer, special tokens included, cut at `max_length`.

    Args:
        rust: a `tokenizers.Tokenizer`; copied, as its settings are changed.
        max_length: tokens of a title that are kept, special tokens included.
        pad: the id that batches are filled up with.
    """

    def __init__(self, rust: Any, *, max_length: int, pad: int) -> None:
        self.rust, self.max_length, self.pad = copy.deepcopy(rust), max_length, pad
        self.rust.no_padding()  # files come with settings of their own
        self.rust.enable_truncation(max_length)

    def __call__(self, titles: Sequence[str] | np.ndarray) -> Tokens:
        """The tokens of titles, in their order; a title without any token is one padding token.

        Raises:
            ValueError: something that is no text; names the row.
        """
        texts = titles.tolist() if isinstance(titles, np.ndarray) else list(titles)
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"Titles must be text, that of row {row} is {text!r}.")
        parts, lengths = [np.zeros(0, np.int32)], [0]
        for start in range(0, len(texts), _CHUNK):
            found = [
                code.ids or [self.pad]
                for code in self.rust.encode_batch(texts[start : start + _CHUNK])
            ]
            lengths += [len(ids) for ids in found]
            parts.append(np.fromiter((i for ids in found for i in ids), np.int32))
        return Tokens(np.concatenate(parts), np.cumsum(lengths, dtype=np.int64), self.pad)


def pad_batch(rows: Sequence[torch.Tensor], pad: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` `(B, L)` int64 of titles' ids, L the longest of them."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}
