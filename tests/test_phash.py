"""The DCT hash against its definition written out, and its hex text."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from common.data.dedupe import near_duplicates
from common.data.phash import dct_hash, dct_hashes, hash_distance, hash_text, hash_values


def by_definition(image):
    """Sums of the cosine transform term by term, bits joined as text."""
    grey = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    cells = [[grey.getpixel((x, y)) for x in range(32)] for y in range(32)]
    wave = [[math.cos(math.pi * k * (2 * n + 1) / 64) for n in range(32)] for k in range(8)]
    low = [
        round(sum(cells[y][x] * wave[v][y] * wave[u][x] for y in range(32) for x in range(32)), 6)
        for v in range(8)
        for u in range(8)
    ]
    middle = sum(sorted(low)[31:33]) / 2
    return f"{int(''.join('1' if value > middle else '0' for value in low), 2):016x}"


def photo(seed, shape=(90, 70)):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("shape", [(90, 70), (32, 32), (1, 1), (3, 200), (257, 31)])
def test_hash_is_its_definition(shape):
    for seed in range(3):
        image = photo(seed, shape)
        assert hash_text(dct_hash(image)) == by_definition(image)


def test_one_color_is_one_hash_whatever_the_color():
    for level in (0, 1, 77, 255):
        image = np.full((50, 40, 3), level, np.uint8)
        assert hash_text(dct_hash(image)) == ("8000000000000000" if level else "0000000000000000")


def test_resized_recompressed_and_brighter_is_near_another_is_far():
    image = photo(1, (200, 160))
    data = cv2.imencode(".jpg", cv2.resize(image, (120, 150)), [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    again = cv2.convertScaleAbs(cv2.imdecode(data, cv2.IMREAD_COLOR), alpha=0.8, beta=20)
    hashes = np.array([dct_hash(i) for i in (image, again, photo(2), image[:, ::-1].copy())])
    near, far, mirrored = hash_distance(hashes, np.array([[0, 1], [0, 2], [0, 3]])).tolist()
    assert near <= 4
    assert min(far, mirrored) > 15
    assert near_duplicates(hashes, 4).tolist() == [[0, 1]]


def test_files_in_any_number_give_the_hashes_one_by_one(tmp_path):
    paths = []
    for seed in range(5):
        paths.append(tmp_path / f"{seed}.png")
        cv2.imwrite(str(paths[-1]), photo(seed)[..., ::-1])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    paths.insert(2, tmp_path / "broken.jpg")
    hashes, readable = dct_hashes([str(p) for p in paths] * 60, workers=2)
    assert readable.reshape(60, 6).all(0).tolist() == [True, True, False, True, True, True]
    one_by_one = [int(dct_hash(photo(seed))) for seed in range(5)]
    assert hashes[:6].tolist() == [*one_by_one[:2], 0, *one_by_one[2:]]
    assert (hashes.reshape(60, 6) == hashes[:6]).all()
    nothing, none = dct_hashes([])
    assert len(nothing) == len(none) == 0


def test_text_goes_there_and_back():
    values = np.array([0, 1, 2**63, 2**64 - 1, 0x94974F937D4C2433], np.uint64)
    texts = [hash_text(v) for v in values]
    assert texts[-1] == "94974f937d4c2433"
    np.testing.assert_array_equal(hash_values(texts), values)
    np.testing.assert_array_equal(hash_values([texts[-1].upper()]), values[-1:])
    for bad in ("94974f93", "94974f937d4c243g", "0x974f937d4c2433", "-4974f937d4c2433"):
        with pytest.raises(ValueError, match="row 1"):
            hash_values([texts[0], bad])


def test_what_is_no_color_image_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        dct_hash(np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        dct_hash(np.zeros((0, 8, 3), np.uint8))
