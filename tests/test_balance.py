"""First answers spread over unused classes, against a twin that recounts after every swap."""

import numpy as np
import pytest
import torch

from common.rerank.balance import balance
from common.rerank.known import STEPS
from common.steps import chain
from common.types import Neighbors


def naive(index, score, margin, unknown):
    """One swap at a time, all counted anew; rows that were looked at are not looked at again."""
    rows = [list(row) for row in index]
    calls = sorted((float(np.float32(s[0]) - np.float32(s[1])), q) for q, s in enumerate(score))
    for gap, q in calls:
        a, b = rows[q][:2]
        if min(a, b) < 0 or unknown in (a, b) or not gap < margin:
            continue
        first = [row[0] for row in rows]
        if b not in first and first.count(a) > 1:
            rows[q][:2] = [b, a]
    return rows


def scene(seed, queries=40, classes=25):
    random = np.random.default_rng(seed)
    index = np.stack([random.permutation(classes)[:6] for _ in range(queries)])
    index[:, 0] = np.where(
        random.random(queries) < 0.6, random.integers(0, 4, queries), index[:, 0]
    )
    index = np.stack([[*dict.fromkeys([*row, *range(classes)])][:6] for row in index])
    score = -np.sort(-random.integers(0, 9, index.shape) / 9).astype(np.float32)
    index[3, 1:], score[3, 1:] = -1, -np.inf
    return Neighbors(torch.from_numpy(index), torch.from_numpy(score))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.3, 5.0])
@pytest.mark.parametrize("unknown", [None, 2])
def test_it_is_the_naive_one(seed, margin, unknown):
    given = scene(seed)
    before = given.index.clone()
    found = balance(given, margin=margin, unknown=unknown)
    wanted = naive(given.index.tolist(), given.score.tolist(), margin, unknown)
    assert found.index.tolist() == wanted
    assert torch.equal(given.index, before), "the given lists stay"
    assert torch.equal(found.score, given.score)
    assert (found.index != before).any() == (margin > 0)
    if unknown is not None:
        assert torch.equal(found.index == unknown, before == unknown), "nobody moves past it"


def test_a_swap_by_hand():
    """Two images are called 7; the closer call goes to 8, which nobody has; 9 is taken."""
    index = torch.tensor([[7, 8], [7, 8], [9, 7], [5, 9]])
    score = torch.tensor([[0.9, 0.7], [0.9, 0.8], [0.9, 0.89], [0.9, 0.9]])
    found = balance(Neighbors(index, score), margin=0.15)
    assert found.index.tolist() == [[7, 8], [8, 7], [9, 7], [5, 9]]
    alone = balance(Neighbors(index[1:], score[1:]), margin=0.15)
    assert torch.equal(alone.index, index[1:]), "7 would go without"


def test_as_a_step_and_odd_shapes():
    given = scene(0)
    state = {"neighbors": given}
    found = chain([{"name": "balance", "margin": 0.3}], STEPS, set(state), "x")(state)["neighbors"]
    assert torch.equal(found.index, balance(given, margin=0.3).index)
    for index in (torch.zeros(0, 5), torch.zeros(3, 1), torch.zeros(3, 0)):
        few = Neighbors(index.long(), index)
        assert balance(few, margin=1.0).index.shape == index.shape
    with pytest.raises(ValueError, match="margin must be at least 0, got -1"):
        balance(given, margin=-1.0)
