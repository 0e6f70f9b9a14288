"""The page of a run: what it shows, that it is self-contained, escaped and small."""

import base64
import hashlib
import io
import re
import subprocess
import sys

import pytest
from PIL import Image

from common.paths import REPOSITORY
from common.report import maps, page, plots, plots_matching, sheets
from common.report.files import Analysis, save_analysis
from common.track import Run, TrackConfig
from tests.report_pages import EVIL, Page, make_rows


def leave_undrawn(monkeypatch):
    """No drawing becomes SVG: that takes long."""
    for module in (plots, plots_matching):
        monkeypatch.setattr(module, "as_svg", lambda figure, title: "<svg></svg>")


def test_page_shows_everything(folder):
    path = page.write_report(folder, page.Section("Mine", "words", rows=[{"a": 1, "b": 0.5}]))
    assert path == folder / "report.html"
    shown = Page(path.read_text())
    for words in (
        "0.750", "+0.250 over frozen (0.500)", "-0.125 over frozen (0.250)", "Loss", "Validation",
        "Learning rates", "Images per second", "Confidence of the predictions", "Rare and frequent",
        "Average precision by query", "F1", "Worst", "Best", "Random", "classes that are confused",
        "not readable", "train.lr 0.1 0.2", "python infer.py run=x", "torch", "Mine words",
        "Apart", "matches (9)", "Embeddings in two dimensions", "t-SNE, seed 0: 18 of 18 queries",
        "Kept by the run", "4.000 100 25", "knn 1.000",
    ):  # fmt: skip
        assert words in shown.visible, words
    assert "Minutes" not in shown.visible  # a clock is no curve


def test_page_is_self_contained_and_small(folder):
    path = page.write_report(folder)
    text = path.read_text()
    shown = Page(text)
    for tag, attrs in shown.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:image/jpeg;base64,")), value[:80]
    assert not re.search(r"url\((?!#)|@import", text)
    assert shown.scripts == ["application/json", ""]
    policy = next(a["content"] for a in shown.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    links = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert links <= {"http://www.w3.org/1999/xlink"}, "the name of a namespace is no request"
    assert str(folder.parent) not in text  # no path of this machine
    assert len(text) < 3_000_000
    assert "prefers-color-scheme: dark" in text
    assert '[data-theme="dark"]' in text
    pictures = [a["src"] for a in shown.all("img")]
    assert len(pictures) > 50
    for source in set(pictures):
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            assert max(image.size) <= max(sheets.SIDE, 8 * maps.CELL)


def test_everything_is_escaped(folder, pictures):
    run = Run(folder, {}, TrackConfig(wandb="off", name=EVIL))
    rows = [
        {
            "query": {"id": EVIL, "path": pictures["rgb"], "label": EVIL, "title": EVIL},
            "results": [{"id": EVIL, "path": pictures["rgb"], "label": EVIL, "right": False}],
            "note": EVIL,
        }
    ]
    run.table("evil", rows)
    run.log(60, **{EVIL: 0.5})
    run.log(70, **{EVIL: 0.5})
    (folder / "config.yaml").write_text(f"a: '{EVIL}'")
    save_analysis(folder, {"commands": [EVIL]})
    section = page.Section(EVIL, EVIL, rows=[{EVIL: EVIL}])
    text = page.write_report(folder, section, title=EVIL).read_text()
    shown = Page(text)
    assert shown.scripts == ["application/json", ""]
    assert EVIL not in text
    assert shown.visible.count('<script>alert("x")</script>') > 10
    assert shown.ids
    assert not [name for _, attrs in shown.tags for name in attrs if name.startswith("on")]


def test_rebuilt_page_needs_no_image_files(folder, pictures):
    before = page.write_report(folder).read_bytes()
    for path in pictures.values():
        path.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "common.report.page", str(folder)],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_bytes() == before  # and equal input gives equal bytes


PIECES = ["metrics.jsonl", "summary.json", "track.json", "analysis.json", "config.yaml", "tables"]
SHOWN = ["Loss", "Summary", "Environment", "Scores", "Whole config", "Pictures"]


@pytest.mark.parametrize(("piece", "section"), list(zip(PIECES, SHOWN, strict=True)))
@pytest.mark.parametrize("content", [None, b"", b'\xff{"a": [1, '])
def test_page_without_a_piece(folder, piece, section, content, monkeypatch):
    leave_undrawn(monkeypatch)
    assert section in Page(page.write_report(folder).read_text()).visible
    for path in list(folder.glob("tables/*")) if piece == "tables" else [folder / piece]:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    shown = Page(page.write_report(folder).read_text()).visible
    assert (section in shown) == (piece == "config.yaml" and bool(content))  # shown as it is


def test_a_table_that_was_being_written_at_a_kill_is_not_shown(folder, monkeypatch):
    leave_undrawn(monkeypatch)
    before = page.write_report(folder).read_text()
    for path in list(folder.glob("tables/*")):
        path.with_name(f".{path.stem}.123.json").write_bytes(path.read_bytes())
    assert page.write_report(folder).read_text() == before


def test_empty_folder_gives_a_page(tmp_path):
    shown = Page(page.write_report(tmp_path, title="nothing yet").read_text())
    assert shown.visible == (
        "nothing yet To the content nothing yet Theme: auto ← before next → close"
    )
    assert not shown.all("svg")


def test_no_folder_is_an_error(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="No run folder"):
        page.write_report(tmp_path / "none")
    assert page.main([str(tmp_path / "none")]) == 1
    assert "error: No run folder" in capsys.readouterr().err
    assert page.main([]) == 2


def test_ids_are_unique_and_links_lead_somewhere(folder, pictures):
    Run(folder, {}, TrackConfig(wandb="off")).table("second", make_rows(pictures.values()))
    shown = Page(page.write_report(folder).read_text())
    own = [name for name in shown.ids if not re.fullmatch(r"[mp][0-9a-f]{10}", name)]
    assert len(own) == len(set(own))
    for attrs in shown.all("a"):
        assert attrs["href"][1:] in shown.ids
    for attrs in shown.all("label"):
        assert attrs.get("for", shown.ids[0]) in shown.ids, "or its field is inside"


def test_many_pictures_stay_under_the_budget(folder, monkeypatch):
    leave_undrawn(monkeypatch)
    full = len(Page(page.write_report(folder).read_text()).all("img"))
    monkeypatch.setattr(page, "BUDGET", 900_000)
    text = page.write_report(folder).read_text()
    some = len(Page(text).all("img"))
    assert 0 < some < full
    assert len(text) < 900_000 + 300_000


def test_headline_without_scores_or_baseline():
    cards = page.headline(Analysis(), {"gap": 0.5, "name": "x", "nested": {}})
    assert cards == [{"name": "gap", "value": 0.5, "change": None, "against": None}]
    rows = [{"name": "a", "GAP": 0.5}]
    assert page.headline(Analysis(scores=rows), {})[0]["change"] is None
    alone = page.headline(Analysis(scores=rows, baseline="a"), {})
    assert alone[0]["change"] is None  # nothing to compare a row with itself
    both = [{"name": "frozen", "GAP": 0.5}, {"name": "b", "GAP": 0.75, "F1": 0.1, "note": "n"}]
    cards = page.headline(Analysis(scores=both), {})
    assert [(c["name"], c["change"]) for c in cards] == [("GAP", 0.25), ("F1", None)]
    table = page.score_table(Analysis(scores=both))
    assert (table["metrics"], table["best"]) == (["GAP", "F1"], {"GAP": 0.75, "F1": 0.1})
