"""The bundled landmarks sample and its builder."""

import csv
import statistics
import subprocess
import sys
from collections import Counter
from itertools import combinations, permutations
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.data import sample as compo
from common.paths import REPOSITORY
from competitions.landmarks.make_sample import build
from competitions.landmarks.scenery.art import Art
from competitions.landmarks.scenery.ground import KINDS, ROTATIONS, paint_ground
from competitions.landmarks.scenery.plan import Counts, plan, share_takes
from competitions.landmarks.scenery.scenes import LONGEST, empty_scene, landmark_scene
from competitions.landmarks.scenery.takes import Building, Take, cut, find_buildings

SAMPLE = REPOSITORY / "competitions" / "landmarks" / "sample"
TINY = Counts(train=16, index=12, test=4, non_landmark=2)


# ---------------------------------------------------------------- what is committed


def table(name):
    with open(SAMPLE / name, newline="") as file:
        return list(csv.DictReader(file))


def where(split, name):
    return SAMPLE / split / name[0] / name[1] / name[2] / f"{name}.jpg"


@pytest.fixture(scope="module")
def rows():
    names = ["train", "non_landmark"]
    names += [f"{task}_solution_v2.1" for task in ("recognition", "retrieval")]
    names += [f"{task}_sample_submission" for task in ("recognition", "retrieval")]
    return {name: table(f"{name}.csv") for name in names}


@pytest.fixture(scope="module")
def index_ids():
    return sorted(path.stem for path in (SAMPLE / "index").glob("*/*/*/*.jpg"))


def test_headers_are_those_of_the_competition(rows):
    assert list(rows["train"][0]) == ["id", "landmark_id"]
    assert list(rows["non_landmark"][0]) == ["id"]
    assert list(rows["recognition_solution_v2.1"][0]) == ["id", "landmarks", "Usage"]
    assert list(rows["retrieval_solution_v2.1"][0]) == ["id", "images", "Usage"]
    assert list(rows["recognition_sample_submission"][0]) == ["id", "landmarks"]
    assert list(rows["retrieval_sample_submission"][0]) == ["id", "images"]


def test_every_id_is_a_picture_and_every_picture_an_id(rows, index_ids):
    train = [row["id"] for row in rows["train"] + rows["non_landmark"]]
    test = [row["id"] for row in rows["recognition_solution_v2.1"]]
    assert len({*train, *test, *index_ids}) == len(train) + len(test) + len(index_ids)
    found = {path.relative_to(SAMPLE).as_posix() for path in SAMPLE.rglob("*.jpg")}
    named = {"train": train, "test": test, "index": index_ids}
    wanted = {
        where(split, i).relative_to(SAMPLE).as_posix() for split in named for i in named[split]
    }
    assert found == wanted
    assert all(len(i) == 16 and set(i) <= set("0123456789abcdef") for i in [*train, *test])
    shapes = set()
    for path in found:
        data = (SAMPLE / path).read_bytes()
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None, path
        assert max(picture.shape) <= LONGEST[1], path
        assert b"Exif" not in data, path
        assert picture.std() > 5, f"{path} shows nothing"
        shapes.add(picture.shape[0] > picture.shape[1])
    assert shapes == {True, False}


def test_size_on_disk():
    files = [path for path in SAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_submissions_and_solutions_name_the_same_queries(rows, index_ids):
    queries = [row["id"] for row in rows["recognition_solution_v2.1"]]
    assert queries == sorted(queries)
    for name in rows.keys() - {"train", "non_landmark"}:
        assert [row["id"] for row in rows[name]] == queries
    labels = {row["landmark_id"] for row in rows["train"]}
    for row in rows["recognition_sample_submission"]:
        label, score = row["landmarks"].split()
        assert label in labels
        assert float(score) > 0
    for row in rows["retrieval_sample_submission"]:
        assert set(row["images"].split()) <= set(index_ids)


def test_long_tail(rows):
    sizes = Counter(row["landmark_id"] for row in rows["train"]).values()
    assert min(sizes) >= 2
    assert 20 <= max(sizes) <= 30
    assert 5 <= statistics.median(sizes) <= 7
    assert len(rows["train"]) == 420
    assert 40 <= len(rows["non_landmark"]) <= 80


def test_solutions_agree_with_train_and_index(rows, index_ids):
    labels = {row["landmark_id"] for row in rows["train"]}
    assert all(label.isdigit() for label in labels)
    answers = Counter()
    for recognition, retrieval in zip(
        rows["recognition_solution_v2.1"], rows["retrieval_solution_v2.1"], strict=True
    ):
        assert recognition["Usage"] in ("Public", "Private")
        assert recognition["landmarks"] in {"", *labels}
        if retrieval["images"] == "None":
            assert retrieval["Usage"] == "Ignored"
        else:
            assert retrieval["Usage"] == recognition["Usage"]
            images = retrieval["images"].split()
            assert len(images) == len(set(images))
            assert set(images) <= set(index_ids)
            answers[retrieval["images"]] += 1
    groups = [set(images.split()) for images in answers]
    assert not any(a & b for a, b in combinations(groups, 2)), "an index picture with two buildings"


def test_a_third_is_unseen_and_two_thirds_of_test_show_no_landmark(rows):
    seen = {row["landmark_id"] for row in rows["train"]}
    unseen, known, landmarks, public = set(), {}, 0, 0
    solutions = zip(rows["recognition_solution_v2.1"], rows["retrieval_solution_v2.1"], strict=True)
    for recognition, retrieval in solutions:
        public += recognition["Usage"] == "Public"
        landmarks += bool(recognition["landmarks"]) or retrieval["images"] != "None"
        if recognition["landmarks"] and retrieval["images"] != "None":
            known[retrieval["images"]] = recognition["landmarks"]
        elif retrieval["images"] != "None":
            unseen.add(retrieval["images"])
    total = len(rows["recognition_solution_v2.1"])
    assert not unseen & known.keys(), "a building both in train and not in train"
    assert len(set(known.values())) == len(known)
    assert len(seen) + len(unseen) >= 80
    assert len(unseen) == round((len(seen) + len(unseen)) / 3)
    assert total == 3 * landmarks
    assert 0.25 < public / total < 0.41


def test_the_readme_and_the_license_say_what_is_there(rows, index_ids):
    text = (SAMPLE / "README.md").read_text()
    assert f"| train pictures | {len(rows['train'])} |" in text
    assert f"| index pictures | {len(index_ids)} |" in text
    license_text = (SAMPLE / "LICENSE").read_text()
    for words in ("Unknown Horizons Team", "Lamoot", "licenses/by-sa/3.0/legalcode", "changed"):
        assert words in license_text


# ---------------------------------------------------------------- the builder on made-up art


def diamond(color, size=64):
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    sprite = np.zeros((size, size, 4), np.uint8)
    sprite[abs(2 * rows) + abs(columns) <= 1] = (*color, 255)
    return sprite


def house(color, mark, size=64):
    sprite = diamond(color, size)
    sprite[size // 4 : size // 2, size // 4 : 3 * size // 4] = (*color[::-1], 255)
    sprite[30:34, 20 + mark % 24] = (255, 255, mark, 255)
    return sprite


def draw(path, sprite):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), sprite)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Eight still buildings, one animated and one that looks the same from all sides."""
    gfx = tmp_path_factory.mktemp("content") / "gfx"
    colors = {"ts_grass0": (30, 150, 60), "ts_beach0": (140, 200, 220), "ts_deep0": (160, 80, 20)}
    colors |= {"ts_grass-beach0": (90, 180, 150), "ts_shallow-deep0": (160, 120, 60)}
    for number, rotation in enumerate(ROTATIONS):
        for name, color in colors.items():
            draw(gfx / f"base/moderate/{name}/straight/{rotation}/0.png", diamond(color))
        for kind in ("oak", "elm", "fir"):
            tree = diamond((10, 80, len(kind) * 10 + number), 32)
            draw(gfx / f"terrain/trees/as_{kind}0/idle_full/{rotation}/0.png", tree)
        draw(gfx / f"units/animals/as_deer0/idle/{rotation}/0.png", diamond((9, 60, 120), 16))
        draw(gfx / f"units/ships/x/as_boat0/idle/{rotation}/0.png", diamond((50, 60, 99), 48))
        draw(gfx / f"buildings/town/streets/as_path/ac/{rotation}/0.png", diamond((99, 99, 99)))
        for n in range(8):
            sprite = house((20 + 28 * n, 240 - 25 * n, 128), 40 * number + n)
            draw(gfx / f"buildings/town/as_house{n}/idle/{rotation}/0.png", sprite)
        draw(gfx / f"buildings/town/as_tower/idle/{rotation}/0.png", house((9, 9, 200), 3))
        for frame in range(12):
            sprite = house((200, 30, 30), 60 * number + frame)
            draw(gfx / f"buildings/town/as_mill/work/{rotation}/{frame:03}.png", sprite)
        # At rest it looks like the first frame, but from one side like one that no take may use.
        rest = house((200, 30, 30), 60 * number + (3 if number == 2 else 0))
        draw(gfx / f"buildings/town/as_mill/idle/{rotation}/0.png", rest)
    return gfx.parent


def test_a_second_run_gives_the_same_bytes(content, tmp_path):
    numbers = build(content, tmp_path / "a", counts=TINY)
    again = build(content, tmp_path / "b", counts=TINY)
    assert numbers == again
    assert numbers["train pictures"] == TINY.train
    assert numbers["test pictures without a landmark"] == 2 * TINY.test
    assert numbers["buildings only in index and test"] == 3
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second
    assert len(first) == TINY.train + TINY.index + TINY.non_landmark + 3 * TINY.test + 8


def place(frame):
    """(action, rotation, number of the frame)."""
    return frame[0].parents[1].name, frame[0].parent.name, int(frame[0].stem)


def look(frames):
    """What the frames look like."""
    return {frame[0].read_bytes() for frame in frames}


def neighbors(frames):
    """The frames and those beside them: `work` is a loop of 12, everything else stands alone."""
    near = set(frames)
    for frame in frames:
        action, _, number = place(frame)
        if action == "work":
            near |= {(frame[0].with_name(f"{(number + n) % 12:03}.png"),) for n in (-1, 1)}
    return near


@pytest.mark.parametrize("train", [16, 60])
def test_no_drawing_and_no_neighboring_frames_on_both_sides(content, train):
    buildings = find_buildings(content)
    plan(buildings, Counts(train=train, index=20, test=12, non_landmark=0))
    assert {building.name for building in buildings} >= {"town/as_mill", "town/as_tower"}
    for building in buildings:
        used = {split for split, amount in building.pictures.items() if amount}
        assert used == set(building.shares)
        frames = {s: [f for take in t for f in take.frames] for s, t in building.shares.items()}
        assert all(frames.values())
        for one, other in permutations(frames, 2):
            assert not look(neighbors(frames[one])) & look(frames[other])


@pytest.mark.parametrize("rotations", [[0, 1, 2], [0, 1, 3], [0, 0, 0], [1, 1, 2, 2], [0, 1, 2, 3]])
def test_every_split_with_pictures_gets_a_take(rotations):
    for name in range(30):
        takes = [Take(rotation, [(Path(str(n)),)]) for n, rotation in enumerate(rotations)]
        building = Building(str(name), takes, {"train": 2, "index": 1, "test": 1})
        share_takes(building)
        assert sorted(map(len, building.shares.values())) in ([1, 1, 1], [1, 1, 2])
        given = [take.frames for share in building.shares.values() for take in share]
        assert sorted(given) == [take.frames for take in takes]


def test_takes_of_the_made_up_art(content):
    by_name = {building.name: building for building in find_buildings(content)}
    assert len(by_name["town/as_tower"].takes) == 1
    assert by_name["town/as_house0"].rotations == [0, 1, 2, 3]
    # 12 frames: 0-2, 4-6, 8-10, with idle (equal to frame 0) in the first take.
    mill = [take for take in by_name["town/as_mill"].takes if take.rotation == 1]
    names = [[place(frame)[::2] for frame in take.frames] for take in mill]
    assert names == [
        [("idle", 0), ("work", 0), ("work", 1), ("work", 2)],
        [("work", 4), ("work", 5), ("work", 6)],
        [("work", 8), ("work", 9), ("work", 10)],
    ]
    mill = [take for take in by_name["town/as_mill"].takes if take.rotation == 2]
    assert [len(take.frames) for take in mill] == [3, 3, 3]


@pytest.mark.parametrize("n", range(30))
def test_runs_are_apart_also_around_the_end_of_the_loop(n):
    frames = [(Path(str(k)),) for k in range(n)]
    runs = [[int(frame[0].name) for frame in run] for run in cut(frames)]
    assert len(runs) == (0 if n == 0 else 1 if n < 4 else 2 if n < 6 else 3)
    for one, other in combinations(runs, 2):
        assert all((a - b) % n not in (0, 1, n - 1) for a in one for b in other)


def test_the_halves_of_the_art_share_no_species(content):
    art = Art.read(content)
    low, high = art.half(0), art.half(1)
    assert sorted(low.groups["trees"]) == ["as_fir0"]
    assert sorted(high.groups["trees"]) == ["as_elm0", "as_oak0"]
    assert (low.groups["animals"], len(high.groups["animals"])) == ({}, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_ground_covers_the_canvas(content, kind):
    art = Art.read(content)
    for seed in range(20):
        ground = paint_ground(art, (150, 90), compo.stream(kind, seed), kind=kind, clear=1.0)
        assert ground.canvas.shape == (90, 150, 3)
        assert np.isfinite(ground.canvas).all()
        assert ground.wet(75, 45) == (kind == "sea"), "a building would stand in the water"
        sides = [(0.9, 0), (-0.9, 0), (0, 0.9), (0, -0.9)]
        nearest = max(ground.shore.place(i, j)[0] for i, j in sides)
        assert nearest < 0 or kind in ("sea", "sand"), "the shore is nearer than clear"
    with pytest.raises(ValueError, match="lava"):
        paint_ground(art, (150, 90), compo.stream(0), kind="lava", clear=1.0)


def test_scenes_depend_on_their_seed_only(content):
    art = Art.read(content)
    frame = compo.read_sprite(content / "gfx/buildings/town/as_house3/idle/45/0.png")
    for scene in (lambda rng: landmark_scene(art, frame, rng), lambda rng: empty_scene(art, rng)):
        one, same, other = (scene(compo.stream(seed)) for seed in (5, 5, 6))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)
        assert LONGEST[0] <= max(one.shape) <= LONGEST[1]
        assert one.dtype == np.float32
        assert one.min() >= 0
        assert one.max() <= 1


def test_wrong_folders_are_named(content, tmp_path):
    with pytest.raises(FileNotFoundError, match="ts_grass"):
        build(tmp_path, tmp_path / "out", counts=TINY)
    draw(tmp_path / "gfx/base/moderate/ts_grass0/straight/45/0.png", diamond((1, 99, 1)))
    with pytest.raises(FileNotFoundError, match="buildings"):
        build(tmp_path, tmp_path / "out", counts=TINY)
    (tmp_path / "full" / "train").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="full"):
        build(content, tmp_path / "full", counts=TINY)


def test_the_command_says_what_is_wrong(tmp_path):
    command = [sys.executable, str(SAMPLE.parent / "make_sample.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: No ground tiles")
    assert "Traceback" not in done.stderr
