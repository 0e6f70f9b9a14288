"""Amounts in titles: what is written is read, and the veto against sets compared pair by pair."""

import numpy as np
import pytest

from common.data.amounts import MOST, QUANTITIES, UNITS, Amounts, amounts, rewritten


def stated(title):
    """Amounts in base units instead of thousandths."""
    return {quantity: [v / 1000 for v in values] for quantity, values in amounts(title).items()}


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Maling 397 gr", {"weight": [397]}),
        ("SABUN 500ML", {"volume": [500]}),
        ("2x10 gr", {"weight": [10, 20], "count": [2]}),
        ("10 gr x 2", {"weight": [10, 20], "count": [2]}),
        ("10gr x 2 pcs", {"weight": [10], "count": [2]}),
        ("2 \u00d7 3 * 5 g", {"weight": [5, 30], "count": [6]}),
        ("20x30 cm", {"length": [300, 200]}),
        ("10 x 20 x 30cm", {"length": [300, 100, 200]}),
        ("12 mm x 4,5 m", {"length": [12, 4500]}),
        ("1.000 gr", {"weight": [1000]}),
        ("1,000,000 mg", {"weight": [1000]}),
        ("1.500 kg", {"weight": [1500]}),
        ("0.500 kg", {"weight": [500]}),
        ("1.5 l", {"volume": [1500]}),
        ("1/2 kg", {"weight": [500]}),
        ("3/0 kg", {}),
        ("1 lusin", {"count": [12]}),
        ("isi 10", {"count": [10]}),
        ("pack of 5", {"count": [5]}),
        ("3 pack 5 pcs", {"packs": [3], "count": [5]}),
        ("16 GB 2TB 5000mAh 220v 60 watt", {"memory": [16, 2048], "charge": [5000],
                                              "voltage": [220], "power": [60]}),
        ("500mlボトル", {"volume": [500]}),
        ("500毫升 3個", {"volume": [500], "count": [3]}),
        ("50 gélules, 100% ori, ml500, x10g, 2 in 1, iphone 11", {}),
        ("10 g 10 gram 10gr", {"weight": [10]}),
        ("8991234567890123456789 g", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_what_is_written_is_read(title, expected):
    assert stated(title) == expected


def spellings(value):
    """How shops write a number that is a whole or a half."""
    if value != int(value):
        return [f"{value}", f"{value}".replace(".", ",")]
    return [f"{int(value)}"] + ([f"{int(value):,}".replace(",", ".")] if value >= 1000 else [])


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_unit_in_every_spelling_between_other_words(quantity):
    rng = np.random.default_rng(0)
    words = ["Teh", "botol", "ori", "A12", "PROMO", "no.7", "apel", "ラーメン", "(baru)"]
    for unit, size in UNITS[quantity].items():
        for value in (1, 2.5, 12, 750):
            for number in spellings(value):
                for text in (f"{number} {unit}", f"{number}{unit}", f"{number} {unit.upper()}"):
                    before, after = rng.choice(words, 2)
                    title = f"{before} {text} {after}"
                    expected = round(value * size * 1000)
                    assert amounts(title) == ({quantity: [expected]} if expected else {}), title


def test_thousands_have_dots_where_the_unit_is_small():
    assert stated("1.500 ml") == stated("1500 ml") == stated("1,5 l") == {"volume": [1500]}


def test_rewritten_spellings_are_one_word():
    same = [
        ("0,5 l", "500 ml", "500ml", "1/2 liter"),
        ("2x10 gr", "2 x 10g", "10 gr x 2", "2 \u00d7 10 grams"),
        ("1.000 g", "1 kg", "1000gr"),
        ("20x30 cm", "200 x 300 mm"),
    ]
    for group in same:
        written = {rewritten(f"teh {text} baru") for text in group}
        assert len(written) == 1, written
        assert len(written.pop().split()) == 3
    for text in ("3/0 kg", "no amount 100%", "8991234567890123456789 g"):
        assert rewritten(text) == text


def test_rewritten_says_the_same():
    rng = np.random.default_rng(1)
    units = [u for of in UNITS.values() for u in of]
    for _ in range(300):
        number = spellings(float(rng.choice([1, 2, 3.5, 40, 1250])))[0]
        times = f"{rng.integers(2, 9)} x " if rng.random() < 0.3 else ""
        title = f"teh {times}{number} {rng.choice(units)} baru"
        before, after = amounts(title), amounts(rewritten(title))
        assert set(before) == set(after)
        for quantity, values in before.items():  # written to half a thousandth, up to 8 of them
            assert np.allclose(values, after[quantity], rtol=0, atol=4), title


def veto_by_hand(one, two):
    a, b = amounts(one), amounts(two)
    shared = set(a) & set(b)
    return any(not set(a[q][:MOST]) & set(b[q][:MOST]) for q in shared)


def titles(count, seed):
    rng = np.random.default_rng(seed)
    parts = ["10 g", "20 g", "2x10 g", "500 ml", "0,5 l", "1 l", "3 pcs", "isi 3", "5 pcs", "16 gb",
             "20x30 cm", "30 cm", "1 2 3 g 4 g 5 g 6 g 7 g", "teh", "promo", ""]  # fmt: skip
    return [" ".join(rng.choice(parts, int(rng.integers(0, 4)))) for _ in range(count)]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_veto_is_its_definition(chunk):
    texts = titles(60, 2)
    found = Amounts.parse(texts)
    a, b = (part.ravel() for part in np.meshgrid(np.arange(60), np.arange(60)))
    expected = [veto_by_hand(texts[i], texts[j]) for i, j in zip(a, b, strict=True)]
    vetoed = found.veto(a, b, chunk=chunk)
    assert vetoed.tolist() == expected
    assert 0.05 < vetoed.mean() < 0.8
    assert not found.veto(a, a).any()
    np.testing.assert_array_equal(found.veto(b, a), vetoed)


def test_compare_tells_agreement_from_silence():
    found = Amounts.parse(["10 g 500 ml", "10 gr 1 l", "teh"])
    rows = found.compare(np.array([0, 0, 2]), np.array([1, 2, 2]))
    weight, volume = QUANTITIES.index("weight"), QUANTITIES.index("volume")
    assert rows[0, weight] == 1
    assert rows[0, volume] == -1
    assert (rows[1:] == 0).all()
    assert found.values.shape == (3, len(QUANTITIES), MOST)
    assert Amounts.parse([]).veto(np.zeros(0, int), np.zeros(0, int)).shape == (0,)


def test_rows_of_different_shapes_are_an_error():
    with pytest.raises(ValueError, match="two arrays of rows"):
        Amounts.parse(["a", "b"]).veto(np.array([0, 1]), np.array([0]))


def test_long_titles_of_nothing_but_numbers_end():
    for text in ("1" * 20_000, "1*" * 10_000, "1 " * 10_000, "1.000" * 4000, "x " * 10_000):
        assert amounts(text + " 5 g").get("weight", [5000])[0] == 5000
        assert rewritten(text + " 5 g").endswith("5g")
