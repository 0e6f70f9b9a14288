"""Amounts in product titles, `500 ml`, `2x10 gr`, `isi 3`, and a veto of pairs that differ in them.

    amounts = Amounts.parse(titles)                 # text as `titles.plain` gives it
    different = amounts.veto(a, b)                  # (P,) bool for rows a and b, (P,) each

Two titles contradict each other in a quantity (weight, volume, ...) that both state when they have
no value of it in common. That one says nothing is no contradiction. Removing pairs by units:
Shopee 2021, 6th and 18th place (write-ups 68333748770, 68613519133).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np

Array = np.ndarray

# By quantity: the unit that values are given in, then how much of it a written unit is. Values are
# kept as whole thousandths: half a litre and 500 ml must be equal, not nearly so.
UNITS: dict[str, dict[str, float]] = {
    "weight": {
        "g": 1, "mg": 0.001, "gr": 1, "grm": 1, "gram": 1, "grams": 1, "gramm": 1, "gramme": 1,
        "grammes": 1, "gramos": 1, "gramas": 1, "kg": 1000, "kgs": 1000, "kilo": 1000,
        "kilos": 1000, "oz": 28.35, "lb": 453.6, "lbs": 453.6, "克": 1, "公斤": 1000, "กรัม": 1,
        "กก": 1000,
    },
    "volume": {
        "ml": 1, "mls": 1, "cc": 1, "cl": 10, "dl": 100, "l": 1000, "lt": 1000, "ltr": 1000,
        "liter": 1000, "liters": 1000, "litre": 1000, "litres": 1000, "litro": 1000,
        "litros": 1000, "毫升": 1, "มล": 1, "ลิตร": 1000,
    },
    "length": {
        "mm": 1, "cm": 10, "m": 1000, "mtr": 1000, "meter": 1000, "meters": 1000, "metre": 1000,
        "metres": 1000, "inch": 25.4, "inches": 25.4, "inci": 25.4, "zoll": 25.4, "yard": 914.4,
        "ซม": 10,
    },
    "count": {
        "pcs": 1, "pc": 1, "pce": 1, "piece": 1, "pieces": 1, "pièces": 1, "pieza": 1, "piezas": 1,
        "peças": 1, "unidades": 1, "stück": 1, "stk": 1, "buah": 1, "biji": 1, "butir": 1,
        "lembar": 1, "helai": 1, "keping": 1, "batang": 1, "sachet": 1, "sachets": 1, "tablet": 1,
        "tablets": 1, "kapsul": 1, "capsules": 1, "pairs": 1, "pasang": 1, "lusin": 12, "dozen": 12,
        "個": 1, "个": 1, "枚": 1, "ชิ้น": 1,
    },
    "packs": {"pack": 1, "packs": 1, "pak": 1, "box": 1, "boxes": 1, "dus": 1, "karton": 1},
    "memory": {"gb": 1, "tb": 1024, "mb": 1 / 1024},
    "power": {"w": 1, "watt": 1, "watts": 1, "kw": 1000},
    "voltage": {"v": 1, "volt": 1, "volts": 1},
    "charge": {"mah": 1},
}  # fmt: skip
QUANTITIES = tuple(UNITS)
LARGEST = 10**15  # thousandths; more is a bar code, not an amount
MOST = 4  # values of one quantity that are kept; a title with more lists what there is to choose

_UNIT = {word: (quantity, size) for quantity, of in UNITS.items() for word, size in of.items()}
_LARGE = ("kg", "kgs", "kilo", "kilos", "l", "lt", "ltr", "liter", "litre", "litro", "m", "meter")
_LETTER = "a-z\u00c0-\u024f"  # a unit is a word of its own, but 500mlボトル is 500 ml
_WORDS = "|".join(sorted(map(re.escape, _UNIT), key=len, reverse=True))
_NUMBER = r"\d{1,3}(?:[.,]\d{3})+(?!\d)|\d+[.,]\d+|\d+/\d+|\d+"
_TIMES = "\\s*[x*\u00d7]\\s*"
_AMOUNT = re.compile(
    rf"(?<![\d.,/{_LETTER}])(?P<times>(?:(?:{_NUMBER}){_TIMES}){{0,3}})(?P<number>{_NUMBER})\s?"
    rf"(?P<unit>{_WORDS})(?![\d{_LETTER}])(?:{_TIMES}(?P<after>\d+)(?![\d.,/{_LETTER}]|\s?(?:{_WORDS})"
    rf"(?![\d{_LETTER}])))?"
)
_HOLDS = re.compile(
    rf"(?<![\d{_LETTER}])(?:isi|(?:pack|set|box) (?:of|de|isi))\s?(?P<number>\d+)"
    rf"(?![\d.,/{_LETTER}])"
)


@dataclass
class Amounts:
    """What titles say about size and number.

    Attributes:
        values: `(N, Q, MOST)` int64, thousandths of the base unit (g, ml, mm, pieces, packs, GB, W,
            V, mAh), in the order of `QUANTITIES`; distinct, padded with -1 at the end.
    """

    values: Array

    @classmethod
    def parse(cls, titles: Iterable[str]) -> Amounts:
        """The amounts of each title; case does not matter."""
        rows = [amounts(title) for title in titles]
        values = np.full((len(rows), len(QUANTITIES), MOST), -1, np.int64)
        for row, found in enumerate(rows):
            for quantity, numbers in found.items():
                kept = numbers[:MOST]
                values[row, QUANTITIES.index(quantity), : len(kept)] = kept
        return cls(values)

    def veto(self, a: Array, b: Array, *, chunk: int = 1 << 18) -> Array:
        """`(P,)` bool: rows `a` and `b` both state some quantity and agree in none of its values.

        Args:
            a: `(P,)` rows.
            b: `(P,)` rows.
            chunk: pairs looked at together; memory is below 1 kB for each.
        """
        return np.asarray((self.compare(a, b, chunk=chunk) == -1).any(1))

    def compare(self, a: Array, b: Array, *, chunk: int = 1 << 18) -> Array:
        """`(P, Q)` int8: 1 where the rows agree in a quantity, -1 where they differ, 0 unknown."""
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.ndim != 1:
            raise ValueError(f"Need two arrays of rows (P,), got {a.shape} and {b.shape}.")
        # A quantity that one title in a thousand states costs only the pairs of those titles.
        stated = self.values[..., 0] >= 0
        out = np.zeros((len(a), len(QUANTITIES)), np.int8)
        for start in range(0, len(a), chunk):
            one, two = a[start : start + chunk], b[start : start + chunk]
            pair, quantity = np.nonzero(stated[one] & stated[two])
            left, right = self.values[one[pair], quantity], self.values[two[pair], quantity]
            equal = (left[:, :, None] == right[:, None, :]) & (left[:, :, None] >= 0)
            out[start + pair, quantity] = np.where(equal.any((1, 2)), 1, -1)
        return out


def amounts(title: str) -> dict[str, list[int]]:
    """Values by quantity, in thousandths of its base unit, as the title has them, each once.

    `2x10 gr` and `10 gr x 2` are 2 pieces of 10 g, 20 g in all: weight has both, count has 2.
    `20x30 cm` is two lengths. `1.000 gr` is a thousand, `1.500 kg` one and a half, `4,5` and `1/2`
    are what they look like.
    """
    found: dict[str, dict[int, None]] = {}
    for quantity, value in _found(title.lower()):
        thousandths = round(value * 1000)
        if 0 < thousandths < LARGEST:
            found.setdefault(quantity, {})[thousandths] = None
    return {quantity: list(values) for quantity, values in found.items()}


def rewritten(text: str) -> str:
    """The lower-case text with each amount as one word in its base unit: `0,5 L` becomes `500ml`.

    So that words and letters of it match, however a seller wrote it.
    """

    def word(match: re.Match[str]) -> str:
        quantity, value, factors = _read(match)
        numbers = [*factors, value]
        if not all(0 < number * 1000 < LARGEST for number in numbers):
            return match[0]
        return f"{'x'.join(map(_written, numbers))}{next(iter(UNITS[quantity]))}"

    return _AMOUNT.sub(word, text)


def _found(text: str) -> Iterator[tuple[str, Fraction]]:
    """Quantity and value of everything that is said in the text."""
    for match in _AMOUNT.finditer(text):
        quantity, value, factors = _read(match)
        yield quantity, value
        if quantity == "length":
            yield from ((quantity, factor) for factor in factors)
        elif factors and quantity in ("weight", "volume", "count"):
            number = prod(factors, start=Fraction(1))
            yield quantity, value * number
            if quantity != "count":
                yield "count", number
    for match in _HOLDS.finditer(text):
        yield "count", Fraction(match["number"])


def _read(match: re.Match[str]) -> tuple[str, Fraction, list[Fraction]]:
    """Quantity, value in its base unit, and the numbers it is multiplied by (lengths: in mm)."""
    unit = match["unit"]
    quantity, size = _UNIT[unit][0], Fraction(str(_UNIT[unit][1]))
    times = [*re.split(_TIMES, match["times"])[:-1], *filter(None, [match["after"]])]
    if quantity == "length":
        factors = [_value(text, unit) * size for text in times]
    else:
        factors = [_value(text, "") for text in times]
    return quantity, _value(match["number"], unit) * size, factors


def _value(text: str, unit: str) -> Fraction:
    """A number as shops write it."""
    if "/" in text:
        top, bottom = map(int, text.split("/"))
        return Fraction(top, bottom) if bottom else Fraction(0)
    head, *tail = re.split("[.,]", text)
    if not tail:
        return Fraction(head)
    grouped = all(len(part) == 3 for part in tail) and head.strip("0")
    # Nobody sells 1,500 kg of one thing by mail.
    if grouped and (unit not in _LARGE or len(tail) > 1):
        return Fraction(head + "".join(tail))
    return Fraction(f"{head}.{''.join(tail)}")


def _written(number: Fraction) -> str:
    return f"{float(number):.3f}".rstrip("0").rstrip(".")
