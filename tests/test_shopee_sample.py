"""The bundled Shopee sample, and the program that made it on packages of a few shapes."""

import csv
import json
import re
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.data.phash import dct_hash, hash_text
from common.metrics import score
from common.submission import check
from competitions.shopee import make_sample
from competitions.shopee.market.emoji import (
    LICENCES,
    VENDORS,
    _rasterise,
    read_emoji,
    read_vendors,
)
from competitions.shopee.market.products import family
from competitions.shopee.market.wording import Writer, escaped

SAMPLE = Path(make_sample.__file__).parent / "sample"


def rows(name, root=SAMPLE):
    with (root / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def groups():
    return {
        "train": Counter(row["label_group"] for row in rows("train.csv")),
        "test": Counter(row["matches"] for row in rows("solution.csv")),
    }


def test_committed_sample_has_the_competitions_layout(groups):
    train, test = rows("train.csv"), rows("test.csv")
    assert list(train[0]) == ["posting_id", "image", "image_phash", "title", "label_group"]
    assert list(test[0]) == ["posting_id", "image", "image_phash", "title"]
    ids = [row["posting_id"] for row in [*train, *test]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"(train|test)_\d+", i) for i in ids)
    assert all(re.fullmatch(r"[0-9a-f]{32}\.jpg", row["image"]) for row in [*train, *test])
    assert all(re.fullmatch(r"[0-9a-f]{16}", row["image_phash"]) for row in [*train, *test])
    assert 600 < len(train) < 750
    assert 400 < len(test) < 500
    for split, table in (("train", train), ("test", test)):
        files = {path.name for path in (SAMPLE / f"{split}_images").iterdir()}
        assert files == {row["image"] for row in table}
        assert set(groups[split].values()) == {2, 3, 4, 5, 6, 7}
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*")) < 8_000_000


def test_answers_list_every_row_of_the_group_and_the_sample_submission_is_valid():
    solution = {row["posting_id"]: row["matches"].split() for row in rows("solution.csv")}
    for name, matches in solution.items():
        assert name in matches
        assert all(solution[other] == matches for other in matches)
    submission = SAMPLE / "sample_submission.csv"
    assert check("shopee", SAMPLE / "solution.csv", submission) == []
    assert score("f1", SAMPLE / "solution.csv", SAMPLE / "solution.csv") == 1
    assert 0.3 < score("f1", SAMPLE / "solution.csv", submission) < 0.6


def test_titles_have_what_makes_the_competitions_titles_hard():
    train = rows("train.csv")
    titles = [row["title"] for row in [*train, *rows("test.csv")]]
    escapes = [t for t in titles if re.search(r"(\\x[0-9a-f]{2})+", t)]
    assert 0.05 < len(escapes) / len(titles) < 0.3
    assert all(t.isascii() for t in escapes)
    assert any(re.search(r"[぀-ヿ一-鿿]", t) for t in titles)
    assert any(re.search(r"\b\d+ ?ml\b", t, re.I) for t in titles)
    assert any(re.search(r"\b\d+ ?x ?\d+ ?g", t, re.I) for t in titles)
    same = Counter((row["label_group"], row["title"].lower()) for row in train)
    assert max(same.values()) < 4  # sellers word one product differently


def test_hashes_are_of_the_pictures_and_some_listings_share_a_file():
    for split in ("train", "test"):
        table = rows(f"{split}.csv")
        for row in table[::40]:
            image = cv2.imread(str(SAMPLE / f"{split}_images" / row["image"]))[..., ::-1]
            assert hash_text(dct_hash(np.ascontiguousarray(image))) == row["image_phash"]
        shared = Counter(row["image"] for row in table)
        assert 0.01 < sum(n - 1 for n in shared.values()) / len(table) < 0.1


def test_every_picture_has_a_vendor_and_a_licence_that_license_names():
    sources, text = rows("sources.csv"), (SAMPLE / "LICENSE").read_text()
    files = {str(p.relative_to(SAMPLE)) for p in SAMPLE.rglob("*.jpg")}
    assert {row["file"] for row in sources} == files
    assert len(sources) == len(files)
    assert {row["vendor"] for row in sources} == set(VENDORS)
    for vendor, licence in {(row["vendor"], row["licence"]) for row in sources}:
        assert licence in LICENCES
        assert re.search(rf"^{vendor} .*\n?.*{licence}$", text, re.M), (vendor, licence)


SHAPES = {  # code, label, subgroup, whether it comes in tones
    **{f"1F6{n:02d}": (f"thing {n}", "household", False) for n in range(20)},
    "1F44B": ("waving hand", "hand-fingers-open", True),
    "1F468-200D-1F52C": ("man scientist", "person-role", False),
    "1F469-200D-1F52C": ("woman scientist", "person-role", False),
    "1F570-FE0F": ("clock", "time", False),
    "1F595": ("rude finger", "hand-fingers-open", True),
}
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def modules(tmp_path):
    root = tmp_path / "node_modules"
    data, icons = [], {}
    shelves = sorted({shelf for _, shelf, _ in SHAPES.values()})
    for n, (code, (label, shelf, toned)) in enumerate(SHAPES.items()):
        row = {"label": label, "hexcode": code, "emoji": chr(0x1F600 + n), "tags": ["good"]}
        row["subgroup"] = shelves.index(shelf)
        variants = [(label, code)]
        if toned:
            skins = [(f"{label}: {t} skin tone", f"{code}-1F3F{i}", i) for i, t in enumerate(TONES)]
            row["skins"] = [
                {**row, "label": name, "hexcode": hexcode, "tone": i + 1}
                for name, hexcode, i in skins
            ]
            variants += [(name, hexcode) for name, hexcode, _ in skins]
        data.append(row)
        for m, (name, hexcode) in enumerate(variants):
            body = f'<circle cx="16" cy="16" r="{8 + m}" fill="#{(n * 654321) % 2**24:06x}"/>'
            icons[re.sub(r"\W+", "-", name)] = (body, hexcode)
    emojibase = root / "emojibase-data"
    for language in ("en", "ms", "de", "fr", "es", "pt", "ja", "th", "vi", "zh"):
        write(emojibase / language / "data.json", data)
    names = {str(i): shelf for i, shelf in enumerate(shelves)}
    write(emojibase / "meta/groups.json", {"subgroups": names})
    write(emojibase / "meta/unicode-names.json", {"1F570": "MANTELPIECE CLOCK"})
    for vendor in VENDORS:
        folder = root / "@iconify-json" / vendor
        bodies = {name: {"body": body} for name, (body, _) in icons.items()}
        aliases = {"turned": {"parent": "clock", "rotate": 1}}
        if vendor == "fxemoji":  # has no table of codes, and names of its own
            bodies = {"mantelpiececlock": bodies["clock"], "thing1": bodies["thing-1"]}
            aliases = {}
        else:
            write(folder / "chars.json", {code.lower(): name for name, (_, code) in icons.items()})
        content = {"icons": bodies, "aliases": aliases, "width": 32, "height": 32}
        write(folder / "icons.json", content)
        about = {"license": {"spdx": "MIT"}, "author": {"name": vendor}}
        write(folder / "info.json", about)
    return root


def test_emoji_have_labels_tones_and_drawings(modules):
    emoji = {e.code: e for e in read_emoji(modules, read_vendors(modules))}
    assert emoji["1F570"].icons["fxemoji"] == "mantelpiececlock"
    assert emoji["1F601"].icons["fxemoji"] == "thing1"
    assert "fxemoji" not in emoji["1F602"].icons
    dark = emoji["1F44B-1F3F4"]
    assert (dark.tone, dark.base, dark.shelf) == (5, "1F44B", "hand-fingers-open")
    assert dark.labels["ms"] == "waving hand: dark skin tone"
    man, woman = emoji["1F468-200D-1F52C"], emoji["1F469-200D-1F52C"]
    assert family(man) == family(woman) != family(emoji["1F570"])
    sprite = read_vendors(modules)["noto"].draw("thing-3", 64)
    assert sprite.shape == (64, 64, 4)
    assert sprite[32, 32, 3] == 1
    assert sprite[2, 2, 3] == 0


def test_same_packages_give_same_bytes_and_relatives_share_a_side(modules, tmp_path):
    counts = {"train": 12, "test": 8}
    numbers = make_sample.build(modules, tmp_path / "a", counts=counts)
    make_sample.build(modules, tmp_path / "b", counts=counts)
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert numbers["train products"] == 12
    assert numbers["test products"] == 8
    products = make_sample.choose(read_emoji(modules, read_vendors(modules)), counts)
    sides = {}
    for product in products:
        sides.setdefault(family(product.emoji), set()).add(product.split)
    assert all(len(side) == 1 for side in sides.values())
    assert not any(product.emoji.base == "1F595" for product in products)
    assert sum(product.size for product in products) == len(
        [*rows("train.csv", tmp_path / "a"), *rows("test.csv", tmp_path / "a")]
    )


def test_titles_of_a_product_share_its_brand_and_size(modules):
    emoji = read_emoji(modules, read_vendors(modules))[0]
    writers = [Writer(emoji, f"key {n}") for n in range(20)]
    writer = next(w for w in writers if w.brand and w.kind == "volume")
    titles = [writer.title(np.random.default_rng(n)) for n in range(200)]
    assert len(set(titles)) > 150
    assert 80 < sum(writer.brand.lower() in t.lower() for t in titles) < 180
    sizes = [t for t in titles if re.search(r"\d ?(ml|l)\b", t, re.I)]
    assert 80 < len(sizes) < 180
    assert escaped("a…é") == r"a\xe2\x80\xa6\xc3\xa9"


def test_without_resvg_the_builder_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match="pip install resvg-py"):
        _rasterise("<svg/>", 8)


def test_missing_package_other_licence_second_build_and_too_few_are_said(modules, tmp_path):
    with pytest.raises(FileNotFoundError, match="node_modules"):
        make_sample.build(tmp_path / "nothing", tmp_path / "a")
    (tmp_path / "b/train_images").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="--out"):
        make_sample.build(modules, tmp_path / "b")
    with pytest.raises(ValueError, match="the vendors draw"):
        make_sample.build(modules, tmp_path / "c", counts={"train": 300, "test": 100})
    info = modules / "@iconify-json/noto/info.json"
    write(info, {"license": {"spdx": "CC-BY-NC-4.0"}, "author": {"name": "x"}})
    with pytest.raises(ValueError, match="CC-BY-NC-4.0"):
        make_sample.build(modules, tmp_path / "d")
