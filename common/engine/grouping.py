"""What the `source:` of the grouped samplers means while a model trains: a csv, or its vectors now.

groups = Grouping(table, classes, root=root, column="landmark_id", embed=embed, centers=centers)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from common.data.assignment import hard_partners
from common.data.grouping import cluster_classes, read_categories
from common.engine import distributed
from common.losses.clusters import cluster_index, nearest_impostors
from common.losses.pair_head import PairHead
from common.types import Embeddings, Table

IMAGES = 4  # of each class that are embedded: the mean of more hardly moves, and costs a pass


class Grouping:
    """Groups of each row's class, the same on all processes; call with source and number.

    Args:
        table: the rows that the sampler draws from.
        classes: `(C,)` names of the classes, as text; a label is a position in it.
        root: the data folder, where a csv is looked for.
        column: of the labels in that csv.
        embed: embeddings of a table by the model as it is now; called on every process.
        centers: `(C, K, D)` class centres of the head as they are now, or None.
        pair_head: the loss's comparison of two embeddings as it is now, or None.
        seed: of the k-means.
    """

    def __init__(
        self,
        table: Table,
        classes: np.ndarray,
        *,
        root: Path,
        column: str,
        embed: Callable[[Table], Embeddings],
        centers: Callable[[], torch.Tensor | None],
        pair_head: Callable[[], PairHead | None] = lambda: None,
        seed: int = 0,
    ) -> None:
        self.table, self.classes, self.root, self.column = table, classes, root, column
        self.embed, self.centers, self.seed = embed, centers, seed
        self.pair_head = pair_head

    def __call__(self, source: str, number: int) -> np.ndarray:
        """`(N,)` group of each row; 0 for label -1.

        Raises:
            ValueError: centers of a loss that has none, more clusters than classes, a csv that
                `read_categories` refuses.
        """
        if source == "embeddings":
            groups = self._clusters(*self._embedded(), number)
        elif source == "centers":
            groups = self._clusters(*self._centred(), number)
        else:
            groups = read_categories(source, self.classes, root=self.root, column=self.column)
        labels = self.table.labels
        return np.where(labels >= 0, groups[labels.clip(0)], 0)

    def looks(self, k: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """`(N,)` cluster of each row inside its class, -1 for label -1, and those near to each.

        For `magnet_clusters`: all labelled images are embedded.

        Args:
            k: clusters per class.
            count: clusters of other classes to list for each, nearest first; -1 pads.
        """
        labels = torch.from_numpy(self.table.labels)
        rows = torch.nonzero(labels >= 0)[:, 0]
        vectors = self.embed(self.table.take(rows.numpy())).vectors
        known, of = labels[rows], torch.full_like(labels, -1)
        of[rows] = clusters = _first_process_has(cluster_index(vectors, known, k, seed=self.seed))
        near = _first_process_has(nearest_impostors(vectors, known, clusters, count))
        return of.numpy(), near.numpy()

    def partners(
        self, noise: Sequence[float], *, by: str, unknown: bool, limit: int, seed: Sequence[int]
    ) -> np.ndarray:
        """`(rounds, N)` a hard negative for each labelled row, -1 for others; for `assigned_pairs`.

        All labelled images are embedded, with `unknown` the others too, and compared within blocks
        of `limit`; see `common.data.assignment.hard_partners`.

        Args:
            noise: its height in each round.
            by: `head` compares by the probability of the loss's pair head, `cosine` as it says.
            unknown: whether rows labelled -1 may be negatives.
            limit: rows of a block.
            seed: of the noise.

        Raises:
            ValueError: by=head, and no term of the loss has one.
        """
        head = self.pair_head()
        if by == "head" and head is None:
            raise ValueError(
                "train.sampler.by=head: no term of the loss compares pairs; add siamese, or choose "
                "cosine."
            )
        labels = self.table.labels
        rows = np.flatnonzero((labels >= 0) | unknown)
        vectors = self.embed(self.table.take(rows)).vectors.float()

        def score(part: np.ndarray) -> np.ndarray:
            some = vectors[torch.from_numpy(part)]
            return _probabilities(head, some) if by == "head" and head else (some @ some.T).numpy()

        near = hard_partners(labels[rows], vectors.numpy(), score, noise, limit=limit, seed=seed)
        found = np.full((len(noise), len(labels)), -1, np.int64)
        found[:, rows] = np.where(near >= 0, rows[near], -1)
        return _first_process_has(torch.from_numpy(found)).numpy()

    def _embedded(self) -> tuple[np.ndarray, np.ndarray]:
        """Vectors and labels of the first images of each class."""
        labels = self.table.labels
        order = np.argsort(labels, kind="stable")
        ordered = labels[order]
        number = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        rows = order[(ordered >= 0) & (number < IMAGES)]
        return self.embed(self.table.take(rows)).vectors.float().numpy(), labels[rows]

    def _centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean centre of each class that has images."""
        centers = self.centers()
        if centers is None:
            raise ValueError(
                "train.sampler.source=centers: no term of the loss has class centres; choose "
                "embeddings."
            )
        present = np.unique(self.table.labels[self.table.labels >= 0])
        return centers.float().mean(1).cpu().numpy()[present], present

    def _clusters(self, vectors: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
        """`(C,)` cluster of each class, found by the first process."""
        found = np.zeros(len(self.classes), np.int64)
        found[labels] = cluster_classes(vectors, labels, number, self.seed)
        return _first_process_has(torch.from_numpy(found)).numpy()


def _probabilities(head: PairHead, rows: torch.Tensor) -> np.ndarray:
    """`(n, n)` probability that two of the `(n, D)` rows are of one class; 1 on the diagonal."""
    rows = rows.to(head.share.device)
    i, j = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
    said = head.ask(rows, rows, i, j).sigmoid()
    table = torch.eye(len(rows), dtype=said.dtype, device=rows.device)
    table[i, j] = table[j, i] = said
    return np.asarray(table.cpu().numpy())


def _first_process_has(found: torch.Tensor) -> torch.Tensor:
    """What the first process found, of one shape on all, on the CPU of every process."""
    if not distributed.joined():
        return found
    shared = found.cuda() if dist.get_backend() == "nccl" else found.clone()
    dist.broadcast(shared, 0)
    return shared.cpu()
