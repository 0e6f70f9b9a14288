"""The plots of a report, and the numbers behind them."""

import re
import warnings

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from common.report import drawings, plots, plots_matching
from common.report.files import KINDS
from tests.oracles.plots import gap_at
from tests.report_pages import Page


def test_gap_curve_against_the_slow_twin():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 40, 300) / 40  # many ties
    kind = np.array(KINDS)[rng.integers(0, 3, 300)]
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
        lambda: plots.curves({"a": ([0.01, 0.1, 90], [1, 2, 1])}, chosen=0.1, middle=0.1),
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


@pytest.mark.parametrize(
    ("threshold", "middle", "said"),
    [(1.49e-8, None, "0"), (-1e-9, None, "0"), (0.61849, None, "0.618"),
     (0.001234, None, "0.00123"), (2e-6, 1e-5, "2e-06"), (1e-13, 1e-5, "0")],
)  # fmt: skip
def test_thresholds_are_rounded_by_their_axis(threshold, middle, said):
    x = [-0.2, 0.4, 0.9] if middle is None else [0.0, 1e-5, 1.0]
    drawn = plots.curves({"a": (x, [1, 2, 1])}, chosen=threshold, middle=middle)
    assert f">chosen {said}<" in drawn
    counted = {"edges": x, "middle": middle, "counts": {"match": [1, 2]}, "x_label": "cosine"}
    marked = plots_matching.apart({**counted, "threshold": threshold})
    assert f">threshold {said}<" in marked or threshold < x[0]


def test_predictions_of_nothing_have_no_bar():
    plain = plots.score_histogram([0.1, 0.9], ["none", "right"])
    kinds = ["none", "right", "wrong", "none"]
    assert plots.score_histogram([0.1, 0.9, None, float("-inf")], kinds) == plain


def test_plots_draw_names_as_they_are():
    series = {"a$b$": ([1, 2], [1, 2]), "<b>&": ([1, 2], [2, 1]), "_c": ([1, 2], [2, 2])}
    text = plots.curves(series, y_label="x")
    shown = Page(text).visible
    assert "a$b$" in shown
    assert "<b>&" in shown


def test_a_legend_of_long_names_leaves_the_axes_their_width():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where axes collapse
        names = [f"a recipe with a long name {i}" for i in range(4)]
        svg = plots.curves({name: ([1, 2], [0.1, 0.2]) for name in names})
        assert svg._repr_png_()


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


def test_long_lines_keep_their_ends_and_peaks():
    values = np.sin(np.arange(100_000) / 5000)
    values[[31_337, 64_000]] = 9, np.nan
    rows = plots.extremes(values)
    assert len(rows) <= 1002
    assert {0, 31_337, 99_999} <= set(rows.tolist())
    assert np.nanmin(values[rows]) == np.nanmin(values)
    assert plots.extremes(values[:50]).tolist() == list(range(50))
    text = plots.curves({"a": (np.arange(100_000), values)}, best=True)
    assert len(text) < 60_000
    assert "9.000" in text
