"""Individuals: the units of Battle for Wesnoth, each with the frames of its actions.

The art names its frames `<unit>-<action>-<number>.png`. Frames of one action resemble each other
like photographs of one encounter, so an action belongs to one side of a split only.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.data.sample import Image, digest, read_sprite, trim

# Frames that do not show the unit whole: it dissolves, flashes, turns into something else.
_BROKEN = ("die", "death", "overlay", "halo", "wings", "projectile", "teleport", "tail", "wake")
_FRAMES = 2  # per action, and thrice that per individual


@dataclass
class Unit:
    """One individual.

    Attributes:
        name: folder and stem of its files.
        actions: name of an action -> its frames; no drawing is in two actions.
    """

    name: str
    actions: dict[str, list[Path]]

    @property
    def key(self) -> int:
        """A number that says nothing about the unit."""
        return int(digest("whale", "unit", self.name), 16)


def find_units(images: Path) -> list[Unit]:
    """All units with at least two actions below `images/units`, in an order of no meaning.

    Raises:
        FileNotFoundError: `images` is not the art's folder `data/core/images`.
    """
    folders = defaultdict(list)
    for path in sorted((images / "units").rglob("*.png")):
        folders[path.parent].append(path)
    if not folders:
        raise FileNotFoundError(f"No units below {images}: give the unpacked data/core/images.")
    units = []
    for folder, paths in folders.items():
        for stem, own in _by_unit(paths).items():
            name = f"{folder.relative_to(images / 'units')}/{stem}"
            units.append(Unit(name, _actions(stem, own)))
    return sorted((unit for unit in units if len(unit.actions) > 1), key=lambda unit: unit.key)


def draw(path: Path, hue: float) -> Image:
    """A frame without its empty rim, the magenta of the player's color turned to `hue` degrees."""
    sprite = read_sprite(path)
    color = np.divide(
        sprite[..., :3], sprite[..., 3:], where=sprite[..., 3:] > 0, out=sprite[..., :3].copy()
    )
    hsv = cv2.cvtColor(np.clip(color, 0, 1), cv2.COLOR_BGR2HSV)
    painted = (hsv[..., 0] > 310) & (hsv[..., 0] < 335) & (hsv[..., 1] > 0.15)
    hsv[painted, 0] = hue
    sprite[..., :3] = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * sprite[..., 3:]
    return trim(sprite)


def _by_unit(paths: list[Path]) -> dict[str, list[Path]]:
    """Files of one folder by the stem of the unit: the shortest name that begins theirs."""
    stems = {path.stem: path for path in paths}
    bases = [
        stem
        for stem in stems
        if not stem[-1].isdigit() and any(other.startswith(f"{stem}-") for other in stems)
    ]
    bases = [s for s in bases if not any(s.startswith(f"{other}-") for other in bases)]
    return {
        base: [path for stem, path in stems.items() if stem == base or stem.startswith(f"{base}-")]
        for base in bases
    }


def _actions(stem: str, paths: list[Path]) -> dict[str, list[Path]]:
    """At most three actions of at most two frames each that show the unit whole."""
    found: dict[str, list[Path]] = defaultdict(list)
    size = int(_area(next(path for path in paths if path.stem == stem)))
    drawings: Counter[str] = Counter()
    for path in sorted(paths):
        action = re.sub(r"[-_.\d]+", "-", path.stem.removeprefix(stem)).strip("-") or "stand"
        drawing = digest(path.read_bytes())
        if any(word in action for word in _BROKEN) or drawings[drawing]:
            continue
        if not 0.6 * size < _area(path) < 1.8 * size:
            continue
        drawings[drawing] += 1
        found[action].append(path)
    richest = sorted(found, key=lambda action: (action != "stand", digest(stem, action)))[:3]
    # The first and the middle frame of an action differ most.
    return {
        action: [found[action][i] for i in sorted({0, len(found[action]) // 2})][:_FRAMES]
        for action in sorted(richest)
    }


def _area(path: Path) -> float:
    """Pixels that a drawing covers."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim < 3 or pixels.shape[2] < 4:
        return 0.0
    return float((pixels[..., 3] > 40).sum())
