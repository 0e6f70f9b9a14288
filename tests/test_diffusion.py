"""Diffusion against dense linear solves and SciPy's conjugate gradients."""

import numpy as np
import pytest
import torch
from scipy import sparse

from common.rerank import flow
from common.rerank.diffusion import diffusion, offline_diffusion
from common.rerank.flow import solve, transition
from common.types import Embeddings
from tests.oracles import diffusion as twin
from tests.test_reciprocal import embeddings, images


def flow_of(found, width):
    """Scores `(Q, N)` of the images that something flows to, 0 elsewhere."""
    return torch.zeros(len(found), width).scatter_(1, found.index, found.score.clamp(min=0))


@pytest.mark.parametrize(("size", "noise"), [(4, 0.4), (30, 1.0)])
def test_the_graph_is_the_dense_one(size, noise):
    _, gallery = images(150, 10, size, noise)
    for kd, gamma in ((8, 3.0), (50, 1.5), (400, 3.0)):
        found = transition(gallery.vectors, kd, gamma)
        np.testing.assert_allclose(
            found.toarray(), twin.transition(gallery.vectors.numpy(), kd, gamma), atol=1e-6
        )
        assert abs(found - found.T).max() < 1e-15
        assert found.nnz <= 150 * min(kd, 149)


@pytest.mark.parametrize(("size", "noise"), [(4, 0.4), (30, 1.0)])
@pytest.mark.parametrize(
    ("kd", "kq", "gamma", "alpha"), [(8, 3, 3.0, 0.99), (20, 10, 3.0, 0.9), (5, 200, 2.0, 0.0)]
)
def test_equals_the_dense_solve(size, noise, kd, kq, gamma, alpha):
    queries, gallery = images(150, 20, size, noise)
    settings = {"kd": kd, "kq": kq, "gamma": gamma, "alpha": alpha}
    found = diffusion(queries, gallery, k=150, tolerance=1e-10, iterations=500, **settings)
    expected = twin.diffusion(queries.vectors.numpy(), gallery.vectors.numpy(), **settings)
    # In parts of the largest flow, which may be 1 / (1 - alpha).
    scale = expected.max()
    np.testing.assert_allclose(flow_of(found, 150).numpy() / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("size", [1, 30, 150, 400])
def test_offline_equals_dense_solves_on_the_surroundings(size, monkeypatch):
    queries, gallery = images(150, 20, 15, 0.8)
    settings = {"size": size, "kd": 10, "kq": 5, "gamma": 3.0, "alpha": 0.99}
    expected = twin.offline_diffusion(queries.vectors.numpy(), gallery.vectors.numpy(), **settings)
    for cells in (1 << 24, 600):
        monkeypatch.setattr(flow, "CELLS", cells)
        found = offline_diffusion(
            queries, gallery, k=150, tolerance=1e-10, iterations=500, **settings
        )
        scale = expected.max()
        np.testing.assert_allclose(flow_of(found, 150).numpy() / scale, expected / scale, atol=1e-5)


def test_offline_on_everything_is_the_diffusion_on_the_whole_graph():
    queries, gallery = images(150, 20, 15, 0.8)
    settings = {"kd": 10, "kq": 5, "k": 150, "tolerance": 1e-10, "iterations": 500}
    whole = diffusion(queries, gallery, **settings)
    offline = offline_diffusion(queries, gallery, size=150, **settings)
    torch.testing.assert_close(flow_of(whole, 150), flow_of(offline, 150), atol=1e-4, rtol=1e-4)


def test_conjugate_gradients_equal_scipys_and_stop_early():
    queries, gallery = images(150, 6, 15, 0.8)
    graph = transition(gallery.vectors, 10, 3.0)
    right = twin.sources(queries.vectors.numpy(), gallery.vectors.numpy(), 5, 3.0).T
    right[:, 2] = 0  # nothing flows
    calls = 0

    def product(x):
        nonlocal calls
        calls += 1
        return x - 0.99 * (graph @ x)

    found = solve(product, right, 0, 1e-8, 1000)
    assert calls < 400
    system = sparse.eye_array(150) - 0.99 * graph
    for column in range(6):
        expected, failed = sparse.linalg.cg(system, right[:, column], rtol=1e-10, atol=0.0)
        assert not failed
        np.testing.assert_allclose(found[:, column], expected, atol=1e-5)
    across = solve(lambda x: x - 0.99 * (graph @ x.T).T, right.T.copy(), 1, 1e-8, 1000)
    np.testing.assert_allclose(across.T, found, atol=1e-8)
    one = solve(product, right, 0, 1e-8, 1)
    assert np.abs(one - found).max() > 0.01


def test_flow_follows_a_chain_where_similarity_does_not():
    # Views along an arc of 90 degrees, 5 degrees apart, and strangers at 40 degrees from the query.
    angle = torch.deg2rad(torch.arange(0, 91, 5.0))
    arc = torch.stack([angle.cos(), angle.sin(), angle * 0], 1)
    turn = torch.deg2rad(torch.tensor(40.0))
    strangers = torch.stack([turn.cos() + 0 * angle, 0 * angle, turn.sin() + 0 * angle], 1)
    gallery = embeddings(torch.cat([arc[1:], strangers[:18]]), "g")
    query = Embeddings(np.array(["q"]), arc[:1])
    plain = (query.vectors @ gallery.vectors.T)[0].argsort(descending=True)
    assert (plain[:18] >= 18).any()
    for step in (diffusion, offline_diffusion):
        found = step(query, gallery, kd=2, kq=1, k=36)
        assert found.index[0, :18].sort().values.tolist() == list(range(18))
        assert (found.score[0, 18:] <= 0).all(), "unreached images follow by similarity"


def test_wrong_settings_are_named():
    queries, gallery = images(20, 4, 4, 0.5)
    for wrong in ({"kd": 0}, {"alpha": 1.0}, {"gamma": 0.0}, {"iterations": 0}):
        for step in (diffusion, offline_diffusion):
            with pytest.raises(ValueError, match=f"{step.__name__}: k, kd, kq and iterations"):
                step(queries, gallery, **wrong)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        offline_diffusion(queries, gallery, size=0)
