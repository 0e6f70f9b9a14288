"""What steps that look at image files share: pairs to learn from, scores of some candidates.

A matcher of images is asked about a shortlist only. What it says has to be learnt from pairs that
are chosen in the same way, near ones: among random pairs everything looks easy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from common.notes import Notes
from common.rerank.evidence import Evidence
from common.rerank.geometry import Settings
from common.retrieval.search import search
from common.types import Embeddings, Neighbors

_EACH = 10  # training pairs of one image: more of them say the same again


@dataclass
class TrainingPairs:
    """Pairs of training images, and whether they are of one class.

    Attributes:
        a: `(P,)` int64 rows of the training images.
        b: `(P,)` int64.
        labels: `(P, 2)` int64.
        cosine: `(P,)` float32, what the embeddings say.
    """

    a: np.ndarray
    b: np.ndarray
    labels: np.ndarray
    cosine: np.ndarray

    def __len__(self) -> int:
        return len(self.a)

    @property
    def same(self) -> np.ndarray:
        """`(P,)` bool."""
        return np.asarray(self.labels[:, 0] == self.labels[:, 1])


def training_pairs(
    train: Embeddings | None,
    labels: torch.Tensor,
    paths: np.ndarray,
    most: int,
    top: int,
    seed: int = 0,
) -> TrainingPairs:
    """At most `most` pairs of labelled images with one of their `top` nearest, drawn by `seed`.

    The nearest and some of the others of up to `most / 10` images. Both orders of a pair are one.

    Raises:
        ValueError: no training images, lengths that differ, or not both kinds of pairs.
    """
    if train is None:
        raise ValueError(
            "Training pairs need labelled train embeddings and this pipeline has none: remove the "
            "step or run infer with the train split."
        )
    if not len(train) == len(labels) == len(paths):
        raise ValueError(
            f"Training pairs need one label and path per image, got {len(train)} embeddings, "
            f"{len(labels)} labels and {len(paths)} paths."
        )
    if most < 1 or top < 1:
        raise ValueError(f"Training pairs need pairs and top of at least 1, got {most}, {top}.")
    label = labels.cpu().numpy()
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(label >= 0)
    asking = np.sort(rng.permutation(known)[: max(most // _EACH, 1)])
    near = search(train.select(train.ids[asking]), train, top, exclude_self=True)
    index, score = near.index.cpu().numpy(), near.score.cpu().numpy()
    allowed = (index >= 0) & (label[index] >= 0)
    # The nearest always, the others by lot.
    luck = rng.random(index.shape)
    luck[:, 0] = -1
    luck[~allowed] = 2
    chosen = np.argsort(luck, axis=1, kind="stable")[:, :_EACH]
    rows, columns = np.repeat(np.arange(len(asking)), chosen.shape[1]), chosen.ravel()
    kept = allowed[rows, columns]
    rows, columns = rows[kept], columns[kept]
    a, b = asking[rows], index[rows, columns]
    _, first = np.unique(np.sort(np.column_stack([a, b]), axis=1), axis=0, return_index=True)
    first = np.sort(first)[:most]
    pairs = TrainingPairs(
        a[first],
        b[first],
        label[np.column_stack([a[first], b[first]])],
        score[rows[first], columns[first]],
    )
    if not len(pairs) or pairs.same.all() or not pairs.same.any():
        raise ValueError(
            f"All {len(pairs)} training pairs are of one kind: nothing to learn from them. Classes "
            f"need two images and lists (top={top}) long enough to hold both kinds."
        )
    return pairs


def add_scores(
    neighbors: Neighbors, row: np.ndarray, column: np.ndarray, gain: np.ndarray
) -> Neighbors:
    """The same neighbors, in the same order, with `(P,)` gains added at rows and columns."""
    device = neighbors.score.device
    score = neighbors.score.clone()
    place = (torch.from_numpy(row).to(device), torch.from_numpy(column).to(device))
    score[place] += torch.from_numpy(np.asarray(gain)).to(device, score.dtype)
    return Neighbors(neighbors.index, score)


def note_matches(
    notes: Notes,
    neighbors: Neighbors,
    row: np.ndarray,
    column: np.ndarray,
    found: Evidence,
    settings: Settings,
) -> None:
    """Note for each query the verified neighbor with the most inliers, for the report to choose.

    `common.report.matches` draws a few of them, once it is known which are right.
    """
    order = np.lexsort((column, -found.inliers, row))
    first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
    first = first[found.inliers[first] > 0]
    index = neighbors.index.cpu().numpy()
    notes.matches.append(
        {
            "matcher": settings.name,
            "settings": asdict(settings),
            "query": row[first],
            "gallery": index[row[first], column[first]],
            "inliers": found.inliers[first],
        }
    )


def resolve_device(device: str | torch.device) -> str:
    """The device's name; `auto` is a GPU when there is one."""
    if str(device) == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(device)
