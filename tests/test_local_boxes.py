"""Local features inside the boxes of the tables: as if the files were cropped."""

import cv2
import numpy as np
import pytest
import torch

from common.notes import Notes
from common.pipeline.ranking import Question
from common.report.matches import show_matches
from common.rerank.geometry import Settings
from common.rerank.inliers import count_inliers, verify_neighbors
from common.rerank.known import STEPS
from common.rerank.store import image_key
from common.retrieval.search import search
from common.steps import bind
from common.types import Embeddings
from tests.oracles.views import texture, turned

SCENES, VIEWS = 8, 4
X, Y, WIDTH, HEIGHT = 30, 20, 120, 90
FAST = {"size": 160, "keypoints": 150}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes in several views, each before a background that all of them share."""
    folder = tmp_path_factory.mktemp("boxes")
    behind = texture(99, 160, 200)
    rng = np.random.default_rng(1)
    names = {"whole": [], "cut": []}
    for scene in range(SCENES):
        for view in range(VIEWS):
            inside = turned(texture(scene, HEIGHT, WIDTH), 5 * view, 1 - 0.03 * view, 1e-4)[0]
            picture = behind.copy()
            picture[Y : Y + HEIGHT, X : X + WIDTH] = inside
            for kind, image in (("whole", picture), ("cut", inside)):
                names[kind].append(str(folder / f"{kind}{scene}{view}.png"))
                cv2.imwrite(names[kind][-1], image[:, :, ::-1])
    labels = np.repeat(np.arange(SCENES), VIEWS)
    vectors = rng.normal(size=(SCENES, 12))[labels] + rng.normal(size=(len(labels), 12))
    vectors = torch.nn.functional.normalize(torch.from_numpy(vectors).float())
    ids = np.array([f"i{i:03d}" for i in range(len(labels))])
    return ids, vectors, labels, {kind: np.array(n, "S") for kind, n in names.items()}


def state(world, cache, kind, *, boxes):
    """One view of each scene asks; the others are gallery and training images."""
    ids, vectors, labels, names = world
    asked = np.arange(len(ids)) % VIEWS == 0
    box = np.tile(np.array([X, Y, X + WIDTH, Y + HEIGHT], np.float64), (len(ids), 1))
    parts = {}
    for name, rows in (("query", asked), ("gallery", ~asked), ("train", ~asked)):
        parts[f"{name}_paths"] = names[kind][rows]
        parts[f"{name}_boxes"] = box[rows] if boxes else None
    queries, gallery = (Embeddings(ids[r], vectors[torch.from_numpy(r)]) for r in (asked, ~asked))
    known = torch.from_numpy(labels[~asked])
    return {
        **parts,
        "neighbors": search(queries, gallery, 10),
        "queries": queries,
        "gallery": gallery,
        "gallery_labels": known,
        "train": gallery,
        "train_labels": known,
        "cache": cache,
        "notes": Notes(),
    }


@pytest.mark.parametrize(
    "step",
    [
        {"name": "local", "floor": 0, **FAST},
        {"name": "plausible", "pairs": 60, "rounds": 5, "top": 10, "floor": 0, **FAST},
        {"name": "wild_fusion", "pairs": 60, "top": 10, "calibration": "logistic", **FAST},
        {"name": "lightgbm_rerank", "inliers": 5, "rounds": 5, "min_leaf": 5, "ask": 3},
    ],
    ids=lambda step: step["name"],
)
def test_steps_look_at_boxes_as_at_cropped_files(world, tmp_path, step):
    found = {
        (kind, boxes): bind(step, STEPS)(state(world, tmp_path / "cache", kind, boxes=boxes))
        for kind, boxes in (("cut", False), ("whole", True), ("whole", False))
    }
    cropped, boxed = found["cut", False], found["whole", True]
    assert torch.equal(boxed.index, cropped.index)
    assert torch.equal(boxed.score, cropped.score)
    assert not torch.equal(found["whole", False].score, cropped.score)


def test_a_box_of_zeros_is_the_whole_image_and_boxes_are_kept_apart(world, tmp_path):
    given = state(world, tmp_path, "whole", boxes=True)
    settings = Settings(**FAST)
    arguments = [given[n] for n in ("neighbors", "query_paths", "gallery_paths")]
    whole = count_inliers(*arguments, tmp_path, settings, top=3)[0]
    zeros = {"query_boxes": np.zeros((8, 4)), "gallery_boxes": np.zeros((24, 4))}
    assert torch.equal(count_inliers(*arguments, tmp_path, settings, top=3, **zeros)[0], whole)
    boxes = {name: given[name] for name in zeros}
    inside = count_inliers(*arguments, tmp_path, settings, top=3, **boxes)[0]
    assert not torch.equal(inside, whole)
    assert torch.equal(count_inliers(*arguments, tmp_path, settings, top=3)[0], whole)
    path, box = bytes(given["query_paths"][0]), given["query_boxes"][0]
    assert image_key(path) == image_key(path, np.zeros(4))
    assert len({image_key(path), image_key(path, box), image_key(path, box + 1)}) == 3
    outside = {**boxes, "query_boxes": boxes["query_boxes"] + 1000}
    with pytest.warns(UserWarning, match="holds no pixel"):
        assert not count_inliers(*arguments, tmp_path, settings, top=3, **outside)[0].any()


def test_boxes_must_fit(world, tmp_path):
    given = state(world, tmp_path, "whole", boxes=True)
    arguments = [given[n] for n in ("neighbors", "query_paths", "gallery_paths")]
    with pytest.raises(ValueError, match=r"8 files but boxes of shape \(7, 4\)"):
        verify_neighbors(*arguments, tmp_path, Settings(), query_boxes=given["query_boxes"][:7])


def test_the_report_shows_what_was_looked_at(world, tmp_path):
    given = state(world, tmp_path, "whole", boxes=True)
    bind({"name": "local", "top": 3, **FAST}, STEPS)(given)
    noted = given["notes"].matches[0]
    counts = dict(zip(noted["query"].tolist(), noted["inliers"].tolist(), strict=True))
    names = {n: given[n] for n in ("query_paths", "gallery_paths", "query_boxes", "gallery_boxes")}
    asked = Question(given["queries"], given["gallery"], given["gallery_labels"], None, **names)
    show_matches(given["notes"], asked)
    rows = {name: row for row, name in enumerate(given["queries"].ids.tolist())}
    assert given["notes"].matches
    for shown in given["notes"].matches:
        assert shown["inliers"] == counts[rows[shown["query"]]]
