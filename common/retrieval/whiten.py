"""PCA whitening of embeddings: fewer dimensions, equal variances, learned on other images.

Jegou and Chum, "Negative evidences and co-occurrences in image retrieval" (ECCV 2012).
"""

from __future__ import annotations

from typing import TypeVar

import torch

from common.retrieval import tiles
from common.types import Embeddings

V = TypeVar("V", Embeddings, torch.Tensor)

_BLOCK = 8_192  # rows per float64 block


class Whitening:
    """Centre, rotate to principal axes, divide by variance^power, normalise.

    Args:
        dim: dimensions to keep, those of largest variance; None keeps all that the data spans.
        power: 0.5 is full whitening, 0.25 half of it (naver/deep-image-retrieval), 0 plain PCA.
        eps: variances are raised to at least `eps` times the largest, so that directions the data
            hardly uses are not blown up.

    Attributes:
        mean_: `(D,)` float64.
        components_: `(dim, D)` float64, orthonormal rows by variance descending; the entry of
            largest magnitude of each row is positive, so that every machine learns the same signs.
        explained_variance_: `(dim,)` float64, without the floor; divided by N - 1.

    Fit it on training embeddings, never on the gallery that is searched.
    """

    def __init__(self, dim: int | None = None, power: float = 0.5, eps: float = 1e-6) -> None:
        if (dim is not None and dim < 1) or not power >= 0 or not eps >= 0:
            raise ValueError(
                f"Whitening needs dim >= 1, power >= 0, eps >= 0; got {dim}, {power}, {eps}."
            )
        self.dim, self.power, self.eps = dim, power, eps

    def fit(self, embeddings: Embeddings | torch.Tensor) -> Whitening:
        """Itself, with the axes of `(N, D)` embeddings; zero rows (unreadable images) do not count.

        Two passes in float64 blocks, so memory is one block and two `(D, D)` matrices.

        Raises:
            ValueError: fewer than two rows, too few for `dim`, or a NaN (names the row).
        """
        rows = tiles.tensor(embeddings)
        blocks = range(0, len(rows), _BLOCK)
        total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        count = 0
        for start in blocks:
            block = rows[start : start + _BLOCK]
            count += int((tiles.finite_norms(block, "train", embeddings, start) > 0).sum())
            total += block.sum(0, dtype=torch.float64)
        rank = min(rows.shape[1], count - 1)
        if rank < 1 or (self.dim or 1) > rank:
            raise ValueError(
                f"Whitening to {self.dim or 'all'} dimensions needs more training rows: {count} "
                f"non-zero rows of {rows.shape[1]} dimensions span {max(rank, 0)} after centring. "
                "Set a smaller dim or give more rows."
            )
        self.mean_ = total / count
        covariance = torch.zeros(len(total), len(total), dtype=torch.float64, device=rows.device)
        for start in blocks:
            block = rows[start : start + _BLOCK]
            block = block[block.any(dim=1)].double() - self.mean_
            covariance.addmm_(block.T, block)
        variance, axes = torch.linalg.eigh(covariance / (count - 1))
        keep = self.dim or rank
        axes = axes.T.flip(0)[:keep]
        largest = axes.abs().argmax(dim=1, keepdim=True)
        self.components_ = axes * axes.gather(1, largest).sign()
        self.explained_variance_ = variance.flip(0)[:keep].clamp(min=0)
        return self

    def transform(self, embeddings: V) -> V:
        """Whitened unit rows `(N, dim)` of the type and dtype given; zero rows stay zero.

        Raises:
            ValueError: not fitted, another D, or a NaN (names the row).
        """
        if not hasattr(self, "components_"):
            raise ValueError("This Whitening has not seen data: call fit first.")
        variance = self.explained_variance_.clamp(min=self.eps * float(self.explained_variance_[0]))
        # Directions of no variance at all (eps 0) carry nothing: weight 0, not infinity.
        weight = torch.where(variance > 0, variance**-self.power, 0.0)
        return projected(embeddings, self.mean_, self.components_ * weight[:, None], "Whitening")


def projected(embeddings: V, mean: torch.Tensor, projection: torch.Tensor, name: str) -> V:
    """Rows minus `mean` `(D,)`, times `projection` `(dim, D)`, normalised; zero rows stay zero.

    The type and dtype given comes back. float64 inside: centring cancels digits, and half precision
    could overflow before the norm.

    Raises:
        ValueError: another D, or a NaN (names the row).
    """
    rows = tiles.tensor(embeddings)
    dim, width = projection.shape
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"{name} was fitted on D={width}, got {tuple(rows.shape)}.")
    mean, turned = mean.to(rows.device), projection.T.to(rows.device)
    new = rows.new_empty(len(rows), dim)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        known = tiles.finite_norms(block, "embeddings", embeddings, start)[:, None] > 0
        moved = (block.double() - mean) @ turned * known
        new[start : start + _BLOCK] = torch.nn.functional.normalize(moved)
    if isinstance(embeddings, Embeddings):
        return Embeddings(embeddings.ids, new, dict(embeddings.card))
    return new


def pca_whiten(
    queries: Embeddings,
    gallery: Embeddings,
    train: Embeddings | None,
    *,
    dim: int | None = None,
    power: float = 0.5,
    eps: float = 1e-6,
) -> tuple[Embeddings, Embeddings]:
    """Queries and gallery whitened with axes learned on the training embeddings.

    It can cost accuracy on few training images or embeddings that are already compact: measure it.

    Args:
        queries: `(Q, D)` embeddings.
        gallery: `(N, D)` embeddings.
        train: `(T, D)` embeddings of the training images, T > dim.
        dim: dimensions to keep; None keeps all that the training images span.
        power: 0.5 whitens fully, 0.25 half, 0 only rotates.
        eps: floor of a variance, relative to the largest.

    Raises:
        ValueError: no training embeddings, or what `Whitening` refuses.
    """
    if train is None:
        raise ValueError("pca_whiten learns on training embeddings, and this run has none.")
    whitening = Whitening(dim, power, eps).fit(train)
    return whitening.transform(queries), whitening.transform(gallery)
