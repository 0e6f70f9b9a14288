"""Query expansion whose weights are learned: a transformer looks at the query and its neighbors.

Gordo, Radenovic and Berg, "Attention-based query expansion learning" (ECCV 2020). Their code is not
public and their numbers are not claimed. Two differences: it starts as alpha query expansion, of
which it learns a correction, and it reads the products of the list's members, not the vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.retrieval.lists import (
    ListEncoder,
    label_folds,
    labelled_lists,
    mean_average_precision,
    products,
    train_model,
)
from common.types import Embeddings

POOL = 100  # nearest images that training compares an expanded query with
_TEMPERATURE = 0.05
_REACH = 3.0  # a weight is at most e^3 times that of alpha query expansion, at least e^-3
_FOLDS = 4  # of the labels


class ExpansionWeights(nn.Module):
    """Weights of a query's neighbors; untrained, those of alpha query expansion.

    w_i = max(s_i, 0)^alpha * exp(c_i), |c_i| < 3; the query itself weighs 1. Token i is the row of
    products of member i, in order of rank, plus the learned encoding of that rank.

    Args:
        k: neighbors.
        alpha: of the expansion that it starts from.
        width: length of a token.
        layers: of the transformer.
        heads: of its attention.
    """

    def __init__(
        self, k: int, *, alpha: float = 3.0, width: int = 32, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.inward = nn.Linear(1 + k, width)
        self.rank = nn.Parameter(torch.randn(1 + k, width) * 0.02)
        self.encoder = ListEncoder(width, layers, heads)
        self.outward = nn.Linear(width, 1)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, gram: Tensor, real: Tensor) -> Tensor:
        """Weights `(B, k)`, 0 at padding.

        Args:
            gram: `(B, 1 + k, 1 + k)` products of query and neighbors.
            real: `(B, k)` bool, False at padding.
        """
        members = F.pad(real, (1, 0), value=True)
        encoded = self.encoder(self.inward(gram) + self.rank, gram, members)
        change = _REACH * torch.tanh(self.outward(encoded[:, 1:]).squeeze(2) / _REACH)
        return alpha_weights(gram, real, self.alpha) * change.exp()


class Committee(nn.Module):
    """The mean of the weights of several models, one for each fold of the labels."""

    def __init__(self, models: list[ExpansionWeights]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, gram: Tensor, real: Tensor) -> Tensor:
        """Weights `(B, k)`, as those of `ExpansionWeights`."""
        return torch.stack([model(gram, real) for model in self.models]).mean(0)


def learn(
    train: Embeddings | None,
    labels: Tensor,
    *,
    k: int,
    alpha: float,
    epochs: int,
    lr: float,
    most: int,
    seed: int,
    device: torch.device,
) -> tuple[Committee, dict[str, float]]:
    """Models trained on all folds of the labels but one each, and out-of-fold mAP by expansion.

    Arguments and errors as of `common.retrieval.expand.attention_query_expansion`.
    """
    lists = labelled_lists(
        train, labels, max(k, POOL), most=most, seed=seed, step="attention_qe", device=device
    )
    base = lists.images.vectors
    queries = base.index_select(0, lists.rows.to(base.device))
    both = products(queries, base, lists.index, k, device)
    gram, cross = both[..., : 1 + k].contiguous(), both[..., 1:]
    real = (lists.index >= 0).to(device)
    hits, totals = lists.hits.to(device), lists.totals.to(device)

    def scores(rows: Tensor, weights: Tensor) -> Tensor:
        """Cosines `(B, P)` of the expanded queries with their pools, from products alone."""
        own = F.pad(weights, (1, 0), value=1.0)[:, None]
        norm = (own @ gram[rows] @ own.mT).squeeze(2).clamp(min=1e-12).sqrt()
        return (own @ cross[rows]).squeeze(1) / norm

    models: list[ExpansionWeights] = []
    learned = alpha_weights(gram, real[:, :k], alpha)
    ways = {"no expansion": torch.zeros_like(learned), "alpha expansion": learned.clone()}
    fold_of = torch.from_numpy(label_folds(lists.labels.numpy(), _FOLDS, seed)).to(device)
    # With nothing to find, or nothing to tell it from, there is nothing to learn.
    useful = hits.any(1) & (real & ~hits).any(1)
    for fold in range(int(fold_of.max()) + 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + fold)
            model = ExpansionWeights(k, alpha=alpha).to(device)

        def loss_of(rows: Tensor, model: ExpansionWeights = model) -> Tensor:
            cosine = scores(rows, model(gram[rows], real[rows, :k])) / _TEMPERATURE
            near, far = hits[rows], real[rows] & ~hits[rows]
            others = cosine.masked_fill(~far, -torch.inf).logsumexp(1, keepdim=True)
            loss = F.softplus(others - cosine).masked_fill(~near, 0.0)
            return (loss.sum(1) / near.sum(1)).mean()

        chosen = (useful & (fold_of != fold)).nonzero()[:, 0]
        train_model(model, loss_of, chosen, epochs=epochs, lr=lr, seed=seed + fold)
        held = fold_of == fold
        with torch.no_grad():
            learned[held] = model(gram[held], real[held, :k])
        models.append(model)
    ways["learned weights"] = learned
    everything = torch.arange(len(gram), device=device)
    figures = {
        name: mean_average_precision(
            scores(everything, weights).masked_fill(~real, -torch.inf), hits, totals
        )
        for name, weights in ways.items()
    }
    return Committee(models), figures


def alpha_weights(gram: Tensor, real: Tensor, alpha: float) -> Tensor:
    """`max(s_i, 0)^alpha`, `(B, k)`, 0 at padding."""
    return gram[:, 0, 1:].clamp(min=0).pow(alpha) * real
