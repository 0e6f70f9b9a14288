"""Small data, runs and kits for the tests of common.kaggle, made without a training."""

import csv

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

from common.kaggle.pack import write_manifest
from common.paths import REPOSITORY


def whale_data(folder):
    """Four individuals and strangers, few enough for a rehearsal of seconds."""
    rng = np.random.default_rng(0)
    rows = {"train": [], "test": []}
    for split, each in (("train", 4), ("test", 1)):
        for who in range(6):
            for n in range(each):
                name = f"{split}{who}{n}.jpg"
                picture(folder / split / name, who, rng)
                rows[split].append((name, f"w_{who}" if who < 4 else "new_whale"))
    rows["test"] = [(name, "new_whale w_0 w_1 w_2 w_3") for name, _ in rows["test"]]
    for name, split in (("train", "train"), ("sample_submission", "test"), ("solution", "test")):
        table(folder / f"{name}.csv", ("Image", "Id"), rows[split])
    return folder


def landmarks_data(folder):
    """Three landmarks with four train and two index images each, six test images, both tasks."""
    rng = np.random.default_rng(0)
    rows = {"train": [], "index": [], "test": []}
    for split, each in (("train", 4), ("index", 2), ("test", 2)):
        for n in range(3 * each):
            name = f"{len(split)}{n:03x}{n:012x}"
            picture(folder / split / name[0] / name[1] / name[2] / f"{name}.jpg", n % 3, rng)
            rows[split].append((name, 7 + n % 3))
    table(folder / "train.csv", ("id", "landmark_id"), rows["train"])
    for task, column, guess in (
        ("recognition", "landmarks", "7 0.1"),
        ("retrieval", "images", rows["index"][0][0]),
    ):
        guesses = [(name, guess) for name, _ in rows["test"]]
        table(folder / f"{task}_sample_submission.csv", ("id", column), guesses)
    return folder


def picture(path, number, rng):
    """A square in the colour of `number` on noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
    pixels[8:32, 8:32] = (number * 40, 255 - number * 30, number * 90 % 255)
    cv2.imwrite(str(path), pixels)


def table(path, columns, rows):
    """A csv."""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def given_run(folder):
    """What packing reads of a run whose config names a file of this machine; it cannot infer."""
    folder.mkdir(parents=True)
    (folder.parent / "boxes.csv").write_text("Image,x0,y0,x1,y1\ntrain00.jpg,4,4,40,36\n")
    text = f"out: {folder}\ndata: {{root: {folder.parent}, boxes: {folder.parent / 'boxes.csv'}}}\n"
    (folder / "config.yaml").write_text(text)
    (folder / "card.json").write_text("{}\n")
    save_file({"a": torch.zeros(64, 1000)}, folder / "weights.safetensors")
    return folder


def small_kit(folder, infer):
    """A kit whose infer.py is `infer`: no library is imported, so a rehearsal takes a second."""
    places = {"competitions/whale/infer.py": infer}
    for name in ("__init__", "submission", "paths"):
        places[f"common/{name}.py"] = (REPOSITORY / "common" / f"{name}.py").read_text()
    for name, text in places.items():
        (folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "code" / name).write_text(text)
    (folder / "runs" / "tiny").mkdir(parents=True)
    (folder / "runs" / "tiny" / "config.yaml").write_text("seed: 0\n")
    write_manifest(folder, "whale")
    return folder


def contents(folder):
    """The bytes of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
