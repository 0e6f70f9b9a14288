"""The same (row, stream) gives the same pixels anywhere, and no file can stop a run."""

import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.data.augment import build
from common.data.dataset import GREY, ImageDataset, batches, check_files, loader
from common.data.images import read_image

SIZE = 24
BROKEN, MISSING = 3, 7


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Ten JPEGs of 40 x 60; row 3 is cut off, row 7 is not there."""
    folder = tmp_path_factory.mktemp("pictures")
    names = [str(folder / f"{row}.jpg") for row in range(10)]
    for row, name in enumerate(names):
        small = np.random.default_rng(row).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        cv2.imwrite(name, cv2.resize(small, (60, 40), interpolation=cv2.INTER_CUBIC))
    (folder / f"{MISSING}.jpg").unlink()
    broken = folder / f"{BROKEN}.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    return np.array(names, "S")


@pytest.fixture
def labels():
    return np.arange(10, dtype=np.int64) * 11


def make(paths, labels=None, recipe="strong", train=True, **options):
    return ImageDataset(paths, labels, size=SIZE, transform=build(recipe, SIZE, train), **options)


# -- items -----------------------------------------------------------------------------------------


def test_an_item_is_the_picture_its_label_and_its_row(paths, labels):
    dataset = make(paths, labels, "none", train=False)
    item = dataset[4]
    assert len(dataset) == 10
    assert item["image"].shape == (3, SIZE, SIZE)
    assert item["image"].dtype == torch.uint8
    assert (item["label"], item["row"], item["ok"]) == (44, 4, True)
    picture = torch.from_numpy(read_image(bytes(paths[4]))).permute(2, 0, 1)
    assert torch.equal(item["image"], build("none", SIZE, False)(picture))
    assert make(paths)[4]["label"] == -1


@pytest.mark.parametrize("row", [BROKEN, MISSING])
def test_an_unreadable_file_is_grey_and_has_no_label(paths, labels, row):
    item = make(paths, labels)[row, 5]
    assert item["image"].unique().tolist() == [GREY]
    assert item["image"].shape == (3, SIZE, SIZE)
    assert (item["label"], item["row"], item["ok"]) == (-1, row, False)


def test_reduced_scale_is_used(paths, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "common.data.dataset.read_image",
        lambda path, **options: sizes.append(options["size"]) or read_image(path, **options),
    )
    make(paths, recipe="crop")[0]
    make(paths, recipe="none")[0]
    ImageDataset(paths, None, size=SIZE, transform=lambda image: image)[0]
    assert sizes == [build("crop", SIZE, True).short_side, SIZE, None]


def test_a_second_view_is_another_one_and_moves_nothing(paths, labels):
    plain, both = make(paths, labels), make(paths, labels, second=True)
    for key in [(0, 5), (0, 6), (4, 5)]:
        item = both[key]
        assert torch.equal(item["image"], plain[key]["image"])
        assert item["second"].shape == item["image"].shape
        assert not torch.equal(item["second"], item["image"])
        assert torch.equal(item["second"], both[key]["second"])
    assert not torch.equal(both[0, 5]["second"], both[0, 6]["second"])
    assert torch.equal(both[BROKEN, 5]["second"], both[BROKEN, 5]["image"])
    assert "second" not in plain[0]


def test_boxes_and_mirror(paths):
    boxes = np.zeros((10, 4), np.int32)
    boxes[1] = (10, 5, 50, 30)
    mirror = np.arange(10) % 2 == 1
    plain = ImageDataset(paths, None, size=SIZE, transform=lambda image: image)
    both = ImageDataset(
        paths, None, size=SIZE, transform=lambda image: image, boxes=boxes, mirror=mirror
    )
    assert torch.equal(both[0]["image"], plain[0]["image"])
    assert torch.equal(both[1]["image"], plain[1]["image"][:, 5:30, 10:50].flip(2))
    assert torch.equal(both[5]["image"], plain[5]["image"].flip(2))


# -- randomness ------------------------------------------------------------------------------------


def test_the_stream_decides(paths):
    dataset = make(paths)
    first = dataset[2, 77]["image"]
    assert torch.equal(first, dataset[2, 77]["image"])
    assert torch.equal(dataset[2]["image"], dataset[2, 2]["image"])
    # Position 77 of the next epoch: equal in the low 32 bits, all that torch's generator keeps.
    others = [dataset[2, stream]["image"] for stream in (78, 77 + 2**32, 77 + 2**33, 76)]
    others.append(make(paths, seed=1)[2, 77]["image"])
    others.append(make(paths, seed=2**32)[2, 77]["image"])
    assert not any(torch.equal(first, other) for other in others)


def test_streams_draw_evenly(paths):
    dataset = make(paths, recipe=[{"name": "flip"}])
    flipped = make(paths, recipe=[{"name": "flip", "p": 1.0}])[0]["image"]
    draws = [torch.equal(dataset[0, epoch << 32]["image"], flipped) for epoch in range(200)]
    assert 70 < sum(draws) < 130


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_do_not_depend_on_workers_or_order(paths, labels, workers):
    keys = [(position % 10, position << 32) for position in range(24)]
    expected = {stream: make(paths, labels)[row, stream]["image"] for row, stream in keys}
    for order in (keys, keys[::-1], random.Random(0).sample(keys, 24)):
        lists = [order[start : start + 5] for start in range(0, 24, 5)]
        batch_loader = loader(make(paths, labels), lists, workers=workers, device="cpu")
        for _ in range(2):  # the workers persist
            seen = list(batch_loader)
            for drawn, batch in zip(lists, seen, strict=True):
                assert batch["image"].dtype == torch.uint8
                assert batch["label"].dtype == batch["row"].dtype == torch.int64
                assert batch["ok"].dtype == torch.bool
                assert batch["row"].tolist() == [row for row, _ in drawn]
                for (row, stream), image, label, ok in zip(
                    drawn, batch["image"], batch["label"], batch["ok"], strict=True
                ):
                    assert torch.equal(image, expected[stream])
                    assert ok == (row not in (BROKEN, MISSING))
                    assert label == (row * 11 if ok else -1)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_state_outside_is_untouched(paths, workers):
    dataset = make(paths, recipe="strong")
    torch.manual_seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    dataset[0, 9]
    assert len(list(loader(dataset, batches(10, 4), workers=workers, device="cpu"))) == 3
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


# -- the loader ------------------------------------------------------------------------------------


def _threads(image):
    return torch.tensor([torch.get_num_threads(), cv2.getNumThreads()])


def test_workers_have_one_thread(paths):
    dataset = ImageDataset(paths[:3], None, size=SIZE, transform=_threads)
    (batch,) = loader(dataset, batches(3, 3), workers=1, device="cpu")
    assert batch["image"].tolist() == [[1, 1]] * 3


def test_workers_say_nothing_about_damaged_files(paths, tmp_path, capfd):
    whole = Path(os.fsdecode(paths[0])).read_bytes()
    extra = b"\7" * 20  # before the end marker: still decodes, and libjpeg remarks on it
    (tmp_path / "damaged.jpg").write_bytes(whole[:-2] + extra + whole[-2:])
    path = np.array([str(tmp_path / "damaged.jpg")], "S")
    assert read_image(bytes(path[0])).shape == (40, 60, 3)
    assert "Corrupt JPEG" in capfd.readouterr().err
    (batch,) = loader(make(path), batches(1, 1), workers=1, device="cpu")
    assert batch["ok"].all()
    assert capfd.readouterr() == ("", "")


def test_memory_is_pinned_for_cuda_only(paths):
    for device, pinned in (("cpu", False), ("cuda:1", True), (torch.device("cuda"), True)):
        assert loader(make(paths), batches(10, 4), workers=0, device=device).pin_memory is pinned


def test_batches():
    assert [list(batch) for batch in batches(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert batches(6, 3) == [range(0, 3), range(3, 6)]
    assert batches(0, 3) == []


# -- bad input -------------------------------------------------------------------------------------


def test_wrong_arrays(paths, labels):
    with pytest.raises(ValueError, match=r"np\.char\.encode"):
        make(paths.astype(str))
    with pytest.raises(ValueError, match="labels must be int64, got int32"):
        make(paths, labels.astype(np.int32))
    with pytest.raises(ValueError, match="10 paths, but 9 labels"):
        make(paths, labels[:9])
    with pytest.raises(ValueError, match="10 paths, but 11 boxes"):
        make(paths, boxes=np.zeros((11, 4), np.int32))
    with pytest.raises(IndexError):
        make(paths, labels)[10]


def test_check_files(paths):
    ids = np.array([f"id{row}" for row in range(10)])
    assert check_files(paths, ids) == 1  # a broken file is there, a missing one is not
    assert check_files(paths, ids, sample=2) == 0  # the first and the last
    gone = np.char.replace(paths, b".jpg", b".png")
    with pytest.raises(
        FileNotFoundError, match=r"None of 10 .*0\.png \(id id0\): point data\.root"
    ):
        check_files(gone, ids)
    with pytest.raises(FileNotFoundError, match="None of 3 images"):
        check_files(gone, ids, sample=3)
    with pytest.raises(ValueError, match="no rows"):
        check_files(paths[:0], ids[:0])
    looked = np.tile(paths, 300)
    assert 80 <= check_files(looked, np.tile(ids, 300)) <= 120  # evenly over 3000 rows
