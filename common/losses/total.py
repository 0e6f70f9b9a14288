"""The `loss:` list of a config as one criterion: named terms with weights, added up.

A weight is a number, or a ramp over the training, with which one term hands over to another:

loss:
  - {name: cosine_softmax, weight: {start: 1, end: 0, from: 0.3, over: 0.2}}
  - {name: triplet, weight: {start: 0, end: 1, from: 0.3, over: 0.2}}
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import nn

from common.config import ConfigError
from common.losses import (
    adaptive,
    centers,
    classify,
    hyperbolic,
    magnet,
    margin,
    memory,
    pair,
    partial_fc,
    proxies,
    quadruplet,
    rank,
    siamese,
    sigmoid,
)
from common.losses import tuple as tuples
from common.losses.pair_head import PairHead
from common.losses.schedule import ramp_factor, read_ramp
from common.losses.watch import with_number
from common.steps import Step, bind, catalog, step_name

_HEADS = (margin, classify, adaptive, centers, proxies, sigmoid)
_TUPLES = (pair, quadruplet, tuples, rank, hyperbolic, magnet, siamese)
KNOWN = {
    name: loss
    for name, loss in catalog(*_HEADS, *_TUPLES, memory, partial_fc).items()
    if inspect.isclass(loss) and issubclass(loss, nn.Module)  # not what only works on one
}

Weight = float | Mapping[str, Any]
T = TypeVar("T")


class Total(nn.Module):
    """Weighted sum of loss terms, each a module called with (embeddings, labels).

    A term whose weight is 0 for a while is computed all the same: its statistics can be watched,
    its memory fills, and every process has a gradient for its parameters.

    Args:
        terms: the modules.
        weights: one for each, a positive number or a ramp as in `schedule.read_ramp`.
        names: what each is called in the log; unset: as in YAML. A second one gets its place.

    Raises:
        ValueError: a weight that is neither, or momentum queues that do not share one copy.
    """

    def __init__(
        self,
        terms: Sequence[nn.Module],
        weights: Sequence[Weight],
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        given = [step_name(type(term).__name__) for term in terms] if names is None else names
        self.names = list(_placed([{name: i} for i, name in enumerate(given)]))
        self._values: torch.Tensor | None = None
        self.ramps = [read_weight(weight) for weight in weights]
        self.weights = [ramp["start"] for ramp in self.ramps]
        queues = [term for term in terms if isinstance(term, memory.MomentumQueue)]
        if len({(queue.momentum, queue.view) for queue in queues}) > 1:
            raise ValueError("all momentum queues share a copy of the model: one momentum and view")
        #: of the copy of the model that makes keys; None without a term that wants some
        self.momentum = queues[0].momentum if queues else None
        #: whether the copy sees a second augmented view of each image
        self.second_view = bool(queues) and queues[0].view == "second"

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        shares: torch.Tensor | None = None,
        keys: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of `(B, D)` embeddings with `(B,)` int64 labels, -1 ignored; scalar.

        `shares` `(T,)`, a factor per term, is for several processes: see `masses`. `keys` `(B, D)`
        are the copy's embeddings of the same images, for momentum queues.
        """
        total = embeddings.new_zeros((), dtype=torch.float32)
        values = []
        for i, (weight, term) in enumerate(zip(self.weights, self.terms, strict=True)):
            queue = isinstance(term, memory.MomentumQueue)
            loss = term(embeddings, labels, keys) if queue else term(embeddings, labels)
            loss = loss if shares is None else loss * shares[i]
            total = total + weight * loss
            values.append(loss.detach().float())
        self._values = torch.stack(values)
        return total

    def masses(self, labels: torch.Tensor) -> torch.Tensor:
        """`(T,)` float32, what each term's mean divides by: labelled rows, or their class weights.

        A process's mean times its share of the masses adds up to the mean over all processes.
        """
        labelled = (labels >= 0).sum().float()
        of = [cast(Any, t).mass(labels) if hasattr(t, "mass") else labelled for t in self.terms]
        return torch.stack([mass.float() for mass in of])

    def schedule(self, progress: float) -> None:
        """Set the weights, and tell every term, for the part of the training done, 0 to 1."""
        self.weights = [ramp_factor(ramp, progress) for ramp in self.ramps]
        for term in self.terms:
            if hasattr(term, "schedule"):
                cast(Any, term).schedule(progress)

    def watch(self) -> dict[str, torch.Tensor]:
        """What a log sums over an epoch: (2,) sum and number for each name, on the device.

        `loss/<term>` is each term's value in the last call without its weight, and `head/<name>`
        what the terms themselves watch.
        """
        if self._values is None:
            return {}
        values = with_number(self._values, self._values.new_ones(()))
        found = {f"loss/{name}": pair for name, pair in zip(self.names, values, strict=True)}
        own = [cast(Any, t).watch() if hasattr(t, "watch") else {} for t in self.terms]
        return found | {f"head/{name}": pair for name, pair in _placed(own).items()}

    def statistics(self) -> dict[str, float]:
        """What the terms know about their last batch, and weights that move, for the log.

        A name that an earlier term has gets the term's place: two triplet terms, `active` and
        `active_1`.
        """
        moving = [i for i, ramp in enumerate(self.ramps) if ramp["start"] != ramp["end"]]
        weights = {f"head/weight_{i}": self.weights[i] for i in moving}
        own = [cast(Any, t).statistics() if hasattr(t, "statistics") else {} for t in self.terms]
        return weights | {f"head/{name}": value for name, value in _placed(own).items()}

    def centers(self) -> torch.Tensor | None:
        """`(C, K, D)` unit class centres of the first term that has them."""
        for term in self.terms:
            if hasattr(term, "centers"):
                centers: torch.Tensor = cast(Any, term).centers()
                return centers
        return None

    def pair_head(self) -> PairHead | None:
        """The comparison of two embeddings that the first term that has one has learned."""
        heads = [cast(Any, t).pair_head() for t in self.terms if hasattr(t, "pair_head")]
        return heads[0] if heads else None


def check(terms: Sequence[Step]) -> None:
    """Nothing, or what is wrong with a `loss:` list, before any long work.

    The terms are made once, for two classes: most of what can be wrong only their constructors
    know, such as a margin out of range or the miner's name inside a term.

    Raises:
        ConfigError: see `build`.
    """
    with torch.random.fork_rng(devices=[]):  # a check moves no later draw
        build(terms, {"embedding_dim": 2, "num_classes": 2, "class_counts": [1, 1]})


def build(terms: Sequence[Step], state: Mapping[str, Any]) -> Total:
    """The criterion that `terms` describe; `state` offers embedding_dim, num_classes, ...

    Raises:
        ConfigError: no term, unknown name or argument, a weight that is neither a positive number
            nor a ramp, an argument that a term refuses, or terms that do not go together.
    """
    if not terms:
        raise ConfigError(f"loss: is empty, name at least one of: {', '.join(KNOWN)}")
    # All names before anything large is made.
    calls = [bind(_without_weight(term), KNOWN, f"loss[{i}]") for i, term in enumerate(terms)]
    weights, where = [term.get("weight", 1.0) for term in terms], "loss"
    try:
        for i, weight in enumerate(weights):
            where = f"loss[{i}]"
            read_weight(weight)
        modules = []
        for i, call in enumerate(calls):
            where = f"loss[{i}]"
            modules.append(call(state))
        where = "loss"
        return Total(modules, weights, [str(term["name"]) for term in terms])
    except ValueError as error:
        text = str(error).removeprefix(f"{where}: ")
        raise ConfigError(f"{where}: {text}") from None


def read_weight(given: object) -> dict[str, float]:
    """The ramp of a term's weight; a number stays as it is.

    Raises:
        ValueError: neither a positive number nor a ramp that leaves 0 anywhere.
    """
    if isinstance(given, Mapping):
        ramp = read_ramp(given, "weight")
        if max(ramp["start"], ramp["end"]) > 0:
            return ramp
    elif isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < math.inf:
        return {**read_ramp(None), "start": float(given), "end": float(given)}
    raise ValueError(
        f"weight must be a positive number or a ramp such as {{start: 0, end: 1, from: 0.3, over: "
        f"0.2}}, got {given!r}"
    )


def _placed(found: Sequence[Mapping[str, T]]) -> dict[str, T]:
    """All terms' values; a name that an earlier term has gets the later one's place."""
    joined: dict[str, T] = {}
    for i, values in enumerate(found):
        joined |= {f"{name}_{i}" if name in joined else name: v for name, v in values.items()}
    return joined


def _without_weight(term: Step) -> Step:
    return {key: value for key, value in term.items() if key != "weight"}
