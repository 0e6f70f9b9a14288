"""Margins that grow to one radian, as Shopee 2021 first had them: finite, ordered, trainable."""

import pytest
import torch
import torch.nn.functional as F

from common.losses.adaptive import CurricularFace
from common.losses.margin import ArcFace, SubCenterArcFace

IMAGE = {"margin": 1.0, "ramp": {"start": 0.2, "end": 1.0, "over": 0.8}}
TEXT = {"margin": 0.8, "ramp": {"start": 0.25, "end": 1.0, "from": 0.1, "over": 0.5}}


def at_angles(angles, dtype):
    """Rows at these angles from the first centre, which lies on the first axis."""
    rows = torch.zeros(len(angles), 8, dtype=dtype)
    rows[:, 0], rows[:, 1] = angles.cos(), angles.sin()
    return rows.requires_grad_()


def test_the_winners_margins_at_start_half_way_and_end():
    for settings, expected in ((IMAGE, (0.2, 0.7, 1.0)), (TEXT, (0.2, 0.68, 0.8))):
        head = ArcFace(8, 3, **settings)
        for progress, margin in zip((0.0, 0.5, 1.0), expected, strict=True):
            head.schedule(progress)
            assert float(head._margin(torch.zeros(1, dtype=torch.int64), torch.float64)) == (
                pytest.approx(margin)
            )


@pytest.mark.parametrize("kind", [ArcFace, SubCenterArcFace, CurricularFace])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [30.0, 64.0])
def test_at_one_radian_loss_and_gradient_are_finite_at_every_angle(kind, dtype, scale):
    head = kind(8, 3, k=1, scale=scale, **IMAGE)
    with torch.no_grad():
        head.weight.copy_(torch.eye(8)[[0, 3, 4]])
    head.schedule(1.0)
    head.eval()  # curricularface: t stays
    angles = torch.linspace(0, torch.pi, 121)
    rows = at_angles(angles, dtype)
    losses = [head(rows[i : i + 1], torch.zeros(1, dtype=torch.int64)) for i in range(len(rows))]
    torch.stack(losses).sum().backward()
    assert torch.stack(losses).isfinite().all()
    assert rows.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()
    if dtype == torch.float32:
        # Farther is never cheaper, also beyond pi - 1 where the cosine would rise again.
        assert (torch.stack(losses).diff() > -1e-4).all()
        # A step against the gradient brings the row nearer to its centre.
        moved = F.normalize(rows - 1e-3 * F.normalize(rows.grad, dim=1), dim=1)[1:-1, 0]
        assert (moved.detach() >= rows.detach()[1:-1, 0]).all()


def test_a_training_goes_through_the_ramp_and_ends_with_the_classes_apart():
    torch.manual_seed(0)
    classes, each = 12, 8
    labels = torch.arange(classes).repeat_interleave(each)
    rows = torch.randn(classes, 24)[labels] + 0.6 * torch.randn(len(labels), 24)
    neck = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.BatchNorm1d(16))
    head = ArcFace(16, classes, scale=30.0, **IMAGE)
    optimizer = torch.optim.AdamW([*neck.parameters(), *head.parameters()], 2e-2)
    steps = 150
    for step in range(steps):
        head.schedule(step / steps)
        loss = head(neck(rows), labels)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([*neck.parameters(), *head.parameters()], 5.0)
        assert norm.isfinite()
        optimizer.step()
    cosines = F.normalize(neck.eval()(rows)) @ F.normalize(head.weight).T
    own = cosines.gather(1, labels[:, None])
    assert (cosines.argmax(1) == labels).all()
    # The margin is one radian: own centres are nearer than that by it to most rows.
    others = cosines.scatter(1, labels[:, None], -1.0).amax(1, keepdim=True)
    assert (others.acos() - own.acos()).mean() > 0.8
