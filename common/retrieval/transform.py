"""Embeddings before the search: learned whitening, power normalisation, fewer dimensions.

Learned whitening: Mikolajczyk and Matas, "Improving descriptors for fast tree matching by optimal
linear projection" (ICCV 2007); Radenovic et al., "Fine-tuning CNN image retrieval with no human
annotation" (TPAMI 2018), section 3.3. PCA whitening without labels is in `whiten`.
"""

from __future__ import annotations

import torch

from common.notes import Notes
from common.retrieval import tiles
from common.retrieval.order import shared
from common.retrieval.search import search
from common.retrieval.whiten import V, Whitening, projected
from common.types import Embeddings

_BLOCK = 8_192  # rows per float64 block
_SAMPLE = 256  # queries whose neighbors are compared
_ALPHA = 0.5  # signed square root


class LearnedWhitening:
    """Whiten the differences of matching images, then rotate to the axes that separate the others.

    With C_S the covariance of differences within a class and C_D that of all rows:
    P = eig(C_S^-1/2 C_D C_S^-1/2)' C_S^-1/2. C_S takes all pairs of a class, divided by its number
    of images, so that an image weighs the same in a large class as in a small one.

    Args:
        dim: dimensions to keep, those that separate best; None keeps all.
        eps: eigenvalues of C_S are raised to at least `eps` times the largest: directions in which
            few classes have spread must not be blown up.

    Attributes:
        mean_: `(D,)` float64.
        projection_: `(dim, D)` float64; the entry of largest magnitude of each row is positive.
        separation_: `(dim,)` float64 descending, variance of all rows over that within classes.

    Fit it on training embeddings whose classes are not those of the gallery.
    """

    def __init__(self, dim: int | None = None, eps: float = 1e-3) -> None:
        if (dim is not None and dim < 1) or not eps > 0:
            raise ValueError(f"LearnedWhitening needs dim >= 1 and eps > 0, got {dim}, {eps}.")
        self.dim, self.eps = dim, eps

    def fit(self, embeddings: Embeddings | torch.Tensor, labels: torch.Tensor) -> LearnedWhitening:
        """Itself, learned on `(N, D)` rows with `(N,)` int64 labels; -1 and zero rows do not count.

        Two passes in float64 blocks; memory is one block, class means `(C, D)` and `(D, D)`.

        Raises:
            ValueError: labels that are not one per row, no class with two images, fewer classes or
                dimensions than needed, or a NaN (names the row).
        """
        rows = tiles.tensor(embeddings)
        if labels.shape != (len(rows),):
            raise ValueError(
                f"LearnedWhitening needs one label per row, got {tuple(labels.shape)} for "
                f"{len(rows)} rows."
            )
        wide, device = rows.shape[1], rows.device
        norms = torch.cat(
            [
                tiles.finite_norms(rows[start : start + _BLOCK], "train", embeddings, start)
                for start in range(0, len(rows), _BLOCK)
            ]
            or [rows.new_zeros(0, dtype=torch.float32)]
        )
        used = ((norms > 0) & (labels.to(device) >= 0)).nonzero().squeeze(1)
        kept = labels.to(device)[used]
        _, group, count = torch.unique(kept, return_inverse=True, return_counts=True)
        if int((count > 1).sum()) < 1 or len(count) < 2 or (self.dim or 1) > wide:
            raise ValueError(
                f"LearnedWhitening to {self.dim or wide} of {wide} dimensions needs two classes, "
                f"one of them with two images; got {len(count)} classes, "
                f"{int((count > 1).sum())} with two or more. Give labelled rows or a smaller dim."
            )
        means = torch.zeros(len(count), wide, dtype=torch.float64, device=device)
        parts = range(0, len(used), _BLOCK)
        for start in parts:
            part = slice(start, start + _BLOCK)
            means.index_add_(0, group[part], rows[used[part]].double())
        self.mean_ = means.sum(0) / len(used)
        means /= count[:, None]
        within = torch.zeros(wide, wide, dtype=torch.float64, device=device)
        every = torch.zeros_like(within)
        for start in parts:
            block, own = rows[used[start : start + _BLOCK]].double(), group[start : start + _BLOCK]
            every.addmm_((block - self.mean_).T, block - self.mean_)
            block -= means[own]
            within.addmm_(block.T, block)
        spread, axes = torch.linalg.eigh(within / len(used))
        if not float(spread[-1]) > 0:
            raise ValueError("LearnedWhitening: the images of every class are identical.")
        root = (
            axes * spread.clamp(min=self.eps * float(spread[-1])).rsqrt()
        )  # C_S^-1/2 up to a turn
        separation, turn = torch.linalg.eigh(root.T @ (every / len(used)) @ root)
        keep = self.dim or wide
        projection = (root @ turn).T.flip(0)[:keep]
        largest = projection.abs().argmax(dim=1, keepdim=True)
        self.projection_ = projection * projection.gather(1, largest).sign()
        self.separation_ = separation.flip(0)[:keep].clamp(min=0)
        return self

    def transform(self, embeddings: V) -> V:
        """Whitened unit rows `(N, dim)` of the type and dtype given; zero rows stay zero.

        Raises:
            ValueError: not fitted, another D, or a NaN (names the row).
        """
        if not hasattr(self, "projection_"):
            raise ValueError("This LearnedWhitening has not seen data: call fit first.")
        return projected(embeddings, self.mean_, self.projection_, "LearnedWhitening")


def learned_whiten(
    queries: Embeddings,
    gallery: Embeddings,
    train: Embeddings | None,
    train_labels: torch.Tensor,
    *,
    dim: int | None = None,
    eps: float = 1e-3,
) -> tuple[Embeddings, Embeddings]:
    """Queries and gallery whitened so that images of one training class lie close.

    On the training set of the network itself the within-class spread is smaller than elsewhere:
    measure on held-out classes whether it helps.

    Args:
        queries: `(Q, D)` embeddings.
        gallery: `(N, D)` embeddings.
        train: `(T, D)` embeddings of the training images.
        train_labels: `(T,)` int64.
        dim: dimensions to keep; None keeps all.
        eps: floor of a within-class variance, relative to the largest.

    Raises:
        ValueError: no training embeddings, or what `LearnedWhitening` refuses.
    """
    if train is None:
        raise ValueError("learned_whiten learns on training embeddings, and this run has none.")
    whitening = LearnedWhitening(dim, eps).fit(train, train_labels)
    return whitening.transform(queries), whitening.transform(gallery)


def powered(embeddings: V, alpha: float = _ALPHA) -> V:
    """Rows `sign(x) |x|^alpha`, normalised: large components count for less. Zero rows stay zero.

    Perronnin et al. (ECCV 2010): alpha 0.5, the signed square root. The type and dtype given comes
    back.

    Raises:
        ValueError: alpha outside (0, 1], or a NaN (names the row).
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"power_norm needs 0 < alpha <= 1, got {alpha}.")
    rows = tiles.tensor(embeddings)
    new = torch.empty_like(rows)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        tiles.finite_norms(block, "embeddings", embeddings, start)
        block = block.float()
        moved = block.sign() * block.abs() ** alpha
        new[start : start + _BLOCK] = torch.nn.functional.normalize(moved)
    if isinstance(embeddings, Embeddings):
        return Embeddings(embeddings.ids, new, dict(embeddings.card))
    return new


def power_norm(
    queries: Embeddings, gallery: Embeddings, *, alpha: float = _ALPHA
) -> tuple[Embeddings, Embeddings]:
    """Queries and gallery with every component raised to `alpha`, sign kept, normalised.

    `powered` as a step (Perronnin et al., ECCV 2010), with its errors.
    """
    return powered(queries, alpha), powered(gallery, alpha)


def pca_reduce(
    queries: Embeddings,
    gallery: Embeddings,
    train: Embeddings | None,
    notes: Notes,
    *,
    dim: int = 256,
    k: int = 100,
) -> tuple[Embeddings, Embeddings]:
    """Queries and gallery in `dim` dimensions (PCA, no whitening), for memory and speed.

    The share of the `k` full-size neighbors that are still among the `k` nearest, on up to 256
    queries, goes to `notes.numbers`.

    Args:
        queries: `(Q, D)` embeddings.
        gallery: `(N, D)` embeddings.
        train: `(T, D)` embeddings of the training images, T > dim.
        notes: where the recall is reported.
        dim: dimensions to keep.
        k: neighbors that are compared, at most those of the gallery.

    Raises:
        ValueError: no training embeddings, k < 1, or what `Whitening` refuses.
    """
    if train is None:
        raise ValueError("pca_reduce learns on training embeddings, and this run has none.")
    pca = Whitening(dim, power=0.0).fit(train)
    small = pca.transform(queries), pca.transform(gallery)
    if len(queries) and len(gallery):
        some = torch.arange(0, len(queries), max(1, -(-len(queries) // _SAMPLE)))
        before, after = (
            search(q.vectors[some], g.vectors, min(k, len(g))).index
            for q, g in ((queries, gallery), small)
        )
        name = f"recall@{before.shape[1]} of {dim} against {queries.vectors.shape[1]} dimensions"
        notes.numbers[name] = shared(after, before)
    return small
