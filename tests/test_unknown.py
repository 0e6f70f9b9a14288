"""The unknown identity in lists of five, against one query at a time."""

import numpy as np
import pytest
import torch

from common.rerank.curves import refused_listings, unknown_curve
from common.rerank.known import STEPS
from common.rerank.unknown import insert_unknown, unknown_threshold
from common.steps import chain
from common.types import Neighbors
from tests.oracles import thresholds as oracle
from tests.test_thresholds import scene

# Classes 0 to 11; the odd ones have one image; class 12 is nobody known.
LABELS = torch.tensor([c for c in range(12) for _ in range(1 if c % 2 else 2 + c // 4)] + [-1])
COUNTS = np.bincount(LABELS[:-1].numpy())
FREQUENT = sorted(range(12), key=lambda c: (-COUNTS[c], c))


def neighbors(**settings):
    score, index, truth = scene(**settings)
    return Neighbors(torch.from_numpy(index), torch.from_numpy(score)), truth


def answers(found):
    return found.index.tolist()


@pytest.mark.parametrize("threshold", [-10.0, -0.5, 0.0, 0.8, 10.0])
@pytest.mark.parametrize("single", [0.0, -0.5, 0.25])
@pytest.mark.parametrize("top", [5, 2, 9])
@pytest.mark.parametrize("ties", [False, True])
def test_it_is_the_naive_one(threshold, single, top, ties):
    given, _ = neighbors(ties=ties)
    found = insert_unknown(given, LABELS, threshold=threshold, single=single, top=top)
    offset = np.where(COUNTS == 1, np.float32(single), 0)
    for row, (score, index) in enumerate(
        zip(given.score.numpy(), given.index.tolist(), strict=True)
    ):
        answer = oracle.ranked(score, index, np.float32(threshold), 12, top, offset)
        assert answers(found)[row] == oracle.filled(answer, FREQUENT, top)
    assert (found.score.diff(dim=1) <= 0).all()
    assert found.score.isfinite().all()
    assert all(len(set(row)) == top for row in answers(found)), "all different"


def test_a_listed_unknown_identity_is_taken_out_first():
    given = Neighbors(torch.tensor([[3, 12, 2]]), torch.tensor([[0.9, 0.8, 0.1]]))
    found = insert_unknown(given, LABELS, threshold=0.5, top=3)
    assert answers(found) == [[3, 12, 2]]
    assert found.score[0].tolist() == pytest.approx([0.9, 0.5, 0.1])
    zero = insert_unknown(given, LABELS, unknown=2, threshold=0.0, top=3)
    assert answers(zero) == [[3, 12, 2]], "another class is the unknown one"


@pytest.mark.parametrize("share", [0.0, 0.276, 0.5, 1.0])
@pytest.mark.parametrize("single", [0.0, -1.0])
def test_share_of_first_answers(share, single):
    given, _ = neighbors(queries=60)
    given = Neighbors(
        torch.cat([given.index[:3], given.index[5:]]), torch.cat([given.score[:3], given.score[5:]])
    )
    found = insert_unknown(given, LABELS, share=share, single=single)
    assert (found.index[:, 0] == 12).sum() == round(share * 58)


def test_quantile():
    given, _ = neighbors()
    first = given.score[:, 0]
    found = insert_unknown(given, LABELS, quantile=0.25)
    wall = np.quantile(first[first > -torch.inf].double().numpy(), 0.25)
    assert torch.equal(found.index[:, 0] == 12, first < wall)


@pytest.mark.parametrize("rule", [{"share": 0.3}, {"quantile": 0.4}, {"threshold": 0.2}])
@pytest.mark.parametrize("more", [{}, {"single": 0.2}, {"accept": 1}])
def test_the_threshold_of_a_rule_gives_the_answers_of_the_rule(rule, more):
    given, _ = neighbors()
    wall = unknown_threshold(given, LABELS, **rule, **more)
    found = insert_unknown(given, LABELS, threshold=wall, **more)
    wanted = insert_unknown(given, LABELS, **rule, **more)
    assert torch.equal(found.index, wanted.index)
    assert torch.equal(found.score, wanted.score)
    assert wall == rule.get("threshold", wall)
    assert len(found.index.unique()) > 5


@pytest.mark.parametrize("accept", [1, 2])
def test_classes_with_one_image_accept_their_best_queries(accept):
    given, _ = neighbors()
    found = insert_unknown(given, LABELS, threshold=-0.5, accept=accept)
    singles = [c for c in range(12) if COUNTS[c] == 1]
    refused = oracle.refused(given.score.tolist(), given.index.tolist(), singles, accept)
    assert refused
    for row, (score, index) in enumerate(
        zip(given.score.tolist(), given.index.tolist(), strict=True)
    ):
        never = [100.0 if (row, c) in refused else 0.0 for c in range(12)]
        answer = oracle.ranked(score, index, -0.5, 12, 5, never)
        assert answers(found)[row] == oracle.filled(answer, FREQUENT, 5)
    assert (found.score.diff(dim=1) <= 0).all()


def test_the_curves_threshold_gives_the_curves_score():
    given, truth = neighbors()
    full = (given.index >= 0).all(1)  # rows that are filled up may gain by it
    given, truth = Neighbors(given.index[full], given.score[full]), truth[full.numpy()]
    curve = unknown_curve(given.score.numpy(), given.index.numpy(), truth)
    found = insert_unknown(given, LABELS, threshold=curve.threshold)
    right = found.index.numpy() == np.where(truth < 0, 12, truth)[:, None]
    assert (right / np.arange(1, 6)).sum(1).mean() == pytest.approx(curve.value)


@pytest.mark.parametrize(("single", "accept"), [(-0.3, 0), (0.0, 1), (0.25, 2)])
def test_the_curve_knows_the_terms_of_classes_with_one_image(single, accept):
    given, truth = neighbors()
    full = (given.index >= 0).all(1)
    given, truth = Neighbors(given.index[full], given.score[full]), truth[full.numpy()]
    index, score = given.index.numpy(), given.score.numpy()
    refused = refused_listings(index, score, COUNTS, accept)
    curve = unknown_curve(
        score, index, truth, offset=np.where(COUNTS == 1, single, 0.0), refused=refused
    )
    singles = [c for c in range(12) if COUNTS[c] == 1]
    wanted = oracle.refused(score.tolist(), index.tolist(), singles, accept) if accept else set()
    assert {(q, index[q, k]) for q, k in zip(*np.nonzero(refused), strict=True)} == wanted
    for x, y in zip(curve.x[::3].tolist(), curve.y[::3].tolist(), strict=True):
        found = insert_unknown(given, LABELS, threshold=x, single=single, accept=accept)
        right = found.index.numpy() == np.where(truth < 0, 12, truth)[:, None]
        assert (right / np.arange(1, 6)).sum(1).mean() == pytest.approx(y)
    nobody = unknown_curve(score, index, truth, refused=np.ones(index.shape, bool))
    assert len(nobody.x) == 1
    right = np.concatenate([np.full((len(truth), 1), -1), index[:, :4]], 1) == truth[:, None]
    assert nobody.value == pytest.approx((right / np.arange(1, 6)).sum(1).mean())


def test_few_classes_and_no_candidates():
    labels = torch.tensor([0, 0, 1])
    none = Neighbors(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0))
    found = insert_unknown(none, labels, threshold=0.5)
    assert answers(found) == [[2, 0, 1, -1, -1]] * 2
    assert (found.score[:, 3:] == -torch.inf).all()
    nobody = Neighbors(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4))
    assert insert_unknown(nobody, labels, share=0.5).index.shape == (0, 5)


def test_as_a_step_with_the_classes_of_the_state():
    given, _ = neighbors()
    state = {"neighbors": given, "gallery_labels": LABELS}
    found = chain([{"name": "insert_unknown", "share": 0.3}], STEPS, set(state), "x")(state)
    assert (found["neighbors"].index[:, 0] == 12).sum() == round(0.3 * 25)


def test_bad_input():
    given, _ = neighbors()
    for settings in (
        {},
        {"threshold": 0.1, "share": 0.2},
        {"threshold": 0.1, "top": 0},
        {"threshold": 0.1, "accept": -1},
    ):
        with pytest.raises(
            ValueError, match="give one of threshold, share and quantile|top must be at least 1"
        ):
            insert_unknown(given, LABELS, **settings)
    twice = Neighbors(torch.tensor([[3, 3]]), torch.tensor([[0.9, 0.8]]))
    with pytest.raises(ValueError, match="query 0 lists a class twice: it comes after vote"):
        insert_unknown(twice, LABELS, threshold=0.1)
    given.score[1, 0] = torch.nan
    with pytest.raises(ValueError, match="1 scores are NaN"):
        insert_unknown(given, LABELS, threshold=0.1)
