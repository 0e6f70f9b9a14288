"""Shopee: what each encoder, each step of matching and each rule of the threshold is worth.

    python -m tests.bench.shopee [data.root=PATH] [seeds=0,1,2]
                                 [parts=encoders,matching,crowd,peer] [skip=WORD,...]
                                 [key=value for every training ...]

For each seed every recipe trains and embeds once; then every row below matches these embeddings,
with what it learns and every threshold from held-out listings, by the rules of the default
configuration. The second table answers with the other rules; "best on the test" is a reference that
nobody could have known. pytorch-metric-learning's SubCenterArcFaceLoss (Adam 1e-4 / 1e-3, batch 32,
scale 64) fine-tunes the same ImageNet weights on the same images for as long as our encoder of
images took. What a run folder holds is not made again. `skip` leaves out recipes whose name holds a
word, and the rows that need them. Needs a solution file beside the data, as the sample has one.

About 17 minutes a seed on two idle cores for 500 train and 600 test listings: image 2, text 1,
joint 5, the peer 2, matching 7, most of it the graph networks.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.data import augment
from common.engine.extract import ViewConfig, embed_table
from common.engine.settings import this_device
from common.entry import keep_pages
from common.environment import machine
from common.notes import Notes
from common.pipeline.vectors import Vectors, load
from common.rerank.graph import size_shares
from common.rerank.transfer import RULES, choose_cut, kept, with_bonus
from common.rerank.truth import Truth
from common.types import Embeddings
from competitions.shopee.config import COMMANDS, Config
from competitions.shopee.data import Shopee, read
from competitions.shopee.held import Held
from competitions.shopee.matching import Memory, Titles, held_pool, match, test_pool
from tests.bench.landmarks import fine_tuned
from tests.bench.steps import signed, spread, steps_of

OUT = Path("runs/bench_shopee")
OPTIONS = ("seeds=", "parts=", "skip=")
PARTS = ("encoders", "matching", "crowd", "peer")
HOME = Path("competitions/shopee")
UNTRAINED = "train.stages=[]"
PLAIN = "image and TF-IDF, union"
# What is changed against the default recipe.
TRAININGS = {
    "image": [],
    "text": [str(HOME / "experiments" / "text.yaml")],
    "joint": ["model.uses=both", "model.text.freeze=3"],
    "frozen image": ["model.image.neck=none", UNTRAINED],
    "frozen text": ["model.uses=text", "model.text.neck=none", UNTRAINED],
}
SOURCE = {"image": "image", "text": "text", "joint": "joint", "frozen image": "image"}
SOURCE |= {"frozen text": "text", "peer": "image"}
ALL = ("image", "text", "words")
UNION = "{concat}, {union}"
BLENDED = "{concat}, {inb_stage, by: union}, {inb_stage}, {inb_stage}, {union}"
TREES = "{lightgbm_pairs, min_leaf: 30}, {both_ways}"
GRAPH = "{graph_attention, least: 0.02}"


@dataclass
class Row:
    """Sources, by training or `words`, and the steps of YAML without their `name:`.

    `strangers`: whose listings stand by in validation; None: as in the default configuration.
    """

    of: tuple[str, ...]
    steps: str
    part: str = "matching"
    strangers: list[str] | None = None


ROWS = {
    PLAIN: Row(("image", "words"), UNION, "encoders"),
    "image": Row(("image",), "nearest", "encoders"),
    "image, frozen": Row(("frozen image",), "nearest", "encoders"),
    "text": Row(("text",), "nearest", "encoders"),
    "text, frozen": Row(("frozen text",), "nearest", "encoders"),
    "joint": Row(("joint",), "nearest", "encoders"),
    "TF-IDF": Row(("words",), "nearest", "encoders"),
    "the peer": Row(("peer",), "nearest", "peer"),
    "the peer and TF-IDF, concatenated": Row(("peer", "words"), "concat, nearest", "peer"),
    "the peer and TF-IDF, union": Row(("peer", "words"), UNION, "peer"),
    "frozen image and TF-IDF, concatenated": Row(("frozen image", "words"), "concat, nearest"),
    "frozen image and TF-IDF, union": Row(("frozen image", "words"), UNION),
    "image and text, concatenated": Row(("image", "text"), "concat, nearest"),
    "image and TF-IDF, concatenated": Row(("image", "words"), "concat, nearest"),
    "image, text, TF-IDF, concatenated": Row(ALL, "concat, nearest"),
    "image, text, TF-IDF, union": Row(ALL, "union"),
    "image, text, TF-IDF, concatenated and union": Row(ALL, UNION),
    "and joint, concatenated and union": Row((*ALL, "joint"), UNION),
    "+ blending": Row(ALL, BLENDED),
    "+ alpha-QE": Row(ALL, f"alpha_qe, {UNION}"),
    "+ LightGBM": Row(ALL, f"{UNION}, {TREES}"),
    "image and TF-IDF, union, LightGBM (default)": Row(("image", "words"), f"{UNION}, {TREES}"),
    "+ alpha-QE, LightGBM": Row(ALL, f"alpha_qe, {UNION}, {TREES}"),
    "+ blending, LightGBM": Row(ALL, f"{BLENDED}, {TREES}"),
    "+ LightGBM, graph": Row(ALL, f"{UNION}, {TREES}, {GRAPH}"),
    "+ votes of LightGBM and graph": Row(
        ALL,
        f"{{vote, weights: [1, 3], of: [[{UNION}, {TREES}], [{UNION}, {TREES}, {GRAPH}]]}}",
    ),
    "image and TF-IDF, crowd of train": Row(("image", "words"), UNION, "crowd", ["train"]),
    "image and TF-IDF, no crowd but counted": Row(("image", "words"), UNION, "crowd", []),
    "image, text, TF-IDF, crowd of train": Row(ALL, UNION, "crowd", ["train"]),
    "+ blending, crowd of train": Row(ALL, BLENDED, "crowd", ["train"]),
    "+ LightGBM, crowd of train": Row(ALL, f"{UNION}, {TREES}", "crowd", ["train"]),
}

Scores = dict[str, float]  # by rule, `held`: F1 held out; `best`: at the best threshold on the test


def script(name: str, *arguments: str) -> None:
    """Run one of the competition's scripts."""
    subprocess.run(
        [sys.executable, str(HOME / f"{name}.py"), "track.wandb=off", *arguments], check=True
    )


def trained(name: str, seed: int, arguments: list[str]) -> Path:
    """The run folder of a recipe, trained and embedded unless it is already."""
    folder = OUT / f"{name.replace(' ', '_')}-{seed}"
    experiments = [text for text in TRAININGS[name] if "=" not in text]
    changes = [text for text in TRAININGS[name] if "=" in text]  # of what the user says the last
    script("train", *experiments, *arguments, *changes, f"seed={seed}", f"out={folder}")
    if not (folder / "embeddings" / "test.safetensors").exists():
        script("infer", f"run={folder}", "matching=[{name: nearest}]")
    return folder


class Study:
    """Embeddings of the recipes of one seed, matched and scored by any row.

    Attributes:
        vectors: by recipe, and those of the `peer`.
    """

    def __init__(self, like: Path, seed: int) -> None:
        self.config: Config = COMMANDS.infer("", [f"run={like}"])
        self.data: Shopee = read(self.config.data)
        held = Held.of(self.data, self.config.data)
        assert held is not None, "something must be held out"
        self.held: Held = held
        solution = self.data.solution()
        assert solution is not None, "the data folder has no solution.csv"
        matches = pd.read_csv(solution, dtype=str).set_index("posting_id")["matches"]
        rows = [" ".join(sorted(matches[name].split())) for name in self.data.test.ids]
        labels = np.unique(rows, return_inverse=True)[1]
        self.truth = Truth(labels, np.ones(len(rows), bool))
        self.shares = size_shares(self.data.train.labels)
        self.titles = {
            kinds: Titles(self.data, kinds, self.config.tfidf.dim, seed)
            for kinds in ((), ("word",))
        }
        self.vectors: dict[str, Vectors] = {}

    def add(self, name: str, folder: Path) -> None:
        """Take up the embeddings of a run folder."""
        self.vectors[name] = load(folder, self.data.tables(), self.data.classes)

    def scores(self, row: Row) -> Scores:
        """F1 of the test by every rule, held out by the default rule, at best, and seconds."""
        start = time.perf_counter()
        runs = {SOURCE[name]: self.vectors[name] for name in row.of if name != "words"}
        titles = self.titles[("word",) if "words" in row.of else ()]
        memory: Memory = {}
        held = self.held
        if row.strangers is not None:
            crowd = replace(self.config.data, strangers=row.strangers)
            held = Held.of(self.data, crowd) or held
        pool = held_pool(self.data, held, runs, titles)
        steps, device = steps_of(row.steps), this_device()
        known = match(steps, pool, memory, Notes(), device)
        found = match(steps, test_pool(self.data, runs, titles), memory, Notes(), device)
        config = self.config.threshold
        choice = choose_cut(config, self.shares, found, known, pool.truth)
        cuts = {rule: kept(found, cut, config.most) for rule, cut in choice.cuts.items()}
        scores = {rule: float(self.truth.row_f1(answer).mean()) for rule, answer in cuts.items()}
        assert choice.cut.f1 is not None
        lifted = [with_bonus(found, bonus) for bonus in choice.bonuses]
        best = max(self.truth.best(one)[1] for one in lifted)
        seconds = time.perf_counter() - start
        return {
            **scores,
            "test": scores[config.by],
            "held": choice.cut.f1,
            "best": best,
            "s": seconds,
        }


def peer(study: Study, seed: int, minutes: float) -> Vectors:
    """The peer's embeddings after so many minutes of training, in one 224 px view."""
    folder = OUT / f"peer-{seed}"
    tables = {"train": study.data.train, "test": study.data.test}
    paths = {name: folder / f"{name}.safetensors" for name in tables}
    if not all(path.exists() for path in paths.values()):
        table = study.data.train.take(np.flatnonzero(study.held.train))
        known, labels = np.unique(table.labels, return_inverse=True)
        table.labels = labels.astype(np.int64)
        model = fine_tuned(table, len(known), seed, minutes)
        view, transform = ViewConfig(size=224), augment.build("none", 224, False)
        for name, rows in tables.items():
            embed_table(model, rows, view, transform, this_device()).save(paths[name])
    return Vectors(**{name: Embeddings.load(path) for name, path in paths.items()})


def main() -> None:
    """Print two tables: F1 and its changes to image and TF-IDF, union; and F1 by every rule."""
    keep_pages()
    warnings.simplefilter("ignore")
    options = dict(a.split("=", 1) for a in sys.argv[1:] if a.startswith(OPTIONS))
    arguments = [a for a in sys.argv[1:] if not a.startswith(OPTIONS)]
    parts = options.get("parts", ",".join(PARTS)).split(",")
    skip = [word for word in options.get("skip", "").split(",") if word]
    recipes = [name for name in TRAININGS if not any(word in name for word in skip)]
    there = {*recipes, "words", *(["peer"] if "peer" in parts else [])}
    rows = {n: row for n, row in ROWS.items() if row.part in parts and there.issuperset(row.of)}
    rows = {PLAIN: ROWS[PLAIN], **rows}
    found: dict[str, list[Scores]] = {name: [] for name in rows}
    minutes: dict[str, list[float]] = {name: [] for name in recipes}
    seeds = [int(seed) for seed in options.get("seeds", "0,1,2").split(",")]
    for seed in seeds:
        folders = {name: trained(name, seed, arguments) for name in recipes}
        study = Study(folders["image"], seed)
        for name, folder in folders.items():
            study.add(name, folder)
            minutes[name].append(json.loads((folder / "summary.json").read_text())["minutes"])
        if "peer" in parts:
            study.vectors["peer"] = peer(study, seed, minutes["image"][-1])
        for name, row in rows.items():
            found[name].append(study.scores(row))
            print(f"seed {seed}: {name}", inline(found[name][-1]), flush=True)
    print(report(found))
    print(by_rule(found))
    spent = ", ".join(f"{n} {statistics.mean(all_):.1f}" for n, all_ in minutes.items())
    print(f"\nminutes of training: {spent}")
    print(
        f"seeds {seeds}; {machine()['cpu']}, {machine()['cores']} cores, torch {torch.__version__}"
    )


def inline(scores: Scores) -> str:
    """One line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


def report(found: dict[str, list[Scores]]) -> str:
    """The table of all rows in Markdown; thresholds by the rule of the default configuration."""
    lines = [
        "| | F1 | change | F1, held out | change | s of matching |",
        "|---|---|---|---|---|---|",
    ]
    for name, scores in found.items():
        cells = []
        for key in ("test", "held"):
            change = [s[key] - d[key] for s, d in zip(scores, found[PLAIN], strict=True)]
            cells += [spread([s[key] for s in scores]), "" if name == PLAIN else signed(change)]
        cells.append(f"{statistics.mean(s['s'] for s in scores):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(["", *lines])


def by_rule(found: dict[str, list[Scores]]) -> str:
    """F1 of the test by every rule of the threshold, in Markdown, with the mean of all rows."""
    rules = [*(rule for rule in RULES if rule != "value"), "best"]
    lines = [
        f"| F1 of the test by | {' | '.join(rules[:-1])} | best on the test |",
        f"|---|{'---|' * len(rules)}",
    ]
    for name, scores in found.items():
        cells = [spread([s[rule] for s in scores]) for rule in rules]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    every = [s for scores in found.values() for s in scores]
    means = [f"{statistics.mean(s[rule] for s in every):.3f}" for rule in rules]
    lines.append(f"| mean of all rows | {' | '.join(means)} |")
    return "\n".join(["", *lines])


if __name__ == "__main__":
    main()
