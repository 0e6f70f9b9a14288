"""What every name in a `loss:` list promises; a new loss is tested by being there."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.losses.total import KNOWN
from common.steps import bind
from tests.oracles.pair_losses import HARD_CASES, batch

DIM, CLASSES = 5, 8
HALVES = torch.float16, torch.bfloat16
# What is not the default, where that changes the path: state, centres per class, formulas.
OPTIONS = {
    "linear_softmax": [{"label_smoothing": 0.1, "focal_gamma": 0.5, "class_weights": "1/n"}],
    "cosine_softmax": [{"k": 2, "label_smoothing": 0.1, "focal_gamma": 0.5}],
    "arcface": [{"margin": {"formula": "power"}, "scale": 64.0}],
    "cosface": [{"margin": {"formula": "minmax_power"}, "class_weights": "1/log1p(n)"}],
    "ada_cos": [{"dynamic": True}],
    "curricularface": [{"k": 2}],
    "adaface": [{"k": 2}],
    "sphereface": [{"annealing": {"start": 0.0, "end": 0.0}}],
    "center": [{"normalize": True, "class_weights": "1/n"}],
    "ohem_sigmoid": [
        {"hardest": 3, "focal_gamma": 2.0},
        {"hardest": 3, "label_smoothing": 0.1, "class_weights": "1/n"},
    ],
    "triplet": [
        {"margin": "soft", "miner": "all_triplets"},
        {"normalize": False},
        {"miner": "hard_triplets"},
        {"miner": "semi_hard_pair", "active_only": True},
    ],
    "cosine_contrastive": [{"miner": "multi_similarity_pairs"}],
    "quadruplet": [{"adaptive": True}],
    "circle": [{"scale": 256.0, "margin": 0.25, "reduction": "batch"}],
    "cross_batch_memory": [{"size": 6, "start": 0}, {"size": 6, "start": 0, "loss": "nce"}],
    "momentum_queue": [{"size": 6}, {"size": 6, "loss": "triplet"}],
    "partial_fc": [{"rate": 0.5, "head": {"name": "curricularface"}}],
}
EVERY = [(name, options) for name in KNOWN for options in [{}, *OPTIONS.get(name, [])]]
IDS = [f"{name}-{number}" for number, (name, _) in enumerate(EVERY)]
every = pytest.mark.parametrize(("name", "options"), EVERY, ids=IDS)


def make(name, options, dim=DIM):
    step = {"name": name, **options}
    if "loss" in step:
        step["loss"] = {"name": step["loss"]}
    counts = [3, 1, 0, 2, 9, 1, 4, 30]
    state = {"embedding_dim": dim, "num_classes": CLASSES, "class_counts": counts}
    torch.manual_seed(0)
    return bind(step, KNOWN)(state)


def takes(name, argument):
    return argument in inspect.signature(KNOWN[name]).parameters


HEADS = [(name, options) for name, options in EVERY if takes(name, "num_classes")]
PAIRS = [(name, options) for name, options in EVERY if not takes(name, "num_classes")]
heads = pytest.mark.parametrize(("name", "options"), HEADS, ids=str)
pairs = pytest.mark.parametrize(("name", "options"), PAIRS, ids=str)


def rows(count=14, seed=0, dtype=torch.float32, ignored=True):
    return batch(count, DIM, 5, ignored=ignored, seed=seed, dtype=dtype)


def step(loss, x, labels, *, autocast=None):
    """Loss and gradients of rows and parameters; all finite, and the loss a float32 scalar."""
    x = x.detach().requires_grad_()
    loss.zero_grad()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        value = loss(x, labels)
    value.backward()
    assert value.shape == ()
    assert value.dtype == torch.promote_types(x.dtype, torch.float32)
    grads = [p.grad.to_dense() for p in loss.parameters()]  # partial_fc's are sparse
    found = [value.detach(), x.grad, *grads]
    assert all(part.isfinite().all() for part in found)
    return found


def same_state(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=0, atol=0, equal_nan=True)


def finite_state(loss):
    """All buffers are finite; the NCE normaliser is NaN until there is one."""
    return all(v.isfinite().all() for k, v in loss.state_dict().items() if "log_z" not in k)


# --- never NaN or inf


@every
@pytest.mark.parametrize("case", HARD_CASES.values(), ids=HARD_CASES)
def test_hard_batches_stay_finite(name, options, case):
    x, labels = case()
    loss = make(name, options)
    for _ in range(2):  # the second time against whatever the first one left
        step(loss, x, labels)
        for kind in HALVES:
            step(loss, x, labels, autocast=kind)
    assert finite_state(loss)
    step(loss, *rows())


@heads
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sign", [1, -1], ids=["on the centre", "at the antipode"])
@pytest.mark.parametrize("scale", [1.0, 256.0, 1e-3])
def test_rows_on_their_centre_and_opposite_stay_finite(name, options, dtype, sign, scale):
    """Of three lengths; the longest in a head of scale 256, where it has one."""
    if scale == 256 and takes(name, "scale"):
        options = {**options, "scale": 256.0}
    loss = make(name, options)
    labels = torch.arange(CLASSES)
    if hasattr(loss, "centers"):
        centers = loss.centers()[:, 0]
    else:
        centers = (loss.weight if hasattr(loss, "weight") else loss.means).detach()
    for _ in range(2):
        step(loss, (sign * scale * centers).to(dtype), labels)
    assert finite_state(loss)


@every
def test_a_batch_of_nan_spoils_no_later_one(name, options):
    """A scaler skips the step of a batch that overflowed; what the loss keeps must not hold it."""
    loss = make(name, options)
    step(loss, *rows())
    x, labels = rows(seed=1)
    loss(torch.full_like(x, torch.nan), labels)
    assert finite_state(loss)
    step(loss, *rows(seed=2))


@every
@pytest.mark.parametrize("broken", [slice(None), slice(3, 4)], ids=["all rows", "one row"])
def test_a_training_that_broke_shows(name, options, broken):
    """`fit` stops at a loss that is not finite; mining would leave such rows out, and end at 0."""
    x, labels = rows(ignored=False)
    for value in (torch.nan, torch.inf):
        x = x.detach()
        x[broken] = value
        assert not make(name, options)(x, labels).isfinite()


# --- precision


@every
def test_autocast_and_half_inputs_lose_nothing(name, options):
    """Everything is computed in float32: no saturation, and labels stay integers."""
    x, labels = rows()
    for kind in HALVES:
        half = x.detach().to(kind)
        expected = step(make(name, options), half.float(), labels)
        found = step(make(name, options), half, labels)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-6)
    expected = step(make(name, options), x, labels)
    for kind in HALVES:
        found = step(make(name, options), x, labels, autocast=kind)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pairs
def test_labels_are_compared_as_integers(name, options):
    """As float32, in which a peer holds labels, 2^24 and 2^24 + 1 are one class."""
    x, labels = rows(ignored=False)
    expected = step(make(name, options), x, labels)
    found = step(make(name, options), x, labels + 2**24)
    assert all(map(torch.equal, found, expected))


# --- what counts


@every
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_an_ignored_row_is_as_if_it_were_not_there(name, options, value):
    if name == "ohem_sigmoid":
        pytest.skip("label -1 is an unknown there, which it learns to refuse")
    x, labels = rows()
    known = labels >= 0
    x = torch.where(known[:, None], x.detach(), value)
    loss, without = make(name, options), make(name, options)
    for _ in range(2):
        found, expected = step(loss, x, labels), step(without, x[known], labels[known])
        assert not found[1][~known].any()
        found[1] = found[1][known]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("labels", [[], [-1], [-1, -1, -1]], ids=str)
def test_nothing_to_learn_is_a_zero_on_the_graph(name, options, labels):
    if name == "ohem_sigmoid" and labels:
        pytest.skip("label -1 is an unknown there, which it learns to refuse")
    labels = torch.tensor(labels, dtype=torch.int64)
    loss = make(name, options)
    for trained in (False, True):
        if trained:
            step(loss, *rows())
        found = step(loss, torch.randn(len(labels), DIM), labels)
        if name != "proxy_anchor":  # pushes are a mean over all classes: none of no rows
            assert found[0] == 0
        assert not any(part.any() for part in found)


@pairs
def test_a_row_alone_has_no_pair(name, options):
    found = step(make(name, options), torch.randn(1, DIM), torch.tensor([3]))
    if name != "momentum_queue":  # there it has its own key
        assert not any(part.any() for part in found)


@pairs
def test_a_single_pair_counts(name, options):
    """A peer's loss of one positive pair is 0 whatever it holds."""
    x = torch.tensor([[1.0, 0, 0, 0, 0], [1, 0.32, 0, 0, 0], [1, 0.3, 0, 0, 0]])
    found = step(make(name, options), x, torch.tensor([0, 0, 1]))
    assert found[0] > 0
    assert found[1].any()


@every
def test_the_gradient_along_the_row_is_that_of_the_value(name, options):
    """Finite differences; a peer normalises by a detached length."""
    if name == "adaface":
        pytest.skip("its margin follows the length, and by the paper without gradient")
    x, labels = rows(dtype=torch.float64)
    loss = make(name, options).double()
    loss(x, labels)
    loss.eval()
    along = (torch.autograd.grad(loss(x, labels), x)[0] * x).sum()
    with torch.no_grad():
        ahead, behind = (loss(x * (1 + h), labels) for h in (1e-6, -1e-6))
    assert along.item() == pytest.approx((ahead - behind).item() / 2e-6, rel=1e-5, abs=1e-7)


@heads
def test_shares_of_processes_add_up_to_the_whole(name, options):
    """Unequal parts, one of them empty, one without a label."""
    if name == "proxy_anchor":
        pytest.skip("compares rows of a process with each other")
    from common.losses.total import Total

    loss = Total([make(name, options)], [1.0]).eval()
    x, labels = rows()
    labels[9:11] = -1
    whole = loss(x, labels)
    parts = [slice(0, 3), slice(3, 3), slice(3, 9), slice(9, 11), slice(11, 14)]
    masses = torch.stack([loss.masses(labels[part]) for part in parts])
    shares = masses / masses.sum()
    found = sum(loss(x[p], labels[p], s) for p, s in zip(parts, shares, strict=True))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


# --- state


@every
def test_state_survives_a_file_and_a_copy(name, options, tmp_path):
    loss = make(name, options)
    loss.train()
    for seed in range(3):
        step(loss, *rows(seed=seed))
    save_file(loss.state_dict(), tmp_path / "state.safetensors")
    loaded = make(name, options)
    for parameter in loaded.parameters():
        parameter.data.normal_()
    loaded.load_state_dict(load_file(tmp_path / "state.safetensors"))
    copied = copy.deepcopy(loss)
    for seed in range(3, 6):
        expected = step(loss, *rows(seed=seed))
        for again in (loaded, copied):
            assert all(map(torch.equal, step(again, *rows(seed=seed)), expected))
    same_state(loaded, loss)
    same_state(copied, loss)


@every
def test_nothing_adapts_outside_training(name, options):
    loss = make(name, options)
    step(loss, *rows())
    before = copy.deepcopy(loss)
    loss.eval()
    for seed in range(2):
        step(loss, *rows(seed=seed))
    same_state(loss, before)
