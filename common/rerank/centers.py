"""Classes by their centres: means of a class's images without outliers, and the head's own.

ranking:
  - {name: knn, k: 500}
  - {name: vote, top: 500, power: 1.0, reduce: max}
  - {name: center_mix, weight: 0.5}

Origins: Humpback 2019 3rd place (means), Happywhale 2022 1st place (the head's logits). Afterwards
an `index` is a class, as after `vote`.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from common.rerank.labels import class_cosines, logit_mix
from common.rerank.voting import IMAGES, check_rows, stack
from common.retrieval import tiles
from common.types import Embeddings, Neighbors


def class_centers(
    queries: Embeddings,
    gallery: Embeddings,
    gallery_labels: torch.Tensor,
    *,
    k: int = 100,
    keep: float = 0.75,
    cosine: float = 0.5,
    rounds: int = 2,
    fewest: int = 4,
) -> Neighbors:
    """The `k` classes whose mean image is most like the query; outliers do not count.

    In place of `knn` and `vote`: few and noisy images of a class become one that is better than
    each, but a class that looks different from two sides has a centre that is like neither. Origin:
    Humpback 2019 3rd place. Its rule of outliers is `trimmed_centers`.

    Args:
        queries: Q embeddings.
        gallery: G embeddings.
        gallery_labels: `(G,)` int64, -1 unknown: of no class.
        k: classes per query.
        keep: see `trimmed_centers`.
        cosine: the same.
        rounds: the same; 0: plain means.
        fewest: the same.

    Raises:
        ValueError: a gallery without labels, settings out of range.
    """
    centers = trimmed_centers(
        gallery, gallery_labels, keep=keep, cosine=cosine, rounds=rounds, fewest=fewest
    )
    return _nearest(queries, centers, k)


def class_logits(
    queries: Embeddings,
    centers: torch.Tensor | None,
    gallery_labels: torch.Tensor,
    *,
    k: int = 100,
) -> Neighbors:
    """The `k` classes that the head itself names: cosines to its centres, the best sub-centre.

    In place of `knn` and `vote`. Classes without an image in the gallery are left out: the head
    was trained with others, or with another gallery. Origin: every winner that reads the head
    alone; Happywhale 2022 1st place mixes it with nearest images half and half (`logit_mix`).

    Args:
        queries: Q embeddings.
        centers: `(C, K, D)` unit class centres of the head.
        gallery_labels: `(G,)` int64, -1 unknown.
        k: classes per query.

    Raises:
        ValueError: the run has no class centres, or has none of a class of the gallery.
    """
    if centers is None:
        raise ValueError(
            "class_logits needs the head's class centres and this run has none: use knn and vote, "
            "class_centers, or train with a margin head."
        )
    check_rows(gallery_labels, len(centers), "class_logits", "centers")
    present = torch.zeros(len(centers), dtype=torch.bool)
    present[gallery_labels[gallery_labels >= 0].cpu()] = True
    return _nearest(queries, centers * present[:, None, None].to(centers), k)


def center_mix(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    gallery_labels: torch.Tensor,
    *,
    weight: float = 0.5,
    top: int = 100,
    keep: float = 0.75,
    cosine: float = 0.5,
    rounds: int = 2,
    fewest: int = 4,
) -> Neighbors:
    """Votes mixed with mean images: (1 - weight) * vote + weight * cosine to the class centre.

    In label space, after `vote`; what `logit_mix` does with the head's centres, for runs without
    such a head. Both terms must be of one scale, as with power 1 and reduce max. Ours.

    Args:
        neighbors: `(Q, K)` classes.
        queries: Q embeddings.
        gallery: G embeddings.
        gallery_labels: `(G,)` int64, -1 unknown.
        weight: of the centres, 0 to 1.
        top: so many classes with the nearest centres are candidates beside the voted ones.
        keep: see `trimmed_centers`.
        cosine: the same.
        rounds: the same.
        fewest: the same.

    Raises:
        ValueError: a gallery without labels, settings out of range.
    """
    centers = trimmed_centers(
        gallery, gallery_labels, keep=keep, cosine=cosine, rounds=rounds, fewest=fewest
    )
    return logit_mix(neighbors, queries, centers, weight=weight, top=top)


def trimmed_centers(
    gallery: Embeddings,
    gallery_labels: torch.Tensor,
    *,
    keep: float = 0.75,
    cosine: float = 0.5,
    rounds: int = 2,
    fewest: int = 4,
) -> torch.Tensor:
    """`(C, 1, D)` float32 unit mean of each class's images without its outliers.

    A round takes the mean of a class, then drops the images whose cosine to it is not above
    `cosine`, but leaves at least the nearest floor(keep * n) of its n. The next round starts from
    what is left; classes of less than `fewest` images lose none, so one image is its own centre.
    C is the highest label + 1; a class without an image, or whose images cancel out, is zero.
    Origin: Humpback 2019 3rd place, its two rounds, 3/4, .5 and 4 (ties: the lower row stays; each
    image there was in several views, here views are averaged before).

    Args:
        gallery: G embeddings.
        gallery_labels: `(G,)` int64, -1 unknown: left out.
        keep: share that stays at least.
        cosine: images above it always stay.
        rounds: how often outliers are dropped; 0: plain means.
        fewest: classes with less images are not trimmed.

    Raises:
        ValueError: no labelled image, lengths that differ, NaN, settings out of range.
    """
    if not 0 < keep <= 1 or rounds < 0 or fewest < 1:
        raise ValueError(
            "class centres: keep must be in (0, 1], rounds at least 0 and fewest at least 1, got "
            f"{keep}, {rounds}, {fewest}."
        )
    if len(gallery) != len(gallery_labels):
        raise ValueError(f"class centres: {len(gallery)} images but {len(gallery_labels)} labels.")
    tiles.finite_norms(gallery.vectors, "gallery", gallery, 0)
    rows = torch.nonzero(gallery_labels.to(gallery.vectors.device) >= 0)[:, 0]
    if not len(rows):
        raise ValueError(
            "class centres are means of labelled images and the gallery has none: use knn."
        )
    labels = gallery_labels.to(rows.device)[rows]
    classes = int(labels.max()) + 1
    centers = _means(gallery.vectors, rows, labels, classes)
    for _ in range(rounds):
        near = _cosines(gallery.vectors, rows, labels, centers)
        order = near.argsort(descending=True, stable=True)
        order = order[labels[order].argsort(stable=True)]
        count = torch.bincount(labels, minlength=classes)
        passing = torch.bincount(labels[near > cosine], minlength=classes)
        # Whole numbers before the floor: .7 * 10 is a little less than 7.
        least = torch.floor(count * keep + 1e-9).long().clamp(min=1)
        stays = torch.where(count < fewest, count, torch.maximum(passing, least))
        sorted_labels = labels[order]
        rank = (
            torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[sorted_labels]
        )
        kept = order[rank < stays[sorted_labels]].sort().values
        if len(kept) == len(rows):
            break
        rows, labels = rows[kept], labels[kept]
        centers = _means(gallery.vectors, rows, labels, classes)
    return centers[:, None]


def _means(
    vectors: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, classes: int
) -> torch.Tensor:
    """`(C, D)` unit means; some images at a time, for all at once are a second gallery."""
    total = torch.zeros(classes, vectors.shape[1], device=vectors.device)
    for part in torch.split(torch.arange(len(rows), device=rows.device), IMAGES):
        total.index_add_(0, labels[part], vectors[rows[part]].float())
    return normalize(total, dim=1)


def _cosines(
    vectors: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, centers: torch.Tensor
) -> torch.Tensor:
    """`(N,)` of each image to the centre of its own class."""
    parts = torch.split(torch.arange(len(rows), device=rows.device), IMAGES)
    return torch.cat([(vectors[rows[p]].float() * centers[labels[p]]).sum(1) for p in parts])


def _nearest(queries: Embeddings, centers: torch.Tensor, k: int) -> Neighbors:
    if k < 1:
        raise ValueError(f"class centres: k must be at least 1, got {k}.")
    none = torch.zeros(len(queries), 0, device=queries.vectors.device)
    parts = [best for _, _, best in class_cosines(queries, centers, k)]
    return stack(parts, Neighbors(none.long(), none))
