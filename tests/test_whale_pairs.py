"""Whale's questions to models of pairs: who may be learned from, in the test and in validation."""

import pytest
import torch

from common.config import load
from common.notes import Notes
from common.pipeline.vectors import Vectors
from common.types import Embeddings
from competitions.whale import ranking
from competitions.whale.config import BASE, Config
from competitions.whale.data import read


def test_pair_models_learn_from_images_that_training_has_not_seen(tmp_path):
    """In the test those of the gallery ask, in validation the other half of the queries."""
    config = load(Config, BASE)
    data = read(config.data)
    held = ranking.Held.of(data, config)
    generator = torch.Generator().manual_seed(0)
    around = torch.randn(len(data.classes), 16, generator=generator)[data.train.labels]
    noise = torch.randn(len(data.train), 16, generator=generator)
    train = Embeddings(data.train.ids, torch.nn.functional.normalize(around + noise))
    vectors = Vectors(train, Embeddings(data.test.ids, train.vectors[: len(data.test)]))
    step = {"name": "lightgbm_rerank", "rounds": 5, "min_leaf": 5, "around": [5], "folds": 2}
    asked = []
    for question, inner in (
        (ranking.test_question(vectors, data, held), None),
        (ranking.held_question(vectors, held), held),
    ):
        notes = Notes()
        steps = [{"name": "knn", "k": 20}, step, {"name": "vote"}]
        options = {"cache": tmp_path, "device": torch.device("cpu"), "notes": notes}
        found = ranking.apply(steps, question, vectors, data, inner, **options)
        assert len(found) == len(question.queries)
        assert (found.index[:, 0] >= 0).all()
        asked.append(notes.numbers["lightgbm_rerank: images that ask in training"])
    labelled = data.train.labels >= 0
    unseen = data.train.ids[labelled & ~held.split.train]
    assert sorted(ranking.test_question(vectors, data, held).held_ids) == sorted(unseen)
    assert len(unseen) / 2 < asked[0] <= len(unseen), "each leaves once; pairs of one round later"
    assert asked[1] == pytest.approx(len(held.asked.queries) / 2, abs=2)
    assert ranking.test_question(vectors, data, None).held_ids is None
