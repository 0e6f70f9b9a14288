"""Dominant centres and label cleaning against loops; noise that it finds; bad input."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from common.losses import subcenters
from common.losses.margin import ArcFace, SubCenterArcFace
from common.losses.subcenters import clean, count_wins, dominant_centers
from tests.oracles import subcenters as oracle


def sample(rows=60, classes=5, k=3, dim=4):
    generator = torch.Generator().manual_seed(0)
    centers = F.normalize(torch.randn(classes, k, dim, generator=generator), dim=2)
    vectors = torch.randn(rows, dim, generator=generator)
    labels = torch.randint(-1, classes, (rows,), generator=generator)
    return centers, vectors, labels


@pytest.fixture(params=[1 << 14, 7], ids=["at once", "in parts"], autouse=True)
def parts(request, monkeypatch):
    monkeypatch.setattr(subcenters, "ROWS", request.param)


@pytest.mark.parametrize("degrees", [75.0, 40.0])
@pytest.mark.parametrize("k", [1, 3])
def test_equals_the_loop_twin(degrees, k):
    centers, vectors, labels = sample(k=k)
    wins = count_wins(centers, vectors, labels)
    lists = centers.tolist(), vectors.tolist(), labels.tolist()
    assert wins.tolist() == oracle.count_wins(*lists)
    keep = clean(dominant_centers(centers, wins), vectors, labels, degrees=degrees)
    assert keep.tolist() == oracle.clean(*lists, degrees)
    assert keep.any()
    assert not keep.all()
    assert keep[labels < 0].all()


def test_by_hand():
    centers = F.normalize(torch.tensor([[[1.0, 0], [0, 1]], [[1.0, 1], [-1, 0]]]), dim=2)
    vectors = torch.tensor([[2.0, 0.1], [0.1, 5], [0.2, 3], [1, 1], [-1, 0], [7, 8]])
    labels = torch.tensor([0, 0, 0, 1, 1, -1])
    wins = count_wins(centers, vectors, labels)
    assert wins.tolist() == [[1, 2], [1, 1]]
    dominant = dominant_centers(centers, wins)
    assert torch.equal(dominant, torch.stack([centers[0, 1], centers[1, 0]]))  # a tie: the first
    assert clean(dominant, vectors, labels).tolist() == [False, True, True, True, False, True]


def test_the_border_is_75_degrees():
    angle = torch.tensor([74.9, 75.1]).deg2rad()
    vectors = torch.stack([angle.cos(), angle.sin()], 1)
    keep = clean(torch.tensor([[1.0, 0]]), vectors, torch.tensor([0, 0]))
    assert keep.tolist() == [True, False]


def test_wrong_labels_are_found_and_the_rest_trains_one_center():
    """A fifth of the labels is wrong: cleaning finds them after a short training with k=3."""
    torch.manual_seed(0)
    means = torch.eye(6)
    truth = torch.arange(240) % 6
    x = means[truth] + 0.15 * torch.randn(240, 6)
    labels = torch.where(torch.arange(240) < 48, (truth + 1) % 6, truth)
    head = SubCenterArcFace(6, 6, k=3, scale=16.0)
    optimizer = torch.optim.SGD(head.parameters(), 1.0)
    for _ in range(60):
        optimizer.zero_grad()
        head(x, labels).backward()
        optimizer.step()
    centers = head.centers()
    dominant = dominant_centers(centers, count_wins(centers, x, labels))
    keep = clean(dominant, x, labels)
    assert not keep[:48].any()
    assert keep[48:].float().mean() > 0.95
    single = ArcFace(6, 6)
    with torch.no_grad():
        single.weight.copy_(dominant)
    assert single(x[keep], labels[keep]) < 0.3 * single(x, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_embeddings_of_any_type(dtype):
    centers, vectors, labels = sample()
    wins = count_wins(centers, vectors.to(dtype), labels)
    assert (wins - count_wins(centers, vectors, labels)).abs().sum() <= 2
    assert clean(centers[:, 0], vectors.to(dtype), labels).dtype == torch.bool


def test_unreadable_images_neither_count_nor_stay():
    centers, vectors, labels = sample(rows=3)
    labels[:] = 1
    vectors[0], vectors[1, 2] = 0, torch.nan
    assert count_wins(centers, vectors, labels).sum() == 1
    vectors[2] = centers[1, 0]
    assert clean(centers[:, 0], vectors, labels).tolist() == [False, False, True]


def test_no_rows():
    centers, vectors, labels = sample(rows=0)
    assert count_wins(centers, vectors, labels).sum() == 0
    keep = clean(centers[:, 0], vectors, labels)
    assert keep.dtype == torch.bool
    assert keep.shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, v, y: count_wins(c, v[:, :3], y), r"\(C, K, D\)"),
        (lambda c, v, y: count_wins(c[:, 0], v, y), r"\(C, K, D\)"),
        (lambda c, v, y: count_wins(c, v, y + 1), r"\[0, 5\)"),
        (lambda c, v, y: count_wins(c, v, y.int()), "int64"),
        (lambda c, v, y: dominant_centers(c, torch.zeros(5, 2)), r"wins \(C, K\)"),
        (lambda c, v, y: clean(c[:, 0], v, y, degrees=0.0), "degrees"),
        (lambda c, v, y: clean(c[:, 0], v, y, degrees=1.3 * 75), "degrees"),
        (lambda c, v, y: clean(c, v, y), r"must be \(C, D\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(*sample())
