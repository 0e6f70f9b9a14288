"""Held-out images in halves that learn from each other; trees whose askers come from outside."""

import numpy as np
import pytest
import torch

from common.notes import Notes
from common.pipeline.halves import by_halves, part_of
from common.pipeline.ranking import Question, reads
from common.rerank.asking import outside
from common.rerank.learned import lightgbm_rerank
from common.retrieval.search import search
from common.types import Embeddings, Neighbors
from tests.test_learned import FEW, right_share, scene


def question(count=20):
    rng = np.random.default_rng(0)
    ids = np.array([f"q{i:02d}" for i in range(count)])
    queries = Embeddings(ids, torch.from_numpy(rng.normal(size=(count, 4))).float())
    truth = np.arange(count) // 2
    truth[-4:] = -1
    groups = np.arange(count) // 2
    paths = np.char.add(ids, ".png").astype("S")
    return Question(
        queries, queries, torch.zeros(count), None, paths, paths, truth, groups=groups,
        query_boxes=rng.normal(size=(count, 4)),
    )  # fmt: skip


def test_each_half_is_answered_with_the_other_and_rows_come_back_in_order():
    asked, seen = question(), []

    def answer(part, state, notes):
        rows = np.array([int(name[1:]) for name in part.queries.ids])
        others = np.array([int(name[1:]) for name in state["askers"].ids])
        seen.append((set(rows.tolist()), set(others.tolist())))
        assert part.truth.tolist() == asked.truth[rows].tolist()
        assert state["asker_labels"].tolist() == asked.truth[others].tolist()
        assert state["asker_paths"].tolist() == asked.query_paths[others].tolist()
        assert np.array_equal(state["asker_boxes"], asked.query_boxes[others])
        assert np.array_equal(part.query_boxes, asked.query_boxes[rows])
        notes.matches.append({"query": np.array([1]), "gallery": np.array([0])})
        notes.numbers[f"side {len(seen)}"] = 1.0
        notes.remarks.append("seen")
        width = 1 + len(seen)
        index = torch.from_numpy(rows)[:, None].expand(-1, width)
        return Neighbors(index, torch.zeros(index.shape))

    notes = Notes()
    found = by_halves(asked, answer, notes)
    assert found.index[:, 0].tolist() == list(range(20))
    assert ((found.index[:, 2] == -1) == torch.isneginf(found.score[:, 2])).all()
    (mine, theirs), (second, again) = seen
    assert mine == again
    assert theirs == second
    assert mine | theirs == set(range(20))
    assert not {row // 2 for row in mine} & {row // 2 for row in theirs}, "nobody is in both"
    assert [sorted(s)[1] for s in (mine, second)] == [m["query"].item() for m in notes.matches]
    assert len(notes.numbers) == len(notes.remarks) == 2


def test_one_identity_cannot_be_halved():
    asked = question(2)
    asked.groups = np.zeros(2)

    def answer(part, state, notes):
        assert part is asked
        assert state == {}
        return Neighbors(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1))

    assert by_halves(asked, answer, Notes()).index.shape == (2, 1)
    assert reads([{"name": "lightgbm_rerank"}], "askers")
    assert not reads([{"name": "knn"}], "askers")


def test_part_of_keeps_what_is_not_known():
    asked = question()
    asked.truth = asked.query_boxes = None
    part = part_of(asked, np.array([3, 1]))
    assert part.queries.ids.tolist() == ["q03", "q01"]
    assert part.truth is None
    assert part.query_boxes is None


def test_askers_from_outside_ask_a_whole_gallery():
    queries, gallery, labels, truth = scene()
    turn = outside(queries, truth, len(gallery), 30, seed=1)
    assert len(turn.asking) == len(turn.rows) == 30
    assert turn.truth.tolist() == truth[torch.from_numpy(turn.rows)].tolist()
    assert turn.left.tolist() == list(range(len(gallery)))
    assert len(outside(queries, truth, 5, 99, seed=1).rows) == len(queries)

    half = torch.arange(len(queries)) % 2 == 0
    parts = [
        Embeddings(queries.ids[half.numpy() == side], queries.vectors[half == side])
        for side in (True, False)
    ]
    known = truth[~half].clone()
    known[::7] = -1  # as if they were new
    neighbors, notes = search(parts[0], gallery, 20), Notes()
    found = lightgbm_rerank(
        neighbors,
        parts[0],
        gallery,
        labels,
        askers=parts[1],
        asker_labels=known,
        notes=notes,
        **FEW,
    )
    assert right_share(found, labels, truth[half]) > right_share(neighbors, labels, truth[half])
    assert notes.numbers["lightgbm_rerank: images that ask in training"] == len(parts[1])
    plain = lightgbm_rerank(neighbors, parts[0], gallery, labels, **FEW)
    assert not torch.equal(plain.score, found.score)
    with pytest.raises(ValueError, match="all 400 pairs are negative"):
        lightgbm_rerank(
            neighbors, parts[0], gallery, labels, askers=parts[1],
            asker_labels=torch.full_like(known, -1), **FEW,
        )  # fmt: skip
