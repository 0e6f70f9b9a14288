"""The steps of augmentation recipes, cheap on uint8 tensors: torchvision v2 and what it lacks.

`Resize`, `RandomCrop` and `RandomResizedCrop` bring any `(3, H, W)` to `(3, size, size)`; the
others keep the shape. All randomness is torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import torch
from torch import Tensor

from common.config import ConfigError
from common.lazy import Lazy

v2, F = Lazy("torchvision.transforms.v2"), Lazy("torchvision.transforms.v2.functional")

Transform = Callable[[Tensor], Tensor]


class Resize:
    """The whole picture to size x size: `fit` is `squash`, `pad` (black) or `crop` (the centre)."""

    def __init__(self, size: int, *, fit: str = "squash") -> None:
        if fit not in ("squash", "pad", "crop"):
            raise ConfigError(f"fit must be squash, pad or crop, got {fit!r}")
        self.size, self.fit, self.short_side = size, fit, size

    def __call__(self, image: Tensor) -> Tensor:  # noqa: D102
        rows, columns = image.shape[1:]
        if self.fit == "crop":  # before the resize, so that a 1 x 30000 strip stays small
            image = _window(image, min(rows, columns), 0.5, 0.5)
        if self.fit != "pad":
            return _scale(image, self.size, self.size)
        longest = max(rows, columns)
        height = max(1, round(rows * self.size / longest))
        width = max(1, round(columns * self.size / longest))
        top, left = (self.size - height) // 2, (self.size - width) // 2
        border = [left, top, self.size - width - left, self.size - height - top]
        padded: Tensor = F.pad(_scale(image, height, width), border)
        return padded

    def still(self) -> Resize:
        """The same without chance, for evaluation."""
        return self


class RandomCrop:
    """A random square of the picture whose short side is `margin` times the square's."""

    def __init__(self, size: int, *, margin: float = 8 / 7, centred: bool = False) -> None:
        if margin < 1:
            raise ConfigError(f"random_crop.margin must be at least 1, got {margin}")
        self.size, self.margin, self.centred = size, margin, centred
        self.short_side = math.ceil(size * margin)

    def __call__(self, image: Tensor) -> Tensor:  # noqa: D102
        side = max(1, round(min(image.shape[1:]) / self.margin))
        down, right = (0.5, 0.5) if self.centred else torch.rand(2).tolist()
        return _scale(_window(image, side, down, right), self.size, self.size)

    def still(self) -> RandomCrop:
        """The centre crop of the same size."""
        return RandomCrop(self.size, margin=self.margin, centred=True)


class RandomResizedCrop:
    """A random part of `smallest` to `largest` of the area, sides between 3:4 and 4:3, to size."""

    def __init__(self, size: int, *, smallest: float = 0.35, largest: float = 1.0) -> None:
        if not 0 < smallest <= largest <= 1:
            raise ConfigError(
                "random_resized_crop: smallest and largest are shares of the area with "
                f"0 < smallest <= largest <= 1, got {smallest} and {largest}"
            )
        self.size, self.crop = size, v2.RandomResizedCrop(size, scale=(smallest, largest))
        # So that the smallest crop of a 4:3 photograph still has `size` pixels on its short side.
        self.short_side = math.ceil(size / math.sqrt(smallest))

    def __call__(self, image: Tensor) -> Tensor:  # noqa: D102
        cropped: Tensor = self.crop(image)
        return cropped.contiguous()

    def still(self) -> Resize:
        """The whole picture."""
        return Resize(self.size)


Geometry = Resize | RandomCrop | RandomResizedCrop


def flip(*, p: float = 0.5) -> Transform:
    """Mirror left and right."""
    return v2.RandomHorizontalFlip(p)  # type: ignore[no-any-return]


def affine(
    *,
    degrees: float = 10.0,
    translate: float = 0.0,
    zoom: float = 0.0,
    shear: float = 0.0,
    p: float = 1.0,
) -> Transform:
    """Rotate and shear (degrees), shift (share of the side), scale by 1 +- zoom; black rim."""
    return _sometimes(
        v2.RandomAffine(
            degrees,
            translate=(translate, translate),
            scale=(1 - zoom, 1 + zoom),
            shear=(-shear, shear) if shear else None,
            interpolation=v2.InterpolationMode.BILINEAR,
        ),
        p,
    )


def color(
    *, brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.0, p: float = 1.0
) -> Transform:
    """Brightness, contrast, saturation times 1 +- the given share (no hue: ten times the cost)."""
    return _sometimes(v2.ColorJitter(brightness, contrast, saturation), p)


def gray(*, p: float = 0.1) -> Transform:
    """Grey with three equal channels."""
    return v2.RandomGrayscale(p)  # type: ignore[no-any-return]


def posterize(*, bits: int = 4, p: float = 0.2) -> Transform:
    """Keep the highest bits of each channel."""
    return v2.RandomPosterize(bits, p)  # type: ignore[no-any-return]


def blur(
    *, kernel: int = 7, lowest: float = 0.8, highest: float = 1.4, p: float = 0.1
) -> Transform:
    """Gaussian blur with a random sigma in pixels."""
    return _sometimes(v2.GaussianBlur(kernel, (lowest, highest)), p)


def noise(*, sigma: float = 0.05, p: float = 0.1) -> Transform:
    """Gaussian noise on every channel, sigma as share of the full range."""
    return _sometimes(v2.GaussianNoise(0.0, sigma), p)


def trivial_augment() -> Transform:
    """One random operation of a random strength (TrivialAugment, wide)."""
    return v2.TrivialAugmentWide()  # type: ignore[no-any-return]


class Jpeg:
    """Compress with a random JPEG quality, 4:2:0."""

    def __init__(self, *, lowest: int = 60, highest: int = 100, p: float = 1.0) -> None:
        if not 1 <= lowest <= highest <= 100:
            raise ConfigError(f"jpeg quality must be 1 to 100, got {lowest} to {highest}")
        self.lowest, self.highest, self.p = lowest, highest, p

    def __call__(self, image: Tensor) -> Tensor:  # noqa: D102
        if torch.rand(()).item() >= self.p:
            return image
        quality = int(torch.randint(self.lowest, self.highest + 1, ()))
        # OpenCV, because torchvision has announced the end of its own codecs, v2.JPEG's engine.
        blue_first = image.flip(0).permute(1, 2, 0).numpy()
        _, data = cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = torch.from_numpy(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
        return decoded.permute(2, 0, 1).contiguous()


class Cutout:
    """Black squares, `side` is their share of the picture's side; they may stick out of it."""

    def __init__(self, *, side: float = 0.4, holes: int = 1, p: float = 0.5) -> None:
        self.side, self.holes, self.p = side, holes, p

    def __call__(self, image: Tensor) -> Tensor:  # noqa: D102
        if torch.rand(()).item() >= self.p:
            return image
        image = image.clone()
        rows, columns = image.shape[1:]
        height, width = max(1, round(rows * self.side)), max(1, round(columns * self.side))
        for down, right in torch.rand(self.holes, 2).tolist():
            top, left = int(down * rows) - height // 2, int(right * columns) - width // 2
            image[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = 0
        return image


class GridShuffle:
    """The tiles of a grid x grid raster in random order."""

    def __init__(self, *, grid: int = 2, p: float = 0.3) -> None:
        self.grid, self.p = grid, p

    def __call__(self, image: Tensor) -> Tensor:  # noqa: D102
        if torch.rand(()).item() >= self.p:
            return image
        grid, (height, width) = self.grid, (side // self.grid for side in image.shape[1:])
        shuffled = image.clone()  # a rim that the grid does not divide stays as it is
        for target, source in enumerate(torch.randperm(grid * grid).tolist()):
            (y, x), (v, u) = divmod(target, grid), divmod(source, grid)
            tile = image[:, v * height : (v + 1) * height, u * width : (u + 1) * width]
            shuffled[:, y * height : (y + 1) * height, x * width : (x + 1) * width] = tile
        return shuffled


def _sometimes(transform: Transform, p: float) -> Transform:
    return transform if p >= 1 else v2.RandomApply([transform], p)


def _scale(image: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear; torch does it fastest from HWC memory, what follows from CHW."""
    scaled: Tensor = F.resize(image, [height, width], antialias=True)
    return scaled.contiguous()


def _window(image: Tensor, side: int, down: float, right: float) -> Tensor:
    """A square of `side` pixels; `down` and `right` in [0, 1) place it between the two edges."""
    top = int((image.shape[1] - side + 1) * down)
    left = int((image.shape[2] - side + 1) * right)
    return image[:, top : top + side, left : left + side]
