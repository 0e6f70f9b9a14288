"""Composition of scenes from sprites: naive twins, determinism, odd files."""

import cv2
import numpy as np
import pytest

from common.data import sample as compo


def draw(path, sprite):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), sprite)


def paste_slowly(canvas, sprite, x, y):
    """Pixel by pixel; a missing pixel is skipped."""
    canvas = canvas.copy()
    left, top = round(x - sprite.shape[1] / 2), round(y - sprite.shape[0])
    for row in range(sprite.shape[0]):
        for column in range(sprite.shape[1]):
            r, c = top + row, left + column
            if 0 <= r < canvas.shape[0] and 0 <= c < canvas.shape[1]:
                alpha = sprite[row, column, 3]
                canvas[r, c] = sprite[row, column, :3] + (1 - alpha) * canvas[r, c]
    return canvas


def random_sprite(rng, height, width):
    sprite = rng.random((height, width, 4), dtype=np.float32)
    sprite[..., :3] *= sprite[..., 3:]
    return sprite


def test_paste_is_the_slow_one_wherever_it_lands():
    rng = np.random.default_rng(0)
    for _ in range(60):
        canvas = rng.random((9, 7, 3), dtype=np.float32)
        sprite = random_sprite(rng, *rng.integers(1, 13, 2))
        x, y = rng.uniform(-15, 25, 2)
        expected = paste_slowly(canvas, sprite, x, y)
        rows, columns = compo.paste(canvas, sprite, x, y)
        assert np.allclose(canvas, expected, atol=1e-6)
        assert 0 <= rows.start <= rows.stop <= 9
        assert 0 <= columns.start <= columns.stop <= 7


def test_a_view_never_leaves_the_canvas():
    rng = np.random.default_rng(1)
    for _ in range(300):
        canvas = rng.integers(8, 300, 2)
        center, size = rng.uniform(-100, 400, 2), rng.uniform(4, 500, 2)
        corners = compo.view(tuple(canvas), tuple(center), tuple(size), rng, roll=30, tilt=0.2)
        assert corners.min() >= 0
        assert (corners <= canvas - 1).all()
    square = compo.view((100, 100), (50, 50), (20, 10), rng, roll=0, tilt=0)
    assert np.allclose(square, [[40, 45], [60, 45], [60, 55], [40, 55]])
    moved = compo.view((100, 100), (-9, 400), (20, 10), rng, roll=0, tilt=0)
    assert np.allclose(moved, [[0, 89], [20, 89], [20, 99], [0, 99]])


def test_a_photograph_of_an_upright_view_is_a_crop():
    canvas = compo.smooth_noise((60, 80), 20, compo.stream("crop"))
    canvas = np.repeat(canvas[..., None], 3, axis=2)
    corners = np.array([[10, 5], [50, 5], [50, 35], [10, 35]], np.float32)
    picture = compo.photograph(canvas, corners, (40, 30))
    assert np.allclose(picture, canvas[5:35, 10:50], atol=1e-3)
    with pytest.raises(ValueError, match="leaves the canvas"):
        compo.photograph(canvas, corners + 40, (40, 30))


def test_compose_leaves_out_what_would_hide_the_subject():
    full = np.ones((10, 10, 4), np.float32)
    half, red = full[:, :5], full * np.array([0, 0, 1, 1], np.float32)
    subject = compo.Prop(red, 20, 20)
    canvas = np.zeros((40, 40, 3), np.float32)
    assert compo.compose(canvas, [compo.Prop(full, 20, 21)], subject, max_hidden=0.5) == 0
    assert np.array_equal(canvas[10:20, 15:25], red[..., :3])
    cover = compo.Prop(half, 17.5, 20.5)
    canvas = np.zeros((40, 40, 3), np.float32)
    assert compo.compose(canvas, [cover], subject, max_hidden=0.5) == pytest.approx(0.5)
    assert np.array_equal(canvas[10:20, 15:20], half[..., :3])
    behind = np.zeros((40, 40, 3), np.float32)
    assert compo.compose(behind, [compo.Prop(full, 20, 19)], subject, max_hidden=0) == 0
    assert np.array_equal(behind[10:20, 15:25], red[..., :3])


def test_light_and_camera_are_deterministic_and_stay_in_range():
    picture = compo.stream("picture").random((40, 60, 3), dtype=np.float32)
    for change in (compo.relight, compo.degrade):
        for seed in range(20):
            changed = change(picture, compo.stream(seed))
            assert np.array_equal(changed, change(picture, compo.stream(seed)))
            assert changed.shape == picture.shape
            assert changed.min() >= 0
            assert changed.max() <= 1
        assert not np.array_equal(
            change(picture, compo.stream(0)), change(picture, compo.stream(1))
        )
    for flat in (np.zeros((8, 8, 3), np.float32), np.ones((8, 8, 3), np.float32)):
        assert np.isfinite(compo.relight(flat, compo.stream("flat"))).all()


def test_keys():
    assert compo.digest("ab", "c") != compo.digest("a", "bc")
    assert len(compo.digest("a")) == 16
    assert compo.stream("a", 1).random() == compo.stream("a", 1).random()
    assert compo.stream("a", 1).random() != compo.stream("a", 2).random()


def test_shrinking_leaves_no_dark_fringe():
    sprite = np.zeros((40, 40, 4), np.float32)
    sprite[10:31, 9:30] = 1
    small = compo.resize(sprite, 0.37)
    assert small.shape[:2] == (15, 15)
    assert np.allclose(small[..., :3], small[..., 3:], atol=1e-6)
    assert compo.resize(sprite, 0.001).shape == (1, 1, 4)


def test_trim_over_and_shadow():
    sprite = np.zeros((20, 30, 4), np.float32)
    sprite[5:9, 7:20] = (0.5, 0.25, 0.0, 0.5)
    assert compo.trim(sprite).shape == (4, 13, 4)
    assert np.allclose(compo.over(sprite, sprite)[6, 10], (0.75, 0.375, 0, 0.75))
    cast = compo.shadow(compo.trim(sprite), slope=-0.5, length=0.5, darkness=0.3)
    assert cast.shape == (2, 15, 4)
    assert not cast[..., :3].any()
    assert 0 < cast[..., 3].max() <= 0.3
    with pytest.raises(ValueError, match="cannot be stacked"):
        compo.over(sprite, sprite[:5])
    with pytest.raises(ValueError, match="alpha above"):
        compo.trim(np.zeros((3, 3, 4), np.float32))


def test_sprites_of_any_depth(tmp_path):
    gray = np.full((4, 5), 128, np.uint8)
    deep = np.full((4, 5, 4), 32768, np.uint16)
    draw(tmp_path / "gray.png", gray)
    draw(tmp_path / "deep.png", deep)
    assert np.allclose(compo.read_sprite(tmp_path / "gray.png")[0, 0], (*[128 / 255] * 3, 1))
    assert np.allclose(
        compo.read_sprite(tmp_path / "deep.png")[0, 0], (0.25, 0.25, 0.25, 0.5), 1e-4
    )
    draw(tmp_path / "clear.png", np.zeros((4, 5, 4), np.uint8))
    with pytest.raises(ValueError, match=r"clear.png: .* transparent"):
        compo.read_sprite(tmp_path / "clear.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text.png cannot be decoded"):
        compo.read_sprite(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"none.png"):
        compo.read_sprite(tmp_path / "none.png")


def test_a_jpeg_decodes_to_its_picture():
    picture = np.repeat(compo.smooth_noise((50, 70), 25, compo.stream("jpeg"))[..., None], 3, 2)
    data = compo.encode_jpeg(picture, 95)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) / 255
    assert np.abs(decoded - picture).max() < 0.05
    assert len(compo.encode_jpeg(picture, 60)) < len(data)
