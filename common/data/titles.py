r"""Product titles made comparable: escapes, misread bytes, case, signs, stop words, brands.

    texts = [clean(title) for title in titles]   # "\xe2\x9c\xa8 PROMO Teh 0,5L": "promo teh 500ml"
    tokens = [words(text) for text in texts]     # without what every shop writes: teh, 500ml
    brands = Brands().fit(tokens).transform(tokens)  # (N,) int64, -1 for none

Shopee's csv holds bytes written out, `\xe2\x80\xa6` for an ellipsis: twelve characters that no
tokeniser knows. Source of the order of steps: `msdw/shopee-product-matching` (16th place) for stop
words, write-up 68613519133 (18th) for units.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from html.entities import html5

import numpy as np

from common.data.amounts import rewritten

Array = np.ndarray

_STOP = (
    # English
    "a an and as at by for from in is it of on or the this to with your you",
    # Indonesian and Malay
    "ada adalah atau buat bisa dan dari dengan di gratis ini isi itu juga ke harga kualitas murah",
    "ongkir oleh pada per promo ready sale stock stok terbaru terlaris termurah untuk utk yang yg",
    # what shops of any country add
    "best cod free gift grosir garansi hot import new ori original official premium seller",
    # German, French, Spanish, Portuguese
    "aus das dem den der die ein eine mit und von zum zur für",
    "au aux avec ce de des du en et la le les ou par pour sur un une",
    "con del el los las para por una uno y o com da do dos e em na no os um uma",
)
STOP_WORDS = frozenset(word for line in _STOP for word in line.split())
_UNSEEN = {ord("™"): " ", ord("℠"): " ", 0xFE0E: None, 0xFE0F: None}
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
_ESCAPES = re.compile(r"(?:\\x[0-9a-fA-F]{2})+")
# What each byte looks like when UTF-8 is read as Windows-1252; five have no letter there.
_WINDOWS = [bytes([n]).decode("cp1252", "replace").replace("\ufffd", chr(n)) for n in range(256)]
_BYTE = {char: n for n, char in enumerate(_WINDOWS)}
_NEXT = f"[{re.escape(''.join(_WINDOWS[0x80:0xC0]))}]"
# Latin letters, signs and kana, Thai and its like, emoji. Not Chinese or Cyrillic, whose first
# bytes look like the É of "NESCAFÉ™": that is two characters of valid UTF-8 as well.
_MISREAD = re.compile(f"[ÂÃ]{_NEXT}|[àâãï]{_NEXT}{{2}}|ð{_NEXT}{{3}}")


def plain(title: str) -> str:
    r"""The title as its seller meant it: `\xNN`, `&amp;` and misread bytes undone, Unicode NFKC.

    A run of `\xNN` is UTF-8; bytes of it that are none (a cut title) are dropped. `â€¦` is UTF-8
    that was read as Windows-1252; NFKC writes the ellipsis it stands for as three dots. Trade marks
    go: NFKC would glue TM to the word. So do variation selectors: an emoji is the same without.
    """
    text = _MISREAD.sub(_reread, _ESCAPES.sub(_decoded, title))
    text = _ENTITY.sub(_entity, text)
    return unicodedata.normalize("NFKC", text.translate(_UNSEEN))


def clean(title: str, *, units: bool = True) -> str:
    """The plain title in lower case, letters, digits and their marks alone, one space between.

    Emoji and other signs go, unless there is nothing else: a title of emoji keeps them.

    Args:
        title: as it stands in the csv.
        units: write amounts as one word in a base unit, `0,5 L` and `500 ml` as `500ml`.
    """
    text = _folded(title)
    if units:
        text = rewritten(text)
    return " ".join(text.translate(_LETTERS).split()) or "".join(text.split())


def words(text: str, *, stop: frozenset[str] = STOP_WORDS) -> list[str]:
    """The words of a cleaned title without stop words; all of them when it has no other."""
    found = text.split()
    return [word for word in found if word not in stop] or found


# `data.titles` of a config: how a title is spelled before an encoder reads it.
SPELLINGS: dict[str, Callable[[str], str]] = {"raw": str, "plain": plain, "clean": clean}


class Brands:
    """Finds the words that are brands, by how often they stand at the head of how many titles.

    A brand is in several titles but not in many, has a letter and no digit, and leads: shops put it
    first. No list of brands is needed, and none of another country's fits.

    Args:
        least: titles that have the word, at least.
        most: share of the titles that have it, at most; kinds of goods are commoner.
        lead: share of them where it is the first or second word, at least.

    Attributes:
        tokens_: `(B,)` the brands found, sorted; a code is a place in it.
    """

    def __init__(self, *, least: int = 3, most: float = 0.01, lead: float = 0.7) -> None:
        if least < 1 or not 0 < most <= 1 or not 0 <= lead <= 1:
            raise ValueError(
                f"least={least}, most={most}, lead={lead}: titles, at least 1; a share above 0; a "
                "share."
            )
        self.least, self.most, self.lead = least, most, lead
        self.tokens_: Array = np.zeros(0, np.str_)

    def fit(self, tokens: Sequence[Sequence[str]]) -> Brands:
        """Learn from the words of titles, stop words left out."""
        titles: Counter[str] = Counter()
        leads: Counter[str] = Counter()
        for row in tokens:
            titles.update(set(row))
            leads.update(set(row[:2]))
        limit = max(self.most * len(tokens), self.least)
        kept = [
            word
            for word, count in titles.items()
            if self.least <= count <= limit
            and leads[word] >= self.lead * count
            and len(word) > 2
            and word.isalpha()
        ]
        self.tokens_ = np.array(sorted(kept), np.str_)
        return self

    def transform(self, tokens: Sequence[Sequence[str]]) -> Array:
        """`(N,)` int64 code of the first brand in each title, -1 for none."""
        place = {str(word): code for code, word in enumerate(self.tokens_)}
        codes = (next((place[word] for word in row if word in place), -1) for row in tokens)
        return np.fromiter(codes, np.int64, len(tokens))


def _folded(title: str) -> str:
    """The plain title, case folded; twice, since folding can undo the normal form."""
    text = unicodedata.normalize("NFKC", plain(title).casefold())
    return unicodedata.normalize("NFKC", text.casefold())


class _Letters(dict[int, str]):
    r"""Translation of characters by their category, filled as they are met.

    Not the regular expression `\w`: that has no vowel signs, without which Thai and Hindi words
    fall apart.
    """

    def __missing__(self, code: int) -> str:
        kind = unicodedata.category(chr(code))
        # Cf: joiners, soft hyphens, direction marks stand inside of words and cannot be seen.
        self[code] = chr(code) if kind[0] in "LMN" else "" if kind == "Cf" else " "
        return self[code]


_LETTERS = _Letters()


def _decoded(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("\\x", "")).decode("utf-8", "ignore")


def _entity(match: re.Match[str]) -> str:
    """Not `html.unescape` for names: that reads `&notes;` as `&not` and `es;`."""
    name = match[0][1:]
    return html.unescape(match[0]) if name[0] == "#" else html5.get(name, match[0])


def _reread(match: re.Match[str]) -> str:
    try:
        return bytes(_BYTE[char] for char in match[0]).decode("utf-8")
    except UnicodeDecodeError:
        return match[0]
