"""Shopee: seconds and memory of every stage from files to submission, and what 70,000 would take.

    python -m tests.bench.shopee_scale [sizes=2000,8000,32000] [pairs=70000] [wanted=70000]

For each size so many test listings are made from the bundled sample: pictures of 640 px, each a
crop in the product's own tint, and titles by the sample's own wording; and a tenth as many held-out
listings, as Kaggle's fold is to its test. Then all stages run as infer.py and ensemble.py run them:
tables, reading and decoding, both encoders (the offline defaults, untrained: the cost is the same),
TF-IDF, blending in three stages, union, LightGBM on pairs, the threshold, writing. The graph
network is left out: its training is for a GPU. The encoder of images is timed on 2,000 pictures of
224 px; what is matched are embeddings of views of 96 px, which are made quicker. Every stage's
memory is the peak of the process while it runs. Each size is a process of its own; what
`runs/bench_shopee_scale` has is not made again.

The cost of a stage is fitted as c0 + c1 N + c2 N^2, all at least 0, to relative errors (fewer terms
than sizes), and read off at `wanted`. What remains of two hours, without the encoders, says how
many listings a second they must embed: the one thing that a T4 is needed for. No other stage is
assumed to gain from it, nor from more cores than here. `pairs` measures the features of that many
listings' 50 nearest alone; 0 leaves it out.

On one core: 2,000 listings 3 minutes, 8,000 about 8, 32,000 about 40, the pairs 12.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls
from torch.utils.data import BatchSampler, SequentialSampler

from common.data import augment
from common.data.dataset import ImageDataset, loader
from common.data.phash import dct_hash, hash_text
from common.data.sample import stream
from common.engine.extract import ViewConfig, embed_table
from common.engine.settings import this_device, worker_count
from common.entry import keep_pages
from common.environment import machine
from common.models.embedder import Embedder, ModelConfig
from common.models.text import TextConfig, TextEncoder
from common.notes import Notes
from common.paths import write_text
from common.pipeline.vectors import Vectors
from common.rerank.listings import Listings
from common.rerank.pair_trees import pair_table
from common.rerank.sources import Sources
from common.rerank.transfer import MatchConfig, choose_cut, kept
from common.submission import write
from common.types import Embeddings, Table
from competitions.shopee.data import SAMPLE, DataConfig, read
from competitions.shopee.held import Held
from competitions.shopee.market.emoji import Emoji
from competitions.shopee.market.wording import Writer, brand
from competitions.shopee.matching import Memory, Titles, held_pool, match, test_pool
from competitions.shopee.results import rows_of
from tests.bench.steps import steps_of

OUT = Path("runs/bench_shopee_scale")
SIDE = 640  # pixels, about those of Shopee's pictures
FOLDS = 2  # the other one is only made
HELD = 0.1  # held-out listings for each of the test
GROUP = 3  # listings of a product, about the mean of train
STEPS = (
    "{concat}, {inb_stage, by: union}, {inb_stage}, {inb_stage}, {union, k: 50}, "
    "{lightgbm_pairs}, {both_ways}"
)
HOURS = 2.0
ENCODED = 2_000  # pictures that the encoder's speed is measured on
SMALL = 96  # pixels of the views whose embeddings are matched: that cost does not depend on them
EMBEDDING = ("embed images", "embed titles")


class Stages:
    """Seconds and peak memory by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        stop, peak = threading.Event(), [_resident()]

        def watch() -> None:
            while not stop.wait(0.05):
                peak[0] = max(peak[0], _resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
            stop.set()
            watcher.join()
            self.memory[name] = max(peak[0], _resident())
            print(f"{name}: {self.seconds[name]:.1f} s, {self.memory[name]:.2f} GB", flush=True)


def _resident() -> float:
    """GB of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e9


def make(folder: Path, size: int) -> None:
    """A folder in Kaggle's layout with `size` test listings and a fold of a tenth as many."""
    sample = pd.read_csv(SAMPLE / "train.csv", dtype=str)
    pictures = {
        name: cv2.resize(cv2.imread(str(SAMPLE / "train_images" / name)), (SIDE, SIDE))
        for name in sample["image"].unique()
    }
    products = [part for _, part in sample.groupby("label_group")]
    for split, count in (("train", round(HELD * FOLDS * size)), ("test", size)):
        (folder / f"{split}_images").mkdir(parents=True, exist_ok=True)
        rows: list[list[object]] = []
        while len(rows) < count:
            number = len(rows) // GROUP
            rng = stream("scale", split, number)
            source = products[int(rng.integers(len(products)))]
            writer = Writer(_emoji(source, split, number), "scale")
            tint = rng.uniform(0.6, 1.4, 3)
            for _ in range(min(GROUP, count - len(rows))):
                row = source.iloc[int(rng.integers(len(source)))]
                name = f"{split}_{len(rows)}.jpg"
                image = _shown(pictures[row["image"]], tint, rng)
                cv2.imwrite(str(folder / f"{split}_images" / name), image)
                phash = hash_text(dct_hash(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)))
                rows.append([f"{split}_{len(rows)}", name, phash, writer.title(rng), number])
        frame = pd.DataFrame(
            rows, columns=["posting_id", "image", "image_phash", "title", "label_group"]
        )
        if split == "test":
            frame = frame.drop(columns="label_group")
        frame.to_csv(folder / f"{split}.csv", index=False)


def _emoji(source: pd.DataFrame, split: str, number: int) -> Emoji:
    """A product that is called nearly as a listing of the sample is: shops know more words."""
    name = f"{source['title'].iloc[number % len(source)]} {brand(100 + number % 9000)}"
    return Emoji(f"{split}{number}", "", "", "", 0, {"en": name}, {})


def _shown(picture: np.ndarray, tint: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop of a picture in a product's tint."""
    edge = rng.integers(0, SIDE // 8, 4)
    part = picture[edge[0] : SIDE - edge[1], edge[2] : SIDE - edge[3]]
    tinted = np.clip(part * tint, 0, 255).astype(np.uint8)
    return cv2.resize(tinted, (SIDE, SIDE))


def measure(size: int) -> None:
    """Run all stages once and write what they took."""
    folder = OUT / str(size)
    if not (folder / "test.csv").exists():
        make(folder, size)
    stages, device, view = Stages(), this_device(), ViewConfig()
    with stages.stage("tables"):
        data = read(DataConfig(root=str(folder), folds=FOLDS))
        held = Held.of(data, DataConfig(folds=FOLDS))
    assert held is not None
    # What a run folder already holds of train is not made again; here it is made, unmeasured.
    asked = data.train.take(held.queries)
    with stages.stage("read and decode"):
        _decode(data.test)
    transform = augment.build("none", view.size, False)
    image = Embedder(ModelConfig(neck="none")).to(device).eval()
    some = data.test.take(np.arange(min(size, ENCODED)))
    with stages.stage("embed images"):
        embed_table(image, some, view, transform, device)
    stages.seconds["embed images"] *= size / len(some)
    small, low = replace(view, size=SMALL), augment.build("none", SMALL, False)
    found = embed_table(image, data.test, small, low, device)
    known = embed_table(image, asked, small, low, device)
    runs = {"image": Vectors(train=_all(data.train, known), test=found)}
    del image
    text = TextEncoder(TextConfig(neck="none")).to(device).eval()
    with stages.stage("embed titles"):
        found = embed_table(text, data.test, view, transform, device)
    known = embed_table(text, asked, view, transform, device)
    runs["text"] = Vectors(train=_all(data.train, known), test=found)
    del text
    with stages.stage("TF-IDF"):
        titles = Titles(data, ["word"], 256, 0)
    with stages.stage("pools"):
        pools = [held_pool(data, held, runs, titles), test_pool(data, runs, titles)]
    memory: Memory = {}
    answers = []
    for name, pool in zip(("held out", "test"), pools, strict=True):
        notes = Notes()
        with stages.stage(f"matching, {name}"):
            answers.append(match(steps_of(STEPS), pool, memory, notes, device))
        stages.seconds |= {f"  {step}, {name}": spent for step, spent in notes.seconds.items()}
    with stages.stage("threshold"):
        choice = choose_cut(MatchConfig(), pools[1].sizes, answers[1], answers[0], pools[0].truth)
    with stages.stage("writing"):
        answer = kept(answers[1], choice.cut)
        write("shopee", data.test.ids, rows_of(answer, pools[1]), folder / "submission.csv")
    listed = int((answers[1].index >= 0).sum())
    done = {"size": size, "seconds": stages.seconds, "memory": stages.memory, "pairs": listed}
    write_text(OUT / f"{size}.json", json.dumps(done, indent=1) + "\n")


def _decode(table: Table) -> None:
    """Read and decode every picture as the extraction does, without a net."""
    images = ImageDataset(
        table.paths, table.labels, size=224, transform=augment.build("none", 224, False), seed=0
    )
    batches = BatchSampler(SequentialSampler(images), 16, False)
    for _ in loader(images, batches, workers=worker_count(-1), device=this_device()):
        pass


def _all(table: Table, known: Embeddings) -> Embeddings:
    """Rows of the whole table, zeros where it is not asked."""
    vectors = torch.zeros(len(table), known.vectors.shape[1])
    vectors[torch.from_numpy(np.searchsorted(table.ids, known.ids))] = known.vectors.float()
    return Embeddings(table.ids, vectors)


def measure_pairs(size: int) -> None:
    """Features of the 50 nearest of `size` listings: 1280 numbers of a picture, 384 of a title."""
    rng, stages = np.random.default_rng(0), Stages()
    groups = rng.integers(0, size // GROUP, size)
    ids = np.array([f"p{row:06}" for row in range(size)])
    parts = {}
    for name, dim in (("image", 1280), ("text", 384)):
        vectors = rng.standard_normal((size // GROUP, dim), np.float32)[groups]
        vectors += 1.2 * rng.standard_normal((size, dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        parts[name] = Embeddings(ids, torch.from_numpy(vectors))
    sample = pd.read_csv(SAMPLE / "train.csv", dtype=str)["title"].tolist()
    titles = [f"{sample[g % len(sample)]} {row % 7}" for row, g in enumerate(groups.tolist())]
    hashes = rng.integers(0, 1 << 63, size).astype(np.uint64)
    sources = Sources(parts)
    with stages.stage("search"):
        near = sources.near("image", 50)
    with stages.stage("features"):
        table = pair_table(near, sources, Listings(titles, hashes), list(parts))
    done = {
        "size": size,
        "pairs": len(table),
        "columns": len(table.names),
        "seconds": stages.seconds,
        "memory": stages.memory,
    }
    write_text(OUT / f"pairs_{size}.json", json.dumps(done, indent=1) + "\n")


def fitted(sizes: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """`(3,)` costs of a run, a listing and a pair of listings, at least 0: least relative error."""
    powers = [1] if len(sizes) == 1 else [1, 2] if len(sizes) == 2 else [0, 1, 2]
    scale = np.maximum(seconds, 1e-3)
    terms = np.stack([sizes.astype(np.float64) ** power / scale for power in powers], 1)
    cost = np.zeros(3)
    size = np.linalg.norm(terms, axis=0)
    cost[powers] = nnls(terms / size, seconds / scale)[0] / size
    return cost


def report(found: list[dict], wanted: int) -> str:
    """The table in Markdown, and what the encoders must reach."""
    sizes = np.array([one["size"] for one in found], np.float64)
    named = " | ".join(f"{int(size):,} s" for size in sizes)
    lines = [
        f"| | {named} | ms a listing | ns a pair of listings | {wanted:,} s "
        f"| GB at {sizes[-1]:,.0f} |",
        f"|---|{'---|' * (len(sizes) + 4)}",
    ]
    total = encoders = 0.0
    for stage in found[-1]["seconds"]:
        seconds = np.array([one["seconds"].get(stage, 0.0) for one in found])
        cost = fitted(sizes, seconds)
        there = float(cost @ np.array([1.0, wanted, float(wanted) ** 2]))
        memory = found[-1]["memory"].get(stage)
        cells = [f"{value:.1f}" for value in seconds]
        cells += [f"{1e3 * cost[1]:.3f}", f"{1e9 * cost[2]:.1f}", f"{there:.0f}"]
        cells.append("" if memory is None else f"{memory:.2f}")
        lines.append(f"| {stage} | {' | '.join(cells)} |")
        if stage in EMBEDDING:
            encoders += there
        elif not stage.startswith("  ") and stage != "read and decode":
            total += there
    left = 3600 * HOURS - total
    told = (
        f"{wanted:,} listings: {total / 60:.0f} minutes without the encoders, {encoders / 60:.0f} "
        "more with both of them on this machine's CPU. "
    )
    if left > 0:
        told += (
            f"{left / 60:.0f} minutes of {HOURS:g} hours are left to them: one after the other "
            f"they must embed {len(EMBEDDING) * wanted / left:.1f} listings a second."
        )
    else:
        told += f"That is more than {HOURS:g} hours, however fast the encoders are."
    lines += ["", told]
    return "\n".join(lines)


def main() -> None:
    """Print one table."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    keep_pages()
    if "size" in options or "only_pairs" in options:  # a process of its own
        if "size" in options:
            measure(int(options["size"]))
        else:
            measure_pairs(int(options["only_pairs"]))
        return
    sizes = [int(size) for size in options.get("sizes", "2000,8000,32000").split(",")]
    for size in sizes:
        if not (OUT / f"{size}.json").exists():
            _alone(f"size={size}")
    found = [json.loads((OUT / f"{size}.json").read_text()) for size in sorted(sizes)]
    print(report(found, int(options.get("wanted", "70000"))))
    pairs = int(options.get("pairs", "70000"))
    if pairs:
        path = OUT / f"pairs_{pairs}.json"
        if not path.exists():
            _alone(f"only_pairs={pairs}")
        done = json.loads(path.read_text())
        print(
            f"\n{done['pairs']:,} pairs of {done['columns']} features: "
            f"{done['seconds']['features']:.0f} s, {done['memory']['features']:.2f} GB at most"
        )
    print(f"{machine()['cpu']}, {machine()['cores']} cores, torch {torch.__version__}")


def _alone(argument: str) -> None:
    subprocess.run([sys.executable, "-m", "tests.bench.shopee_scale", argument], check=True)


if __name__ == "__main__":
    main()
