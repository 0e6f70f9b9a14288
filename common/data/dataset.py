"""Images by row for training and extraction, the same pixels in any worker, process and order."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.data.align import frame_of
from common.data.crops import BoxMix
from common.data.images import Box, Frame, ImageError, read_image
from common.data.masks import mask_of

Key = int | tuple[int, int]

GREY = 128  # of the picture that stands in for a file that cannot be read
_SECOND = 2**32  # added to the seed for the second view; seeds of runs are small
_BOX, _ALIGN, _MASK = (n * _SECOND for n in (2, 3, 4))  # and for what else a draw decides


class ImageDataset(Dataset[dict[str, Any]]):
    """Row -> `image` uint8 `(3, size, size)`, `label` int, `row` int, `ok` bool.

    A key is a row, or `(row, stream)`: the augmentation is a function of `(seed, stream)` and of
    nothing else, so a resumed, a distributed and a single-process run see the same pixels. A plain
    row is its own stream. A file that cannot be read gives a grey picture, label -1, `ok` False.

    Args:
        paths: `(N,)` numpy bytes. (One buffer: a list of N strings would be copied into every
            worker page by page, as reading one updates its reference count.)
        labels: `(N,)` int64, or None for -1 everywhere.
        size: side of the pictures.
        transform: uint8 `(3, H, W)` -> uint8 `(3, size, size)`, as from `augment.build`; its
            `short_side`, if any, lets JPEGs be decoded at reduced scale.
        seed: of the augmentation.
        boxes: `(N, 4)` x0, y0, x1, y1 in pixels of the file, cut out before all else; a row of
            zeros means the whole picture.
        mix: several boxes of each image, of which every draw looks at one; in place of `boxes`.
        frames: `(N, 8)` aligned parts, as `align.frames` makes them, to look at in place of the
            box; a row of zeros has none, nor has a picture whose frame lies outside of it.
        align: how often an image that has a frame is looked at in it; 1 is always.
        masks: `(N,)` bytes or `(N, 4)` boxes, as `Table.masks`: a fourth channel, 255 inside of the
            mask and 0 outside, cut as the picture is; 0 throughout where there is none or its file
            cannot be read.
        mask_drop: how often it is 0 throughout, so that the net does not lean on it.
        mirror: `(N,)` bool, rows to flip left to right before all else, for the mirrored twin
            classes of whale.
        second: also give `second`, another augmented view of the same picture, for a loss that
            compares two; `image` stays what it is without.

    Raises:
        ValueError: arrays of another type or length.
    """

    def __init__(
        self,
        paths: np.ndarray,
        labels: np.ndarray | None,
        *,
        size: int,
        transform: Callable[[Tensor], Tensor],
        seed: int = 0,
        boxes: np.ndarray | None = None,
        mix: BoxMix | None = None,
        frames: np.ndarray | None = None,
        align: float = 1.0,
        masks: np.ndarray | None = None,
        mask_drop: float = 0.0,
        mirror: np.ndarray | None = None,
        second: bool = False,
    ) -> None:
        if paths.dtype.kind != "S":
            raise ValueError(
                f"paths must be a numpy array of bytes, got {paths.dtype}: "
                'np.char.encode(paths, "utf-8") makes one'
            )
        if labels is not None and labels.dtype != np.int64:
            raise ValueError(f"labels must be int64, got {labels.dtype}")
        for name, column in (
            ("labels", labels),
            ("boxes", boxes),
            ("boxes of the mix", None if mix is None else mix.boxes),
            ("frames", frames),
            ("masks", masks),
            ("mirror", mirror),
        ):
            if column is not None and len(column) != len(paths):
                raise ValueError(f"{len(paths)} paths, but {len(column)} {name}")
        if not 0 <= align <= 1:
            raise ValueError(f"align is how often images are aligned, 0 to 1, got {align}")
        self.paths, self.labels, self.boxes, self.mirror = paths, labels, boxes, mirror
        if masks is not None and getattr(transform, "mixed", False):
            raise ValueError("trivial_augment moves pixels at random, which a mask cannot follow")
        self.mix, self.frames, self.align = mix, frames, align
        self.masks, self.mask_drop = masks, mask_drop
        self.size, self.transform, self.seed, self.second = size, transform, seed, second

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: np.ndarray) -> ImageDataset:
        """The same images of some rows, in their order."""

        def part(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[rows]

        return ImageDataset(
            self.paths[rows],
            part(self.labels),
            size=self.size,
            transform=self.transform,
            seed=self.seed,
            boxes=part(self.boxes),
            mix=None if self.mix is None else self.mix.take(rows),
            frames=part(self.frames),
            align=self.align,
            masks=part(self.masks),
            mask_drop=self.mask_drop,
            mirror=part(self.mirror),
            second=self.second,
        )

    def __getitem__(self, key: Key) -> dict[str, Any]:
        row, stream = key if isinstance(key, tuple) else (key, key)
        row, stream = int(row), int(stream)
        names = ("image", "second") if self.second else ("image",)
        try:
            picture = self._read(row, stream)
        except ImageError:
            channels = 3 if self.masks is None else 4
            grey = torch.full((channels, self.size, self.size), GREY, dtype=torch.uint8)
            return {**dict.fromkeys(names, grey), "label": -1, "row": row, "ok": False}
        pixels = torch.from_numpy(picture).permute(2, 0, 1)
        views = {}
        with torch.random.fork_rng(devices=[]):
            for name, seed in zip(names, (self.seed, self.seed + _SECOND), strict=False):
                # torch.manual_seed would seed the GPUs as well, and start CUDA in a worker.
                torch.default_generator.manual_seed(_mixed(seed, stream))
                views[name] = self.transform(pixels)
        label = -1 if self.labels is None else int(self.labels[row])
        return {**views, "label": label, "row": row, "ok": True}

    def _read(self, row: int, stream: int) -> np.ndarray:
        picture, frame = self._aligned(row, stream)
        corners: Box | None = None
        if picture is None:
            box = None if self.boxes is None else self.boxes[row]
            if self.mix is not None:
                box = self.mix.draw(row, _uniform(self.seed + _BOX, stream))
            if box is not None and box.any():
                x0, y0, x1, y1 = (int(value) for value in box)
                corners = (x0, y0, x1, y1)
            picture = read_image(bytes(self.paths[row]), size=self._short_side(), box=corners)
        if self.masks is not None:
            mask = np.zeros(picture.shape[:2], np.uint8)
            if _uniform(self.seed + _MASK, stream) >= self.mask_drop:
                mask = mask_of(
                    self.masks[row], bytes(self.paths[row]), picture.shape, box=corners, frame=frame
                )
            picture = np.dstack([picture, mask])
        if self.mirror is not None and self.mirror[row]:
            return np.asarray(cv2.flip(picture, 1))
        return picture

    def _aligned(self, row: int, stream: int) -> tuple[np.ndarray | None, Frame | None]:
        """The picture in its frame and the frame, or Nones if it is to be looked at otherwise."""
        if self.frames is None or _uniform(self.seed + _ALIGN, stream) >= self.align:
            return None, None
        frame = frame_of(self.frames[row])
        if frame is None:
            return None, None
        try:
            size = self._short_side()
            return read_image(bytes(self.paths[row]), size=size, frame=frame), frame
        except ImageError:  # points outside of it; a damaged file is told when it is read whole
            return None, None

    def _short_side(self) -> int | None:
        return getattr(self.transform, "short_side", None)


def loader(
    dataset: Dataset[dict[str, Any]],
    batch_sampler: Iterable[Sequence[Key]],
    *,
    workers: int,
    device: torch.device | str,
) -> DataLoader[dict[str, Any]]:
    """A DataLoader over lists of keys: dicts of `image (B, 3, S, S)`, `label`, `row`, `ok` `(B,)`.

    The global random state is neither read nor moved. Workers are single-threaded, live as long as
    the loader, and leave Ctrl-C to the main process.

    Args:
        dataset: the images, or listings: its `collate`, if any, makes a batch of items; one that is
            `in_memory` is read in this process.
        batch_sampler: yields one list of keys per batch, as the samplers or `batches` do.
        workers: processes that decode; 0 decodes in this one.
        device: where the batches go; pinned memory on CUDA only.
    """
    workers = 0 if getattr(dataset, "in_memory", False) else workers
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,  # type: ignore[arg-type]
        collate_fn=getattr(dataset, "collate", None),
        num_workers=workers,
        pin_memory=torch.device(device).type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker if workers else None,
        generator=torch.Generator(),  # the loader draws a seed per epoch, not from the global state
    )


def batches(rows: int, size: int) -> list[range]:
    """Rows 0 to rows - 1 in order, `size` at a time (the last may be smaller), for `loader`."""
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def check_files(paths: np.ndarray, ids: np.ndarray, *, sample: int = 1000) -> int:
    """How many of `sample` evenly spaced files are missing; for a check before hours of work.

    Raises:
        ValueError: no paths at all.
        FileNotFoundError: not one of the looked-at files exists; names the first.
    """
    if not len(paths):
        raise ValueError("The table has no rows: look at the csv file that it was made from.")
    rows = np.unique(np.linspace(0, len(paths) - 1, min(sample, len(paths))).astype(np.int64))
    missing = sum(not os.path.isfile(bytes(path)) for path in paths[rows])
    if missing == len(rows):
        raise FileNotFoundError(
            f"None of {len(rows)} images looked at exists, the first is {os.fsdecode(paths[0])} "
            f"(id {ids[0]}): point data.root to the folder that holds the images in Kaggle's layout"
        )
    return missing


def _mixed(seed: int, stream: int) -> int:
    """A hash: torch's generator keeps 32 bits of a seed, where streams of two epochs are equal."""
    digest = hashlib.blake2b(f"{seed},{stream}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def _uniform(seed: int, stream: int) -> float:
    """A number in [0, 1) that the draw decides."""
    return _mixed(seed, stream) / 2**32


def _start_worker(_: int) -> None:
    """One thread per worker; Ctrl-C is handled by the main process; nothing on the terminal."""
    cv2.setNumThreads(0)  # torch's DataLoader has seen to torch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker's exceptions travel to the main process. What else it says is libjpeg's remarks on
    # damaged files, and tracebacks of broken pipes when the main process is killed.
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)
