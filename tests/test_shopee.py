"""The Shopee scripts as commands: what they leave, odd tests, copied folders, refused settings."""

import json
import os
import shutil
from inspect import signature
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from common.config import ConfigError, load
from common.steps import settings
from common.submission import check as check_file
from competitions.shopee import ensemble, infer, train
from competitions.shopee.config import BASE, COMMANDS, Config, check
from competitions.shopee.matching import FOUND, STEPS
from competitions.shopee.study import Study
from tests.scripts import succeeds
from tests.test_compare import queries_fit

ROOT = Path(__file__).parents[1]
TINY = [
    "model.image.backbone=test_efficientnet",
    "model.image.weights=none",
    "model.text.backbone=bert_tiny",
    "model.text.weights=none",
    "train.stages=[{epochs: 1, size: 32}]",
    "train.batch_size=16",
    "train.workers=0",
    "view.size=32",
    "view.workers=0",
    "data.folds=3",
    "track.wandb=off",
]
TREES = "{name: lightgbm_pairs, around: [3], rounds: 10, min_leaf: 5, folds: 3, threads: 1}"
NETWORK = "{name: graph_attention, epochs: 5, folds: 3, heads: 2, hidden: 2}"
SCRIPTS = {"train": train, "infer": infer, "ensemble": ensemble}
WORDS = ["red", "tea", "soap", "lamp", "bag", "shoe", "blue", "cap", "jam", "pen"]


def run(script, *arguments, folder="shopee"):
    return succeeds(script, *arguments, folder=folder)


def call(script, *arguments):
    """The same without a process of its own, whose imports take longer than its work."""
    return SCRIPTS[script].main([str(word) for word in arguments])


def write_files(folder, groups):
    """Coloured squares with titles; `groups` by split."""
    rng = np.random.default_rng(0)
    for split, numbers in groups.items():
        (folder / f"{split}_images").mkdir(parents=True)
        rows = []
        for group in numbers:
            for n in range(2 + group % 2):
                picture = rng.integers(0, 90, (40, 48, 3)).astype(np.uint8)
                picture[8:32, 8:32] += (
                    np.array([group * 36, 250 - group * 30, group * 70]) % 160
                ).astype(np.uint8)
                cv2.imwrite(str(folder / f"{split}_images" / f"{group}{n}.jpg"), picture)
                title = f"{WORDS[group % 10]} <b>{WORDS[(group * 3 + 1) % 10]}</b> x{group} no{n}"
                rows.append(
                    [f"{split}_{group}{n}", f"{group}{n}.jpg", "94974f937d4c2433", title, group]
                )
        columns = ["posting_id", "image", "image_phash", "title", "label_group"]
        frame = pd.DataFrame(rows, columns=columns)
        if split == "test":
            ids = frame.groupby("label_group").posting_id.transform(" ".join)
            solution = pd.DataFrame({"posting_id": frame.posting_id, "matches": ids})
            solution.to_csv(folder / "solution.csv", index=False)
            own = pd.DataFrame({"posting_id": frame.posting_id, "matches": frame.posting_id})
            own.to_csv(folder / "sample_submission.csv", index=False)
            frame = frame.drop(columns="label_group")
        frame.to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shopee")
    write_files(folder, {"train": range(30), "test": range(30, 40)})
    (folder / "test_images" / "300.jpg").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """An image and a text run, inferred with every learned step and with titles' TF-IDF."""
    out = tmp_path_factory.mktemp("runs")
    steps = f"matching=[{{name: concat}}, {{name: union}}, {TREES}, {{name: both_ways}}, {NETWORK}]"
    call("train", f"data.root={root}", f"out={out / 'image'}", *TINY)
    call("infer", f"run={out / 'image'}", steps)
    call("train", "experiments/text.yaml", f"data.root={root}", f"out={out / 'text'}", *TINY,
        "model.text.freeze=none")  # fmt: skip
    call("infer", f"run={out / 'text'}", "tfidf.kinds=[word, char]")
    return out


def submission(folder):
    return pd.read_csv(folder / "submission.csv").set_index("posting_id").matches.str.split()


def test_runs_end_in_checked_submissions_and_a_report(root, runs):
    for name in ("image", "text"):
        folder = runs / name
        sample = root / "sample_submission.csv"
        assert check_file("shopee", folder / "submission.csv", sample) == []
        assert all(row[0] == own and len(row) <= 50 for own, row in submission(folder).items())
        summary = json.loads((folder / "summary.json").read_text())
        assert 0 < summary["held-out/f1"] <= 1
        assert queries_fit(folder)
        assert 0 < summary["test/f1"] <= 1
        scores = json.loads((folder / "analysis.json").read_text())["scores"]
        names = [row["name"] for row in scores]
        assert names[:2] == [f"{name} only", "words only"]
        assert all("F1 (test)" in row for row in scores)
    report = (runs / "image" / "report.html").read_text()
    assert "Which threshold, and why" in report
    assert "&lt;b&gt;" in report
    assert "<b>soap</b>" not in report
    assert "lightgbm_pairs" in report.lower()
    assert (runs / "image" / "tables" / "worst_groups.json").is_file()
    assert (runs / "text" / "alone" / "pieces.csv").is_file()


def test_ensembles_by_embeddings_scores_and_votes(root, runs, capsys):
    members = f"runs=[{runs / 'image'},{runs / 'text'}]"
    for by, more in (("embeddings", []), ("votes", []), ("scores", ["ensemble.weights=[1, 2]"])):
        out = runs / f"by_{by}"
        if by == "embeddings":
            said = run("ensemble", members, f"out={out}")
        else:
            call("ensemble", members, f"out={out}", f"ensemble.by={by}", *more)
            said = capsys.readouterr().out
        assert check_file("shopee", out / "submission.csv", root / "sample_submission.csv") == []
        assert "text only" in said
        if by != "embeddings":
            assert "weights by" in said
    assert "text 0.67" in said


def test_a_study_scores_steps_as_the_scripts_do(root, runs, tmp_path):
    steps = "[{name: concat}, {name: union}]"
    out = tmp_path / "both"
    call("ensemble", f"runs=[{runs / 'image'},{runs / 'text'}]", f"out={out}", f"matching={steps}",
        "tfidf.kinds=[word]")  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    study = Study.of(runs / "image", runs / "text")
    found = study.table({"both": steps, "pictures": "[{name: nearest, of: image}]"})
    assert found.loc["both", "held-out"] == round(summary["held-out/f1"], 4)
    assert found.loc["both", "test"] == round(summary["test/f1"], 4)
    weighted = study.scores(steps, by="weighted")
    assert weighted["held-out"] <= study.scores(steps)["held-out"]


def quick(steps):
    """The same steps with pair models that are small enough for a few listings."""
    small = {
        "lightgbm_pairs": {"rounds": 10, "min_leaf": 5, "folds": 3, "threads": 1},
        "graph_attention": {"epochs": 5, "folds": 3, "least": 0.0},  # few trees are sure of nothing
    }
    for step in steps:
        step.update(small.get(step["name"], {}))
        if step["name"] == "vote":
            step["of"] = [quick(branch) for branch in step["of"]]
    return steps


@pytest.mark.parametrize("place", ["1st", "2nd", "4th", "6th"])
def test_the_matching_of_every_recipe_runs(runs, place):
    recipe = yaml.safe_load((BASE.parent / "experiments" / f"shopee2021_{place}.yaml").read_text())
    study = Study.of(runs / "image", runs / "text")
    known, found = study.matched(quick(recipe["matching"]))
    assert len(found) == len(study.data.test)
    assert not (found.index == torch.arange(len(found))[:, None]).any()
    assert found.score[found.index >= 0].isfinite().all()
    truth = study.pools[0].truth
    assert study.choice(known, found).cut.f1 >= (2 / (1 + truth.totals)).mean()


def test_a_hidden_test_of_three_rows_and_of_one(root, runs, tmp_path, capsys):
    for count in (3, 1):
        small = tmp_path / str(count)
        shutil.copytree(root, small)
        rows = pd.read_csv(small / "test.csv").head(count)
        rows.to_csv(small / "test.csv", index=False)
        pd.read_csv(small / "sample_submission.csv").head(count).to_csv(
            small / "sample_submission.csv", index=False
        )
        (small / "solution.csv").unlink()
        copy = tmp_path / f"run{count}"
        shutil.copytree(runs / "image", copy)
        call("infer", f"run={copy}", f"data.root={small}")
        said = capsys.readouterr().out
        assert "passes the check" in said
        assert list(submission(copy).index) == rows.posting_id.tolist()


def test_a_copied_folder_and_a_joint_model_without_held_out_listings(root, tmp_path):
    copy = ROOT / "competitions" / f"copied_shopee_{os.getpid()}"
    ignore = shutil.ignore_patterns("sample")
    shutil.copytree(ROOT / "competitions" / "shopee", copy, ignore=ignore)
    blind = ["data.fold=-1", "threshold.by=sizes"]
    steps = "matching=[{name: concat}, {name: mean}]"
    try:
        out = f"out={tmp_path / 'a'}"
        run("train", f"data.root={root}", out, *TINY, "model.uses=both", *blind, steps,
            folder=copy.name)  # fmt: skip
        said = run("infer", f"run={tmp_path / 'a'}", folder=copy.name)
    finally:
        shutil.rmtree(copy)
    assert "by sizes" in said
    assert "joint only" in said
    assert "held-out" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["matching=[{name: unions}]"], "did you mean 'union'"),
        (["matching=[{name: concat}]"], "ends without neighbors"),
        (["matching=[{name: unit_veto}]"], "needs neighbors, which nothing before it makes"),
        (["matching=[{name: vote, of: [{name: union}]}]"], "list of lists of steps"),
        (["matching=[{name: vote, of: [[{name: unoin}]]}]"], "did you mean 'union'"),
        (["threshold.by=best"], "choose validation, weighted, sizes, value"),
        (["data.fold=-1"], "union finds its thresholds on held-out listings"),
        (
            ["data.fold=-1", "matching=[{name: vote, thresholds: [0.1], of: [[{name: union}]]}]"],
            "union finds its thresholds",
        ),
        (["data.fold=-1", "ensemble.by=scores"], "union finds its thresholds"),
        (["data.fold=-1", "matching=[{name: union, thresholds: {}}]"], "union finds its thresh"),
        (["data.fold=-1", "matching=[{name: vote, thresholds: []}]"], "vote finds its thresholds"),
        (["data.fold=-1", "matching=[{name: nearest}]"], "by=validation needs held-out listings"),
        (["threshold.most=60"], "a row may name 50"),
        (["tfidf.kinds=[letters]"], "word"),
        (["ensemble.by=ranks"], "embeddings, scores"),
    ],
)
def test_settings_that_cannot_be_run_are_errors_before_any_work(arguments, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        check(load(Config, BASE, arguments))


def test_what_a_step_finds_on_held_out_listings_can_be_said():
    assert FOUND.keys() == {n for n, step in STEPS.items() if "truth" in signature(step).parameters}
    for name, argument in FOUND.items():
        assert argument in settings(STEPS[name])


def test_members_that_match_by_their_own_steps_need_held_out_listings(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(BASE, tmp_path / name / "config.yaml")
        (tmp_path / name / "weights.safetensors").touch()
    members = f"runs=[{tmp_path / 'a'},{tmp_path / 'b'}]"
    blind = ["data.fold=-1", "threshold.by=sizes", "matching=[{name: concat}, {name: mean}]"]
    for by in ("scores", "votes"):
        with pytest.raises(ConfigError, match="union finds its thresholds on held-out listings"):
            call("ensemble", members, f"ensemble.by={by}", *blind)


def test_experiments_are_short_explained_and_valid():
    files = sorted((BASE.parent / "experiments").glob("*.yaml"))
    assert {"frozen", "text", "shopee2021_1st", "shopee2021_2nd"} <= {f.stem for f in files}
    for file in files:
        text = file.read_text()
        assert text.startswith("#")
        assert len(text.splitlines()) <= 15
        yaml.safe_load(text)
        assert COMMANDS.train("", [str(file)]).out.endswith(file.stem)
