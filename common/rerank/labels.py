"""From similar images to classes: votes of the neighbors, mixed with the classifier's logits.

The recognition winners' steps: landmarks 2020 1st (Henkel and Singer, arXiv 2010.01650) and 3rd
place (Ha et al., arXiv 2010.05350), Happywhale 2022 1st place. Afterwards an `index` is a class:
see `decide`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from common.rerank.voting import BUDGET, check_rows, group, row_range, stack, voters
from common.retrieval import tiles
from common.types import Embeddings, Neighbors


def vote(
    neighbors: Neighbors,
    gallery_labels: torch.Tensor,
    queries: Embeddings | None,
    centers: torch.Tensor | None,
    *,
    top: int = 5,
    power: float = 8.0,
    class_power: float = 0.0,
    floor: float = 1e-8,
    reduce: str = "sum",
) -> Neighbors:
    """Classes by the votes of the best neighbors: sum of cosine^power * class_cosine^class_power.

    `index` of the result is a class, `(Q, top)`, each class once; ties: lower class first.
    Neighbors whose label is -1 do not vote, the next one takes their place. Origins: landmarks 2020
    3rd place (power 8, class_power 12 in the write-up; 9, 10 and the floor in the shipped
    notebook), 2020 1st place (top 3, power 1, per model, then `blend_scores(..., missing="zero")`),
    Happywhale 2022 1st place (top 500, power 1, reduce max).

    Args:
        neighbors: `(Q, K)` rows of the gallery.
        gallery_labels: `(G,)` int64, -1 unknown.
        queries: `Q` embeddings; only read when `class_power` is not 0.
        centers: `(C, K, D)` unit class centres; a class scores by its best sub-centre.
        top: how many labelled neighbors vote.
        power: exponent of the similarity. Negative similarities count as 0, except with power 1,
            where they are added as they are (scores after `gallery_penalty` may be negative).
        class_power: exponent of the class cosine; 0 leaves the head out.
        floor: smallest class cosine: an even power would turn a negative one into support.
        reduce: `sum` of a class's votes or their `max`.

    Raises:
        ValueError: `class_power` without centres, labels that do not cover the gallery, a setting
            out of range.
    """
    if reduce not in ("sum", "max"):
        raise ValueError(f"vote: reduce must be sum or max, got {reduce!r}.")
    if top < 1 or not power >= 0 or not class_power >= 0:
        raise ValueError(
            f"vote: top must be at least 1, power and class_power at least 0, got {top}, {power}, "
            f"{class_power}."
        )
    if class_power and (centers is None or queries is None):
        raise ValueError(
            "vote: class_power needs the head's class centres and this run has none: "
            "set class_power: 0 or train with a margin head."
        )
    device, width = neighbors.index.device, neighbors.index.shape[1]
    gallery_labels = gallery_labels.to(device)
    check_rows(neighbors.index, len(gallery_labels), "vote", "gallery_labels")
    head = class_power and queries is not None and centers is not None
    if head and centers is not None:
        check_rows(gallery_labels, len(centers), "vote", "centers")
    per_class = centers[0].numel() if head and centers is not None else 1
    block = max(1, BUDGET // max(min(top, width) * per_class, width, 1))
    parts = []
    for start in range(0, len(neighbors), block):
        rows = slice(start, start + block)
        labels, votes = voters(neighbors.index[rows], neighbors.score[rows], gallery_labels, top)
        if power != 1:
            votes = votes.clamp(min=0).pow(power)
        if head and queries is not None and centers is not None:
            cosine = _class_cosine(queries.vectors[rows].to(device), centers.to(device), labels)
            votes = votes * cosine.clamp(min=floor).pow(class_power)
        parts.append(group(labels, votes, reduce=reduce))
    return stack(parts, neighbors)


def logit_mix(
    neighbors: Neighbors,
    queries: Embeddings,
    centers: torch.Tensor | None,
    *,
    weight: float = 0.5,
    top: int = 100,
) -> Neighbors:
    """Votes mixed with the head: (1 - weight) * vote + weight * class cosine, per class.

    In label space, after `vote`. Candidates are the voted classes and the head's `top` best; a
    class without a vote takes the row's lowest vote (its own cannot be higher). Origin: Happywhale
    2022 1st place, kNN (`vote` with top 500, power 1, reduce max) and logits half and half; both
    terms must be of one scale, which holds for cosines. The rule for classes without a vote is
    ours.

    Raises:
        ValueError: the run has no class centres, `weight` is outside [0, 1], top below 1, NaN in a
            query.
    """
    if centers is None:
        raise ValueError(
            "logit_mix needs the head's class centres and this run has none: "
            "remove the step or train with a margin head."
        )
    if not 0 <= weight <= 1 or top < 1:
        raise ValueError(
            f"logit_mix: weight must be in [0, 1], top at least 1, got {weight}, {top}."
        )
    check_rows(neighbors.index, len(centers), "logit_mix", "centers")
    low, _ = row_range(neighbors)
    parts = []
    for rows, logits, best in class_cosines(queries, centers, top, neighbors.index.device):
        # A class with a vote that the head names too is here twice: its vote is the higher one.
        votes = torch.cat([neighbors.score[rows], low[rows, None].expand_as(best.score)], 1)
        index = torch.cat([neighbors.index[rows], best.index], 1)
        head = logits.gather(1, index.clamp(min=0))
        parts.append(group(index, (1 - weight) * votes + weight * head, reduce="max"))
    return stack(parts, neighbors)


def class_cosines(
    queries: Embeddings, centers: torch.Tensor, top: int, device: torch.device | None = None
) -> Iterator[tuple[slice, torch.Tensor, Neighbors]]:
    """Rows, their cosines to all classes `(B, C)`, and their `top` best classes, in blocks.

    A class counts by its best sub-centre; one whose centres are all zero is unknown to the head:
    its cosine is 0, and it is not among the best.

    Raises:
        ValueError: NaN in a query (names row and id).
    """
    place = queries.vectors.device if device is None else device
    tiles.finite_norms(queries.vectors, "queries", queries, 0)
    flat, subs = centers.flatten(0, 1).to(place).float(), centers.shape[1]
    absent = ~centers.to(place).flatten(1).any(1)
    block = max(1, BUDGET // max(len(flat), 1))
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        vectors = queries.vectors[rows].to(place).float()
        logits = (vectors @ flat.T).view(len(vectors), -1, subs).amax(2)
        score, index = logits.masked_fill(absent, -torch.inf).topk(min(top, len(centers)), dim=1)
        index = index.masked_fill(score == -torch.inf, -1)
        yield rows, logits, Neighbors(index, score).sorted()


def _class_cosine(
    vectors: torch.Tensor, centers: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cosine of each row's vector to its own candidate classes only, `(B, D), (B, T) -> (B, T)`."""
    chosen = centers[labels.clamp(min=0)].float()
    return torch.einsum("bd,btkd->btk", vectors.float(), chosen).amax(-1)
