"""Emoji with their names in many languages and the drawing of each vendor, from npm packages."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.data.sample import Image, as_sprite

# Only licences under which an adapted picture may be passed on; the package itself is asked.
LICENCES = ("Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-SA-4.0")
VENDORS = (
    "twemoji", "noto", "openmoji", "fluent-emoji-flat", "emojione", "fxemoji", "noto-v1",
)  # fmt: skip
LANGUAGES = ("en", "ms", "de", "fr", "es", "pt", "ja", "th", "vi", "zh")


@dataclass
class Emoji:
    """One product.

    Attributes:
        code: code points in hex, joined by "-", without the variation selector FE0F.
        char: the emoji itself.
        shelf: its subgroup in Unicode's list, as `cat-face`.
        base: code of the emoji without skin tone.
        tone: 0 for none, else 1 (light) to 5 (dark).
        labels: by language, what it is called.
        tags: by language, words that go with it.
        icons: by vendor, the name of its drawing.
    """

    code: str
    char: str
    shelf: str
    base: str
    tone: int
    labels: dict[str, str]
    tags: dict[str, list[str]]
    icons: dict[str, str] = field(default_factory=dict)


class Vendor:
    """A set of drawings: one package `@iconify-json/<name>`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        info, icons = _json(folder / "info.json"), _json(folder / "icons.json")
        self.licence, self.author = str(info["license"]["spdx"]), str(info["author"]["name"])
        if self.licence not in LICENCES:
            raise ValueError(f"{folder}: licence {self.licence} is not one of {LICENCES}.")
        self._set, self._bodies = icons, icons["icons"]
        # An alias with a rotation or a mirror is another drawing; plain ones are other names.
        plain = {
            n: a["parent"] for n, a in icons.get("aliases", {}).items() if set(a) == {"parent"}
        }
        self._aliases: dict[str, str] = plain
        chars = folder / "chars.json"
        self._codes: dict[str, str] = _json(chars) if chars.is_file() else {}

    def find(self, names: dict[str, str]) -> dict[str, str]:
        """Icon by code; `names` maps a squeezed name to a code, for a set without a table."""
        if self._codes:
            found = {_code(code): icon for code, icon in self._codes.items()}
        else:
            keys = {
                icon: icon.replace("flag-for-", "flag-").replace("-", "") for icon in self._bodies
            }
            found = {names[key]: icon for icon, key in keys.items() if key in names}
        parents = {code: self._aliases.get(icon, icon) for code, icon in found.items()}
        return {code: icon for code, icon in parents.items() if icon in self._bodies}

    def draw(self, icon: str, side: int) -> Image:
        """The sprite of an icon, `side` pixels wide."""
        one = self._bodies[icon]
        size = [one.get(key, self._set.get(key, 16)) for key in ("width", "height")]
        box = " ".join(map(str, (one.get("left", 0), one.get("top", 0), *size)))
        return _rasterise(
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="{size[0]}" height="{size[1]}">{one["body"]}</svg>',
            side,
        )


def read_vendors(modules: Path) -> dict[str, Vendor]:
    """The seven vendors by name.

    Raises:
        FileNotFoundError: a package is not there.
        ValueError: a package came under a licence that is not in `LICENCES`.
    """
    return {name: Vendor(name, modules / "@iconify-json" / name) for name in VENDORS}


def read_emoji(modules: Path, vendors: dict[str, Vendor]) -> list[Emoji]:
    """Every emoji that a vendor draws, by code; `modules` is the folder `node_modules`."""
    folder = modules / "emojibase-data"
    shelves: dict[str, str] = _json(folder / "meta/groups.json")["subgroups"]
    found: dict[str, Emoji] = {}
    for language in LANGUAGES:
        for row in _json(folder / language / "data.json"):
            base = _code(row["hexcode"])
            for one in [row, *row.get("skins", [])]:
                code, tone = _code(one["hexcode"]), one.get("tone", 0)
                shelf = shelves.get(str(one.get("subgroup")), "")
                if isinstance(tone, int) and shelf:  # two people of two tones have a list of them
                    emoji = Emoji(code, one["emoji"], shelf, base, tone, {}, {})
                    emoji = found.setdefault(code, emoji)
                    emoji.labels[language] = one["label"]
                    emoji.tags[language] = row.get("tags", [])
    names = {squeeze(emoji.labels["en"]): code for code, emoji in found.items()}
    for code, name in _json(folder / "meta/unicode-names.json").items():
        if _code(code) in found:
            names.setdefault(squeeze(name), _code(code))
    for vendor in vendors.values():
        for code, icon in vendor.find(names).items():
            if code in found:
                found[code].icons[vendor.name] = icon
    return [found[code] for code in sorted(found) if found[code].icons]


def squeeze(text: str) -> str:
    """ASCII letters and digits of a name alone: `clinking glasses` is `clinkingglasses`."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text).lower())


@lru_cache(maxsize=4096)
def _rasterise(svg: str, side: int) -> Image:
    """The sprite of an SVG. resvg has no system fonts here: letters would differ by machine."""
    try:  # needed by whoever builds the sample, by nobody else
        from resvg_py import svg_to_bytes
    except ImportError:
        raise ValueError("Drawings are SVG and need resvg: pip install resvg-py==0.5.0") from None

    data = np.frombuffer(svg_to_bytes(svg, width=side, skip_system_fonts=True), np.uint8)
    return as_sprite(np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.uint8))


def _code(hexcode: str) -> str:
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def _json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"No {path}: give the folder node_modules that the npm command in --help makes."
        )
    return json.loads(path.read_text(encoding="utf-8"))
