"""Recipes keep shape and type, obey torch's generator, and do what their numbers say."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from common.config import ConfigError
from common.data import transforms
from common.data.augment import RECIPES, STEPS, build

SIZE = 32
RANDOM = sorted(set(RECIPES) - {"none"})


def picture(height, width, seed=0):
    """A smooth random picture as read from a file: (3, H, W) uint8 over HWC memory."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    array = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(array).permute(2, 0, 1)


def as_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def close_to_pillow(image, expected):
    difference = image.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)
    return np.abs(difference).max() <= 1


# -- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_keeps_shape_and_type(recipe, train):
    augment = build(recipe, SIZE, train)
    for shape in [(50, 70), (70, 50), (SIZE, SIZE), (1, 1), (1, 900), (900, 1), (37, 5)]:
        image = picture(*shape)
        before = image.clone()
        torch.manual_seed(0)
        result = augment(image)
        assert result.shape == (3, SIZE, SIZE)
        assert result.dtype == torch.uint8
        assert result.is_contiguous()
        assert torch.equal(image, before)
        assert torch.equal(augment(image.contiguous()), augment(image)) or train


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_picture_of_the_right_size_is_not_written_to(recipe):
    image = picture(SIZE, SIZE).contiguous()
    before = image.clone()
    augment = build(recipe, SIZE, train=True)
    for seed in range(20):
        torch.manual_seed(seed)
        augment(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("recipe", RANDOM)
def test_training_is_a_function_of_the_generator(recipe):
    augment, image = build(recipe, SIZE, train=True), picture(50, 70)
    results = []
    for seed in (*range(12), 0):
        torch.manual_seed(seed)
        np.random.seed(seed + 1)  # noqa: NPY002  nothing else may be drawn from
        results.append(augment(image))
    assert torch.equal(results[0], results[-1])
    assert len({result.numpy().tobytes() for result in results}) > 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluation_draws_nothing(recipe):
    augment, image = build(recipe, SIZE, train=False), picture(50, 70)
    state = torch.get_rng_state()
    assert torch.equal(augment(image), augment(image))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_travel_to_spawned_workers(recipe):
    augment, image = build(recipe, SIZE, train=True), picture(50, 70)
    twin = pickle.loads(pickle.dumps(augment))
    torch.manual_seed(3)
    expected = augment(image)
    torch.manual_seed(3)
    assert torch.equal(twin(image), expected)


def test_a_list_of_steps_is_a_recipe():
    image = picture(50, 70)
    torch.manual_seed(1)
    named = build("landmarks2020_1st", SIZE, train=True)(image)
    torch.manual_seed(1)
    steps = [{"name": "random_crop", "margin": 512 / 448}, {"name": "flip", "p": 0.5}]
    assert torch.equal(build(steps, SIZE, train=True)(image), named)
    squashed = build([{"name": "flip", "p": 1.0}], SIZE, train=True)(image)
    assert torch.equal(squashed, build("none", SIZE, train=True)(image).flip(2))


# -- the way to size, with Pillow as the oracle ----------------------------------------------------


@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (40, 200), (20, 24)])
def test_fit_equals_pillow(shape):
    image = picture(*shape)
    source, box = as_pillow(image), (SIZE, SIZE)
    bilinear = Image.Resampling.BILINEAR
    results = {fit: build("none", SIZE, False, fit=fit)(image) for fit in ("squash", "pad", "crop")}
    assert torch.equal(build("none", SIZE, False)(image), results["squash"])
    assert close_to_pillow(results["squash"], source.resize(box, bilinear))
    top, left = ((side - min(shape)) // 2 for side in shape)
    centre = source.crop((left, top, left + min(shape), top + min(shape)))
    assert close_to_pillow(results["crop"], centre.resize(box, bilinear))
    assert close_to_pillow(results["pad"], ImageOps.pad(source, box, bilinear))


@pytest.mark.parametrize("shape", [(1, 30000), (30000, 1)])
@pytest.mark.parametrize("recipe", ["none", "crop", "landmarks2020_1st"])
def test_a_strip_never_becomes_huge(recipe, shape, monkeypatch):
    sizes = []
    resize = transforms.F.resize
    monkeypatch.setattr(
        transforms.F,
        "resize",
        lambda image, size, **o: sizes.append(size) or resize(image, size, **o),
    )
    for train in (True, False):
        for fit in (None, "squash", "pad", "crop"):
            assert build(recipe, SIZE, train, fit=fit)(picture(*shape)).shape == (3, SIZE, SIZE)
    assert max(max(size) for size in sizes) == SIZE


def test_random_crop_evaluates_its_centre():
    image = picture(64, 96)
    centre = as_pillow(image).crop((20, 4, 76, 60)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert close_to_pillow(build("landmarks2020_1st", SIZE, False)(image), centre)
    assert torch.equal(
        build("landmarks2020_1st", SIZE, False, fit="squash")(image),
        build("none", SIZE, False)(image),
    )


def test_crops_stay_within_their_numbers_and_reach_the_edges():
    rows, columns = torch.meshgrid(torch.arange(180), torch.arange(240), indexing="ij")
    where = torch.stack([rows, columns, rows * 0]).to(torch.uint8)  # value = position
    for step, least, most in (
        ({"name": "random_resized_crop", "smallest": 0.4, "largest": 0.8}, 0.4, 0.8),
        ({"name": "random_crop", "margin": 1.5}, (180 / 1.5) ** 2 / (180 * 240), None),
    ):
        augment = build([step], 120, train=True)
        areas, tops, rights = [], [], []
        torch.manual_seed(0)
        for _ in range(200):
            crop = augment(where).float()
            height = (crop[0].max() - crop[0].min() + 1).item()
            width = (crop[1].max() - crop[1].min() + 1).item()
            areas.append(height * width / (180 * 240))
            tops.append(crop[0].min().item())
            rights.append(crop[1].max().item())
        assert min(areas) > least - 0.03
        assert max(areas) < (most or least) + 0.03
        assert min(tops) <= 2
        assert max(rights) >= 237


@pytest.mark.parametrize("recipe", RECIPES)
def test_short_side_is_enough_to_never_enlarge(recipe, monkeypatch):
    """The smallest crop of a 4:3 picture of `short_side` still has `size` pixels each way."""
    for train in (True, False):
        augment = build(recipe, SIZE, train)
        geometry = augment.steps[0]
        short = augment.short_side
        assert SIZE <= short < 2 * SIZE
        if isinstance(geometry, transforms.RandomResizedCrop):
            area = geometry.crop.scale[0] * short * short * 4 / 3
            assert (area * 3 / 4) ** 0.5 >= SIZE  # sides sqrt(area * 3/4) and sqrt(area * 4/3)
        elif isinstance(geometry, transforms.RandomCrop):
            assert short / geometry.margin >= SIZE


# -- the other steps -------------------------------------------------------------------------------


def run(step, image, seed=0):
    augment = build([{"name": "resize"}, step], image.shape[1], train=True)
    torch.manual_seed(seed)
    return augment(image)


@pytest.mark.parametrize("name", sorted(set(STEPS) - {"resize", "random_crop"}))
def test_probability_zero_is_identity_and_one_is_not(name):
    image = picture(SIZE, SIZE)
    if name in ("trivial_augment", "random_resized_crop"):
        return
    extra = {"affine": {"translate": 0.2}, "jpeg": {"highest": 60}}.get(name, {})
    for seed in range(8):
        assert torch.equal(run({"name": name, "p": 0.0, **extra}, image, seed), image)
    changed = [run({"name": name, "p": 1.0, **extra}, image, seed) for seed in range(8)]
    assert sum(not torch.equal(result, image) for result in changed) >= 6


def test_affine_numbers():
    white = torch.full((3, 100, 100), 255, dtype=torch.uint8)
    image = picture(100, 100)
    assert torch.equal(run({"name": "affine", "degrees": 0.0}, image), image)
    shifts = {"name": "affine", "degrees": 0.0, "translate": 0.2}
    empty = torch.stack([run(shifts, white, seed)[0] == 0 for seed in range(100)])
    assert empty.all(2).sum(1).max() in range(18, 21)  # rows without picture, at most 20
    assert empty.all(1).sum(1).max() in range(18, 21)
    zooms = {"name": "affine", "degrees": 0.0, "zoom": 0.2}
    filled = torch.stack([(run(zooms, white, seed)[0] > 0).float().mean() for seed in range(100)])
    assert 0.62 < filled.min() < 0.7  # (1 - 0.2) ** 2
    lost = [(run({"name": "affine"}, white, seed)[0] == 0).float().mean() for seed in range(50)]
    assert 0.063 < max(lost) < 0.074  # four corners of a square turned by 10 degrees: 7.3 %


def test_pointwise_steps():
    image = picture(64, 64)
    gray = run({"name": "gray", "p": 1.0}, image)
    assert torch.equal(gray[0], gray[1])
    assert torch.equal(gray[0], gray[2])
    assert torch.equal(run({"name": "posterize", "p": 1.0}, image), image & 0xF0)
    middle = torch.full((3, 128, 128), 128, dtype=torch.uint8)
    noisy = run({"name": "noise", "sigma": 0.05, "p": 1.0}, middle).float()
    assert abs(noisy.std() / (0.05 * 255) - 1) < 0.05
    assert abs(noisy.mean() - 128) < 1
    levels = [run({"name": "color", "contrast": 0.0}, middle, seed).unique() for seed in range(50)]
    assert all(len(level) == 1 for level in levels)
    assert 102 <= min(levels) < 108  # 128 * 0.8
    assert 148 < max(levels) <= 154
    blurred = run({"name": "blur", "p": 1.0}, image).float()
    assert blurred.diff(dim=2).abs().mean() < image.float().diff(dim=2).abs().mean()
    fine = (run({"name": "jpeg", "lowest": 100}, image).float() - image).abs().mean()
    coarse = (run({"name": "jpeg", "lowest": 5, "highest": 5}, image).float() - image).abs().mean()
    assert fine < 3 < 6 < coarse


def test_cutout_covers_its_share():
    white = torch.full((3, 100, 100), 255, dtype=torch.uint8)
    holes = torch.stack([run({"name": "cutout", "p": 1.0}, white, s)[0] == 0 for s in range(200)])
    areas = holes.flatten(1).sum(1)
    assert areas.max() == 40 * 40
    assert areas.min() < 40 * 40 * 0.5  # the centre is uniform, so some stick out
    assert set(holes.any(1).sum(1).tolist()) <= set(range(18, 41))
    many = run({"name": "cutout", "p": 1.0, "side": 0.02, "holes": 30}, white)[0] == 0
    assert 20 < many.sum() <= 30 * 4
    half = [(run({"name": "cutout"}, white, seed) == 0).any() for seed in range(200)]
    assert 70 < sum(half) < 130


def test_grid_shuffle_moves_whole_tiles():
    image = torch.arange(49).reshape(1, 7, 7).repeat(3, 1, 1).to(torch.uint8)
    orders = set()
    for seed in range(40):
        result = run({"name": "grid_shuffle", "p": 1.0}, image, seed)
        assert torch.equal(result.flatten(1).sort().values, image.flatten(1))
        assert torch.equal(result[:, 6], image[:, 6])  # the rim that 2 does not divide
        assert torch.equal(result[:, :, 6], image[:, :, 6])
        tile = result[0, :3, :3]
        assert torch.equal(tile - tile[0, 0], image[0, :3, :3])
        orders.add(tile[0, 0].item())
    assert orders == {0, 3, 21, 24}


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("landmark2020_1st", "did you mean 'landmarks2020_1st'"),
        ("zzz", "Known: none, crop"),
        ([{"name": "flop"}], "did you mean 'flip'"),
        ([{"name": "flip", "probability": 1.0}], "It has: p"),
        ([{"name": "flip", "p": "often"}], "must be float"),
        ([{"p": 1.0}], "needs a name"),
        ([{"name": "flip"}, {"name": "resize"}], "resize brings the picture to size"),
        ([{"name": "resize"}, {"name": "random_crop"}], "random_crop brings the picture to size"),
        ([{"name": "resize", "fit": "stretch"}], "got 'stretch'"),
        ([{"name": "random_crop", "margin": 0.5}], "at least 1, got 0.5"),
        ([{"name": "jpeg", "highest": 101}], "1 to 100, got 60 to 101"),
    ],
)
def test_errors_say_what_is_known(recipe, message):
    with pytest.raises(ConfigError, match=message):
        build(recipe, SIZE, train=True)


def test_bad_size_and_fit():
    with pytest.raises(ConfigError, match="got 0"):
        build("none", 0, train=True)
    with pytest.raises(ConfigError, match="squash, pad or crop, got 'letterbox'"):
        build("none", SIZE, train=False, fit="letterbox")
