"""Reading Shopee's files: odd titles pass, bad files are one line that says what to do.

Then what is held out, against the obvious way of writing it.
"""

import csv
import shutil
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.data.phash import dct_hash
from common.data.tables import DataError
from common.data.titles import clean, plain
from common.metrics import mean_f1
from competitions.shopee.data import SAMPLE, DataConfig, read
from competitions.shopee.held import Held
from competitions.shopee.matching import truth_of

HEADER = ["posting_id", "image", "image_phash", "title", "label_group"]
PHASH = "94974f937d4c2433"
ROWS = [[f"train_{i}", f"{i}.jpg", PHASH, f"title {i}", 500 + i // 2] for i in range(12)]
TEST = [[f"test_{i}", f"t{i}.jpg", PHASH, f"title {i}"] for i in range(6)]


def write_csv(path, rows, header=HEADER):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(pixels, (40, 40), interpolation=cv2.INTER_CUBIC))


def fill(root, train=ROWS, test=TEST):
    write_csv(root / "train.csv", train)
    write_csv(root / "test.csv", test, HEADER[:4])
    for split, rows in (("train", train), ("test", test)):
        for n, row in enumerate(rows):
            picture(root / f"{split}_images" / row[1], n)
    return root


@pytest.fixture
def root(tmp_path):
    return fill(tmp_path)


def read_at(root: Path, **options):
    return read(DataConfig(root=str(root), **options))


def test_tables_of_a_folder_in_kaggles_layout(root):
    data = read_at(root)
    assert data.classes.tolist() == [str(500 + i) for i in range(6)]
    assert data.train.ids.tolist() == sorted(row[0] for row in ROWS)
    group = {row[0]: str(row[4]) for row in ROWS}
    title = {row[0]: row[3] for row in ROWS}
    names = data.train.ids.tolist()
    assert [data.classes[k] for k in data.train.labels] == [group[i] for i in names]
    assert data.train.titles.tolist() == [title[i] for i in names]
    assert data.phash["train"].tolist() == [int(PHASH, 16)] * 12
    assert data.test.ids.tolist() == [row[0] for row in TEST]
    assert data.test.paths[0].decode() == f"{root}/test_images/t0.jpg"
    assert (data.test.labels == -1).all()
    assert (data.sample, data.solution(), data.hidden, data.warnings) == (None, None, 6, [])
    part = data.train.take(np.array([3, 1]))
    assert part.titles.tolist() == data.train.titles[[3, 1]].tolist()
    assert len(part) == 2


def test_the_bundled_sample_is_the_last_resort(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = read(DataConfig())
    assert (data.root, data.origin) == (SAMPLE, "bundled sample")
    assert (data.sample.name, data.solution().name) == ("sample_submission.csv", "solution.csv")
    assert data.warnings == []
    assert any("é" in title for title in data.train.titles)  # the file has its bytes written out


def test_order_of_the_csv_does_not_matter(root):
    before = read_at(root)
    write_csv(root / "train.csv", ROWS[::-1])
    after = read_at(root)
    assert before.fingerprint() == after.fingerprint()
    assert before.train.labels.tolist() == after.train.labels.tolist()
    settings = DataConfig(distractors=4, strangers=["train"])
    one, two = Held.of(before, settings), Held.of(after, settings)
    assert one.queries.tolist() == two.queries.tolist()
    assert one.distractors.tolist() == two.distractors.tolist()


ODD = [
    "", "   ", "NA", "null", "NaN", "x" * 20_000, "🍎🍎", "赤リンゴ 500 ml", "แอปเปิ้ล",
    "ab\\xe2\\x80\\xa6", "â€¦ mojibake", 'quote " comma, and\nnewline',
]  # fmt: skip


def test_titles_of_every_kind_pass(root):
    rows = [[*row[:3], title, row[4]] for row, title in zip(ROWS, ODD, strict=True)]
    write_csv(root / "train.csv", rows)
    for name, change in (("raw", str), ("plain", plain), ("clean", clean)):
        data = read_at(root, titles=name)
        found = dict(zip(data.train.ids.tolist(), data.train.titles.tolist(), strict=True))
        assert [found[row[0]] for row in rows] == [change(title) for title in ODD]
        assert data.warnings == ["2 of 12 train titles are empty."]
        assert all(isinstance(title, str) for title in found.values())
        data.fingerprint()


def test_bytes_that_are_no_utf8_spoil_only_their_own_title(root):
    path = root / "train.csv"
    path.write_bytes(path.read_bytes().replace(b"title 7", b"caf\xe9 \xff"))
    data = read_at(root)
    found = dict(zip(data.train.ids.tolist(), data.train.titles.tolist(), strict=True))
    assert found["train_7"] == "caf\ufffd \ufffd"
    assert found["train_8"] == "title 8"


def test_one_row_equal_images_and_a_group_of_sixty_pass(tmp_path):
    big = [[f"train_b{i}", "same.jpg", PHASH, "t", 9] for i in range(60)]
    data = read_at(fill(tmp_path, [*ROWS, *big], TEST[:1]))
    assert len(data.test) == 1
    assert len(set(data.train.paths.tolist())) == 13
    (warning,) = data.warnings
    assert warning.startswith("1 groups have more than 50 listings, the most 60")


def test_missing_images_are_counted(root):
    (root / "train_images/3.jpg").unlink()
    (root / "test_images/t0.jpg").unlink()
    first, second = read_at(root).warnings
    assert first.startswith("1 of 12 train images")
    assert second.startswith("1 of 6 test images")


def test_a_stub_of_a_test_set_may_lack_its_pictures_and_stands_for_the_hidden_one(tmp_path):
    many = [[f"train_{i}", "same.jpg", PHASH, "t", i // 4] for i in range(1200)]
    fill(tmp_path, many, TEST[:3])
    for path in (tmp_path / "test_images").iterdir():
        path.unlink()
    data = read_at(tmp_path, hidden=5000)
    assert data.hidden == 5000
    assert data.warnings[0].startswith("3 of 3 test images")
    held = Held.of(data, DataConfig(hidden=5000))
    assert held.wanted == 5000 - 240
    assert held.describe() == (
        "held out: 240 listings in 60 groups, among 3 of the test and 960 of train distractors, "
        "4760 are wanted"
    )


def test_hashes_come_from_the_pictures_where_the_csv_has_none(root):
    write_csv(root / "train.csv", [[r[0], r[1], *r[3:]] for r in ROWS], [*HEADER[:2], *HEADER[3:]])
    data = read_at(root)
    assert data.phash["train"] is None
    assert data.phash["test"] is not None
    hashes = data.hashes("train")
    image = cv2.imread(data.train.paths[5].decode())[..., ::-1]
    assert hashes[5] == dct_hash(np.ascontiguousarray(image))
    assert data.hashes("train") is hashes
    assert data.hashes("test").tolist() == [int(PHASH, 16)] * 6


def change(name, rows, header=HEADER):
    return lambda root: write_csv(root / name, rows, header)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "train.csv").unlink(), r"No train\.csv under data\.root"),
        (lambda r: (r / "test.csv").unlink(), r"No file .*test\.csv"),
        (lambda r: (r / "train.csv").write_text(""), r"train\.csv is not a readable csv"),
        (lambda r: (r / "test.csv").write_bytes(b"\xff\xfe\x00"), "no column 'posting_id'"),
        (change("train.csv", []), "header but no rows"),
        (change("test.csv", [], HEADER[:4]), "header but no rows"),
        (change("train.csv", ROWS, [*HEADER[:4], "label"]), "no column 'label_group'"),
        (change("train.csv", ROWS, [*HEADER[:3], "name", "label_group"]), "no column 'title'"),
        (change("train.csv", [*ROWS, ROWS[0]]), "row 14: posting_id train_0 occurs twice"),
        (change("train.csv", [["", *ROWS[0][1:]]]), "row 2: empty value"),
        (change("train.csv", [["a b", *ROWS[0][1:]]]), "row 2: posting_id 'a b' is not a plain id"),
        (change("train.csv", [["a", "../x.jpg", *ROWS[0][2:]]]), r"row 2: image '\.\./x\.jpg' is"),
        (change("train.csv", [["a", "..", *ROWS[0][2:]]]), r"row 2: image '\.\.' is"),
        (change("train.csv", [["a", "x.jpg", "12", "t", 1]]), "image_phash '12' is not 16 hex"),
        (change("test.csv", [["train_1", "x.jpg", PHASH, "t"]], HEADER[:4]), "train_1 is in both"),
        (change("train.csv", [[*r[:4], r[0]] for r in ROWS]), "every label_group has one listing"),
        (lambda r: shutil.rmtree(r / "train_images"), "None of 12 images looked at exists"),
        (lambda r: shutil.rmtree(r / "test_images"), "None of 6 images looked at exists"),
    ],
)
def test_bad_files_are_errors_before_any_work(root, spoil, message):
    spoil(root)
    with pytest.raises((DataError, FileNotFoundError), match=message):
        read_at(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 5}, "data.fold=5"),
        ({"folds": 1}, "at least 2"),
        ({"distractors": -2}, "=-2"),
        ({"hidden": 0}, "data.hidden=0"),
        ({"strangers": ["index"]}, "test, train, both"),
        ({"strangers": ["test", "test"]}, "test, train, both"),
        ({"titles": "tidy"}, "choose raw, plain, clean"),
    ],
)
def test_settings_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_folds_hold_out_every_group_once_and_whole():
    data = read(DataConfig())
    labels = data.train.labels
    seen = np.zeros(len(labels), int)
    sizes = []
    for fold in range(5):
        held = Held.of(data, DataConfig(fold=fold, distractors=0))
        seen[held.queries] += 1
        assert not set(labels[held.queries]) & set(labels[held.train])
        assert len(held.queries) + held.train.sum() == len(labels)
        sizes.append(np.bincount(np.bincount(labels[held.queries]))[2:])
    assert (seen == 1).all()
    assert (np.ptp([s[:6] for s in sizes], axis=0) <= 2).all()  # about as many groups of each size
    assert Held.of(data, DataConfig(fold=-1)) is None


@pytest.mark.parametrize("wanted", [0, 1, 50, 300, 10**6])
def test_distractors_are_whole_groups_of_the_training_rows(wanted):
    data = read(DataConfig())
    held = Held.of(data, DataConfig(distractors=wanted, strangers=["train"]))
    labels = data.train.labels
    assert held.train[held.distractors].all()
    assert len(set(held.distractors.tolist())) == len(held.distractors)
    for label in set(labels[held.distractors].tolist()):
        assert set(np.flatnonzero(labels == label)) <= set(held.distractors.tolist())
    most = min(wanted, int(held.train.sum()))
    assert most - 7 < len(held.distractors) <= most  # the next group has at most 7
    assert held.gallery[: len(held.queries)].tolist() == held.queries.tolist()


def test_as_crowded_as_the_test_by_default():
    data = read(DataConfig())
    held = Held.of(data, DataConfig())
    assert held.size == len(data.test)  # of whom most are the test's own
    held = Held.of(data, DataConfig(strangers=["train"]))
    assert 0 <= len(data.test) - held.size < 7


def test_strangers_of_the_test_come_first_and_are_nobodys_match():
    data = read(DataConfig())
    few = Held.of(data, DataConfig(distractors=100))
    assert (len(few.strangers), len(few.distractors)) == (100, 0)
    assert len(set(few.strangers.tolist())) == 100
    many = Held.of(data, DataConfig(distractors=len(data.test) + 50))
    assert many.strangers.tolist() == list(range(len(data.test)))
    assert 50 - 7 < len(many.distractors) <= 50
    turned = Held.of(data, DataConfig(distractors=600, strangers=["train", "test"]))
    assert len(turned.distractors) == turned.train.sum()
    assert len(turned.strangers) == 600 - turned.train.sum()
    none = Held.of(data, DataConfig(strangers=[]))
    assert none.size == len(none.queries)
    truth = truth_of(data, many)
    assert len(truth.labels) == len(truth.asked) == many.size
    assert truth.asked.sum() == len(many.queries)
    others = truth.labels[len(many.gallery) :]
    assert len(set(others.tolist())) == len(data.test)
    assert not set(others.tolist()) & set(data.train.labels.tolist())
    assert truth.crowd == 1
    assert truth_of(data, none).crowd == pytest.approx((len(data.test) - 1) / (none.size - 1))


def test_truth_is_every_listing_of_the_group():
    data = read(DataConfig())
    held = Held.of(data, DataConfig(distractors=50))
    groups = defaultdict(set)
    with (SAMPLE / "train.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            groups[row["label_group"]].add(row["posting_id"])
    whole = {name: group for group in groups.values() for name in group}
    truth = held.truth()
    assert set(truth) == set(data.train.ids[held.queries])
    assert all(set(matches) == whole[name] for name, matches in truth.items())
    assert mean_f1(truth, truth) == 1
