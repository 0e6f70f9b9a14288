"""Build the bundled whale sample from the art of the free game Battle for Wesnoth.

    apt-get download wesnoth-1.16-data && dpkg-deb -x wesnoth-1.16-data_*.deb unpacked
    python competitions/whale/make_sample.py unpacked/usr/share/games/wesnoth/1.16/data/core/images

Made with Debian's 1:1.16.9-1. The same art, numpy and OpenCV give the same bytes. One unit is one
individual. What it does in test it never does in train, so no drawing is on both sides.
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

from common.data.sample import build_command, digest, encode_jpeg, stream
from common.entry import entry
from common.paths import atomic, write_text

from .menagerie.scenes import Land, picture
from .menagerie.units import Unit, draw, find_units

HOME = Path(__file__).resolve().parent / "sample"
SOURCE = ("images", "the unpacked folder data/core/images")
SEED = "whale-1"
NEW = "new_whale"
# Train pictures per known individual, as in the competition: many have one, few have many.
KNOWN = [1] * 60 + [2] * 30 + [3] * 24 + [4] * 16 + [5] * 8 + [6] * 6 + [8] * 4 + [10] * 2
NEW_SHARE = 0.38  # of the train rows, as in the competition
TEST_NEW_SHARE = 0.276  # of the test rows, as its public leaderboard gave away
NEW_PER_UNIT = 4


@dataclass
class Picture:
    """One picture to make: which individual, on which side, its number there."""

    split: str
    unit: Unit
    number: int
    known: bool

    @property
    def name(self) -> str:
        """File name: nine hex digits that say nothing."""
        return f"{digest(SEED, self.split, self.unit.name, self.number, digits=9)}.jpg"

    @property
    def label(self) -> str:
        """The Id."""
        return f"w_{digest(SEED, 'id', self.unit.name, digits=7)}" if self.known else NEW

    def make(self, land: Land) -> tuple[bytes, tuple[int, int, int, int], np.ndarray]:
        """The JPEG file, the box around the individual, and the `(4, 2)` corners of its drawing."""
        rng = stream(SEED, self.name)
        actions = list(self.unit.actions.values())
        hidden = actions[self.unit.key % len(actions)]  # only test shows it
        frames = [f for a in actions if (a is hidden) == (self.split == "test") for f in a]
        frame = frames[(self.number + self.unit.key) % len(frames)]
        size = int(rng.integers(168, 209)), int(rng.integers(112, 145))
        image, box, points = picture(land, draw(frame, float(rng.uniform(0, 360))), size, rng)
        if rng.random() < 0.15:
            image = np.ascontiguousarray(image[:, ::-1])
            box = size[0] - box[2], box[1], size[0] - box[0], box[3]
            # The left ones stay left: points name places in the picture, not parts of the drawing.
            points = np.array([size[0], 0]) + points[[1, 0, 3, 2]] * (-1, 1)
        return encode_jpeg(image, int(rng.integers(72, 89))), box, points


def pictures(units: list[Unit], known: list[int]) -> list[Picture]:
    """Every picture of the sample, sorted by file name.

    Raises:
        ValueError: the art has fewer individuals than that takes.
    """
    fresh_train = round(sum(known) * NEW_SHARE / (1 - NEW_SHARE))
    fresh_test = round(len(known) * TEST_NEW_SHARE / (1 - TEST_NEW_SHARE))
    used = len(known), -(-fresh_train // NEW_PER_UNIT), -(-fresh_test // 2)
    if sum(used) > len(units):
        raise ValueError(f"{sum(used)} individuals are wanted, the art has {len(units)}.")
    made = []
    for unit, amount in zip(units, known, strict=False):
        made += [Picture("train", unit, number, True) for number in range(amount)]
        made.append(Picture("test", unit, 0, True))
    others = units[used[0] :]
    for split, amount, each in (("train", fresh_train, NEW_PER_UNIT), ("test", fresh_test, 2)):
        made += [Picture(split, others[n // each], n % each, False) for n in range(amount)]
        others = others[-(-amount // each) :]
    return sorted(made, key=lambda picture: picture.name)


def build(images: Path, out: Path, *, known: list[int] | None = None) -> dict[str, int]:
    """Write the sample below `out` and return the numbers that its README names.

    Raises:
        FileNotFoundError: `images` is not the unpacked art.
        FileExistsError: `out` already has pictures.
    """
    if (out / "train").exists():
        raise FileExistsError(f"{out} already holds a sample: remove it or give another --out.")
    land, made = Land(images), pictures(find_units(images), known or KNOWN)
    boxes, corners = [], []
    for one in made:
        data, box, points = one.make(land)
        boxes.append(",".join(map(str, (one.name, *box))))
        corners.append(",".join([one.name, *(f"{v:.1f}" for v in points.ravel())]))
        with atomic(out / one.split / one.name) as temporary:
            temporary.write_bytes(data)
    train = [p for p in made if p.split == "train"]
    test = [p for p in made if p.split == "test"]
    common = [label for label, _ in Counter(p.label for p in train if p.known).most_common(4)]
    guess = " ".join([NEW, *common])
    for name, rows in {
        "train.csv": ["Image,Id", *(f"{p.name},{p.label}" for p in train)],
        "solution.csv": ["Image,Id", *(f"{p.name},{p.label}" for p in test)],
        "sample_submission.csv": ["Image,Id", *(f"{p.name},{guess}" for p in test)],
        "bboxs.csv": ["Image,x0,y0,x1,y1", *boxes],
        "keypoints.csv": ["Image,x0,y0,x1,y1,x2,y2,x3,y3", *corners],
    }.items():
        write_text(out / name, "\n".join(rows) + "\n")
    if not (out / "LICENSE").exists():
        shutil.copyfile(HOME / "LICENSE", out / "LICENSE")
    return describe(out, train, test)


def describe(out: Path, train: list[Picture], test: list[Picture]) -> dict[str, int]:
    """Write the README with what was made, and return its numbers."""
    per = Counter(p.label for p in train if p.known)
    numbers = {
        "train pictures": len(train),
        f"train pictures of {NEW}": sum(not p.known for p in train),
        "known individuals": len(per),
        "known individuals with one train picture": sum(n == 1 for n in per.values()),
        "most train pictures of an individual": max(per.values()),
        "test pictures": len(test),
        f"test pictures of {NEW}": sum(not p.known for p in test),
        "bytes of pictures": sum((out / p.split / p.name).stat().st_size for p in [*train, *test]),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in numbers.items())
    write_text(out / "README.md", README.format(table=table))
    return numbers


README = """# Whale sample

Small pictures of individuals in the layout of Humpback Whale Identification, made by
`competitions/whale/make_sample.py` from the unit artwork of Battle for Wesnoth (GPL-2 or later, see
`LICENSE`).

One unit is one individual; team colors, ground, light, tilt and side change from picture to
picture. What an individual does in test it never does in train. Individuals behind `new_whale` are
others in test than in train. `bboxs.csv` (Image,x0,y0,x1,y1) has a box around each individual,
`keypoints.csv` (Image,x0,y0,...,x3,y3) the corners of its drawing, upper left first, clockwise, and
`solution.csv` the answers.

| what | how many |
|---|---|
{table}
"""


def main(arguments: list[str]) -> None:
    """Parse the command line and build."""
    build_command(arguments, __doc__, SOURCE, HOME, build)


if __name__ == "__main__":
    entry(main)
