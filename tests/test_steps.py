"""Steps by name: catalog, schema from the signature, chains."""

import types
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch

from common.config import ConfigError
from common.steps import bind, catalog, chain, help_text, settings
from common.types import Neighbors


def make_module():
    module = types.ModuleType("made")

    def alpha_query_expansion(queries, gallery, *, k: int = 10, alpha: float = 3.0):
        """Expanded queries."""
        return queries + k * alpha * gallery

    def whiten(queries, gallery, *, dim: int | None = None) -> tuple:
        """Both, whitened."""
        return queries * 2, gallery * 2

    def knn(queries, gallery, *, metric: Literal["dot", "l2"] = "dot") -> Neighbors:
        """Nearest rows."""
        return Neighbors(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))

    def rerank(neighbors: Neighbors, labels, *, top: int = 5) -> Neighbors:
        """Better neighbors."""
        return Neighbors(neighbors.index + top, neighbors.score)

    class SubCenterArcFace:
        """A head."""

        def __init__(self, num_classes, scale: float = 30.0, sizes: list[int] | None = None):
            self.made = (num_classes, scale, sizes)

    def _hidden(x):
        """Not a step."""

    for value in (alpha_query_expansion, whiten, knn, rerank, SubCenterArcFace, _hidden):
        value.__module__ = "made"
        setattr(module, value.__name__, value)
    module.alpha_qe = alpha_query_expansion
    module.imported = pytest.raises
    return module


KNOWN = catalog(make_module())


def test_catalog_has_public_own_names_and_aliases():
    assert set(KNOWN) == {
        "alpha_query_expansion",
        "alpha_qe",
        "whiten",
        "knn",
        "rerank",
        "sub_center_arcface",
    }


def test_arguments_come_from_yaml_and_from_the_state():
    head = bind({"name": "sub_center_arcface", "scale": 45}, KNOWN)({"num_classes": 7, "x": 1})
    assert head.made == (7, 45, None)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"k": 3}, "needs a name"),
        ({"name": "alpha_qs"}, "did you mean 'alpha_qe'"),
        ({"name": "alpha_qe", "kk": 3}, r"no argument 'kk'.*It has: k, alpha"),
        ({"name": "alpha_qe", "k": 2.5}, r"alpha_qe.k must be int, got 2.5 \(float\)"),
        ({"name": "alpha_qe", "k": True}, "must be int"),
        ({"name": "alpha_qe", "alpha": "3"}, "must be float"),
        ({"name": "alpha_qe", "alpha": float("nan")}, "alpha_qe.alpha must be finite, got nan"),
        ({"name": "alpha_qe", "alpha": float("-inf")}, "must be finite, got -inf"),
        ({"name": "alpha_qe", "queries": 1}, "no argument 'queries'"),
        ({"name": "knn", "metric": "cosine"}, "one of 'dot', 'l2'"),
        ({"name": "sub_center_arcface", "sizes": [1, "a"]}, "sizes must be"),
    ],
)
def test_wrong_steps_name_the_place_and_what_there_is(step, message):
    with pytest.raises(ConfigError, match=message) as error:
        bind(step, KNOWN, "search[2]")
    assert str(error.value).startswith("search[2]: ")


def test_allowed_types():
    bind({"name": "alpha_qe", "alpha": 3}, KNOWN)
    bind({"name": "whiten", "dim": None}, KNOWN)
    bind({"name": "knn", "metric": "l2"}, KNOWN)
    bind({"name": "sub_center_arcface", "sizes": [1, 2]}, KNOWN)


def test_a_chain_maps_first_arguments_and_leaves_the_state_alone():
    steps = [
        {"name": "alpha_qe", "k": 1, "alpha": 1},
        {"name": "whiten"},
        {"name": "knn"},
        {"name": "rerank", "top": 3},
    ]
    state = {"queries": 1.0, "gallery": 10.0, "labels": None}
    run = chain(steps, KNOWN, set(state), "search")
    done = run(state)
    assert (done["queries"], done["gallery"]) == (22.0, 20.0)
    assert done["neighbors"].index.item() == 3
    assert state == {"queries": 1.0, "gallery": 10.0, "labels": None}


def test_a_chain_is_checked_before_it_runs():
    with pytest.raises(ConfigError, match=r"search\[0\]: rerank needs neighbors"):
        chain([{"name": "rerank"}], KNOWN, {"queries", "gallery", "labels"}, "search")
    with pytest.raises(ConfigError, match="needs labels"):
        chain([{"name": "knn"}, {"name": "rerank"}], KNOWN, {"queries", "gallery"}, "search")


def test_help_lists_settings_and_first_lines():
    text = help_text("search:", KNOWN)
    assert "{name: alpha_qe, k: 10, alpha: 3.0}\n      Expanded queries." in text


def test_what_yaml_cannot_say_is_no_setting_and_comes_from_the_state():
    module = types.ModuleType("more")

    def step(
        queries,
        *,
        limits: dict[str, float] | None = None,
        chosen: Sequence[str] = (),
        low: float | str = 0.0,
        notes: torch.Tensor | None = None,
        own: Callable[[int], int] | None = None,
        free=3,
    ):
        """What it was given."""
        return notes, low

    step.__module__ = "more"
    module.step = step
    known = catalog(module)
    assert list(settings(known["step"])) == ["limits", "chosen", "low", "free"]
    assert "notes" not in help_text("more:", known)
    assert bind({"name": "step", "low": "x"}, known)({"queries": 1, "notes": 2}) == (2, "x")
    assert bind({"name": "step"}, known)({"queries": 1}) == (None, 0.0)
    with pytest.raises(
        ConfigError, match=r"no argument 'notes'.*It has: limits, chosen, low, free"
    ):
        bind({"name": "step", "notes": None}, known)


def test_a_chain_must_make_neighbors():
    with pytest.raises(ConfigError, match="search: ends without neighbors"):
        chain([{"name": "alpha_qe"}], KNOWN, {"queries", "gallery"}, "search")
