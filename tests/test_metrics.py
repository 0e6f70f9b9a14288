"""The metrics: against their definitions on random cases, scikit-learn, files, and known traps."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from common import metrics
from common.metrics import gap, map_at_k, mean_f1, recall_at_k
from common.submission import write
from tests.oracles import metrics as twin

SHARED = Path(__file__).parents[2] / "shared" / "data"


def random_case(seed):
    """Few labels, coarse scores: ties, repetitions, empty truths and empty answers abound."""
    draw = random.Random(seed)
    ids = [f"q{i:02d}" for i in draw.sample(range(100), draw.randint(1, 14))]
    items = [f"d{i}" for i in range(9)]
    labels = {i: set(draw.sample("abcd", draw.choice([0, 1, 1, 2]))) for i in ids}
    guesses = {
        i: (draw.choice("abcd"), draw.randint(0, 3) / 3) if draw.random() < 0.9 else None
        for i in ids
        if draw.random() < 0.9
    }
    relevant = {i: set(draw.sample(items, draw.randint(0, 8))) for i in ids}
    lists = {i: [draw.choice(items) for _ in range(draw.randint(0, 14))] for i in ids[::-1]}
    return labels, guesses, relevant, lists, draw.randint(1, 7)


@pytest.mark.parametrize("seed", range(200))
def test_random_cases_equal_the_definitions(seed):
    labels, guesses, relevant, lists, k = random_case(seed)
    assert gap(labels, guesses) == pytest.approx(twin.gap(labels, guesses), abs=1e-12)
    assert map_at_k(relevant, lists, k) == pytest.approx(
        twin.map_at_k(relevant, lists, k), abs=1e-12
    )
    assert mean_f1(relevant, lists) == pytest.approx(twin.mean_f1(relevant, lists), abs=1e-12)
    assert recall_at_k(relevant, lists, k) == pytest.approx(
        twin.recall_at_k(relevant, lists, k), abs=1e-12
    )


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_equals_scikit_learn_when_all_items_are_ranked(seed):
    draw = np.random.default_rng(seed)
    items = np.arange(40)
    relevant = draw.random((6, 40)) < 0.2
    relevant[:, 0] = True
    scores = draw.random((6, 40))  # no ties: scikit-learn groups them
    expected = np.mean(
        [average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)]
    )
    truth = {str(q): items[row].tolist() for q, row in enumerate(relevant)}
    ranked = {str(q): items[np.argsort(-row)] for q, row in enumerate(scores)}
    assert map_at_k(truth, ranked, 40) == pytest.approx(expected, abs=1e-12)


def test_f1_equals_scikit_learn_per_row():
    draw = np.random.default_rng(0)
    true, found = draw.random((2, 30, 12)) < 0.4
    expected = f1_score(true, found, average="samples", zero_division=0.0)
    names = np.arange(12)
    truth = {str(i): names[row] for i, row in enumerate(true)}
    given = {str(i): names[row] for i, row in enumerate(found)}
    assert mean_f1(truth, given) == pytest.approx(expected, abs=1e-12)


def test_gap_rules():
    # A confident answer where there is none costs rank; a tie goes to the smaller id.
    assert gap({"a": {"x"}, "b": set()}, {"a": ("x", 0.5), "b": ("y", 0.9)}) == 0.5
    assert gap({"a": {"x"}, "b": set()}, {"a": ("x", 0.5), "b": ("y", 0.5)}) == 1.0
    assert gap({"b": {"x"}, "a": set()}, {"b": ("x", 0.5), "a": ("y", 0.5)}) == 0.5
    # The denominator counts every query with a label, also one without an answer.
    assert gap({"a": {"x"}, "b": {"y"}}, {"a": ("x", 0.1), "b": None}) == 0.5
    # Any of several true landmarks is correct (psinger's evaluation keeps the first only).
    assert gap({"a": ["x", "y"]}, {"a": ("y", 0.1)}) == 1.0
    assert gap({"a": 7, "b": None, "c": ""}, {"a": (np.int64(7), np.float32(0.1))}) == 1.0
    assert gap({"a": set()}, {"a": ("x", 0.1)}) == 0.0
    assert gap({"a": {"x"}}, {}) == 0.0
    assert gap({}, {}) == 0.0


def test_map_rules():
    # Repeated ids keep no rank (pudae's evaluation wastes a slot, DELF's keeps the rank).
    assert map_at_k({"q": "z"}, {"q": ["a", "a", "z"]}, 5) == 0.5
    assert map_at_k({"q": "z"}, {"q": ["a"] * 9 + ["z"]}, 5) == 0.5
    # The denominator is min(relevant, k): not k (lyakaap), not the number found (OML).
    assert map_at_k({"q": {"a", "b", "c"}}, {"q": ["a", "x"]}, 5) == pytest.approx(1 / 3)
    assert map_at_k({"q": {"a", "b", "c"}}, {"q": ["a", "b"]}, 2) == 1.0
    # One label per image: 1 / rank in the first five; new_whale is a label like others.
    truth = {"1.jpg": "new_whale", "2.jpg": "w_1", "3.jpg": "w_2"}
    ranked = {"1.jpg": ["new_whale"], "2.jpg": "w_1", "3.jpg": ["a", "b", "c", "d", "e", "w_2"]}
    assert map_at_k(truth, ranked, 5) == pytest.approx(2 / 3)
    # Queries without a relevant item are ignored, queries without an answer are not.
    assert map_at_k({"q": {"a"}, "r": set(), "s": {"b"}}, {"q": ["a"], "r": ["a"]}, 5) == 0.5
    assert map_at_k({"r": []}, {"r": ["a"]}, 5) == 0.0


def test_f1_and_recall_rules():
    assert mean_f1({"a": {"a", "b"}, "c": {"c"}}, {"a": ["a", "a"], "c": None}) == pytest.approx(
        1 / 3
    )
    assert mean_f1({"a": []}, {"a": []}) == 0.0
    assert recall_at_k({"q": {"z"}, "r": set()}, {"q": ["a", "a", "z"]}, 2) == 1.0
    assert recall_at_k({"q": {"z"}}, {"q": ["a", "z"]}) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_arrays_equal_dicts(seed):
    draw = np.random.default_rng(seed)
    query_labels, gallery_labels = draw.integers(-1, 6, 25), draw.integers(-1, 5, 40)
    index = np.stack([draw.permutation(40)[:12] for _ in range(25)])
    index[draw.random(25) < 0.3, 9:] = -1
    hits, totals = metrics.label_hits(
        torch.from_numpy(index), torch.from_numpy(query_labels), torch.from_numpy(gallery_labels)
    )
    truth = {
        i: set(np.flatnonzero(gallery_labels == label)) if label >= 0 else set()
        for i, label in enumerate(query_labels)
    }
    ranked = {i: row[row >= 0] for i, row in enumerate(index)}
    assert totals.tolist() == [len(items) for items in truth.values()]
    for k in (1, 5, 100):
        assert metrics.map_at_k_arrays(hits, totals, k) == pytest.approx(map_at_k(truth, ranked, k))
        assert metrics.recall_at_k_arrays(hits, totals, k) == pytest.approx(
            recall_at_k(truth, ranked, k)
        )
    kept = draw.random(index.shape) < 0.5
    kept &= index >= 0
    matches = {i: row[keep] for i, (row, keep) in enumerate(zip(index, kept, strict=True))}
    assert metrics.mean_f1_arrays(hits, kept, totals) == pytest.approx(mean_f1(truth, matches))
    scores = draw.integers(0, 4, 25) / 4
    nearest = {i: (gallery_labels[row[0]], scores[i]) for i, row in enumerate(index)}
    labels = {i: {label} if label >= 0 else set() for i, label in enumerate(query_labels)}
    assert metrics.gap_arrays(hits[:, 0], scores, int((query_labels >= 0).sum())) == pytest.approx(
        gap(labels, nearest)
    )


def test_empty_arrays_score_zero():
    none = np.zeros((0, 3), bool)
    assert metrics.map_at_k_arrays(none, np.zeros(0, int)) == 0
    assert metrics.mean_f1_arrays(none, none, np.zeros(0, int)) == 0
    assert metrics.recall_at_k_arrays(np.ones((2, 3), bool), np.zeros(2, int)) == 0
    assert metrics.gap_arrays(np.zeros(0, bool), np.zeros(0), 5) == 0


def test_wrong_dicts_are_named():
    with pytest.raises(ValueError, match="'typo'"):
        gap({"a": {"x"}}, {"typo": ("x", 0.5)})
    with pytest.raises(ValueError, match="score of 'a' is nan"):
        gap({"a": {"x"}}, {"a": ("x", float("nan"))})
    with pytest.raises(ValueError, match="k must be"):
        map_at_k({"a": "x"}, {"a": "x"}, 0)
    for metric in (map_at_k, mean_f1, recall_at_k):
        with pytest.raises(ValueError, match="'1' against 1"):
            metric({1: {"x"}}, {"1": ["x"]})


# ------------------------------------------------------------------------------------------- files


def files(folder, solution, submission):
    (folder / "solution.csv").write_text(solution)
    (folder / "submission.csv").write_text(submission)
    return folder / "solution.csv", folder / "submission.csv"


GAP_SOLUTION = "id,landmarks,Usage\na,5 7,Public\nb,,Private\nc,9,Private\nd,9,Ignored\n"


def test_gap_file(tmp_path):
    pair = files(tmp_path, GAP_SOLUTION, "id,landmarks\nd,9 1\nc,9 0.25\nb,3 1e-1\na,7 0.1\n")
    assert metrics.score("gap", *pair) == pytest.approx((1 + 2 / 2) / 2)  # a before b: tie by id
    assert metrics.score("gap", *pair, usage="Public") == 1.0
    assert metrics.score("gap", *pair, usage="Private") == 1.0
    pair = files(tmp_path, GAP_SOLUTION, "landmarks,id\n,c\n9 2,b\n5 1,a\n")
    assert metrics.score("gap", *pair) == pytest.approx(0.5 / 2)


def test_retrieval_whale_and_shopee_files(tmp_path):
    solution = "id,images,Usage\na,x y,Public\nb,None,Ignored\nc,z,Private\n"
    pair = files(tmp_path, solution, "id,images\na,x x q y\nb,x\nc,\n")
    assert metrics.score("map100", *pair) == pytest.approx((1 + 2 / 3) / 2 / 2)
    assert metrics.score("map100", *pair, usage="Private") == 0
    pair = files(tmp_path, "Image,Id\n1.jpg,w_1\n2.jpg,new_whale\n", "Image,Id\n1.jpg,a b w_1\n")
    assert metrics.score("map5", *pair) == pytest.approx(1 / 3 / 2)
    solution = "posting_id,matches\np1,p1 p2\np2,p1 p2\n"
    pair = files(tmp_path, solution, "posting_id,matches\np1,p1\np2,p2 p1\n")
    assert metrics.score("f1", *pair) == pytest.approx((2 / 3 + 1) / 2)


def test_a_field_may_hold_thousands_of_images(tmp_path):
    wanted = " ".join(f"{i:016x}" for i in range(10_000))  # beyond the csv module's own limit
    pair = files(tmp_path, f"id,images\na,{wanted}\n", f"id,images\na,{wanted[:1699]}\n")
    assert metrics.score("map100", *pair) == 1.0


@pytest.mark.parametrize(
    ("submission", "message"),
    [
        ("id,landmark\na,1 1\n", r"submission.csv, line 1: needs the columns id,landmarks, has"),
        ("id,landmarks,x\na,1 1,\n", r"line 1: needs the columns"),
        ("", r"line 1: needs the columns id,landmarks, has none"),
        ("\ufeffid,landmarks\na,5 1\n", r"line 1: needs the columns"),
        ("id,landmarks\na,5 1\na,7 1\n", r"line 3: id 'a' is in line 2 too"),
        ("id,landmarks\na,5 1\n\nzz,7 1\n", r"line 4: .*solution.csv has no id 'zz'"),
        ("id,landmarks\na,5 1\nc,7 high\n", r"line 3, id 'c': '7 high' is neither"),
        ("id,landmarks\na,5\n", r"line 2, id 'a'"),
        ("id,landmarks\na,5 nan\n", r"line 2, id 'a'"),
        ("id,landmarks\na,5 1 7 1\n", r"line 2, id 'a'"),
        ("id,landmarks\na,5 1\nb\n", r"line 3: 1 fields instead of 2"),
        ("id,landmarks\na,5 1,\n", r"line 2: 3 fields instead of 2"),
    ],
)
def test_a_file_that_cannot_be_scored_is_named_with_its_line(tmp_path, submission, message):
    pair = files(tmp_path, GAP_SOLUTION, submission)
    with pytest.raises(ValueError, match=message):
        metrics.score("gap", *pair)


def test_wrong_solutions_and_options(tmp_path):
    pair = files(tmp_path, "Image,Id\n1.jpg,w_1\n", "Image,Id\n1.jpg,w_1\n")
    with pytest.raises(ValueError, match="no column Usage"):
        metrics.score("map5", *pair, usage="Public")
    with pytest.raises(ValueError, match="gap, map100, map5, f1"):
        metrics.score("map10", *pair)
    with pytest.raises(FileNotFoundError, match=r"nowhere.csv"):
        metrics.score("map5", tmp_path / "nowhere.csv", pair[1])
    (tmp_path / "latin.csv").write_bytes("Image,Id\n1.jpg,wal\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not a UTF-8 CSV"):
        metrics.score("map5", pair[0], tmp_path / "latin.csv")
    pair = files(tmp_path, "id,landmarks,Usage\na,5,Ignored\n", "id,landmarks\na,5 1\n")
    with pytest.raises(ValueError, match="no rows to score"):
        metrics.score("gap", *pair)


def test_the_command_prints_five_decimals_or_one_line(tmp_path, capsys):
    pair = files(tmp_path, "Image,Id\n1.jpg,w_1\n", "Image,Id\n1.jpg,a b w_1\n")
    metrics.main(["map5", *map(str, pair)])
    assert capsys.readouterr().out == "0.33333\n"
    with pytest.raises(SystemExit, match="error: .*no column Usage"):
        metrics.main(["map5", *map(str, pair), "--usage", "Public"])


# ------------------------------------------------------- the same numbers as an independent scorer


def independent():
    spec = importlib.util.spec_from_file_location("independent", SHARED / "score.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shared = pytest.mark.skipif(
    not (SHARED / "score.py").exists(), reason="no independent scorer beside the repository"
)


SOLUTIONS = {
    "gap": ("landmarks-recognition", "landmarks/recognition_solution_v2.1.csv"),
    "map100": ("landmarks-retrieval", "landmarks/retrieval_solution_v2.1.csv"),
    "map5": ("whale", "whale/solution.csv"),
    "f1": ("shopee", "shopee/solution.csv"),
}


def random_row(metric, name, true, pool, draw):
    """An answer that is right about half of the time."""
    if metric == "gap":
        label = draw.choice(true if true and draw.random() < 0.5 else pool)
        return (label, draw.randint(0, 20) / 20) if draw.random() < 0.9 else None
    some = draw.sample(pool, 4) + draw.sample(true, draw.randint(0, min(len(true), 40)))
    draw.shuffle(some)
    own = [name] if metric == "f1" else []
    return list(dict.fromkeys(own + some))[: 5 if metric == "map5" else 50]


@shared
@pytest.mark.parametrize("metric", list(SOLUTIONS))
@pytest.mark.parametrize("usage", [None, "Public", "Private"])
def test_files_score_as_the_independent_scorer_says(tmp_path, metric, usage):
    competition, name = SOLUTIONS[metric]
    if usage and not competition.startswith("landmarks"):
        pytest.skip("this solution has no Usage")
    draw = random.Random(7)
    lines = [line.split(",") for line in (SHARED / name).read_text().splitlines()[1:]]
    lines = [line for line in lines if draw.random() < 0.95]  # some ids are left out
    pool = sorted({item for line in lines for item in line[1].split()} - {"None"})
    rows = [random_row(metric, i, truth.split(), pool, draw) for i, truth, *_ in lines]
    path = tmp_path / "submission.csv"
    write(competition, [line[0] for line in lines], rows, path)
    expected = independent().score(metric, SHARED / name, path, usage)
    found = metrics.score(metric, SHARED / name, path, usage=usage)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0.05 < found < 1


@shared
@pytest.mark.parametrize("seed", range(50))
def test_dicts_score_as_the_independent_scorer_says(seed):
    scorer = independent()
    labels, guesses, relevant, lists, k = random_case(1000 + seed)
    some = {i: items for i, items in relevant.items() if items}
    assert gap(labels, guesses) == pytest.approx(scorer.gap(labels, guesses), abs=1e-12)
    assert map_at_k(relevant, lists, k) == pytest.approx(
        scorer.map_at_100(some, lists, k), abs=1e-12
    )
    assert mean_f1(relevant, lists) == pytest.approx(scorer.row_f1(relevant, lists), abs=1e-12)
