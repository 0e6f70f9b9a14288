import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from common.paths import REPOSITORY
from common.report import drawings, gallery, page, plots, sheets
from common.report.files import Analysis, load_analysis, parse_lines, plain, save_analysis
from common.track import Run, TrackConfig
from tests.oracles.plots import gap_at

EVIL = '<script>alert("x")</script>'
VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Tags and attributes of a page; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [dict(attrs)["id"]] if "id" in dict(attrs) else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [dict(attrs)["id"]] if "id" in dict(attrs) else []

    def handle_endtag(self, tag):
        if self.open[-1] == "p" and tag != "p":
            self.open.pop()
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def visible(self):
        return " ".join(" ".join(self.text).split())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def write(path, array):
    assert cv2.imwrite(str(path), array)
    return path


@pytest.fixture(scope="module")
def kept_pictures(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    made = {
        "rgb": write(folder / "rgb.jpg", rng.integers(0, 255, (300, 400, 3), np.uint8)),
        "grey": write(folder / "grey.png", rng.integers(0, 255, (50, 40), np.uint8)),
        "deep": write(folder / "deep.png", rng.integers(0, 65535, (50, 40), np.uint16)),
        "tiny": write(folder / "tiny.png", np.zeros((1, 1, 3), np.uint8)),
        "wide": write(folder / "wide.png", np.zeros((2, 3000, 3), np.uint8)),
        "alpha": write(folder / "alpha.png", rng.integers(0, 255, (30, 30, 4), np.uint8)),
    }
    Image.new("CMYK", (60, 40)).save(folder / "cmyk.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no")
    return made | {
        "cmyk": folder / "cmyk.jpg",
        "broken": folder / "broken.jpg",
        "missing": folder / "missing.jpg",
    }


def make_rows(paths, count=30, ap=True):
    """Row i has its first result right for even i, with score i / count."""
    paths = [str(path).encode() for path in paths]
    rows = []
    for i in range(count):
        right = i % 2 == 0
        first = {"id": f"r{i}", "path": paths[i % len(paths)], "label": i % 3 if right else 9}
        results = [first | {"score": np.float32(i / count), "right": np.bool_(right)}]
        results += [{"id": "u", "path": paths[0], "label": -1, "score": 0.0, "right": None}] * 7
        row = {"query": {"id": f"q{i:02d}", "path": paths[i % len(paths)], "label": i % 3}}
        rows.append(row | {"results": results} | ({"ap": (i * 7 % count) / count} if ap else {}))
    return rows


@pytest.fixture
def pictures(kept_pictures, tmp_path):
    """Paths by name, copies that a test may change."""
    shutil.copytree(kept_pictures["rgb"].parent, tmp_path / "images")
    return {name: tmp_path / "images" / path.name for name, path in kept_pictures.items()}


@pytest.fixture
def folder(kept_folder, tmp_path):
    """A run folder with everything in it."""
    return Path(shutil.copytree(kept_folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def kept_folder(tmp_path_factory, kept_pictures):
    rng = np.random.default_rng(1)
    run = Run(
        tmp_path_factory.mktemp("kept") / "run",
        {"train": {"lr": 0.2}},
        TrackConfig(wandb="off", group=EVIL, tags=["a"]),
        best=("valid/gap",),
        default={"train": {"lr": 0.1}},
    )
    (run.folder / "config.yaml").write_text("train:\n  lr: 0.2\n")
    for step in range(1, 6):
        run.log(step * 10, epoch=step, minutes=step, **{"train/loss": 1 / step, "train/lr": 0.1})
        run.log(step * 10, **{"valid/gap": step / 10, "train/images_per_second": 40.0})
    run.table("retrieval", make_rows(kept_pictures.values()))
    kinds = np.array(["right", "wrong", "none"])[rng.integers(0, 3, 200)]
    save_analysis(
        run.folder,
        Analysis(
            scores=[
                {"name": "frozen", "GAP": 0.5, "mAP@100": 0.25, "note": EVIL},
                {"name": "final", "GAP": 0.75, "mAP@100": 0.125},
            ],
            recognition={
                "score": rng.random(200),
                "kind": kinds,
                "images": np.arange(200),
                "curve": "GAP",
            },
            words={"none": EVIL, "thing": "fin"},
            retrieval={"ap": rng.random(50), "relevant": rng.integers(0, 40, 50)},
            thresholds=[{"title": "F1", "x": [0, 1], "series": {EVIL: [0, 1]}, "chosen": 0.5}],
            commands=["python infer.py run=x"],
        ),
    )
    return run.folder


# ---------------------------------------------------------------- the page


def test_page_shows_everything(folder):
    path = page.write_report(folder, page.Section("Mine", "words", rows=[{"a": 1, "b": 0.5}]))
    assert path == folder / "report.html"
    shown = Page(path.read_text())
    for words in (
        "0.750", "+0.250 over frozen (0.500)", "-0.125 over frozen (0.250)", "Loss", "Validation",
        "Learning rates", "Images per second", "Confidence of the predictions", "Rare and frequent",
        "Average precision by query", "F1", "Worst", "Best", "Random", "classes that are confused",
        "not readable", "train.lr 0.1 0.2", "python infer.py run=x", "torch", "Mine words",
    ):  # fmt: skip
        assert words in shown.visible, words
    assert "Minutes" not in shown.visible  # a clock is no curve


def test_page_is_self_contained_and_small(folder):
    path = page.write_report(folder)
    text = path.read_text()
    shown = Page(text)
    for tag, attrs in shown.tags:
        assert tag not in ("link", "script", "iframe", "object")
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:image/jpeg;base64,")), value[:80]
    assert not re.search(r"url\((?!#)|@import", text)
    assert str(folder.parent) not in text  # no path of this machine
    assert len(text) < 3_000_000
    assert "prefers-color-scheme: dark" in text
    pictures = [a["src"] for a in shown.all("img")]
    assert len(pictures) > 50
    for source in set(pictures):
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            assert max(image.size) <= sheets.SIDE


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
    assert "<script" not in text
    shown = Page(text)
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
    monkeypatch.setattr(plots, "as_svg", lambda figure, title: "<svg></svg>")  # drawing takes long
    assert section in Page(page.write_report(folder).read_text()).visible
    for path in list(folder.glob("tables/*")) if piece == "tables" else [folder / piece]:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    shown = Page(page.write_report(folder).read_text()).visible
    assert (section in shown) == (piece == "config.yaml" and bool(content))  # shown as it is


def test_a_table_that_was_being_written_at_a_kill_is_not_shown(folder, monkeypatch):
    monkeypatch.setattr(plots, "as_svg", lambda figure, title: "<svg></svg>")
    before = page.write_report(folder).read_text()
    for path in list(folder.glob("tables/*")):
        path.with_name(f".{path.stem}.123.json").write_bytes(path.read_bytes())
    assert page.write_report(folder).read_text() == before


def test_empty_folder_gives_a_page(tmp_path):
    shown = Page(page.write_report(tmp_path, title="nothing yet").read_text())
    assert shown.visible.split() == ["nothing", "yet", "nothing", "yet"]  # title and heading
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
        assert attrs["for"] in shown.ids


def test_many_pictures_stay_under_the_budget(folder, monkeypatch):
    monkeypatch.setattr(plots, "as_svg", lambda figure, title: "<svg></svg>")
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


# ---------------------------------------------------------------- analysis.json


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


# ---------------------------------------------------------------- plots


def test_gap_curve_against_the_slow_twin():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 40, 300) / 40  # many ties
    kind = np.array(plots.KINDS)[rng.integers(0, 3, 300)]
    order = np.argsort(-score, kind="stable")  # the twin keeps the order of ties
    threshold, precision, gap = plots.gap_curve(score, kind, positives=250)
    assert (np.diff(threshold) < 0).all()
    assert set(threshold) == set(score)
    for t, p, g in zip(threshold, precision, gap, strict=True):
        expected = gap_at(score[order].tolist(), kind[order].tolist(), t, 250)
        np.testing.assert_allclose((p, g), expected, rtol=1e-12)


def test_gap_curve_against_scikit_learn():
    rng = np.random.default_rng(1)
    score, right = rng.permutation(500) / 500, rng.random(500) < 0.4
    kind = np.where(right, "right", "none")
    _, _, gap = plots.gap_curve(score, kind)
    assert gap[-1] == pytest.approx(average_precision_score(right, score))


@pytest.mark.parametrize(
    "svg",
    [
        lambda: plots.curves({"a": ([1, 2, 3], [0.1, float("nan"), 0.3])}, best=True),
        lambda: plots.curves({"a": ([1], [1.0])}, y_label="loss", log=True, chosen=1.0),
        lambda: plots.curves({"empty": ([], [])}, best=True),
        lambda: plots.score_histogram([0.5], ["wrong"]),
        lambda: plots.score_histogram([0.5] * 3, ["right"] * 3),
        lambda: plots.score_histogram([0.1, 0.9], ["none", "right"], gap=False, threshold=0.4),
        lambda: plots.histogram([0.0, 1.0], x_label="AP"),
        lambda: plots.by_size([0.5, 1, 0], [0, 1, 5000], x_label="n", y_label="mAP"),
    ],
)
def test_plots_are_themed_svg(svg):
    text = svg()
    assert text == svg()  # equal input, equal bytes
    assert Page(text).all("svg")[0]["role"] == "img"
    assert "var(--muted, #626b75)" in text
    # Every colour of the drawing comes from the page.
    assert not re.findall(r"(?:fill|stroke): (?!none|var)[^;\"]+", text.split("<defs>")[0])
    assert "<style" not in text
    assert "font-family" not in text


def test_scores_over_many_decades_have_a_logarithmic_axis():
    score = [0.001, 0.01, 0.02, 0.03, 0.5, 8.0, 290.0]
    kind = ["wrong", "none", "none", "right", "right", "right", "right"]
    wide = plots.score_histogram(score, kind)
    assert ">100<" in wide
    assert ">0.1<" in wide
    assert ">100<" not in plots.score_histogram([s**0.1 for s in score], kind)


def test_plots_draw_names_as_they_are():
    series = {"a$b$": ([1, 2], [1, 2]), "<b>&": ([1, 2], [2, 1]), "_c": ([1, 2], [2, 2])}
    text = plots.curves(series, y_label="x")
    shown = Page(text).visible
    assert "a$b$" in shown
    assert "<b>&" in shown


def test_groups_by_number_of_images():
    sizes = [0, 1, 2, 3, 4, 7, 8, 100]
    text = Page(plots.by_size([1] * 8, sizes, x_label="n", y_label="m")).visible
    for name in ("0 (1)", "1 (1)", "2-3 (2)", "4-7 (2)", "8-15 (1)", "64-127 (1)"):
        low = name.split()[0]
        assert low in text.split(), (name, text)


def test_training_curves_take_the_last_of_a_repeated_step():
    lines = [{"step": s, "train/loss": 1.0, "n": "text", "once": 1} for s in (1, 2, 2)]
    lines[1].pop("once"), lines[2].pop("once")
    lines[2]["train/loss"] = 7.0
    found = drawings.training(lines)
    assert [item.title for item in found] == ["Loss"]
    assert ">7<" in found[0].svg
    assert drawings.training([]) == []


# ---------------------------------------------------------------- the gallery


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
        color = [int(plots.COLORS[name][0][i : i + 2], 16) for i in (1, 3, 5)]
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
