"""Graph attention networks that tell pairs of one product from others, trained in grouped folds.

    model = EdgeModel(folds=5).fit(graph, names, rows, same, groups, weight)
    model.out_of_fold_, model.predict(graph)
    model.save("runs/graph.safetensors"); EdgeModel.load("runs/graph.safetensors").predict(graph)

The network is `common.rerank.edge_attention` (Shopee 2021 2nd place).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.data.folds import group_folds
from common.engine.checkpoint import load_tree, save_tree
from common.lazy import Lazy
from common.rerank.edge_attention import EdgeAttention, PairGraph, around, train_edges

metrics = Lazy("sklearn.metrics")

_SCALE = ("edge_mean", "edge_std", "node_mean", "node_std")


@dataclass
class EdgeModel:
    """One network per fold, whose mean is the prediction.

    Args:
        folds: parts of the groups; each network learns without one of them.
        heads: of the attention.
        hidden: numbers of a head.
        dropout: on features and attention.
        epochs: steps over the whole graph.
        lr: peak learning rate.
        seed: of folds and weights.

    Attributes:
        names_: of the sources that the graph's features are of.
        networks_: one per fold.
        scale_: mean and deviation of edges' and nodes' features on the graph it learned from.
        out_of_fold_: `(R,)` float32, each pair by the network that saw neither of its groups.
        average_precision_: of those.
    """

    folds: int = 5
    heads: int = 8
    hidden: int = 8
    dropout: float = 0.6
    epochs: int = 200
    lr: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or min(self.epochs, self.heads, self.hidden) < 1:
            raise ValueError(
                "EdgeModel needs folds of at least 2, epochs, heads and hidden of at least 1; got "
                f"{self.folds}, {self.epochs}, {self.heads}, {self.hidden}."
            )

    def fit(
        self,
        graph: PairGraph,
        names: Sequence[str],
        rows: np.ndarray,
        same: np.ndarray,
        groups: np.ndarray,
        weight: np.ndarray,
        device: torch.device | None = None,
    ) -> EdgeModel:
        """Itself, trained; messages run over all edges that reach `rows`, the loss sees only these.

        Args:
            graph: of all listings.
            names: of the sources its features are of.
            rows: `(R,)` pairs to learn from.
            same: `(R,)` bool, whether they are of one product.
            groups: `(R, 2)` labels of both ends; the fold of the first scores the pair.
            weight: `(R,)` of their losses.
            device: where the networks run.

        Raises:
            ValueError: fewer groups than folds, or pairs of one kind alone.
        """
        if not len(same) or same.all() or not same.any():
            raise ValueError(
                "graph_attention: all pairs to learn from are of one kind: lower least, raise top."
            )
        place = torch.device("cpu") if device is None else torch.device(device)
        self.names_ = list(names)
        self.scale_ = _scale_of(graph)
        part, mine = around(self._scaled(graph, place), torch.from_numpy(rows).to(place))
        fold = group_folds(groups.ravel(), self.folds, self.seed).reshape(groups.shape)
        self.networks_: list[EdgeAttention] = []
        self.out_of_fold_ = np.empty(len(rows), np.float32)
        for number in range(self.folds):
            seen = np.flatnonzero((fold != number).all(1))
            with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
                torch.manual_seed(self.seed + number)  # of weights and of what is dropped
                network = self._network(graph.nodes.shape[1], graph.edges.shape[1]).to(place)
                train_edges(
                    network,
                    part,
                    mine[torch.from_numpy(seen).to(place)],
                    torch.from_numpy(same[seen].astype(np.float32)).to(place),
                    torch.from_numpy(weight[seen]).float().to(place),
                    epochs=self.epochs,
                    lr=self.lr,
                )
            self.networks_.append(network)
            held = np.flatnonzero(fold[:, 0] == number)
            self.out_of_fold_[held] = _probability(network, part)[mine.cpu()].numpy()[held]
        self.average_precision_ = float(metrics.average_precision_score(same, self.out_of_fold_))
        return self

    def predict(self, graph: PairGraph, device: torch.device | None = None) -> np.ndarray:
        """Probability of each pair of a graph, `(pairs,)` float32: the mean of the folds.

        Raises:
            ValueError: features of other sources than those it learned from.
        """
        edges, nodes = len(self.scale_["edge_mean"]), len(self.scale_["node_mean"])
        if (graph.edges.shape[1], graph.nodes.shape[1]) != (edges, nodes):
            raise ValueError(
                f"graph_attention: the network learned from {', '.join(self.names_)}, {edges} "
                f"features of an edge and {nodes} of a node; here are {graph.edges.shape[1]} and "
                f"{graph.nodes.shape[1]}: match the same sources, or learn again."
            )
        place = torch.device("cpu") if device is None else torch.device(device)
        scaled = self._scaled(graph, place)
        parts = [_probability(network.to(place), scaled) for network in self.networks_]
        mean: np.ndarray = torch.stack(parts).mean(0).numpy()
        return mean

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        tree: dict[str, Any] = {
            "settings": asdict(self),
            "names": self.names_,
            "scale": self.scale_,
            "networks": [network.state_dict() for network in self.networks_],
            "average_precision": self.average_precision_,
        }
        save_tree(path, tree)

    @classmethod
    def load(cls, path: str | Path) -> EdgeModel:
        """What `save` wrote, without the out-of-fold scores.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is damaged, or something else.
        """
        tree = load_tree(path)
        try:
            model = cls(**tree["settings"])
            model.names_ = tree["names"]
            model.scale_ = {name: tree["scale"][name] for name in _SCALE}
            model.average_precision_ = tree["average_precision"]
            nodes, edges = len(model.scale_["node_mean"]), len(model.scale_["edge_mean"])
            model.networks_ = []
            for state in tree["networks"]:
                network = model._network(nodes, edges)
                network.load_state_dict(state)
                model.networks_.append(network.eval())
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} holds no graph network that can be read: {error}") from None
        return model

    def _network(self, nodes: int, edges: int) -> EdgeAttention:
        return EdgeAttention(nodes, edges, self.heads, self.hidden, self.dropout)

    def _scaled(self, graph: PairGraph, place: torch.device) -> PairGraph:
        scale = self.scale_
        return PairGraph(
            graph.source.to(place),
            graph.target.to(place),
            ((graph.edges - scale["edge_mean"]) / scale["edge_std"]).to(place),
            ((graph.nodes - scale["node_mean"]) / scale["node_std"]).to(place),
        )


def _scale_of(graph: PairGraph) -> dict[str, torch.Tensor]:
    values = (
        graph.edges.mean(0),
        graph.edges.std(0, correction=0).clamp(min=1e-6),
        graph.nodes.mean(0),
        graph.nodes.std(0, correction=0).clamp(min=1e-6),
    )
    return dict(zip(_SCALE, values, strict=True))


@torch.no_grad()
def _probability(network: EdgeAttention, graph: PairGraph) -> torch.Tensor:
    score: torch.Tensor = network(graph).sigmoid().cpu()
    return score
