"""Whale: what each part of training and ranking is worth, and the peer for the same minutes.

    python -m tests.bench.whale [data.root=PATH] [seeds=0,1,2] [parts=trainings,rankings,ensembles]
                                [skip=WORD,...] [key=value for every training ...]

For each seed every recipe trains and embeds once; the nearest images answer, and the unknown
identity is placed by the held-out images. Then other rankings answer with the default recipe's
embeddings, and the runs are joined. pytorch-metric-learning's SubCenterArcFaceLoss (Adam 1e-4 /
1e-3, batch 32, scale 64) fine-tunes the same ImageNet weights on the same images for as long as the
default took, is looked at in one 224 px view, and answers by the same rule. What a run folder
holds is not made again. `skip` leaves out recipes whose name holds a word. Needs a solution file
beside the data, as the sample has one.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import yaml

from common.data import augment
from common.engine.extract import ViewConfig, embed_table
from common.engine.settings import this_device
from common.entry import keep_pages
from common.environment import machine
from common.pipeline.vectors import Vectors
from common.types import Embeddings
from competitions.whale.study import Study
from tests.bench.landmarks import fine_tuned
from tests.bench.steps import signed, spread, steps_of

OUT = Path("runs/bench_whale")
OPTIONS = ("seeds=", "parts=", "skip=")
HOME = Path("competitions/whale")
VOTE = "{vote, top: 50, power: 1.0, reduce: max}"
PLAIN = f"knn, {VOTE}"
ARC = "{name: sub_center_arcface, k: 2, scale: 30.0, margin: 0.3}"
TRIPLET = "{name: triplet, margin: 0.3, miner: batch_hard, weight: 0.3}"
ASSIGNED = "train.sampler={name: assigned_pairs}"
PK = "train.sampler={name: pk, k: 4}"
# What is changed against the default recipe.
TRAININGS = {
    "default": [],
    "twin classes": [str(HOME / "experiments" / "twins.yaml")],
    "ArcFace and triplet": [f"loss=[{ARC}, {TRIPLET}]", PK],
    "unknown an all-zero target": [f"loss=[{ARC}, {{name: ohem_sigmoid, weight: 0.3}}]"],
    "Siamese head alone": ["loss=[{name: siamese}]", ASSIGNED],
    "ArcFace and Siamese head": [f"loss=[{ARC}, {{name: siamese}}]", ASSIGNED],
}
# Steps of YAML without their `name:`; from the embeddings of the training that is named first.
RANKINGS = {
    "default; class centres, trimmed": "class_centers",
    "default; the head's logits": "class_logits",
    "default; nearest images and logits": f"{PLAIN}, logit_mix",
    "default; RootSIFT on 30": f"knn, {{local, top: 30}}, {VOTE}",
    "default; calibrated fusion on 30": f"knn, {{wild_fusion, top: 30}}, {VOTE}",
    "default; the same, and logits": f"knn, {{wild_fusion, top: 30}}, {VOTE}, logit_mix",
    "default; LightGBM on 50": f"knn, lightgbm_rerank, {VOTE}",
    "default; k-reciprocal": f"k_reciprocal, {VOTE}",
    "ArcFace and Siamese head; Siamese re-ranking": f"knn, {{siamese, top: 50}}, {VOTE}",
}
JOINED = ("default", "twin classes", "ArcFace and triplet")
ENSEMBLES = ("embeddings", "scores", "ranks", "stacked")

Scores = dict[str, float]  # held-out: MAP@5 at the threshold chosen there; test: at the same


def script(name: str, *arguments: str) -> None:
    """Run one of the competition's scripts."""
    subprocess.run(
        [sys.executable, str(HOME / f"{name}.py"), "track.wandb=off", *arguments], check=True
    )


def trained(name: str, seed: int, arguments: list[str]) -> Path:
    """The run folder of a recipe, trained and embedded unless it is already."""
    folder = OUT / f"{name.lower().replace(',', '').replace(' ', '_')}-{seed}"
    changes = sorted(TRAININGS[name], key=lambda text: "=" in text)  # the experiment comes first
    script("train", *changes, f"seed={seed}", f"out={folder}", *arguments)
    if not (folder / "embeddings" / "test.safetensors").exists():
        script(
            "infer",
            f"run={folder}",
            f"ranking={yaml.safe_dump(steps_of(PLAIN), default_flow_style=True)}",
        )
    return folder


def peer(like: Study, seed: int, minutes: float) -> Scores:
    """Scores of the peer after so many minutes; 0 is the frozen backbone."""
    folder = OUT / (f"peer-{seed}" if minutes else "frozen")
    parts = {"train": like.data.train, "test": like.data.test}
    paths = {name: folder / f"{name}.safetensors" for name in parts}
    if not all(path.exists() for path in paths.values()):
        table = like.data.train.take(like.held.split.train)
        table = table.take(np.flatnonzero(table.labels >= 0))
        model = fine_tuned(table, len(like.data.classes), seed, minutes)
        view, transform = ViewConfig(size=224), augment.build("none", 224, False)
        for name, rows in parts.items():
            embed_table(model, rows, view, transform, this_device()).save(paths[name])
    vectors = Vectors(**{name: Embeddings.load(path) for name, path in paths.items()})
    return Study(like.config, vectors, like.data, like.held, like.cache).scores(steps_of(PLAIN))


def joined(by: str, seed: int, folders: list[Path]) -> Scores:
    """Scores of the runs of a seed as one."""
    runs = ",".join(map(str, folders))
    out = OUT / f"joined_{by}-{seed}"
    start = time.perf_counter()
    ranking = yaml.safe_dump(steps_of(PLAIN), default_flow_style=True)  # as of the runs alone
    script("ensemble", f"runs=[{runs}]", f"ensemble.by={by}", f"ranking={ranking}", f"out={out}")
    found = json.loads((out / "summary.json").read_text())
    held, test = found["held-out/map5"], found["test/map5"]
    return {"held-out": held, "test": test, "seconds": time.perf_counter() - start}


def main() -> None:
    """Print one table: rows, test and held-out MAP@5, changes to the default recipe."""
    keep_pages()
    warnings.simplefilter("ignore")  # a step's advice about the data, once per call
    options = dict(a.split("=", 1) for a in sys.argv[1:] if a.startswith(OPTIONS))
    arguments = [a for a in sys.argv[1:] if not a.startswith(OPTIONS)]
    parts = options.get("parts", "trainings,rankings,ensembles").split(",")
    skip = options["skip"].split(",") if "skip" in options else []
    recipes = [name for name in TRAININGS if not any(word in name for word in skip)]
    if not {"trainings", "ensembles"} & set(parts):
        recipes = ["default"]
    rows: dict[str, list[Scores]] = {}
    minutes: dict[str, list[float]] = {}
    seeds = [int(seed) for seed in options.get("seeds", "0,1,2").split(",")]
    for seed in seeds:
        studies, folders = {}, {}
        for name in recipes:
            folder = folders[name] = trained(name, seed, arguments)
            spent = json.loads((folder / "summary.json").read_text())["minutes"]
            minutes.setdefault(name, []).append(spent)
            studies[name] = Study.of(folder)
            rows.setdefault(name, []).append(studies[name].scores(steps_of(PLAIN)))
        default = studies["default"]
        if "trainings" in parts:
            for name, longest in (("frozen", 0.0), ("the peer", minutes["default"][-1])):
                rows.setdefault(name, []).append(peer(default, seed, longest))
        if "rankings" in parts:
            for name, text in RANKINGS.items():
                study = studies.get(name.split(";")[0])
                if study is not None:
                    rows.setdefault(name, []).append(study.scores(steps_of(text)))
        if "ensembles" in parts:
            runs = [folders[name] for name in JOINED]
            for by in ENSEMBLES:
                rows.setdefault(f"joined, {by}", []).append(joined(by, seed, runs))
        print(f"seed {seed}", {name: found[-1] for name, found in rows.items()}, flush=True)
    print(report(rows, minutes))
    print(
        f"seeds {seeds}; {machine()['cpu']}, {machine()['cores']} cores, torch {torch.__version__}"
    )


def report(rows: dict[str, list[Scores]], minutes: dict[str, list[float]]) -> str:
    """The table in Markdown."""
    lines = [
        "| | MAP@5 | change | MAP@5, held out | change | minutes of training |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        cells = []
        for key in ("test", "held-out"):
            values = [f[key] for f in found]
            change = [f[key] - d[key] for f, d in zip(found, rows["default"], strict=True)]
            cells += [spread(values), "" if name == "default" else signed(change)]
        spent = f"{statistics.mean(minutes[name]):.1f}" if name in minutes else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {spent} |")
    return "\n".join(["", *lines])


if __name__ == "__main__":
    main()
