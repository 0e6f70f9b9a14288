"""Embeddings that stay in their files: galleries larger than memory, searched block by block."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from common.types import decode_strings

_BLOCK_BYTES = 2**28
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


class Stored:
    """One gallery out of files that `Embeddings.save` wrote, in the order given.

    Only the ids are held. `search`, `range_search` and `index.build` take it in place of
    `Embeddings`; everything else needs the vectors in memory: `Embeddings.load`.

    Args:
        paths: one file or several, all of one D.
        block: rows per read; None: 256 MB of float32. Two blocks are held, the second is read
            while the first is searched.

    Attributes:
        ids: `(N,)` unicode.
        shape: `(N, D)`.
        card: the card of the first file.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: no file, a file of something else, another D, block < 1.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path], block: int | None = None) -> None:
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        self._parts = [_Part(Path(path)) for path in given]
        widths = {part.dim for part in self._parts}
        if len(widths) != 1 or (block is not None and block < 1):
            raise ValueError(
                f"Stored needs files of one D and block >= 1, got D of {sorted(widths)} in "
                f"{len(given)} files, block={block}."
            )
        dim = widths.pop()
        self.ids = np.concatenate([part.ids for part in self._parts])
        self.shape = (len(self.ids), dim)
        self.card = self._parts[0].card
        self._block = block or max(1, _BLOCK_BYTES // (4 * max(dim, 1)))

    def __len__(self) -> int:
        return len(self.ids)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """First row and vectors `(n, D)` of each block, read ahead in a thread."""
        places, first = [], 0
        for part in self._parts:
            for start in range(0, part.rows, self._block):
                places.append((first + start, part, start, min(self._block, part.rows - start)))
            first += part.rows
        with ThreadPoolExecutor(1) as reader:
            ahead = None
            for place in places:
                now, ahead = ahead, (place[0], reader.submit(place[1].read, *place[2:]))
                if now is not None:
                    yield now[0], now[1].result()
                    del now  # two blocks in memory, not three
            if ahead is not None:
                yield ahead[0], ahead[1].result()

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Vectors `(M, D)` float32 of `rows` `(M,)`, from memory-mapped files."""
        wanted = rows.cpu().numpy()
        out = np.empty((len(wanted), self.shape[1]), np.float32)
        first = 0
        for part in self._parts:
            here = np.flatnonzero((wanted >= first) & (wanted < first + part.rows))
            if len(here):
                out[here] = part.mapped()[wanted[here] - first]
            first += part.rows
        return torch.from_numpy(out)


class _Part:
    """Where one file keeps its vectors."""

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(str(path), framework="pt") as file:
                self.ids = decode_strings(file.get_tensor("ids"))
                self.card: dict[str, Any] = json.loads((file.metadata() or {}).get("card", "{}"))
            with open(path, "rb") as raw:
                length = int.from_bytes(raw.read(8), "little")
                entry = json.loads(raw.read(length))["vectors"]
            self.dtype = _TYPES[entry["dtype"]]
            self.rows, self.dim = (int(size) for size in entry["shape"])
        except FileNotFoundError:
            raise FileNotFoundError(f"No embeddings at {path}.") from None
        except Exception as error:
            raise ValueError(
                f"{path} is not a file of float32 or float16 embeddings ({error})."
            ) from error
        if len(self.ids) != self.rows:
            raise ValueError(f"{path} has {len(self.ids)} ids for {self.rows} vectors.")
        self.path, self.offset = path, 8 + length + entry["data_offsets"][0]

    def read(self, start: int, rows: int) -> torch.Tensor:
        """Vectors `(rows, D)` from row `start`, as memory of their own."""
        offset = self.offset + start * self.dim * self.dtype.itemsize
        flat = np.fromfile(self.path, self.dtype, rows * self.dim, offset=offset)
        return torch.from_numpy(flat.reshape(rows, self.dim))

    def mapped(self) -> np.ndarray:
        """All vectors as a memory map."""
        shape = (self.rows, self.dim)
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=shape)
