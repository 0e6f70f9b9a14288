"""Each augmentation step does what its numbers say."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.augment import STEPS, build
from common.steps import settings

SIZE = 32


def picture(height, width, seed=0):
    """A smooth random picture as read from a file: (3, H, W) uint8 over HWC memory."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    array = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(array).permute(2, 0, 1)


def run(step, image, seed=0):
    augment = build([{"name": "resize"}, step], image.shape[1], train=True)
    torch.manual_seed(seed)
    return augment(image)


@pytest.mark.parametrize("name", [name for name, step in STEPS.items() if "p" in settings(step)])
def test_probability_zero_is_identity_and_one_is_not(name):
    image = picture(SIZE, SIZE)
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
    sheared = [
        run({"name": "affine", "degrees": 0.0, "shear": 10.0}, white, seed)[0] == 0
        for seed in range(50)
    ]
    # The top row moves by up to 50 * tan(10 degrees) = 8.8 pixels to either side.
    assert 7 <= max(lost[1].sum() for lost in sheared) <= 9
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
    edge = (torch.arange(128) // 64 * 128 + 64).to(torch.uint8).expand(3, 128, 128).contiguous()
    steps = [
        run({"name": "color", "brightness": 0.0}, edge, s).unique().tolist() for s in range(50)
    ]
    assert 100 <= min(high - low for low, high in steps) < 108  # 128 * 0.8
    assert 148 < max(high - low for low, high in steps) <= 156
    blurred = run({"name": "blur", "p": 1.0}, image).float()
    assert blurred.diff(dim=2).abs().mean() < image.float().diff(dim=2).abs().mean()
    fine = (run({"name": "jpeg", "lowest": 100}, image).float() - image).abs().mean()
    coarse = (run({"name": "jpeg", "lowest": 5, "highest": 5}, image).float() - image).abs().mean()
    assert fine < 3 < 6 < coarse
    span = {"name": "jpeg", "lowest": 99}
    assert len({run(span, image, seed).numpy().tobytes() for seed in range(10)}) == 2


def test_cutout_covers_its_share():
    white = torch.full((3, 100, 100), 255, dtype=torch.uint8)
    holes = torch.stack([run({"name": "cutout", "p": 1.0}, white, s)[0] == 0 for s in range(200)])
    areas = holes.flatten(1).sum(1)
    assert areas.max() == 40 * 40
    assert areas.min() < 40 * 40 * 0.5  # the centre is uniform, so some stick out
    assert set(holes.any(1).sum(1).tolist()) <= set(range(18, 41))
    for edge in (holes[:, 0], holes[:, -1], holes[:, :, 0], holes[:, :, -1]):
        assert 0.1 < edge.any(1).float().mean() < 0.3  # a fifth of the centres is that near
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
