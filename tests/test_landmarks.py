"""The landmarks scripts as commands: train, infer, ensemble; killed, copied, on two processes."""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from common.config import ConfigError
from common.engine.checkpoint import load_tree
from common.submission import check
from common.types import Embeddings
from competitions.landmarks.ranking import score
from competitions.landmarks.study import Study
from tests.scripts import ENVIRONMENT, path_of, start, succeeds
from tests.scripts import fails as refused
from tests.test_compare import queries_fit

ROOT = Path(__file__).parents[1]
# A net of 0.4 M weights at 32 px: seconds on one core. Untrained, so scores mean nothing here.
TINY = [
    "model.backbone=test_efficientnet",
    "model.weights=none",
    "train.stages=[{epochs: 2, size: 32}]",
    "train.batch_size=16",
    "train.workers=0",
    "view.size=32",
    "view.scales=[1.0]",
    "view.workers=0",
    "view.block=16",
    "data.folds=3",
    "track.wandb=off",
]
PLAIN = [
    "recognition=[{name: knn, k: 20}, {name: vote}]",
    "retrieval=[{name: knn, k: 100}]",
]


def run(script, *arguments, folder="landmarks"):
    return succeeds(script, *arguments, folder=folder)


def python(script, *words, launcher=()):
    """The same in a Python of its own, with a seed of its own for the order of sets."""
    done = subprocess.run(
        [sys.executable, *launcher, path_of(script, "landmarks"), *map(str, words)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


def launched(*arguments):
    """The same under torchrun, in two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return python(*arguments, launcher=launcher)


def fails(*arguments, before=None):
    return refused(*arguments, folder="landmarks", before=before)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four landmarks in coloured squares, two test images of nothing, odd files among them."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def put(split, number, label):
        name = f"{abs(hash_of(split, number)):016x}"
        path = folder / split / name[0] / name[1] / name[2] / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
        if label is not None:
            picture[8:32, 8:32] = ((label * 60) % 255, 255 - label * 50, (label * 110) % 255)
        cv2.imwrite(str(path), picture)
        return name, path

    train = [(put("train", i, i % 4)[0], 7 + i % 4) for i in range(40)]
    index = [(put("index", i, i % 4)[0], i % 4) for i in range(24)]
    test = [(put("test", i, i % 4)[0], i % 4) for i in range(8)]
    test += [(put("test", 100 + i, None)[0], None) for i in range(2)]
    bad, path = put("test", 200, 0)
    path.write_bytes(b"not a picture")
    grey, path = put("test", 201, 0)
    cv2.imwrite(str(path), np.full((1, 1), 9, np.uint8))
    test += [(bad, None), (grey, None)]
    frame(train, "id", "landmark_id").to_csv(folder / "train.csv", index=False)
    nothing = [(put("train", 100 + i, None)[0],) for i in range(6)]
    frame(nothing, "id").to_csv(folder / "non_landmark.csv", index=False)
    ids = [i for i, _ in test]
    frame([(i, "7 0.1") for i in ids], "id", "landmarks").to_csv(
        folder / "recognition_sample_submission.csv", index=False
    )
    frame([(i, index[0][0]) for i in ids], "id", "images").to_csv(
        folder / "retrieval_sample_submission.csv", index=False
    )
    solution = [(i, "" if k is None else str(7 + k), "Private") for i, k in test]
    frame(solution, "id", "landmarks", "Usage").to_csv(
        folder / "recognition_solution_v2.1.csv", index=False
    )
    right = {k: " ".join(i for i, j in index if j == k) for k in range(4)}
    solution = [(i, right.get(k, "None"), "Ignored" if k is None else "Public") for i, k in test]
    frame(solution, "id", "images", "Usage").to_csv(
        folder / "retrieval_solution_v2.1.csv", index=False
    )
    return folder


def hash_of(split, number):
    return (number + 1) * 0x9E3779B97F4A7C15 % 2**60 + {"train": 0, "test": 1, "index": 2}[split]


def frame(rows, *columns):
    return pd.DataFrame(rows, columns=list(columns))


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A run, trained and inferred without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    python("train", *TINY, *PLAIN, f"data.root={root}", f"out={folder}")
    text = python("infer", f"run={folder}")
    return folder, text


def submissions(folder):
    return [(folder / f"submission_{t}.csv").read_bytes() for t in ("recognition", "retrieval")]


def test_train_and_infer_leave_the_whole_run_folder(trained, root):
    folder, text = trained
    assert queries_fit(folder)
    for name in (
        "config.yaml",
        "weights.safetensors",
        "card.json",
        "state/last.safetensors",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "embeddings/train.safetensors",
        "embeddings/test.safetensors",
        "embeddings/index.safetensors",
    ):
        assert (folder / name).is_file(), name
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 <= summary["test/gap"] <= 1
    assert 0 <= summary["held-out/map100"] <= 1
    assert "GAP (test)" in text
    assert "report:" in text
    assert not list(folder.rglob("*.pkl"))
    assert not list(folder.rglob("*.pt"))


@pytest.mark.parametrize("task", ["recognition", "retrieval"])
def test_submissions_pass_the_check_and_hold_the_unreadable_image(trained, root, task):
    folder, _ = trained
    path = folder / f"submission_{task}.csv"
    sample = root / f"{task}_sample_submission.csv"
    assert check(f"landmarks-{task}", path, sample) == []
    assert set(pd.read_csv(path)["id"]) == set(pd.read_csv(sample)["id"])


def test_without_a_root_the_bundled_sample_runs_with_the_default_steps(tmp_path):
    text = run("train", *TINY, "train.stages=[]", f"out={tmp_path}")
    assert "bundled sample" in text
    text = run("infer", f"run={tmp_path}")
    for task in ("recognition", "retrieval"):
        path = tmp_path / f"submission_{task}.csv"
        sample = ROOT / "competitions" / "landmarks" / "sample" / f"{task}_sample_submission.csv"
        assert check(f"landmarks-{task}", path, sample) == []
        assert f"{path} passes the check" in text


def test_the_unreadable_image_is_counted_and_a_zero_vector(trained):
    embeddings = Embeddings.load(trained[0] / "embeddings" / "test.safetensors")
    assert embeddings.card["unreadable"] == 1
    assert "warning: 1 of 12 test images cannot be read" in trained[1]
    norms = embeddings.vectors.norm(dim=1)
    assert (norms == 0).sum() == 1
    assert ((norms - 1).abs() < 1e-5).sum() == len(norms) - 1


def test_infer_again_does_not_embed_again(trained):
    folder, _ = trained
    path = folder / "embeddings" / "train.safetensors"
    before, stamp = submissions(folder), path.stat().st_mtime_ns
    run("infer", f"run={folder}")
    assert path.stat().st_mtime_ns == stamp
    assert submissions(folder) == before


@pytest.mark.parametrize("task", ["recognition", "retrieval"])
def test_a_study_scores_steps_as_infer_does(trained, task):
    folder, _ = trained
    metric = {"recognition": "gap", "retrieval": "map100"}[task]
    summary = json.loads((folder / "summary.json").read_text())
    study, steps = Study.of(folder), PLAIN[task == "retrieval"].partition("=")[2]
    found = study.table(task, {"as infer": steps, "again": steps})
    assert found["held-out"].tolist() == [round(summary[f"held-out/{metric}"], 4)] * 2
    assert found["test"].tolist() == [round(summary[f"test/{metric}"], 4)] * 2
    assert found["change"].tolist() == [0.0, 0.0]
    one = study.scores(task, "[{name: knn, k: 1}, {name: vote, top: 1}]")
    assert one["held-out"] == score(task, *study.answer(task, "[{name: knn, k: 1}, {name: vote}]"))


def test_a_study_needs_something_held_out(trained, root, tmp_path):
    shutil.copytree(trained[0], tmp_path / "all")
    config = tmp_path / "all" / "config.yaml"
    config.write_text(config.read_text().replace("fold: 0", "fold: -1"))
    with pytest.raises(ConfigError, match="holds no images out"):
        Study.of(tmp_path / "all")


def kill_when(condition, streams, *arguments):
    """Start a script and kill -9 it as soon as `condition` holds."""
    streams.mkdir()
    process = start(*arguments, folder="landmarks", streams=streams)
    deadline = time.monotonic() + 300
    while not condition():
        assert process.exitcode is None, "the script ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()


def test_kill_9_in_training_and_extraction_changes_nothing(trained, root, tmp_path):
    whole, _ = trained
    folder = tmp_path / "killed"
    train = ["train", *TINY, *PLAIN, f"data.root={root}", f"out={folder}"]
    kill_when((folder / "state" / "last.safetensors").is_file, tmp_path / "1", *train)
    log = folder / "metrics.jsonl"
    assert not log.is_file() or len(log.read_text().splitlines()) < 2
    run(*train)
    infer = ["infer", f"run={folder}"]
    blocks = folder / "embeddings"
    kill_when(lambda: any(blocks.glob("*.blocks/0*.safetensors")), tmp_path / "2", *infer)
    assert not (folder / "report.html").exists()
    run(*infer)
    assert submissions(folder) == submissions(whole)
    assert not list(blocks.glob("*.blocks"))


def test_two_processes_give_the_embeddings_of_one(trained, root, tmp_path):
    whole, _ = trained
    folder = tmp_path / "two"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("embeddings"))
    launched("infer", f"run={folder}")
    for name in ("train", "test", "index"):
        one = Embeddings.load(whole / "embeddings" / f"{name}.safetensors")
        two = Embeddings.load(folder / "embeddings" / f"{name}.safetensors")
        assert one.ids.tolist() == two.ids.tolist()
        assert (one.vectors - two.vectors).abs().max() < 1e-6


def test_two_processes_train(root, tmp_path):
    folder = tmp_path / "ddp"
    text = launched(
        "train",
        *TINY,
        *PLAIN,
        "loss=[{name: arcface}, {name: momentum_queue, size: 64, momentum: 0.9, weight: {end: 1}}]",
        "train.sampler={name: identity_clusters, k: 8, number: 2}",
        f"data.root={root}",
        f"out={folder}",
    )
    assert text.count("epoch 2 ") == 1  # one process speaks
    assert load_tree(folder / "weights.safetensors")["criterion"].keys() == {
        "terms.0.weight",
        "terms.0.margin_factor",
    }
    state = load_tree(folder / "state" / "last.safetensors")
    assert (state["trained"]["criterion.terms.1.memory_labels"] >= 0).any()
    assert state["sampler"]["found_at"] == 1
    run("infer", f"run={folder}")


def test_losses_of_the_list_add_up_in_a_training(root, tmp_path):
    kinds = tmp_path / "kinds.csv"
    kinds.write_text("landmark_id,kind,other\n7,a,1\n8,b,1\n9,a,1\n10,b,1\n")
    pairs = "{name: contrastive}"
    terms = "{name: arcface}, {name: triplet, weight: 0.3, miner: semi_hard_pair}"
    text = run(
        "train",
        *TINY,
        *PLAIN,
        f"train.sampler={{name: category_balanced, k: 8, c: 2, source: '{kinds}:kind'}}",
        f"loss=[{terms}, {{name: cross_batch_memory, loss: {pairs}, size: 64, start: 1}}]",
        f"data.root={root}",
        f"out={tmp_path}",
    )
    assert "epoch 2 " in text
    assert (tmp_path / "weights.safetensors").is_file()


@pytest.mark.parametrize("by", ["embeddings", "scores", "ranks"])
def test_ensembles_join_runs(trained, root, tmp_path, by):
    whole, _ = trained
    second = tmp_path / "second"
    shutil.copytree(whole, second)
    text = run(
        "ensemble",
        f"runs=[{whole},{second}]",
        f"out={tmp_path / 'joined'}",
        f"ensemble.by={by}",
        "ensemble.steps=2",
        "track.wandb=off",
        *PLAIN,
    )
    assert "weights by" in text
    for task in ("recognition", "retrieval"):
        path = tmp_path / "joined" / f"submission_{task}.csv"
        assert check(f"landmarks-{task}", path, root / f"{task}_sample_submission.csv") == []
    if by == "embeddings":  # a run joined with itself is itself
        joined = json.loads((tmp_path / "joined" / "summary.json").read_text())
        alone = json.loads((whole / "summary.json").read_text())
        assert joined["test/map100"] == pytest.approx(alone["test/map100"], abs=1e-6)


def test_a_copied_folder_runs_under_its_new_name(root, tmp_path):
    copy = ROOT / "competitions" / "copied_for_test"
    shutil.copytree(
        ROOT / "competitions" / "landmarks",
        copy,
        ignore=shutil.ignore_patterns("sample", "__pycache__"),
    )
    try:
        text = run("train", "--help", folder=copy.name)
        assert "data:" in text
        folder = tmp_path / "run"
        run(
            "train",
            *TINY,
            *PLAIN,
            "train.stages=[]",
            f"data.root={root}",
            f"out={folder}",
            folder=copy.name,
        )
        assert (folder / "weights.safetensors").is_file()
    finally:
        shutil.rmtree(copy)


def test_help_shows_keys_comments_and_steps():
    text = run("train", "--help", "train.lr=0.5")
    assert "lr: 0.5" in text
    assert "{name: sub_center_arcface, k: 3" in text
    assert "{name: knn" in text
    assert "# backbone" in text


def half_a_megabyte():
    """No larger file: the state's write fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


def test_a_full_disk_is_one_line_and_loses_nothing(root, tmp_path):
    settings = [*TINY, *PLAIN, f"data.root={root}", f"out={tmp_path}"]
    message = fails("train", *settings, before=half_a_megabyte)
    assert "Could not write" in message
    assert "Free space" in message
    assert not [path for path in tmp_path.rglob("*.safetensors*") if path.is_file()]
    run("train", *settings)
    assert (tmp_path / "weights.safetensors").is_file()


def test_user_errors_are_one_line(trained, root, tmp_path):
    whole, _ = trained
    assert "did you mean 'train.lr'" in fails("train", "train.lrr=1")
    assert "timm has no net 'nope'" in fails("train", "model.backbone=nope", f"out={tmp_path}/x")
    assert not (tmp_path / "x").exists()
    assert "No train.csv under data.root" in fails("train", f"data.root={tmp_path}")
    message = fails("train", *TINY, *PLAIN, f"data.root={root}", f"out={whole}", "seed=5")
    assert "seed=0, this one has 5" in message
    assert "is no trained run" in fails("infer", f"run={tmp_path}")
    assert "two submissions" in fails("infer", f"run={whole}", f"out={tmp_path}/x.csv")
    runs = f"runs=[{whole},{whole}]"
    assert "No train.csv under data.root" in fails("ensemble", runs, f"data.root={tmp_path}")
    assert "data.fold=1: the runs decide it" in fails("ensemble", runs, "data.fold=1")
