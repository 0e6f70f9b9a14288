"""Title cleaning against character-by-character twins, on random text of many scripts."""

import html
import unicodedata

import numpy as np
import pytest

from common.data.titles import STOP_WORDS, Brands, clean, plain, words
from competitions.shopee.market.wording import escaped

SCRIPTS = ["az", "AZ", "09", "éÿ", "ÀÞ", "ァヺ", "一丂", "กฮ", "ัํ", "अह", "ािॉ", "가힣", "αω", "АЯ"]
SIGNS = " .,!-/()…™®✨❤🍎🔥°“”\t\n\u200d\u00ad\ufe0f"


def random_titles(count, seed, signs=SIGNS):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        script = SCRIPTS[rng.integers(len(SCRIPTS))]
        low, high = ord(script[0]), ord(script[-1])
        letters = [chr(c) for c in rng.integers(low, high + 1, 20)] + list(signs)
        letters = [c for c in letters if c not in "ÂÃàâãïð"]  # before a sign: misread bytes
        yield "".join(rng.choice(letters, int(rng.integers(0, 30))))


def seen(text):
    """NFKC without what cannot be seen or would be glued on."""
    text = "".join(c for c in text if c not in "\ufe0e\ufe0f").replace("™", " ")
    return unicodedata.normalize("NFKC", text)


def test_escaped_bytes_are_read_back():
    for text in random_titles(400, 0):
        assert plain(escaped(text)) == seen(text)
        assert plain(text) == seen(text)


def test_escapes_in_all_their_forms():
    assert plain(r"\xe2\x80\xa6 Teh \xC3\x89") == "... Teh É"
    assert plain(r"cut \xe2\x80") == "cut "  # a title that ends inside of a character
    assert plain(r"\xff\xc3\xa9") == "é"
    assert plain(r"C:\xylophone \x \x4") == r"C:\xylophone \x \x4"
    assert plain(r"\x41\x42") == "AB"


def test_utf8_that_was_read_as_windows_text_is_read_back():
    codes = [*range(0xA1, 0x100), 0x2026, 0x2018, 0x30A2, 0xFF21, 0x0E01, 0x0915, 0x1F34E]
    for char in map(chr, codes):
        wrong = "".join(
            bytes([byte]).decode("cp1252") if byte not in b"\x81\x8d\x8f\x90\x9d" else chr(byte)
            for byte in char.encode()
        )
        assert plain(f"a {wrong}b") == seen(f"a {char}b"), char
        assert plain(f"{wrong}{wrong}") == seen(char + char)
    assert plain("cafÃ© â€¢ â€¦") == "café • ..."


@pytest.mark.parametrize(
    "text", ["NESCAFÉ", "MAÇÃ ÉÉ", "à la crème", "Ã", "30°C", "naïve", "¡Olé!"]
)
def test_accents_that_are_right_stay(text):
    assert plain(text) == unicodedata.normalize("NFKC", text)


def test_entities_and_trade_marks():
    assert plain("a&amp;b &#8211; &#x1F34E; H&M &notes; &ouml;l") == "a&b \u2013 🍎 H&M &notes; öl"
    for name in ("amp", "eacute", "trade", "copy"):
        assert clean(f"x &{name}; y") == clean(f"x {html.unescape(f'&{name};')} y")
    assert clean("NESCAFÉ™ 3in1") == "nescafé 3in1"


def letters_only(title):
    """`clean` without units, one character at a time."""
    text = seen(unicodedata.normalize("NFKC", seen(title).casefold()).casefold())
    out = ""
    for char in text:
        kind = unicodedata.category(char)
        if kind[0] in "LMN":
            out += char
        elif kind != "Cf":
            out += " "
    return " ".join(out.split()) or "".join(text.split())


def test_clean_is_letters_digits_and_marks():
    for title in random_titles(400, 2):
        assert clean(title, units=False) == letters_only(title)


def test_clean_of_clean_is_clean():
    for title in random_titles(400, 3):
        once = clean(title, units=False)
        assert clean(once, units=False) == once
    for start in range(0, 0x3000, 64):  # every character of the smaller scripts
        once = clean(" ".join(map(chr, range(start, start + 64))), units=False)
        assert clean(once, units=False) == once


def test_what_cleaning_must_do():
    assert clean(r"\xe2\x9c\xa8 PROMO Teh 0,5L") == "promo teh 500ml"
    assert (
        clean("\uff26\uff55\uff4c\uff4c ﬁne ① so\u00adft STRASSE straße")
        == "full fine 1 soft strasse strasse"
    )
    assert clean("แอปเปิ้ลแดง!") == "แอปเปิ้ลแดง"  # vowel signs are no letters of `\w`
    assert clean("a_b-c/d'e") == "a b c d e"
    assert clean("🍎 🍎") == "🍎🍎"
    assert clean("❤️") == clean("❤") == "❤"
    assert clean("") == clean(" \n") == ""
    assert clean("2 x 10 GR. isi 3") == "2x10g isi 3"
    assert len(clean("lorem 5 ml " * 5000).split()) == 10_000


def test_words_leave_out_what_every_shop_writes():
    assert words("promo teh untuk kamu") == ["teh", "kamu"]
    assert words("ready stock") == ["ready", "stock"]  # nothing would be left to match by
    assert words("") == []
    assert words("the end", stop=frozenset()) == ["the", "end"]
    assert all(word == clean(word) for word in STOP_WORDS)


def brands_by_hand(tokens, least, most, lead):
    found = []
    for word in sorted({word for row in tokens for word in row}):
        inside = [row for row in tokens if word in row]
        first = [row for row in inside if word in row[:2]]
        few = least <= len(inside) <= max(most * len(tokens), least)
        if few and len(first) >= lead * len(inside) and word.isalpha() and len(word) > 2:
            found.append(word)
    return found


@pytest.mark.parametrize(("least", "most", "lead"), [(3, 0.05, 0.7), (1, 0.02, 0), (2, 1.0, 1.0)])
def test_brands_are_their_definition(least, most, lead):
    rng = np.random.default_rng(4)
    names = ["sari", "nola", "abc", "x1", "teh", "kopi", "madu", "biru", "ab", "kue2", "rosa"]
    tokens = [list(rng.permutation(names)[: rng.integers(0, 5)]) for _ in range(120)]
    tokens += [["sari", "teh", "manis"]] * 2 + [["nola", "madu", "asli"]] * 3
    brands = Brands(least=least, most=most, lead=lead).fit(tokens)
    expected = brands_by_hand(tokens, least, most, lead)
    assert brands.tokens_.tolist() == expected
    codes = brands.transform(tokens)
    for row, code in zip(tokens, codes.tolist(), strict=True):
        first = [word for word in row if word in expected]
        assert code == (expected.index(first[0]) if first else -1)
    assert brands.transform([]).shape == (0,)


def test_settings_of_brands_out_of_range_are_errors():
    for wrong in ({"least": 0}, {"most": 0.0}, {"lead": 1.5}):
        with pytest.raises(ValueError, match="least="):
            Brands(**wrong)
