"""Bounds on scale and margin: reached by the best arrangement of centres, and what is warned of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.losses.adaptive import AdaCos, AdaFace, CurricularFace
from common.losses.centers import CenterLoss, ModifiedSoftmax, SphereFace
from common.losses.classify import CosineSoftmax, LinearSoftmax
from common.losses.margin import ArcFace, CosFace, SubCenterArcFace
from common.losses.proxies import ClassCircle, ProxyAnchor, ProxyNCA
from common.losses.theory import advice, suggest, warnings_for


def simplex(classes):
    """(C, C) unit vectors as far apart as can be; they lie in C - 1 dimensions."""
    return F.normalize(torch.eye(classes) - 1 / classes)


def polygon(classes):
    angle = torch.arange(classes) * 2 * math.pi / classes
    return torch.stack([angle.cos(), angle.sin()], 1)


def octahedron():
    return torch.cat([torch.eye(3), -torch.eye(3)])


def test_numbers_of_the_papers():
    for classes, scale in [(10, 3.96), (1_000, 9.1), (81_313, 13.5)]:
        assert suggest(classes, 512).least_scale == pytest.approx(scale, abs=0.05)
    assert suggest(81_313, 512).scale == pytest.approx(math.sqrt(2) * math.log(81_312))
    assert suggest(2, 512).scale == 1
    assert suggest(3, 512).largest_cosine_margin == 1.5
    assert suggest(2, 1).largest_cosine_margin == 2
    assert suggest(3, 1).largest_cosine_margin == 0
    assert suggest(8, 2).largest_cosine_margin == pytest.approx(1 - math.sqrt(0.5))
    assert suggest(8, 2).largest_angle_margin == pytest.approx(math.pi / 4)
    assert suggest(81_313, 512).largest_cosine_margin == 1


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_the_least_scale_is_what_the_simplex_needs(classes, probability):
    scale = suggest(classes, 512, probability=max(probability, 0.6)).least_scale
    head = CosineSoftmax(classes, classes, scale=scale).double()
    head.weight.data = simplex(classes).double()
    loss = head(head.weight.detach(), torch.arange(classes))
    assert math.exp(-loss.item()) == pytest.approx(max(probability, 0.6), rel=1e-5)


@pytest.mark.parametrize(
    "centers", [simplex(2), simplex(4), polygon(5), polygon(12), octahedron()], ids=len
)
def test_the_largest_cosine_margin_is_what_the_best_centers_allow(centers):
    classes, dim = len(centers), torch.linalg.matrix_rank(centers).item()
    largest = suggest(classes, dim).largest_cosine_margin
    for margin, met in [(largest - 0.01, True), (min(2.0, largest + 0.01), False)]:
        head = CosFace(centers.shape[1], classes, scale=1000.0, margin=margin)
        head.weight.data = centers.clone()
        assert (head(centers, torch.arange(classes)) < 0.01) == met


@pytest.mark.parametrize("classes", [5, 12])
def test_the_largest_angle_margin_is_what_the_best_centers_allow(classes):
    centers, largest = polygon(classes), suggest(classes, 2).largest_angle_margin
    for margin, met in [(largest - 0.01, True), (largest + 0.01, False)]:
        head = ArcFace(2, classes, scale=4000.0, margin=margin)
        head.weight.data = centers.clone()
        assert (head(centers, torch.arange(classes)) < 0.01) == met


@pytest.mark.parametrize(("classes", "dim"), [(5, 3), (6, 3), (7, 4), (9, 3)])
def test_no_arrangement_found_by_search_beats_the_bound(classes, dim):
    torch.manual_seed(0)
    best = 1.0
    for _ in range(3):
        points = torch.randn(classes, dim, requires_grad=True)
        optimizer = torch.optim.Adam([points], 0.05)
        for step in range(300):
            unit = F.normalize(points)
            cosine = (unit @ unit.T - 2 * torch.eye(classes)).flatten()
            optimizer.zero_grad()
            ((5 + step / 3) * cosine).logsumexp(0).backward()
            optimizer.step()
        best = min(best, cosine.max().item())
    bound = suggest(classes, dim)
    assert 1 - best <= bound.largest_cosine_margin + 1e-4
    if classes <= 2 * dim:
        assert 1 - best >= bound.largest_cosine_margin - 0.05


def test_prints_as_a_line():
    line = str(suggest(81_313, 512))
    assert "\n" not in line
    assert "scale at least 13.5 (CosFace), 16.0 by AdaCos" in line
    assert "1 as a cosine, 1.57 as an angle" in line


@pytest.mark.parametrize(
    ("head", "messages"),
    [
        (CosineSoftmax(512, 10, scale=3.9), ["scale 3.9 is below 3.955, CosFace's lower bound"]),
        (CosineSoftmax(512, 10, scale=4.0), []),
        (CosFace(2, 8, margin=0.35), ["margin 0.35 is above 0.2929, CosFace's upper bound"]),
        (CosFace(512, 8, margin=0.35), []),
        (ArcFace(2, 8, margin=0.8), ["margin 0.8 is above 0.7854, the largest angle"]),
        (ArcFace(2, 8, margin=0.5, ramp={"start": 0, "end": 2}), ["margin 1 is above 0.7854"]),
        (SubCenterArcFace(2, 40, margin=0.15, scale=9.0), []),
        (SubCenterArcFace(2, 40, margin=0.2, scale=2.0), ["CosFace's lower", "largest angle"]),
        (CurricularFace(2, 8, margin=0.9), ["largest angle"]),
        (AdaFace(2, 8, margin=0.4), ["margin 0.4 is above 0.2929, CosFace's upper bound"]),
        (
            ArcFace(2, 8, margin={"formula": "power", "a": 1.0}, class_counts=[1] * 8),
            ["margin 1.05 is above"],
        ),
        (AdaCos(2, 3), []),
        (ArcFace(2, 1), []),
        (ModifiedSoftmax(512, 1000), []),
        (SphereFace(512, 1000), []),
        (ClassCircle(512, 1000, scale=1.0), []),
        (ProxyAnchor(512, 1000, scale=1.0), []),
        (ProxyNCA(512, 1000), []),
        (LinearSoftmax(512, 1000), []),
        (CenterLoss(512, 1000), []),
    ],
)
def test_warnings_name_the_bound(head, messages):
    found = warnings_for(head)
    assert len(found) == len(messages)
    for line, message in zip(found, messages, strict=True):
        assert message in line
        assert f"for {head.num_classes} classes in {head.embedding_dim} dimensions" in line


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: suggest(1, 512), "C >= 2"),
        (lambda: suggest(10, 0), "D >= 1"),
        (lambda: suggest(10, 512, probability=1.0), "between 1/10 and 1"),
        (lambda: suggest(10, 512, probability=0.1), "between 1/10 and 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_training_says_the_range_and_what_lies_outside():
    heads = [CosFace(8, 50, scale=2.0), nn.Identity()]
    said = advice(heads, 50, 8)
    assert said[0].startswith("theory for 50 classes in 8 dimensions: scale at least 6")
    assert len(said) == 2
    assert said[1].startswith("warning: scale 2 is below 5.967")
    assert advice(heads, 1, 8) == []
