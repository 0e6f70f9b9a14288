"""What ranking steps found out, on the page: reliability, importances, numbers, matched pairs."""

import base64
import io
from dataclasses import asdict

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from common.notes import Notes
from common.pipeline.ranking import Question
from common.report import drawings, page, plots_ranking
from common.report.files import Analysis, save_analysis
from common.report.matches import HEIGHT, WIDEST, drawn, show_matches
from common.rerank.geometry import Settings, Verification, verify
from common.types import Embeddings
from tests.oracles.views import texture, turned
from tests.report_pages import EVIL, Page

DIAGRAM = {"confidence": [0.1, 0.9], "accuracy": [0.2, 0.8], "count": [30, 70], "ece": 0.1234}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Three scenes in two views, a broken file: queries, gallery."""
    folder = tmp_path_factory.mktemp("scenes")
    for scene in range(3):
        image = texture(scene, 150, 200)
        cv2.imwrite(str(folder / f"{scene}a.png"), image[:, :, ::-1])
        cv2.imwrite(str(folder / f"{scene}b.png"), turned(image, 5)[0][:, :, ::-1])
    (folder / "broken.png").write_bytes(b"no")
    names = [str(folder / f"{n}.png") for n in ("0a", "1a", "2a", "broken")]
    others = [str(folder / f"{n}.png") for n in ("0b", "1b", "2b")]
    return np.array(names, "S"), np.array(others, "S")


def noted(*pairs, matcher="rootsift"):
    query, gallery, inliers = map(np.array, zip(*pairs, strict=True))
    settings = asdict(Settings(matcher, size=200))
    entry = {"matcher": matcher, "settings": settings, "query": query, "gallery": gallery}
    return entry | {"inliers": inliers}


def shown(scenes, notes, truth=None, relevant=None):
    ids = np.array(["q0", EVIL, "q2", "q3"]), np.array(["g0", "g1", "g2"])
    queries, gallery = (Embeddings(one, torch.zeros(len(one), 2)) for one in ids)
    asked = Question(queries, gallery, torch.zeros(3), None, *scenes, truth, relevant)
    show_matches(notes, asked)
    return notes.matches


def test_right_and_wrong_pairs_with_the_most_inliers_are_drawn(scenes):
    notes = Notes(matches=[noted((0, 0, 50), (1, 1, 60), (2, 0, 9), (3, 0, 99))])
    truth, relevant = np.array([0, 1, 2, -1]), np.array([0, 1, -1])
    found = shown(scenes, notes, truth, relevant)
    listed = [(m["query"], m["gallery"], m["right"]) for m in found]
    assert listed == [(EVIL, "g1", True), ("q0", "g0", True), ("q2", "g0", False)]
    for match, (a, b) in zip(found, ((1, 1), (0, 0), (2, 0)), strict=True):
        again = verify(scenes[0][a], scenes[1][b], "rootsift", size=200)
        assert (match["inliers"], match["matches"]) == (again.inliers, again.matches)
        with Image.open(io.BytesIO(base64.b64decode(match["picture"]))) as picture:
            assert picture.height == HEIGHT
            assert picture.width == 2 * round(200 * HEIGHT / 150) + 4
    assert len(base64.b64decode(found[0]["picture"])) < 60_000
    assert str(scenes[0][0].decode()) not in str({**found[0], "picture": ""}), "names no folder"


def test_without_truth_nothing_is_called_right_and_of_many_few_are_shown(scenes):
    pairs = [(i % 3, i % 3, i) for i in range(40)]
    notes = Notes(matches=[noted(*pairs), noted(*pairs, matcher="sift")])
    found = shown(scenes, notes)
    assert len(found) == 12
    assert {m["right"] for m in found} == {None}
    assert [m["matcher"] for m in found] == ["rootsift"] * 6 + ["sift"] * 6
    assert found[0]["query"] == "q0", "39 inliers were noted for query 0"


def test_lines_lead_to_where_the_match_is():
    """White images: what is green is a line or a point, at the scaled coordinates."""
    a, b = np.full((500, 500, 3), 255, np.uint8), np.full((250, 1000, 3), 255, np.uint8)
    points = np.array([[100.0, 50, 600, 200]])
    picture = drawn(a, b, Verification(1, 2, 0.5, np.eye(3), points, points + 9))
    with Image.open(io.BytesIO(picture)) as opened:
        image = np.asarray(opened).astype(int)
    assert image.shape == (HEIGHT, 250 + 4 + WIDEST, 3)
    green = (image[:, :, 1] - image[:, :, 0] > 60) & (image[:, :, 1] - image[:, :, 2] > 20)
    rows, columns = np.nonzero(green)
    half = 250 / 500, 380 / 1000
    top = (HEIGHT - 95) // 2
    assert columns.min() == pytest.approx(100 * half[0], abs=4)
    assert columns.max() == pytest.approx(254 + 600 * half[1], abs=4)
    assert rows.min() == pytest.approx(50 * half[0], abs=4)
    assert rows.max() == pytest.approx(top + 200 * half[1], abs=4)
    red = (image[:, :, 0] - image[:, :, 1] > 15).sum()
    assert red > 50, "the rejected match is there, faint"
    empty = np.zeros((0, 4))
    bare = drawn(a, b[:1, :1], Verification(0, 0, 0.0, None, empty, empty))
    assert bare[:2] == b"\xff\xd8", "no match and a 1x1 image are a picture too"


@pytest.fixture
def folder(tmp_path, scenes):
    notes = Notes(matches=[noted((0, 0, 50), (1, 0, 10), (1, 1, 20))])
    shown(scenes, notes, np.arange(4), np.arange(3))
    notes.calibration |= {"cosine": DIAGRAM, EVIL: DIAGRAM}
    notes.importances |= {"plausible homography": {f"feature {i}": 1 / (i + 1) for i in range(20)}}
    notes.numbers |= {"pairs": 1234, EVIL: 0.5}
    both = {
        "recognition": asdict(notes),
        "retrieval": asdict(Notes(numbers={"recall": 0.98}, remarks=[f"an IVF index, {EVIL}"])),
    }
    save_analysis(tmp_path, Analysis(notes=both))
    return tmp_path


def test_the_page_shows_all_of_the_notes(folder):
    text = page.write_report(folder).read_text()
    page_ = Page(text)
    assert page_.scripts == [""]
    assert EVIL not in text
    for words in (
        "Ranking steps", "Recognition", "Retrieval", "Reliability", "ECE 0.123",
        "Plausible homography: importances", "The first 15 of 20 features", "feature 14",
        "pairs 1,234", "recall 0.980", "an IVF index, ",
        "Local matches", "✓ right", "✗ wrong", "q0 → g0",
        '<script>alert("x")</script> → g1',
    ):  # fmt: skip
        assert words in page_.visible, words
    assert "feature 15" not in page_.visible
    assert len([a for a in page_.all("img") if " and " in a["alt"]]) == 3
    assert len(page_.all("svg")) == 2
    assert "ranking" in page_.ids


def test_pictures_of_matches_count_against_the_budget(folder, monkeypatch, scenes):
    from common.report.files import write_json
    from common.report.gallery import collect

    rows = [
        {"query": {"id": f"q{i}", "path": path, "label": 1}, "results": [], "note": None}
        for i, path in enumerate(scenes[0].tolist() * 6)
    ]
    (folder / "tables").mkdir()
    write_json(folder / "tables" / "t.json", collect("t", rows, each=12))
    everything = page.write_report(folder).read_text().count('alt="q')
    monkeypatch.setattr(page, "BUDGET", 150_000)
    assert page.write_report(folder).read_text().count('alt="q') < everything


def test_a_page_without_notes_has_no_section(tmp_path):
    save_analysis(tmp_path, Analysis(notes={"recognition": asdict(Notes())}))
    assert "Ranking steps" not in page.write_report(tmp_path).read_text()
    raw = {"matches": [{"matcher": "sift", "query": [0]}]}  # never drawn: a run that was killed
    assert drawings.rankings({"recognition": raw}) == []


def test_plots_follow_the_page_and_bars_are_sorted():
    svg = plots_ranking.bars({"small": 0.1, "large": 0.6, "$": 0.3}, x_label="gain")
    assert svg.index("large") < svg.index("small"), "drawn from the top"
    assert "var(--first" in svg
    assert "#2b63d9" not in svg.replace("var(--first, #2b63d9)", "")
    both = plots_ranking.reliability({"a": DIAGRAM, "b $x$": DIAGRAM})
    assert "b $x$" in both
    assert both.count("ECE 0.123") == 2
