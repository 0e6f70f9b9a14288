"""analysis.json and the other files of a run folder."""

import json

import numpy as np
import pytest

from common.report import page
from common.report.files import Analysis, load_analysis, parse_lines, plain, save_analysis
from tests.report_pages import Page


def test_analysis_parts_are_merged(tmp_path):
    save_analysis(tmp_path, Analysis(scores=[{"name": "frozen", "GAP": np.float32(0.5)}]))
    save_analysis(tmp_path, Analysis(scores=[{"name": "b", "GAP": 0.6}], baseline="b"))
    save_analysis(tmp_path, {"retrieval": {"ap": np.array([0.5]), "relevant": np.array([3])}})
    save_analysis(tmp_path, {"scores": [{"name": "b", "GAP": 0.7}]})
    stored = load_analysis(tmp_path)
    assert stored.scores == [{"name": "frozen", "GAP": 0.5}, {"name": "b", "GAP": 0.7}]
    rows = [{"name": "other", "GAP": 0.6}, {"name": "frozen", "GAP": 0.9}]
    save_analysis(tmp_path, {"scores": rows})  # the last row given stays the last
    assert [row["name"] for row in load_analysis(tmp_path).scores] == ["b", "other", "frozen"]
    assert stored.retrieval == {"ap": [0.5], "relevant": [3]}
    assert stored.baseline == "b"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"score": []}, "did you mean 'scores'"),
        ({"retrieval": {"ap": [1.0], "relevant": [1, 2]}}, "one length"),
        ({"retrieval": {"ap": [1.0]}}, "one length"),
        ({"recognition": {"score": [1.0], "kind": ["right"], "images": []}}, "one length"),
        ({"recognition": {"score": [1.0], "kind": ["ok"]}}, "holds 'ok'"),
    ],
)
def test_wrong_analysis_is_refused(tmp_path, given, words):
    with pytest.raises(ValueError, match=words):
        save_analysis(tmp_path, given)
    assert not (tmp_path / "analysis.json").exists()


def test_plain_values():
    value = {1: (np.int64(2), np.float32(0.5), b"a/b"), "x": [float("nan"), None, True]}
    assert plain(value) == {"1": [2, 0.5, "a/b"], "x": [None, None, True]}
    assert plain(np.array([[1.0, np.inf]])) == [[1.0, None]]
    assert plain(np.array(["a"])) == ["a"]
    json.dumps(plain(value))


def test_lines_that_are_half_or_damaged_are_left_out():
    text = '{"step": 1}\nnot json\n[1]\n\n{"step": 2}\n{"step": 3}'
    assert parse_lines(text) == [{"step": 1}, {"step": 2}]


def test_a_page_speaks_of_what_its_competition_has(tmp_path):
    kinds = ["right", "wrong", "none"]
    found = {"score": [0.9, 0.5, 0.1], "kind": kinds, "images": [3, 1, 0], "threshold": 0.3}
    rank = {"ap": [1.0, 0.5, 0.2], "relevant": [3, 1, 0], "name": "MAP@5"}
    save_analysis(tmp_path, Analysis(recognition=found, retrieval=rank))
    plain = Page(page.write_report(tmp_path).read_text()).visible
    for words in ("training images of the class", "of no class (1)", "Few and many right images"):
        assert words in plain, words
    assert "GAP" not in plain
    assert "landmark" not in plain
    words = {"thing": "fin", "none": "strange $1$", "retrieval": "Five", "relevant": "pictures"}
    save_analysis(tmp_path, Analysis(words=words))
    named = Page(page.write_report(tmp_path).read_text()).visible
    for words in ("training images of the fin", "strange $1$ (1)", "Five", "pictures (queries)"):
        assert words in named, words
    save_analysis(tmp_path, Analysis(recognition={**found, "curve": "GAP"}))
    assert "cost GAP most" in Page(page.write_report(tmp_path).read_text()).visible
    with pytest.raises(ValueError, match="Unknown word 'thign'.*thing"):
        save_analysis(tmp_path, Analysis(words={"thign": "x"}))
