"""The bundled whale sample, and the program that made it on art of three strokes."""

import csv
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from competitions.whale import make_sample
from competitions.whale.menagerie import scenes
from competitions.whale.menagerie.units import draw, find_units

SAMPLE = Path(make_sample.__file__).parent / "sample"


def rows(name, root=SAMPLE):
    with (root / name).open() as file:
        return list(csv.DictReader(file))


def sprite(path, seed, *, alpha=255):
    rng = np.random.default_rng(seed)
    pixels = np.zeros((72, 72, 4), np.uint8)
    pixels[10:60, 20:50, :3] = rng.integers(0, 255, (50, 30, 3))
    pixels[10:60, 20:50, 3] = alpha
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def art(tmp_path):
    root = tmp_path / "images"
    for n in range(12):
        folder = root / "units" / f"kind{n % 3}"
        for m, name in enumerate(("", "-attack-1", "-attack-2", "-defend", "-die-1")):
            sprite(folder / f"unit{'abcdefghijkl'[n]}{name}.png", 100 * n + m)
    for n in (1, 2):
        sprite(root / f"terrain/grass/green{n if n > 1 else ''}.png", 5000 + n)
    sprite(root / "terrain/embellishments/rocks.png", 6000)
    return root


def test_committed_sample_has_the_competitions_files_and_shares():
    train, test = rows("train.csv"), rows("solution.csv")
    assert {r["Image"] for r in train}.isdisjoint(r["Image"] for r in test)
    assert [r["Image"] for r in rows("sample_submission.csv")] == [r["Image"] for r in test]
    per = Counter(r["Id"] for r in train)
    new = per.pop("new_whale")
    assert 0.3 < new / len(train) < 0.4
    assert sum(n == 1 for n in per.values()) / len(per) >= 0.4
    assert {r["Id"] for r in test} - {"new_whale"} == set(per)
    files = [*(SAMPLE / "train").iterdir(), *(SAMPLE / "test").iterdir()]
    assert sum(f.stat().st_size for f in files) < 6e6
    assert {f.name for f in files} == {r["Image"] for r in [*train, *test]}


def test_boxes_lie_inside_their_pictures():
    boxes = {r["Image"]: [int(r[k]) for k in ("x0", "y0", "x1", "y1")] for r in rows("bboxs.csv")}
    for split in ("train", "test"):
        for path in (SAMPLE / split).iterdir():
            height, width = cv2.imread(str(path)).shape[:2]
            x0, y0, x1, y1 = boxes.pop(path.name)
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
    assert not boxes


def test_points_are_the_corners_of_the_drawing_and_turn_clockwise():
    boxes = {r["Image"]: [int(r[k]) for k in ("x0", "y0", "x1", "y1")] for r in rows("bboxs.csv")}
    points = {
        r["Image"]: np.array([[float(r[f"x{p}"]), float(r[f"y{p}"])] for p in range(4)])
        for r in rows("keypoints.csv")
    }
    assert set(points) == set(boxes)
    for name, corners in points.items():
        x0, y0, x1, y1 = boxes[name]
        middle = corners.mean(0)
        assert x0 <= middle[0] <= x1
        assert y0 <= middle[1] <= y1
        a, b = corners[1] - corners[0], corners[3] - corners[0]
        assert a[0] > abs(a[1])  # the upper edge goes to the right, never on its head
        assert a[0] * b[1] - a[1] * b[0] > 0


@pytest.mark.parametrize("degrees", [-16.0, 0.0, 11.0])
def test_a_turned_drawing_has_its_corners_where_they_are_said_to_be(degrees):
    sprite = np.zeros((60, 40, 4), np.float32)
    sprite[..., 3] = 1
    for y, x in ((0, 0), (0, 34), (54, 34), (54, 0)):
        sprite[y : y + 6, x : x + 6, :3] = 1
    turned, corners = scenes._turned(sprite, degrees)
    light = (turned[..., 0] > 0.5).astype(np.uint8)
    _, _, _, middles = cv2.connectedComponentsWithStats(light)
    inner = corners + (corners.mean(0) - corners) * (6 / np.array([40, 60])).mean()
    for middle in middles[1:]:
        assert np.linalg.norm(inner - middle, axis=1).min() < 2.5
    assert len(middles) == 5


def test_units_keep_whole_drawings_of_several_actions(art):
    units = find_units(art)
    assert len(units) == 12
    assert all(set(u.actions) == {"attack", "defend", "stand"} for u in units)
    sprite(art / "units/kind0/unita-defend.png", 0)  # the drawing of the action "stand"
    (unit,) = (u for u in find_units(art) if u.name == "kind0/unita")
    assert sum(len(frames) for frames in unit.actions.values()) == 3


def test_team_color_turns_and_other_colors_stay(tmp_path):
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[:, :4, :3] = (93, 0, 158)  # magenta of the player's color, blue first
    pixels[:, 4:, :3] = (40, 160, 40)
    cv2.imwrite(str(tmp_path / "unit.png"), pixels)
    drawn = draw(tmp_path / "unit.png", 240.0)
    assert drawn[0, 0, 0] > 0.5 > drawn[0, 0, 2]  # blue now
    np.testing.assert_allclose(drawn[0, 7, :3], np.array([40, 160, 40]) / 255, atol=0.01)


def test_what_an_individual_does_in_test_it_never_does_in_train(art, monkeypatch):
    land, drawn = make_sample.Land(art), []
    monkeypatch.setattr(
        make_sample, "draw", lambda path, hue: drawn.append(path) or draw(path, hue)
    )
    seen = {"train": set(), "test": set()}
    for picture in make_sample.pictures(find_units(art), [4, 4, 4]):
        picture.make(land)
        seen[picture.split].add(drawn[-1])
    assert seen["train"].isdisjoint(seen["test"])
    assert len(seen["train"]) > 6


def test_same_art_gives_same_bytes(art, tmp_path):
    known = [1, 2, 4]
    numbers = make_sample.build(art, tmp_path / "a", known=known)
    make_sample.build(art, tmp_path / "b", known=known)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert numbers["train pictures"] == 11
    assert numbers["train pictures of new_whale"] == 4
    assert {r["Id"] for r in rows("solution.csv", tmp_path / "a")} >= {"new_whale"}


def test_missing_art_second_build_and_too_few_units_are_said(art, tmp_path):
    with pytest.raises(FileNotFoundError, match="data/core/images"):
        make_sample.build(tmp_path / "nothing", tmp_path / "a")
    (tmp_path / "b/train").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="--out"):
        make_sample.build(art, tmp_path / "b")
    with pytest.raises(ValueError, match="the art has 12"):
        make_sample.build(art, tmp_path / "c", known=[1] * 12)
