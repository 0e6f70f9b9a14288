"""The types that carry everything from stage to stage: `Table`, `Embeddings`, `Neighbors`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common.paths import atomic


@dataclass
class Table:
    """One row per image, as fixed-width numpy columns.

    Not a pandas frame: at 4 million rows Python strings cost gigabytes, and every forked loader
    worker would copy them as it touches their reference counts.

    Attributes:
        ids: `(N,)` unicode, each id once.
        paths: `(N,)` bytes, file of each row.
        labels: `(N,)` int64 class index, -1 for none or unknown.
        boxes: `(N, 4)` x0, y0, x1, y1 in pixels of the file, the part of each image to look at; a
            row of zeros means all of it. None: all of every image.
        titles: `(N,)` text of each row, any array or list of str, kept as numpy's StringDType: no
            row is as wide as the longest. None: rows without text.
        frames: `(N, 8)` the aligned part of each image to look at in place of the box, as
            `data.align.frames` makes it; a row of zeros means the box. None: boxes only.
        masks: of a fourth channel: `(N,)` bytes, file of each row, empty for none; or `(N, 4)`
            boxes in pixels of the image, zeros for none. None: three channels.
        mirror: `(N,)` bool, rows that are looked at flipped left to right. None: no row.

    Raises:
        ValueError: titles that are no text, such as the NaN that pandas reads for an empty one.
    """

    ids: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None = None
    titles: np.ndarray | None = None
    frames: np.ndarray | None = None
    masks: np.ndarray | None = None
    mirror: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.titles is not None:
            self.titles = _text(self.titles)
            if len(self.titles) != len(self.ids):
                raise ValueError(f"{len(self.ids)} ids, but {len(self.titles)} titles.")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray | slice) -> Table:
        """The rows of a boolean mask, an index array, or a slice (which copies nothing)."""
        columns = (self.boxes, self.titles, self.frames, self.masks, self.mirror)
        more = [None if column is None else column[rows] for column in columns]
        return Table(self.ids[rows], self.paths[rows], self.labels[rows], *more)

    @staticmethod
    def concatenate(tables: list[Table]) -> Table:
        """All rows one after another."""
        titles = [table.titles for table in tables if table.titles is not None]
        if titles and len(titles) < len(tables):
            raise ValueError("Some of these tables have titles and some have none.")
        masks = [table.masks for table in tables if table.masks is not None]
        if masks and len(masks) < len(tables):
            raise ValueError("Some of these tables have masks and some have none.")
        return Table(
            np.concatenate([table.ids for table in tables]),
            np.concatenate([table.paths for table in tables]),
            np.concatenate([table.labels for table in tables]),
            _together(tables, "boxes", 4),
            np.concatenate(titles) if titles else None,
            _together(tables, "frames", 8),
            np.concatenate(masks) if masks else None,
            _together(tables, "mirror"),
        )


def _together(tables: list[Table], name: str, *width: int) -> np.ndarray | None:
    """A column of all tables, zeros for those that lack it; None if all do."""
    columns = [getattr(table, name) for table in tables]
    if all(column is None for column in columns):
        return None
    kind = next(column.dtype for column in columns if column is not None)
    parts = [
        np.zeros((len(table), *width), kind) if column is None else column
        for column, table in zip(columns, tables, strict=True)
    ]
    return np.concatenate(parts)


def _text(titles: np.ndarray | list[str]) -> np.ndarray:
    """Titles as `(N,)` StringDType; one that already is stays without a copy."""
    try:
        return np.asarray(titles, dtype=np.dtypes.StringDType(coerce=False))
    except UnicodeEncodeError as error:
        raise ValueError(
            f"A title holds {error.object[error.start : error.end]!r}, half of a character: read "
            "the file with encoding_errors='replace'."
        ) from None
    except ValueError:
        for row, title in enumerate(titles):
            if not isinstance(title, str):
                raise ValueError(
                    f"Titles must be text, that of row {row} is {title!r}: read the csv with "
                    "keep_default_na=False."
                ) from None
        raise


def encode_strings(strings: np.ndarray) -> torch.Tensor:
    """UTF-8 bytes `(N, W)` of a unicode array, padded with zeros, for safetensors files."""
    encoded = np.char.encode(np.asarray(strings, np.str_), "utf-8")
    width = max(encoded.dtype.itemsize, 1)
    letters = np.frombuffer(encoded.tobytes(), np.uint8).reshape(
        len(strings), -1 if len(strings) else width
    )
    return torch.from_numpy(letters.copy())


def decode_strings(letters: torch.Tensor) -> np.ndarray:
    """The unicode array `(N,)` that `encode_strings` was given."""
    raw = np.ascontiguousarray(letters.numpy())
    return np.char.decode(raw.view(f"S{max(raw.shape[1], 1)}").reshape(-1), "utf-8")


@dataclass
class Embeddings:
    """Vectors with the ids they belong to.

    Attributes:
        ids: `(N,)` numpy unicode array, each id once.
        vectors: `(N, D)` float32 or float16 tensor; rows have norm 1, or 0 for an image that could
            not be read (it then ties last with everything).
        card: where they came from (run, split, view settings); JSON values only.
    """

    ids: np.ndarray
    vectors: torch.Tensor
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids = np.asarray(self.ids, dtype=np.str_)
        if self.vectors.ndim != 2 or len(self.ids) != len(self.vectors):
            raise ValueError(
                f"Embeddings need (N,) ids and (N, D) vectors, got {self.ids.shape} ids and "
                f"{tuple(self.vectors.shape)} vectors."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Row numbers of `ids`, `(M,)` int64; -1 for an id that is not here."""
        wanted = np.asarray(ids, dtype=np.str_)
        if not len(self.ids):
            return np.full(len(wanted), -1, np.int64)
        order = np.argsort(self.ids, kind="stable")
        place = np.searchsorted(self.ids, wanted, sorter=order)
        found = order[np.minimum(place, len(order) - 1)]
        return np.where(self.ids[found] == wanted, found, -1).astype(np.int64)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Row numbers of `ids`, `(M,)` int64; KeyError names the first id that is not here."""
        found = self.find(ids)
        wrong = np.flatnonzero(found < 0)
        if len(wrong):
            raise KeyError(
                f"{len(wrong)} ids have no embedding, the first is {str(ids[wrong[0]])!r}."
            )
        return found

    def select(self, ids: np.ndarray) -> Embeddings:
        """The embeddings of `ids`, in that order; without a copy when these are all, in order."""
        if np.array_equal(self.ids, ids):
            return Embeddings(self.ids, self.vectors, dict(self.card))
        rows = self.rows(ids)
        return Embeddings(self.ids[rows], self.vectors[torch.from_numpy(rows)], dict(self.card))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; ids as UTF-8 bytes `(N, W)`, the card as JSON header."""
        with atomic(path) as temporary:
            save_file(
                {
                    "ids": encode_strings(self.ids),
                    "vectors": self.vectors.detach().cpu().contiguous(),
                },
                temporary,
                metadata={"card": json.dumps(self.card, sort_keys=True)},
            )

    @classmethod
    def load(cls, path: str | Path) -> Embeddings:
        """Read what `save` wrote; ValueError when the file is something else."""
        try:
            with safe_open(str(path), framework="pt") as file:
                ids = decode_strings(file.get_tensor("ids"))
                vectors = file.get_tensor("vectors")
                card = json.loads((file.metadata() or {}).get("card", "{}"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"No embeddings at {path}: first run infer.py run={Path(path).parents[1]}"
            ) from None
        except Exception as error:
            raise ValueError(f"{path} is not an embeddings file ({error}): delete it.") from error
        return cls(ids, vectors, card)


@dataclass
class Neighbors:
    """For each query its best rows, best first.

    Attributes:
        index: `(Q, K)` int64 rows of the gallery (or class indices after a vote); -1 is padding
            behind the last real neighbor.
        score: `(Q, K)` float32, descending; `-inf` at padding.
    """

    index: torch.Tensor
    score: torch.Tensor

    def __post_init__(self) -> None:
        if self.index.shape != self.score.shape or self.index.ndim != 2:
            raise ValueError(
                f"Neighbors need index and score of one shape (Q, K), got "
                f"{tuple(self.index.shape)} and {tuple(self.score.shape)}."
            )

    def __len__(self) -> int:
        return len(self.index)

    def top(self, k: int) -> Neighbors:
        """The first `k` columns (all of them when there are fewer)."""
        return Neighbors(self.index[:, :k], self.score[:, :k])

    def sorted(self) -> Neighbors:
        """The same pairs by score descending, then index ascending; padding last."""
        by_index = torch.argsort(
            torch.where(self.index < 0, torch.iinfo(torch.int64).max, self.index), dim=1
        )
        score = self.score.gather(1, by_index)
        by_score = torch.argsort(score, dim=1, descending=True, stable=True)
        order = by_index.gather(1, by_score)
        return Neighbors(self.index.gather(1, order), self.score.gather(1, order))
