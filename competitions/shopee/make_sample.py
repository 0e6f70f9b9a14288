r"""Build the bundled Shopee sample from emoji: one emoji is one product, seven vendors sell it.

    npm install --prefix art --ignore-scripts emojibase-data@17.0.0 \
        @iconify-json/{twemoji@1.2.5,noto@1.2.9,openmoji@1.2.29,fluent-emoji-flat@1.2.6} \
        @iconify-json/{emojione@1.2.3,fxemoji@1.2.2,noto-v1@1.2.5}
    pip install resvg-py==0.5.0
    python competitions/shopee/make_sample.py art/node_modules

The same packages, numpy and OpenCV give the same bytes. A product is on one side of the split, and
so are its nearest relatives (skin tones, men and women of one trade): look-alikes meet each other.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if not __package__:  # run by path: the folder's own name, so that a copied folder finds itself
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here.parents[1]))
    __package__ = f"competitions.{here.name}"
    __import__(__package__)

from common.data.images import read_image
from common.data.phash import dct_hash, hash_text
from common.data.sample import build_command, digest, stream
from common.entry import entry
from common.paths import atomic, write_text

from .market.emoji import Vendor, read_emoji, read_vendors
from .market.products import SEED, Product, choose
from .market.scenes import picture
from .market.wording import Writer

HOME = Path(__file__).resolve().parent / "sample"
SOURCE = ("modules", "the folder node_modules with the packages")
COUNTS = {"train": 205, "test": 140}  # products
DRAWN = 256  # pixels of a drawing before it is put into a scene
AGAIN = 0.46  # share of listings whose seller sells the drawing of the listing before
SAME_FILE = 0.04  # share of listings that show the very file of another, as 5% of Kaggle's do


@dataclass
class Listing:
    """One row of train.csv or test.csv.

    Attributes:
        product: what is sold.
        number: counts the listings of a product.
        vendor: whose drawing is shown.
        shown: number of the listing whose picture this is: mostly its own.
        title: as it stands in the csv.
        phash: of the picture, 16 hex digits.
    """

    product: Product
    number: int
    vendor: str
    shown: int
    title: str
    phash: str = ""

    @property
    def name(self) -> str:
        """The posting_id."""
        number = int(digest(SEED, "posting", self.product.emoji.code, self.number), 16)
        return f"{self.product.split}_{number % 4_294_967_291}"

    @property
    def image(self) -> str:
        """The file name: 32 hex digits, the same for listings that share a picture."""
        return f"{digest(SEED, 'image', self.product.emoji.code, self.shown, digits=32)}.jpg"

    @property
    def path(self) -> str:
        """Where the picture lies in the sample."""
        return f"{self.product.split}_images/{self.image}"


def listings(products: Sequence[Product]) -> list[Listing]:
    """Every listing of the products, by posting_id: the order tells nothing about groups."""
    made = []
    for product in products:
        emoji = product.emoji
        rng, writer = stream(SEED, "listings", emoji.code), Writer(emoji, SEED)
        vendors, before = [str(v) for v in rng.permutation(sorted(emoji.icons))], None
        for number in range(product.size):
            title = writer.title(stream(SEED, "title", emoji.code, number))
            again = before is not None and rng.random() < AGAIN
            one = Listing(product, number, vendors[number % len(vendors)], number, title)
            if before is not None and again:
                one.vendor = before.vendor
                one.shown = before.shown if rng.random() < SAME_FILE / AGAIN else number
            made.append(one)
            before = one
    return sorted(made, key=lambda listing: listing.name)


def build(modules: Path, out: Path, *, counts: dict[str, int] | None = None) -> dict[str, int]:
    """Write the sample below `out` and return the numbers that its README names.

    Raises:
        FileNotFoundError: `modules` is not the folder with the packages.
        FileExistsError: `out` already has pictures.
        ValueError: a package came under another licence, or draws too few emoji.
    """
    if (out / "train_images").exists():
        raise FileExistsError(f"{out} already holds a sample: remove it or give another --out.")
    vendors = read_vendors(modules)
    products = choose(read_emoji(modules, vendors), counts or COUNTS)
    made = listings(products)
    for one in made:
        with atomic(out / one.path) as temporary:
            temporary.write_bytes(photograph(one, products, vendors))
        one.phash = hash_text(dct_hash(read_image(out / one.path)))
    write_tables(out, made, vendors)
    if not (out / "LICENSE").exists():
        shutil.copyfile(HOME / "LICENSE", out / "LICENSE")
    return describe(out, made)


def photograph(one: Listing, products: Sequence[Product], vendors: dict[str, Vendor]) -> bytes:
    """The JPEG file of a listing; a gift in it is another product's drawing by the same vendor."""
    vendor, rng = vendors[one.vendor], stream(SEED, "scene", one.image)
    others = [p.emoji.icons[one.vendor] for p in products if one.vendor in p.emoji.icons]

    def gift() -> np.ndarray:
        return vendor.draw(others[int(rng.integers(len(others)))], DRAWN)

    return picture(vendor.draw(one.product.emoji.icons[one.vendor], DRAWN), gift, rng)


def write_tables(out: Path, made: Sequence[Listing], vendors: dict[str, Vendor]) -> None:
    """Write the competition's csv files, the answers, and whose drawing each picture shows."""
    columns = ["posting_id", "image", "image_phash", "title"]
    rows = {
        split: [[p.name, p.image, p.phash, p.title] for p in made if p.product.split == split]
        for split in ("train", "test")
    }
    test = [one for one in made if one.product.split == "test"]
    groups: dict[int, list[str]] = {}
    for one in made:
        groups.setdefault(one.product.group, []).append(one.name)
    labels = {one.name: one.product.group for one in made}
    train = [[*row, labels[row[0]]] for row in rows["train"]]
    answers = [[one.name, " ".join(groups[one.product.group])] for one in test]
    shown = {one.path: one for one in made}
    sources = [[path, one.vendor, vendors[one.vendor].licence] for path, one in shown.items()]
    _write(out / "train.csv", [[*columns, "label_group"], *train])
    _write(out / "test.csv", [columns, *rows["test"]])
    _write(
        out / "sample_submission.csv",
        [["posting_id", "matches"], *([n.name, n.name] for n in test)],
    )
    _write(out / "solution.csv", [["posting_id", "matches"], *answers])
    _write(out / "sources.csv", [["file", "vendor", "licence"], *sorted(sources)])


def _write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def describe(out: Path, made: Sequence[Listing]) -> dict[str, int]:
    """Write the README with what was made, and return its numbers."""
    sizes = Counter(one.product.group for one in made)
    vendors = Counter(one.vendor for one in made)
    files = {one.path for one in made}
    numbers = {
        **{
            f"{split} {what}": value
            for split in ("train", "test")
            for what, value in (
                ("products", len({p.product.group for p in made if p.product.split == split})),
                ("listings", sum(p.product.split == split for p in made)),
            )
        },
        "fewest listings of a product": min(sizes.values()),
        "most listings of a product": max(sizes.values()),
        "listings that show another's file": len(made) - len(files),
        "titles with escaped bytes": sum("\\x" in one.title for one in made),
        "titles with other than Latin letters": sum(
            any(c.isalpha() and ord(c) > 0x24F for c in one.title) for one in made
        ),
        **{f"listings drawn by {name}": count for name, count in sorted(vendors.items())},
        "bytes of pictures": sum((out / path).stat().st_size for path in files),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in numbers.items())
    write_text(out / "README.md", README.format(table=table))
    return numbers


README = """# Shopee sample

Small listings in the layout of Shopee Price Match Guarantee, made by
`competitions/shopee/make_sample.py`. One emoji is one product, and seven vendors' drawings of it
are what different sellers show. Names and tags in ten languages are those of emojibase; brands,
sizes, slogans and mistakes are made up. Some titles hold bytes written out (`\\xe2\\x80\\xa6`), as
in the competition.

No product is in both train and test. Skin tones, men and women of one trade, clocks, flags, hearts
and faces are products of their own that look alike. `solution.csv` has the answers, `sources.csv`
whose drawing each picture shows and its licence (see `LICENSE`).

| what | how many |
|---|---|
{table}
"""


def main(arguments: list[str]) -> None:
    """Parse the command line and build."""
    build_command(arguments, __doc__, SOURCE, HOME, build)


if __name__ == "__main__":
    entry(main)
