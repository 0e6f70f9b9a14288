"""Which emoji are products, how many sellers each has, and on which side of the split it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from common.data.sample import digest

from .emoji import Emoji

SEED = "shopee-1"
# Shelf, how many of its products, and whether only toned (or only plain) emoji count. The first
# five are full of look-alikes; the last is everything that a shop could sell.
SHELVES = (
    ("face-.*|cat-face|monkey-face", 60, False),
    ("time", 22, False),
    ("hand-.*|hands|body-parts|person-gesture", 54, True),
    ("person-role|person-fantasy", 36, False),
    ("country-flag", 30, False),
    ("heart|geometric|mail|book-paper", 36, False),
    (
        "animal-.*|plant-.*|food-.*|drink|dishware|place-.*|transport-(ground|water|air)|"
        "sky-weather|event|sport|game|arts-crafts|clothing|sound|music(al-instrument)?|phone|"
        "computer|light-video|money|writing|office|lock|tool|science|medical|household",
        1000,
        False,
    ),
)
TONES = (1, 3, 5)  # neighbouring tones are one colour once a lamp has shone on them
SIZES = {2: 0.40, 3: 0.24, 4: 0.14, 5: 0.10, 6: 0.07, 7: 0.05}  # listings per product, as shares
NOT_SOLD = ("1F595", "1F4A9")  # rude ones
NAMELESS = re.compile(r"^(men|women|people|man|woman|person)\W+|\W+(man|woman|person)\b", re.I)


@dataclass
class Product:
    """An emoji that is sold.

    Attributes:
        emoji: what it looks like and is called.
        split: train or test.
        size: how many listings show it.
    """

    emoji: Emoji
    split: str
    size: int

    @property
    def group(self) -> int:
        """The label_group: ten digits that say nothing."""
        return int(digest(SEED, "group", self.emoji.code), 16) % 9_000_000_000 + 1_000_000_000


def choose(emoji: list[Emoji], counts: dict[str, int]) -> list[Product]:
    """The products, so many for each split; relatives (tones, roles of one kind) share a split.

    Raises:
        ValueError: the vendors draw too few emoji for that.
    """
    kept: list[Emoji] = []
    wanted = sum(counts.values())
    for pattern, quota, toned in SHELVES:
        shelf = [e for e in emoji if re.fullmatch(pattern, e.shelf) and _sold(e, toned)]
        families: dict[str, list[Emoji]] = {}
        for one in shelf:
            families.setdefault(family(one), []).append(one)
        names = sorted(families, key=lambda name: digest(SEED, "family", name))
        room = min(quota * wanted // 360, wanted - len(kept))
        kept += [one for name in names for one in families[name]][:room]
    if len(kept) < wanted:
        raise ValueError(f"{wanted} products are wanted, the vendors draw {len(kept)} of use.")
    made: list[Product] = []
    left = dict(counts)
    for name in dict.fromkeys(family(one) for one in kept):
        members = [one for one in kept if family(one) == name]
        # To the side that lacks most of what it should have: shelves are shared out evenly.
        split = max(left, key=lambda side: left[side] / counts[side])
        left[split] -= len(members)
        made += [Product(one, split, 0) for one in members]
    for split in counts:
        side = [product for product in made if product.split == split]
        side.sort(key=lambda product: digest(SEED, "size", product.emoji.code))
        for product, size in zip(side, _sizes(len(side)), strict=True):
            product.size = size
    return made


def family(emoji: Emoji) -> str:
    """What an emoji shares with its nearest relatives: the tone and the person do not count."""
    label = emoji.labels["en"] if emoji.shelf.startswith("person") else emoji.base
    return f"{emoji.shelf} {NAMELESS.sub('', label.split(':')[0])}"


def _sold(emoji: Emoji, toned: bool) -> bool:
    if emoji.base in NOT_SOLD:
        return False
    few = 3 if emoji.shelf == "country-flag" else 4
    return len(emoji.icons) >= few and (emoji.tone in TONES if toned else not emoji.tone)


def _sizes(count: int) -> list[int]:
    """`count` group sizes with the shares of `SIZES`, small ones first."""
    ends, total = [], 0.0
    for share in SIZES.values():
        total += share
        ends.append(round(count * total))
    spans = zip(SIZES, [0, *ends], ends, strict=False)
    return [size for size, start, end in spans for _ in range(end - start)]
