"""Build the bundled landmarks sample from the art of the free game Unknown Horizons.

    apt-get download unknown-horizons && dpkg-deb -x unknown-horizons_*.deb unpacked
    python competitions/landmarks/make_sample.py unpacked/usr/share/unknown-horizons/content

Made with Debian's 2019.1-6. The same art, numpy and OpenCV give the same bytes. A *view* of a building
is a camera rotation with all its actions and animation frames; rotations that share a drawing are one
view. A view belongs to one of train, index and test, so neighboring frames never face each other.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
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


@dataclass
class Building:
    """A landmark: its frames by view, and how many pictures each split gets."""

    name: str
    views: list[list[tuple[Path, ...]]] = field(default_factory=list)
    pictures: dict[str, int] = field(default_factory=dict)
    split_views: dict[str, list[list[tuple[Path, ...]]]] = field(default_factory=dict)

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
            views = _views(path)
            if views:
                buildings.append(Building(path.relative_to(root).as_posix(), views))
    if not buildings:
        raise FileNotFoundError(
            f"No gfx/buildings/*/as_*/idle/45/*.png under {content}: unpack the Debian package "
            "unknown-horizons and give its usr/share/unknown-horizons/content."
        )
    return buildings


def _views(building: Path) -> list[list[tuple[Path, ...]]]:
    """The views, in the order of their rotations; a frame is a path and the parts drawn over it."""
    views: list[list[tuple[Path, ...]]] = []
    seen: list[set[str]] = []
    for rotation in ROTATIONS:
        frames: list[tuple[Path, ...]] = []
        for action in sorted(building.iterdir()):
            drawings = sorted((action / rotation).glob("*.png"))
            if PART.match(action.name):
                idle = sorted((building / "idle" / rotation).glob("*.png"))
                frames += [(idle[0], part) for part in drawings if idle]
            elif not CROPS.search(building.name) or action.name == "idle_full":
                frames += [(drawing,) for drawing in drawings]
        marks = {digest(*(path.read_bytes() for path in frame)) for frame in frames}
        twin = next((n for n, other in enumerate(seen) if other & marks), None)
        if twin is not None:
            views[twin] += frames
            seen[twin] |= marks
        elif frames:
            views.append(frames)
            seen.append(marks)
    return views


def plan(buildings: list[Building], counts: Counts) -> None:
    """Say how many pictures of each building go to train, index and test, and with which views."""
    order = sorted(buildings, key=lambda building: digest(SEED, "order", building.name))
    many = [building for building in order if len(building.views) >= 3]
    unseen = many[: round(len(order) / 3)]
    seen = [building for building in order if building not in unseen]
    for n, building in enumerate(unseen):
        building.pictures = {"index": 2 + n % 3, "test": 1}
    left = counts.test - len(unseen)
    for n, building in enumerate(seen):
        u = n / max(len(seen) - 1, 1)
        building.pictures = {"train": round(2 + 7.5 * u + 20.5 * u**10), "index": 0, "test": 0}
    rich = sorted(
        (b for b in seen if len(b.views) >= 3), key=lambda b: digest(SEED, "test", b.name)
    )
    for n in range(max(left, 0)):
        if rich:
            rich[n % len(rich)].pictures["test"] += 1
    left = counts.index - sum(building.pictures["index"] for building in unseen)
    for n in range(max(left, 0)):
        if rich:  # a few queries keep no answer in the index, as in the real files
            rich[n % max(len(rich) * 9 // 10, 1)].pictures["index"] += 1
    short = counts.train - sum(building.pictures["train"] for building in seen)
    for n in range(max(short, 0)):
        seen[n % len(seen)].pictures["train"] += 1
    for building in order:
        _share_views(building)


def _share_views(building: Building) -> None:
    """Give each view to one split; a test view has a neighboring rotation in index and in train."""
    rng = stream(SEED, "views", building.name)
    views, turn = building.views, int(rng.integers(4))
    views = [views[(turn + n) % len(views)] for n in range(len(views))]
    if rng.random() < 0.5:
        views = views[::-1]
    if not building.pictures.get("train"):
        parts = {"test": views[:1], "index": views[1:]}
    elif building.pictures["test"]:
        parts = {"test": views[:1], "index": views[-1:], "train": views[1:-1]}
    elif building.pictures["index"]:
        parts = {"index": views[-1:], "train": views[:-1]}
    else:
        parts = {"train": views}
    if building.pictures.get("test") and not building.pictures["index"]:
        parts = {"test": views[:1], "train": views[1:]}
    building.split_views = parts


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
        """The building's drawing: the views of the split in turn, one of their frames at random."""
        assert self.building is not None
        views = self.building.split_views[self.split]
        frames = views[self.number % len(views)]
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
