"""Landmarks: what each ranking step alone, and chains of them, add to plain cosine.

    python -m tests.bench.steps [data.root=PATH] [seeds=0,1,2] [task=TASK] [only=WORD] [key=value]

For each seed the default recipe trains and embeds once; then every row below ranks the same
embeddings, on the held-out images and on the test images. Differences are to plain cosine with the
same weights, mean and standard deviation over seeds. The held-out score chooses the default;
the test score is what is reported. Needs solution files beside the data, as the sample has them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import yaml

from common.entry import keep_pages
from common.environment import machine
from common.steps import Step
from competitions.landmarks.results import METRICS
from competitions.landmarks.study import Study
from competitions.landmarks.train import __file__ as script

OUT = Path("runs/bench_steps")
OPTIONS = ("seeds=", "task=", "only=")
PLAIN = {"recognition": "knn, {vote, top: 1, power: 1}", "retrieval": "knn"}
# Steps of YAML without their `name:`; `{...}` where there are settings.
ROWS = {
    "recognition": {
        "votes of 3, cos^8": "knn, {vote, top: 3, power: 8}",
        "votes of 5, cos^8": "knn, {vote, top: 5, power: 8}",
        "half the head's cosine": "knn, {vote, top: 1, power: 1}, {logit_mix}",
        "SIFT on 10": "knn, {local, top: 10, features: sift}, {vote, top: 1, power: 1}",
        "RootSIFT on 10": "knn, {local, top: 10}, {vote, top: 1, power: 1}",
        "XFeat on 10": "knn, {local, top: 10, features: xfeat}, {vote, top: 1, power: 1}",
        "plausible homographies on 10": "knn, {plausible, top: 10}, {vote, top: 1, power: 1}",
        "calibrated fusion on 10": "knn, {wild_fusion, top: 10}, {vote, top: 1, power: 1}",
        "LightGBM on 50": "knn, {lightgbm_rerank}, {vote, top: 1, power: 1}",
        "list-wise on 50": "knn, {listwise, top: 50}, {vote, top: 1, power: 1}",
        "SuperGlobal re-ranking": "knn, {superglobal}, {vote, top: 1, power: 1}",
        "distractor rules": "knn, {vote, top: 1, power: 1}, {distractors}",
        "RootSIFT on 10, votes of 3": "knn, {local, top: 10}, {vote, top: 3, power: 8}",
        "fusion on 10, votes of 3": "knn, {wild_fusion, top: 10}, {vote, top: 3, power: 8}",
    },
    "retrieval": {
        "average QE": "{aqe, k: 5}, knn",
        "QE with decay": "{aqewd, k: 5}, knn",
        "alpha-QE": "{alpha_qe, k: 5, alpha: 3}, knn",
        "attention QE": "{attention_qe, k: 5}, knn",
        "DBA": "{dba, k: 5, alpha: 3}, knn",
        "DBA, alpha-QE": "{dba, k: 5, alpha: 3}, {alpha_qe, k: 5, alpha: 3}, knn",
        "blending above .7, .7": "{inb, thresholds: [0.7, 0.7]}, knn",
        "power normalisation": "power_norm, knn",
        "PCA to 256": "{pca_reduce, dim: 256}, knn",
        "PCA whitening to 256": "{pca_whiten, dim: 256}, knn",
        "learned whitening": "learned_whiten, knn",
        "k-reciprocal": "k_reciprocal",
        "graph network": "gnn_rerank",
        "diffusion": "diffusion",
        "diffusion, offline": "offline_diffusion",
        "explore-exploit": "egt",
        "SuperGlobal re-ranking": "knn, {superglobal}",
        "label re-ranking": "knn, label_rerank",
        "sort step": "knn, sort_step",
        "insert step": "knn, insert_step",
        "DBA, alpha-QE, SuperGlobal": (
            "{dba, k: 5, alpha: 3}, {alpha_qe, k: 5, alpha: 3}, knn, superglobal"
        ),
        "DBA, diffusion": "{dba, k: 5, alpha: 3}, diffusion",
        "DBA, k-reciprocal": "{dba, k: 5, alpha: 3}, k_reciprocal",
        "LightGBM on 50": "knn, lightgbm_rerank",
        "RootSIFT on 50": "knn, {local, top: 50}",
        "DBA, alpha-QE, RootSIFT on 50": (
            "{dba, k: 5, alpha: 3}, {alpha_qe, k: 5, alpha: 3}, knn, {local, top: 50}"
        ),
        "list-wise on 100": "knn, listwise",
        "plausible homographies on 50": "knn, {plausible, top: 50}",
        "calibrated fusion on 50": "knn, {wild_fusion, top: 50}",
    },
}


def steps_of(text: str) -> list[Step]:
    """The list of steps that a row's short form stands for."""
    found = yaml.safe_load(f"[{text.replace('{', '{name: ')}]")
    return [step if isinstance(step, dict) else {"name": step} for step in found]


def trained(seed: int, arguments: list[str]) -> Path:
    """The run folder of one seed, trained and embedded unless it is already."""
    folder, home = OUT / f"seed-{seed}", Path(script).parent
    common = ["track.wandb=off", *arguments]
    for name, call in (
        ("train.py", [f"seed={seed}", f"out={folder}"]),
        (
            "infer.py",
            [f"run={folder}", "retrieval=[{name: knn}]", "recognition=[{name: knn}, {name: vote}]"],
        ),
    ):
        subprocess.run([sys.executable, str(home / name), *common, *call], check=True)
    return folder


def main() -> None:
    """Print one table per task, rows in the order of their held-out gain."""
    keep_pages()
    warnings.simplefilter("ignore")  # a step's advice about the data, once per call
    options = dict(a.split("=", 1) for a in sys.argv[1:] if a.startswith(OPTIONS))
    arguments = [a for a in sys.argv[1:] if not a.startswith(OPTIONS)]
    seeds = [int(seed) for seed in options.get("seeds", "0,1,2").split(",")]
    studies = [Study.of(trained(seed, arguments)) for seed in seeds]
    for task, rows in ROWS.items():
        if options.get("task", task) != task:
            continue
        plain = [study.scores(task, steps_of(PLAIN[task])) for study in studies]
        name = METRICS[task][1]
        lines = []
        for label, text in rows.items():
            if options.get("only", "") not in label:
                continue
            found = [study.scores(task, steps_of(text)) for study in studies]
            gains = {
                key: [f[key] - p[key] for f, p in zip(found, plain, strict=True)]
                for key in ("held-out", "test")
            }
            cells = [
                spread([f["test"] for f in found]),
                signed(gains["test"]),
                signed(gains["held-out"]),
            ]
            seconds = statistics.mean(f["seconds"] for f in found)
            lines.append((statistics.mean(gains["held-out"]), label, [*cells, f"{seconds:.1f}"]))
            print(f"{task}: {label}: {' | '.join(lines[-1][2])}", flush=True)
        print(f"\n| {task} | {name} | change | change, held out | s |\n|---|---|---|---|---|")
        first = spread([p["test"] for p in plain])
        print(f"| plain cosine | {first} | | | {plain[0]['seconds']:.1f} |")
        for _, label, cells in sorted(lines, reverse=True):
            print(f"| {label} | {' | '.join(cells)} |")
        print()
    print(
        f"seeds {seeds}; {machine()['cpu']}, {machine()['cores']} cores, torch {torch.__version__}"
    )


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def signed(values: list[float]) -> str:
    """Mean difference with its sign, and standard deviation."""
    text = spread(values)
    return text if text.startswith("-") else f"+{text}"


if __name__ == "__main__":
    main()
