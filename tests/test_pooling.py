"""Pooling agrees with its slow twins, has its limits, and survives hostile maps."""

import pytest
import torch
import torch.nn.functional as F

from common.models import pooling
from common.models.pooling import GeM, build_pooling, gem, regional, regions, rmac, spoc
from tests.oracles import pooling as oracle

NAMES = pooling.POOLINGS


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("p", [1.0, 2.5, 3.0, 8.0])
def test_gem_equals_its_twin(p):
    x = maps(2, 3, 4, 5)
    torch.testing.assert_close(gem(x, p).double(), oracle.gem(x, p), rtol=1e-5, atol=1e-7)


def test_gem_equals_torch_lp_pool():
    x = maps(2, 3, 6, 6).abs() + 0.1
    expected = F.lp_pool2d(x, 3.0, 6)[:, :, 0, 0] / 36 ** (1 / 3)
    torch.testing.assert_close(gem(x, 3.0), expected)


def test_gem_lies_between_average_and_maximum():
    x = maps(2, 3, 7, 7).abs() + 1e-3
    torch.testing.assert_close(gem(x, 1.0), pooling.avg_pool(x))
    # The limit is reached from below by a factor of at least 49 ** (-1 / p).
    torch.testing.assert_close(gem(x, 2000.0), pooling.max_pool(x), rtol=3e-3, atol=0)
    assert (gem(x, 3.0) > gem(x, 2.0)).all()


def test_gem_gradients():
    x = (maps(2, 2, 3, 3).double().abs() + 0.05).requires_grad_()
    p = torch.tensor([2.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: gem(a, b), (x, p))


def test_trained_exponent_learns_and_never_falls_below_one():
    x = maps(4, 3, 5, 5).abs()
    module = GeM(3.0, trainable=True)
    module(x).sum().backward()
    assert module.p.grad.item() > 0  # a larger exponent makes larger vectors
    with torch.no_grad():
        module.p.fill_(-4.0)
    torch.testing.assert_close(module(x), gem(x, 1.0))
    assert not list(GeM(3.0).parameters())


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (12, 5), (8, 7), (2, 2), (1, 6), (1, 1)])
@pytest.mark.parametrize("levels", [1, 3])
def test_rmac_equals_its_twin(shape, levels):
    x = maps(2, 4, *shape)
    got = rmac(x, levels=levels).double()
    torch.testing.assert_close(got, oracle.rmac(x, levels), rtol=1e-5, atol=1e-5)


def test_regions_stay_inside_and_touch_every_border():
    for height, width in [(7, 7), (10, 14), (30, 9)]:
        found = regions(height, width, 3)
        assert {top for top, _, _ in found} >= {0} <= {left for _, left, _ in found}
        assert max(top + size for top, _, size in found) == height
        assert max(left + size for _, left, size in found) == width
    assert len(regions(7, 7, 3)) == 1 + 4 + 9


@pytest.mark.parametrize("shape", [(6, 6), (3, 8), (1, 1)])
def test_spoc_equals_its_twin(shape):
    x = maps(2, 3, *shape)
    torch.testing.assert_close(spoc(x).double(), oracle.spoc(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_module_equals_function(name):
    x = maps(2, 3, 5, 6)
    expected = {
        "avg": pooling.avg_pool,
        "max": pooling.max_pool,
        "gem": gem,
        "gemp": lambda x: gem(x, 4.6),
        "rgem": lambda x: gem(regional(x)),
        "rmac": rmac,
        "spoc": spoc,
    }[name](x)
    assert torch.equal(build_pooling(name)(x), expected)


def test_several_poolings_side_by_side():
    x = maps(2, 3, 4, 4)
    expected = torch.cat([gem(x, 2.0), pooling.max_pool(x), pooling.avg_pool(x)], 1)
    assert torch.equal(build_pooling("gem+max+avg", gem_p=2.0)(x), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zero", "negative", "huge", "tiny", "pixel"])
def test_hostile_maps_give_finite_values_and_gradients(name, kind):
    x = {
        "zero": torch.zeros(2, 3, 4, 4),
        "negative": -maps(2, 3, 4, 4).abs(),
        "huge": maps(2, 3, 4, 4) * 1e15,
        "tiny": maps(2, 3, 4, 4) * 1e-20,
        "pixel": maps(2, 3, 1, 1),
    }[kind].requires_grad_()
    for p in (3.0, 60.0):
        vectors = build_pooling(name, gem_p=p, gem_trainable=True)(x)
        assert vectors.shape == (2, 3)
        assert torch.isfinite(vectors).all()
        (gradient,) = torch.autograd.grad(vectors.sum(), x)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_maps_are_pooled_in_float32(name, dtype):
    x = (maps(2, 3, 16, 16).abs() * 40).to(dtype)  # cubes beyond the range of float16
    with torch.autocast("cpu", torch.bfloat16):
        vectors = build_pooling(name)(x)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, build_pooling(name)(x.float()))


@pytest.mark.parametrize("shape", [(7, 7), (3, 6), (2, 2), (1, 4), (1, 1)])
def test_regional_equals_its_twin_also_on_maps_smaller_than_a_window(shape):
    x = maps(2, 2, *shape)
    torch.testing.assert_close(regional(x).double(), oracle.regional(x), rtol=1e-5, atol=1e-6)
    found, expected = regional(x, 4.0, size=3), oracle.regional(x, 4.0, size=3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_regional_equals_torch_lp_pool_and_leaves_a_flat_map_alone():
    x = maps(2, 3, 6, 7).abs() + 0.1
    scaled = F.pad(x, (2, 2, 2, 2), mode="reflect") / 25 ** (1 / 2.5)
    expected = 0.5 * F.lp_pool2d(scaled, 2.5, 5, stride=1) + 0.5 * x
    torch.testing.assert_close(regional(x), expected)
    flat = torch.full((1, 2, 4, 4), 0.7)
    torch.testing.assert_close(regional(flat), flat)


def test_regional_gradients():
    x = (maps(1, 2, 3, 4).double().abs() + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(regional, x)


def test_regional_gem_learns_its_exponent():
    module = build_pooling("rgem", gem_trainable=True)
    module(maps(4, 3, 5, 5).abs()).sum().backward()
    assert module.parts[0].p.grad.item() > 0
    assert not list(build_pooling("gemp", gem_trainable=True).parameters())  # a fixed 4.6


@pytest.mark.parametrize("name", ["gem", "rgem", "avg", "max"])
def test_a_raised_floor_lifts_weak_activations_before_every_pooling(name):
    x = maps(2, 3, 4, 4)
    found = build_pooling(name, floor=0.4)(x)
    torch.testing.assert_close(found, build_pooling(name)(torch.maximum(x, torch.tensor(0.4))))
    assert (found >= 0.4 - 1e-6).all()
    weak = x.clamp(max=0.1)
    assert (build_pooling(name, floor=0.4)(weak) > build_pooling(name)(weak)).all()


@pytest.mark.parametrize("name", NAMES)
def test_poolings_export(name):
    x = maps(2, 3, 2, 5).abs()
    module = build_pooling(name, floor=0.01)
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), module(x))


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="did you mean 'gem'"):
        build_pooling("gemm")
    with pytest.raises(ValueError, match="gemp, rgem, rmac, spoc"):
        build_pooling("")
    with pytest.raises(ValueError, match="gem_p=0"):
        build_pooling("gem", gem_p=0)
