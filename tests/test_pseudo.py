"""Pseudo-labels: who agrees on whom, against a loop; the csv, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from common.data.tables import DataError
from common.pipeline.pseudo import Answers, agreed, label_test, main, strangers
from common.types import Embeddings


def one_by_one(found, confident, agree):
    """Slow twin of `agreed`."""
    labels, scores = [], []
    for image in range(len(found[0].label)):
        sure = [r for r in found if r.label[image] >= 0 and r.score[image] >= confident]
        named = {int(r.label[image]) for r in sure}
        kept = len(named) == 1 and len(sure) >= (agree or len(found))
        labels.append(named.pop() if kept else -1)
        scores.append(np.mean([r.score[image] for r in sure]) if sure else 0)
    return np.array(labels), np.array(scores)


@pytest.mark.parametrize("agree", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_agreed_equals_the_loop(seed, agree):
    rng = np.random.default_rng(seed)
    found = [Answers(rng.integers(-1, 3, 2000), rng.uniform(0, 1, 2000)) for _ in range(3)]
    for confident in (0.2, 0.6):
        label, score = agreed(found, confident=confident, agree=agree)
        wanted, mean = one_by_one(found, confident, agree)
        assert np.array_equal(label, wanted)
        np.testing.assert_allclose(score, mean)
        assert (label >= 0).any()
        assert (label < 0).any()


def test_only_what_all_find_far_is_a_stranger():
    near = Answers(np.array([0, 0, -1]), np.array([0.1, 0.9, 0.0]))
    far = Answers(np.array([0, 0, -1]), np.array([0.2, 0.1, 0.0]))
    assert strangers([near, far], 0.3).tolist() == [True, False, False]


@pytest.fixture
def runs(tmp_path):
    """Two runs of three classes, one of them new_whale; `a` and `b` differ about q3."""
    train = pd.DataFrame(
        [("t0", "007"), ("t1", "007"), ("t2", "b"), ("t3", "new_whale"), ("t4", "007")],
        columns=["Image", "Id"],
    )
    train.to_csv(tmp_path / "train.csv", index=False)
    gallery = torch.eye(5)
    mixes = {
        "a": [[0, 0.2], [2, 0.1], [3, 0.1], [0, 0.1]],
        "b": [[1, 0.2], [2, 0.3], [3, 0], [2, 0]],
    }
    for name, mix in mixes.items():
        queries = torch.stack([gallery[i] + noise * gallery.sum(0) for i, noise in mix])
        queries = F.normalize(torch.cat([queries, torch.zeros(1, 5)]))
        for split, vectors in (("train", gallery), ("test", queries)):
            ids = [f"{'t' if split == 'train' else 'q'}{i}" for i in range(len(vectors))]
            path = tmp_path / name / "embeddings" / f"{split}.safetensors"
            Embeddings(np.array(ids), vectors).save(path)
    return tmp_path


def written(path):
    return dict(pd.read_csv(path, dtype=str).iloc[:, :2].to_numpy().tolist())


def test_the_csv_has_what_both_agree_on_and_ids_stay_text(runs):
    path, text = label_test([runs / "a", runs / "b"], runs / "train.csv")
    assert path == runs / "a" / "pseudo.csv"
    assert written(path) == {"q0": "007", "q1": "b"}  # q2 is near new_whale, q4 is unreadable
    assert "2 of 5 test images, of 2 classes" in text
    scores = pd.read_csv(path).score
    assert scores.between(0.6, 1).all()


def test_one_run_few_images_and_the_threshold(runs):
    table = runs / "train.csv"
    assert written(label_test([runs / "a"], table)[0]) == {"q0": "007", "q1": "b", "q3": "007"}
    assert written(label_test([runs / "b"], table, few=1)[0]) == {"q1": "b", "q3": "b"}
    assert written(label_test([runs / "a"], table, confident=0.95)[0]) == {"q1": "b", "q3": "007"}
    both = [runs / "a", runs / "b"]
    # Both are sure of q3, of different individuals: a veto, whatever is asked for.
    assert written(label_test(both, table, agree=1)[0]) == {"q0": "007", "q1": "b"}


def test_the_unknown_is_named_only_on_request(runs):
    out = runs / "more.csv"
    main([str(runs / "a"), str(runs / "train.csv"), "--below", "0.3", "--out", str(out)])
    assert written(out) == {"q0": "007", "q1": "b", "q2": "new_whale", "q3": "007"}


def test_what_cannot_be_is_named(runs):
    table, both = runs / "train.csv", [runs / "a", runs / "b"]
    with pytest.raises(ValueError, match="agree=3 of 2 runs"):
        label_test(both, table, agree=3)
    with pytest.raises(ValueError, match="lower --confident"):
        label_test(both, table, confident=1.1)
    with pytest.raises(FileNotFoundError, match=r"first run infer\.py"):
        label_test([runs / "nothing"], table)
    other = Embeddings(np.array(["z"]), torch.ones(1, 5))
    other.save(runs / "b" / "embeddings" / "test.safetensors")
    with pytest.raises(ValueError, match="other test images"):
        label_test(both, table)
    (runs / "train.csv").write_text("Image,Id\nt0,new_whale\n")
    with pytest.raises(DataError, match="nobody to name"):
        label_test([runs / "a"], table)
