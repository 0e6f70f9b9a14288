r"""A seller's title of a product: its name in some language, brand, size, slogans, mistakes.

As in the competition, some titles hold the bytes of their UTF-8 written out, `\xe2\x80\xa6`.
"""

from __future__ import annotations

import re

import numpy as np

from common.data.sample import stream

from .emoji import Emoji

# Shops write in English and Malay (Indonesian is nearly the same), now and then in another one.
TONGUES = {
    "en": 0.44, "ms": 0.28, "de": 0.05, "fr": 0.05, "es": 0.05, "pt": 0.04, "ja": 0.03,
    "th": 0.02, "vi": 0.02, "zh": 0.02,
}  # fmt: skip
SLOGANS = (
    "READY STOCK", "PROMO", "ORIGINAL", "MURAH", "COD", "BEST SELLER", "100% ORI", "TERLARIS",
    "NEW", "GRATIS ONGKIR", "BISA COD", "FREE GIFT", "SALE", "import", "premium", "terbaru",
    "grosir", "Angebot", "offre", "oferta", "serbaguna", "High Quality", "Garansi", "viral",
)  # fmt: skip
FILLERS = ("untuk", "dan", "with", "for", "mit", "avec", "isi", "set", "model", "warna", "size")
SIGNS = ("…", "™", "®", "✨", "—", "❤", "✅", "【】", "“”", "🔥", "°", "é")
# How one amount is written by different sellers; of two amounts of a kind no text is the same.
AMOUNTS = {
    "volume": ((60, 100, 250, 500, 750, 1000, 1500), ("{} ml", "{}ml", "{}ML", "{} mL")),
    "weight": ((10, 50, 85, 200, 397, 500, 1000), ("{} gr", "{}gr", "{} g", "{}gram", "{} GRAM")),
    "pieces": ((2, 3, 5, 6, 10, 12, 50), ("{} pcs", "{}pcs", "isi {}", "{} pc", "pack of {}")),
    "pack": ((2, 3, 5, 6, 12), ("{}x10 gr", "{} x 10gr", "{}x10g", "{} x 10 g")),
    "length": ((15, 20, 30, 45, 60), ("{} cm", "{}cm", "{} CM")),
}
SYLLABLES = [a + b for a, b in zip("mrtksnlvdrbtnhlzpmky", "aaoiaeoiauaioeaueioa", strict=True)]


class Writer:
    """Writes titles of one product; what is common to them is decided here once.

    Args:
        emoji: the product.
        key: decides everything, with the emoji's code.
    """

    def __init__(self, emoji: Emoji, key: str) -> None:
        self.emoji, rng = emoji, stream(key, "product", emoji.code)
        self.brand = brand(int(rng.integers(36))) if rng.random() < 0.6 else ""
        self.model = f"{'ABKMTX'[rng.integers(6)]}{rng.integers(10, 99)}{rng.integers(0, 9)}"
        self.model = self.model if rng.random() < 0.3 else ""
        self.kind = str(rng.choice(["", *AMOUNTS], p=[0.34, 0.16, 0.16, 0.18, 0.08, 0.08]))
        self.amount = int(rng.choice(AMOUNTS[self.kind][0])) if self.kind else 0

    def title(self, rng: np.random.Generator) -> str:
        """One seller's title."""
        language = str(rng.choice([*TONGUES], p=[*TONGUES.values()]))
        words = self._name(language, rng)
        if language != "en" and rng.random() < 0.25:  # both languages, for whoever searches
            words += self._name("en", rng)
        tags = self.emoji.tags.get(language, [])
        if tags and rng.random() < 0.4:
            words += str(rng.choice(tags)).split()
        if rng.random() < 0.3:
            words.insert(int(rng.integers(len(words) + 1)), str(rng.choice(FILLERS)))
        if rng.random() < 0.12:
            rng.shuffle(words)
        words = [_mistyped(word, rng) if rng.random() < 0.07 else word for word in words]
        if self.brand and rng.random() < 0.65:
            words.insert(0 if rng.random() < 0.7 else len(words), self.brand)
        if self.model and rng.random() < 0.6:
            words.append(self.model)
        if self.kind and rng.random() < 0.7:
            words.append(self._size(rng))
        for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.4, 0.3, 0.2, 0.1]))):
            slogan = str(rng.choice(SLOGANS))
            words.insert(0 if rng.random() < 0.4 else len(words), slogan)
        text = _cased(" ".join(words), rng)
        if rng.random() < 0.1:
            sign = str(rng.choice(SIGNS))
            text = f"{sign} {text}" if rng.random() < 0.5 else f"{text} {sign}"
        if rng.random() < 0.05:
            text = f"{self.emoji.char} {text}" if rng.random() < 0.7 else self.emoji.char
        return escaped(text) if rng.random() < 0.5 else text

    def _name(self, language: str, rng: np.random.Generator) -> list[str]:
        """Words of the product's name, some dropped, never all."""
        label = self.emoji.labels.get(language) or self.emoji.labels["en"]
        words = re.sub(r"[:()]", " ", label).split()
        kept = [word for word in words if rng.random() > 0.16]
        return kept or words[:1]

    def _size(self, rng: np.random.Generator) -> str:
        """The amount as this seller writes it."""
        text = str(rng.choice(AMOUNTS[self.kind][1])).format(self.amount)
        if self.amount >= 1000 and rng.random() < 0.4:
            litres = f"{self.amount / 1000:g}"
            text = f"{litres} {'L' if self.kind == 'volume' else 'kg'}"
        return text


def brand(number: int) -> str:
    """A made-up brand of two or three syllables; equal numbers give equal brands."""
    rng = stream("brand", number)
    return "".join(rng.choice(SYLLABLES, int(rng.integers(2, 4)))).capitalize()


def escaped(text: str) -> str:
    r"""The text with every character outside of ASCII as the bytes of its UTF-8, `\xe2\x80\xa6`.

    That is what Kaggle's csv holds: the text is not undone by reading the file.
    """
    return "".join(
        char if char.isascii() else "".join(f"\\x{byte:02x}" for byte in char.encode())
        for char in text
    )


def _mistyped(word: str, rng: np.random.Generator) -> str:
    """The word with two letters swapped, or one dropped or doubled."""
    if len(word) < 4:
        return word
    place, kind = int(rng.integers(1, len(word) - 1)), int(rng.integers(3))
    middle = (word[place + 1] + word[place], word[place + 1], word[place] + word[place : place + 2])
    return word[:place] + middle[kind] + word[place + 2 :]


def _cased(text: str, rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.2:
        return text.upper()
    if kind < 0.55:
        return text.title()
    return text.lower() if kind < 0.7 else text
