"""Difference hashes, exact near-duplicate search, groups, and tables without copies."""

import cv2
import numpy as np
import pandas as pd
import pytest

from common.data import dedupe
from common.data.dedupe import (
    difference_hash,
    difference_hashes,
    drop_duplicates,
    duplicate_groups,
    near_duplicates,
)
from tests.oracles import dedupe as oracle

BIT = np.uint64(1) << np.arange(64, dtype=np.uint64)


def clustered(seed, centres=12, copies=8, flips=3):
    """Hashes in clusters: copies of a few centres with 0 to `flips` bits changed, some equal."""
    rng = np.random.default_rng(seed)
    hashes = np.repeat(rng.integers(0, 2**64, centres, dtype=np.uint64), copies)
    for _ in range(flips):
        flipped = rng.random(len(hashes)) < 0.5
        hashes[flipped] ^= BIT[rng.integers(0, 64, flipped.sum())]
    return rng.permutation(hashes)


def photo(seed, height=240, width=320):
    """Smooth random colours with structure at every scale, like a photograph."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cells in (3, 6, 12, 24):
        noise = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / cells
    image -= image.min()
    return (image / image.max() * 255).astype(np.uint8)


def product(seed):
    """A photograph cut out as an ellipse, on white, as shops show things."""
    image = np.full((240, 320, 3), 255, np.uint8)
    inside = cv2.ellipse(np.zeros((240, 320), np.uint8), (150, 120), (80, 60), 20, 0, 360, 1, -1)
    image[inside > 0] = photo(seed)[inside > 0]
    return image


def distance(a, b):
    return int(np.bitwise_count(a ^ b))


# --- hash


def test_hash_is_the_comparison_of_neighbouring_cells():
    rng = np.random.default_rng(0)
    grey = rng.permutation(72).reshape(8, 9).astype(np.uint8) * 3
    image = np.repeat(np.kron(grey, np.ones((20, 30), np.uint8))[..., None], 3, axis=2)
    bits = "".join("1" if grey[y, x + 1] > grey[y, x] else "0" for y in range(8) for x in range(8))
    value = difference_hash(image)
    assert value == int(bits, 2)
    assert value.dtype == np.uint64
    # Mirrored, every comparison turns round.
    mirrored = "".join(
        "1" if grey[y, 7 - x] > grey[y, 8 - x] else "0" for y in range(8) for x in range(8)
    )
    assert difference_hash(np.ascontiguousarray(image[:, ::-1])) == int(mirrored, 2)


def test_hash_weighs_colours_as_rgb():
    # Green is brighter than red, red brighter than blue: 9 columns of falling brightness or rising.
    stripes = np.zeros((8, 9, 3), np.uint8)
    stripes[:, :3, 2] = stripes[:, 3:6, 0] = stripes[:, 6:, 1] = 255
    rises = "00100100" * 8
    assert difference_hash(stripes) == int(rises, 2)


def test_hash_survives_what_uploads_do_to_a_picture():
    images = [photo(seed) for seed in range(8)] + [product(seed) for seed in range(8)]
    hashes = [difference_hash(image) for image in images]
    for image, value in zip(images, hashes, strict=True):
        half = cv2.resize(image, (160, 120), interpolation=cv2.INTER_AREA)
        jpeg = cv2.imdecode(cv2.imencode(".jpg", half, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 1)
        dark = (image * 0.8 + 10).astype(np.uint8)
        assert max(distance(value, difference_hash(other)) for other in (half, jpeg, dark)) <= 3
    others = [distance(a, b) for i, a in enumerate(hashes[:8]) for b in hashes[:i]]
    assert min(others) > 10


def test_hash_of_odd_pictures():
    assert difference_hash(np.full((50, 40, 3), 77, np.uint8)) == 0
    assert difference_hash(np.full((1, 1, 3), 9, np.uint8)) == 0
    ramp = np.repeat(np.arange(3, dtype=np.uint8)[None, :, None] * 100, 3, axis=2)
    assert difference_hash(ramp) > 0


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_hash_wants_rgb_bytes(image):
    with pytest.raises(ValueError, match="uint8 RGB"):
        difference_hash(image)


def test_hashes_of_files_in_order(tmp_path):
    paths = []
    for number in range(300):  # more than one chunk
        image = photo(number % 5, 40, 60)
        image[0, 0] = number % 256
        paths.append(str(tmp_path / f"{number}.png"))
        cv2.imwrite(paths[-1], image[..., ::-1])
    (tmp_path / "7.png").write_bytes(b"not a picture")
    (tmp_path / "290.png").unlink()
    hashes, readable = difference_hashes(np.array(paths, "S"), workers=2)
    assert (hashes.dtype, hashes.shape) == (np.uint64, (300,))
    assert np.flatnonzero(~readable).tolist() == [7, 290]
    expected = [difference_hash(photo(number, 40, 60)) for number in range(5)]
    for row in (0, 4, 255, 256, 299):
        assert distance(hashes[row], expected[row % 5]) <= 1
    again, _ = difference_hashes(paths, workers=1)
    assert (again == hashes).all()
    assert [len(part) for part in difference_hashes([])] == [0, 0]


# --- search


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5, 8, 10])
def test_pairs_are_those_of_the_twin(seed, bits):
    hashes = clustered(seed)
    pairs = near_duplicates(hashes, bits)
    assert pairs.dtype == np.int64
    expected = oracle.near_duplicates(hashes, bits)
    assert len(expected) > bits * 10
    assert list(map(tuple, pairs.tolist())) == expected


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_large_buckets_are_split_and_lose_nothing(bits, monkeypatch):
    monkeypatch.setattr(dedupe, "BUCKET", 1)
    # Three bits of four are always 0, so most hashes share most bands.
    rng = np.random.default_rng(bits)
    hashes = np.bitwise_or.reduce(BIT[::4] * (rng.random((300, 16)) < 0.4), axis=1)
    expected = oracle.near_duplicates(hashes, bits)
    assert len(expected) > 10
    assert list(map(tuple, near_duplicates(hashes, bits).tolist())) == expected
    assert duplicate_groups(hashes, bits).tolist() == oracle.duplicate_groups(hashes, bits)


def test_every_bit_counts():
    hashes = np.append(np.uint64(0), BIT)
    assert near_duplicates(hashes, 1).tolist() == [[0, n] for n in range(1, 65)]
    assert len(near_duplicates(hashes, 2)) == 65 * 64 // 2
    assert len(near_duplicates(hashes, 0)) == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [0, 1, 3, 6])
def test_groups_are_those_of_the_twin(seed, bits, monkeypatch):
    hashes = clustered(seed, flips=4)
    expected = oracle.duplicate_groups(hashes, bits)
    assert 10 < len(set(expected)) <= len(hashes) - bits
    assert duplicate_groups(hashes, bits).tolist() == expected
    monkeypatch.setattr(dedupe, "PENDING", 3)  # folded in piece by piece
    assert duplicate_groups(hashes, bits).tolist() == expected


def test_groups_are_chains():
    steps = np.bitwise_or.accumulate(BIT[:10])
    assert duplicate_groups(steps, 1).tolist() == [0] * 10
    assert duplicate_groups(steps[::2], 1).tolist() == list(range(5))


def test_groups_leave_unreadable_images_alone():
    hashes = np.array([0, 0, 9, 0, 9, 0], np.uint64)
    valid = np.array([True, False, True, True, True, False])
    assert duplicate_groups(hashes, 0, valid=valid).tolist() == [0, 1, 2, 0, 2, 5]
    assert duplicate_groups(hashes, 0).tolist() == [0, 0, 2, 0, 2, 0]


def test_huge_groups_need_no_pairs():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300_000, dtype=np.uint64)
    hashes[5:100_005] = hashes[3]
    hashes[200_000:250_000] = hashes[250_000:300_000] ^ BIT[rng.integers(0, 64, 50_000)]
    groups = duplicate_groups(hashes, 1)
    sizes = np.bincount(groups)
    assert sizes[3] == 100_001
    assert np.bincount(sizes)[2] == 50_000
    assert len(np.unique(groups)) == 150_000
    with pytest.raises(ValueError, match="duplicate_groups"):
        near_duplicates(hashes, 1)


def test_limit_of_pairs_counts_equal_and_close_ones():
    hashes = np.array([1, 1, 1, 3, 3], np.uint64)
    assert len(near_duplicates(hashes, 0, most=4)) == 4
    assert len(near_duplicates(hashes, 1, most=10)) == 10
    for bits, most in ((0, 3), (1, 9)):
        with pytest.raises(ValueError, match=f"most={most}"):
            near_duplicates(hashes, bits, most=most)


@pytest.mark.parametrize("count", [0, 1])
def test_few_hashes(count):
    hashes = np.zeros(count, np.uint64)
    assert near_duplicates(hashes, 3).shape == (0, 2)
    assert duplicate_groups(hashes, 3).tolist() == list(range(count))
    assert duplicate_groups(hashes, 3, valid=np.zeros(count, bool)).tolist() == list(range(count))


@pytest.mark.parametrize("search", [near_duplicates, duplicate_groups])
def test_bad_hashes_are_named(search):
    with pytest.raises(ValueError, match="int64"):
        search(np.zeros(3, np.int64), 3)
    with pytest.raises(ValueError, match="distance must be 0 to 10"):
        search(np.zeros(3, np.uint64), 11)
    with pytest.raises(ValueError, match="distance"):
        search(np.arange(3, dtype=np.uint64), -1)


# --- table


def table(rows):
    frame = pd.DataFrame(rows, columns=["id", "label", "group"])
    return frame.drop(columns="group"), frame["group"].to_numpy()


def test_one_row_per_label_and_group_stays():
    frame, groups = table(
        [("d", 1, 0), ("b", 1, 0), ("c", 1, 2), ("a", 2, 3), ("e", -1, 4), ("f", -1, 4)]
    )
    assert drop_duplicates(frame, groups)["id"].tolist() == ["b", "c", "a", "e"]
    assert drop_duplicates(frame, groups).index.tolist() == [1, 2, 3, 4]


def test_conflicting_labels_go_or_stay():
    frame, groups = table([("a", 1, 0), ("b", 2, 0), ("c", 2, 0), ("d", 1, 3), ("e", -1, 0)])
    assert drop_duplicates(frame, groups)["id"].tolist() == ["d"]
    assert drop_duplicates(frame, groups, conflicts="keep")["id"].tolist() == ["a", "b", "d"]


def test_an_unknown_label_yields_to_a_known_one_and_contradicts_none():
    frame, groups = table([("a", -1, 0), ("b", 4, 0), ("c", 4, 0)])
    assert drop_duplicates(frame, groups)["id"].tolist() == ["b"]


def test_the_order_of_rows_does_not_choose():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": rng.permutation(200), "label": rng.integers(-1, 4, 200)})
    groups = rng.integers(0, 60, 200)
    order = rng.permutation(200)
    for conflicts in ("drop", "keep"):
        straight = drop_duplicates(frame, groups, conflicts=conflicts)
        mixed = drop_duplicates(frame.iloc[order], groups[order], conflicts=conflicts)
        assert 0 < len(straight) < 200
        assert sorted(straight["id"]) == sorted(mixed["id"])
        assert mixed["id"].tolist() == [i for i in frame["id"].iloc[order] if i in set(mixed["id"])]


def test_bad_tables_are_named():
    frame, groups = table([("a", 1, 0), ("b", 1, 0)])
    with pytest.raises(ValueError, match="conflicts"):
        drop_duplicates(frame, groups, conflicts="merge")
    with pytest.raises(ValueError, match="'label'"):
        drop_duplicates(frame.drop(columns="label"), groups)
    with pytest.raises(ValueError, match="one group per row"):
        drop_duplicates(frame, groups[:1])
