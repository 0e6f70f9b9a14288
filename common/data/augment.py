"""Augmentation recipes on uint8 tensors: those that winners published, and four of ours.

A recipe is a name out of `RECIPES` or a list of steps as in YAML:
`[{name: random_crop}, {name: flip}, {name: cutout, side: 0.4}]`; the steps are in `transforms`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.config import ConfigError, suggestion
from common.data import transforms
from common.data.transforms import Geometry, Resize, Transform
from common.steps import Step, bind, catalog

STEPS = catalog(transforms)
# What changes colours and nothing else: a mask beside them stays as it is.
COLORS = ("color", "gray", "posterize", "blur", "noise", "jpeg")

RECIPES: dict[str, list[Step]] = {
    "none": [],
    # Ours: the usual crop, but never below a third of the area, which tends to miss the object.
    "crop": [{"name": "random_resized_crop"}, {"name": "flip"}],
    # Ours, where a mirrored picture shows somebody else.
    "crop_upright": [{"name": "random_resized_crop"}],
    # Ours, for small data: TrivialAugment (Müller & Hutter 2021) between crop and cutout.
    "strong": [
        {"name": "random_resized_crop"},
        {"name": "flip"},
        {"name": "trivial_augment"},
        {"name": "cutout"},
    ],
    # Landmark recognition 2020, 1st place, configs 1 and 2: short side to 512, random 448 crop.
    "landmarks2020_1st": [{"name": "random_crop", "margin": 512 / 448}, {"name": "flip"}],
    # Landmark recognition 2020, 3rd place; recognition and retrieval 2021, 1st place, use the same.
    # They compress and warp before the resize, we after it: a tenth of the pixels.
    "landmarks2020_3rd": [
        {"name": "resize"},
        {"name": "flip"},
        {"name": "jpeg", "lowest": 99, "highest": 100},
        {"name": "affine", "degrees": 10, "translate": 0.2, "zoom": 0.2, "p": 0.7},
        {"name": "cutout", "side": 0.4, "p": 0.5},
    ],
    # Humpback whale 2019, 1st place, without the mask channel and CLAHE. No flip here: a mirrored
    # fluke is another class there (the dataset's `mirror`).
    "whale2019_1st": [
        {"name": "resize"},
        {"name": "affine", "degrees": 25, "p": 0.5},
        {"name": "noise", "sigma": 0.1, "p": 0.5},
        {"name": "color", "brightness": 0.1, "contrast": 0.0, "p": 0.25},
        {"name": "cutout", "side": 0.03, "p": 0.5},
        {"name": "affine", "degrees": 0, "translate": 0.04, "zoom": 0.1, "p": 0.5},
    ],
    # Happywhale 2022, 1st place, without snow and rain (torchvision has none), and with the crop
    # first, so that one resize does both.
    "happywhale2022_1st": [
        {"name": "random_resized_crop", "smallest": 0.9},
        {"name": "affine", "degrees": 15, "translate": 0.25, "shear": 3, "p": 0.5},
        {"name": "gray", "p": 0.1},
        {"name": "blur", "p": 0.05},
        {"name": "noise", "sigma": 0.02, "p": 0.05},
        {"name": "grid_shuffle", "p": 0.3},
        {"name": "posterize", "p": 0.2},
        {"name": "color", "p": 0.5},
        {"name": "cutout", "holes": 8, "side": 0.01, "p": 0.05},
        {"name": "flip"},
    ],
    # Shopee 2021, 1st place: the flip alone.
    "shopee2021_1st": [{"name": "resize"}, {"name": "flip"}],
}


class Augment:
    """What `build` returns: `(3, H, W)` uint8 of any H and W -> contiguous `(3, size, size)`.

    Attributes:
        size: side of the result.
        short_side: the short side that a picture should have, for `read_image(size=...)`: with
            less something is enlarged, with more only time is lost.
        mixed: whether a step moves pixels or colours as chance has it, so that a mask, a fourth
            channel, could not follow. Otherwise `(4, H, W)` becomes `(4, size, size)`.
    """

    def __init__(
        self, size: int, short_side: int, steps: Sequence[Transform], names: Sequence[str] = ()
    ) -> None:
        self.size, self.short_side, self.steps = size, short_side, list(steps)
        self.names = list(names) or [""] * len(self.steps)
        self.mixed = "trivial_augment" in self.names

    def __call__(self, image: Tensor) -> Tensor:  # noqa: D102
        for name, step in zip(self.names, self.steps, strict=True):
            if len(image) > 3 and name in COLORS:
                image = torch.cat([step(image[:3].contiguous()), image[3:]])
            else:
                image = step(image)
        return image.contiguous()


def build(
    recipe: str | Sequence[Step], size: int, train: bool, *, fit: str | None = None
) -> Augment:
    """The recipe as a callable: uint8 `(3, H, W)` -> uint8 `(3, size, size)`.

    Args:
        recipe: a name out of `RECIPES`, or steps. At most one of them brings the picture to size
            (`resize`, `random_crop`, `random_resized_crop`), as the first; without one it is
            `resize`.
        size: side of the result in pixels.
        train: False keeps only the way to size: the centre crop of `random_crop`, else `resize`.
        fit: the aspect ratio in `resize`, and in every evaluation: `squash` to the square, `pad`
            or `crop`. None: what the recipe says, which is squash unless it crops, as most winners
            did.

    Raises:
        ConfigError: unknown recipe, step or argument, or a second or late way to size.
    """
    if isinstance(recipe, str) and recipe not in RECIPES:
        near = suggestion(recipe, list(RECIPES)) or "."
        raise ConfigError(f"no augmentation {recipe!r}{near} Known: {', '.join(RECIPES)}")
    if size < 1:
        raise ConfigError(f"the image size must be at least 1, got {size}")
    steps = RECIPES[recipe] if isinstance(recipe, str) else recipe
    parts = [bind(step, STEPS, "augmentation")({"size": size}) for step in steps]
    names = [str(step["name"]) for step in steps]
    geometry: Geometry = Resize(size)
    if parts and isinstance(parts[0], Geometry):
        geometry, names = parts.pop(0), names[1:]
    for place, part in enumerate(parts):
        if isinstance(part, Geometry):
            name = steps[place + len(steps) - len(parts)]["name"]
            raise ConfigError(
                f"augmentation: {name} brings the picture to size, so it must be the first step "
                "and the only one of resize, random_crop, random_resized_crop"
            )
    if not train:
        geometry, parts, names = geometry.still(), [], []
    if fit is not None and (not train or isinstance(geometry, Resize)):
        geometry = Resize(size, fit=fit)
    return Augment(size, geometry.short_side, [geometry, *parts], ["", *names])
