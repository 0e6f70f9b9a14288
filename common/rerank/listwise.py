"""A learned re-ranker as a step: trained on one's own candidates, or with given weights.

    - {name: knn, k: 100}
    - {name: listwise, top: 100, epochs: 20}

Networks of your own, with their own weights, come in by `hook`: `{name: hook, function:
"my_package.my_module:rerank", arguments: {weights: ames.safetensors}}`.
"""

from __future__ import annotations

import warnings

import torch

from common.notes import Notes
from common.rerank.candidates import rescored
from common.rerank.listmodel import ListwiseReranker, fit
from common.rerank.voting import BUDGET, check_rows
from common.retrieval import tiles
from common.retrieval.lists import labelled_lists, products
from common.types import Embeddings, Neighbors


def listwise(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    train: Embeddings | None,
    train_labels: torch.Tensor,
    *,
    top: int = 100,
    epochs: int = 20,
    lr: float = 2e-3,
    most: int = 1000,
    seed: int = 0,
    weights: str = "",
    save: str = "",
    device: torch.device | None = None,
    notes: Notes | None = None,
) -> Neighbors:
    """The first `top` neighbors by a learned probability, each in the light of the others.

    A small transformer over the products of the query and its candidates is trained here, on the
    train images' own candidates, in at most a minute or two on a CPU; four models, each without a
    quarter of the labels, vote. If their order of labels they have not seen is not better than the
    one by cosine, the neighbors come back as they are, with a warning. The figures are in the
    notes. Deterministic by seed. It reads the cosines of `queries` and `gallery`, not the scores
    of the neighbors: the steps before it only choose the candidates, and steps that change the
    vectors, but not `train`, make its training less like its task. Put it behind a plain `knn` or
    `superglobal`. Neighbors beyond `top` stay behind.

    Args:
        neighbors: `(Q, K)` rows of the gallery.
        queries: `Q` embeddings.
        gallery: `(N, D)` embeddings.
        train: `(T, D)` embeddings of labelled images, of the same model; not read with `weights`.
        train_labels: `(T,)` int64; rows of label -1 are left out.
        top: candidates per query.
        epochs: passes over the train lists.
        lr: peak learning rate.
        most: train images whose lists are used.
        seed: of the networks and the order of the lists.
        weights: a file that `save` wrote: nothing is trained or compared.
        save: where to keep the trained re-ranker.
        device: where to compute.
        notes: gets the out-of-fold mAP before and after.

    Raises:
        ValueError: no train embeddings and no weights, too few labels, neighbors of another
            gallery, NaN in an embedding, a file of another kind.
        FileNotFoundError: no such weights.
    """
    if top < 2 or epochs < 1:
        raise ValueError(
            f"listwise: top must be at least 2 and epochs at least 1, got {top}, {epochs}."
        )
    check_rows(neighbors.index, len(gallery), "listwise", "the gallery")
    for name, part in (("queries", queries), ("gallery", gallery)):
        tiles.finite_norms(part.vectors, name, part, 0)
    place = torch.device("cpu") if device is None else torch.device(device)
    if weights:
        model = ListwiseReranker.load(weights)
    else:
        lists = labelled_lists(
            train, train_labels, top, most=most, seed=seed, step="listwise", device=device
        )
        model, figures = fit(lists, epochs=epochs, lr=lr, seed=seed, device=place)
        for name, value in figures.items():
            if notes is not None:
                notes.numbers[f"listwise: out-of-fold mAP@{top}, {name}"] = value
        if save:
            model.save(save)
        if not figures["learned order"] > figures["order given"]:
            warnings.warn(
                f"listwise: on unseen labels the learned order reaches mAP "
                f"{figures['learned order']:.4f}, the order given {figures['order given']:.4f}: "
                "the neighbors stay as they are.",
                stacklevel=2,
            )
            return neighbors
    index = neighbors.index[:, :top]
    count = index.shape[1]
    step = max(1, BUDGET // (64 * max(1, count) ** 2))
    head = neighbors.score[:, :top].clone()
    for start in range(0, len(index), step):
        rows = slice(start, start + step)
        gram = products(queries.vectors[rows], gallery.vectors, index[rows], count, place)
        head[rows] = model.score(gram, (index[rows] >= 0).to(place)).to(head)
    return rescored(neighbors, head)
