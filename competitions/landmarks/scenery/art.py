"""The drawings of Unknown Horizons that scenes are made of, sorted by what they show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from common.data.sample import Image, read_sprite, trim

Tiles = dict[tuple[str, str, str], Path]  # (set, shape, rotation) -> drawing

GROUPS = {  # what may stand in a picture besides a building: patterns below gfx
    "trees": ["terrain/trees/as_*/idle_full/*/*.png"],
    "bushes": ["terrain/trees/as_*/work/*/*.png"],
    "stones": ["terrain/ambient/as_*/*/*/*.png"],
    "deposits": ["terrain/resources/as_[cs]*/idle/*/*.png"],
    "mountains": ["terrain/mountains/as_mountain*/idle/*/*.png"],
    "animals": ["units/animals/as_*/*/*/*.png"],
    "people": [
        "units/*/as_*unit0/*/*/*.png",
        "units/*/as_[chp]*0/*/*/*.png",
        "units/inhabitant/*/as_*/*/*/*.png",
    ],
    "ships": ["units/ships/*/as_*/idle/*/*.png"],
    "walls": [  # the other shapes are bridges that only make sense beside a neighbor
        "buildings/*/wall/as_*/single/*/*.png",
        "buildings/*/wall/as_*/a[bc]/*/*.png",
    ],
}


@lru_cache(maxsize=4096)
def sprite(path: Path) -> Image:
    """A drawing on its whole canvas."""
    return read_sprite(path)


@lru_cache(maxsize=4096)
def trimmed(path: Path) -> Image:
    """A drawing without the empty rim of its canvas."""
    return trim(sprite(path))


@dataclass
class Art:
    """All drawings but those of buildings.

    Attributes:
        tiles: ground tiles.
        streets: street tiles.
        groups: drawings by group and species; a species is one kind of tree, ship, soldier, ...
    """

    tiles: Tiles
    streets: Tiles
    groups: dict[str, dict[str, list[Path]]] = field(default_factory=dict)

    @classmethod
    def read(cls, content: Path) -> Art:
        """The art in an unpacked content folder.

        Raises:
            FileNotFoundError: the folder is not the game's content; says what is missing.
        """
        gfx = Path(content) / "gfx"
        tiles = _tiles(gfx.glob("base/moderate/ts_*/*/*/*.png"))
        if not any(name.startswith("ts_grass") for name, _, _ in tiles):
            raise FileNotFoundError(
                f"No ground tiles gfx/base/moderate/ts_grass*/straight/45/*.png under {content}: "
                "give the folder usr/share/unknown-horizons/content of the unpacked package."
            )
        groups: dict[str, dict[str, list[Path]]] = {}
        for name, patterns in GROUPS.items():
            found = {path for pattern in patterns for path in gfx.glob(pattern)}
            for path in sorted(found):
                groups.setdefault(name, {}).setdefault(path.parents[2].name, []).append(path)
        return cls(tiles, _tiles(gfx.glob("buildings/*/streets/as_*/*/*/*.png")), groups)

    def half(self, number: int) -> Art:
        """Every other species of each group: number 0 or 1; a lone species is in half 1."""
        halves = {
            name: {kind: species[kind] for kind in sorted(species)[1 - number :: 2]}
            for name, species in self.groups.items()
        }
        return Art(self.tiles, self.streets, halves)

    def species(self, group: str, rng: np.random.Generator) -> list[Path]:
        """All drawings of one species of the group; none when the art has no such group."""
        kinds = self.groups.get(group) or {"": []}
        return kinds[sorted(kinds)[rng.integers(len(kinds))]]

    def pick(self, group: str, rng: np.random.Generator) -> Path | None:
        """One drawing of the group; None when the art has no such group."""
        drawings = self.species(group, rng)
        return drawings[rng.integers(len(drawings))] if drawings else None


def _tiles(paths: Iterable[Path]) -> Tiles:
    found: Tiles = {}
    for path in sorted(paths):
        found.setdefault((path.parents[2].name, path.parents[1].name, path.parent.name), path)
    return found
