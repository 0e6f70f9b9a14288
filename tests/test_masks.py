"""The fourth channel: masks cut as their pictures, weights of RGB kept, colours beside it."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.data import augment
from common.data.align import frames, mean_layout
from common.data.dataset import ImageDataset
from common.data.images import picture_size
from common.engine.extract import ViewConfig, embed_table
from common.models.channels import split, widen
from common.models.embedder import Embedder, ModelConfig
from common.models.weights import load_backbone
from common.types import Table

TINY = "test_efficientnet"
BOX = np.array([40.0, 20, 100, 80])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A picture of 160 x 120 that is bright inside of BOX and dark outside, and its mask."""
    folder = tmp_path_factory.mktemp("masks")
    x0, y0, x1, y1 = BOX.astype(int)
    mask = np.zeros((120, 160), np.uint8)
    mask[y0:y1, x0:x1] = 255
    cv2.imwrite(str(folder / "mask.png"), mask)
    cv2.imwrite(str(folder / "a.png"), np.dstack([mask] * 3))
    large = cv2.resize(np.dstack([mask] * 3), (1280, 960), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(folder / "large.jpg"), large, [cv2.IMWRITE_JPEG_QUALITY, 98])
    return folder


def dataset(files, masks, name="a.png", transform=lambda image: image, **options):
    paths = np.array([str(files / name)] * len(masks), "S")
    return ImageDataset(paths, None, size=16, transform=transform, masks=masks, **options)


def sources(files, boxes=BOX):
    file = np.array([str(files / "mask.png").encode()])
    return {"file": file, "box": boxes[None]}


# Where the picture is bright the mask must be white, whatever is cut out of it.
CUTS = {
    "whole": {},
    "box": {"boxes": np.array([[30, 10, 90, 100]])},
    "box over the edge": {"boxes": np.array([[60, 30, 500, 400]])},
    "turned": {
        "frames": frames(
            np.array([[[30.0, 25], [100, 5], [110, 70]]]),
            mean_layout(np.array([[[0.0, 0], [70, 0], [70, 60]]])),
            margin=0.1,
        )
    },
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("kind", ["file", "box"])
def test_the_mask_is_cut_as_the_picture_is(files, kind, cut):
    image = dataset(files, sources(files)[kind], **cut)[0]["image"]
    assert image.shape[0] == 4
    bright, mask = image[0].int(), image[3].int()
    assert 0.05 < (mask > 127).float().mean() < 0.9
    # Anti-aliasing differs on the rim, by a pixel.
    inner = ((bright > 250) & (mask < 5)) | ((bright < 5) & (mask > 250))
    assert inner.float().mean() < 0.02


@pytest.mark.parametrize("kind", ["file", "box"])
def test_reduced_decoding_and_mirroring_take_the_mask_along(files, kind):
    masks = sources(files, BOX * 8)[kind]
    if kind == "file":
        large = cv2.resize(cv2.imread(str(files / "mask.png")), (1280, 960), interpolation=0)
        cv2.imwrite(str(files / "large_mask.png"), large)
        masks = np.array([str(files / "large_mask.png").encode()])
    transform = augment.build("none", 64, False)
    plain = dataset(files, masks, "large.jpg", transform)[0]["image"]
    flipped = dataset(files, masks, "large.jpg", transform, mirror=np.array([True]))[0]["image"]
    for image in (plain, flipped):
        off = (image[0].int() - image[3].int()).abs()
        assert (off > 100).float().mean() < 0.02
    assert torch.equal(flipped[3], plain[3].flip(1))


def test_no_mask_a_missing_file_and_dropped_ones_are_black(files):
    for masks in (np.zeros((1, 4)), np.array([b""]), np.array([b"/nowhere/mask.png"])):
        assert (dataset(files, masks)[0]["image"][3] == 0).all()
    half = dataset(files, BOX[None], mask_drop=0.5)
    seen = [bool(half[0, stream << 20]["image"][3].any()) for stream in range(200)]
    assert 70 < sum(seen) < 130
    assert half[0, 7]["image"][:3].any()
    lost = dataset(files, BOX[None], "nothing.png")[0]
    assert lost["image"].shape == (4, 16, 16)
    assert not lost["ok"]


def test_colours_leave_the_mask_and_geometry_moves_it(files):
    recipe = [
        {"name": "random_resized_crop"},
        {"name": "flip"},
        {"name": "color", "brightness": 0.5},
        {"name": "noise", "sigma": 0.2, "p": 1.0},
        {"name": "gray", "p": 1.0},
        {"name": "posterize", "bits": 2, "p": 1.0},
        {"name": "blur", "p": 1.0},
        {"name": "jpeg", "lowest": 60},
    ]
    for stream in range(10):
        geometry = dataset(files, BOX[None], transform=augment.build(recipe[:2], 32, True))
        colours = dataset(files, BOX[None], transform=augment.build(recipe, 32, True))
        before, after = geometry[0, stream]["image"], colours[0, stream]["image"]
        assert torch.equal(before[3], after[3])
        assert not torch.equal(before[:3], after[:3])
    with pytest.raises(ValueError, match="a mask cannot follow"):
        dataset(files, BOX[None], transform=augment.build("strong", 32, True))


@pytest.mark.parametrize("recipe", [n for n in augment.RECIPES if n != "strong"])
def test_every_other_recipe_takes_four_channels(files, recipe):
    made = augment.build(recipe, 32, True)
    image = dataset(files, BOX[None], transform=made)[0, 3]["image"]
    assert image.shape == (4, 32, 32)


def test_upright_size(tmp_path):
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert picture_size(tmp_path / "a.jpg") == (20, 30)


# --- the net


def test_the_net_starts_as_the_one_of_three_channels():
    torch.manual_seed(0)
    three = Embedder(ModelConfig(backbone=TINY, weights="none")).eval()
    four = Embedder(ModelConfig(backbone=TINY, weights="none", in_chans=4)).eval()
    state = three.state_dict()
    conv = next(k for k, v in state.items() if v.ndim == 4 and v.shape[1] == 3)
    state[conv] = torch.cat([state[conv], torch.zeros_like(state[conv][:, :1])], 1)
    four.load_state_dict(state)
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for value in (0, 255):
        mask = torch.full((2, 1, 32, 32), value, dtype=torch.uint8)
        found = four.embed(torch.cat([pictures, mask], 1))
        torch.testing.assert_close(found, three.embed(pictures), rtol=1e-5, atol=1e-6)
    four.train()(torch.cat([pictures, mask], 1)).square().sum().backward()
    gradient = four.get_parameter(conv).grad
    assert gradient[:, 3].abs().sum() > 0  # it can learn to look at the mask
    with pytest.raises(ValueError, match=r"\(B, 4, H, W\)"):
        four(pictures)


def test_weights_of_a_run_with_a_mask_come_back_whole(tmp_path):
    model, _ = load_backbone(TINY, "none", in_chans=4)
    conv = model.conv_stem
    with torch.no_grad():
        conv.weight.normal_()
    save_file(
        {f"model.backbone.{k}": v for k, v in model.state_dict().items()},
        tmp_path / "weights.safetensors",
    )
    four, _ = load_backbone(TINY, str(tmp_path), in_chans=4)
    assert torch.equal(four.conv_stem.weight, conv.weight)
    three, _ = load_backbone(TINY, str(tmp_path))
    assert torch.equal(three.conv_stem.weight, conv.weight[:, :3])
    five, _ = load_backbone(TINY, str(tmp_path), in_chans=5)
    assert torch.equal(five.conv_stem.weight[:, :4], conv.weight)
    assert (five.conv_stem.weight[:, 4] == 0).all()
    assert split(TINY, three.state_dict()) is None


def test_a_net_that_does_not_begin_with_a_convolution_says_so():
    model, _ = load_backbone(TINY, "none")
    model.pretrained_cfg = {**model.pretrained_cfg, "first_conv": ("a", "b")}
    with pytest.raises(ValueError, match="take another backbone"):
        widen(model, 4)


def test_embedding_a_table_looks_at_its_masks(files):
    model = Embedder(ModelConfig(backbone=TINY, weights="none", in_chans=4))
    with torch.no_grad():
        model.backbone.conv_stem.weight[:, 3].normal_()
    path = np.array([str(files / "a.png")] * 2, "S")
    masks = np.stack([BOX, np.zeros(4)])
    table = Table(np.array(["a", "b"]), path, np.array([0, 0]), masks=masks)
    view, plain = ViewConfig(size=32, workers=0), augment.build("none", 32, False)
    found = embed_table(model, table, view, plain, torch.device("cpu")).vectors
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    both = Table.concatenate([table, table.take(np.array([1]))])
    assert both.masks.shape == (3, 4)
    with pytest.raises(ValueError, match="have masks and some have none"):
        Table.concatenate([table, Table(table.ids, table.paths, table.labels)])
