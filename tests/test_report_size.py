"""A page of ten queries, and one of a hundred thousand."""

import numpy as np
import pytest
import torch

from common.report import maps, page, separation
from common.report.files import Analysis, save_analysis, write_json
from common.track import Run, TrackConfig
from common.types import Embeddings, Neighbors
from tests.report_pages import Page, seeded


def made_up(folder, count, path):
    """A run of `count` queries that all show one picture."""
    rng = np.random.default_rng(0)
    run = Run(folder, {}, TrackConfig(wandb="off"))
    ids = np.array([f"q{i}" for i in range(count)])
    truth, score = rng.integers(-1, 50, count), rng.random(count)
    right = rng.random(count) < score
    result = {"id": "r", "path": path, "label": "x"}
    run.table(
        "many",
        [
            {
                "query": {"id": name, "path": path, "label": str(label)},
                "results": [{**result, "score": value, "right": hit}],
                "ap": value,
                "margin": value - 0.5,
            }
            for name, label, value, hit in zip(
                ids.tolist(), truth.tolist(), score.tolist(), right.tolist(), strict=True
            )
        ],
    )
    vectors = Embeddings(ids, torch.randn(count, 4, generator=seeded(0)))
    part = maps.Images(vectors, np.full(count, path), truth, np.where(right, "right", "wrong"))
    others = maps.Images(vectors, part.paths, truth, np.full(count, "gallery"))
    names = np.array([f"class {i}" for i in range(50)])
    write_json(folder / "map.json", maps.embedding_map(part, others, names, points=300))
    found = Neighbors(torch.from_numpy(truth)[:, None], torch.from_numpy(score).float()[:, None])
    kinds = np.where(truth < 0, "none", np.where(right, "right", "wrong"))
    images = rng.integers(0, 3000, count)
    save_analysis(
        folder,
        Analysis(
            recognition={"score": score, "kind": kinds, "images": images, "curve": "GAP"},
            retrieval={"ap": score, "relevant": images},
            pairs=[
                separation.cosines(vectors, vectors, truth, truth),
                separation.candidates(found, right[:, None], threshold=0.5),
            ],
        ),
    )
    for step in range(0, 20 * count, 20):
        if step % 100 == 0:
            run.log(step, **{"train/loss": 1 / (1 + step), "valid/gap": 0.5})
    return page.write_report(folder)


def test_ten_queries(tmp_path, kept_pictures):
    path = made_up(tmp_path / "run", 10, str(kept_pictures["rgb"]).encode())
    shown = Page(path.read_text()).visible
    assert "10 of 10 queries, lowest average precision first." in shown
    assert "10 of 10 queries and 10 of 10 gallery images" in shown


def test_a_hundred_thousand_queries(tmp_path, kept_pictures):
    path = made_up(tmp_path / "run", 100_000, str(kept_pictures["rgb"]).encode())
    assert path.stat().st_size < 15_000_000
    shown = Page(path.read_text()).visible
    assert "6 of 100,000 queries, lowest average precision first." in shown
    assert "6 of 100,000 queries, those whose score is nearest to the threshold first." in shown
    assert "150 of 100,000 queries and 150 of 100,000 gallery images" in shown
    assert "1,000 of 100,000 queries with 20,000 of 100,000 gallery images" in shown
    assert "Time" not in shown, "nothing was timed"


def test_no_page_is_larger_than_the_limit(folder, monkeypatch):
    size = page.write_report(folder).stat().st_size
    monkeypatch.setattr(page, "LIMIT", size // 2)
    path = page.write_report(folder)
    assert path.stat().st_size <= size // 2
    assert "stored queries of each group are shown" in Page(path.read_text()).visible
    monkeypatch.setattr(page, "LIMIT", 1000)
    with pytest.raises(ValueError, match="without pictures, more than 1,000"):
        page.write_report(folder)
