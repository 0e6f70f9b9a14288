"""Neighborhood blending and min2: against twins, and the properties that define them."""

import warnings

import numpy as np
import pytest
import torch

from common.rerank import blending
from common.rerank.blending import min2, neighborhood_blending
from common.rerank.known import STEPS, check_step
from common.retrieval.search import search
from common.types import Embeddings, Neighbors
from tests.oracles import blending as oracle


def images(n, d=6, seed=0, prefix="g", spread=0.5):
    """Groups of four around a common direction."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(-(-n // 4), d, generator=generator).repeat_interleave(4, 0)[:n]
    rows = centers + spread * torch.randn(n, d, generator=generator)
    ids = np.array([f"{prefix}{i:03}" for i in range(n)])
    return Embeddings(ids, torch.nn.functional.normalize(rows))


def close(found, expected, atol=1e-6):
    np.testing.assert_allclose(found.vectors.float().numpy(), expected, atol=atol)


@pytest.mark.parametrize("second", [None, 0.75, 0.3, -2.0])
@pytest.mark.parametrize(("k", "own_weight"), [(1, 1.0), (30, 1.0), (5, 0.0), (90, 2.5)])
def test_two_stages_equal_the_twin(second, k, own_weight):
    queries, gallery = images(10, seed=0, prefix="q"), images(24)
    queries = Embeddings(  # some queries are gallery images, one is changed
        np.concatenate([queries.ids, gallery.ids[:6]]),
        torch.cat([queries.vectors, gallery.vectors[:6]]),
    )
    thresholds = [0.8, 0.6]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = neighborhood_blending(
            queries, gallery, thresholds=thresholds, second=second, k=k, own_weight=own_weight
        )
    asked, base = queries.vectors.numpy(), gallery.vectors.numpy()
    for threshold in thresholds:
        rest = (base, gallery.ids, threshold, second, k, own_weight)
        asked = oracle.blend(asked, queries.ids, *rest)
        base = oracle.blend(base, gallery.ids, *rest)
    close(found[0], asked)
    close(found[1], base)
    close(Embeddings(gallery.ids[:6], found[0].vectors[10:]), found[1].vectors[:6].numpy())


@pytest.mark.parametrize("own_weight", [0.0, 1.0])
def test_a_threshold_above_one_is_the_identity(own_weight):
    gallery = images(20)
    found = neighborhood_blending(gallery, gallery, thresholds=[1.01] * 3, own_weight=own_weight)
    for part in found:
        torch.testing.assert_close(part.vectors, gallery.vectors)


def test_an_image_without_neighbors_stays_and_min2_gives_it_its_nearest():
    rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [-0.3, 1.0]]))
    gallery = Embeddings(np.array(["a", "b", "c"]), rows)
    _, found = neighborhood_blending(gallery, gallery, thresholds=[0.9], own_weight=0.0, k=2)
    torch.testing.assert_close(found.vectors[2], rows[2])
    torch.testing.assert_close(found.vectors[0], rows[1])
    _, far = neighborhood_blending(gallery, gallery, thresholds=[0.9], second=0.0, k=2)
    torch.testing.assert_close(
        far.vectors[2], rows[2]
    )  # even the nearest is below the second threshold
    _, two = neighborhood_blending(gallery, gallery, thresholds=[0.9], second=-1.0, k=2)
    torch.testing.assert_close(two.vectors[2], rows[2])  # a negative similarity weighs nothing
    queries = Embeddings(np.array(["q"]), torch.tensor([[0.0, 1.0]]))
    moved, _ = neighborhood_blending(queries, gallery, thresholds=[0.99], second=0.5, k=2)
    similarity = rows[2] @ queries.vectors[0]
    expected = torch.nn.functional.normalize(queries.vectors[0] + similarity * rows[2], dim=0)
    torch.testing.assert_close(moved.vectors[0], expected)


def test_rows_in_another_order_give_the_same_rows_in_that_order():
    gallery = images(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    turned = Embeddings(gallery.ids[order.numpy()], gallery.vectors[order])
    settings = {"thresholds": [0.7, 0.8], "second": 0.4, "k": 20}
    _, found = neighborhood_blending(turned, turned, **settings)
    _, expected = neighborhood_blending(gallery, gallery, **settings)
    torch.testing.assert_close(found.vectors, expected.vectors[order], rtol=0, atol=1e-6)
    assert found.ids.tolist() == turned.ids.tolist()


def test_inputs_keep_their_values_and_results_their_type():
    gallery = images(16)
    half = Embeddings(gallery.ids, gallery.vectors.half(), {"run": "a"})
    before = half.vectors.clone()
    found = neighborhood_blending(half, half, thresholds=[0.5, 0.5])
    assert torch.equal(half.vectors, before)
    for part in found:
        assert part.vectors.dtype == torch.float16
        assert part.card == {"run": "a"}
        assert not torch.equal(part.vectors, before)
    same = Embeddings(gallery.ids, gallery.vectors.half().clone())
    again = neighborhood_blending(same, half, thresholds=[0.5, 0.5])
    assert torch.equal(again[0].vectors, found[0].vectors)
    wide = Embeddings(half.ids, half.vectors.float())  # one set in two precisions is two sets
    mixed = neighborhood_blending(wide, half, thresholds=[0.5])[0].vectors
    once = neighborhood_blending(half, half, thresholds=[0.5])[0].vectors
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, once.float(), atol=2e-3, rtol=0)


def test_groups_draw_together_and_zero_rows_stay_zero():
    gallery = images(40, d=16, spread=0.6)
    gallery.vectors[7] = 0
    _, found = neighborhood_blending(gallery, gallery, thresholds=[0.6, 0.7], second=0.4)
    assert not found.vectors[7].any()
    group = torch.arange(40) // 4
    same = (group[:, None] == group) & ~torch.eye(40, dtype=torch.bool)
    same[7], same[:, 7] = False, False

    def gap(embeddings):
        similarity = embeddings.vectors @ embeddings.vectors.T
        others = group[:, None] != group
        return similarity[same].mean() - similarity[others].mean()

    assert gap(found) > gap(gallery) + 0.1


def test_a_k_below_the_groups_is_said():
    gallery = images(16, spread=0.01)
    with pytest.warns(UserWarning, match="16 of 16 images have all k=2 neighbors above"):
        neighborhood_blending(gallery, gallery, thresholds=[0.9], k=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        neighborhood_blending(gallery, gallery, thresholds=[0.9], k=4)
        neighborhood_blending(images(3, spread=0.01), images(3), thresholds=[0.0], k=50)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize(("threshold", "second"), [(0.9, 0.5), (0.7, 0.7), (2.0, -2.0), (2.0, 2.0)])
def test_min2_equals_its_twin(exclude_self, threshold, second):
    gallery = images(20)
    queries = Embeddings(
        np.concatenate([gallery.ids[::2], np.array(["new"])]),
        torch.cat([gallery.vectors[::2], images(1, seed=9).vectors]),
    )
    near = search(queries, gallery, 12, exclude_self=exclude_self)
    found = min2(near, queries, gallery, threshold=threshold, second=second)
    for row, own in enumerate(gallery.find(queries.ids)):
        expected = oracle.matches(
            near.index[row].tolist(), near.score[row].tolist(), own, threshold, second
        )
        kept = found.index[row][found.index[row] >= 0]
        assert set(kept.tolist()) == expected
        assert (found.score[row, : len(kept)].diff() <= 0).all()
        assert (found.score[row, len(kept) :] == -torch.inf).all()


def test_min2_takes_self_by_id_even_behind_a_copy():
    gallery = Embeddings(np.array(["a", "b", "c"]), torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]]))
    queries = Embeddings(np.array(["b"]), gallery.vectors[:1])
    near = Neighbors(torch.tensor([[0, 1, 2]]), torch.tensor([[0.6, 0.6, 0.1]]))
    assert min2(near, queries, gallery, threshold=0.7, second=0.5).index.tolist() == [[0, 1, -1]]
    alone = min2(near, queries, gallery, threshold=0.7, second=0.6)
    assert alone.index.tolist() == [[1, -1, -1]]
    assert near.index.tolist() == [[0, 1, 2]]


def test_wrong_arguments_are_named():
    gallery = images(8)
    with pytest.raises(ValueError, match="set thresholds"):
        neighborhood_blending(gallery, gallery)
    with pytest.raises(ValueError, match="set thresholds"):
        check_step({"name": "inb"})  # before any long work
    check_step({"name": "inb", "thresholds": [0.5]})
    with pytest.raises(ValueError, match="own_weight"):
        neighborhood_blending(gallery, gallery, thresholds=[0.5], own_weight=-1.0)
    with pytest.raises(ValueError, match="k=0"):
        neighborhood_blending(gallery, gallery, thresholds=[0.5], k=0)
    with pytest.raises(ValueError, match="second=0.9"):
        min2(search(gallery, gallery, 3), gallery, gallery, threshold=0.5, second=0.9)
    with pytest.raises(ValueError, match="neighbors name row"):
        min2(search(gallery, gallery, 3), gallery, images(2))
    assert STEPS["inb"] is neighborhood_blending is blending.inb
    assert STEPS["min2"] is min2
