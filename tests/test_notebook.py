"""What notebooks show: pictures of classes, curves and results of a run, drawings as PNG."""

import copy
import io
import json
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from common.report import notebook, plots
from common.report.files import Analysis, save_analysis
from common.report.gallery import collect
from common.report.sheets import album
from common.types import Table


@pytest.fixture
def table(tmp_path):
    """Class 0 is red, class 1 green with one image, class 2 blue with a grey border to cut off."""
    colors = {0: (0, 0, 255), 1: (0, 255, 0), 2: (255, 0, 0)}
    labels = np.array([0, 0, 0, 1, 2, 2, -1])
    paths = []
    for row, label in enumerate(labels):
        picture = np.full((120, 120, 3), 128, np.uint8)
        picture[30:90, 30:90] = colors.get(label, (255, 255, 255))
        paths.append(str(tmp_path / f"{row}.png").encode())
        cv2.imwrite(paths[-1].decode(), picture)
    boxes = np.zeros((7, 4))
    boxes[4:6] = (30, 30, 90, 90)
    return Table(np.array(list("abcdefg")), np.array(paths), labels, boxes)


def pixels(picture):
    """The JPEG that a notebook shows."""
    return np.asarray(Image.open(io.BytesIO(picture._repr_jpeg_())).convert("RGB")).astype(int)


def near(image, place, color):
    return bool(np.abs(image[place] - color).max() < 40)


def test_classes_go_from_the_frequent_to_the_rare_with_their_pictures(table):
    image = pixels(notebook.classes(table, ["red", "green", "blue"], rows=3, across=4, side=100))
    tall, wide = 22 + 100 + 8, 108  # of a line, of a picture
    assert image.shape == (3 * tall + 8, 3 * wide + 8, 3)  # no class has four
    centre = [(8 + tall * line + 22 + 50, 8 + 50) for line in range(3)]
    assert near(image, centre[0], (255, 0, 0))
    assert near(image, centre[1], (0, 0, 255))
    assert near(image, centre[2], (0, 255, 0))
    # Blue is cut to its box; red keeps its grey border, and green has no second picture.
    above = 26  # pixels from the centre: border of the whole, inside of what is cut out
    assert near(image, (centre[0][0] - above, 58), (128, 128, 128))
    assert near(image, (centre[1][0] - above, 58), (0, 0, 255))
    assert near(image, (centre[2][0], 58 + wide), (255, 255, 255))


def test_chosen_classes_and_rows_are_those_that_are_shown(table):
    one = pixels(notebook.classes(table, ["red", "green", "blue"], [1], side=100))
    assert near(one, (8 + 22 + 50, 58), (0, 255, 0))
    rows = pixels(notebook.show(table, {"white": [6]}, side=100))
    assert near(rows, (8 + 22 + 50, 58), (255, 255, 255))
    with pytest.raises(ValueError, match="No image of the table has a label"):
        notebook.classes(table.take(np.array([6])), ["red"])


def test_an_album_leaves_room_for_titles_only_where_there_are_some(table):
    plain = [{"path": path} for path in table.paths[:2]]
    titled = [{**entry, "title": "a tea"} for entry in plain]
    assert album({"x": titled}).height == album({"x": plain}).height + 18
    assert album({"x": plain * 9}, across=3).width == album({"x": plain * 2}, across=3).width


def test_history_is_what_a_run_logged_last_of_each_epoch(tmp_path):
    lines = [
        {"step": 4, "epoch": 1, "train/loss": 3.0, "valid/gap": 0.2},
        {"step": 6, "train/loss": 2.5},
        {"step": 8, "epoch": 2, "train/loss": 2.0, "valid/gap": 0.5},
        {"step": 8, "epoch": 2, "train/loss": 2.0, "valid/gap": 0.4},
        {"step": 9, "epoch": 3, "train/loss": 2.0, "valid/gap": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert notebook.history(tmp_path, {"GAP": "valid/gap"}) == {"GAP": ([1, 2], [0.2, 0.4])}
    by_step = notebook.history(tmp_path, {"loss": "train/loss"}, by="step")
    assert by_step == {"loss": ([4, 6, 8, 9], [3.0, 2.5, 2.0, 2.0])}
    with pytest.raises(ValueError, match="no 'valid/map'; it has epoch, step, train/loss"):
        notebook.history(tmp_path, {"mAP": "valid/map"})


def test_results_are_those_of_the_stored_table(table, tmp_path):
    def entry(row, right=None):
        return {
            "id": str(row),
            "path": table.paths[row],
            "label": "x",
            "score": 0.5,
            "right": right,
        }

    rows = [
        {"query": entry(6), "results": [entry(0 if place else 3, bool(place))], "ap": place / 20}
        for place in range(20)
    ]
    (tmp_path / "tables").mkdir()
    stored = json.dumps(collect("whale", rows))
    (tmp_path / "tables" / "whale.json").write_text(stored)
    worst = pixels(notebook.results(tmp_path, "whale", rows=2, top=1))
    best = pixels(notebook.results(tmp_path, "whale", "Best", rows=2, top=1))
    first = (8 + 24 + 60, 10 + 130 + 8 + 60)  # centre of the first query's first result
    assert near(worst, first, (0, 255, 0))
    assert near(best, first, (255, 0, 0))
    with pytest.raises(FileNotFoundError, match=r"retrieval.json: run infer.py"):
        notebook.results(tmp_path, "retrieval")


def test_scores_have_a_line_for_each_run_once(tmp_path):
    for name, value in (("frozen", 0.3), ("baseline", 0.61234)):
        (tmp_path / name).mkdir()
        rows = [{"name": "frozen", "GAP": 0.3, "note": "untrained"}, {"name": name, "GAP": value}]
        save_analysis(tmp_path / name, Analysis(scores=rows[-1 if name == "frozen" else 0 :]))
    found = notebook.scores(tmp_path / "frozen", tmp_path / "baseline")
    assert found["GAP"].to_dict() == {"frozen": 0.3, "baseline": 0.6123}
    assert list(found.columns) == ["GAP"]


def test_a_drawing_is_svg_text_and_a_picture_with_the_same_curve():
    flat = plots.curves({"a": ([0, 1], [0.5, 0.5])}, x_label="epoch", y_label="score")
    rising = plots.curves({"a": ([0, 1], [0.0, 1.0])}, x_label="epoch", y_label="score")
    assert flat.startswith("<svg")
    assert flat._repr_png_() == flat._repr_png_()
    assert copy.deepcopy(flat) == pickle.loads(pickle.dumps(flat)) == str(flat)
    blue = np.array((0x2B, 0x63, 0xD9))

    def heights(drawing):
        image = np.asarray(Image.open(io.BytesIO(drawing._repr_png_())).convert("RGB")).astype(int)
        assert image[0, 0].tolist() == [255, 255, 255]
        return np.nonzero((np.abs(image - blue).max(2) < 10).any(1))[0]

    assert np.ptp(heights(flat)) < 12
    assert np.ptp(heights(rising)) > 150
