"""Margin heads against pytorch-metric-learning, loop twins, gradcheck; every way to get a NaN."""

from __future__ import annotations

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from common.losses import cosine, margin
from common.losses.margin import ArcFace, CosFace, SubCenterArcFace
from tests.oracles import margin as oracle

HEADS = [CosFace, ArcFace, SubCenterArcFace]
COUNTS = [1, 16, 81, 0, 5]


@pytest.fixture(params=[1 << 22, 7], ids=["one_tile", "tiles"])
def tile(request, monkeypatch):
    """Everything holds with the classes in one tile and in tiles of one or two."""
    monkeypatch.setattr(cosine, "TILE", request.param)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch(rows=24, dim=4, classes=5, ignored=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.get_default_dtype()) * 3
    labels = torch.randint(0, classes, (rows,), generator=generator)
    if ignored:
        labels[1::6] = -1
    return x.requires_grad_(), labels


def gradients(loss, x, weight):
    return torch.autograd.grad(loss, (x, weight))


def kind_of(head):
    return "cosface" if isinstance(head, CosFace) else "arcface"


# --- values and gradients ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "m"),
    [
        (CosFace, pml.CosFaceLoss, 0.35),
        (ArcFace, pml.ArcFaceLoss, 1.0),
        (SubCenterArcFace, pml.SubCenterArcFaceLoss, 1.0),
    ],
)
def test_equals_pytorch_metric_learning(ours, theirs, m, tile):
    x, labels = batch(rows=48, dim=3, ignored=False)
    x = x.detach().double().requires_grad_()
    head = ours(3, 5, scale=64, margin=m, seed=6).double()  # converted afterwards, as users do
    options = {"sub_centers": 3} if theirs is pml.SubCenterArcFaceLoss else {}
    degrees = m if ours is CosFace else math.degrees(m)
    other = theirs(num_classes=5, embedding_size=3, margin=degrees, scale=64, **options)
    other.W.data = head.weight.detach().T.clone()

    loss, expected = head(x, labels), other(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-8)
    if ours is not CosFace:
        own = torch.einsum("bd,bkd->bk", F.normalize(x), head.centers()[labels]).amax(1)
        assert (own < -math.cos(m)).any(), "no row beyond pi - m: the fallback would go untested"
    dx, dw = gradients(loss, x, head.weight)
    ex, ew = gradients(expected, x, other.W)
    torch.testing.assert_close(dx, ex, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(dw, ew.T, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"margin": {"formula": "minmax_power", "a": 0.4, "b": 0.1, "lambda": 0.5}},
        {"margin": {"formula": "power", "a": 0.27126, "b": 0.05, "lambda": 0.364399}},
        {"label_smoothing": 0.2},
        {"focal_gamma": 2.0},
        {"focal_gamma": 0.5, "label_smoothing": 0.1, "class_weights": "1/log1p(n)"},
        {"class_weights": "1/sqrt(n)", "margin": {"formula": "power"}},
    ],
    ids=str,
)
def test_equals_the_loop_twin(make, options, double, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", 50)  # classes two by two
    x, labels = batch()
    head = make(4, 5, scale=12.0, class_counts=COUNTS, **options)
    counts = [n or 1 for n in COUNTS]  # the class without images counts like the smallest, of 1
    formula = options.get("margin", {"formula": "fixed"})
    constants = {"a": 0.5, "b": 0.05, "lambda": 0.25} | formula
    a, b, lam = constants["a"], constants["b"], constants["lambda"]
    margins = {
        "fixed": [0.3] * 5,
        "minmax_power": oracle.minmax_power(counts, a, b, lam),
        "power": oracle.power(counts, a, b, lam),
    }[formula["formula"]]
    weights = {
        None: None,
        "1/log1p(n)": [1 / math.log1p(n) for n in counts],
        "1/sqrt(n)": [1 / math.sqrt(n) for n in counts],
    }[options.get("class_weights")]
    expected = oracle.margin_loss(
        kind_of(head),
        x,
        head.weight,
        labels.tolist(),
        k=head.k,
        scale=12.0,
        margins=margins,
        label_smoothing=options.get("label_smoothing", 0.0),
        focal_gamma=options.get("focal_gamma", 0.0),
        class_weights=weights,
    )
    loss = head(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    got, wanted = gradients(loss, x, head.weight), gradients(expected, x, head.weight)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", HEADS)
def test_gradcheck(make, double, tile):
    x, labels = batch(rows=6, dim=3, classes=4)
    head = make(3, 4, scale=5.0, label_smoothing=0.1, focal_gamma=1.5)
    head.eval()

    def loss(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (x, labels))

    assert torch.autograd.gradcheck(loss, (x, head.weight))


def test_smoothing_gives_the_others_no_margin():
    """The known bug mixes the margin into every class in proportion to its smoothed target."""
    x, labels = batch(ignored=False)
    head = ArcFace(4, 5, label_smoothing=0.3)
    c = F.normalize(x) @ F.normalize(head.weight).T
    own = c.gather(1, labels[:, None])
    moved = torch.where(own > -math.cos(0.3), (own.acos() + 0.3).cos(), own - 0.3 * math.sin(0.3))
    logits = 30 * c.scatter(1, labels[:, None], moved)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3)
    torch.testing.assert_close(head(x, labels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("m", [0.1, 0.5, 1.0, math.pi / 2])
def test_loss_rises_all_the_way_to_the_antipode(m, double):
    angle = torch.linspace(0.001, math.pi - 0.001, 100)
    x = torch.stack([angle.cos(), angle.sin(), torch.zeros(100)], 1)
    head = ArcFace(3, 2, scale=10, margin=m)
    head.weight.data = torch.tensor(
        [[1.0, 0, 0], [0, 0, 1.0]]
    )  # the other class stays at 90 degrees
    losses = torch.stack([head(row[None], torch.tensor([0])) for row in x])
    assert (losses.diff() > 0).all()


def test_only_the_nearest_sub_center_learns_and_a_tie_goes_to_the_first():
    head = SubCenterArcFace(2, 2, k=3)
    head.weight.data = torch.tensor([[0, 1.0], [1, 0], [1, 0], [-1, 0], [-1, 0.1], [0, -1]])
    head(torch.tensor([[2.0, 0.2]]), torch.tensor([0])).backward()
    touched = head.weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [False, True, False, False, False, True]


# --- margins by formula, ramp -----------------------------------------------------------------


def test_margin_formulas_by_hand():
    minmax = {"formula": "minmax_power", "a": 0.45, "b": 0.05, "lambda": 0.25}
    got = ArcFace(2, 4, margin=minmax, class_counts=[1, 16, 81, 0]).margins
    r = (1 / 2 - 1 / 3) / (1 - 1 / 3)  # n^-1/4 is 1, 1/2, 1/3
    np.testing.assert_allclose(got, [0.5, 0.45 * r + 0.05, 0.05, 0.5], rtol=1e-6)
    power = {"formula": "power", "a": 0.4, "b": 0.1, "lambda": 0.5}
    got = ArcFace(2, 4, margin=power, class_counts=torch.tensor([4, 100, 25, 0])).margins
    np.testing.assert_allclose(got, [0.3, 0.14, 0.18, 0.3], rtol=1e-6)


def test_an_absent_class_moves_no_other_margin():
    both = [
        ArcFace(2, len(n), margin={"formula": "minmax_power"}, class_counts=n).margins
        for n in ([4, 9, 30], [4, 9, 30, 0])
    ]
    np.testing.assert_array_equal(both[0], both[1][:3])
    assert both[1][3] == both[0].max()


@pytest.mark.parametrize("counts", [[7, 7, 7], [0, 0, 0], [3, 0, 0]])
def test_equal_counts_give_the_middle_margin(counts):
    head = ArcFace(2, 3, margin={"formula": "minmax_power"}, class_counts=counts)
    np.testing.assert_allclose(head.margins, [0.275] * 3, rtol=1e-6)


def test_ramp_is_a_factor_on_the_margin(double):
    x, labels = batch()
    ramp = {"start": 0.2, "end": 1.0, "over": 0.5}
    head = SubCenterArcFace(4, 5, margin=1.0, ramp=ramp, seed=1)
    for progress, expected in [(0, 0.2), (0.25, 0.6), (0.5, 1.0), (0.75, 1.0), (1, 1.0)]:
        head.schedule(progress)
        fixed = SubCenterArcFace(4, 5, margin=expected, seed=1)
        torch.testing.assert_close(head(x, labels), fixed(x, labels), rtol=1e-12, atol=1e-12)
    formula = {"formula": "power", "a": 0.5, "b": 0.1, "lambda": 0.5}
    head = CosFace(4, 5, margin=formula, class_counts=[4] * 5, ramp={"start": 0.5}, seed=1)
    before = head(x, labels)
    torch.testing.assert_close(before, CosFace(4, 5, margin=0.175, seed=1)(x, labels))
    head.schedule(1.0)
    torch.testing.assert_close(head(x, labels), CosFace(4, 5, margin=0.35, seed=1)(x, labels))


def test_state_survives_and_leaves_arguments_alone():
    x, labels = batch()
    head = SubCenterArcFace(4, 5, margin=0.8, ramp={"start": 0.25, "over": 0.8})
    head.schedule(0.4)
    expected = head(x, labels)
    state = copy.deepcopy(head.state_dict())
    assert set(state) == {"weight", "wins", "margin_factor"}
    assert state["wins"].sum() == (labels >= 0).sum()
    again = SubCenterArcFace(4, 5, margin=0.8, ramp={"start": 0.25, "over": 0.8})
    again.load_state_dict(state)
    assert again(x, labels) == expected
    assert again.wins.sum() == 2 * (labels >= 0).sum()
    # A later stage with other margins loads the same state.
    other = SubCenterArcFace(4, 5, margin={"formula": "power"}, class_counts=COUNTS)
    other.load_state_dict(state)
    other.schedule(0.1)
    assert other.margin_factor == 1
    assert other.margins[0] == pytest.approx(0.55)


# --- never NaN --------------------------------------------------------------------------------


def extremes(head):
    """(embeddings, labels) of hard cases for a head of 4 dimensions and 3 classes, by name."""
    w, labels = head.weight.detach()[:: head.k], torch.arange(3)
    return {
        "on the center": (w * 5, labels),
        "antipode": (-w, labels),
        "on another center": (w[[1, 2, 0]], labels),
        "all equal": (torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)),
        "zero rows": (torch.zeros(3, 4), labels),
        "one sample": (w[:1], labels[:1]),
        "some ignored": (w, torch.tensor([-1, 1, -1])),
    }


@pytest.mark.parametrize("scale", [30.0, 256.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", HEADS)
def test_finite_in_extreme_places(make, dtype, scale, tile):
    head = make(4, 3, scale=scale, focal_gamma=0.5, label_smoothing=0.1, seed=3)
    for name, (x, labels) in extremes(head).items():
        head.zero_grad()
        x = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = head(x, labels)
        loss.backward()
        assert loss.dtype == torch.float32, name
        for value in (loss, x.grad, head.weight.grad):
            assert value.isfinite().all(), name
        assert all(math.isfinite(value) for value in head.statistics().values()), name


def test_many_rows_on_their_centers_stay_finite():
    """Rounding puts some of these cosines above 1, where a bare sqrt(1 - c * c) is NaN."""
    head = ArcFace(64, 500, seed=0)
    c = torch.einsum("cd,cd->c", F.normalize(head.weight), F.normalize(head.weight))
    assert (c > 1).any()
    x = head.weight.detach().clone().requires_grad_()
    loss = head(x, torch.arange(500))
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("make", HEADS)
def test_a_center_of_length_zero_is_left_alone(make):
    head = make(4, 5)
    with torch.no_grad():
        head.weight[head.k] = 0
    x, labels = batch()
    head(x, labels).backward()
    assert x.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()
    assert (head.weight.grad[head.k] == 0).all()
    assert head.centers().isfinite().all()


@pytest.mark.parametrize("make", HEADS)
def test_scale_of_embeddings_does_not_matter(make):
    x, labels = batch()
    head = make(4, 5)
    expected = head(x, labels)
    for factor in (1e-8, 1e18, 1e30):
        far = (x.detach() * factor).requires_grad_()
        loss = head(far, labels)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        loss.backward()
        assert far.grad.isfinite().all()


@pytest.mark.parametrize("make", HEADS)
def test_a_single_class_has_nothing_to_tell_apart(make, tile):
    x, _ = batch(rows=4)
    head = make(4, 1, scale=256.0)
    loss = head(x, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()
    assert (head.weight.grad == 0).all()


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_learn_is_an_attached_zero(make, rows, tile):
    head = make(4, 5, focal_gamma=2.0, class_weights="1/n", class_counts=COUNTS)
    x = torch.full((rows, 4), torch.nan, requires_grad=True)
    loss = head(x, torch.full((rows,), -1))
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()
    assert (head.weight.grad == 0).all()
    assert head.statistics() == {}


@pytest.mark.parametrize("make", HEADS)
def test_ignored_rows_change_nothing(make, tile):
    x, labels = batch()
    head = make(4, 5, label_smoothing=0.1)
    keep = labels >= 0
    expected = head(x[keep], labels[keep])
    with torch.no_grad():
        x[~keep] = torch.inf
    loss = head(x, labels)
    torch.testing.assert_close(loss, expected)
    dx, dw = gradients(loss, x, head.weight)
    torch.testing.assert_close(dw, gradients(expected, x, head.weight)[1])
    assert (dx[~keep] == 0).all()


@pytest.mark.parametrize("make", HEADS)
def test_autocast_changes_nothing(make):
    x, labels = batch()
    rounded = x.detach().bfloat16().requires_grad_()
    exact = rounded.detach().float().requires_grad_()
    head = make(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(rounded, labels)
        dx, dw = gradients(loss, rounded, head.weight)  # backward under autocast too
    expected = head(exact, labels)
    ex, ew = gradients(expected, exact, head.weight)
    assert loss.dtype == dw.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert torch.equal(dw, ew)
    assert torch.equal(dx, ex.bfloat16())


# --- memory -----------------------------------------------------------------------------------

B, C, D, K = 32, 20_000, 8, 3
BLOCK, WEIGHT = 4 * B * C, 4 * C * K * D  # bytes


def peak_bytes(step):
    """Largest sum of live allocations made by `step`, temporaries inside operators included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(np.cumsum([e.nbytes() for e in events]))


def plain_loss(x, weight, labels):
    c = (F.normalize(x) @ F.normalize(weight).T).view(B, C, K).amax(2)
    return F.cross_entropy(30 * (c - 0.3 * F.one_hot(labels, C)), labels)


@pytest.mark.parametrize("k", [1, K])
def test_one_block_is_alive_in_forward_and_backward(k, monkeypatch):
    monkeypatch.setattr(cosine, "TILE", 1 << 14)
    x, labels = batch(rows=B, dim=D, classes=C)
    head = SubCenterArcFace(D, C, k=k)
    gradient = WEIGHT * k // K
    allowed = BLOCK + (BLOCK // 4 if k > 1 else 0) + gradient + 4 * C * k
    limit = allowed + BLOCK // 3  # less than a second block, less than a copy of the weight
    assert peak_bytes(lambda: head(x, labels)) < limit - gradient
    assert peak_bytes(lambda: head(x, labels).backward()) < limit
    if k > 1:  # the measure sees what the usual way costs
        plain = head.weight.detach().clone().requires_grad_()
        labels = labels.clamp_min(0)
        assert peak_bytes(lambda: plain_loss(x, plain, labels).backward()) > limit + 2 * BLOCK


def test_kept_for_backward_is_one_block_and_its_winners():
    x, labels = batch(rows=B, dim=D, classes=500)
    head = SubCenterArcFace(D, 500)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tensor.numel(), tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        head(x, labels)
    del kept[head.weight.untyped_storage().data_ptr()]
    large = sorted((str(d), n) for n, d in kept.values() if n >= 500 * K)
    assert large == [
        ("torch.float32", 500 * K),
        ("torch.float32", B * 500),
        ("torch.uint8", B * 500),
    ]


# --- the rest of the surface ------------------------------------------------------------------


def test_centers_are_unit_and_adjacent():
    head = SubCenterArcFace(4, 5, k=2)
    centers = head.centers()
    assert centers.shape == (5, 2, 4)
    assert not centers.requires_grad
    torch.testing.assert_close(centers[3, 1], F.normalize(head.weight[7], dim=0))


def test_every_tensor_that_learns_is_a_parameter():
    for make in HEADS:
        head = make(4, 5, class_counts=COUNTS, margin={"formula": "power"}, class_weights="1/n")
        assert [name for name, _ in head.named_parameters()] == ["weight"]
        assert head.weight.shape == (5 * head.k, 4)
        head(*batch()).backward()
        assert head.weight.grad is not None


def test_seed_fixes_the_start_and_sub_centers_differ():
    a, b = (SubCenterArcFace(4, 5, seed=7).weight for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, SubCenterArcFace(4, 5, seed=8).weight)
    assert len(a.unique(dim=0)) == 15


def test_statistics_by_hand():
    head = SubCenterArcFace(2, 2, k=2)
    head.weight.data = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    assert head.statistics() == {}
    head(torch.tensor([[1.0, 0], [2, 0]]), torch.tensor([0, 0]))
    half = math.sqrt(0.5)
    x = torch.tensor([[half, half - 1e-3], [0.0, 3], [1, 1]])
    head(x, torch.tensor([0, 0, -1]))
    found = head.statistics()
    assert found["own_angle"] == pytest.approx(45 / 2, abs=0.1)
    assert found["hardest_cosine"] == pytest.approx((-half + 0) / 2, abs=1e-3)
    assert found["dominant_share"] == 0.5  # three wins for the first, one for the second
    assert head.wins.tolist() == [[3, 1], [0, 0]]
    head.eval()
    head(x, torch.tensor([0, 0, -1]))
    assert head.wins.sum() == 4


def test_contract_of_the_signature():
    names = ["embedding_dim", "num_classes", "k", "scale", "margin", "class_counts"]
    for make, k in [(CosFace, 1), (ArcFace, 1), (SubCenterArcFace, 3)]:
        parameters = inspect.signature(make).parameters
        assert list(parameters)[:6] == names
        assert [parameters[n].default for n in names[2:]] == [k, 30.0, 0.3, None]
    head = SubCenterArcFace(4, 5, 2, 16.0, 0.2, np.array([3, 2, 1, 0, 9]))
    assert (head.k, head.scale, head.margin) == (2, 16.0, 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": {"formula": "linear"}}, "minmax_power, power"),
        ({"margin": {"a": 0.3}}, "minmax_power, power"),
        ({"margin": {"formula": "power", "coef": 1}}, "'coef'; it has: a, b, lambda"),
        ({"margin": {"formula": "power", "a": "big"}}, "a must be a number"),
        ({"margin": {"formula": "power"}, "class_counts": None}, "needs class_counts"),
        ({"margin": {"formula": "power", "a": 9.0}}, "margins must lie in"),
        ({"margin": 28.6}, "radians"),
        ({"margin": -0.1}, "margins must lie in"),
        ({"margin": math.nan}, "margins must lie in"),
        ({"margin": 1.0, "ramp": {"end": 2.0}}, "margins must lie in"),
        ({"ramp": {"begin": 0.1}}, "'begin'; it has: start, end, over"),
        ({"ramp": {"over": 0}}, "over in"),
        ({"ramp": {"start": -0.5}}, "start >= 0"),
        ({"class_counts": [1, 2]}, "each of 5 classes"),
        ({"class_counts": [1, 2, 3, 4, -1]}, "at least 0"),
        ({"class_weights": "1/n", "class_counts": None}, "needs class_counts"),
        ({"class_weights": "n"}, "1/log1p"),
        ({"k": 0}, "1..255"),
        ({"k": 256}, "1..255"),
        ({"scale": 0.0}, "scale"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
        ({"num_classes": 0}, "one class"),
    ],
    ids=str,
)
def test_bad_arguments_name_what_is_known(options, message):
    arguments = {"embedding_dim": 4, "num_classes": 5, "class_counts": COUNTS} | options
    with pytest.raises(ValueError, match=message):
        SubCenterArcFace(**arguments)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (torch.ones(2, 4), torch.tensor([0, 5]), r"\[0, 5\).*got 0 to 5"),
        (torch.ones(2, 4), torch.tensor([0, -2]), "-2 to 0"),
        (torch.ones(2, 4), torch.tensor([0.0, 1.0]), "int64"),
        (torch.ones(2, 4), torch.tensor([0]), r"shape \(2,\)"),
        (torch.ones(2, 3), torch.tensor([0, 1]), r"\(B, 4\)"),
    ],
)
def test_bad_input(x, labels, message):
    with pytest.raises(ValueError, match=message):
        ArcFace(4, 5)(x, labels)


@pytest.mark.parametrize("progress", [-0.1, 3, math.nan])
def test_progress_is_a_part(progress):
    with pytest.raises(ValueError, match="0 to 1"):
        ArcFace(4, 5).schedule(progress)


def test_only_heads_are_public():
    own = {
        name
        for name, value in vars(margin).items()
        if getattr(value, "__module__", None) == margin.__name__ and not name.startswith("_")
    }
    assert own == {"CosFace", "ArcFace", "SubCenterArcFace"}
