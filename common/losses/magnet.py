"""Magnet loss: rows against clusters, of which a class may have several.

clusters = cluster_index(vectors, labels, k=3)      # common.losses.clusters, once per epoch
loss = MagnetLoss()(embeddings, labels, clusters[rows])
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.losses.batch import (
    BatchLoss,
    Pairs,
    check_positive,
    distances,
    masked_logsumexp,
    mean,
)


class MagnetLoss(BatchLoss):
    """Magnet loss: a row nearer to its own cluster than to all clusters of other classes.

    Rippel et al., ICLR 2016, eq. 4 and 5: mean over rows of max(0, d(own) / 2v + alpha +
    log sum of e^(-d(c) / 2v)) over the clusters c of other classes, d the squared distance to a
    cluster's mean in the batch, v = sum of d(own) / (rows - 1). Means and v have gradients. For
    classes that look several ways; each batch wants a cluster, those of other classes nearest to
    it, and some rows of each. Public ports become NaN as v goes to 0.

    Args:
        alpha: the gap, in units of v.
        normalize: rows are scaled to length 1 first.

    Raises:
        ValueError: alpha not positive.
    """

    def __init__(self, alpha: float = 1.0, *, normalize: bool = True) -> None:
        super().__init__()
        check_positive(alpha=alpha)
        self.alpha, self.normalize = alpha, normalize

    def forward(self, embeddings: Tensor, labels: Tensor, clusters: Tensor | None = None) -> Tensor:
        """Scalar loss of (B, D) embeddings, (B,) int64 labels, -1 ignored.

        Without (B,) int64 clusters each class is one. Two classes never share a cluster: equal
        numbers in them are two clusters.

        Raises:
            ValueError: tensors of another shape or type, a label below -1.
        """
        if clusters is not None and (
            clusters.shape != labels.shape or clusters.dtype != torch.int64
        ):
            raise ValueError(
                f"clusters must be int64 of the labels' shape {tuple(labels.shape)}, got "
                f"{clusters.dtype} {tuple(clusters.shape)}"
            )
        rows, known = self._rows(embeddings, labels)
        clusters = known if clusters is None else clusters[labels >= 0]
        with torch.autocast(rows.device.type, enabled=False):
            return self._against(rows, known, clusters)

    def _against(self, rows: Tensor, labels: Tensor, clusters: Tensor) -> Tensor:
        both = torch.stack([labels, clusters])
        found, code = torch.unique(both, dim=1, return_inverse=True)
        count = torch.bincount(code, minlength=found.shape[1])[:, None]
        centers = rows.new_zeros(len(count), rows.shape[1]).index_add(0, code, rows) / count
        distance = distances(rows, centers, squared=True)
        own = distance.gather(1, code[:, None])[:, 0]
        # Where all rows lie on their means it is 0, or what rounding makes of it.
        floor = torch.finfo(rows.dtype).eps * rows.detach().square().sum() + 1e-30
        variance = torch.maximum(own.sum(), floor) / max(1, len(rows) - 1)
        scaled = distance / (2 * variance)
        impostor = labels[:, None] != found[0]
        losses = own / (2 * variance) + self.alpha + masked_logsumexp(-scaled, impostor)
        return mean(losses[impostor.any(1)].relu())

    def _mass(self, pairs: Pairs) -> Tensor:
        return pairs.far.any(1).sum()
