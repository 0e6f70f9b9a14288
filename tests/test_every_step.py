"""Every ranking step on input that is awkward, and on a device that is not the CPU."""

import warnings
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.notes import Notes
from common.rerank.known import STEPS
from common.steps import bind
from common.types import Embeddings, Neighbors
from tests.elsewhere import PLACE, Apart, Elsewhere, here, there

READS_FILES = ("concat", "hook", "local", "plausible", "wild_fusion")  # tests of their own
OPTIONS = {
    "range_search": {"threshold": -0.2},
    "inb": {"thresholds": [0.2, 0.1], "second": 0.0},
    "neighborhood_blending": {"thresholds": [0.2, 0.1], "second": 0.0, "k": 30},
    "lightgbm_rerank": {"min_leaf": 1, "rounds": 2, "folds": 2, "threads": 1},
    "listwise": {"epochs": 1},
    "attention_qe": {"epochs": 1},
    "attention_query_expansion": {"epochs": 1},
    "insert_unknown": {"share": 0.3},
    "pca_reduce": {"dim": 4},
    "fit_sizes": {"sizes": [0.5, 0.3, 0.2]},
}
LABEL_SPACE = ("logit_mix", "center_mix", "distractors", "insert_unknown")
ONE_SET = ("mutual_only", "graph_groups")  # the queries must be the gallery
# What a scene lacks, by the steps that may refuse it.
LEARNED = ("lightgbm_rerank", "listwise", "attention_qe", "attention_query_expansion")
REFUSED = {
    "no gallery": ("class_centers", "center_mix", "k_reciprocal", "gnn_rerank", "diffusion",
                   "offline_diffusion", "explore_exploit", "egt"),
    "one image": ("lightgbm_rerank",),
    "own only neighbor": ("lightgbm_rerank",),
    "one per label": ("learned_whiten", *LEARNED),
    "ids twice": ("database_augmentation", "dba", "neighborhood_blending", "inb",
                  "lightgbm_rerank", "attention_qe", "attention_query_expansion"),
}  # fmt: skip


def scene(kind="plain"):
    """The state of a pipeline: 7 queries, a gallery of 12, labelled train images."""
    generator = torch.Generator().manual_seed(0)

    def images(count, prefix):
        rows = normalize(torch.randn(count, 8, generator=generator))
        return Embeddings(np.array([f"{prefix}{i:02d}" for i in range(count)], np.str_), rows)

    count = {"no gallery": 0, "one image": 1, "own only neighbor": 1}.get(kind, 12)
    queries, gallery = images(0 if kind == "no queries" else 7, "q"), images(count, "g")
    train, negatives = images(16, "t"), images(5, "n")
    labels, known = torch.arange(count) // 3, torch.arange(16) // 4
    if kind == "one per label":
        labels, known = torch.arange(count), torch.arange(16)
    if kind == "zero rows":
        queries.vectors[0], gallery.vectors[3:5] = 0, 0
    if kind == "copies":
        gallery.vectors[4:8] = gallery.vectors[4]
        queries.vectors[:3] = gallery.vectors[4]
    if kind == "all alike":
        queries.vectors[:], gallery.vectors[:] = gallery.vectors[0], gallery.vectors[0]
    if kind == "ids twice":
        gallery.ids[5] = gallery.ids[4]
    if kind == "half":
        for part in (queries, gallery, train, negatives):
            part.vectors = part.vectors.half()
    if kind == "own only neighbor":
        queries = Embeddings(gallery.ids, gallery.vectors.clone())
    return {
        "queries": queries,
        "gallery": gallery,
        "gallery_labels": labels,
        "train": train,
        "train_labels": known,
        "negatives": negatives,
        "centers": normalize(torch.randn(20, 1, 8, generator=generator), dim=2),
        "query_paths": np.array([b"none"] * len(queries)),
        "gallery_paths": np.array([b"none"] * count),
        "train_paths": np.array([b"none"] * 16),
        "cache": Path("none"),
        "notes": Notes(),
        "device": torch.device("cpu"),
    }


def _fits(name):
    parameters = signature(STEPS[name]).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty}
    return name not in READS_FILES and needed <= {*scene(), "neighbors"}


TESTED = [name for name in STEPS if _fits(name)]  # others need networks of their own


def prepared(name, state):
    """The state with the queries and neighbors that the step asks for."""
    if name in ONE_SET:
        state["queries"] = Embeddings(state["gallery"].ids, state["gallery"].vectors.clone())
    if "neighbors" in signature(STEPS[name]).parameters:
        state["neighbors"] = bind({"name": "knn", "k": 20}, STEPS)(state)
        if name in LABEL_SPACE:
            state["neighbors"] = bind({"name": "vote"}, STEPS)(state)
    return state


def called(name, state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bind({"name": name, **OPTIONS.get(name, {})}, STEPS)(state)


def tensors_of(part):
    if isinstance(part, tuple):
        return [t for one in part for t in tensors_of(one)]
    if isinstance(part, Neighbors):
        return [part.index, part.score]
    return [part.vectors] if isinstance(part, Embeddings) else []


def assert_valid(found, state):
    for part in found if isinstance(found, tuple) else (found,):
        if isinstance(part, Embeddings):
            norm = part.vectors.float().norm(dim=1)
            assert torch.isclose(norm, torch.ones(()), atol=2e-3).logical_or(norm == 0).all()
        elif isinstance(part, Neighbors):
            assert len(part) == len(state["queries"])
            assert part.score.dtype == torch.float32
            assert not part.score.isnan().any()
            assert (part.score[:, :-1] >= part.score[:, 1:]).all()
            assert torch.equal(part.index < 0, part.score == -torch.inf)
            rows = [[i for i in row if i >= 0] for row in part.index.tolist()]
            assert all(len(set(row)) == len(row) for row in rows)


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.parametrize(
    "kind",
    ["plain", "half", "no gallery", "no queries", "one image", "own only neighbor", "zero rows",
     "copies", "all alike", "one per label", "ids twice"],
)  # fmt: skip
def test_awkward_input_is_ranked_or_refused(kind, name):
    state = prepared(name, scene(kind))
    before = {key: [t.clone() for t in tensors_of(value)] for key, value in state.items()}
    if name in REFUSED.get(kind, ()):
        with pytest.raises(ValueError, match=".{30}"):
            called(name, state)
    else:
        assert_valid(called(name, state), state)
    for key, kept in before.items():
        assert all(map(torch.equal, tensors_of(state[key]), kept)), f"{key} was changed"


@pytest.mark.parametrize("side", ["queries", "gallery"])
@pytest.mark.parametrize("name", TESTED)
def test_nan_embeddings_are_named_or_not_read(name, side):
    state = prepared(name, scene())
    state[side].vectors[1, 2] = torch.nan
    found, message = (), "NaN"
    try:
        found = called(name, state)
    except ValueError as error:
        message = str(error)
    assert "NaN" in message
    parts = [t for t in tensors_of(found) if t is not state[side].vectors]
    assert not any(t.isnan().any() for t in parts)


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.parametrize("labels_too", [True, False])
def test_tensors_of_another_device_give_the_same_there(name, labels_too, monkeypatch):
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda _, **how: autocast("cpu", **how))
    before = torch.__future__.get_swap_module_params_on_conversion()
    state = prepared(name, scene())
    expected = tensors_of(called(name, state))

    def moved(part):
        if isinstance(part, Embeddings):
            return Embeddings(part.ids, there(part.vectors))
        if isinstance(part, Neighbors):
            return Neighbors(there(part.index), there(part.score))
        return there(part) if labels_too and isinstance(part, torch.Tensor) else part

    state = {key: moved(part) for key, part in state.items()} | {"device": PLACE}
    try:
        torch.__future__.set_swap_module_params_on_conversion(True)
        with Elsewhere():
            found = tensors_of(called(name, state))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Apart), "it came back to the CPU"
        torch.testing.assert_close(here(one), other, atol=1e-4, rtol=1e-4)


def test_the_other_device_refuses_what_cuda_does():
    with Elsewhere():
        x = torch.arange(6.0, device=PLACE).view(2, 3)
        assert (x @ x.T).cpu().tolist() == [[5, 14], [14, 50]]
        for wrong in (lambda: x + torch.ones(3), lambda: x @ torch.ones(3)):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        for wrong in (x.numpy, lambda: np.asarray(x), lambda: np.full((2, 3), x)):
            with pytest.raises(TypeError, match="numpy"):
                wrong()
        assert x[torch.tensor([1])].tolist() == [[3, 4, 5]]
