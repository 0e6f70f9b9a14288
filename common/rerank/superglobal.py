"""Re-ranking by global vectors alone: refined candidates, then a refined query.

Shao et al., "Global features are all you need for image retrieval and reranking" (ICCV 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from common.rerank.candidates import blocks, rescored
from common.rerank.voting import check_rows
from common.retrieval import tiles
from common.types import Embeddings, Neighbors


def superglobal(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    *,
    top: int = 400,
    k: int = 9,
    beta: float = 0.15,
    best: int = 10,
    device: torch.device | None = None,
) -> Neighbors:
    """The first `top` neighbors by the mean of two scores; the others stay behind them.

    Each candidate becomes the mean of itself (weight 1) and its `k` nearest among the candidates
    (weight beta * similarity), and is scored with the query; then with the dimension-wise maximum
    of the `best` refined candidates. Defaults are the authors'. Unlike theirs, a candidate is left
    out of its own neighbors by its place, not by being the most similar, and negative similarities
    weigh 0. Cheap enough for every query; `knn` must have found at least `top`.

    Args:
        neighbors: `(Q, K)` rows of the gallery.
        queries: `Q` embeddings; a zero row (an unreadable image) scores 0 with everything.
        gallery: `(N, D)` embeddings.
        top: candidates per query; more than K means all.
        k: neighbors that refine a candidate.
        beta: what their similarity is worth beside the candidate itself.
        best: refined candidates whose maximum is the second query.
        device: where to compute.

    Raises:
        ValueError: a setting out of range, neighbors of another gallery, NaN in an embedding.
    """
    if top < 1 or k < 0 or best < 1 or not beta >= 0:
        raise ValueError(
            f"superglobal: top and best must be at least 1, k and beta at least 0, got top={top}, "
            f"k={k}, beta={beta}, best={best}."
        )
    check_rows(neighbors.index, len(gallery), "superglobal", "the gallery")
    parts = []
    place = neighbors.index.device if device is None else torch.device(device)
    with torch.no_grad(), tiles.full_precision(place):
        for _, query, found, real in blocks(neighbors, queries, gallery, top, place, copies=3):
            refined = _refined(found, real, k, beta)
            first = (refined @ query[..., None]).squeeze(2)
            order = first.masked_fill(~real, -torch.inf).argsort(
                dim=1, descending=True, stable=True
            )
            chosen = order[:, :best, None].expand(-1, -1, refined.shape[2])
            leading = real.gather(1, order[:, :best])[..., None]
            peak = refined.gather(1, chosen).masked_fill(~leading, -torch.inf).amax(1)
            peak = torch.where(leading.any(1) & query.any(1, keepdim=True), peak, 0.0)
            second = (refined @ peak[..., None]).squeeze(2)
            parts.append(((first + second) / 2).to(neighbors.score.device))
    return rescored(neighbors, torch.cat(parts)) if parts else neighbors


def _refined(found: torch.Tensor, real: torch.Tensor, k: int, beta: float) -> torch.Tensor:
    """Candidates `(B, M, D)` averaged with their `k` nearest; not normalised, as the authors'."""
    size, count, dim = found.shape
    k = min(k, count - 1)
    if k < 1:
        return found
    similarity = found @ found.mT
    similarity.masked_fill_(~real[:, None], 0.0)
    similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    # Ties are copies: which of them is taken does not change the sum.
    weight, near = similarity.topk(k, dim=2)
    weight = beta * weight.clamp(min=0)
    near = near + count * torch.arange(size, device=near.device)[:, None, None]
    moved = F.embedding_bag(
        near.flatten(0, 1), found.flatten(0, 1), mode="sum", per_sample_weights=weight.flatten(0, 1)
    )
    return (found + moved.view(size, count, dim)) / (1 + weight.sum(2, keepdim=True))
