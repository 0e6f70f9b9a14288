"""Embeddings of a table: each image decoded once, all views from it, resumable, over all processes.

Of titles too, and of both: what a model takes of a row is `engine.inputs`.

The rows are cut into blocks; a block is one file when it is done, so a killed extraction loses at
most one block per process, and no image is embedded twice.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from common.data.dataset import ImageDataset, loader
from common.data.listings import ListingDataset
from common.engine import distributed
from common.engine.inputs import Inputs, inputs_from, inputs_of, rows_for
from common.engine.settings import resolve_precision, worker_count
from common.types import Embeddings, Table

Transform = Callable[[torch.Tensor], torch.Tensor]

MERGES = ("mean", "max", "gem")


@dataclass
class ViewConfig:
    """How an image is looked at; the unit vectors of all views become one unit vector."""

    size: int = 224  # side of the largest view in pixels
    scales: list[float] = field(default_factory=lambda: [1.0])  # of that side, at most 1
    flip: bool = False  # also mirrored
    join_flip: bool = False  # the mirrored views' vector beside the others', not averaged with them
    merge: str = "mean"  # mean | max | gem: of the views, dimension by dimension
    merge_p: float = 10.0  # exponent of gem: 1 = mean, large = max
    fit: str = "squash"  # squash | crop | pad: how a rectangle becomes a square
    batch_size: int = 16  # on the CPU 16 is twice as fast as 64 (page faults)
    precision: str = "auto"  # as train.precision
    half: bool = False  # store float16: half the memory, similarities to about 1e-3
    block: int = 4096  # images per file while the extraction is under way
    workers: int = -1


def views(images: torch.Tensor, config: ViewConfig) -> list[torch.Tensor]:
    """The views of uint8 `(B, 3, S, S)` images as batches, largest first."""
    found = []
    for scale in config.scales:
        side = max(32, round(config.size * scale))
        view = images
        if side != images.shape[-1]:
            view = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
            view = view.round().clamp_(0, 255).to(torch.uint8)
        found += [view, view.flip(-1)] if config.flip else [view]
    return found


@torch.inference_mode()
def embed_batch(model: nn.Module, inputs: Inputs, config: ViewConfig) -> torch.Tensor:
    """Unit embeddings `(B, D)` float32, merged from the unit embeddings of all views.

    `(B, 2 D)` with `join_flip`: a cosine of two images is then the mean of plain with plain and
    mirrored with mirrored, as twin classes need it (Humpback 2019, 1st and 3rd place). A title
    is the same in every view, and alone it has one.
    """
    looks = [inputs]
    if inputs_of(model)[0] == "image":
        looks = [(view, *inputs[1:]) for view in views(inputs[0], config)]
    vectors = [model.embed(*look).float() for look in looks]  # type: ignore[operator]
    assert vectors, "ViewConfig.scales is empty"
    sides = [vectors[::2], vectors[1::2]] if two_sides(model, config) else [vectors]
    merged = [F.normalize(merge(torch.stack(v), config.merge, config.merge_p)) for v in sides]
    return F.normalize(torch.cat(merged, 1))


def merge(vectors: torch.Tensor, how: str, p: float = 10.0) -> torch.Tensor:
    """`(V, B, D)` vectors of V views as one of each image, `(B, D)`, not normalised.

    `max` and `gem` are Scale-GeM (Shao et al., "Global features are all you need for image
    retrieval and reranking", ICCV 2023), for one network at several scales: the maximum, or the
    generalised mean above the image's own smallest value (the authors take the batch's).

    Raises:
        ValueError: unknown `how`, or p below 1.
    """
    check_merge(how, p)
    if how == "mean":
        return vectors.mean(0)
    if how == "max":
        return vectors.amax(0)
    low = vectors.amin((0, 2)).unsqueeze(1)
    above = vectors - low
    peak = above.amax(0).clamp(min=1e-12)  # no power overflows, nor do all of them vanish
    return (above / peak).pow(p).mean(0).pow(1 / p) * peak + low


def check_merge(how: str, p: float = 10.0) -> None:
    """Raise ValueError for a `view.merge` or `view.merge_p` that does not exist."""
    if how not in MERGES or not p >= 1:
        raise ValueError(
            f"view.merge={how!r}, view.merge_p={p}: choose one of {', '.join(MERGES)}, and an "
            "exponent of at least 1."
        )


def embed_rows(
    model: nn.Module,
    table: Table,
    rows: np.ndarray,
    config: ViewConfig,
    transform: Transform,
    device: torch.device,
) -> tuple[torch.Tensor, int]:
    """`(len(rows), D)` vectors on the CPU, and how many images cannot be read.

    Their vectors are zeros, unless there is a title to go by.
    """
    part = table.take(rows)
    images = ImageDataset(
        part.paths,
        None,
        size=config.size,
        transform=transform,
        boxes=part.boxes,
        frames=part.frames,
        masks=part.masks,
        mirror=part.mirror,
    )
    data = rows_for(model, images, part.titles)
    word = resolve_precision(config.precision, device)
    amp = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(word)
    model.eval()
    size, order = config.batch_size, np.arange(len(part))
    if isinstance(data, ListingDataset):
        # Titles of one length share a batch without padding; the longest first, as they need most.
        order = np.argsort(-data.tokens.lengths, kind="stable")
    keys = [order[start : start + size].tolist() for start in range(0, len(part), size)]
    vectors, bad = torch.zeros(len(part), _width(model, config)), 0
    batches = loader(data, keys, workers=worker_count(config.workers), device=device)
    for batch, own in zip(batches, keys, strict=True):
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            found = embed_batch(model, inputs_from(model, batch, device), config)
        bad += int((~batch["ok"]).sum())
        # Non-finite output of a damaged model must not look like an embedding.
        if not torch.isfinite(found).all():
            raise ValueError(
                "The model gives non-finite embeddings: set view.precision=fp32; if that does not "
                "help its weights are damaged, train again."
            )
        known = batch["ok"] | ("tokens" in batch)
        vectors[own] = found.cpu() * known[:, None]
    return vectors, bad


def embed_table(
    model: nn.Module, table: Table, config: ViewConfig, transform: Transform, device: torch.device
) -> Embeddings:
    """Embeddings of a small table in memory, on every process; each image on one process only."""
    world, rank = distributed.world(), distributed.rank()
    rows = np.arange(len(table))
    if not distributed.joined():
        vectors, bad = embed_rows(model, table, rows, config, transform, device)
        return Embeddings(table.ids, vectors, {"unreadable": bad})
    mine, bad = embed_rows(model, table, rows[rank::world], config, transform, device)
    padded = mine.new_zeros(-(-len(table) // world), mine.shape[1], device=device)
    padded[: len(mine)] = mine.to(device)
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    vectors = torch.stack(gathered, 1).flatten(0, 1)[: len(table)].cpu()
    bad = int(distributed.summed(torch.tensor(bad, device=device)))
    return Embeddings(table.ids, vectors, {"unreadable": bad})


def extract(
    model: nn.Module,
    table: Table,
    path: Path,
    config: ViewConfig,
    transform: Transform,
    device: torch.device,
    *,
    card: dict[str, Any] | None = None,
) -> Embeddings:
    """Embeddings of a table as a file at `path`, on every process; finished work is not redone.

    Args:
        model: has `embed(*inputs) -> (B, D)` unit rows and `embedding_dim`.
        table: rows to embed.
        path: the safetensors file; blocks are kept beside it while it is unfinished.
        config: views, sizes, storage.
        transform: uint8 `(3, H, W)` to uint8 `(3, size, size)`.
        device: where the model is.
        card: what the vectors depend on besides (weights' fingerprint); a file that was made from
            something else is made anew.
    """
    names = inputs_of(model)
    key = {**(card or {}), "views": _settings(config, names), "rows": _digest(table, names)}
    if path.is_file():
        found = Embeddings.load(path)
        if {k: found.card.get(k) for k in key} == key:
            return found
    # Blocks of another size hold other rows under the same number.
    kind = _digest_of({**key, "block": config.block})
    folder = path.with_name(f"{path.stem}.{kind}.blocks")
    cuts = range(0, len(table), config.block)
    mine = list(enumerate(cuts))[distributed.rank() :: distributed.world()]
    for number, start in tqdm(mine, path.stem, disable=None, leave=False):
        file = folder / f"{number:06d}.safetensors"
        if file.is_file():
            continue
        rows = np.arange(start, min(start + config.block, len(table)))
        vectors, bad = embed_rows(model, table, rows, config, transform, device)
        vectors = vectors.half() if config.half else vectors
        Embeddings(table.ids[rows], vectors, {"unreadable": bad}).save(file)
    distributed.wait()
    if distributed.rank() == 0:
        files = [folder / f"{number:06d}.safetensors" for number in range(len(cuts))]
        _join(files, table, _width(model, config), config.half, key).save(path)
        for left in path.parent.glob(f"{path.stem}.*.blocks"):  # of killed processes too
            shutil.rmtree(left)
    distributed.wait()
    return Embeddings.load(path)


def _join(
    files: Sequence[Path], table: Table, dim: int, half: bool, key: dict[str, Any]
) -> Embeddings:
    """All blocks in one allocation."""
    vectors = torch.empty(len(table), dim, dtype=torch.float16 if half else torch.float32)
    start, bad = 0, 0
    for file in files:
        block = Embeddings.load(file)
        vectors[start : start + len(block)] = block.vectors
        start, bad = start + len(block), bad + block.card["unreadable"]
    return Embeddings(table.ids, vectors, {**key, "unreadable": bad})


def two_sides(model: nn.Module, config: ViewConfig) -> bool:
    """Whether the mirrored views have a vector of their own; titles cannot be mirrored."""
    return config.flip and config.join_flip and "image" in inputs_of(model)


def _width(model: nn.Module, config: ViewConfig) -> int:
    """Length of an embedding."""
    return int(model.embedding_dim) * (1 + two_sides(model, config))  # type: ignore[arg-type]


def _settings(config: ViewConfig, inputs: Sequence[str] = ("image",)) -> dict[str, Any]:
    """What the vectors depend on; batch and block sizes and workers are not part of it."""
    stored = {"half": config.half, "precision": config.precision}
    if "image" not in inputs:
        return stored
    # Only what differs from the mean is named: embeddings made before there was a choice stay good.
    merged: dict[str, Any] = {} if config.merge == "mean" else {"merge": config.merge}
    if config.join_flip:
        merged["join_flip"] = True
    if config.merge == "gem":
        merged["merge_p"] = config.merge_p
    return {
        **merged,
        "size": config.size,
        "scales": list(config.scales),
        "flip": config.flip,
        "fit": config.fit,
        **stored,
    }


def _digest(table: Table, inputs: Sequence[str] = ("image",)) -> str:
    """Of the rows and what is looked at of each."""
    digest = hashlib.sha256(np.ascontiguousarray(table.ids).tobytes())
    if "image" in inputs:
        for column in (table.paths, table.boxes, table.frames, table.masks, table.mirror):
            if column is not None:
                digest.update(np.ascontiguousarray(column).tobytes())
    if "tokens" in inputs and table.titles is not None:
        for title in table.titles:
            text = title.encode()
            digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()[:16]


def _digest_of(key: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:12]
