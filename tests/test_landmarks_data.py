"""Reading Google Landmarks' files: every kind of bad input is one line that says what to do.

Then what is asked about held-out images, and which of them the steps may see.
"""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.config import load
from common.data.tables import DataError
from common.rerank import known
from common.types import Embeddings
from competitions.landmarks.config import BASE, Config
from competitions.landmarks.data import SAMPLE, DataConfig, read
from competitions.landmarks.ensemble import compared, join
from competitions.landmarks.ranking import Held, Vectors, apply, held_question

ROWS = [(f"{i:016x}", 100 + i % 3) for i in range(0x1230, 0x123C)]
TEST = [f"{i:016x}" for i in range(0xABC0, 0xABC4)]
INDEX = [f"{i:016x}" for i in range(0xDEF0, 0xDEF3)]


def picture(root: Path, split: str, name: str) -> None:
    path = root / split / name[0] / name[1] / name[2] / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 8, 3), 90, np.uint8))


def write_csv(path: Path, header: str, rows) -> None:
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture
def root(tmp_path):
    write_csv(tmp_path / "train.csv", "id,landmark_id", ROWS)
    write_csv(tmp_path / "sample_submission.csv", "id,landmarks", [(i, "100 0.1") for i in TEST])
    for split, names in (("train", [i for i, _ in ROWS]), ("test", TEST), ("index", INDEX)):
        for name in names:
            picture(tmp_path, split, name)
    return tmp_path


def read_at(root, **options):
    return read(DataConfig(root=str(root), **options))


def test_tables_of_a_folder_in_kaggles_layout(root):
    data = read_at(root)
    assert data.classes.tolist() == ["100", "101", "102"]
    assert data.train.ids.tolist() == sorted(i for i, _ in ROWS)
    by_id = dict(ROWS)
    assert [int(data.classes[k]) for k in data.train.labels] == [by_id[i] for i in data.train.ids]
    assert data.train.paths[0].decode() == f"{root}/train/0/0/0/{data.train.ids[0]}.jpg"
    assert data.test.ids.tolist() == TEST
    assert data.index.ids.tolist() == INDEX
    assert data.negatives is None
    assert data.samples["recognition"].name == "sample_submission.csv"
    assert data.samples["retrieval"] is None
    assert data.warnings == []


def test_the_bundled_sample_is_the_last_resort(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = read(DataConfig())
    assert data.root == SAMPLE
    assert data.origin == "bundled sample"
    assert len(data.negatives) > 0
    assert data.solution("retrieval") is not None


def test_order_of_the_csv_does_not_matter(root):
    before = read_at(root)
    write_csv(root / "train.csv", "id,landmark_id", ROWS[::-1])
    after = read_at(root)
    assert before.train.ids.tolist() == after.train.ids.tolist()
    assert before.train.labels.tolist() == after.train.labels.tolist()


def change(name, header, rows):
    return lambda root: write_csv(root / name, header, rows)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "train.csv").unlink(), r"No train\.csv under data\.root"),
        (lambda r: (r / "train.csv").write_text(""), r"train\.csv is not a readable csv"),
        (lambda r: (r / "train.csv").write_bytes(b"\xff\xfe\x00"), "not a readable csv"),
        (change("train.csv", "id,landmark_id", []), "header but no rows"),
        (change("train.csv", "id,label", ROWS), "no column 'landmark_id'"),
        (change("train.csv", "id,landmark_id", [*ROWS, ROWS[0]]), "row 14: id .* occurs twice"),
        (change("train.csv", "id,landmark_id", [*ROWS, ("abc", "")]), "row 14: empty value"),
        (change("train.csv", "id,landmark_id", [("../../etc/x", 1)]), r"row 2: id '\.\./\.\./etc"),
        (change("train.csv", "id,landmark_id", [("ab", 1)]), "is not a plain id of 3 or more"),
        (change("train.csv", "id,landmark_id", [("abc", "7.0")]), "row 2: landmark_id '7.0' is"),
        (lambda r: (r / "sample_submission.csv").write_text(""), "sion.csv is not a readable"),
        (lambda r: (r / "sample_submission.csv").write_bytes(b"\xff\xfe\x00"), "not a readable"),
        (change("a_sample_submission.csv", "id,landmarks", []), "header but no rows"),
        (
            change("a_sample_submission.csv", "id,landmarks", [(TEST[0], 1)]),
            "a_sample_submission.csv and sample_submission.csv are both for recognition",
        ),
        (lambda r: (r / "index/0/0/0/._a.jpg").write_bytes(b""), "is not named by an id: move"),
        (change("sample_submission.csv", "id,labels", []), "columns id,labels; a sample subm"),
        (change("sample_submission.csv", "id,landmarks", []), "header but no rows"),
        (change("sample_submission.csv", "id,landmarks", [(TEST[0], 1)] * 2), "occurs twice"),
        (lambda r: shutil.rmtree(r / "train"), "None of 12 images looked at exists"),
        (lambda r: shutil.rmtree(r / "test"), "None of 4 images looked at exists"),
    ],
)
def test_bad_files_are_errors_before_any_work(root, spoil, message):
    spoil(root)
    with pytest.raises((DataError, FileNotFoundError), match=message) as error:
        read_at(root)
    assert "\n" not in str(error.value)


def test_an_empty_test_set_is_an_error(root):
    (root / "sample_submission.csv").unlink()
    shutil.rmtree(root / "test")
    with pytest.raises(DataError, match="The test set under .* is empty"):
        read_at(root)


def test_without_a_sample_submission_the_folder_is_listed(root):
    (root / "sample_submission.csv").unlink()
    assert read_at(root).test.ids.tolist() == TEST


def test_single_missing_images_are_a_counted_warning(root):
    name = TEST[1]
    (root / "test" / name[0] / name[1] / name[2] / f"{name}.jpg").unlink()
    data = read_at(root)
    assert name in data.test.ids
    assert data.warnings == [
        f"1 of 4 test images looked for are not under {root}; they count as unreadable."
    ]


def test_a_sample_of_retrieval_without_index_images_is_a_warning(root):
    write_csv(root / "retrieval_sample_submission.csv", "id,images", [(TEST[0], INDEX[0])])
    assert read_at(root).warnings == []
    shutil.rmtree(root / "index")
    (warning,) = read_at(root).warnings
    assert "index has none: no retrieval" in warning


def test_side_files_that_are_not_there_are_named(root):
    for key in ("extended", "non_landmark"):
        with pytest.raises(FileNotFoundError, match=r"No file .*nowhere\.csv: correct the path"):
            read_at(root, **{key: str(root / "nowhere.csv")})


def test_leaked_test_ids_are_named(root):
    write_csv(root / "sample_submission.csv", "id,landmarks", [(ROWS[0][0], "")])
    picture(root, "test", ROWS[0][0])
    assert "1 test ids are also train ids" in read_at(root).warnings[0]


def test_extended_rows_follow_the_clean_ones(root, tmp_path_factory):
    full = tmp_path_factory.mktemp("full")
    more = [("ffff000000000001", 101), ("ffff000000000002", 999), ROWS[0]]
    write_csv(full / "train.csv", "id,url,landmark_id", [(i, "u", k) for i, k in more])
    data = read_at(root, extended=str(full / "train.csv"))
    assert data.clean == len(ROWS)
    assert len(data.train) == len(ROWS) + 2
    assert data.train.paths[-1].decode().startswith(f"{full}/train/f/f/f/")
    assert len(data.rows("clean")) == len(ROWS)
    assert data.train.ids[data.rows("extended")[-1]] == "ffff000000000001"
    assert len(data.rows("full")) == len(ROWS) + 2
    with pytest.raises(DataError, match="choose clean, extended or full"):
        data.rows("v2x")
    with pytest.raises(DataError, match=r"needs data\.extended"):
        read_at(root).rows("extended")


def test_both_sample_submissions_may_ask_for_different_ids(root):
    write_csv(root / "retrieval_sample_submission.csv", "id,images", [(TEST[0], INDEX[0])])
    data = read_at(root)
    assert data.test_ids["retrieval"].tolist() == [TEST[0]]
    assert data.test_ids["recognition"].tolist() == TEST


@pytest.fixture
def held_out(root):
    """Config, data, fold and random embeddings of everything."""
    write_csv(root / "non_landmark.csv", "id", [(i,) for i in TEST])
    for name in TEST:
        picture(root, "train", name)
    words = ["data.folds=2", "data.unseen=0.3", "data.max_gallery=4"]
    config = load(Config, BASE, [f"data.root={root}", *words])
    data = read(config.data)
    generator = torch.Generator().manual_seed(0)

    def of(table):
        vectors = torch.randn(len(table), 4, generator=generator)
        return Embeddings(table.ids, torch.nn.functional.normalize(vectors))

    def made():
        return Vectors(of(data.train), of(data.test), of(data.index), of(data.negatives))

    return config, data, Held.of(data, config), made


def test_steps_see_train_without_the_held_out_images_and_only_when_they_read_it(
    held_out, monkeypatch, tmp_path
):
    _, data, held, made = held_out
    vectors, seen = made(), []

    def spy(neighbors, train, train_labels):
        seen.append((train, train_labels))
        return neighbors

    monkeypatch.setitem(known.STEPS, "spy", spy)
    rest = {"cache": tmp_path, "device": torch.device("cpu")}
    for fold, rows in ((held, held.split.train), (None, np.ones(len(data.train), bool))):
        asked = held_question("retrieval", vectors, held)
        steps = [{"name": "knn", "k": 3}, {"name": "spy"}]
        apply(steps, asked, vectors, data, fold, **rest)
        train, labels = seen.pop()
        assert train.ids.tolist() == data.train.ids[rows].tolist()
        assert labels.tolist() == data.train.labels[rows].tolist()
    assert train.vectors.data_ptr() == vectors.train.vectors.data_ptr(), "no second copy"
    with monkeypatch.context() as patch:
        patch.setattr(Embeddings, "select", None)
        apply(steps[:1], asked, vectors, data, held, **rest)


def test_one_known_non_landmark_is_a_query_and_no_reference(held_out, root):
    config, _, held, _ = held_out
    assert (held.negatives.ids.tolist(), held.reference.ids.tolist()) == (TEST[::2], TEST[1::2])
    write_csv(root / "non_landmark.csv", "id", [(TEST[0],)])
    held = Held.of(read(config.data), config)
    assert held.negatives.ids.tolist() == TEST[:1]
    assert held.reference is None


@pytest.mark.parametrize("task", ["recognition", "retrieval"])
def test_weights_are_searched_on_the_compared_embeddings_with_the_same_answer(
    held_out, task, tmp_path
):
    config, data, held, made = held_out
    config.runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    both = join(task, config, [config, config], [made(), made()], data, held)
    few = [compared(vectors, held) for vectors in both.vectors]
    assert len(few[0].train) < len(data.train)
    asked, expected = both.answer([0.3, 0.7], True)
    again, found = both.answer([0.3, 0.7], True, vectors=few)
    assert again.gallery.ids.tolist() == asked.gallery.ids.tolist()
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.score, expected.score)
    assert sum(both.weights(config.runs)) == pytest.approx(1)
