"""Listed pairs scored by a graph attention network that learned on held-out listings.

    matching:
      - {name: union, k: 50}
      - {name: lightgbm_pairs}
      - {name: graph_attention, least: 0.05}

Origin: Shopee 2021 2nd place; the network is `common.rerank.edge_attention`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.notes import Notes
from common.rerank.edge_attention import PairGraph
from common.rerank.edge_model import EdgeModel
from common.rerank.graph import neighbor_edges
from common.rerank.pair_trees import asked_pairs
from common.rerank.sources import Memory, Sources, needed
from common.rerank.truth import Truth
from common.types import Neighbors


def graph_attention(
    neighbors: Neighbors,
    sources: Sources,
    truth: Truth | None,
    memory: Memory,
    *,
    of: list[str] | None = None,
    least: float | None = None,
    top: int = 20,
    heads: int = 8,
    hidden: int = 8,
    dropout: float = 0.6,
    power: float = -0.4,
    epochs: int = 200,
    lr: float = 0.01,
    folds: int = 5,
    seed: int = 0,
    model: str = "",
    notes: Notes | None = None,
    device: torch.device | None = None,
) -> Neighbors:
    """The probability of each pair to be one product, by what its neighbors in the graph are.

    Edges are the first `top` pairs of each listing that score at least `least`, and its best one;
    other pairs are left out. An edge has the similarity of every source, the score that the pair
    came with, and its places in both lists; a node the mean similarity of its nearest 5 and 15.
    Pairs with an asked listing are learned in grouped folds and scored by the model that saw
    neither group; the test gets the mean of all models.

    Args:
        neighbors: `(N, K)`; the probabilities of `lightgbm_pairs` are a good start.
        sources: of the listings.
        truth: of held-out listings.
        memory: the trained model.
        of: which sources; none: all.
        least: smallest score of an edge; null: any. Their 0.3 is of such a probability.
        top: edges of a listing.
        heads: of the attention.
        hidden: numbers of a head.
        dropout: on features and attention.
        power: a pair counts n ^ power, n the size of the group of its asked listing.
        epochs: steps over the whole graph.
        lr: peak learning rate.
        folds: networks.
        seed: of folds and weights.
        model: file of a model: written after learning, read where nothing is held out.
        notes: gets the average precision out of fold.
        device: where the network runs.

    Raises:
        ConfigError: no model, and nothing held out to learn from.
        ValueError: fewer groups than folds, pairs of one kind alone, a model of other sources.
    """
    if top < 1:
        raise ValueError(f"graph_attention: top must be at least 1, got {top}.")
    fresh = EdgeModel(folds, heads, hidden, dropout, epochs, lr, seed)
    kept, names = _edges_of(neighbors, top, least), sources.names(of or ())
    a, b, graph = pair_graph(kept, sources, names)
    if not graph.pairs:
        return kept
    networks: EdgeModel | None = memory.get("model")
    if networks is None and truth is None and model and Path(model).is_file():
        networks = memory["model"] = EdgeModel.load(model)
    if networks is not None:
        return _as_lists(a, b, networks.predict(graph, device), len(neighbors))
    known = needed(truth, "graph_attention", "pairs to learn from")
    rows, groups, same = asked_pairs(known, a, b)
    _, code, count = np.unique(known.labels, return_inverse=True, return_counts=True)
    first = np.where(known.asked[a[rows]], a[rows], b[rows])
    weight = count[code][first].astype(np.float64) ** power
    networks = memory["model"] = fresh.fit(graph, names, rows, same, groups, weight, device)
    if model:
        networks.save(model)
    if notes is not None:
        notes.numbers |= {
            "graph_attention: average precision, out of fold": networks.average_precision_,
            "graph_attention: pairs": float(len(same)),
        }
    score = networks.predict(graph, device)
    score[rows] = networks.out_of_fold_
    return _as_lists(a, b, score, len(neighbors))


def pair_graph(
    neighbors: Neighbors, sources: Sources, names: list[str]
) -> tuple[np.ndarray, np.ndarray, PairGraph]:
    """Both ends of each pair that one of them lists, `(pairs,)` each, and the graph of them."""
    pairs = neighbor_edges(neighbors, mutual=False)
    a, b = pairs.a, pairs.b
    columns = [torch.from_numpy(pairs.weight)]
    back = torch.stack([_place(neighbors, a, b), _place(neighbors, b, a)])
    columns += [1 / (1 + back.amin(0)), 1 / (1 + back.amax(0))]
    nodes = []
    for name in names:
        near = sources.near(name, 15).score
        near = near.masked_fill(near == -torch.inf, 0.0)
        nodes += [near[:, :1].sum(1), near[:, :5].mean(1), near.mean(1)]
        columns.append(_similarity(sources, name, a, b))
    one, other = torch.from_numpy(a), torch.from_numpy(b)
    edges = torch.stack([column.float() for column in columns], 1)
    graph = PairGraph(
        torch.cat([one, other]),
        torch.cat([other, one]),
        edges.repeat(2, 1),
        torch.stack([column.nan_to_num(0.0) for column in nodes], 1),
    )
    return a, b, graph


def _edges_of(neighbors: Neighbors, top: int, least: float | None) -> Neighbors:
    """The lists cut to what becomes edges."""
    near = neighbors.sorted().top(top)
    if least is None:
        return near
    keep = near.score >= least
    keep[:, :1] = True
    keep &= near.index >= 0
    return Neighbors(near.index.masked_fill(~keep, -1), near.score.masked_fill(~keep, -torch.inf))


def _place(neighbors: Neighbors, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
    """`(P,)` place of `b` in the list of `a`, the length of lists where it is not in it."""
    rows = torch.from_numpy(a)
    hit = neighbors.index[rows] == torch.from_numpy(b)[:, None]
    width = neighbors.index.shape[1]
    return torch.where(hit.any(1), hit.to(torch.uint8).argmax(1), width).float()


def _similarity(sources: Sources, name: str, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
    """`(P,)` similarity of pairs in a source."""
    part = sources.parts[name]
    if name in sources.sparse:
        rows = sources.sparse[name].matrix
        parts = [
            np.asarray(rows[a[s : s + 65536]].multiply(rows[b[s : s + 65536]]).sum(1)).ravel()
            for s in range(0, len(a), 65536)
        ]
        return torch.from_numpy(np.concatenate(parts or [np.zeros(0)])).float()
    blocks = zip(
        torch.split(torch.from_numpy(a), 65536),
        torch.split(torch.from_numpy(b), 65536),
        strict=True,
    )
    found = [(part.vectors[x].float() * part.vectors[y].float()).sum(1) for x, y in blocks]
    return torch.cat(found) if found else torch.zeros(0)


def _as_lists(a: np.ndarray, b: np.ndarray, score: np.ndarray, size: int) -> Neighbors:
    """Each pair in the lists of both its ends."""
    rows = np.concatenate([a, b])
    others, values = np.concatenate([b, a]), np.tile(score, 2)
    order = np.lexsort((others, -values, rows))
    count = np.bincount(rows, minlength=size)
    column = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    shape = (size, int(count.max(initial=0)))
    index, table = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    index[rows[order], column] = others[order]
    table[rows[order], column] = values[order]
    return Neighbors(torch.from_numpy(index), torch.from_numpy(table))
