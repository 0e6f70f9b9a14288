import csv
import io
import json
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

from common import metrics
from common.entry import entry
from common.report import bootstrap, compare, compare_text, experiments, wandb_runs
from common.report.comparison import build, gather
from common.report.queries import Queries, load_queries, of_files, save_queries
from common.report.records import read_folder
from common.track import Run, TrackConfig
from tests.test_report import EVIL, Page

CONFIG = {
    "out": None, "run": None, "seed": 0, "data": {"root": None, "fold": 0, "folds": 5},
    "loss": [{"name": "arcface", "scale": 30.0, "margin": 0.3}],
    "train": {"lr": 1e-4, "stages": [{"epochs": 3, "size": 32}]}, "track": {"wandb": "off"},
    "ensemble": {"by": "embeddings"}, "runs": [],
}  # fmt: skip
DATA = {"train": 10, "test": 5, "sha256": "aa"}


def config(**changes):
    made = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        *parents, last = key.split("__")
        tree = made
        for name in parents:
            tree = tree[name]
        tree[last] = value
    return made


def make_run(
    folder, *, values=None, level=0.5, competition="whale", data=DATA, job="train", **changes
):
    """A run folder as train.py and infer.py leave it; `values` are MAP@5 of its test queries."""
    folder.mkdir(parents=True)
    settings = config(out=str(folder), **changes)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    about = {"name": folder.name, "group": None, "data": data, "changes": {}}
    about["command"] = f"python competitions/{competition}/train.py"
    (folder / "track.json").write_text(json.dumps({job: about}))
    lines = [
        {"step": 10 * e, "epoch": e, "train/loss": 9.0 / e, "train/images_per_second": 20.0 + e,
         "train/memory_gb": 1.5, "valid/map5": level + 0.01 * e}
        for e in (1, 2, 3)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"minutes": 2.0 + level, "valid/map5": level + 0.03, "valid/map5_step": 30}
    if values is not None:
        found = Queries(np.array([f"q{i}" for i in range(len(values))]), np.asarray(values))
        save_queries(folder, {"test/map5": found})
        summary["test/map5"] = found.metric()
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def make_three(root, queries=200):
    """Two seeds of one experiment and one of another that is better by far."""
    rng = np.random.default_rng(0)
    base = rng.choice([0.0, 0.2, 0.25, 0.5, 1.0], queries)
    for seed in (0, 1):
        own = np.where(rng.random(queries) < 0.1, 0.0, base)
        make_run(root / f"plain-{seed}", values=own, level=0.4 + 0.02 * seed, seed=seed)
    better = np.where(rng.random(queries) < 0.4, 1.0, base)
    make_run(root / "triplet", values=better, level=0.6, train__lr=3e-4)
    return root


@pytest.fixture
def three(tmp_path):
    return make_three(tmp_path / "runs")
