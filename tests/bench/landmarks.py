"""Landmarks: the default recipe against the frozen backbone and pytorch-metric-learning.

    python -m tests.bench.landmarks [data.root=PATH] [seeds=0,1,2] [key=value for our training ...]

For each seed our recipe trains and infers, then pytorch-metric-learning's SubCenterArcFaceLoss
fine-tunes the same ImageNet weights for the same minutes (all train images, Adam 1e-4 / 1e-3, batch
32, scale 64). Its model and the frozen one get what its users do: one 224 px view and plain cosine
search; so do our weights in the row "plain search". Needs solution files beside the data.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from common.data import augment
from common.data.dataset import ImageDataset, loader
from common.data.samplers import Shuffled
from common.engine.checkpoint import load_tree
from common.engine.extract import ViewConfig, embed_table
from common.engine.settings import this_device, worker_count
from common.entry import keep_pages
from common.environment import machine
from common.metrics import score
from common.models.embedder import Embedder, ModelConfig
from common.retrieval.search import search
from common.submission import write
from common.types import Table
from competitions.landmarks.config import COMMANDS
from competitions.landmarks.data import DataConfig, Landmarks, read

SIZE, BATCH = 160, 32
OUT = Path("runs/bench_landmarks")


def kit(seed: int, arguments: list[str]) -> tuple[dict[str, float], float, Path]:
    """Scores of our scripts, the minutes of training and the run folder."""
    folder = OUT / f"kit-{seed}"
    common = ["track.wandb=off", f"seed={seed}", f"out={folder}", *arguments]
    for call in (["train.py", *common], ["infer.py", f"run={folder}"]):
        script = f"competitions/landmarks/{call[0]}"
        subprocess.run([sys.executable, script, *call[1:]], check=True)
    summary = json.loads((folder / "summary.json").read_text())
    return scores_of(summary), summary["minutes"], folder


def scores_of(summary: dict[str, float]) -> dict[str, float]:
    """GAP and mAP@100 on the test set."""
    return {"GAP": summary["test/gap"], "mAP@100": summary["test/map100"]}


def plain(data: Landmarks, folder: Path) -> dict[str, float]:
    """Scores of our trained weights, looked at as the peer's are."""
    model = Embedder(COMMANDS.infer("", [f"run={folder}"]).model, load=False)
    model.load_state_dict(load_tree(folder / "weights.safetensors")["model"])
    return plain_scores(model.eval(), data)


def peer(data: Landmarks, seed: int, minutes: float) -> dict[str, float]:
    """Scores of a fine-tune with pytorch-metric-learning for so long; 0 is the frozen backbone."""
    return plain_scores(fine_tuned(data.train, len(data.classes), seed, minutes), data)


def fine_tuned(table: Table, classes: int, seed: int, minutes: float) -> Embedder:
    """The ImageNet backbone after so long with pytorch-metric-learning; 0 leaves it frozen."""
    from pytorch_metric_learning.losses import SubCenterArcFaceLoss

    device = this_device()
    torch.manual_seed(seed)
    model = Embedder(ModelConfig(pooling="avg", neck="none")).to(device)
    head = SubCenterArcFaceLoss(
        num_classes=classes, embedding_size=model.embedding_dim, scale=64
    ).to(device)
    optimizer = torch.optim.Adam(
        [{"params": model.parameters(), "lr": 1e-4}, {"params": head.parameters(), "lr": 1e-3}]
    )
    transform = augment.build("crop", SIZE, True)
    images = ImageDataset(table.paths, table.labels, size=SIZE, transform=transform, seed=seed)
    sampler = Shuffled(table.labels, batch_size=BATCH, seed=seed)
    batches = loader(images, sampler, workers=worker_count(-1), device=device)
    spent, epoch = 0.0, 0
    while spent < 60 * minutes:
        sampler.set_epoch(epoch)
        model.train()
        start = time.monotonic()
        for batch in batches:
            loss = head(model(batch["image"].to(device)), batch["label"].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if spent + time.monotonic() - start > 60 * minutes:
                break
        spent, epoch = spent + time.monotonic() - start, epoch + 1
    return model.eval()


def plain_scores(model: Embedder, data: Landmarks) -> dict[str, float]:
    """Scores of nearest neighbors by cosine, one view at 224 px."""
    view, transform = ViewConfig(size=224), augment.build("none", 224, False)
    tables = (data.train, data.test, data.index)
    train, test, index = (embed_table(model, t, view, transform, this_device()) for t in tables)
    near = search(test, train, 1)
    labels = data.classes[data.train.labels[near.index[:, 0].numpy()]]
    recognised = list(zip(labels.tolist(), near.score[:, 0].tolist(), strict=True))
    ranked = index.ids[search(test, index, min(100, len(index))).index.numpy()].tolist()
    found = {}
    for name, metric, task, rows in (
        ("GAP", "gap", "recognition", recognised),
        ("mAP@100", "map100", "retrieval", ranked),
    ):
        path = OUT / f"plain_{task}.csv"
        write(f"landmarks-{task}", test.ids, rows, path)
        solution = data.solution(task)
        assert solution is not None, "the data folder has no solution files"
        found[name] = score(metric, solution, path)
    return found


def main() -> None:
    """Print a table, one row per method, mean and standard deviation over seeds."""
    keep_pages()
    arguments = [a for a in sys.argv[1:] if not a.startswith("seeds=")]
    seeds = next((a[6:] for a in sys.argv[1:] if a.startswith("seeds=")), "0,1,2").split(",")
    root = next((a[10:] for a in arguments if a.startswith("data.root=")), None)
    data = read(DataConfig(root=root))
    rows: dict[str, list[dict[str, float]]] = {"frozen": [peer(data, 0, 0.0)]}
    spent = []
    for seed in map(int, seeds):
        ours, minutes, folder = kit(seed, arguments)
        spent.append(minutes)
        rows.setdefault("this kit", []).append(ours)
        rows.setdefault("this kit, plain search", []).append(plain(data, folder))
        rows.setdefault("pytorch-metric-learning", []).append(peer(data, seed, minutes))
        print(
            f"seed {seed}: {minutes:.1f} minutes", {k: v[-1] for k, v in rows.items()}, flush=True
        )
    print(f"\n{statistics.mean(spent):.1f} minutes of training, seeds {', '.join(seeds)}")
    print(f"| {'':<24}| {'GAP':<16}| {'mAP@100':<16}|\n|{'-' * 25}|{'-' * 17}|{'-' * 17}|")
    for name, found in rows.items():
        cells = []
        for metric in ("GAP", "mAP@100"):
            values = np.array([f[metric] for f in found])
            spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.4f}{spread}")
        print(f"| {name:<24}| " + " | ".join(f"{c:<15}" for c in cells) + "|")
    print(f"{machine()['cpu']}, {machine()['cores']} cores, torch {torch.__version__}")


if __name__ == "__main__":
    main()
