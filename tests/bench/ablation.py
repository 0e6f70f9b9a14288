"""Landmarks: what each part of the default recipe is worth, one change at a time.

    python -m tests.bench.ablation [data.root=PATH] [seed=0]

Trains the default, and once with running BatchNorm statistics; everything else is infer.py with one
step or view changed. Needs solution files beside the data, as the bundled sample has them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from common.environment import machine

OUT = Path("runs/bench_ablation")
VOTE = "{name: vote, top: 3, power: 8.0}"
SIFT = "{name: local, top: 10}"
PENALTY = "{name: query_penalty, top: 10}"
VARIANTS = [
    ("one 224 px view", "view={size: 224, scales: [1.0], flip: false}"),
    ("one 320 px view", "view={size: 320, scales: [1.0], flip: false}"),
    ("no SIFT", f"recognition=[{{name: knn}}, {VOTE}]"),
    ("nearest neighbor, no votes", f"recognition=[{{name: knn}}, {SIFT}, {{name: vote, top: 1}}]"),
    ("votes less penalty C", f"recognition=[{{name: knn}}, {SIFT}, {VOTE}, {PENALTY}]"),
    (
        "penalties B and C",
        f"recognition=[{{name: knn}}, {SIFT}, {{name: gallery_penalty, top: 5}}, "
        f"{{name: vote, top: 3, power: 1.0}}, {PENALTY}]",
    ),
    ("no expansion", "retrieval=[{name: knn}]"),
    ("query expansion alone", "retrieval=[{name: alpha_qe, k: 5, alpha: 3.0}, {name: knn}]"),
    ("PCA whitening to 256", "retrieval=[{name: pca_whiten, dim: 256}, {name: knn}]"),
]


def script(name: str, *arguments: str) -> None:
    """Run one of the competition's scripts."""
    path = f"competitions/landmarks/{name}.py"
    subprocess.run([sys.executable, path, "track.wandb=off", *arguments], check=True)


def row(name: str, folder: Path) -> str:
    """A line of the table."""
    found = json.loads((folder / "summary.json").read_text())
    keys = ("test/gap", "test/map100", "held-out/gap", "held-out/map100")
    return f"| {name:<28}| " + " | ".join(f"{found[key]:.4f}" for key in keys) + " |"


def main() -> None:
    """Print a table, one row per variant."""
    arguments = sys.argv[1:]
    lines = []
    default, running = OUT / "default", OUT / "running_batchnorm"
    for folder, change in ((default, []), (running, ["model.freeze=none"])):
        script("train", f"out={folder}", *arguments, *change)
        script("infer", f"run={folder}")
    lines += [row("default", default), row("BatchNorm not frozen", running)]
    for name, change in VARIANTS:
        folder = OUT / name.replace(" ", "_")
        shutil.copytree(default, folder, dirs_exist_ok=True)
        script("infer", f"run={folder}", change)
        lines.append(row(name, folder))
    print(f"\n| {'':<28}| GAP    | mAP@100 | GAP, held out | mAP@100, held out |")
    print("\n".join([f"|{'-' * 29}|---|---|---|---|", *lines]))
    print(f"{machine()['cpu']}, {machine()['cores']} cores, torch {torch.__version__}")


if __name__ == "__main__":
    main()
