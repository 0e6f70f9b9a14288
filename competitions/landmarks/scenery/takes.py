"""Buildings and their takes: the runs of frames that must stay on one side of a split."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from common.data.sample import Image, digest, over, read_sprite

from .ground import ROTATIONS

# No landmarks: tiles that continue each other, ruins without a shape, a bare pole, and the second
# copy of a drawing that the game has twice.
SKIPPED = re.compile(r"/(streets|wall|placeholder|lookout)/|merchants/as_estate1")
CROPS = re.compile(r"field|herbary|vineyard")  # bare soil looks alike on all: only the ripe crop
PART = re.compile(r"^(logs|planks|bricks)_\d+$")  # stock lying about, drawn over the idle building

Frame = tuple[Path, ...]  # a drawing, and what is drawn over it


@dataclass
class Take:
    """Frames that stay together: neighbors in one animation, of one camera rotation (0 to 3)."""

    rotation: int
    frames: list[Frame]


@dataclass
class Building:
    """A landmark: its takes, which split they belong to, and how many pictures each split gets."""

    name: str
    takes: list[Take]
    pictures: dict[str, int] = field(default_factory=dict)
    shares: dict[str, list[Take]] = field(default_factory=dict)

    @property
    def rotations(self) -> list[int]:
        """The camera rotations that look different."""
        return sorted({take.rotation for take in self.takes})


def find_buildings(content: Path) -> list[Building]:
    """Every building of the art, sorted by name.

    Raises:
        FileNotFoundError: there are none; says where they should be.
    """
    root = content / "gfx" / "buildings"
    buildings = []
    for path in sorted(root.rglob("as_*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() and not SKIPPED.search(f"/{name}/"):
            takes = find_takes(path)
            if takes:
                buildings.append(Building(name, takes))
    if not buildings:
        raise FileNotFoundError(
            f"No gfx/buildings/*/as_*/idle/45/*.png under {content}: unpack the Debian package "
            "unknown-horizons and give its usr/share/unknown-horizons/content."
        )
    return buildings


def find_takes(building: Path) -> list[Take]:
    """The takes of a building, in the order of rotations, actions and frames."""
    takes: list[Take] = []
    gaps: set[str] = set()
    for number, rotation in enumerate(ROTATIONS):
        for frames in _animations(building, rotation).values():
            runs = cut(frames)
            takes += [Take(number, run) for run in runs]
            gaps |= {_mark(frame) for frame in frames if not any(frame in run for run in runs)}
    for take in takes:  # a drawing in a gap is a neighbor of two takes, wherever else it occurs
        take.frames = [frame for frame in take.frames if _mark(frame) not in gaps]
    return merge([take for take in takes if take.frames])


def _animations(building: Path, rotation: str) -> dict[str, list[Frame]]:
    animations: dict[str, list[Frame]] = {}
    idle = sorted((building / "idle" / rotation).glob("*.png"))[:1]
    for action in sorted(building.iterdir()):
        drawings = sorted((action / rotation).glob("*.png"))
        part = PART.match(action.name)
        if part and idle:  # a growing pile of logs is an animation too
            animations.setdefault(part[1], []).extend((idle[0], drawing) for drawing in drawings)
        elif not part and (action.name == "idle_full" or not CROPS.search(building.name)):
            animations[action.name] = [(drawing,) for drawing in drawings]
    return animations


def cut(frames: list[Frame]) -> list[list[Frame]]:
    """Up to three runs of an animation's frames; the frame after each run is in none.

    The last frame is left out too: most animations are loops, so it is a neighbor of the first.
    """
    runs = min(3, len(frames) // 2)
    if runs < 2:
        return [frames] if frames else []
    ends = [len(frames) * (n + 1) // runs for n in range(runs)]
    return [frames[start : end - 1] for start, end in zip([0, *ends], ends, strict=False)]


def merge(takes: list[Take]) -> list[Take]:
    """The takes with those that share a drawing made one, in the rotation of the first."""
    merged: list[tuple[Take, set[str]]] = []
    for take in takes:
        marks = {_mark(frame) for frame in take.frames}
        twins = [pair for pair in merged if pair[1] & marks]
        place = merged.index(twins[0]) if twins else len(merged)
        whole = Take((twins[0][0] if twins else take).rotation, [])
        for other, seen in twins:
            whole.frames += other.frames
            marks |= seen
        whole.frames += take.frames
        merged = [pair for pair in merged if pair not in twins]
        merged.insert(place, (whole, marks))
    return [take for take, _ in merged]


@cache
def _mark(frame: Frame) -> str:
    """A name for what the frame looks like: equal pixels, equal names."""
    return digest(*(hashlib.sha256(read_sprite(path).tobytes()).hexdigest() for path in frame))


def draw(frame: Frame) -> Image:
    """The sprite of a frame; a part that was drawn on another canvas is left out."""
    image = read_sprite(frame[0])
    for path in frame[1:]:
        part = read_sprite(path)
        image = over(part, image) if part.shape == image.shape else image
    return image
