"""AdaCos, CurricularFace, AdaFace against loop twins; what adapts, is saved, and is shared."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pytorch_metric_learning import losses as pml

from common.losses import cosine
from common.losses.adaptive import AdaCos, AdaFace, CurricularFace
from common.losses.centers import CenterLoss, SphereFace
from common.losses.classify import CosineSoftmax
from common.losses.margin import ArcFace, CosFace
from common.losses.theory import suggest
from common.steps import bind, catalog
from tests.oracles import heads as oracle
from tests.oracles.margin import batch, gradients

COUNTS = [1, 16, 81, 0, 5]
WEIGHTS = [1 / math.log1p(n or 1) for n in COUNTS]
OPTIONS = [
    {},
    {"k": 2},
    {"label_smoothing": 0.2, "focal_gamma": 2.0},
    {"class_weights": "1/log1p(n)", "class_counts": COUNTS, "k": 3},
]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[1 << 22, 7], ids=["one_tile", "tiles"])
def tile(request, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", request.param)


def agree(loss, expected, x, weight):
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-8)
    got, wanted = gradients(loss, x, weight), gradients(expected, x, weight)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def expect(logits, labels, options):
    return oracle.cross_entropy(
        logits,
        labels,
        options.get("label_smoothing", 0.0),
        options.get("focal_gamma", 0.0),
        WEIGHTS if "class_weights" in options else None,
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_adacos_equals_the_loop_twin(options, tile):
    head = AdaCos(4, 5, dynamic=True, **options)
    scale = head.scale
    assert scale == pytest.approx(math.sqrt(2) * math.log(4))
    for seed in range(3):
        x, labels = batch(seed=seed)
        c = oracle.cosines(x, head.weight, head.k)
        scale = oracle.adacos_scale(c, labels, scale)
        loss = head(x, labels)
        assert head.dynamic_scale.item() == pytest.approx(scale, rel=1e-10)
        agree(loss, expect(scale * c, labels, options), x, head.weight)
    assert head.statistics()["scale"] == pytest.approx(scale)


def test_adacos_fixed_equals_pytorch_metric_learning():
    x, labels = batch(ignored=False)
    head = AdaCos(4, 5)
    other = pml.NormalizedSoftmaxLoss(5, 4, temperature=1 / (math.sqrt(2) * math.log(4)))
    other.W.data = head.weight.detach().T.clone()
    loss, expected = head(x, labels), other(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    ex, ew = gradients(expected, x, other.W)
    torch.testing.assert_close(gradients(loss, x, head.weight), (ex, ew.T), rtol=1e-8, atol=1e-9)
    assert set(head.state_dict()) == {"weight"}


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_the_scale_of_few_classes_is_not_zero(classes):
    """The formula gives 0 for two classes: no gradient, for ever."""
    head = AdaCos(4, classes, dynamic=True)
    assert head.scale == 1
    x, labels = batch(classes=classes)
    head(x, labels).backward()
    assert 1 <= head.dynamic_scale <= 256


def test_the_scale_is_bounded_when_all_rows_lie_on_one_point():
    head = AdaCos(4, 5, dynamic=True)
    head.weight.data = torch.ones(5, 4)
    for _ in range(200):
        loss = head(torch.ones(6, 4), torch.arange(6) % 5)
    assert head.dynamic_scale == 256
    assert loss.isfinite()


def test_backward_uses_the_scale_of_its_own_forward():
    """Two forwards before a backward: the buffer has moved on, the first gradient has not."""
    (x, labels), (other, others) = batch(), batch(seed=1)
    for head in (AdaCos(4, 5, dynamic=True), CurricularFace(4, 5, momentum=0.5)):
        again = copy.deepcopy(head)
        loss = head(x, labels)
        head(other, others)
        expected = gradients(again(x, labels), x, again.weight)
        assert all(map(torch.equal, gradients(loss, x, head.weight), expected))


@pytest.mark.parametrize("options", [*OPTIONS, {"margin": 1.2, "scale": 10.0}], ids=str)
@pytest.mark.parametrize("start", [0.0, -0.2, 0.8])
def test_curricularface_equals_the_loop_twin(options, start, tile):
    head = CurricularFace(4, 5, momentum=0.9, **options)
    head.progress.fill_(start)
    t, hard = start, False
    for seed in range(2):
        x, labels = batch(seed=seed)
        c = oracle.cosines(x, head.weight, head.k)
        logits, t = oracle.curricular(
            c, labels, t=t, scale=head.scale, margin=head.margin, momentum=0.9
        )
        agree(head(x, labels), expect(logits, labels, options), x, head.weight)
        assert head.progress.item() == pytest.approx(t, rel=1e-10)
        plain = CurricularFace(4, 5, momentum=0.9, **options).scale * c
        hard |= bool((logits - plain).abs().gt(1e-6).sum() > len(x))
    assert hard, "no other class was above the own one: the curriculum would go untested"


def test_curricularface_by_hand():
    """The authors' code run on this batch by hand: one hard class, one easy one."""
    head = CurricularFace(2, 3, scale=2.0, margin=0.5)
    head.weight.data = torch.tensor([[1.0, 0], [0, 2.0], [-3.0, 0]])
    x = torch.tensor([[1.0, 1.0]])
    half = math.sqrt(0.5)
    t = 0.01 * half
    own, hard = math.cos(math.pi / 4 + 0.5), half * (t + half)
    logits = torch.tensor([2 * own, 2 * hard, -2 * half])
    expected = -logits.log_softmax(0)[0]
    torch.testing.assert_close(head(x, torch.tensor([0])), expected)
    assert head.progress.item() == pytest.approx(t)


@pytest.mark.parametrize("options", [*OPTIONS, {"margin": 1.5, "scale": 10.0}], ids=str)
@pytest.mark.parametrize("mean", [0.5, 6.0, 20.0])
def test_adaface_equals_the_loop_twin(options, mean, tile):
    head = AdaFace(4, 5, momentum=0.9, concentration=1.0, **options)
    head.length_mean.fill_(mean)
    head.length_std.fill_(2.0)
    std = 2.0
    for seed in range(2):
        x, labels = batch(seed=seed)
        c = oracle.cosines(x, head.weight, head.k)
        logits, mean, std = oracle.adaface(
            x,
            c,
            labels,
            mean=mean,
            std=std,
            scale=head.scale,
            margin=head.margin,
            h=1.0,
            momentum=0.9,
        )
        agree(head(x, labels), expect(logits, labels, options), x, head.weight)
        assert head.length_mean.item() == pytest.approx(mean, rel=1e-10)
        assert head.length_std.item() == pytest.approx(std, rel=1e-10)


def test_adaface_is_cosface_for_average_lengths_and_an_arc_for_short_ones():
    x, labels = batch(ignored=False)
    head = AdaFace(4, 5, seed=1).eval()
    cos, arc = (make(4, 5, scale=64.0, margin=0.4, seed=1) for make in (CosFace, ArcFace))
    head.length_mean.copy_(torch.tensor(5.0))
    unit = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(5 * unit, labels), cos(x, labels))
    head.length_std.fill_(0.001)
    torch.testing.assert_close(head(0.1 * unit, labels), arc(x, labels))


def test_the_std_of_one_length_is_no_news():
    """The authors' std of a single row is NaN, and stays so."""
    head = AdaFace(4, 5)
    head(torch.ones(1, 4), torch.tensor([2])).backward()
    assert head.length_std == 100
    assert head.length_mean == pytest.approx(0.99 * 20 + 0.01 * 2)


def test_adaface_pulls_the_worst_rows():
    """Beyond pi the authors' cosine is flat."""
    angle = torch.linspace(0.001, math.pi - 0.001, 100)
    x = torch.stack([angle.cos(), angle.sin(), torch.zeros(100)], 1)
    head = AdaFace(3, 2, scale=10.0).eval()
    head.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])  # the other class stays at 90
    head.length_std.fill_(0.01)  # short rows: the full angular margin
    losses = torch.stack([head(row[None], torch.tensor([0])) for row in x])
    assert (losses.diff() > 0).all()


@pytest.mark.parametrize("make", [CurricularFace, AdaCos, AdaFace])
def test_gradcheck(make, tile):
    x, labels = batch(rows=6, dim=3, classes=4)
    x.requires_grad_(make is not AdaFace)  # its lengths count, without gradient
    head = make(3, 4, label_smoothing=0.1, focal_gamma=1.5)
    head.scale = 5.0
    head.eval()

    def loss(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (x, labels))

    assert torch.autograd.gradcheck(loss, (x, head.weight))


HEADS = {
    "adacos": lambda: AdaCos(4, 5, dynamic=True, seed=1),
    "curricularface": lambda: CurricularFace(4, 5, seed=1),
    "adaface": lambda: AdaFace(4, 5, seed=1),
    "center": lambda: CenterLoss(4, 5),
    "sphereface": lambda: SphereFace(4, 5, seed=1),
}
each = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


@each
@pytest.mark.parametrize("case", ["ignored", "empty", "not finite"])
def test_a_batch_without_news_leaves_the_state(make, case):
    head = make()
    head(*batch())
    state = copy.deepcopy(head.state_dict())
    state.pop("batches", None)
    rows = 0 if case == "empty" else 3
    x, labels = torch.ones(rows, 4), torch.full((rows,), -1)
    if case == "not finite":
        x, labels = torch.full((3, 4), torch.nan), torch.tensor([0, 1, 2])
    head(x, labels)
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in state.items())


def test_by_name_with_the_papers_defaults():
    from common.losses import adaptive

    known = catalog(adaptive)
    assert set(known) == {"ada_cos", "curricularface", "adaface"}
    state = {"embedding_dim": 4, "num_classes": 5}
    for name, scale, margin in [("curricularface", 64, 0.5), ("adaface", 64, 0.4)]:
        head = bind({"name": name}, known)(state)
        assert (head.scale, head.margin) == (scale, margin)
    head = bind({"name": "ada_cos"}, known)(state)
    assert head.scale == suggest(5, 4).scale
    assert torch.equal(
        AdaCos(4, 5, seed=3)(*batch()), CosineSoftmax(4, 5, scale=head.scale, seed=3)(*batch())
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CurricularFace(4, 5, momentum=1.0), "momentum must lie in"),
        (lambda: AdaFace(4, 5, momentum=-0.1), "momentum must lie in"),
        (lambda: AdaFace(4, 5, concentration=0.0), "concentration must be positive"),
        (lambda: CurricularFace(4, 5, margin=28.6), "radians"),
        (lambda: AdaCos(4, 0), "one class"),
        (lambda: AdaCos(4, 5, k=0), "1..255"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
