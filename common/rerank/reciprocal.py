"""k-reciprocal re-ranking: images whose neighbors know each other move together.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017), equal to
the authors' dense implementation, quirks included, on sparse matrices.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from scipy import sparse

from common.notes import Notes
from common.rerank.nodes import Nodes, adjacency, answer, nearest, nodes_of, rank
from common.types import Embeddings, Neighbors

_PAIRS = 1 << 22  # shared entries that are summed up at once: some 200 MB
_LONE = 0.5  # share of queries with a lone first neighbor from which on a warning is due


def k_reciprocal(
    queries: Embeddings,
    gallery: Embeddings,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    k: int = 100,
    exclude_self: bool = False,
    gallery_labels: torch.Tensor | None = None,
    notes: Notes | None = None,
    device: torch.device | None = None,
) -> Neighbors:
    """Neighbors by 1 - ((1 - lambda) Jaccard distance of reciprocal neighbor sets + lambda d).

    Queries and gallery are one set of images, as in the paper. Of the authors' code are: d is the
    squared distance over the largest in the query's row; lists hold the image itself and k1 others;
    candidates look at round(k1 / 2) others (halves to even: 2 for k1=5) and join when more than 2/3
    of their set is in the unexpanded one; weights exp(-d) sum to 1; local query expansion is the
    mean over k2 images, self included; Jaccard is 1 - m / (2 - m). Scores are in [0, 1].

    Defaults are the paper's; the 2021 landmark retrieval 2nd place used 10, 3, .3. It needs several
    positives per identity: with about one it lowers the score, and a warning says so.

    Time N^2 D for the lists, N k1^2 k2 for the sets, Q N D for the result; memory N k1 k2 and one
    tile. The sparse part runs on the CPU, the products on `device`.

    Args:
        queries: `(Q, D)` unit rows.
        gallery: `(N, D)` unit rows.
        k1: neighbors that must be reciprocal.
        k2: images of the local query expansion; 1 leaves it out.
        lambda_value: weight of the original distance, in [0, 1].
        k: neighbors of the result; padded where the gallery has fewer.
        exclude_self: leave out gallery images with the query's own id.
        gallery_labels: `(N,)`, -1 unknown; for the warning only.
        notes: takes the share of queries whose first neighbor stands alone.
        device: where to compute, the gallery's by default.

    Raises:
        ValueError: a setting out of range, an empty gallery, NaN in an embedding.
    """
    if min(k, k1, k2) < 1 or not 0 <= lambda_value <= 1:
        raise ValueError(
            f"k_reciprocal: k, k1 and k2 must be at least 1 and lambda_value in [0, 1], got "
            f"k={k}, k1={k1}, k2={k2}, lambda_value={lambda_value}."
        )
    nodes = nodes_of(queries, gallery, "k_reciprocal", device)
    found = Neighbors(nodes.rows.new_empty(0, 0), nodes.vectors.new_empty(0, 0))
    if len(nodes.rows) and len(nodes.asked):
        index, score, lowest = nearest(nodes.vectors, max(k1, k2 - 1))
        _warn(index, score, nodes.asked, gallery_labels, notes)
        reach = (2 - 2 * lowest).clamp(min=1e-12)  # of each row, its largest squared distance
        encoding = _encode(nodes.vectors, index, score, reach, k1, k2)
        shared = _Shared(encoding, nodes)

        def mixed(rows: slice, tile: torch.Tensor) -> torch.Tensor:
            # lambda (1 - d) + (1 - lambda) m / (2 - m), in place.
            slope = 2 * lambda_value / reach[nodes.asked[rows], None]
            tile.sub_(1).mul_(slope).add_(lambda_value)
            common = shared(rows).to(tile.device)
            return tile.addcdiv_(common, 2 - common, value=1 - lambda_value)

        found = rank(nodes, mixed, k, exclude_self=exclude_self)
    return answer(nodes, found, queries, gallery, k, last=0.0, exclude_self=exclude_self)


def _encode(
    vectors: torch.Tensor,
    index: torch.Tensor,
    score: torch.Tensor,
    reach: torch.Tensor,
    k1: int,
    k2: int,
) -> Any:
    """The weights `(n, n)` of each image's expanded reciprocal neighbors, CSR; rows sum to 1."""
    number = len(vectors)
    itself = torch.arange(number, device=index.device)[:, None]
    lists = torch.cat([itself, index], 1)  # self by construction: duplicates may not push it out
    close = _reciprocal(lists[:, : k1 + 1])
    half = _reciprocal(lists[:, : int(np.around(k1 / 2)) + 1])
    # (i, c): how much of c's half set is in the set of i, asked only where c is in it.
    inside = (close @ half.T).multiply(close).tocsr()
    size = half.sum(1)
    inside.data = (3 * inside.data > 2 * size[inside.indices]).astype(np.float32)
    inside.eliminate_zeros()
    members = (close + inside @ half).tocsr()
    members.data[:] = 1
    weight = torch.exp(-(2 - 2 * score) / reach[:, None])
    known = adjacency(lists, torch.cat([weight.new_ones(number, 1), weight], 1), number)
    encoding = members.multiply(known).tocsr()
    rest = (members - members.multiply(adjacency(lists, 1.0, number))).tocsr()
    rest.eliminate_zeros()
    rest = rest.tocoo()
    rows = torch.from_numpy(rest.row.astype(np.int64)).to(index.device)
    columns = torch.from_numpy(rest.col.astype(np.int64)).to(index.device)
    distance = (2 - 2 * _dots(vectors, rows, columns)) / reach[rows]
    rest.data = torch.exp(-distance).cpu().numpy()
    encoding = (encoding + rest.tocsr()).tocsr()
    encoding.data /= np.repeat(encoding.sum(1), np.diff(encoding.indptr))
    if k2 > 1:
        near = lists[:, :k2]
        encoding = (adjacency(near, 1 / near.shape[1], number) @ encoding).tocsr()
    return encoding


def _reciprocal(lists: torch.Tensor) -> Any:
    """1 where j is in the list of i and i in the list of j, CSR."""
    forward = adjacency(lists, 1.0, len(lists))
    return forward.multiply(forward.T.tocsr()).tocsr()


def _dots(vectors: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products of the pairs of rows, `(P,)`."""
    out = torch.empty(len(a), device=vectors.device)
    step = max(1, (1 << 18 if vectors.device.type == "cpu" else 1 << 25) // vectors.shape[1])
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        torch.linalg.vecdot(vectors[a[part]], vectors[b[part]], out=out[part])
    return out


class _Shared:
    """Sums of min(V[q, c], V[g, c]) over c, for some queries and all of the gallery."""

    def __init__(self, encoding: Any, nodes: Nodes) -> None:
        self._width = len(nodes.rows)
        self._asked = encoding[nodes.asked.cpu().numpy()]
        columns = encoding[: self._width].tocsc()
        self._start, self._row, self._value = columns.indptr, columns.indices, columns.data

    def __call__(self, rows: slice) -> torch.Tensor:
        """`(B, m)` float32 on the CPU."""
        asked = self._asked[rows]
        total = np.zeros((asked.shape[0], self._width), np.float32)
        begin = self._start[asked.indices]
        count = self._start[asked.indices + 1] - begin
        line = np.repeat(np.arange(asked.shape[0]), np.diff(asked.indptr))
        ends = np.cumsum(count, dtype=np.int64)
        first = 0
        while first < len(count):  # some of the queries' entries at a time: hubs have many holders
            done = int(ends[first - 1]) if first else 0
            stop = max(first + 1, int(np.searchsorted(ends, done + _PAIRS, side="right")))
            part = slice(first, stop)
            n = count[part]
            shift = np.repeat(begin[part] - (ends[part] - done - n), n)
            place = np.arange(len(shift)) + shift
            low = np.minimum(np.repeat(asked.data[part], n), self._value[place])
            cell = (np.repeat(line[part], n), self._row[place])
            total += sparse.coo_array((low, cell), shape=total.shape).toarray()
            first = stop
        return torch.from_numpy(total)


def _warn(
    index: torch.Tensor,
    score: torch.Tensor,
    asked: torch.Tensor,
    labels: torch.Tensor | None,
    notes: Notes | None,
) -> None:
    """Warn when there is about one positive per identity: by labels, else by lone neighbors."""
    why = ""
    lone = _lone_share(index, score, asked)
    if notes is not None:
        notes.numbers["k_reciprocal: queries with a lone first neighbor"] = lone
    if labels is not None and bool((labels >= 0).any()):
        each = torch.unique(labels[labels >= 0], return_counts=True)[1].float()
        if float(each.mean()) < 1.5:
            why = f"the gallery has {float(each.mean()):.2f} images per label"
    elif lone > _LONE:
        why = f"{lone:.0%} of the queries have one reciprocal neighbor that stands alone"
    if why:
        warnings.warn(
            f"k_reciprocal: {why}. With about one positive per identity the shared neighbors are "
            "other identities and the score usually falls: compare with knn alone.",
            stacklevel=3,
        )


def _lone_share(index: torch.Tensor, score: torch.Tensor, asked: torch.Tensor) -> float:
    """Share of queries that are their first neighbor's first, with a gap behind it.

    A gap: from the first to the second neighbor the similarity falls by more than half of what it
    falls to the last. One positive among strangers looks like that; two already do not.
    """
    if index.shape[1] < 3:
        return 0.0
    first = index[asked, 0]
    fall = score[asked, 0] - score[asked, 1] > 0.5 * (score[asked, 0] - score[asked, -1])
    return float((fall & (index[first, 0] == asked)).float().mean())
