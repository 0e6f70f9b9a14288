"""A graph attention network over listings whose edges are candidate pairs; it scores the edges.

Velickovic et al., "Graph attention networks" (ICLR 2018), with edges that have features as in
Shopee 2021 2nd place (script 39103933322): 8 heads of 8 numbers, dropout .6, four similarities on
an edge. Everything is an edge list: attention is a softmax over the edges that end in one node,
memory grows with the number of edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class PairGraph:
    """N nodes and E directed edges; an undirected pair is two of them, one behind the other half.

    Attributes:
        source: `(E,)` int64, where an edge begins. The second half are the first half's, turned.
        target: `(E,)` int64, where it ends.
        edges: `(E, F)` float32 features, equal in both directions.
        nodes: `(N, G)` float32 features.
    """

    source: Tensor
    target: Tensor
    edges: Tensor
    nodes: Tensor

    @property
    def pairs(self) -> int:
        """Number of undirected pairs."""
        return len(self.source) // 2


class EdgeAttention(nn.Module):
    """Logit of every pair of a graph, `(pairs,)`.

    Two layers of attention give each node a vector; a pair is judged by the sum, the distance and
    the product of its nodes' vectors and by its own features, so that both directions agree.

    Args:
        node_dim: features of a node.
        edge_dim: features of an edge.
        heads: of the attention.
        hidden: numbers of a head.
        dropout: on features and on attention.
    """

    def __init__(
        self, node_dim: int, edge_dim: int, heads: int = 8, hidden: int = 8, dropout: float = 0.6
    ) -> None:
        super().__init__()
        width = heads * hidden
        self.first = AttentionLayer(node_dim, edge_dim, heads, hidden, dropout)
        self.second = AttentionLayer(width, edge_dim, heads, hidden, dropout)
        self.dropout = dropout
        self.judge = nn.Sequential(
            nn.Linear(3 * width + edge_dim, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, graph: PairGraph) -> Tensor:
        """`(pairs,)` logits."""
        x = self.first(graph.nodes, graph)
        x = self.second(x, graph)
        one, other = x[graph.source[: graph.pairs]], x[graph.target[: graph.pairs]]
        apart = (one - other).abs()
        seen = torch.cat([one + other, apart, one * other], 1)
        seen = F.dropout(seen, self.dropout, self.training)
        logits: Tensor = self.judge(torch.cat([seen, graph.edges[: graph.pairs]], 1))
        return logits[:, 0]


class AttentionLayer(nn.Module):
    """What a node hears of its neighbors over its edges, `(N, heads * hidden)`.

    Of the edge j -> i with features e: weight softmax_j(leaky_relu(a . [W x_i, W x_j, V e])),
    message W x_j + V e; a node also hears itself. ELU behind.
    """

    def __init__(
        self, node_dim: int, edge_dim: int, heads: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.node = nn.Linear(node_dim, heads * hidden)
        self.edge = nn.Linear(edge_dim, heads * hidden, bias=False)
        self.mine, self.theirs, self.between = (
            nn.Parameter(torch.randn(heads, hidden) * hidden**-0.5) for _ in range(3)
        )

    def forward(self, x: Tensor, graph: PairGraph) -> Tensor:
        """`(N, heads * hidden)` of `(N, node_dim)`."""
        x = F.dropout(x, self.dropout, self.training)
        nodes = self.node(x).view(len(x), self.heads, -1)
        edges = self.edge(graph.edges).view(len(graph.edges), self.heads, -1)
        mine, theirs = (nodes * self.mine).sum(2), (nodes * self.theirs).sum(2)
        logits = mine[graph.target] + theirs[graph.source] + (edges * self.between).sum(2)
        own = F.leaky_relu(mine + theirs, 0.2)
        logits = F.leaky_relu(logits, 0.2)
        weight, self_weight = scatter_softmax(logits, graph.target, own)
        weight = F.dropout(weight, self.dropout, self.training)
        said = weight[..., None] * (nodes[graph.source] + edges)
        heard = (self_weight[..., None] * nodes).index_add(0, graph.target, said)
        return F.elu(heard.flatten(1))


def scatter_softmax(logits: Tensor, target: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over each node's own logit and those of the edges that end in it.

    `(E, H)` logits, `(E,)` nodes and `(N, H)` own logits -> `(E, H)` and `(N, H)` weights.
    """
    index = target[:, None].expand_as(logits)
    top = own.detach().scatter_reduce(0, index, logits.detach(), "amax")
    edge, self_ = (logits - top[target]).exp(), (own - top).exp()
    total = self_.index_add(0, target, edge)
    return edge / total[target], self_ / total


def around(graph: PairGraph, rows: Tensor) -> tuple[PairGraph, Tensor]:
    """The part of a graph that `EdgeAttention` hears of when it judges pairs, and their places.

    Two layers: all edges of a pair's ends and of their neighbors. Logits of these pairs are those
    of the whole graph. A tenth of the listings being asked, that is most of the work saved.

    Args:
        graph: of all listings.
        rows: `(R,)` pairs.

    Returns:
        The smaller graph, and `(R,)` places of the pairs in it.
    """
    a, b = graph.source[: graph.pairs], graph.target[: graph.pairs]
    ends = torch.zeros(len(graph.nodes), dtype=torch.bool, device=a.device)
    ends[a[rows]] = ends[b[rows]] = True
    near = ends.clone()
    near[a[ends[b]]] = near[b[ends[a]]] = True
    kept = (near[a] | near[b]).nonzero()[:, 0]
    nodes, place = torch.unique(torch.cat([a[kept], b[kept]]), return_inverse=True)
    one, other = place[: len(kept)], place[len(kept) :]
    part = PairGraph(
        torch.cat([one, other]),
        torch.cat([other, one]),
        graph.edges[: graph.pairs][kept].repeat(2, 1),
        graph.nodes[nodes],
    )
    return part, torch.searchsorted(kept, rows)


def train_edges(
    model: EdgeAttention,
    graph: PairGraph,
    rows: Tensor,
    same: Tensor,
    weight: Tensor,
    *,
    epochs: int,
    lr: float,
    decay: float = 5e-4,
) -> EdgeAttention:
    """The model, trained on the pairs `rows` by weighted binary cross entropy, whole graph a step.

    Messages run over all edges, the loss sees only `rows`: what a fold is scored on gives no label
    away. Adam, the rate falls to 0 by half a cosine.

    Args:
        model: to train.
        graph: of all listings.
        rows: `(R,)` pairs to learn from.
        same: `(R,)` whether they are one product.
        weight: `(R,)` of their losses.
        epochs: steps.
        lr: peak learning rate.
        decay: of the weights.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    share = weight / weight.sum()
    model.train()
    with torch.enable_grad():
        for _ in range(epochs):
            optimizer.zero_grad()
            logits = model(graph)[rows]
            loss = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
            (loss * share).sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()
