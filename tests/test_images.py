"""Every kind of picture file becomes (H, W, 3) uint8 RGB, or one ImageError that names it."""

import os
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from common.data.images import ImageError, read_image


@pytest.fixture(scope="module")
def scene():
    """Smooth colours with an edge, 120 x 160, different in all four corners."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC)
    picture[:40, :30] = (250, 10, 60)
    return Image.fromarray(picture)


def block_mean(picture, scale):
    """Slow twin of the DCT scaling: the mean of each scale x scale block."""
    rows, columns = picture.shape[0] // scale, picture.shape[1] // scale
    blocks = picture[: rows * scale, : columns * scale].astype(np.float64)
    return blocks.reshape(rows, scale, columns, scale, 3).mean(axis=(1, 3))


def save(path, picture, **options):
    picture.save(path, **options)
    return path


# -- what comes back, with Pillow as the oracle ----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("rgb.jpg", "RGB"),
        ("grey.jpg", "L"),
        ("cmyk.jpg", "CMYK"),
        ("palette.png", "P"),
        ("bits.png", "1"),
        ("grey_alpha.png", "LA"),
        ("alpha.png", "RGBA"),
        ("plain.bmp", "RGB"),
        ("plain.tiff", "RGB"),
        ("plain.gif", "P"),
    ],
)
def test_modes_equal_pillow(tmp_path, scene, name, mode):
    path = save(tmp_path / name, scene.convert(mode))
    picture = read_image(path)
    with Image.open(path) as file:
        expected = np.asarray(file.convert("RGB"))
    assert picture.shape == (120, 160, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert np.abs(picture.astype(int) - expected).max() <= 1  # CMYK rounds differently


def test_progressive_jpeg(tmp_path, scene):
    path = save(tmp_path / "a.jpg", scene, progressive=True)
    with Image.open(path) as file:
        np.testing.assert_array_equal(read_image(path), np.asarray(file))


def test_alpha_is_dropped(tmp_path, scene):
    clear = scene.convert("RGBA")
    clear.putalpha(0)
    path = save(tmp_path / "clear.png", clear)
    np.testing.assert_array_equal(read_image(path), np.asarray(scene))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bit_keeps_the_high_byte(tmp_path, shape, suffix):
    deep = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    path = tmp_path / f"deep{suffix}"
    cv2.imwrite(str(path), deep)
    expected = deep[..., None].repeat(3, 2) if deep.ndim == 2 else deep[..., ::-1]
    assert np.abs(read_image(path).astype(int) - (expected >> 8)).max() <= 1


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animation_gives_the_first_frame(tmp_path, scene, suffix):
    frames = [scene, ImageOps.invert(scene), ImageOps.mirror(scene)]
    frames = [frame.convert("P").convert("RGB") for frame in frames]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"moving{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    difference = np.abs(read_image(path).astype(int) - np.asarray(frames[0]))
    assert difference.mean() < 3


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp"])
@pytest.mark.parametrize("size", [None, 1, 224])
def test_one_pixel(tmp_path, suffix, size):
    path = save(tmp_path / f"dot{suffix}", Image.new("RGB", (1, 1), (200, 30, 90)))
    picture = read_image(path, size=size)
    assert picture.shape == (1, 1, 3)
    assert np.abs(picture[0, 0].astype(int) - (200, 30, 90)).max() <= 20


@pytest.mark.parametrize("size", [None, 30])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, scene, orientation, size):
    exif = Image.Exif()
    exif[0x112] = orientation
    path = save(tmp_path / "turned.jpg", scene, exif=exif, quality=95)
    with Image.open(path) as file:
        upright = np.asarray(ImageOps.exif_transpose(file))
    picture = read_image(path, size=size)
    if size is None:
        np.testing.assert_array_equal(picture, upright)
    else:
        assert picture.shape == (upright.shape[0] // 4, upright.shape[1] // 4, 3)
        assert np.abs(picture - block_mean(upright, 4)).mean() < 3


@pytest.mark.parametrize("kind", [str, os.fsencode, lambda path: path])
def test_kinds_of_path(tmp_path, scene, kind):
    (tmp_path / "in").mkdir()
    save(tmp_path / "ü.png", scene)
    path = tmp_path / "in" / ".." / "ü.png"
    np.testing.assert_array_equal(read_image(kind(path)), np.asarray(scene))


# -- reduced scale ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scale"),
    [(None, 1), (120, 1), (61, 1), (60, 2), (31, 2), (30, 4), (16, 4), (15, 8), (1, 8)],
)
def test_reduced_decode_covers_size_and_is_an_area_mean(tmp_path, scene, size, scale):
    path = save(tmp_path / "a.jpg", scene, quality=95)
    picture = read_image(path, size=size)
    assert picture.shape == (120 // scale, 160 // scale, 3)
    expected = block_mean(read_image(path), scale)
    difference = np.abs(picture - expected)
    assert difference.mean() < 2.5
    # Colour channels must not be swapped by the reduced path: they differ by far more than this.
    assert np.abs(picture.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))).max() < 2


@pytest.mark.parametrize("side", range(57, 75))
def test_odd_sizes_still_cover_the_short_side(tmp_path, side):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (side, 200)))
    for size in (7, 8, 15, 16, 29, 30, 31, 33):
        assert min(read_image(path, size=size).shape[:2]) >= size


def test_other_formats_come_whole(tmp_path, scene):
    path = save(tmp_path / "a.png", scene)
    assert read_image(path, size=10).shape == (120, 160, 3)


# -- boxes -----------------------------------------------------------------------------------------


def test_box_equals_slice(tmp_path, scene):
    path = save(tmp_path / "a.png", scene)
    cut = read_image(path, box=(20, 10, 90, 70))
    np.testing.assert_array_equal(cut, np.asarray(scene)[10:70, 20:90])
    assert cut.base is None  # holding the box must not hold the whole picture


def test_box_sets_the_scale_and_keeps_its_place(tmp_path, scene):
    path = save(tmp_path / "a.jpg", scene, quality=95)
    box = (8, 16, 72, 112)  # 64 wide: for 32 pixels half the scale is enough, for 33 it is not
    whole = read_image(path, box=box)
    half = read_image(path, box=box, size=32)
    assert half.shape == (48, 32, 3)
    assert np.abs(half - block_mean(whole, 2)).mean() < 2.5
    np.testing.assert_array_equal(read_image(path, box=box, size=33), whole)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_box_is_in_upright_coordinates(tmp_path, scene, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    path = save(tmp_path / "turned.jpg", scene, exif=exif, quality=95)
    upright = read_image(path)
    box = (16, 48, 80, 112)
    np.testing.assert_array_equal(read_image(path, box=box), upright[48:112, 16:80])
    quarter = read_image(path, box=box, size=16)
    assert quarter.shape == (16, 16, 3)
    assert np.abs(quarter - block_mean(upright[48:112, 16:80], 4)).mean() < 4


def test_box_over_the_edge_is_cut_off(tmp_path, scene):
    path = save(tmp_path / "a.png", scene)
    cut = read_image(path, box=(-50, 100, 40, 900))
    np.testing.assert_array_equal(cut, np.asarray(scene)[100:, :40])
    path = save(tmp_path / "a.jpg", scene)
    assert min(read_image(path, box=(130, 0, 9000, 120), size=30).shape[:2]) >= 30


@pytest.mark.parametrize("box", [(10, 10, 10, 50), (50, 10, 40, 20), (160, 0, 200, 50)])
def test_empty_box(tmp_path, scene, box):
    path = save(tmp_path / "a.jpg", scene)
    with pytest.raises(ImageError, match=r"a\.jpg: box .* holds no pixel of 160 x 120"):
        read_image(path, box=box, size=8)


# -- files that give no picture --------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("size", [None, 20])
@pytest.mark.parametrize("name", ["a.jpg", "b.jpg", "a.png", "a.webp", "a.gif", "a.bmp"])
def test_truncated(tmp_path, scene, name, size, keep):
    path = save(tmp_path / name, scene, **({"progressive": True} if name == "b.jpg" else {}))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ImageError, match=rf"{name}: (truncated or corrupt|not an image)"):
        read_image(path, size=size)


def test_missing(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.jpg: No such file"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="null byte"):
        read_image(b"a\0b.jpg")


def test_folder(tmp_path):
    with pytest.raises(ImageError, match=f"{tmp_path.name}: Is a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404 Not Found</html>", "not an image"),
        (b"\xff\xd8\xff\xe0", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not an image"),
        (bytes(5000), "not an image"),
    ],
)
def test_not_an_image(tmp_path, data, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"a\.jpg: {reason}"):
        read_image(path)


@pytest.mark.parametrize("side", [12000, 60000])  # 144 and 3600 million pixels
def test_bomb_is_refused_before_it_is_decoded(tmp_path, scene, side):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    jpeg = save(tmp_path / "bomb.jpg", scene).read_bytes()
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg = jpeg[:frame] + struct.pack(">HH", side, side) + jpeg[frame + 4 :]
    (tmp_path / "bomb.jpg").write_bytes(jpeg)
    for name in ("bomb.png", "bomb.jpg"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match=rf"{name}: .*(pixels|bomb)"):
                read_image(tmp_path / name, size=20)


def test_max_pixels(tmp_path, scene):
    small = save(tmp_path / "a.jpg", scene)
    with pytest.raises(ImageError, match="160 x 120 pixels, more than max_pixels=19199"):
        read_image(small, max_pixels=160 * 120 - 1, size=8)
    assert read_image(small, max_pixels=160 * 120).shape == (120, 160, 3)


def test_opencv_stays_silent(tmp_path, scene, capfd):
    for name in ("a.tiff", "a.gif", "a.webp", "a.jpg"):
        path = save(tmp_path / name, scene)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ImageError):
            read_image(path)
    assert capfd.readouterr() == ("", "")
