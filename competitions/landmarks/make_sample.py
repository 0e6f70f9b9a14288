"""Build the bundled landmarks sample from the art of the free game Unknown Horizons.

    apt-get download unknown-horizons && dpkg-deb -x unknown-horizons_*.deb unpacked
    python competitions/landmarks/make_sample.py unpacked/usr/share/unknown-horizons/content

Made with Debian's 2019.1-6. The same art, numpy and OpenCV give the same bytes. A *take* is a run
of neighboring frames of one action from one camera rotation; takes that share a drawing are one
take, and a frame between two takes is not used. A take belongs to one of train, index and test,
so neither one drawing nor two neighboring frames are ever on both sides of a split.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if not __package__:  # run by path: the folder's own name, so that a copied folder finds itself
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here.parents[1]))
    __package__ = f"competitions.{here.name}"
    __import__(__package__)

from common.data.sample import Image, build_command, digest, encode_jpeg, stream
from common.entry import entry
from common.paths import atomic, write_text

from .scenery.art import Art
from .scenery.plan import SEED, Counts, plan
from .scenery.scenes import empty_scene, landmark_scene
from .scenery.takes import Building, draw, find_buildings

HOME = Path(__file__).resolve().parent / "sample"
SOURCE = ("content", "the unpacked content folder (it holds gfx/)")


@dataclass
class Picture:
    """One picture to make.

    Attributes:
        split: train, index, test or non_landmark.
        building: what it shows; None is a scene without a landmark.
        number: counts the pictures of one building in one split.
    """

    split: str
    building: Building | None
    number: int

    @property
    def name(self) -> str:
        """16 hex digits, the id."""
        shown = self.building.name if self.building else "empty"
        return digest(SEED, "picture", self.split, shown, self.number)

    @property
    def label(self) -> int:
        """The landmark_id, six digits that say nothing about the building; -1 without one."""
        if self.building is None:
            return -1
        return int(digest(SEED, "landmark", self.building.name), 16) % 900_000 + 100_000

    @property
    def path(self) -> str:
        """Where it lies in the sample; known non-landmarks lie beside the training pictures."""
        folder = "train" if self.split == "non_landmark" else self.split
        return f"{folder}/{self.name[0]}/{self.name[1]}/{self.name[2]}/{self.name}.jpg"

    def make(self, art: Art) -> bytes:
        """The JPEG file: the split's takes in turn, one of their frames at random."""
        rng = stream(SEED, "scene", self.name)
        image: Image
        if self.building is not None:
            takes = self.building.shares[self.split]
            frames = takes[self.number % len(takes)].frames
            image = landmark_scene(art, draw(frames[rng.integers(len(frames))]), rng)
        else:  # the known non-landmarks and those of the test show different species
            image = empty_scene(art.half(int(self.split == "test")), rng)
        return encode_jpeg(image, int(rng.integers(70, 91)))


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
    return sorted(made, key=lambda picture: picture.name)


def build(content: Path, out: Path, *, counts: Counts | None = None) -> dict[str, int]:
    """Write the sample below `out` and return the numbers that its README names.

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
        with atomic(out / picture.path) as temporary:
            temporary.write_bytes(picture.make(art))
    write_tables(out, made)
    if not (out / "LICENSE").exists():
        shutil.copyfile(HOME / "LICENSE", out / "LICENSE")
    return describe(out, made)


def write_tables(out: Path, made: list[Picture]) -> None:
    """Write the csv files of the competitions, and `non_landmark.csv`."""
    split = {name: [p for p in made if p.split == name] for name in ("train", "index", "test")}
    known = {picture.label for picture in split["train"]}
    answers: dict[int, list[str]] = {}
    for picture in split["index"]:
        answers.setdefault(picture.label, []).append(picture.name)
    recognition, retrieval = [], []
    for picture in split["test"]:
        usage = "Public" if int(digest(SEED, "usage", picture.name), 16) % 3 == 0 else "Private"
        label = str(picture.label) if picture.label in known else ""
        recognition.append(f"{picture.name},{label},{usage}")
        answer = " ".join(answers.get(picture.label, []))
        retrieval.append(f"{picture.name},{answer or 'None'},{usage if answer else 'Ignored'}")
    guess = f"{split['train'][0].label} 0.1"
    first = " ".join(picture.name for picture in split["index"][:2])
    queries = [picture.name for picture in split["test"]]
    tables = {
        "train.csv": ["id,landmark_id", *(f"{p.name},{p.label}" for p in split["train"])],
        "non_landmark.csv": ["id", *(p.name for p in made if p.split == "non_landmark")],
        "recognition_solution_v2.1.csv": ["id,landmarks,Usage", *recognition],
        "retrieval_solution_v2.1.csv": ["id,images,Usage", *retrieval],
        "recognition_sample_submission.csv": ["id,landmarks", *(f"{q},{guess}" for q in queries)],
        "retrieval_sample_submission.csv": ["id,images", *(f"{q},{first}" for q in queries)],
    }
    for name, rows in tables.items():
        write_text(out / name, "\n".join(rows) + "\n")


def describe(out: Path, made: list[Picture]) -> dict[str, int]:
    """Write the README with what was made, and return its numbers."""
    per = Counter(picture.label for picture in made if picture.split == "train")
    labels = {picture.label for picture in made if picture.building}
    test = [picture for picture in made if picture.split == "test"]
    numbers = {
        "buildings": len(labels),
        "buildings in train": len(per),
        "buildings only in index and test": len(labels) - len(per),
        "train pictures": sum(per.values()),
        "fewest train pictures of a building": min(per.values()),
        "median train pictures of a building": int(np.median(list(per.values()))),
        "most train pictures of a building": max(per.values()),
        "known non-landmark pictures": sum(p.split == "non_landmark" for p in made),
        "index pictures": sum(picture.split == "index" for picture in made),
        "test pictures with a landmark": sum(picture.label >= 0 for picture in test),
        "test pictures of a landmark in train": sum(picture.label in per for picture in test),
        "test pictures without a landmark": sum(picture.label < 0 for picture in test),
        "bytes of pictures": sum((out / picture.path).stat().st_size for picture in made),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in numbers.items())
    write_text(out / "README.md", README.format(table=table))
    return numbers


README = """# Landmarks sample

Small scenes in the layout of Google Landmarks 2020, made by `competitions/landmarks/make_sample.py`
from the art of Unknown Horizons (CC-BY-SA-3.0, see `LICENSE`).

`non_landmark.csv` is an addition: ids of pictures below `train/` that are known to show no
landmark. No drawing is on both sides of a split, nor are two neighboring frames of an animation.
A building that is not in train has an empty recognition answer.

| what | how many |
|---|---|
{table}
"""


def main(arguments: list[str]) -> None:
    """Parse the command line and build."""
    build_command(arguments, __doc__, SOURCE, HOME, build)


if __name__ == "__main__":
    entry(main)
