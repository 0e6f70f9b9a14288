"""Submission files: what is written reads back, each kind of fault is named once with its line."""

import random
import re

import numpy as np
import pytest

from common import submission
from common.submission import FORMATS, check, read, write

SAMPLES = {
    "landmarks-recognition": "id,landmarks\na1,1 0.1\nb2,1 0.1\nc3,1 0.1\n",
    "landmarks-retrieval": "id,images\na1,x y\nb2,x y\nc3,x y\n",
    "whale": "Image,Id\na.jpg,new_whale w_1\nb.jpg,new_whale w_1\nc.jpg,new_whale w_1\n",
    "shopee": "posting_id,matches\ntest_1,test_1\ntest_2,test_2\ntest_3,test_3\n",
}


def faults(folder, competition, text, sample=None):
    (folder / "sample.csv").write_text(SAMPLES[competition] if sample is None else sample)
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "submission.csv").write_bytes(data)
    return check(competition, folder / "submission.csv", folder / "sample.csv")


@pytest.mark.parametrize("competition", list(FORMATS))
def test_the_sample_itself_passes(tmp_path, competition):
    assert faults(tmp_path, competition, SAMPLES[competition]) == []
    header, *rows = SAMPLES[competition].splitlines()
    backwards = "\r\n".join([header, *rows[::-1]])  # any order, Windows lines, no last newline
    assert faults(tmp_path, competition, backwards) == []


def test_what_is_written_passes_and_reads_back(tmp_path):
    path = tmp_path / "new" / "submission.csv"
    scores = [np.float32(0.1), 1e-17, None]
    rows = [(7, scores[0]), (np.int64(9), scores[1]), None]
    write("landmarks-recognition", ["a1", "b2", "c3"], rows, path)
    cells = {i: row["landmarks"].split() for i, row in read(path, "id", "landmarks").items()}
    assert cells["c3"] == []
    assert cells["a1"][0] == "7"
    assert np.float32(cells["a1"][1]) == scores[0]
    assert float(cells["b2"][1]) == scores[1]
    assert faults(tmp_path, "landmarks-recognition", path.read_text()) == []

    write("landmarks-retrieval", ["a1", "b2", "c3"], np.array([["x", "y"]] * 3), path)
    assert path.read_text() == SAMPLES["landmarks-retrieval"]
    write("whale", ["a.jpg"], [["w_1", "new_whale"]], path)
    assert path.read_text() == "Image,Id\na.jpg,w_1 new_whale\n"
    write("shopee", ["test_1", "test_2"], ["test_1 test_2", ["test_2"]], path)
    assert path.read_text() == "posting_id,matches\ntest_1,test_1 test_2\ntest_2,test_2\n"
    assert [p.name for p in path.parent.iterdir()] == ["submission.csv"]  # nothing temporary


@pytest.mark.parametrize(
    ("competition", "ids", "rows", "message"),
    [
        ("landmarks-recognition", ["a"], [(7, float("nan"))], "score that is not a finite"),
        ("landmarks-recognition", ["a"], [("w_1", 0.5)], "label that is not an integer"),
        ("landmarks-retrieval", ["a"], [[f"i{n}" for n in range(101)]], "More than 100"),
        (
            "landmarks-retrieval",
            ["a", "a"],
            [["x"], ["y"]],
            "'a' in the key column has already been",
        ),
        ("landmarks-retrieval", ["a", "b"], [["x"]], "2 ids for 1 rows"),
        ("landmarks-retrieval", ["a,b"], [["x"]], "'a,b' has characters"),
        ("landmarks-retrieval", ["a"], [["x,y"]], "Entries separated"),
        ("landmarks-retrieval", ["a"], [["é"]], "Non-ASCII"),
        ("whale", ["a"], [["w_1", "w_1"]], "entry listed twice"),
        ("whale", ["a", "b"], [["w_1"], []], r"null values in 1 of 2 rows, first in row 1 \('b'\)"),
        ("shopee", ["p1"], [["p2"]], "Own posting_id"),
        ("wale", ["a"], [["w_1"]], "landmarks-recognition, landmarks-retrieval, whale, shopee"),
    ],
)
def test_what_kaggle_would_reject_is_not_written(tmp_path, competition, ids, rows, message):
    path = tmp_path / "submission.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match=message):
        write(competition, ids, rows, path)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("competition", "text", "expected"),
    [
        ("whale", "Image,Label\na.jpg,w\n", ["Prediction column Id not found"]),
        ("whale", "image,Id\na.jpg,w\n", ["ID column Image not found in submission"]),
        ("whale", "", ["ID column Image not found in submission, found none"]),
        (
            "whale",
            "Image,Id,x\na.jpg,w,1\nb.jpg,w,1\nc.jpg,w,1\n",
            ["must have 2 columns, this one has Image,Id,x"],
        ),
        (
            "whale",
            "Image,Id\na.jpg,w\n",
            [
                "Submission must have 3 rows, this one has 1",
                "Unable to find 2 required key values in the 'Image' column, the first is 'b.jpg'",
            ],
        ),
        ("whale", "Image,Id\n", ["must have 3 rows, this one has 0", "Unable to find 3"]),
        (
            "whale",
            "Image,Id\na.jpg,w\nb.jpg,w\nd.jpg,w\n",
            ["Unable to find 1 .*'c.jpg'", "do not match: 1 ids .* 'd.jpg' in line 4"],
        ),
        (
            "whale",
            "Image,Id\na.jpg,w\nb.jpg,w\nc.jpg,w\nb.jpg,w\n",
            [
                "must have 3 rows",
                r"The value 'b.jpg' .*defined in 1 of 4 rows, first in line 5 \('b.jpg'\)",
            ],
        ),
        (
            "whale",
            "Image,Id\na.jpg,w\nb.jpg,\nc.jpg,\n",
            ["contains null values in 2 of 3 rows, first in line 3"],
        ),
        (
            "whale",
            "Image,Id\na.jpg,1 2 3 4 5 6\nb.jpg,w\nc.jpg,w\n",
            ["More than 5 entries in 1 of 3 rows"],
        ),
        ("whale", "Image,Id\na.jpg,w w\nb.jpg,w\nc.jpg,w\n", ["An entry listed twice.* line 2"]),
        (
            "whale",
            "Image,Id\na.jpg,w;v\nb.jpg,w\tv\nc.jpg,w  v\n",
            ["something else than one space in 3 of 3 rows, first in line 2"],
        ),
        ("whale", "Image,Id\na.jpg,\"['w', 'v']\"\nb.jpg,w\nc.jpg,w\n", ["one space in 1 of 3"]),
        ("whale", 'Image,Id\na.jpg,"w,v"\nb.jpg,w\nc.jpg,w\n', ["one space in 1 of 3"]),
        (
            "whale",
            "Image,Id\na.jpg,w,v\nb.jpg,w\nc.jpg,w\n",
            ["Not 2 fields in 1 of 3 rows, first in line 2"],
        ),
        (
            "whale",
            "Image,Id\na.jpg\nb.jpg,w\nc.jpg,w\n",
            [
                "Not 2 fields in 1 of 3 rows, first in line 2",
                "must have 3 rows",
                "Unable to find 1",
            ],
        ),
        ("whale", "\ufeffImage,Id\na.jpg,w\nb.jpg,w\nc.jpg,w\n", ["byte order mark"]),
        ("whale", "Image,Id\na.jpg,w\nb.jpg,wé\nc.jpg,w\n", ["Non-ASCII.* line 3"]),
        ("whale", b"Image,Id\na.jpg,w\nb.jpg,w\xe9\nc.jpg,w\n", ["Non-ASCII.* line 3"]),
        ("landmarks-recognition", "id,landmarks\na1,\nb2,7 1e-3\nc3,7 -1\n", []),
        ("landmarks-recognition", "id,landmarks\na1,7\nb2,\nc3,\n", ["label without a score"]),
        ("landmarks-recognition", "id,landmarks\na1,w 1\nb2,\nc3,\n", ["label that is not an"]),
        ("landmarks-recognition", "id,landmarks\na1,7.0 1\nb2,\nc3,\n", ["label that is not an"]),
        (
            "landmarks-recognition",
            "id,landmarks\na1,7 inf\nb2,7 nan\nc3,7 high\n",
            ["score that is not a finite number in 3 of 3 rows, first in line 2"],
        ),
        ("landmarks-recognition", "id,landmarks\na1,7 1 8 1\nb2,\nc3,\n", ["More than one LABEL"]),
        ("landmarks-retrieval", "id,images\na1,\nb2,x\nc3,x\n", []),
        (
            "landmarks-retrieval",
            "id,images\na1," + " ".join(f"i{n}" for n in range(101)) + "\nb2,x x\nc3,x\n",
            ["More than 100.* line 2", "listed twice.* line 3"],
        ),
        (
            "shopee",
            "posting_id,matches\ntest_1,test_2\ntest_2,\ntest_3,test_3\n",
            ["Own posting_id not listed in 1 of 3.* line 2", "null values.* line 3"],
        ),
    ],
)
def test_each_kind_of_fault_is_one_line(tmp_path, competition, text, expected):
    found = faults(tmp_path, competition, text)
    assert len(found) == len(expected), found

    for problem, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, problem), problem
        assert "\n" not in problem


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (SAMPLES["shopee"], "ID column Image not found"),
        ("Image,Id\n", "no rows"),
        ("Image,Id\na.jpg,w\na.jpg,w\n", "'a.jpg' twice"),
        ("", "found none"),
    ],
)
def test_the_wrong_sample_is_said_and_nothing_else(tmp_path, sample, reason):
    found = faults(tmp_path, "whale", SAMPLES["whale"], sample)
    assert len(found) == 1
    assert "sample.csv is not the sample submission of whale" in found[0]
    assert reason in found[0]


def test_a_large_submission_reports_the_first_of_many(tmp_path):
    draw = random.Random(0)
    ids = [f"{i:016x}" for i in range(3000)]
    rows = [draw.sample(ids, 100) for _ in ids]
    path = tmp_path / "submission.csv"
    write("landmarks-retrieval", ids, rows, path)
    (tmp_path / "sample.csv").write_text("id,images\n" + "".join(f"{i},x\n" for i in ids))
    assert check("landmarks-retrieval", path, tmp_path / "sample.csv") == []
    rows[1234][99] = rows[1234][0]
    text = path.read_text().splitlines()
    text[1235] = f"{ids[1234]},{' '.join(rows[1234])}"
    path.write_text("\n".join(text))
    assert check("landmarks-retrieval", path, tmp_path / "sample.csv") == [
        f"An entry listed twice in 1 of 3000 rows, first in line 1236 ({ids[1234]!r})"
    ]


def test_the_command_says_ok_or_exits_with_one(tmp_path, capsys):
    faults(tmp_path, "whale", SAMPLES["whale"])
    arguments = ["check", "whale", str(tmp_path / "submission.csv"), str(tmp_path / "sample.csv")]
    submission.main(arguments)
    assert capsys.readouterr().out.startswith("ok: ")
    faults(tmp_path, "whale", "Image,Id\na.jpg,w\n")
    with pytest.raises(SystemExit) as stop:
        submission.main(arguments)
    assert stop.value.code == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    arguments[2] = str(tmp_path / "nowhere.csv")
    with pytest.raises(SystemExit, match=r"error: No file at .*nowhere\.csv"):
        submission.main(arguments)
