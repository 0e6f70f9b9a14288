"""Images per second of our input pipeline and of Pillow + torchvision, taken in turns in one run.

python -m tests.bench.input_pipeline [--images 96] [--rounds 5] [--workers 0 2] [--side 224]

Both read the same JPEGs with the same worker count and draw the same augmentation. Ours ends as a
uint8 batch (the model scales and normalises it on its device), theirs as a normalised float batch;
the last line says what that step costs here. The pictures are synthetic: noise with a falling
spectrum like a photograph's, JPEG quality 85, 4:2:0, 1.3 to 2 bits per pixel.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common.data.augment import build
from common.data.dataset import ImageDataset, batches, loader

SHAPES = [(1024, 768), (640, 480), (256, 192)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32


class PillowDataset(Dataset[torch.Tensor]):
    """The usual way: Pillow, torchvision on the picture, ToTensor, Normalize."""

    def __init__(self, paths: list[str], transform: Callable[[Any], torch.Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.paths[row]) as picture:
            return self.transform(picture.convert("RGB"))


def photograph(width: int, height: int, seed: int) -> np.ndarray:
    """A random picture with a natural spectrum, `(H, W, 3)` uint8."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    falloff = 1 / np.maximum(frequency, 1 / max(width, height)) ** 1.5
    fields = []
    for deviation in (48, 12, 12):  # luma, and two colour differences
        waves = rng.normal(size=falloff.shape) + 1j * rng.normal(size=falloff.shape)
        field = np.fft.irfft2(waves * falloff, (height, width))
        fields.append(field / field.std() * deviation)
    luma, red, blue = fields
    picture = 120 + np.stack([luma + blue, luma, luma + red], axis=2)
    picture += rng.normal(0, 2, picture.shape)  # sensor noise
    return np.clip(picture, 0, 255).astype(np.uint8)


def write(folder: Path, width: int, height: int, count: int) -> list[str]:
    paths = []
    for i in range(count):
        path = folder / f"{width}x{height}_{i}.jpg"
        options = [cv2.IMWRITE_JPEG_QUALITY, 85]
        cv2.imwrite(str(path), photograph(width, height, i % 16), options)
        paths.append(str(path))
    return paths


def seconds(batches_of_images: Iterable[Any]) -> float:
    start = time.perf_counter()
    for _ in batches_of_images:
        pass
    return time.perf_counter() - start


def compare(paths: list[str], case: str, *, side: int, workers: int, rounds: int) -> None:
    """Print images per second of both, medians of `rounds` passes that alternate."""
    tail = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if case == "resize":
        ours = build("none", side, train=False)
        theirs = [transforms.Resize((side, side)), *tail]
    else:
        smallest = float(case.removeprefix("crop "))
        steps = [{"name": "random_resized_crop", "smallest": smallest}, {"name": "flip"}]
        ours = build(steps, side, train=True)
        crop = transforms.RandomResizedCrop(side, scale=(smallest, 1.0))
        theirs = [crop, transforms.RandomHorizontalFlip(), *tail]
    dataset = ImageDataset(np.array(paths, "S"), None, size=side, transform=ours)
    loaders: dict[str, Iterable[Any]] = {
        "ours": loader(dataset, batches(len(paths), BATCH), workers=workers, device="cpu"),
        "theirs": DataLoader(
            PillowDataset(paths, transforms.Compose(theirs)),
            batch_size=BATCH,
            num_workers=workers,
            persistent_workers=workers > 0,
        ),
    }
    taken: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(rounds + 1):
        for name, one in loaders.items():
            duration = seconds(one)
            if turn:  # the first pass starts workers and fills caches
                taken[name].append(duration)
    rate = {name: len(paths) / statistics.median(times) for name, times in taken.items()}
    ratios = [b / a for a, b in zip(taken["ours"], taken["theirs"], strict=True)]
    print(
        f"  {case:10s} {workers} workers: ours {rate['ours']:6.0f}/s, Pillow + torchvision "
        f"{rate['theirs']:6.0f}/s, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--side", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread per "
        f"process; OpenCV {cv2.__version__}, torch {torch.__version__}, Pillow {Image.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SHAPES:
            paths = write(Path(folder), width, height, options.images)
            bits = statistics.mean(Path(p).stat().st_size for p in paths) * 8 / (width * height)
            print(f"{width} x {height}, {bits:.1f} bits per pixel, to {options.side}:")
            for case in ("resize", "crop 0.35", "crop 0.08"):
                for workers in options.workers:
                    compare(paths, case, side=options.side, workers=workers, rounds=options.rounds)
    batch = torch.zeros(BATCH, 3, options.side, options.side, dtype=torch.uint8)
    mean, std = torch.tensor(MEAN)[:, None, None] * 255, torch.tensor(STD)[:, None, None] * 255
    start = time.perf_counter()
    for _ in range(10):
        batch.float().sub_(mean).div_(std)
    each = (time.perf_counter() - start) / 10 / BATCH
    print(f"scaling and normalising a uint8 image on this CPU: {each * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
