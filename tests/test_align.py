"""Alignment by points: layout, least squares against a loop, pictures; one box of several."""

import cv2
import numpy as np
import pytest
import torch

from common.data.align import Layout, frame_of, frames, mean_layout
from common.data.crops import BoxMix
from common.data.dataset import ImageDataset
from common.data.draws import frequent
from common.data.images import Frame, ImageError, read_image
from common.types import Table

SQUARE = np.array([[0.0, 0], [40, 0], [40, 20], [0, 20]])


def moved(points, degrees=0.0, scale=1.0, shift=(0.0, 0.0)):
    a = np.radians(degrees)
    turn = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return points @ turn.T + shift


def cloud(seed=0, images=6):
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            moved(
                SQUARE + rng.normal(0, 1.5, (4, 2)),
                rng.uniform(-20, 20),
                rng.uniform(1, 3),
                (50, 60),
            )
            for _ in range(images)
        ]
    )


# --- layout and frames


def test_the_layout_is_the_mean_of_shapes_of_one_size():
    points = np.stack([moved(SQUARE, 0, s, (9, 5)) for s in (0.5, 1, 7)])
    layout = mean_layout(points)
    np.testing.assert_allclose(layout.points / layout.points.max(), SQUARE / 40)
    np.testing.assert_allclose(layout.size[0], 2 * layout.size[1])


def test_missing_points_have_no_say_in_the_layout():
    points = cloud()
    expected = mean_layout(points[:4])
    points[4, 2] = np.nan
    points[5] = np.nan
    np.testing.assert_allclose(mean_layout(points).points, expected.points)


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_frames_are_the_least_squares_of_numpy_on_each_image(margin):
    points = cloud(1)
    points[3, 1] = np.nan  # three points are left: exact
    layout = mean_layout(cloud(1))
    found = frames(points, layout, margin=margin)
    for row, mine in zip(found, points, strict=True):
        frame, known = frame_of(row), np.isfinite(mine).all(1)
        target = np.c_[layout.points[known], np.ones(known.sum())]
        wanted = np.linalg.lstsq(target, mine[known], rcond=None)[0].T  # layout -> picture
        for u, v in [(0, 0), (frame.width, 0), (frame.width, frame.height), (3, 5)]:
            unit = np.array([u / frame.width, v / frame.height])
            place = -margin * layout.size + unit * (1 + 2 * margin) * layout.size
            np.testing.assert_allclose(frame.matrix @ (u, v, 1), wanted @ (*place, 1), atol=1e-8)
        width = np.linalg.norm(wanted[:, 0]) * layout.size[0] * (1 + 2 * margin)
        assert abs(frame.width - width) <= 0.5


@pytest.mark.parametrize(
    ("points", "why"),
    [
        (np.full((4, 2), np.nan), "no points"),
        (np.r_[SQUARE[:2], np.full((2, 2), np.nan)], "two points"),
        (SQUARE[[1, 0, 3, 2]], "mirrored"),
        (np.repeat(SQUARE[:1], 4, 0), "one place"),
        (SQUARE * (1, 0), "a line"),
        (SQUARE * (1, 0.1), "stretched"),
        (SQUARE * 1e-3, "below a pixel"),
    ],
)
def test_points_that_cannot_be_trusted_give_no_frame(points, why):
    layout = mean_layout(np.stack([SQUARE, SQUARE]))
    found = frames(np.stack([points, SQUARE]), layout, margin=0.1)
    assert not found[0].any(), why
    assert found[1].any()
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((3, 2, 2)), "at least 3 points"),
        (np.full((3, 4, 2), np.nan), "nothing to align to"),
        (np.stack([SQUARE * (1, 0)] * 2), "on a line"),
        (np.ones((2, 4, 2)), "nothing to align to"),
    ],
)
def test_no_layout(points, message):
    with pytest.raises(ValueError, match=message):
        mean_layout(points)


# --- pictures


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A smooth picture of 120 x 160."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = str(tmp_path_factory.mktemp("align") / "a.png")
    cv2.imwrite(file, cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC))
    return file


def test_a_frame_without_a_turn_is_a_box(path):
    frame = Frame(np.array([[1.0, 0, 20], [0, 1.0, 10]]), 50, 30)
    assert np.array_equal(read_image(path, frame=frame), read_image(path, box=(20, 10, 70, 40)))


def test_a_quarter_turn_is_a_rotation_of_the_pixels(path):
    # u runs down the picture, v to the left: the rectangle is the picture turned by 90 degrees.
    frame = Frame(np.array([[0.0, -1, 70], [1.0, 0, 10]]), 30, 50)
    box = read_image(path, box=(20, 10, 70, 40))
    assert np.array_equal(read_image(path, frame=frame), np.rot90(box))


def test_reduced_decoding_keeps_the_place(tmp_path, path):
    large = cv2.resize(cv2.imread(path), (1280, 960), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "large.jpg"), large, [cv2.IMWRITE_JPEG_QUALITY, 98])
    frame = frame_of(
        frames(moved(SQUARE, 12, 16, (300, 200))[None], mean_layout(SQUARE[None]), margin=0)[0]
    )
    whole = read_image(tmp_path / "large.jpg", frame=frame)
    small = read_image(tmp_path / "large.jpg", frame=frame, size=80)
    assert whole.shape == (320, 640, 3)
    assert small.shape == (80, 160, 3)
    expected = cv2.resize(whole, (160, 80), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 2


def test_a_frame_outside_is_an_error_and_one_over_the_edge_is_black_there(path):
    with pytest.raises(ImageError, match="a frame around 510"):
        read_image(path, frame=Frame(np.array([[1.0, 0, 500], [0, 1.0, 10]]), 20, 30))
    edge = read_image(path, frame=Frame(np.array([[1.0, 0, 150], [0, 1.0, 10]]), 16, 30))
    assert (edge[:, 11:] == 0).all()
    assert edge[:, :10].any()


# --- in a dataset


def dataset(path, **options):
    paths = np.array([path] * 6, "S")
    return ImageDataset(paths, None, size=8, transform=lambda image: image, **options)


def sizes(data, row, draws=400):
    found = [tuple(data[row, stream << 20]["image"].shape[1:]) for stream in range(draws)]
    return {size: found.count(size) / draws for size in set(found)}


def test_the_box_of_each_draw_is_one_of_those_the_image_has(path):
    boxes = np.zeros((6, 2, 4))
    boxes[:, 0] = (0, 0, 30, 20)
    boxes[1:, 1] = (0, 0, 50, 40)
    boxes[2] = 0
    mix = BoxMix(boxes, np.array([0.6, 0.3]), 0.1)
    data = dataset(path, mix=mix)
    whole, first, second = (120, 160), (20, 30), (40, 50)
    for row, wanted in (
        (0, {first: 6 / 7, whole: 1 / 7}),
        (1, {first: 0.6, second: 0.3, whole: 0.1}),
        (2, {whole: 1.0}),
    ):
        found = sizes(data, row)
        assert set(found) == set(wanted)
        for size, share in wanted.items():
            assert abs(found[size] - share) < 0.08
    assert sizes(dataset(path, mix=BoxMix(boxes[:, :1], np.array([1.0]))), 2) == {whole: 1.0}
    assert torch.equal(data[1, 5]["image"], data[1, 5]["image"])


def test_aligned_as_often_as_wished_and_else_the_box(path):
    boxes = np.tile([0.0, 0, 30, 20], (6, 1))
    layout = mean_layout(SQUARE[None])
    points = np.stack([moved(SQUARE, 5, 1, (40, 40))] * 5 + [moved(SQUARE, 5, 1, (4000, 40))])
    frame = frames(points, layout, margin=0)
    frame[1] = 0
    aligned, box = (20, 40), (20, 30)
    assert sizes(dataset(path, boxes=boxes, frames=frame), 0) == {aligned: 1.0}
    half = sizes(dataset(path, boxes=boxes, frames=frame, align=0.5), 0)
    assert 0.4 < half[aligned] < 0.6
    assert set(half) == {aligned, box}
    assert sizes(dataset(path, boxes=boxes, frames=frame, align=0.0), 0, 20) == {box: 1.0}
    for row in (1, 5):  # without points, and with points outside of the picture
        assert sizes(dataset(path, boxes=boxes, frames=frame), row, 20) == {box: 1.0}
    with pytest.raises(ValueError, match="how often"):
        dataset(path, frames=frame, align=1.5)


def test_some_rows_of_a_dataset_are_the_same_pictures(path):
    rng = np.random.default_rng(0)
    boxes = np.c_[np.zeros((6, 2)), rng.integers(5, 90, (6, 2))]
    mix = BoxMix(np.stack([boxes, boxes + 3], 1), np.array([0.5, 0.5]))
    data = ImageDataset(
        np.array([path] * 6, "S"),
        np.arange(6),
        size=8,
        transform=lambda image: image,
        mix=mix,
        mirror=np.arange(6) % 2 == 0,
        seed=3,
    )
    rows = np.array([4, 1, 4])
    part = data.take(rows)
    assert len(part) == 3
    for new, old in enumerate(rows):
        one, other = part[new, 77], data[int(old), 77]
        assert torch.equal(one["image"], other["image"])
        assert one["label"] == other["label"]


@pytest.mark.parametrize(
    ("boxes", "shares", "whole"),
    [((4, 2, 4), [1.0], 0), ((4, 1, 4), [0.0], 0), ((4, 1, 4), [-1.0], 2), ((4, 4), [1.0], 0)],
)
def test_bad_mixes(boxes, shares, whole):
    with pytest.raises(ValueError, match="shares"):
        BoxMix(np.zeros(boxes), np.array(shares), whole)


def test_frames_follow_the_rows_of_a_table():
    def table(name, frames=None):
        return Table(np.array([name]), np.array([name.encode()]), np.array([0]), frames=frames)

    both = Table.concatenate([table("a", np.ones((1, 8))), table("b")])
    assert both.frames.tolist() == [[1] * 8, [0] * 8]
    assert both.take(np.array([1, 0])).frames[:, 0].tolist() == [0, 1]
    assert Table.concatenate([table("a"), table("b")]).frames is None
    assert isinstance(mean_layout(SQUARE[None]), Layout)


def test_frequent_classes_and_the_unknown_are_kept():
    labels = np.array([0, 1, 1, -1, 2, 2, 2, 0])
    assert frequent(labels, 3).tolist() == [3, 4, 5, 6]
    assert frequent(labels, 2).tolist() == list(range(8))
    with pytest.raises(ValueError, match="largest class has 3"):
        frequent(labels, 4)
