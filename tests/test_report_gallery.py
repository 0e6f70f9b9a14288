"""Which queries a gallery shows, thumbnails, contact sheets."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from common.report import gallery, sheets
from common.report.canvas import COLORS
from tests.report_pages import Page, make_rows, write


def titles(groups):
    return [(group["title"], [row["query"]["id"] for row in group["rows"]]) for group in groups]


def test_rows_are_chosen_by_average_precision(pictures):
    rows = make_rows([pictures["rgb"]])
    found = gallery.groups(rows, each=3, seed=0)
    order = sorted(rows, key=lambda row: row["ap"])
    ids = [row["query"]["id"] for row in order]
    (worst, best, random) = titles(found)
    assert worst == ("Worst", ids[:3])
    assert best == ("Best", ids[-3:][::-1])
    assert random[0] == "Random"
    assert len(set(random[1]) - set(ids[:3]) - set(ids[-3:])) == 3
    assert random[1] == sorted(random[1])  # the order of the file
    assert titles(gallery.groups(rows, each=3, seed=0)) == titles(found)
    assert titles(gallery.groups(rows, each=3, seed=1))[2] != random


def test_rows_without_average_precision_are_chosen_by_sure_mistakes(pictures):
    found = titles(gallery.groups(make_rows([pictures["rgb"]], ap=False), each=2))
    assert found[0] == ("Worst", ["q29", "q27"])  # odd rows are wrong, the score grows
    assert found[1] == ("Best", ["q28", "q26"])


def test_a_prediction_that_is_not_the_first_result(pictures):
    rows = make_rows([pictures["rgb"]], count=8, ap=False)
    rows[0] |= {"right": False, "score": 5.0}
    rows[1] |= {"right": False, "score": None}  # no prediction: the mildest mistake
    found = titles(gallery.groups(rows, each=4))
    assert found == [("All", ["q00", "q07", "q05", "q03", "q01", "q02", "q04", "q06"])]


def test_unknown_truth_is_ordered_by_score():
    rows = [
        {"query": {"id": str(i)}, "results": [{"score": i / 10, "right": None}]} for i in range(9)
    ]
    rows.append({"query": {"id": "none"}, "results": []})
    found = titles(gallery.groups(rows, each=2))
    assert [title for title, _ in found] == ["Least sure", "Surest", "Random"]
    assert found[0][1] == ["none", "0"]
    assert found[1][1] == ["8", "7"]
    assert gallery.groups([]) == []


def test_where_nothing_is_wrong_there_are_no_mistakes():
    rows = [
        {"query": {"id": str(i)}, "results": [{"score": i / 10, "right": True}]} for i in range(9)
    ]
    found = gallery.groups(rows, each=2)
    assert [group["title"] for group in found] == ["Least sure", "Surest", "Random"]
    assert found[0]["caption"] == "lowest score first"


def test_rows_near_the_threshold_have_a_group(pictures):
    rows = make_rows([pictures["rgb"]])
    for i, row in enumerate(rows):
        row["margin"] = None if i == 3 else (i - 10) / 100
    near = gallery.groups(rows, each=3)[2]
    assert near["title"] == "Near the threshold"
    assert [row["query"]["id"] for row in near["rows"]] == ["q10", "q09", "q11"]
    text = Page(gallery.html(gallery.collect("t", rows, each=3))).visible
    assert "0.010 below the threshold" in text
    assert "0.010 above the threshold" in text
    assert len(gallery.groups(make_rows([pictures["rgb"]]), each=3)) == 3, "none without margins"


def test_rows_say_what_filters_go_by():
    row = {
        "query": {"id": "Q1", "label": "Cat", "title": "Seife 石鹸 <b>"},
        "results": [],
        "note": 7,
    }
    assert gallery.outcome(row) == "unknown"
    assert gallery.words_of(row) == "q1 cat seife 石鹸 <b> 7"
    row["results"] = [{"id": "r", "label": "cat", "right": True}]
    assert gallery.outcome(row) == "right"
    assert gallery.outcome({**row, "right": False}) == "wrong"
    assert gallery.outcome({**row, "solved": False}) == "wrong", "more than the first result counts"


def test_confusions_are_counted_over_all_rows():
    def row(query, result, score, right):
        first = {"label": result, "score": score, "right": right}
        return {"query": {"id": score, "label": query}, "results": [first]}

    rows = [row("a", "b", 0.5, False), row("a", "b", 0.75, False), row("b", "a", 0.9, False)]
    rows += [row("a", "a", 0.99, True), row("c", "c", 0.2, None), {"query": {}, "results": []}]
    found = gallery.confusions(rows)
    assert [(pair["count"], pair["score"]) for pair in found] == [(3, 0.9)], "either way round"
    assert (found[0]["query"]["id"], found[0]["result"]["label"]) == (0.9, "a")
    rows[2]["query"]["known"] = False
    rows[0]["results"][0]["known"] = False
    assert [(pair["count"], pair["score"]) for pair in gallery.confusions(rows)] == [(1, 0.75)]
    rows[0]["results"].append({"label": "c", "score": 0.1, "right": False})
    assert [pair["result"]["label"] for pair in gallery.confusions(rows)] == ["b", "c"]


@pytest.mark.parametrize("name", ["rgb", "grey", "deep", "tiny", "wide", "alpha", "cmyk"])
def test_thumbnails_of_odd_pictures(pictures, name):
    data = sheets.thumbnail(pictures[name], side=64)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        assert 1 <= max(image.size) <= 64


def test_thumbnail_of_a_box(pictures, tmp_path):
    image = np.zeros((100, 100, 3), np.uint8)
    image[20:60, 10:30] = (0, 0, 255)  # red, in OpenCV's order
    data = sheets.thumbnail(write(tmp_path / "box.png", image), box=np.array([10, 20, 30, 60]))
    with Image.open(io.BytesIO(data)) as cut:
        assert cut.size == (20, 40)
        assert np.asarray(cut, int).mean((0, 1)) == pytest.approx([254, 0, 0], abs=3)


def test_unreadable_pictures_have_no_thumbnail(pictures):
    assert sheets.thumbnail(pictures["broken"]) is None
    assert sheets.thumbnail(pictures["missing"]) is None
    assert sheets.thumbnail(pictures["rgb"], box=(9000, 0, 9100, 10)) is None


def test_gallery_html(pictures):
    table = gallery.collect("some name", make_rows(pictures.values()), each=2, top=3)
    assert json.loads(json.dumps(table)) == table
    shown = Page(gallery.html(table))
    kinds = [attrs["class"] for attrs in shown.all("figure")]
    assert kinds[:4] == ["query", "right", "unknown", "unknown"]
    assert kinds.count("query") == 6
    assert "wrong" in kinds
    assert "not readable" in shown.visible
    assert "no label" in shown.visible  # label -1
    assert "2 of 30 queries, lowest average precision first." in shown.visible
    assert len(Page(gallery.html(table, limit=1)).all("figure")) == len(kinds) // 2
    # Each picture is stored once, however often it is shown.
    assert len(table["thumbs"]) <= len(pictures)
    assert "path" not in json.dumps(table)


def test_contact_sheet_frames(pictures, tmp_path):
    rows = [*make_rows(pictures.values(), count=3), {"query": {"id": "q"}, "results": []}]
    path = gallery.contact_sheet(rows, tmp_path / "sheet.png", top=2, side=80, title="T" * 400)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] < 4 * 100
    for name in ("right", "wrong", "unknown"):
        color = [int(COLORS[name][0][i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == color).all(2).sum() > 500, name


def test_contact_sheet_of_nothing(tmp_path):
    assert gallery.contact_sheet([], tmp_path / "sheet.png").is_file()


def test_a_sheet_of_a_stored_table(pictures, tmp_path, capsys):
    table = gallery.collect("t", make_rows(pictures.values()), each=3)
    (tmp_path / "t.json").write_text(json.dumps(table))
    heights = []
    for each in (1, 3):
        assert sheets.main([str(tmp_path / "t.json"), str(tmp_path / "t.jpg"), str(each)]) == 0
        with Image.open(tmp_path / "t.jpg") as image:
            assert image.format == "JPEG"
            heights.append(image.height)
    assert heights[1] > 2.5 * heights[0]  # six rows, two rows
    assert sheets.main([str(tmp_path / "none.json"), str(tmp_path / "x.jpg")]) == 1
    assert "none.json gives no sheet" in capsys.readouterr().err
    assert sheets.main([]) == 2
