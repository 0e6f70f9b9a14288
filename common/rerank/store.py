"""Work that survives a kill: local features per image and evidence per pair, in safetensors shards.

A folder belongs to one set of settings. Every shard is written whole or not at all and never
changed, so a stopped run loses at most the shard it was filling, and two runs may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.paths import atomic, write_text
from common.rerank.evidence import SHAPE, Evidence
from common.rerank.features import LocalFeatures

_ROOM = 1 << 20  # more images than any shard holds
VERSION = 3  # raise it when features or matches of the same settings come out differently


def settings_folder(root: Path, kind: str, settings: Mapping[str, Any]) -> Path:
    """The folder of these settings, `root/kind-<digest>`, with a `settings.json` for people."""
    text = json.dumps({**settings, "version": VERSION}, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    folder = root / f"{kind}-{digest}"
    if not (folder / "settings.json").exists():
        write_text(folder / "settings.json", text + "\n")
    return folder


def image_key(path: bytes, box: np.ndarray | None = None) -> int:
    """63 bits for a file as it is now: path, length, time; negative for one that is not there.

    `(4,)` numbers of a box tell apart what is looked at; zeros are the whole image.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        status = None
    text = f"{status.st_size} {status.st_mtime_ns} ".encode() if status else b""
    if box is not None and box.any():
        text += np.asarray(box, "<f8").tobytes()
    key = int.from_bytes(hashlib.blake2b(text + path, digest_size=8).digest(), "big") >> 1
    return key if status else -1 - key


def pair_keys(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """64 bits for each ordered pair of image keys, `(P,)` uint64."""
    a, b = a.astype(np.uint64), b.astype(np.uint64)
    with np.errstate(over="ignore"):
        mixed = a * np.uint64(0x9E3779B97F4A7C15) + (b ^ (b >> np.uint64(29))) * np.uint64(
            0xBF58476D1CE4E5B9
        )
        return np.asarray(mixed ^ (mixed >> np.uint64(32)))


class FeatureStore:
    """Local features by image key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place: dict[int, int] = {}  # key -> shard number * _ROOM + place in it
        self._shards: list[tuple[Any, np.ndarray, np.ndarray]] = []  # file, ends of rows, sizes
        for path in _shard_files(folder):
            self._open(path)

    def __contains__(self, key: int) -> bool:
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def append(self, images: list[tuple[int, LocalFeatures]]) -> None:
        """Write one shard of keys and their features."""
        images = sorted(images, key=lambda image: image[0])
        found = [features for _, features in images]
        path = _write(
            self._folder,
            {
                "keys": np.array([key for key, _ in images], dtype=np.int64),
                "counts": np.array([len(f) for f in found], dtype=np.int64),
                "sizes": np.array([f.size for f in found], dtype=np.int32),
                "points": np.concatenate([f.points for f in found]),
                "descriptors": np.concatenate([f.descriptors for f in found]),
            },
        )
        self._open(path)

    def get(self, key: int) -> LocalFeatures:
        """The features of one image, read from the mapped shard; safe from several threads."""
        number, place = divmod(self._place[key], _ROOM)
        shard, ends, sizes = self._shards[number]
        start, stop = int(ends[place]), int(ends[place + 1])
        width, height = sizes[place].tolist()
        return LocalFeatures(
            _rows(shard, "points", start, stop),
            _rows(shard, "descriptors", start, stop),
            (width, height),
        )

    def _open(self, path: Path) -> None:
        shard = _open_shard(path)
        keys = shard.get_tensor("keys").tolist()
        first = len(self._shards) * _ROOM
        self._place.update((key, first + place) for place, key in enumerate(keys))
        ends = np.append(0, shard.get_tensor("counts").cumsum())
        self._shards.append((shard, ends, shard.get_tensor("sizes")))


class PairStore:
    """Evidence by pair key, all in memory: 60 bytes a pair."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shards = [_open_shard(path) for path in _shard_files(folder)]
        self._keys = np.zeros(0, np.uint64)
        self._counts = np.zeros((0, 2), np.int32)
        self._shape = np.zeros((0, len(SHAPE)), np.float32)
        # Appended since the last lookup.
        self._new = [(s.get_tensor("keys"), _evidence(s)) for s in shards]

    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, Evidence]:
        """Which pairs are known, `(P,)` bool, and their evidence: 0 inliers of the others."""
        if self._new:
            merged = np.concatenate([self._keys, *(k for k, _ in self._new)])
            counts = np.concatenate([self._counts, *(e.counts for _, e in self._new)])
            shape = np.concatenate([self._shape, *(e.shape for _, e in self._new)])
            self._keys, first = np.unique(merged, return_index=True)
            self._counts, self._shape, self._new = counts[first], shape[first], []
        if not len(self._keys):
            none = np.full((len(keys), len(SHAPE)), np.nan, np.float32)
            return np.zeros(len(keys), dtype=bool), Evidence(
                np.zeros((len(keys), 2), np.int32), none
            )
        place = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        known = self._keys[place] == keys
        return known, Evidence(
            np.where(known[:, None], self._counts[place], 0),
            np.where(known[:, None], self._shape[place], np.float32(np.nan)),
        )

    def append(self, keys: np.ndarray, found: Evidence) -> None:
        """Write one shard of `(P,)` keys and the evidence of their pairs."""
        _write(self._folder, {"keys": keys, "counts": found.counts, "shape": found.shape})
        self._new.append((keys, found))


def _evidence(shard: Any) -> Evidence:
    return Evidence(shard.get_tensor("counts"), shard.get_tensor("shape"))


def _write(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    # Named by what it holds: the same work done twice is one file.
    digest = hashlib.blake2b(np.sort(tensors["keys"]).tobytes(), digest_size=8).hexdigest()
    path = folder / f"{digest}.safetensors"
    with atomic(path) as temporary:
        save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, temporary)
    return path


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="np")  # mapped into memory, holds no file handle
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, it will be made again."
        ) from None


def _shard_files(folder: Path) -> list[Path]:
    # A leading dot is a shard that was being written when its run was killed.
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("."))


def _rows(shard: Any, name: str, start: int, stop: int) -> np.ndarray:
    """Rows of a tensor; safetensors refuses an empty slice of an empty tensor or at its end."""
    part = shard.get_slice(name)
    if start < stop:
        return np.asarray(part[start:stop])
    return np.asarray(part[0:1] if part.get_shape()[0] else shard.get_tensor(name))[:0]
