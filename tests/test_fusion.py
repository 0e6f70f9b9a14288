"""Orthogonal fusion is orthogonal, and pooling first changes nothing."""

import pytest
import torch

from common.models.fusion import DOLG, LocalBranch, orthogonal
from common.models.pooling import GeM, build_pooling
from tests.oracles import pooling as oracle


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1e-3, 1.0, 50.0])
def test_nothing_is_left_along_the_vector(length):
    """Regression: code that divides by |g| instead of |g|^2 fails for every length but 1."""
    local, vector = random(3, 8, 4, 5), random(3, 8, seed=1) * length
    left = torch.einsum(
        "bchw,bc->bhw", orthogonal(local, vector), vector / vector.norm(dim=1)[:, None]
    )
    assert left.abs().max() < 1e-5


def test_equals_gram_schmidt():
    local, vector = random(2, 6, 3, 4), random(2, 6, seed=1) * 7
    got = orthogonal(local, vector).double()
    torch.testing.assert_close(got, oracle.orthogonal(local, vector), rtol=1e-5, atol=1e-6)


def test_what_is_orthogonal_stays_and_what_is_parallel_goes():
    vector = random(2, 5)
    part = orthogonal(random(2, 5, seed=1), vector)
    torch.testing.assert_close(orthogonal(part, vector), part, rtol=1e-5, atol=1e-6)
    assert orthogonal(3 * vector, vector).abs().max() < 1e-5


def test_gradients():
    local = random(2, 3, 2, 2).double().requires_grad_()
    vector = random(2, 3, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: orthogonal(a, b), (local, vector))


def test_a_zero_vector_takes_nothing_away():
    local = random(2, 3, 2, 2)
    vector = torch.zeros(2, 3, requires_grad=True)
    assert torch.equal(orthogonal(local, vector), local)
    orthogonal(local, vector).sum().backward()
    assert torch.isfinite(vector.grad).all()


def test_half_precision_is_fused_in_float32():
    local, vector = random(2, 64, 3, 3).bfloat16(), random(2, 64, seed=1).bfloat16()
    part = orthogonal(local, vector)
    assert part.dtype == torch.float32
    assert torch.einsum("bchw,bc->bhw", part, vector.float()).abs().max() < 1e-4


def test_fusing_the_mean_equals_the_mean_of_the_fused_map():
    model = DOLG(6, 10, GeM(), dim=8, dilations=[1, 2, 3]).eval()
    middle, last = random(2, 6, 7, 7), random(2, 10, 4, 4, seed=1)
    vector = model.project(model.pool(last))
    fused = oracle.orthogonal(model.local(middle), vector).mean((2, 3))
    expected = torch.cat([fused, vector.double()], 1)
    torch.testing.assert_close(model([middle, last]).double(), expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_also_from_a_pixel():
    for side in (1, 9):
        model = DOLG(6, 20, build_pooling("gem+max", gem_trainable=True), dim=8)
        vectors = model([random(3, 6, side, side), random(3, 10, side, side, seed=1)])
        assert vectors.shape == (3, 16)
        vectors.square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_attention_is_positive_and_features_have_its_length():
    torch.manual_seed(0)
    branch = LocalBranch(5, 32, dilations=[3, 6, 9]).eval()
    seen = []
    branch.attention.register_forward_hook(lambda module, inputs, output: seen.append(output))
    local = branch(random(2, 5, 10, 12))
    assert local.shape == (2, 32, 10, 12)
    length = torch.nn.functional.softplus(seen[0])[:, 0]
    assert (length > 0).all()
    assert torch.allclose(local.norm(dim=1), length, atol=1e-6)


def test_dilation_reaches_its_distance():
    branch = LocalBranch(2, 4, dilations=[6]).eval()
    x = random(1, 2, 15, 15).requires_grad_()
    convolved = branch.atrous[0](x)[0, :, 7, 7].sum()
    (gradient,) = torch.autograd.grad(convolved, x)
    seen = gradient[0].abs().sum(0).nonzero()
    assert seen.min() == 1
    assert seen.max() == 13


def test_bf16_autocast_is_finite():
    model = DOLG(6, 10, GeM(), dim=8)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = model([random(2, 6, 5, 5), random(2, 10, 3, 3)])
    assert vectors.dtype == torch.float32
    assert torch.isfinite(vectors).all()
