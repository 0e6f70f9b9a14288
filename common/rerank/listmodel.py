"""A small list-wise re-ranker: all candidates of a query are scored in the light of each other.

    lists = labelled_lists(train, labels, 50, most=3000, seed=0, step="mine", device=None)
    model, figures = fit(lists)
    model.save("listwise.safetensors")

In the spirit of LoCoRe (CVPR 2025) and AMES (ECCV 2024), whose transformers read local descriptors:
this one reads the products of global vectors and, if given, statistics of each pair, such as counts
of inliers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.paths import atomic
from common.retrieval.lists import (
    Labelled,
    ListEncoder,
    label_folds,
    mean_average_precision,
    products,
    train_model,
)

FEATURES = 8  # of a candidate, from the products alone


class ListScorer(nn.Module):
    """Logits that a candidate shows what the query shows; untrained, in the order of the cosines.

    Candidates that change places change places in the result: ranks are features, not positions.

    Args:
        extra: statistics of each pair beside the products.
        width: length of a token.
        layers: of the transformer.
        heads: of its attention.
    """

    def __init__(self, extra: int = 0, *, width: int = 32, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.inward = nn.Linear(FEATURES + extra, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.encoder = ListEncoder(width, layers, heads)
        self.outward = nn.Linear(width, 1)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)
        self.line = nn.Parameter(torch.tensor([10.0, -5.0]))  # of the cosine

    def forward(self, features: Tensor, gram: Tensor, real: Tensor) -> Tensor:
        """Logits `(B, M)`, -inf at padding.

        Args:
            features: `(B, M, FEATURES + extra)` of the candidates, from `features_of`.
            gram: `(B, 1 + M, 1 + M)` products of query and candidates.
            real: `(B, M)` bool, False at padding.
        """
        query = self.query.expand(len(features), 1, -1)
        members = F.pad(real, (1, 0), value=True)
        tokens = torch.cat([query, self.inward(features)], 1)
        encoded = self.encoder(tokens, gram, members)
        slope, shift = self.line
        logits: Tensor = slope * gram[:, 0, 1:] + shift + self.outward(encoded[:, 1:]).squeeze(2)
        return logits.masked_fill(~real, -torch.inf)


class ListwiseReranker:
    """Several scorers, one of each fold of the labels, that give the mean of their probabilities.

    Args:
        models: the scorers.
        settings: their common arguments, `extra`, `width`, `layers` and `heads`.
    """

    def __init__(self, models: list[ListScorer], settings: dict[str, Any]) -> None:
        self.models, self.settings = models, settings

    @torch.no_grad()
    def score(self, gram: Tensor, real: Tensor, extra: Tensor | None = None) -> Tensor:
        """Probabilities `(B, M)` of the candidates, -inf at padding.

        Args:
            gram: `(B, 1 + M, 1 + M)` products of query and candidates.
            real: `(B, M)` bool, False at padding.
            extra: `(B, M, E)` statistics of each pair, those that it was trained with.

        Raises:
            ValueError: `extra` of another kind than it was trained with.
        """
        given = 0 if extra is None else extra.shape[2]
        if given != self.settings["extra"]:
            raise ValueError(
                f"This re-ranker was trained with {self.settings['extra']} statistics of each "
                f"pair and got {given}."
            )
        features = features_of(gram, real, extra)
        total = torch.zeros(real.shape, device=gram.device)
        for model in self.models:
            model.to(gram.device).eval()
            total += model(features, gram, real).sigmoid()
        return (total / len(self.models)).masked_fill(~real, -torch.inf)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        tensors = {
            f"{i}.{name}": value.detach().cpu().contiguous()
            for i, model in enumerate(self.models)
            for name, value in model.state_dict().items()
        }
        card = {"models": len(self.models), **self.settings}
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata={"listwise": json.dumps(card, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> ListwiseReranker:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"listwise: no weights at {path}.")
        try:
            with safe_open(str(path), framework="pt") as file:
                card = json.loads((file.metadata() or {})["listwise"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            models = []
            for i in range(card.pop("models")):
                model = ListScorer(**card)
                own = {k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(f"{i}.")}
                model.load_state_dict(own)
                models.append(model)
        except Exception as error:
            raise ValueError(f"listwise: {path} holds no such re-ranker ({error!r}).") from error
        return cls(models, card)


def fit(
    lists: Labelled,
    *,
    extra: Tensor | None = None,
    epochs: int = 20,
    lr: float = 2e-3,
    folds: int = 4,
    seed: int = 0,
    device: torch.device | None = None,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
) -> tuple[ListwiseReranker, dict[str, float]]:
    """A re-ranker, and out-of-fold mAP of the order given and of its own.

    Each of `folds` models is trained without one fold of the labels, by the cross-entropy of every
    candidate plus that of the relevant ones against the others of their list.

    Args:
        lists: from `labelled_lists`.
        extra: `(L, P, E)` statistics of each pair, of order 1, such as min(inliers, cap) / cap.
        epochs: passes over the lists.
        lr: peak learning rate.
        folds: of the labels; at most as many as there are.
        seed: of the networks and the order of the lists.
        device: where to train; a CPU by default.
        width: length of a token.
        layers: of the transformer.
        heads: of its attention.
    """
    place = torch.device("cpu") if device is None else torch.device(device)
    base = lists.images.vectors
    queries = base.index_select(0, lists.rows.to(base.device))
    gram = products(queries, base, lists.index, lists.index.shape[1], place)
    real = (lists.index >= 0).to(place)
    hits, totals = lists.hits.to(place), lists.totals.to(place)
    features = features_of(gram, real, extra)
    settings = {
        "extra": 0 if extra is None else extra.shape[2],
        "width": width,
        "layers": layers,
        "heads": heads,
    }
    fold_of = torch.from_numpy(label_folds(lists.labels.numpy(), folds, seed)).to(place)
    models: list[ListScorer] = []
    score = torch.empty(real.shape, device=place)
    for fold in range(int(fold_of.max()) + 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + fold)
            model = ListScorer(**settings).to(place)

        def loss_of(rows: Tensor, model: ListScorer = model) -> Tensor:
            logits = model(features[rows], gram[rows], real[rows])
            return _loss(logits, real[rows], hits[rows])

        chosen = (real.any(1) & (fold_of != fold)).nonzero()[:, 0]
        train_model(model, loss_of, chosen, epochs=epochs, lr=lr, seed=seed + fold)
        held = fold_of == fold
        with torch.no_grad():
            score[held] = model(features[held], gram[held], real[held])
        models.append(model)
    before = gram[:, 0, 1:].masked_fill(~real, -torch.inf)
    figures = {
        "order given": mean_average_precision(before, hits, totals),
        "learned order": mean_average_precision(score, hits, totals),
    }
    return ListwiseReranker(models, settings), figures


def _loss(logits: Tensor, real: Tensor, hits: Tensor) -> Tensor:
    """Cross-entropy of the candidates, and of the relevant ones against their list's others."""
    safe = logits.masked_fill(~real, 0.0)
    each = F.binary_cross_entropy_with_logits(safe, hits.to(safe), reduction="none")
    point = (each.masked_fill(~real, 0.0).sum(1) / real.sum(1)).mean()
    far = (real & ~hits).any(1, keepdim=True)
    others = safe.masked_fill(~real | hits, -1e4).logsumexp(1, keepdim=True)
    pairs = F.softplus(others - safe).masked_fill(~(hits & far), 0.0)
    return point + (pairs.sum(1) / hits.sum(1).clamp(min=1)).mean()


def features_of(gram: Tensor, real: Tensor, extra: Tensor | None = None) -> Tensor:
    """`(B, M, FEATURES + E)` of the candidates, 0 at padding.

    Cosine with the query and its place in the list's distribution, rank, likeness to the five best,
    to the five nearest candidates and to all. They move with the columns: nothing depends on order.
    Arguments as of `ListwiseReranker.score`; `extra` is appended.
    """
    cosine = gram[:, 0, 1:].masked_fill(~real, 0.0)
    count = real.sum(1, keepdim=True).clamp(min=1)
    mean = cosine.sum(1, keepdim=True) / count
    deviation = (
        (cosine - mean).masked_fill(~real, 0.0).square().sum(1, keepdim=True) / count
    ).sqrt()
    top = gram[:, 0, 1:].masked_fill(~real, -torch.inf).amax(1, keepdim=True)
    above = (cosine[:, None] > cosine[..., None]) & real[:, None]
    rank = above.sum(2).to(cosine)  # how many are better: copies have one rank
    best = ((rank < 5) & real).to(cosine)
    among = gram[:, 1:, 1:] * real[:, None] * real[..., None]
    to_best = (among * best[:, None]).sum(2) / best.sum(1, keepdim=True).clamp(min=1)
    others = among - torch.diag_embed(among.diagonal(dim1=1, dim2=2))
    # Clamped, and always over five: padding is as good as a candidate that is like nothing.
    density = others.clamp(min=0).topk(min(5, others.shape[2]), dim=2).values.sum(2) / 5
    parts = [
        cosine,
        cosine - torch.where(real.any(1, keepdim=True), top, 0.0),
        cosine - mean,
        (cosine - mean) / (deviation + 1e-3),
        torch.log1p(rank) / 4,
        to_best,
        density,
        among.sum(2) / count,
    ]
    found = torch.stack(parts, 2)
    if extra is not None:
        found = torch.cat([found, extra.to(found)], 2)
    return found * real[..., None]
