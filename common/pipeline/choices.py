"""Ranking steps that somebody switches on and off: which there are for a run, and their order.

The run's own steps, as its config lists them, and a few that any run may try.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from inspect import getdoc, signature
from typing import Any, get_type_hints

from common.config import ConfigError
from common.pipeline.ranking import STATE
from common.rerank.known import STEPS
from common.steps import Step, chain, settings
from common.types import Neighbors

KNN: Step = {"name": "knn", "k": 100}
# What any run may try; a step of the same name in its own config takes the place of one here.
EXTRAS: tuple[Step, ...] = (
    {"name": "dba", "k": 5, "alpha": 3.0},
    {"name": "alpha_qe", "k": 5, "alpha": 3.0},
    {"name": "k_reciprocal"},
    {"name": "local", "top": 20, "cap": 30, "weight": 0.5},
)
ALL_PAIRS = 20_000  # a larger gallery is not compared with itself while somebody waits
_WITH_ITSELF = ("dba", "k_reciprocal")
_TO_CLASSES = ("vote", "class_centers", "class_logits")  # from these on neighbors are classes
_LEARN = {"train", "train_labels", "askers", "asker_labels"}  # who reads one learns at each call
_MOVE = ("alpha_qe", "dba")  # mean the same in lists that match whole pools of listings


@dataclass(frozen=True)
class Choice:
    """A step that can be switched on.

    Attributes:
        key: what it is called, `local top=20 cap=30`; once in a list of choices.
        step: as in YAML.
        own: whether the run's config has it.
        about: what it does, one sentence.
        of_classes: whether it gives classes, or comes after a step that does.
    """

    key: str
    step: Step
    own: bool
    about: str
    of_classes: bool

    @property
    def usual(self) -> bool:
        """Whether it is on until somebody switches it off: the run's own, if it learns nothing."""
        return self.own and not takes(self.step) & _LEARN


def lists_of(config: Any) -> tuple[dict[str, list[Step]], dict[str, list[str]]]:
    """The config's lists of ranking steps by section, and names of what one query has no use for.

    Lists that match a pool of listings with itself (Shopee's) keep what moves vectors.
    """
    lists: dict[str, list[Step]] = {}
    left_out: dict[str, list[str]] = {}
    for item in fields(config):
        steps = getattr(config, item.name)
        if item.name == "loss" or not isinstance(steps, list) or not steps:
            continue
        if not all(isinstance(step, dict) for step in steps):
            continue
        try:
            chain(steps, STEPS, STATE, item.name)
            lists[item.name] = steps
        except ConfigError:
            known = {name: {"name", *settings(STEPS[name])} for name in _MOVE}
            lists[item.name] = [
                {key: value for key, value in step.items() if key in known[step["name"]]}
                for step in steps
                if step["name"] in known
            ]
            left_out[item.name] = [str(s["name"]) for s in steps if s["name"] not in known]
    return lists, left_out


def own_steps(lists: dict[str, list[Step]], *, labelled: bool) -> list[Step]:
    """The list for a gallery: one that ends in classes where labels are known, else another."""
    every = list(lists.values())
    fit = [steps for steps in every if (_end(steps) < len(steps)) == labelled]
    return [*fit, *every, []][0]


def choices(own: Sequence[Step], *, rows: int, labelled: bool, pictures: bool) -> list[Choice]:
    """The run's own steps, then `EXTRAS` that it does not have.

    Args:
        own: of the gallery's list.
        rows: of the gallery; steps that compare all of it with itself are extras up to `ALL_PAIRS`.
        labelled: whether its labels are known: steps that end in classes need them.
        pictures: whether the query may be one.
    """
    end, there = _end(own), {STEPS[step["name"]] for step in own}
    made = [(step, True, i >= end) for i, step in enumerate(own) if labelled or i < end]
    for step in EXTRAS:
        blind = _looks(step) and not pictures
        slow = step["name"] in _WITH_ITSELF and rows > ALL_PAIRS
        if STEPS[step["name"]] not in there and not blind and not slow:
            made.append((step, False, False))
    found: list[Choice] = []
    for step, mine, of_classes in made:
        key = " ".join([step["name"], *(f"{k}={v}" for k, v in step.items() if k != "name")])
        while key in [choice.key for choice in found]:
            key += ", again"
        about = (getdoc(STEPS[step["name"]]) or "").split("\n")[0]
        found.append(Choice(key, step, mine, about, of_classes))
    return found


def plan(
    known: Sequence[Choice], keys: Sequence[str], *, picture: bool
) -> tuple[list[Step], list[Step]]:
    """The chosen steps in the order in which they run: those of images, then those of classes.

    Extras that move vectors come first, then the run's own, then local verification. k-reciprocal
    takes the place of a search; without any search there is `KNN`.

    Args:
        known: what can be chosen.
        keys: what is.
        picture: whether there is one: without, steps that look at it are left out.

    Raises:
        ValueError: a key that is not among the known.
    """
    names = [choice.key for choice in known]
    if strange := [key for key in keys if key not in names]:
        raise ValueError(f"No step {strange[0]!r} here; there are: {', '.join(names)}.")
    chosen = [c for c in known if c.key in keys and (picture or not _looks(c.step))]
    own = [choice.step for choice in chosen if choice.own and not choice.of_classes]
    more = [choice.step for choice in chosen if not choice.own]
    instead = [step for step in more if _finds(step)]
    steps = [step for step in more if not _neighbors(step)]
    steps += [step for step in own if not (instead and _finds(step))]
    if not any(map(_finds, steps)):
        place = next((i for i, step in enumerate(steps) if _goes_on(step)), len(steps))
        steps[place:place] = instead or [KNN]
    steps += [step for step in more if _goes_on(step)]
    last = [choice.step for choice in chosen if choice.of_classes]
    return steps, last if any(step["name"] in _TO_CLASSES for step in last) else []


def of_gallery(step: Step) -> bool:
    """Whether it maps the gallery, whatever the query is."""
    return next(iter(signature(STEPS[step["name"]]).parameters)) == "gallery"


def takes(step: Step) -> set[str]:
    """Names of its arguments."""
    return set(signature(STEPS[step["name"]]).parameters)


def _end(steps: Sequence[Step]) -> int:
    """Place of the first step that gives classes, or the length."""
    return next((i for i, step in enumerate(steps) if step["name"] in _TO_CLASSES), len(steps))


def _looks(step: Step) -> bool:
    return "query_paths" in takes(step)


def _neighbors(step: Step) -> bool:
    return get_type_hints(STEPS[step["name"]]).get("return") is Neighbors


def _finds(step: Step) -> bool:
    """Whether it makes neighbors from embeddings."""
    return _neighbors(step) and not _goes_on(step)


def _goes_on(step: Step) -> bool:
    return "neighbors" in takes(step)
