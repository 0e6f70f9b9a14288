"""Every experiment loads, is short, and names only what exists; every key has a comment."""

from pathlib import Path

import pytest
import yaml

from common.config import ConfigError, keys, load
from competitions.landmarks.config import BASE, Config, check, command, of_ensemble, of_run

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
        command("", [argument])


def test_the_run_folder_is_named_after_the_experiment():
    assert command("", []).out == str(Path("runs/landmarks/baseline"))
    assert command("", ["experiments/frozen.yaml"]).out == str(Path("runs/landmarks/frozen"))
    assert command("", ["frozen.yaml", "out=x"]).out == "x"


def test_infer_and_ensemble_name_the_run_they_miss(tmp_path):
    with pytest.raises(ConfigError, match=r"is no trained run: python .*train\.py out="):
        of_run("", [f"run={tmp_path}"])
    with pytest.raises(ConfigError, match="runs= is empty"):
        of_ensemble("", [])
    with pytest.raises(ConfigError, match="is no trained run"):
        of_ensemble("", [f"runs=[{tmp_path}]"])
