"""Build the bundled landmarks sample from the art of the free game Unknown Horizons.

    apt-get download unknown-horizons && dpkg-deb -x unknown-horizons_*.deb unpacked
    python competitions/landmarks/make_sample.py unpacked/usr/share/unknown-horizons/content

Made with Debian's 2019.1-6. The same art, numpy and OpenCV give the same bytes. A *take* is a run of
neighboring frames of one action from one camera rotation; takes that share a drawing are one take, and
a frame between two takes is not used. A take belongs to one of train, index and test, so neither one
drawing nor two neighboring frames are ever on both sides of a split.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import cv2
import numpy as np

if not __package__:  # run by path: find `common`, and let a copied folder find its own files
    folder = Path(__file__).resolve().parent
    sys.path.insert(0, str(folder.parents[1]))
    __package__ = f"{folder.parent.name}.{folder.name}"
    __import__(__package__)

from common.data.sample import Image, digest, encode_jpeg, over, read_sprite, stream
from common.paths import atomic, write_text

from .sample_scenes import ROTATIONS, Art, empty_scene, landmark_scene

SEED = "landmarks-1"
# No landmarks: tiles that continue each other, ruins without a shape, a bare pole, and the second
# copy of a drawing that the game has twice.
SKIPPED = re.compile(r"/(streets|wall|placeholder|lookout)/|merchants/as_estate1")
CROPS = re.compile(r"field|herbary|vineyard")  # bare soil looks alike on all: only the ripe crop
PART = re.compile(r"^(logs|planks|bricks)_\d+$")  # stock lying about, drawn over the idle building
HOME = Path(__file__).resolve().parent / "sample"


@dataclass
class Counts:
    """How many pictures to make; test also gets two empty pictures for each landmark picture."""

    train: int = 420
    index: int = 170
    test: int = 80
    non_landmark: int = 60


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

    def number(self) -> int:
        """The landmark_id: six digits that say nothing about the building."""
        return int(digest(SEED, "landmark", self.name), 16) % 900_000 + 100_000


def find_buildings(content: Path) -> list[Building]:
    """Every building of the art, sorted by name.

    Raises:
        FileNotFoundError: there are none, naming where they should be.
    """
    root = content / "gfx" / "buildings"
    folders = [path for path in sorted(root.rglob("as_*")) if path.is_dir()]
    buildings = []
    for path in folders:
        if not SKIPPED.search(f"/{path.relative_to(root).as_posix()}/"):
            takes = find_takes(path)
            if takes:
                buildings.append(Building(path.relative_to(root).as_posix(), takes))
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
        actions: dict[str, list[Frame]] = {}
        for action in sorted(building.iterdir()):
            drawings = sorted((action / rotation).glob("*.png"))
            part = PART.match(action.name)
            idle = sorted((building / "idle" / rotation).glob("*.png"))[:1]
            if part and idle:
                actions.setdefault(part[1], []).extend((idle[0], drawing) for drawing in drawings)
            elif not part and (not CROPS.search(building.name) or action.name == "idle_full"):
                actions[action.name] = [(drawing,) for drawing in drawings]
        for frames in actions.values():
            runs = cut(frames)
            takes += [Take(number, run) for run in runs]
            gaps |= {_mark(frame) for frame in frames if not any(frame in run for run in runs)}
    for take in takes:  # a drawing in a gap is a neighbor of two takes, wherever else it occurs
        take.frames = [frame for frame in take.frames if _mark(frame) not in gaps]
    return merge([take for take in takes if take.frames])


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
        whole = Take((twins[0][0] if twins else take).rotation, [])
        for other, seen in twins:
            whole.frames += other.frames
            marks |= seen
        whole.frames += take.frames
        place = merged.index(twins[0]) if twins else len(merged)
        merged = [pair for pair in merged if pair not in twins]
        merged.insert(place, (whole, marks))
    return [take for take, _ in merged]


@cache
def _mark(frame: Frame) -> str:
    return digest(*(hashlib.sha256(read_sprite(path).tobytes()).hexdigest() for path in frame))


def plan(buildings: list[Building], counts: Counts) -> None:
    """Say how many pictures of each building go to train, index and test, and with which views."""

    def rank(*key: object) -> float:
        return int(digest(SEED, *key), 16) / 16**16

    order = sorted(buildings, key=lambda building: rank("order", building.name))
    whole = [building for building in order if len(building.rotations) > 2]
    unseen = whole[: round(len(order) / 3)]
    # Buildings with more takes tend to have more pictures.
    seen = sorted(
        (building for building in order if building not in unseen),
        key=lambda building: np.log(len(building.takes)) + 2 * rank("size", building.name),
    )
    for n, building in enumerate(unseen):
        building.pictures = {"train": 0, "index": 2 + n % 3, "test": 1}
    for n, building in enumerate(seen):  # a long tail: median 6, one building with 30
        u = n / max(len(seen) - 1, 1)
        building.pictures = {"train": round(2 + 7.5 * u + 20.5 * u**10), "index": 0, "test": 0}
    asked = sorted(
        (building for building in seen if len(building.takes) > 2),
        key=lambda building: (-len(building.takes), rank("test", building.name)),
    )
    for split, share in (("test", 1.0), ("index", 0.93)):  # a few queries have no answer in index
        left = getattr(counts, split) - sum(building.pictures[split] for building in unseen)
        for n in range(max(left, 0) if asked else 0):
            asked[n % max(round(len(asked) * share), 1)].pictures[split] += 1
    short = counts.train - sum(building.pictures["train"] for building in seen)
    for n in range(max(short, 0)):
        seen[n % len(seen)].pictures["train"] += 1
    for building in order:
        _share_takes(building)


def _share_takes(building: Building) -> None:
    """Give each take to one split, so that each split with pictures has one.

    The rotation that test asks about has its neighbors in index and in train, and where a rotation has
    several takes, they go to different splits.
    """
    rng = stream(SEED, "takes", building.name)
    turn, sign = int(rng.integers(4)), int(rng.choice([-1, 1]))
    used = [split for split in ("test", "index", "train") if building.pictures[split]]
    circle = sorted(building.takes, key=lambda take: (sign * take.rotation + turn) % 4)
    home = {n: (used + used[-1:] * 4)[place] for place, n in enumerate((0, 3, 1, 2))}
    building.shares = {split: [] for split in used}
    taken: Counter[int] = Counter()
    for take in circle:
        place = (sign * take.rotation + turn) % 4
        first = used.index(home[place])
        split = used[(first + taken[place]) % len(used)]
        taken[place] += 1
        building.shares[split].append(take)
    for split in used:  # few rotations, many takes: the richest split gives one away
        richest = max(used, key=lambda other: len(building.shares[other]))
        if not building.shares[split]:
            building.shares[split].append(building.shares[richest].pop())


@dataclass
class Picture:
    """One picture to make: its split, its building (None: an empty scene) and its running number."""

    split: str
    building: Building | None
    number: int

    @property
    def id(self) -> str:
        """16 hex digits, the file's name."""
        name = self.building.name if self.building else "empty"
        return digest(SEED, "picture", self.split, name, self.number)

    def path(self) -> str:
        """Where it lies below the sample; known non-landmarks lie beside the training pictures."""
        folder = {"non_landmark": "train"}.get(self.split, self.split)
        return f"{folder}/{self.id[0]}/{self.id[1]}/{self.id[2]}/{self.id}.jpg"

    def frame(self) -> Image:
        """The building's drawing: the takes of the split in turn, one of their frames at random."""
        assert self.building is not None
        takes = self.building.shares[self.split]
        frames = takes[self.number % len(takes)].frames
        layers = [read_sprite(path) for path in frames[stream(SEED, self.id).integers(len(frames))]]
        image = layers[0]
        for layer in layers[1:]:
            image = over(layer, image) if layer.shape == image.shape else image
        return image


def pictures(buildings: list[Building], counts: Counts) -> list[Picture]:
    """Every picture of the sample, sorted by id."""
    made = [
        Picture(split, building, number)
        for building in buildings
        for split, amount in building.pictures.items()
        for number in range(amount)
    ]
    landmarks = sum(picture.split == "test" for picture in made)
    made += [Picture("test", None, number) for number in range(2 * landmarks)]
    made += [Picture("non_landmark", None, number) for number in range(counts.non_landmark)]
    return sorted(made, key=lambda picture: picture.id)


def build(content: Path, out: Path, *, counts: Counts | None = None) -> dict[str, int]:
    """Write the sample below `out` and return what its README counts.

    Raises:
        FileNotFoundError: `content` is not the unpacked art.
        FileExistsError: `out` already has pictures.
    """
    counts = counts or Counts()
    art, buildings = Art.read(content), find_buildings(content)
    if (out / "train").exists():
        raise FileExistsError(f"{out} already holds a sample: remove it or give another --out.")
    plan(buildings, counts)
    made = pictures(buildings, counts)
    for picture in made:
        rng = stream(SEED, "scene", picture.id)
        if picture.building is not None:
            image = landmark_scene(art, picture.frame(), rng)
        else:  # the known non-landmarks and those of the test show different species
            image = empty_scene(art.half(int(picture.split == "test")), rng)
        with atomic(out / picture.path()) as temporary:
            temporary.write_bytes(encode_jpeg(image, int(rng.integers(70, 91))))
    return write_tables(out, made)


def _write(path: Path, header: str, rows: list[str]) -> None:
    write_text(path, "\n".join([header, *rows]) + "\n")


def write_tables(out: Path, made: list[Picture]) -> dict[str, int]:
    """Write the csv files and the README; returns the counts that the README names."""
    split = {name: [p for p in made if p.split == name] for name in ("train", "index", "test")}
    known = {picture.building.number() for picture in split["train"] if picture.building}
    in_index: dict[int, list[str]] = {}
    for picture in split["index"]:
        assert picture.building is not None
        in_index.setdefault(picture.building.number(), []).append(picture.id)
    recognition, retrieval = [], []
    for picture in split["test"]:
        label = picture.building.number() if picture.building else -1
        usage = "Public" if int(digest(SEED, "usage", picture.id), 16) % 3 == 0 else "Private"
        recognition.append(f"{picture.id},{label if label in known else ''},{usage}")
        answer = " ".join(in_index.get(label, []))
        retrieval.append(f"{picture.id},{answer or 'None'},{usage if answer else 'Ignored'}")
    rows = [f"{p.id},{p.building.number()}" for p in split["train"] if p.building]
    first = " ".join(picture.id for picture in split["index"][:2])
    label = rows[0].split(",")[1]
    _write(out / "train.csv", "id,landmark_id", rows)
    _write(out / "non_landmark.csv", "id", [p.id for p in made if p.split == "non_landmark"])
    _write(out / "recognition_solution_v2.1.csv", "id,landmarks,Usage", recognition)
    _write(out / "retrieval_solution_v2.1.csv", "id,images,Usage", retrieval)
    samples = [f"{picture.id},{label} 0.1" for picture in split["test"]]
    _write(out / "recognition_sample_submission.csv", "id,landmarks", samples)
    samples = [f"{picture.id},{first}" for picture in split["test"]]
    _write(out / "retrieval_sample_submission.csv", "id,images", samples)
    return _describe(out, made, known)


def _describe(out: Path, made: list[Picture], known: set[int]) -> dict[str, int]:
    per = Counter(p.building.name for p in made if p.building and p.split == "train")
    names = {p.building.name for p in made if p.building}
    sizes = sorted(per.values())
    numbers = {
        "buildings": len(names),
        "buildings in train": len(known),
        "buildings only in index and test": len(names) - len(known),
        "train pictures": sum(sizes),
        "fewest train pictures of a building": sizes[0],
        "median train pictures of a building": int(np.median(sizes)),
        "most train pictures of a building": sizes[-1],
        "known non-landmark pictures": sum(p.split == "non_landmark" for p in made),
        "index pictures": sum(p.split == "index" for p in made),
        "test pictures with a landmark": sum(p.split == "test" and bool(p.building) for p in made),
        "test pictures without": sum(p.split == "test" and not p.building for p in made),
        "bytes of pictures": sum((out / p.path()).stat().st_size for p in made),
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in numbers.items())
    write_text(out / "README.md", README.format(table=lines))
    return numbers


README = """# Landmarks sample

Small scenes in the layout of Google Landmarks 2020, made by `competitions/landmarks/make_sample.py`
from the art of Unknown Horizons (CC-BY-SA-3.0, see `LICENSE`). `non_landmark.csv` is an addition: ids of
pictures below `train/` that are known to show no landmark. A camera rotation of a building is in one
of train, index and test only. A building that is not in train has an empty recognition answer.

| what | how many |
|---|---|
{table}
"""


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("content", type=Path, help="the unpacked content folder (it holds gfx/)")
    parser.add_argument("--out", type=Path, default=HOME, help="where the sample goes")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    for name, value in build(options.content, options.out).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
