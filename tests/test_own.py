"""A csv of one's own: what it becomes, and how what is wrong with it is said."""

import numpy as np
import pandas as pd
import pytest
import torch

from common.cmc import cmc_map_embeddings
from common.data import own
from common.data.tables import DataError

ROWS = [  # label, path, split, is_query, is_gallery
    ("b", "0.jpg", "train", "", ""),
    ("b", "1.jpg", "train", "", ""),
    ("a", "2.jpg", "train", "", ""),
    ("a", "3.jpg", "train", "", ""),
    ("z", "4.jpg", "validation", "True", "True"),
    ("z", "5.jpg", "validation", "True", "True"),
    ("y", "6.jpg", "validation", "1", "0"),
    ("y", "7.jpg", "validation", "False", "True"),
]
COLUMNS = list(own.COLUMNS)


def write(tmp_path, change=None, rows=ROWS, **more):
    frame = pd.DataFrame(rows, columns=COLUMNS).assign(**more)
    for row, column, value in change or ():
        frame.loc[row, column] = value
    for name in frame["path"]:
        if name.endswith(".jpg") and "missing" not in name:
            (tmp_path / name).write_bytes(b"any")
    path = tmp_path / "own.csv"
    frame.to_csv(path, index=False)
    return path


def test_rows_become_tables_with_the_labels_of_train_first(tmp_path):
    found = own.read(write(tmp_path))
    assert found.classes.tolist() == ["a", "b", "y", "z"]
    assert found.known == 2
    assert found.train.labels.tolist() == [1, 1, 0, 0]
    assert found.queries.ids.tolist() == ["4.jpg", "5.jpg", "6.jpg"]
    assert found.gallery.ids.tolist() == ["4.jpg", "5.jpg", "7.jpg"]
    assert found.classes[found.queries.labels].tolist() == ["z", "z", "y"]
    assert found.train.paths[0] == str(tmp_path / "0.jpg").encode()
    assert found.train.boxes is None
    assert found.warnings == []
    assert "4 train images of 2 labels; 3 queries of 2 labels in a gallery of 3" in found.describe()


def test_what_is_said_stands_any_name_of_a_column_or_folder(tmp_path):
    path = write(tmp_path, count=3)
    strange = tmp_path / "{x}"
    strange.mkdir()
    with pytest.raises(DataError, match=r"0.jpg under .*\{x\}; 8 are missing"):
        own.read(path, root=strange)


def test_paths_may_be_relative_to_another_folder(tmp_path):
    path = write(tmp_path)
    moved = tmp_path / "tables" / "own.csv"
    moved.parent.mkdir()
    path.rename(moved)
    assert own.read(moved, root=tmp_path).train.paths[0] == str(tmp_path / "0.jpg").encode()
    with pytest.raises(DataError, match=r"row 2: there is no file 0.jpg under .*; 8 are missing"):
        own.read(moved)


def test_a_query_is_compared_with_neither_itself_nor_its_sequence(tmp_path):
    shots = ["", "", "", "", "s", "", "t", "u"]
    found = own.read(write(tmp_path, sequence=shots))
    same = found.query_groups[:, None] == found.gallery_groups
    assert same.tolist() == [[True, False, False], [False, True, False], [False] * 3]
    # One vector for all of a label: without the groups each would find itself first.
    vectors = torch.eye(4)[torch.from_numpy(found.queries.labels)]
    gallery = torch.eye(4)[torch.from_numpy(found.gallery.labels)]
    scored = cmc_map_embeddings(
        vectors, gallery, found.queries.labels, found.gallery.labels,
        found.query_groups, found.gallery_groups,
    )  # fmt: skip
    assert (scored.queries, scored.map, scored.cmc[0]) == (3, 1.0, 1.0)


def test_partners_are_counted_as_a_loop_counts_them():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, groups = rng.integers(0, 4, 30), rng.integers(0, 6, 30)
        stands = rng.random(30) < 0.5
        slow = [
            sum(stands[j] and labels[j] == labels[i] and groups[j] != groups[i] for j in range(30))
            for i in range(30)
        ]
        assert own._partners(labels, groups, stands).tolist() == slow


def test_boxes_are_read_and_several_of_one_picture_are_several_images(tmp_path):
    rows = [*ROWS[:3], ("a", "2.jpg", "train", "", ""), *ROWS[4:]]
    boxes = {"x_1": ["", "", "0.5", "10"], "x_2": ["", "", "9.2", "20"]}
    boxes |= {"y_1": ["", "", "0", "1"], "y_2": ["", "", "8", "8"]}
    boxes = {name: [*values, *[""] * 4] for name, values in boxes.items()}
    found = own.read(write(tmp_path, rows=rows, **boxes))
    assert found.train.boxes.tolist() == [[0] * 4, [0] * 4, [0, 0, 10, 8], [10, 1, 20, 8]]
    assert found.train.ids.tolist() == ["0.jpg", "1.jpg", "2.jpg:0,0,10,8", "2.jpg:10,1,20,8"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([(4, "label", "a"), (5, "label", "a")], "1 of 2 labels that are asked for are in train"),
        ([(3, "label", "c")], "2 of 3 train labels have one image"),
    ],
)
def test_what_may_be_a_mistake_is_said(tmp_path, change, message):
    found = own.read(write(tmp_path, change))
    assert message in found.describe()
    assert len(found.warnings) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([(3, "split", "val")], "row 5: split 'val' is neither train nor validation"),
        ([(2, "label", " ")], "row 4: label is empty"),
        ([(2, "path", "")], "row 4: path is empty"),
        ([(2, "path", "missing.jpg")], "row 4: there is no file missing.jpg"),
        ([(1, "path", "0.jpg")], "row 3: 0.jpg is here twice"),
        ([(4, "path", "0.jpg")], "row 6: 0.jpg is here twice"),
        ([(4, "is_query", "maybe")], "row 6: is_query 'maybe' is neither True nor False"),
        ([(0, "is_gallery", "True")], "row 2: a train row is neither query nor gallery"),
        ([(7, "is_gallery", "")], "row 9: this validation row is neither query nor gallery"),
        ([(7, "label", "x")], "row 8: nothing in the gallery has the label of this query, y"),
        ([(5, "label", "y")], "row 6: nothing in the gallery has the label of this query, z"),
        ([(row, "split", "validation") for row in range(4)], "row 2: this validation row"),
        ([(row, "is_query", "0") for row in (4, 5)] + [(6, "split", "train"), (6, "is_query", "")],
         "has no query row"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_row(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        own.read(write(tmp_path, change))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (("9", "0", "3", "8"), "row 2: box 9, 0, 3, 8 is none: it must be 0 <= x_1 < x_2"),
        (("-1", "0", "3", "8"), "row 2: box -1, 0, 3, 8 is none"),
        (("1", "", "3", "8"), "row 2: some of x_1, y_1, x_2, y_2 are empty"),
        (("1", "0", "wide", "8"), "row 2: a box is not of numbers"),
        (("1", "0", "inf", "8"), "row 2: a box is not of numbers"),
    ],
)
def test_a_box_that_is_none_is_refused(tmp_path, box, message):
    columns = {name: [value, *[""] * 7] for name, value in zip(own.BOX, box, strict=True)}
    with pytest.raises(DataError, match=message):
        own.read(write(tmp_path, **columns))


def test_columns_that_lack_are_named(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("label,path,split,is_query\n")
    with pytest.raises(DataError, match="no column 'is_gallery'; it must have label, path, split"):
        own.read(path)
    with pytest.raises(DataError, match="has x_1, but no column 'y_1'"):
        own.read(write(tmp_path, x_1="1"))
