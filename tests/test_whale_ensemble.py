"""Ensembles, stacked runs, lists and post-processing on made-up embeddings: nothing is trained."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from common import config as common_config
from common.config import ConfigError, load
from common.data.tables import DataError
from common.engine.checkpoint import save_tree
from common.submission import check as check_file
from common.types import Embeddings, Neighbors, encode_strings
from competitions.whale.config import BASE, Config
from competitions.whale.data import DataConfig, read
from competitions.whale.ensemble import main
from competitions.whale.lists import listed, read_lists
from competitions.whale.material import Material
from competitions.whale.postprocess import Postprocess, PostprocessConfig
from competitions.whale.ranking import Held

PLAIN = ["track.wandb=off", "ensemble.stack={folds: 3, rounds: 15, min_leaf: 3}"]


def write_csv(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def made(folder, sizes=(8, 8, 7, 6, 6, 5, 5, 4, 1, 1), strangers=12, test=24, answers=None):
    """Files of that many images of each individual, and who is in them: -1 for strangers."""
    who = np.repeat([*range(len(sizes)), -1], [*sizes, strangers])
    train = [f"a{i:03d}.jpg" for i in range(len(who))]
    asked = np.arange(test) % (len(sizes) + 3)
    asked = np.where(asked < len(sizes), asked, -1) if answers is None else np.asarray(answers)
    names = [f"t{i:03d}.jpg" for i in range(len(asked))]

    picture = cv2.imencode(".jpg", np.full((6, 8, 3), 90, np.uint8))[1].tobytes()
    for split, some in (("train", train), ("test", names)):
        (folder / split).mkdir(parents=True)
        for name in some:
            (folder / split / name).write_bytes(picture)

    def named(labels):
        return ["new_whale" if c < 0 else f"w_{c}" for c in labels]

    write_csv(folder / "train.csv", "Image,Id", zip(train, named(who), strict=True))
    write_csv(folder / "solution.csv", "Image,Id", zip(names, named(asked), strict=True))
    guess = [(name, "new_whale") for name in names]
    write_csv(folder / "sample_submission.csv", "Image,Id", guess)
    return who, asked


def a_run(folder, root, who, asked, *, seed=0, noise=0.5, blind=0, centers=True, **data):
    """A run folder as infer.py leaves it, but for the weights; every other query may be blind."""
    generator = torch.Generator().manual_seed(seed)
    spots = torch.randn(max([*who, 0]) + 1, 16, generator=generator)

    def look(labels):
        own = torch.randn(len(labels), 16, generator=generator)
        rows = torch.from_numpy(np.maximum(labels, 0))
        seen = torch.where(torch.from_numpy(labels >= 0)[:, None], spots[rows], 1.0 * own)
        mess = torch.randn(len(labels), 16, generator=generator)
        if blind:
            seen[blind - 1 :: 2] = mess[blind - 1 :: 2]
        return normalize(seen + noise * mess, dim=1)

    keys = {"folds": 3, "unseen": 0.2, "root": root, **data}
    words = [f"data.{key}={value}" for key, value in keys.items()]
    settings = load(Config, BASE, [*words, "track.wandb=off"])
    (folder / "embeddings").mkdir(parents=True)
    common_config.save(settings, folder / "config.yaml")
    (folder / "weights.safetensors").write_bytes(b"")
    for name, labels, letter in (("train", who, "a"), ("test", asked, "t")):
        ids = np.array([f"{letter}{i:03d}.jpg" for i in range(len(labels))])
        Embeddings(ids, look(labels)).save(folder / "embeddings" / f"{name}.safetensors")
    names = np.array([f"w_{c}" for c in range(len(spots))])
    tree = {"centers": normalize(spots, dim=1)[:, None], "classes": encode_strings(names)}
    if centers:
        save_tree(folder / "embeddings" / "centers.safetensors", tree)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("made")
    who, asked = made(home / "data")
    a = a_run(home / "a", home / "data", who, asked, seed=1, blind=1)
    b = a_run(home / "b", home / "data", who, asked, seed=2, blind=2)
    return home, a, b


def ensemble(home, out, *words, runs=("a", "b")):
    named = ",".join(str(home / run) for run in runs)
    return main([f"runs=[{named}]", f"out={home / out}", *PLAIN, *words])


def answers(home, out):
    frame = pd.read_csv(home / out / "submission.csv")
    return dict(zip(frame["Image"], frame["Id"].str.split(), strict=True))


@pytest.mark.parametrize("by", ["embeddings", "scores", "ranks", "stacked"])
def test_every_way_to_join_gives_a_checked_submission(runs, by, capsys):
    home, _, _ = runs
    scores = ensemble(home, by, f"ensemble.by={by}", "ensemble.steps=3")
    assert (
        check_file("whale", home / by / "submission.csv", home / "data/sample_submission.csv") == []
    )
    assert all(len(set(row)) == 5 for row in answers(home, by).values())
    assert {"held-out/map5", "held-out/recall1", "test/map5"} <= set(scores)
    said = capsys.readouterr().out
    if by == "stacked":
        assert "AUC out of fold" in said
        notes = json.loads((home / by / "analysis.json").read_text())["notes"]["whale"]
        assert sum(notes["importances"]["stacked"].values()) == pytest.approx(1)
        assert {name.split(":")[0] for name in notes["importances"]["stacked"]} >= {"a", "b"}
    else:
        assert f"weights by {by}: a 0" in said


def test_the_report_speaks_of_whales(runs):
    """MAP@5 and new_whale, not GAP and landmarks; five answers, of whom only one has no picture."""
    home, _, _ = runs
    ensemble(home, "told", runs=("a",))
    text = (home / "told" / "report.html").read_text()
    for words in ("MAP@5 by threshold of new_whale", "training images of the individual"):
        assert words in text, words
    for words in ("landmark", "GAP", "gap"):
        assert words not in text.split("<h2>Config")[0].replace("gap:", ""), words
    table = json.loads((home / "told" / "tables" / "whale.json").read_text())
    for row in (row for group in table["groups"] for row in group["rows"]):
        assert [result["label"] for result in row["results"]].count("new_whale") <= 1
        rights = [result["right"] for result in row["results"]]
        assert row["ap"] == pytest.approx(1 / (rights.index(True) + 1) if any(rights) else 0)
        for result in row["results"]:
            assert (result["label"] == "new_whale") == ("thumb" not in result)
    assert table["confusions"]
    for pair in table["confusions"]:
        assert pair["query"]["label"] != pair["result"]["label"]
        assert "new_whale" not in (pair["query"]["label"], pair["result"]["label"])


def test_the_report_marks_the_threshold_in_use(runs, capsys):
    home, _, _ = runs
    for rule in ("{by: threshold, value: 0.37}", "{by: share, value: 0.5}", "{by: validation}"):
        ensemble(home, "marked", f"unknown={rule}", runs=("a",))
        told = json.loads((home / "marked" / "analysis.json").read_text())
        (curve,), scores = told["thresholds"], np.array(told["recognition"]["score"])
        assert told["recognition"]["threshold"] == curve["chosen"]
        if "share" in rule:
            assert (scores < curve["chosen"]).sum() == round(len(scores) / 2)
        elif "threshold" in rule:
            assert curve["chosen"] == 0.37
            assert "new_whale first, below 0.37;" in capsys.readouterr().out
        else:
            assert max(curve["series"]["held out"]) == pytest.approx(
                curve["series"]["held out"][curve["x"].index(curve["chosen"])]
            )


def test_the_stack_is_scored_out_of_fold_and_better_than_a_blind_run(runs):
    home, _, _ = runs
    alone = ensemble(home, "alone", runs=("a",))
    both = ensemble(home, "stack2", "ensemble.by=stacked", "ensemble.top=5")
    assert both["held-out/recall1"] > alone["held-out/recall1"]
    assert both["test/map5"] > alone["test/map5"]


def test_second_place_recipe_by_hand(runs):
    """Weighted sums of the first three of each list, nothing for who is missing, a constant."""
    home, _, _ = runs
    words = ["ensemble={by: scores, top: 3, missing: zero, weights: [2, 1]}"]
    ensemble(home, "second", *words, "unknown={by: threshold, value: 0.4}")
    data = read(DataConfig(root=str(home / "data")))
    parts = []
    for run in ("a", "b"):
        ensemble(home, f"only_{run}", runs=(run,))
        parts.append(read_lists(home / f"only_{run}" / "lists.csv", data, scores=True))
    counts = np.bincount(data.train.labels[data.train.labels >= 0])
    frequent = [f"w_{c}" for c in np.argsort(-counts, kind="stable")]
    for image, row in answers(home, "second").items():
        total = {}
        for weight, part in zip((2 / 3, 1 / 3), parts, strict=True):
            for label, score in part[image][:3]:
                total[f"w_{label}"] = total.get(f"w_{label}", 0) + weight * score
        ranked = sorted(total, key=lambda name: (-total[name], name))[:5]
        place = sum(total[name] >= 0.4 for name in ranked)
        ranked.insert(place, "new_whale")
        ranked += [name for name in frequent if name not in ranked]
        assert row == ranked[:5], image


def test_a_runs_list_stands_for_the_run(runs):
    """Lists of 10 individuals are whole here: the csv of a run joins like the run itself."""
    home, _, _ = runs
    ensemble(home, "b_alone", runs=("b",))
    path = home / "b_alone" / "lists.csv"
    words = ["ensemble.by=scores", "ensemble.weights=[1, 2]"]
    whole = ensemble(home, "from_runs", *words)
    parts = ensemble(home, "from_list", *words, f"ensemble.lists=[{path}]", runs=("a",))
    assert answers(home, "from_list") == answers(home, "from_runs")
    assert parts["held-out/map5"] == pytest.approx(whole["held-out/map5"])
    searched = ensemble(
        home, "searched", "ensemble.by=scores", f"ensemble.lists=[{path}]", runs=("a",)
    )
    assert searched["held-out/map5"] >= parts["held-out/map5"]


def test_a_strangers_submission_joins_by_ranks(runs, capsys):
    home, _, _ = runs
    path = home / "alone" / "submission.csv"
    if not path.is_file():
        ensemble(home, "alone", runs=("a",))
    words = [f"ensemble.lists=[{path}]", "ensemble.weights=[1, 1000]"]
    with pytest.raises(DataError, match="no column 'Score': join it by ranks"):
        ensemble(home, "x", "ensemble.by=scores", *words, runs=("b",))
    with pytest.raises(ConfigError, match="held-out images and there are none: set unknown.by"):
        ensemble(home, "x", "ensemble.by=ranks", *words, runs=("b",))
    share = "unknown={by: share, value: 0.25}"
    scores = ensemble(home, "trusted", "ensemble.by=ranks", *words, share, runs=("b",))
    assert "lacks" in capsys.readouterr().out
    assert set(scores) == {"test/map5"}
    given, found = answers(home, "alone"), answers(home, "trusted")
    for image, row in found.items():
        mine = [name for name in row if name != "new_whale"]
        theirs = [name for name in given[image] if name != "new_whale"]
        assert mine[:4] == theirs[:4], "a thousand times the weight"


TEXT = "Image,Id,Score\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable csv"),
        ("Image,Name,Score\na,b,1\n", "no column 'Id'"),
        (TEXT, "lists no individual"),
        (TEXT + "t000.jpg,new_whale,1\n", "lists no individual"),
        (TEXT + "t000.jpg,w_0,x\n", "row 2: the Score is no number"),
        (TEXT + "t000.jpg,w_0,inf\n", "row 2: the Score is no number"),
        (TEXT + "t000.jpg,w_77,1\n", "nobody in train.csv is 'w_77'"),
        (TEXT + "t000.jpg,w_0,1\nt000.jpg,w_0,2\n", "lists w_0 twice for t000.jpg"),
    ],
)
def test_lists_that_cannot_be_used_are_named(runs, tmp_path, text, message):
    home, _, _ = runs
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_lists(path, read(DataConfig(root=str(home / "data"))), scores=True)


def test_a_list_is_sorted_and_must_have_every_image(runs, tmp_path):
    home, _, _ = runs
    data = read(DataConfig(root=str(home / "data")))
    path = tmp_path / "list.csv"
    path.write_text(TEXT + "t001.jpg,w_2,0.1\nt000.jpg,w_1,0.5\nt001.jpg,w_0,0.9\n")
    found = listed(read_lists(path, data, scores=True), np.array(["t000.jpg", "t001.jpg"]), path)
    assert found.index.tolist() == [[1, -1], [0, 2]]
    assert found.score[1].tolist() == pytest.approx([0.9, 0.1])
    with pytest.raises(DataError, match="nobody for 1 of 1 images, the first is t002.jpg"):
        listed(read_lists(path, data, scores=True), np.array(["t002.jpg"]), path)


VOTES = "{name: knn, k: 500}, {name: vote, top: 500, power: 1.0, reduce: max}"


@pytest.mark.parametrize(
    "steps",
    [
        "{name: class_centers}",
        "{name: class_logits}",
        VOTES + ", {name: logit_mix, weight: 0.5}",
        VOTES + ", {name: center_mix, weight: 0.5}",
    ],
)
def test_every_way_to_score_an_individual(runs, steps):
    home, _, _ = runs
    scores = ensemble(home, "ways", f"ranking=[{steps}]", "ensemble.weights=[1, 1]")
    assert scores["held-out/recall1"] > 0.5, "one in eight by chance"
    assert all(len(set(row)) == 5 for row in answers(home, "ways").values())


def test_a_run_without_a_head_says_what_else_there_is(tmp_path):
    who, asked = made(tmp_path / "data")
    a_run(tmp_path / "a", tmp_path / "data", who, asked, centers=False)
    with pytest.raises(ValueError, match="this run has none: use knn and vote, class_centers"):
        ensemble(tmp_path, "out", "ranking=[{name: class_logits}]", runs=("a",))


# ---------------------------------------------------------------- post-processing


def post(root, tmp_path, duplicates=None, leaks=None, margin=0.0):
    files = {"duplicates": duplicates, "leaks": leaks}
    given = {}
    for name, text in files.items():
        if text is not None:
            (tmp_path / f"{name}.csv").write_text(text)
            given[name] = str(tmp_path / f"{name}.csv")
    config = PostprocessConfig(**given)
    config.balance.margin = margin
    return Postprocess.of(config, read(DataConfig(root=str(root))))


def test_names_of_one_individual_stand_side_by_side(runs, tmp_path):
    after = post(runs[0] / "data", tmp_path, "Id,SubId\ng0,w_1 w_4 w_99\nw_2,w_3\n")
    index = torch.tensor([[1, 0, 4, 10, 2], [4, 10, 0, 2, 3], [2, 10, 3, 1, 0], [10, 2, 0, 5, 6]])
    rows = Neighbors(index, torch.zeros(4, 5))
    found = after.apply(rows, np.array(list("abcd")), test=False)
    assert found.index.tolist() == [
        [1, 4, 0, 10, 2], [4, 1, 10, 0, 2], [2, 3, 10, 1, 0], [10, 2, 0, 5, 6],
    ]  # fmt: skip
    assert "2 individuals" in after.remarks[0]


def test_leaks_are_first_in_the_test_alone(runs, tmp_path):
    text = "Image,Id\nt000.jpg,w_5\nt001.jpg,new_whale\nelsewhere.jpg,w_1\n"
    after = post(runs[0] / "data", tmp_path, leaks=text)
    rows = Neighbors(torch.tensor([[1, 0, 10, 2, 3]] * 3), torch.zeros(3, 5))
    ids = np.array(["t000.jpg", "t001.jpg", "t002.jpg"])
    found = after.apply(rows, ids, test=True).index.tolist()
    assert found == [[5, 1, 0, 10, 2], [10, 1, 0, 2, 3], [1, 0, 10, 2, 3]]
    assert after.apply(rows, ids, test=False) is rows
    assert "2 of 24 test images are answered by" in after.remarks[0]


@pytest.mark.parametrize(
    ("duplicates", "leaks", "message"),
    [
        ("Id,Name\na,b\n", None, "no column 'SubId'"),
        ("Id,SubId\ng,w_98 w_99\n", None, "no row has two names"),
        ("Id,SubId\ng,w_1 w_2\nh,w_2 w_3\n", None, "row 3: an individual is in another row too"),
        ("Id,SubId\ng,w_1 new_whale\n", None, "new_whale is nobody's other name"),
        (None, "Image,Id\nt000.jpg,w_99\n", "row 2: nobody in train.csv is 'w_99'"),
        (None, "Image,Id\nelse.jpg,w_1\n", "none of its 1 images is in the test set"),
        (None, "Image,Id\nt000.jpg,w_1\nt000.jpg,w_2\n", "occurs twice"),
    ],
)
def test_post_processing_files_that_cannot_be_used(runs, tmp_path, duplicates, leaks, message):
    with pytest.raises(DataError, match=message):
        post(runs[0] / "data", tmp_path, duplicates, leaks)


def test_leaks_change_the_test_score_and_not_the_held_out_one(runs, capsys):
    home, _, _ = runs
    before = ensemble(home, "plain", "ensemble.weights=[1, 1]")
    solution = home / "data" / "solution.csv"
    words = ["ensemble.weights=[1, 1]", f"postprocess.leaks={solution}"]
    after = ensemble(home, "leaked", *words)
    assert after["test/map5"] == 1.0 > before["test/map5"]
    assert after["held-out/map5"] == before["held-out/map5"]
    assert f"24 of 24 test images are answered by {solution}, not by the model" in (
        capsys.readouterr().out
    )
    assert "not by the model" in (home / "leaked" / "report.html").read_text()
    assert "not by the model" not in (home / "plain" / "report.html").read_text()


def test_balance_is_off_by_default_and_uses_more_individuals(runs, capsys):
    home, _, _ = runs
    words = ["ensemble.weights=[1, 1]", "unknown={by: threshold, value: -1}"]
    ensemble(home, "unbalanced", *words)
    assert "postprocess" not in capsys.readouterr().out
    ensemble(home, "balanced", *words, "postprocess={balance: {margin: 0.5}}")
    firsts = [
        len({row[0] for row in answers(home, out).values()}) for out in ("unbalanced", "balanced")
    ]
    assert firsts[0] < firsts[1]
    assert "a second that scores less than 0.5 below" in capsys.readouterr().out
    with pytest.raises(ValueError, match="margin=-1.0: at least 0"):
        ensemble(home, "x", "postprocess={balance: {margin: -1}}")


def test_training_keeps_what_a_cleaned_list_names(runs, tmp_path):
    home, _, _ = runs
    path = tmp_path / "cleaned.csv"
    path.write_text("Image\n" + "".join(f"a{i:03d}.jpg\n" for i in range(0, 63, 2)))
    words = [f"data.root={home / 'data'}", "data.folds=3"]
    config = load(Config, BASE, [*words, f"data.keep={path}"])
    data = read(config.data)
    held = Held.of(data, config)
    found = Material.of(data, config, held)
    before = Material.of(data, load(Config, BASE, words), held)
    assert set(found.table.ids) == {i for i in before.table.ids if int(i[1:4]) % 2 == 0}
    assert f"keep: {len(found.table)} of {len(before.table)} train images" in found.remarks


# ---------------------------------------------------------------- odd data


@pytest.mark.parametrize(
    ("sizes", "unknown"),
    [
        ((6,), "{by: validation}"),
        ((5, 4), "{by: share, value: 0.5}"),
        ((5, 4, 3), "{by: validation, single: -0.1, accept: 1}"),
        ((6, 5, 4, 3), "{by: quantile, value: 0.2}"),
        ((5, 4, 4, 3, 3, 2), "{by: threshold, value: 2.0}"),
    ],
)
def test_rows_are_different_and_as_long_as_there_are_identities(tmp_path, sizes, unknown):
    who, asked = made(tmp_path / "data", sizes, strangers=9, test=9)
    a_run(tmp_path / "a", tmp_path / "data", who, asked, unseen=0)
    ensemble(tmp_path, "out", f"unknown={unknown}", runs=("a",))
    rows = answers(tmp_path, "out").values()
    for row in rows:
        assert len(set(row)) == len(row) == min(5, len(sizes) + 1)
        assert "new_whale" in row or len(row) == 5
    sample = tmp_path / "data" / "sample_submission.csv"
    assert check_file("whale", tmp_path / "out" / "submission.csv", sample) == []


def test_a_test_of_strangers_and_one_of_a_single_image(tmp_path):
    for name, told, by in (
        ("strangers", [-1] * 11, "embeddings"),
        ("one", [2], "stacked"),
        ("one_stranger", [-1], "ranks"),
    ):
        home = tmp_path / name
        home.mkdir()
        who, asked = made(home / "data", answers=told)
        a_run(home / "a", home / "data", who, asked)
        a_run(home / "b", home / "data", who, asked, seed=3)
        scores = ensemble(home, by, f"ensemble.by={by}", "postprocess={balance: {margin: 1}}")
        assert 0 <= scores["test/map5"] <= 1
        assert len(answers(home, by)) == len(told)


def test_nobody_to_reject_is_said_before_any_work(tmp_path):
    who, asked = made(tmp_path / "data", strangers=0)
    a_run(tmp_path / "a", tmp_path / "data", who, asked, unseen=0)
    with pytest.raises(ConfigError, match="No held-out image is to be called unknown.*share"):
        ensemble(tmp_path, "out", runs=("a",))
    scores = ensemble(tmp_path, "out", "unknown={by: share, value: 0.3}", runs=("a",))
    assert scores["test/map5"] > 0


def test_nobody_to_recognise_is_said_before_any_work(tmp_path):
    who, asked = made(tmp_path / "data", sizes=(1, 1, 1, 1))
    a_run(tmp_path / "a", tmp_path / "data", who, asked, unseen=0)
    with pytest.raises(ConfigError, match="No held-out image shows somebody known"):
        ensemble(tmp_path, "out", runs=("a",))


def test_runs_that_do_not_fit_together_are_refused(runs, tmp_path):
    home, a, _ = runs
    who, asked = made(tmp_path / "data", sizes=(9, 9))
    a_run(tmp_path / "other", tmp_path / "data", who, asked)
    with pytest.raises(ConfigError, match="trained with data.root="):
        main([f"runs=[{a},{tmp_path / 'other'}]", *PLAIN])
    moved = f"data.root={home / 'data'}"
    a_run(tmp_path / "fewer", home / "data", who, asked)
    with pytest.raises(KeyError, match="ids have no embedding, the first is 'a"):
        main([f"runs=[{a},{tmp_path / 'fewer'}]", moved, *PLAIN])
    for words, message in (
        (["ensemble.weights=[1]"], "1 numbers for 2 runs"),
        (["ensemble.weights=[1, 1]", "ensemble.by=stacked"], "learns its own weights"),
        (["ensemble.lists=[x.csv]"], "joined by scores or ranks"),
        (["ensemble.missing=none"], "choose lowest or zero"),
        (["ensemble.top=-1"], "0 for all"),
        (["postprocess.leaks=nothing.csv"], "No file nothing.csv"),
    ):
        with pytest.raises((ConfigError, ValueError, FileNotFoundError), match=message):
            ensemble(home, "x", *words)
    everything = a_run(tmp_path / "all", home / "data", *made(tmp_path / "again"), fold=-1)
    with pytest.raises(ConfigError, match="needs held-out images"):
        main([f"runs=[{everything}]", *PLAIN])
