"""The names that a training and its inference log, in files and W&B, are those of the README."""

import json
import os
import re

import pytest
import yaml

from common.environment import git_state
from common.paths import REPOSITORY
from common.pipeline.runs import named
from common.track import TrackConfig
from competitions.shopee.config import COMMANDS as SHOPEE
from competitions.whale.config import COMMANDS as WHALE
from competitions.whale.infer import main as infer
from competitions.whale.train import main as train
from tests import offline
from tests.kits import whale_data
from tests.test_whale import TINY

README = (REPOSITORY / "common" / "report" / "README.md").read_text()
LOSS = "loss=[{name: sub_center_arcface, k: 2}, {name: triplet, weight: 0.5}]"


def rows(part):
    """Pattern of each name in the README's tables, and when it is there."""
    found = re.findall(r"^\| `([^`]+)` \| .+ \| (.+) \|$", part, re.MULTILINE)
    return {re.sub(r"<\w+>", "[a-z0-9_]+", re.escape(name)): when for name, when in found}


EPOCH, SUMMARY = (rows(part) for part in README.split("## Names")[1].split("In the summary"))


def documented(names, known, *, there):
    """Every name has a row, and every row that should be there has a name."""
    for name in names:
        assert any(re.fullmatch(pattern, name) for pattern in known), f"{name} is in no table"
    for pattern, when in known.items():
        seen = any(re.fullmatch(pattern, name) for name in names)
        assert seen == (when in there), f"{pattern}: {when}"


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run folder after two epochs and infer.py, both with W&B offline; what they printed."""
    home = tmp_path_factory.mktemp("names")
    data, out = whale_data(home / "data"), home / "runs" / "whale" / "tiny-fold0"
    epochs = "train.stages=[{epochs: 2, size: 32}]"
    words = [f"data.root={data}", *TINY, epochs, LOSS, "track.wandb=offline", "track.tags=[try]"]
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("WANDB_", "KAGGLE_"))]:
            patch.delenv(name)
        train([*words, f"out={out}"])
        infer([f"run={out}", "track.wandb=offline"])
        import wandb

        wandb.teardown()  # what is still on its way to the files
    return out


def test_every_name_is_in_the_readme(logged):
    lines = [json.loads(line) for line in (logged / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0].keys() == lines[1].keys()
    held, some = "with a fold held out", ("some losses", "sub-centres, k > 1")
    heads = "heads with cosines to centres"
    there = {"always", "unless it is frozen", held, heads, *some}
    documented(lines[0], EPOCH, there=there)
    summary = json.loads((logged / "summary.json").read_text())
    documented(
        [name for name in summary if name not in lines[0]],
        SUMMARY,
        there={"always", held, "if the solution is there"},
    )


def test_wandb_gets_what_the_files_have(logged):
    jobs = json.loads((logged / "track.json").read_text())
    summary = json.loads((logged / "summary.json").read_text())
    trained = offline.read(logged, jobs["train"]["id"])
    lines = [json.loads(line) for line in (logged / "metrics.jsonl").read_text().splitlines()]
    own = [{k: v for k, v in row.items() if k[0] != "_"} for row in trained["history"]]
    assert own == lines
    assert trained["maxima"] == {"valid/score", "valid/map5", "valid/recall1"}
    for name in trained["maxima"]:
        assert trained["summary"][name] == {"max": summary[name]}
        assert trained["summary"][f"{name}_step"] == summary[f"{name}_step"]
    assert trained["summary"]["minutes"] == summary["minutes"]
    config = yaml.safe_load((logged / "config.yaml").read_text())
    assert {k: trained["config"][k] for k in config} == config
    assert trained["config"]["git"] == jobs["train"]["git"]
    assert trained["config"]["git"].keys() == git_state().keys()
    assert trained["config"]["fingerprint"] == jobs["train"]["data"]
    run = trained["run"]
    assert (run.project, run.run_group, run.display_name) == ("kaggle-whale", "tiny", "tiny/fold0")
    assert run.job_type == "train"
    tags = ["test_efficientnet", "sub_center_arcface", "triplet", "32px", "fold0", "try"]
    assert sorted(run.tags) == sorted(tags)


def test_tables_and_scores_of_inference_reach_wandb(logged):
    jobs = json.loads((logged / "track.json").read_text())
    answered = offline.read(logged, jobs["infer"]["id"])
    assert answered["run"].job_type == "infer"
    (table,) = (row for row in answered["history"] if "whale/_type" in row)
    assert table["whale/_type"] == "table-file"
    stored = json.loads((logged / "tables" / "whale.json").read_text())
    assert table["whale/nrows"] == sum(len(group["rows"]) for group in stored["groups"]) > 0
    assert list((logged / "wandb").rglob(table["whale/path"]))
    summary = json.loads((logged / "summary.json").read_text())
    assert answered["summary"]["held-out/map5"] == summary["held-out/map5"]


@pytest.mark.parametrize(
    ("folder", "words", "group", "name"),
    [
        ("runs/whale/baseline", [], "baseline", "baseline/fold0"),
        ("runs/whale/big-fold2", ["data.fold=2"], "big", "big/fold2"),
        ("runs/whale/big/fold2", ["data.fold=2"], "big", "big/fold2"),
        ("runs/whale/f2", ["data.fold=2"], "baseline", "baseline/fold2"),
        ("runs/whale/leaf1", ["data.fold=-1", "unknown.by=share"], "leaf1", "leaf1/all"),
    ],
)
def test_folds_of_an_experiment_meet(folder, words, group, name, tmp_path):
    found = named(WHALE.train("", words), tmp_path / folder, "whale")
    assert (found.group, found.name, found.project) == (group, name, "kaggle-whale")


def test_tags_say_what_was_trained(tmp_path):
    config = SHOPEE.train("", ["model.uses=text", f"track.tags=[{'x' * 70}]", "track.name=mine"])
    found = named(config, tmp_path / "a", "shopee")
    assert found.tags[0] == config.model.text.backbone
    assert found.tags[-1] == "x" * 64  # W&B refuses longer ones
    assert found.name == "mine"
    config.runs, config.model.uses = ["runs/shopee/a", "runs/shopee/b"], "both"
    assert named(config, tmp_path / "a", "shopee").tags[1] == config.model.text.backbone
    joined = named(config, tmp_path / "ensemble", "shopee", "ensemble")
    assert joined.tags[:4] == [config.ensemble.by, "a", "b", "fold0"]
    assert TrackConfig().tags == []
