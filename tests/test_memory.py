"""Memories against lists and loops, pytorch-metric-learning two processes; state, warm-up."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import reducers
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils import loss_and_miner_utils as pml_utils
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from common.config import ConfigError
from common.losses import memory
from common.losses.memory import KNOWN, CrossBatchMemory, MomentumQueue
from common.losses.pair import ContrastiveLoss, CosineContrastiveLoss, TripletLoss
from common.losses.tuple import InfoNCELoss, LiftedStructureLoss
from common.steps import bind, catalog
from tests.oracles import memory as oracle
from tests.oracles.memory import Ring
from tests.oracles.pair_losses import HARD_CASES, agree, batch, learns_nothing, never_nan

SIZES = [7, 3, 12, 0, 1, 9, 5, 30, 4]  # smaller last batches, an empty one, one above the memory


def batches(sizes=SIZES, dim=4, dtype=torch.float64, **more):
    """Batches of rows, labels and keys near the rows."""
    for seed, size in enumerate(sizes):
        x, labels = batch(size, dim, seed=seed, dtype=dtype, **more)
        noise = torch.randn(size, dim, generator=torch.Generator().manual_seed(100 + seed))
        yield x, labels, (x.detach() + 0.3 * noise).to(dtype)


def ordered(module):
    """Stored (row, label), oldest first."""
    places = [(int(module.cursor) + i) % len(module.memory) for i in range(len(module.memory))]
    labels = module.memory_labels.tolist()
    return [(module.memory[i], labels[i]) for i in places if labels[i] != -1]


def same_rows(found, expected):
    assert [label for _, label in found] == [label for _, label in expected]
    for (a, _), (b, _) in zip(found, expected, strict=True):
        assert torch.equal(a, b)


# --- values and gradients


@pytest.mark.parametrize("size", [1, 10, 64])
@pytest.mark.parametrize("name", ["cosine_contrastive", "info_nce"])
def test_memory_equals_a_list_and_loops(name, size):
    module = CrossBatchMemory(4, {"name": name}, size=size, start=0).double()
    ring = Ring(size)
    for x, labels, _ in batches():
        references = [*zip(x, labels.tolist(), strict=True), *ring.rows]
        agree(module(x, labels), getattr(oracle, name)(x, labels, references, True), x)
        ring.add(x, labels)
        same_rows(ordered(module), ring.rows)


@pytest.mark.parametrize("size", [1, 10, 64])
@pytest.mark.parametrize("name", ["cosine_contrastive", "info_nce"])
def test_queue_equals_a_list_and_loops(name, size):
    module = MomentumQueue(4, {"name": name}, size=size).double()
    ring = Ring(size)
    for x, labels, keys in batches():
        references = [*zip(keys, labels.tolist(), strict=True), *ring.rows]
        agree(module(x, labels, keys), getattr(oracle, name)(x, labels, references, False), x)
        ring.add(keys, labels)
        same_rows(ordered(module), ring.rows)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            CosineContrastiveLoss(),
            pml.ContrastiveLoss(
                1, 0.5, distance=CosineSimilarity(), reducer=reducers.MeanReducer()
            ),
        ),
        (InfoNCELoss(0.1), pml.NTXentLoss(0.1)),
    ],
    ids=["contrastive", "info_nce"],
)
def test_memory_equals_pytorch_metric_learning(ours, theirs):
    # Its memory holds the batch of 8 as well; gradients differ, there the batch's copy has none.
    module = CrossBatchMemory(4, ours, size=20, start=0).double()
    other = pml.CrossBatchMemory(theirs, 4, memory_size=28)
    for x, labels, _ in batches([8] * 6, ignored=False):
        torch.testing.assert_close(module(x, labels), other(x, labels), rtol=1e-8, atol=1e-8)


def test_batch_hard_memory_equals_pytorch_metric_learning():
    module = CrossBatchMemory(4, {"name": "triplet", "margin": 0.3}, size=20, start=0).double()
    theirs = pml.TripletMarginLoss(0.3, reducer=reducers.MeanReducer())
    rows, known = torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for x, labels, _ in batches([8] * 5, ignored=False):
        references, of = torch.cat([x.detach(), rows]), torch.cat([labels, known])
        a1, p, a2, n = pml_utils.get_all_pairs_indices(labels, of)
        keep = a1 != p
        distance = torch.cdist(F.normalize(x), F.normalize(references)).detach()
        found = []
        for i in range(8):
            near, far = p[keep & (a1 == i)], n[a2 == i]
            if len(near) and len(far):
                found.append((i, near[distance[i, near].argmax()], far[distance[i, far].argmin()]))
        expected = theirs(x, labels, tuple(map(torch.tensor, zip(*found))), references, of)  # noqa: B905
        torch.testing.assert_close(module(x, labels), expected, rtol=1e-8, atol=1e-8)
        rows, known = torch.cat([rows, x.detach()])[-20:], torch.cat([known, labels])[-20:]


def test_queue_equals_pytorch_metric_learning():
    module = MomentumQueue(4, {"name": "info_nce", "temperature": 0.2}, size=20).double()
    other = pml.CrossBatchMemory(pml.NTXentLoss(0.2), 4, memory_size=28)
    for x, labels, keys in batches([8] * 6, ignored=False):
        mask = torch.arange(16) >= 8
        expected = other(torch.cat([x, keys]), labels.repeat(2), enqueue_mask=mask)
        agree(module(x, labels, keys), expected, x)


def test_queue_is_moco_for_a_batch_of_one():
    """With one row there are no other keys of the batch, which MoCo leaves out."""
    module = MomentumQueue(4, size=6).double()
    queue = []
    for i, (x, _, keys) in enumerate(batches([1] * 10, ignored=False)):
        loss = module(x, torch.tensor([i]), keys)
        if queue:
            unit = F.normalize(x), F.normalize(keys)
            agree(loss, oracle.moco(*unit, F.normalize(torch.stack(queue)), 0.07), x)
        queue = [*queue, keys[0]][-6:]


def test_an_empty_memory_is_the_plain_loss():
    for name in KNOWN:
        x, labels = batch()
        module = CrossBatchMemory(4, {"name": name}, start=0).double()
        plain = bind({"name": name}, KNOWN)().double()
        agree(module(x, labels), plain(x, labels), x)


# --- what is stored


def test_infinite_rows_are_not_kept():
    """A scaler skips their step; a memory of them would make every later loss NaN."""
    module = CrossBatchMemory(4, size=10, start=0)
    x, labels = torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 2])
    x[1, 2], x[3, 0] = torch.inf, torch.nan
    module(x, labels)
    assert [label for _, label in ordered(module)] == [0, 1, 2]
    assert module(torch.randn(5, 4), labels).isfinite()


def test_nothing_is_kept_outside_training():
    module = MomentumQueue(4, size=10)
    (x, labels, keys), *_ = batches([8], dtype=torch.float32)
    module(x, labels, keys)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.eval()
    inside = module(x, labels, keys)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert inside.item() == module(x, labels, keys).item()


def test_backward_may_come_after_the_next_call():
    """Accumulated steps: what the first one needs for its gradient is not overwritten."""
    module = CrossBatchMemory(4, size=6, start=0).double()
    made = list(batches([6, 6, 6], ignored=False))
    expected = []
    for late in (False, True):
        fresh = CrossBatchMemory(4, size=6, start=0).double()
        module.load_state_dict(fresh.state_dict())
        xs = [x.detach().clone().requires_grad_() for x, _, _ in made]
        losses = []
        for x, (_, labels, _) in zip(xs, made, strict=True):
            losses.append(module(x, labels))
            if not late:
                losses[-1].backward()
        if late:
            sum(losses).backward()
        expected.append([x.grad for x in xs])
    for a, b in zip(*expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_memory_gets_no_gradient():
    module = CrossBatchMemory(4, size=10, start=0)
    for x, labels, _ in batches([8, 8], dtype=torch.float32):
        module(x, labels)
    assert not module.memory.requires_grad
    assert list(module.parameters()) == []
    module = MomentumQueue(4, size=10)
    x, labels, keys = next(batches([8], dtype=torch.float32))
    module(x, labels, keys.requires_grad_()).backward()
    assert keys.grad is None
    assert x.grad.abs().sum() > 0


# --- warm-up and state


@pytest.mark.parametrize("kind", [CrossBatchMemory, MomentumQueue])
def test_warm_up_neither_fills_nor_asks_the_memory(kind):
    module = kind(4, {"name": "contrastive"}, size=50, start=3).double()
    for number, (x, labels, keys) in enumerate(batches([8] * 5, ignored=False)):
        more = (keys,) if kind is MomentumQueue else ()
        stored = module.statistics()["memory_rows"]
        assert stored == 8 * max(0, number - 3)
        if number <= 3:
            references = keys if more else x
            plain = ContrastiveLoss()(x, labels, references, labels, own=not more)
            agree(module(x, labels, *more), plain, x)
        else:
            module(x, labels, *more)
    assert module.statistics()["memory_rows"] == 16


@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.parametrize("kind", [CrossBatchMemory, MomentumQueue])
def test_state_survives_save_and_load(kind, stop, tmp_path):
    def losses(module, part):
        found = []
        for x, labels, keys in part:
            more = (keys,) if kind is MomentumQueue else ()
            found.append(module(x, labels, *more).item())
        return found

    made = list(batches(dtype=torch.float32))
    whole = losses(kind(4, size=10, start=2), made)
    first = kind(4, size=10, start=2)
    found = losses(first, made[:stop])
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    second = kind(4, size=10, start=2)
    second.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert found + losses(second, made[stop:]) == whole
    assert len(set(whole)) > 4


def test_schedule_and_statistics_reach_the_loss():
    loss = {"name": "triplet", "ramp": {"start": 0.0, "end": 1.0, "over": 1.0}}
    module = CrossBatchMemory(4, loss, size=10, start=0)
    module.schedule(0.25)
    assert module.loss.margin_factor == 0.25
    x, labels, _ = next(batches([12], dtype=torch.float32, ignored=False))
    module(x, labels)
    found = module.statistics()
    assert found["memory_rows"] == 10
    assert "active" in found
    plain = CrossBatchMemory(4, size=10)
    plain.schedule(0.5)
    assert plain.statistics() == {"memory_rows": 0.0}


@pytest.mark.parametrize("kind", [CrossBatchMemory, MomentumQueue])
def test_mass_is_what_the_next_mean_divides_by(kind):
    module = kind(4, {"name": "info_nce"}, size=10, start=1).double()
    for x, labels, keys in batches():
        mass = module.mass(labels)
        stored = [label for _, label in ordered(module)] if module.calls >= 1 else []
        references = [*labels.tolist(), *stored]
        pairs = 0
        for i, label in enumerate(labels.tolist()):
            own = [y for j, y in enumerate(references) if kind is MomentumQueue or i != j]
            if label != -1 and any(y not in (label, -1) for y in own):
                pairs += own.count(label)
        assert mass == pairs
        module(x, labels, *((keys,) if kind is MomentumQueue else ()))


# --- never NaN


@pytest.mark.parametrize("case", HARD_CASES.values(), ids=HARD_CASES)
@pytest.mark.parametrize("name", KNOWN)
def test_never_nan(name, case):
    x, labels = case()
    module = CrossBatchMemory(5, {"name": name}, size=6, start=0)
    queue = MomentumQueue(5, {"name": name}, size=6)
    for _ in range(3):  # against nothing, against the very same rows, against a full memory
        never_nan(module, x, labels)
        never_nan(lambda x, y: queue(x, y, x.detach()), x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        never_nan(module, x, labels)


@pytest.mark.parametrize("labels", [[], [-1], [-1, -1, -1]])
@pytest.mark.parametrize("name", KNOWN)
def test_nothing_to_learn_is_a_zero_on_the_graph(name, labels):
    for filled in (False, True):
        module = CrossBatchMemory(3, {"name": name}, size=6, start=0)
        queue = MomentumQueue(3, {"name": name}, size=6)
        if filled:
            x, known = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
            module(x, known)
            queue(x, known, x)
        learns_nothing(module, labels)
        learns_nothing(lambda x, y, queue=queue: queue(x, y, x), labels)


def test_half_precision_rows_meet_a_float32_memory():
    module = CrossBatchMemory(4, size=10, start=0)
    for x, labels, _ in batches([8, 8], dtype=torch.float16):
        module(x, labels).backward()
        assert x.grad.dtype == torch.float16
    assert module.memory.dtype == torch.float32


# --- several processes


def _train(rank, world, address, out):
    """The rows of each batch go to the ranks unevenly; the first rank's third part is empty."""
    if world > 1:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    memory_, queue = CrossBatchMemory(4, size=10, start=1), MomentumQueue(4, size=7)
    for number, (x, labels, keys) in enumerate(batches(dtype=torch.float32)):
        if number == 5:
            x = x.detach().index_fill(0, torch.tensor([2]), torch.inf)
        cut = [0, len(x)] if world == 1 else [0, 0 if number == 2 else 2 * len(x) // 3, len(x)]
        mine = slice(cut[rank], cut[rank + 1])
        memory_(x[mine], labels[mine])
        queue(x[mine], labels[mine], keys[mine])
    both = torch.nn.ModuleDict({"memory": memory_, "queue": queue})
    save_file(both.state_dict(), f"{out}/{world}-{rank}.safetensors")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_store_what_one_would(tmp_path):
    _train(0, 1, "", tmp_path)
    address = f"file://{tmp_path}/meet"
    torch.multiprocessing.spawn(_train, (2, address, str(tmp_path)), nprocs=2)
    expected = load_file(tmp_path / "1-0.safetensors")
    assert (expected["memory.memory_labels"] >= 0).all()
    for rank in range(2):
        found = load_file(tmp_path / f"2-{rank}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)


# --- configuration


def test_by_name():
    known = catalog(memory)
    assert set(known) == {"cross_batch_memory", "momentum_queue"}
    loss = {"name": "triplet", "margin": "soft", "miner": {"name": "n_hard", "negatives": [1, 2]}}
    step = {"name": "cross_batch_memory", "loss": loss, "size": 16, "start": 0}
    module = bind(step, known)({"embedding_dim": 4})
    assert isinstance(module.loss, TripletLoss)
    assert module.memory.shape == (16, 4)
    for x, labels, _ in batches([8, 8], dtype=torch.float32):
        assert module(x, labels) > 0
    assert isinstance(
        bind({"name": "momentum_queue"}, known)({"embedding_dim": 4}).loss, InfoNCELoss
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CrossBatchMemory(4, size=0), ValueError, "size >= 1"),
        (lambda: CrossBatchMemory(4, start=-1), ValueError, "start >= 0"),
        (lambda: CrossBatchMemory(4, LiftedStructureLoss()), ValueError, "LiftedStructureLoss"),
        (lambda: CrossBatchMemory(4, {"name": "lifted_structure"}), ConfigError, "Known: contr"),
        (lambda: CrossBatchMemory(4, {"name": "info_nce", "t": 1}), ConfigError, "temperature"),
        (
            lambda: CrossBatchMemory(4)(torch.zeros(2, 5), torch.zeros(2).long()),
            ValueError,
            "\\(2, 4\\).*\\(2, 5\\)",
        ),
        (
            lambda: MomentumQueue(4)(torch.zeros(2, 4), torch.zeros(2).long(), torch.zeros(3, 4)),
            ValueError,
            "\\(2, 4\\) and \\(3, 4\\)",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
