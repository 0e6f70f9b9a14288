"""The map of embeddings, histograms of matches and others, time by stage."""

import base64
import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from common.clock import Clock
from common.report import drawings, maps, separation
from common.types import Embeddings, Neighbors
from tests.report_pages import placed, seeded, write


def unit(count, dim=8, seed=0):
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=seeded(seed)))


def images(vectors, labels, mark, path=b"/none.jpg"):
    ids = np.array([f"{mark}{i}" for i in range(len(vectors))])
    count = len(vectors)
    return maps.Images(
        Embeddings(ids, vectors), np.full(count, path), np.asarray(labels), np.full(count, mark)
    )


def test_a_map_is_sampled_from_both_sides_and_the_same_twice(tmp_path):
    path = str(write(tmp_path / "a.jpg", np.full((30, 60, 3), 200, np.uint8))).encode()
    queries = images(unit(500), np.arange(500) % 400, "right", path)
    gallery = images(unit(900, seed=1), np.arange(900) % 450, "gallery", path)
    names = np.array([f"c{i}" for i in range(450)])
    found = maps.embedding_map(queries, gallery, names, points=60, seed=3)
    assert found == maps.embedding_map(queries, gallery, names, points=60, seed=3)
    assert found != maps.embedding_map(queries, gallery, names, points=60, seed=4)
    assert found["total"] == [500, 900]
    marks = [point["mark"] for point in found["points"]]
    assert (marks.count("right"), marks.count("gallery")) == (30, 30)
    asked = {point["label"] for point in found["points"] if point["mark"] == "right"}
    others = [point["label"] for point in found["points"] if point["mark"] == "gallery"]
    assert set(others) <= asked, "images of the queries' classes come first"
    spots = np.array([[point["x"], point["y"]] for point in found["points"]])
    assert spots.min() == 0
    assert spots.max() == 1
    for point in found["points"]:
        shown = found["classes"][point["color"]] if point["color"] >= 0 else None
        assert shown in (None, point["label"])
    with Image.open(io.BytesIO(base64.b64decode(found["sheet"]))) as sheet:
        assert sheet.size == (8 * maps.CELL, 8 * maps.CELL)
        pixels = np.asarray(sheet.convert("L")).astype(int)
    cell = pixels[: maps.CELL, : maps.CELL]
    assert abs(cell[32].mean() - 200) < 6, "a wide picture lies in the middle of its cell"
    assert abs(cell[4].mean() - 128) < 6
    said = drawings.placed(found)["caption"]
    assert "30 of 500 queries and 30 of 900 gallery images" in said


def test_neighbors_stay_neighbors_on_the_map():
    centers = unit(6, 32)
    vectors = torch.nn.functional.normalize(
        centers.repeat_interleave(20, 0) + 0.05 * torch.randn(120, 32, generator=seeded(1))
    ).numpy()
    spots, method = maps.laid_out(vectors, 0)
    assert method == "t-SNE"
    away = np.linalg.norm(spots[:, None] - spots[None], axis=2) + np.eye(120) * 9
    assert (away.argmin(1) // 20 == np.arange(120) // 20).mean() > 0.98


def test_few_images_are_laid_out_by_principal_components():
    line = np.outer([0.0, 1, 3, 9], [0.6, 0.8, 0]).astype(np.float32)
    spots, method = maps.laid_out(line, 0)
    assert method == "principal components"
    along = np.abs(spots[:, 0] - spots[0, 0])
    np.testing.assert_allclose(along, [0, 1 / 9, 3 / 9, 1], atol=1e-6)
    assert np.ptp(spots[:, 1]) < 1e-6
    assert maps.laid_out(np.ones((1, 4), np.float32), 0)[0].tolist() == [[0, 0]]


def test_a_map_without_vectors_or_pictures(monkeypatch):
    empty = images(torch.zeros(3, 8), [0, 0, 0], "right")
    none = images(torch.zeros(0, 8), np.zeros(0, int), "gallery")
    assert maps.embedding_map(empty, none, np.array(["a"])) == {}, "unreadable images lie nowhere"
    assert drawings.placed({}) == {}
    some = images(unit(4), [0, 0, 0, -1], "none")
    found = maps.embedding_map(some, none, np.array(["a"]), none="nobody")
    assert [point["picture"] for point in found["points"]] == [-1] * 4
    assert [point["label"] for point in found["points"]] == ["a", "a", "a", "nobody"]
    assert found["classes"] == ["a"]
    monkeypatch.setattr(maps, "PATIENCE", -1.0)
    late = maps.embedding_map(some, none, np.array(["a"]))
    assert late["late"] == 4
    assert "4 pictures could not be read in time" in drawings.placed(late)["caption"]


def test_the_sheet_keeps_to_its_bytes(monkeypatch, kept_pictures):
    whole = len(placed([kept_pictures["rgb"]] * 60)["sheet"])
    monkeypatch.setattr(maps, "SHEET", whole // 3)
    assert len(placed([kept_pictures["rgb"]] * 60)["sheet"]) < whole / 2


def test_frequent_classes_get_colours():
    labels = [5] * 4 + [2] * 4 + [9] * 3 + [1] * 2 + [-1] * 8
    assert maps.frequent(labels) == [2, 5, 9]
    assert maps.frequent(labels, most=1) == [2]


@pytest.mark.parametrize("most", [(1000, 20_000), (20, 40)])
def test_cosines_of_matches_and_others_by_hand(most):
    queries = Embeddings(np.array([f"i{i}" for i in range(40)]), unit(40))
    gallery = Embeddings(np.array([f"i{i}" for i in range(60)]), unit(60, seed=1))
    rng = np.random.default_rng(0)
    truth, labels = rng.integers(-1, 6, 40), rng.integers(-1, 6, 60)
    found = separation.cosines(queries, gallery, truth, labels, most=most)
    total = {kind: sum(counts) for kind, counts in found["counts"].items()}
    if most == (20, 40):
        assert total["nearest other"] == 20
        assert (
            "20 of 40 queries with 40 of 60 gallery images, drawn with seed 0" in found["caption"]
        )
        return
    match, other, nearest = [], [], []
    for q in range(40):
        mine = []
        for g in range(60):
            if q == g:  # the same id: the image itself
                continue
            value = float(queries.vectors[q] @ gallery.vectors[g])
            same = truth[q] == labels[g] and truth[q] >= 0
            (match if same else mine).append(value)
        other += mine
        nearest.append(max(mine))
    edges = np.array(found["edges"])
    for kind, values in (("match", match), ("other", other), ("nearest other", nearest)):
        assert total[kind] == len(values)
        expected = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
        # A value on an edge may fall on either side of it.
        assert np.abs(expected - found["counts"][kind]).sum() <= 2, kind


def test_scores_of_candidates_leave_padding_out():
    index = torch.tensor([[0, 1, -1], [2, -1, -1]])
    score = torch.tensor([[0.9, 0.4, -torch.inf], [0.5, -torch.inf, -torch.inf]])
    hits = np.array([[True, False, False], [False, True, False]])
    found = separation.candidates(Neighbors(index, score), hits, threshold=0.7)
    assert {kind: sum(counts) for kind, counts in found["counts"].items()} == {
        "match": 1,
        "other": 2,
    }
    assert found["edges"][0] == pytest.approx(0.4, abs=0.01)
    (drawn,) = drawings.pairs([found, {}])
    assert "threshold 0.7" in drawn.svg
    assert "others (2)" in drawn.svg
    nothing = Neighbors(torch.full((1, 2), -1), torch.full((1, 2), -torch.inf))
    assert separation.candidates(nothing, np.zeros((1, 2), bool)) == {}


def test_bins_are_even_until_scores_span_decades():
    even, middle = separation.bins(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 4)
    assert (even.tolist(), middle) == ([0, 0.25, 0.5, 0.75, 1], None)
    wide = np.array([0.01, 0.02, 0.03, 290.0])
    edges, middle = separation.bins(wide, wide, 8)
    assert middle == pytest.approx(0.025)
    assert edges[[0, -1]] == pytest.approx([0.01, 290])
    steps = np.diff(np.log(edges[-4:]))
    assert steps == pytest.approx(steps.mean(), rel=0.01), "far out each is as many times the last"
    counted = separation.counted({"match": wide}, title="t", x_label="votes")
    assert "asinh" not in drawings.pairs([counted])[0].svg
    assert ">10<" in drawings.pairs([counted])[0].svg


def test_a_clock_tells_stages_and_their_parts():
    clock = Clock()
    with clock("embed", rows=10):
        time.sleep(0.02)
    with clock("rank") as stage:
        stage.rows = 5
    clock.parts({"knn": 0.5})
    rows = clock.rows()
    assert [(row["stage"], row["rows"], row["within"]) for row in rows] == [
        ("embed", 10, False), ("rank", 5, False), ("knn", 0, True),
    ]  # fmt: skip
    assert 0.02 <= rows[0]["seconds"] < 5
    shown = drawings.stages(rows, {"minutes": 2.0})
    assert [row["stage"] for row in shown] == ["training", "embed", "rank", "knn"]
    assert shown[0]["share"] == 100
    assert shown[1]["rate"] == pytest.approx(10 / rows[0]["seconds"])
    assert shown[3]["rate"] is None
    with pytest.raises(ValueError, match="stop"), clock("fails"):
        raise ValueError("stop")
    assert clock.stages[-1].seconds > 0, "what failed took its time too"
