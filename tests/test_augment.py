"""Recipes keep shape and type, obey torch's generator, and do what their numbers say."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from common.config import ConfigError
from common.data import transforms
from common.data.augment import RECIPES, build

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
        ([{"name": "random_resized_crop", "smallest": 0.0}], "got 0.0 and 1.0"),
        ([{"name": "random_resized_crop", "largest": 0.1}], "got 0.35 and 0.1"),
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
