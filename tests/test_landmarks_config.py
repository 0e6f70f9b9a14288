"""Every experiment loads, is short, and names only what exists; every key has a comment."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from common.config import ConfigError, keys, load, save
from common.pipeline.commands import Commands
from common.pipeline.vectors import align
from competitions.landmarks.config import BASE, COMMANDS, Config, check
from competitions.landmarks.ranking import check_penalties
from competitions.landmarks.results import outputs

EXPERIMENTS = sorted((BASE.parent / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiments(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 15
    assert text.startswith("# ")
    check(load(Config, BASE, [str(path)]))


def test_the_published_recipes_are_there():
    names = {path.stem for path in EXPERIMENTS}
    assert {
        "frozen",
        "recognition2020_1st",
        "recognition2020_3rd",
        "landmarks2021_1st",
        "retrieval2019_1st",
    } <= names


def test_the_baseline_shows_every_section_and_explains_itself():
    shown = yaml.safe_load(BASE.read_text())
    assert list(shown) == list(Config.__dataclass_fields__)
    lines = [line for line in BASE.read_text().splitlines() if line and not line.startswith("#")]
    assert sum("#" in line for line in lines) > len(lines) / 3
    assert set(keys(shown)) >= {"data.root", "out", "run", "runs", "seed", "track.wandb"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("task=both_of_them", "choose both, recognition or retrieval"),
        ("ensemble.by=luck", "choose embeddings, scores or ranks"),
        ("loss=[]", "loss: is empty"),
        ("loss=[{name: arcfase}]", r"loss\[0\]: no step 'arcfase'; did you mean 'arcface'"),
        ("loss.0.margn=1", "no argument 'margn'; did you mean 'margin'"),
        ("train.sampler={name: pkk}", r"train\.sampler: no step 'pkk'; did you mean 'pk'"),
        ("train.augment=crops", "did you mean 'crop'"),
        ("recognition=[{name: vote}]", r"recognition\[0\]: vote needs neighbors"),
        ("retrieval=[]", "retrieval: ends without neighbors"),
        ("train.stages=[{epoch: 1}]", "epoch"),
        ("view.scales=[2.0]", r"view\.scales"),
        ("train.precision=fp8", "choose auto, fp32, bf16 or fp16"),
    ],
)
def test_mistakes_are_found_before_any_work(argument, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        COMMANDS.train("", [argument])


def test_the_run_folder_is_named_after_the_experiment():
    assert COMMANDS.train("", []).out == str(Path("runs/landmarks/baseline"))
    assert COMMANDS.train("", ["experiments/frozen.yaml"]).out == str(Path("runs/landmarks/frozen"))
    assert COMMANDS.train("", ["frozen.yaml", "out=x"]).out == "x"


@pytest.fixture
def run(tmp_path):
    save(load(Config, BASE, ["seed=3"]), tmp_path / "config.yaml")
    (tmp_path / "weights.safetensors").touch()
    return tmp_path


def test_infer_reads_the_config_of_the_run_that_is_named_last(run):
    for words in ([f"run={run}"], [f"--run={run}"], ["run=elsewhere", f"run={run}"]):
        found = COMMANDS.infer("", [*words, "view.size=64"])
        assert (found.run, found.seed, found.view.size) == (str(run), 3, 64)
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="is no trained run"):
        COMMANDS.infer("", [f"run={run}"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model.neck=bn", "trained with another model"),
        ("loss.0.k=1", "trained with another loss"),
        ("train.lr=3", "trained with another train, which infer.py cannot change"),
        ("seed=9", "trained with another seed"),
        ("data.fold=1", "trained with data.fold=0: with 1 it would be scored on images it has"),
        ("data.unseen=0.5", r"data\.unseen=0\.1"),
    ],
)
def test_infer_takes_nothing_that_does_not_fit_the_run(run, argument, message):
    with pytest.raises(ConfigError, match=message):
        COMMANDS.infer("", [f"run={run}", argument])
    assert COMMANDS.infer("", [f"run={run}", "data.fold=-1"]).data.fold == -1


def test_where_submissions_go_is_known_before_any_work(tmp_path):
    def paths(index, *arguments):
        data = SimpleNamespace(root="data", index=index)
        return outputs(load(Config, BASE, arguments), data, tmp_path)

    one, two = tmp_path / "submission_recognition.csv", tmp_path / "submission_retrieval.csv"
    assert paths([]) == {"recognition": one, "retrieval": two}
    assert paths(None) == {"recognition": one}
    assert paths([], "task=retrieval", "out=x.csv") == {"retrieval": Path("x.csv")}
    assert paths([], "task=retrieval", "out=x") == {"retrieval": Path("x/submission_retrieval.csv")}
    assert paths(None, "out=x.csv") == {"recognition": Path("x.csv")}
    with pytest.raises(ValueError, match="one file, but there are two submissions"):
        paths([], "out=x.csv")
    with pytest.raises(ValueError, match="No index images under data: retrieval needs them"):
        paths(None, "task=retrieval")


def test_centers_follow_the_classes_of_the_data():
    centers = torch.arange(6.0).view(3, 2, 1)
    known = np.array(["b", "d", "e"])
    assert align(centers, known, known) is centers
    found = align(centers, known, np.array(["a", "b", "e", "f"]))
    assert found[:, :, 0].tolist() == [[0, 0], [0, 1], [4, 5], [0, 0]]


def test_infer_and_ensemble_name_the_run_they_miss(tmp_path):
    with pytest.raises(ConfigError, match=r"is no trained run: python .*train\.py out="):
        COMMANDS.infer("", [f"run={tmp_path}"])
    with pytest.raises(ConfigError, match="runs= is empty"):
        COMMANDS.ensemble("", [])
    with pytest.raises(ConfigError, match="is no trained run"):
        COMMANDS.ensemble("", [f"runs=[{tmp_path}]"])


def test_penalties_without_known_non_landmarks_are_refused_before_any_work():
    config = Config(recognition=[{"name": "knn"}, {"name": "query_penalty", "top": 3}])
    check_penalties(config, SimpleNamespace(negatives=object()))
    with pytest.raises(ConfigError, match=r"recognition: query_penalty .* set data.non_landmark"):
        check_penalties(config, SimpleNamespace(negatives=None))
    check_penalties(Config(recognition=[{"name": "knn"}]), SimpleNamespace(negatives=None))


def test_every_key_of_the_schema_is_in_the_commented_config():
    said = set(keys(yaml.safe_load(BASE.read_text())))
    known = set(keys(asdict(Config())))
    hidden = {key for key in known - said if not key.startswith("track.")}
    assert hidden == set()


def test_a_copied_folder_speaks_of_itself():
    mine = Commands(Config, Path("competitions/mine"), "landmarks", check, str)
    said = mine.about("python competitions/landmarks/infer.py run=runs/landmarks/a")
    assert said == "python competitions/mine/infer.py run=runs/mine/a"
