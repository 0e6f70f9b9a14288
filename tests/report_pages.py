"""What the tests of reports share: a reader of pages, pictures of every kind, rows of a table."""

import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from common.types import Embeddings

EVIL = '<script>alert("x")</script>'
VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Tags and attributes of a page; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [dict(attrs)["id"]] if "id" in dict(attrs) else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [dict(attrs)["id"]] if "id" in dict(attrs) else []

    def handle_endtag(self, tag):
        if self.open[-1] == "p" and tag != "p":
            self.open.pop()
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def scripts(self):
        """Types of all scripts; none has a source."""
        assert not [attrs for attrs in self.all("script") if "src" in attrs]
        return [attrs.get("type", "") for attrs in self.all("script")]

    @property
    def visible(self):
        return " ".join(" ".join(self.text).split())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def write(path, array):
    assert cv2.imwrite(str(path), array)
    return path


@pytest.fixture(scope="module")
def kept_pictures(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    made = {
        "rgb": write(folder / "rgb.jpg", rng.integers(0, 255, (300, 400, 3), np.uint8)),
        "grey": write(folder / "grey.png", rng.integers(0, 255, (50, 40), np.uint8)),
        "deep": write(folder / "deep.png", rng.integers(0, 65535, (50, 40), np.uint16)),
        "tiny": write(folder / "tiny.png", np.zeros((1, 1, 3), np.uint8)),
        "wide": write(folder / "wide.png", np.zeros((2, 3000, 3), np.uint8)),
        "alpha": write(folder / "alpha.png", rng.integers(0, 255, (30, 30, 4), np.uint8)),
    }
    Image.new("CMYK", (60, 40)).save(folder / "cmyk.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no")
    return made | {
        "cmyk": folder / "cmyk.jpg",
        "broken": folder / "broken.jpg",
        "missing": folder / "missing.jpg",
    }


def make_rows(paths, count=30, ap=True):
    """Row i has its first result right for even i, with score i / count."""
    paths = [str(path).encode() for path in paths]
    rows = []
    for i in range(count):
        right = i % 2 == 0
        first = {"id": f"r{i}", "path": paths[i % len(paths)], "label": i % 3 if right else 9}
        results = [first | {"score": np.float32(i / count), "right": np.bool_(right)}]
        results += [{"id": "u", "path": paths[0], "label": -1, "score": 0.0, "right": None}] * 7
        row = {"query": {"id": f"q{i:02d}", "path": paths[i % len(paths)], "label": i % 3}}
        rows.append(row | {"results": results} | ({"ap": (i * 7 % count) / count} if ap else {}))
    return rows


@pytest.fixture
def pictures(kept_pictures, tmp_path):
    """Paths by name, copies that a test may change."""
    shutil.copytree(kept_pictures["rgb"].parent, tmp_path / "images")
    return {name: tmp_path / "images" / path.name for name, path in kept_pictures.items()}


def placed(paths):
    """A map of a query and a gallery image for each two paths; the first four of one class."""
    from common.report.maps import Images, embedding_map

    paths = np.array([str(path).encode() for path in paths])
    count = len(paths) // 2
    vectors = torch.nn.functional.normalize(torch.randn(2 * count, 8, generator=seeded(0)))
    kinds = np.array(["right", "wrong", "none", "unknown"])[np.arange(count) % 4]
    names = np.array([EVIL, *(f"class {i}" for i in range(1, count))])
    labels = np.maximum(np.arange(count) - 3, 0)
    parts = [
        Images(
            Embeddings(np.array([f"{role}{i}{EVIL}" for i in range(count)]), vectors[half]),
            paths[half],
            labels,
            marks,
        )
        for role, half, marks in (
            ("q", slice(0, count), kinds),
            ("g", slice(count, None), np.full(count, "gallery")),
        )
    ]
    return embedding_map(*parts, names)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


HISTOGRAM = {"title": "Apart", "x_label": "cosine", "caption": EVIL, "threshold": 0.5}


@pytest.fixture
def folder(kept_folder, tmp_path):
    """A run folder with everything in it."""
    return Path(shutil.copytree(kept_folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def kept_folder(tmp_path_factory, kept_pictures):
    from common.report import page
    from common.report.files import Analysis, save_analysis, write_json
    from common.report.separation import counted
    from common.track import Run, TrackConfig

    rng = np.random.default_rng(1)
    run = Run(
        tmp_path_factory.mktemp("kept") / "run",
        {"train": {"lr": 0.2}},
        TrackConfig(wandb="off", group=EVIL, tags=["a"]),
        best=("valid/gap",),
        default={"train": {"lr": 0.1}},
    )
    (run.folder / "config.yaml").write_text("train:\n  lr: 0.2\n")
    write_json(run.folder / "map.json", placed(list(kept_pictures.values()) * 4))
    for step in range(1, 6):
        run.log(step * 10, epoch=step, minutes=step, **{"train/loss": 1 / step, "train/lr": 0.1})
        run.log(step * 10, **{"valid/gap": step / 10, "train/images_per_second": 40.0})
    run.table("retrieval", make_rows(kept_pictures.values()))
    kinds = np.array(["right", "wrong", "none"])[rng.integers(0, 3, 200)]
    save_analysis(
        run.folder,
        Analysis(
            scores=[
                {"name": "frozen", "GAP": 0.5, "mAP@100": 0.25, "note": EVIL},
                {"name": "final", "GAP": 0.75, "mAP@100": 0.125},
            ],
            recognition={
                "score": rng.random(200),
                "kind": kinds,
                "images": np.arange(200),
                "curve": "GAP",
            },
            words={"none": EVIL, "thing": "fin"},
            retrieval={"ap": rng.random(50), "relevant": rng.integers(0, 40, 50)},
            thresholds=[{"title": "F1", "x": [0, 1], "series": {EVIL: [0, 1]}, "chosen": 0.5}],
            pairs=[counted({"match": np.arange(9), "other": -np.arange(9)}, **HISTOGRAM)],
            stages=[
                {"stage": "embed " + EVIL, "seconds": 4.0, "rows": 100, "within": False},
                {"stage": "knn", "seconds": 1.0, "rows": 0, "within": True},
            ],
            sections=[page.Section("Kept", "by the run", rows=[{"rule": EVIL}]).stored()],
            commands=["python infer.py run=x"],
        ),
    )
    return run.folder
