"""Approximate search with faiss: an index built once, saved, memory-mapped, its recall measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common.paths import atomic
from common.retrieval import choose, tiles
from common.retrieval.faiss_top import faiss_resources
from common.retrieval.order import (
    check,
    key,
    neighbors_of,
    pair_scores,
    ranked,
    self_rows,
    shared,
)
from common.retrieval.search import search
from common.retrieval.stored import Stored
from common.types import Embeddings, Neighbors, decode_strings, encode_strings

_SAMPLE = 256  # queries on which recall is measured
_OVER = {"ivf_pq": 4}  # candidates per neighbor for the exact scores to choose from


@dataclass
class Index:
    """What `build` or `load` returns.

    Attributes:
        ids: `(N,)` unicode ids of the gallery.
        kind: `flat`, `ivf`, `ivf_pq` or `hnsw`.
        why: one sentence: what was picked and why, and its recall.
        recall: share of the exact neighbors that were found on a sample; 1 for `flat`.
        knob: nprobe (IVF) or efSearch (HNSW) as set or found; 0 for `flat`.
        card: where the gallery came from.
    """

    ids: np.ndarray
    kind: str
    why: str
    recall: float
    knob: int
    card: dict[str, Any]
    _faiss: Any = field(repr=False)
    _gallery: Embeddings | Stored | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: Embeddings, k: int, *, exclude_self: bool = False) -> Neighbors:
        """The `k` best gallery rows found for each query, best first, padded with -1 and -inf.

        Candidates are scored and ordered exactly, as in `common.retrieval.search`, when the index
        has its gallery; loaded without, `ivf` and `hnsw` score in float32 and `ivf_pq` roughly.
        A list that is short of `k` means that nprobe lists hold no more.

        Raises:
            ValueError: k < 1, another D, a NaN (names row and id), an id twice with `exclude_self`.
        """
        if self.kind == "flat":
            assert self._gallery is not None, "load gives flat its vectors"
            return search(queries, self._gallery, k, exclude_self=exclude_self)
        q = tiles.tensor(queries)
        if k < 1 or q.ndim != 2 or q.shape[1] != self._faiss.d:
            raise ValueError(
                f"Index.search needs k >= 1 and queries (Q, {self._faiss.d}), got k={k}, "
                f"{tuple(q.shape)}."
            )
        tiles.finite_norms(q, "queries", queries, 0)
        names = Embeddings(self.ids, torch.empty(len(self), 0))
        order, rank = ranked(names)
        own = self_rows(queries, names, order) if exclude_self else None
        wide = min(len(self), (k + exclude_self) * _OVER.get(self.kind, 1) + 8)
        _tune(self._faiss, self.kind, max(self.knob, wide if self.kind == "hnsw" else 1))
        host = np.ascontiguousarray(q.cpu().float().numpy())
        score, index = map(torch.from_numpy, self._faiss.search(host, wide))
        score = score.masked_fill_(index < 0, -torch.inf)
        if self._gallery is not None:
            score = _exact(q.cpu(), self._gallery, index)
        if own is not None:
            score[index == own[:, None]] = -torch.inf
        keys = key(score, rank[index.clamp(min=0)])
        keys = keys.topk(min(k, keys.shape[1])).values
        return neighbors_of(keys.to(q.device), order.to(q.device), k)

    def save(self, folder: str | Path) -> None:
        """Write `index.faiss` and `index.safetensors` (ids, card, recall) into a folder.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        import faiss

        index = self._faiss
        if self.kind == "flat":
            assert self._gallery is not None
            index = _filled(faiss.IndexFlatIP(_dim(self._gallery)), self._gallery)
        elif type(index).__name__.startswith("Gpu"):
            index = faiss.index_gpu_to_cpu(index)
        folder = Path(folder)
        with atomic(folder / "index.faiss") as temporary:
            try:
                faiss.write_index(index, str(temporary))
            except RuntimeError as error:
                raise OSError(None, str(error)) from error
        about = {
            name: getattr(self, name) for name in ("kind", "why", "recall", "knob", "card")
        } | {"bytes": (folder / "index.faiss").stat().st_size}
        with atomic(folder / "index.safetensors") as temporary:
            save_file(
                {"ids": encode_strings(self.ids)}, temporary, metadata={"index": json.dumps(about)}
            )


def load(
    folder: str | Path, *, gallery: Embeddings | Stored | None = None, mmap: bool = True
) -> Index:
    """The index that `Index.save` wrote.

    Args:
        folder: where it is.
        gallery: the same embeddings, for exact scores; `flat` brings its own.
        mmap: leave vectors and lists in the file; the system reads what is searched.

    Raises:
        FileNotFoundError: no index there.
        ValueError: files of two different saves, something else, or a gallery of other ids.
    """
    import faiss

    folder = Path(folder)
    try:
        with safe_open(str(folder / "index.safetensors"), framework="pt") as file:
            ids = decode_strings(file.get_tensor("ids"))
            about = json.loads(file.metadata()["index"])
        size = about.pop("bytes")
        if (folder / "index.faiss").stat().st_size != size:
            raise ValueError("index.faiss is of another save")
        # IVF lists have a map of their own, flat codes and graphs the later one.
        flag = faiss.IO_FLAG_MMAP if "ivf" in about["kind"] else faiss.IO_FLAG_MMAP_IFC
        index: Any = faiss.read_index(str(folder / "index.faiss"), flag if mmap else 0)
        if index.ntotal != len(ids):
            raise ValueError(f"{len(ids)} ids for {index.ntotal} vectors")
    except FileNotFoundError:
        raise FileNotFoundError(f"No index in {folder}: build one and save it there.") from None
    except Exception as error:
        raise ValueError(f"{folder} is not a saved index ({error}): build it again.") from error
    if gallery is not None and not np.array_equal(gallery.ids, ids):
        raise ValueError(f"The gallery's ids are not those of the index in {folder}.")
    if about["kind"] == "flat" and gallery is None:
        base = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
        vectors = torch.from_numpy(base.reshape(index.ntotal, index.d))
        gallery = Embeddings(ids, vectors, about["card"])
    return Index(ids=ids, _faiss=index, _gallery=gallery, **about)


def build(
    gallery: Embeddings | Stored,
    *,
    kind: str = "auto",
    k: int = 100,
    recall: float = 0.95,
    nlist: int | None = None,
    nprobe: int | None = None,
    pq: int | None = None,
    links: int = 32,
    ef: int | None = None,
    queries: Embeddings | None = None,
    device: torch.device | str | None = None,
) -> Index:
    """An index of a gallery, its search effort raised until the sample's recall is reached.

    Args:
        gallery: `(N, D)` unit rows; `Stored` is read block by block.
        kind: `flat` (exact), `ivf`, `ivf_pq` (memory), `hnsw` (single queries), or `auto`: with
            `queries`, flat while it costs less than building and searching IVF; without, flat up to
            200,000 rows; above, IVF, or IVF-PQ when the vectors take more than half the memory.
        k: neighbors for which recall is measured.
        recall: what nprobe or efSearch, when not given, is doubled for.
        nlist: lists of IVF; None: 4 sqrt(N), at most N / 39.
        nprobe: lists that are searched.
        pq: bytes per row of `ivf_pq`; None: the largest divisor of D up to 64.
        links: of HNSW, 4 to 64.
        ef: HNSW candidates (efSearch), raised to k where it is less.
        queries: what will be asked; the sample is drawn from them, else from the gallery.
        device: a CUDA device builds and searches IVF there, when the faiss installed can.

    Raises:
        ValueError: unknown kind, sizes that do not fit the gallery, a NaN (names row and id).
    """
    count, dim = len(gallery), _dim(gallery)
    if kind not in choose.KINDS or not 0 < recall <= 1 or k < 1:
        raise ValueError(
            f"kind must be one of {', '.join(choose.KINDS)}, recall in (0, 1], k >= 1; got "
            f"{kind!r}, {recall}, {k}."
        )
    if queries is not None:
        check("build", tiles.tensor(queries), gallery)
    lists = nlist or choose.lists(count)
    why = "as asked for"
    if kind == "auto":
        asked = None if queries is None else len(queries)
        kind, why = choose.kind(count, dim, lists, nprobe, asked)
    if kind == "flat":
        return Index(gallery.ids, kind, f"flat: {why}.", 1.0, 0, dict(gallery.card), None, gallery)
    width = pq or choose.pq_bytes(dim)
    choose.check_sizes(kind, count, dim, lists, nprobe, width, links)
    index = _filled(_on_device(_empty(kind, dim, lists, width, links), kind, device), gallery)
    most = lists if kind != "hnsw" else max(count, 1)
    given = nprobe if kind != "hnsw" else ef
    start = given or (max(1, lists // 64) if kind != "hnsw" else max(64, k))
    made = Index(gallery.ids, kind, "", 0.0, min(start, most), dict(gallery.card), index, gallery)
    own = queries is None or not len(queries)
    sample = _sample(gallery if queries is None or own else queries)
    exact = search(sample, gallery, k, exclude_self=own)
    while True:
        found = made.search(sample, k, exclude_self=own)
        made.recall = shared(found.index, exact.index)
        if given or made.recall >= recall or made.knob >= most:
            break
        made.knob = min(2 * made.knob, most)
    effort = f"efSearch {made.knob}" if kind == "hnsw" else f"{made.knob} of {lists} lists searched"
    made.why = f"{kind}: {why}; {effort}, recall@{k} {made.recall:.3f} on {len(sample)} queries."
    return made


def _empty(kind: str, dim: int, lists: int, pq: int, links: int) -> Any:
    """An untrained index of inner products."""
    import faiss

    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 80  # twice faiss' default, for recall
        return graph
    coarse = "_HNSW32" if lists >= 2**15 else ""
    # "np": without polysemous training, which takes minutes and serves a search that is not used.
    codes = f"PQ{pq}np" if kind == "ivf_pq" else "Flat"
    index: Any = faiss.index_factory(dim, f"IVF{lists}{coarse},{codes}", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = max(choose.PER_LIST, choose.TRAIN_ROWS // lists)
    return index


def _on_device(index: Any, kind: str, device: torch.device | str | None) -> Any:
    """The index on a GPU that faiss can use; HNSW stays where it is."""
    import faiss

    place = torch.device(device or "cpu")
    usable = place.type == "cuda" and hasattr(faiss, "StandardGpuResources")
    if kind == "hnsw" or not usable or faiss.get_num_gpus() < 1:
        return index
    resources = faiss_resources(str(place))
    return faiss.index_cpu_to_gpu(resources, place.index or 0, index)


def _filled(index: Any, gallery: Embeddings | Stored) -> Any:
    """The index, trained on a sample and with all rows."""
    if not index.is_trained:
        wanted = min(len(gallery), max(choose.PER_LIST * index.nlist, choose.TRAIN_ROWS))
        draw = np.random.default_rng(0).choice(len(gallery), wanted, replace=False)
        index.train(_rows(gallery, torch.from_numpy(np.sort(draw))).numpy())
    for start, block in tiles.blocks(gallery):
        if len(block):
            tiles.finite_norms(block, "gallery", gallery, start)
            for row in range(0, len(block), 2**16):
                part = block[row : row + 2**16].cpu().float()
                index.add(np.ascontiguousarray(part.numpy()))
    return index


def _tune(index: Any, kind: str, knob: int) -> None:
    if kind == "hnsw":
        index.hnsw.efSearch = knob
    else:
        index.nprobe = knob


def _sample(source: Embeddings | Stored) -> Embeddings:
    rows = torch.arange(0, len(source), max(1, -(-len(source) // _SAMPLE)))
    return Embeddings(source.ids[rows.numpy()], _rows(source, rows))


def _rows(gallery: Embeddings | Stored, rows: torch.Tensor) -> torch.Tensor:
    """Vectors `(M, D)` float32 on the CPU."""
    if isinstance(gallery, Stored):
        return gallery.take(rows)
    return gallery.vectors.detach()[rows.to(gallery.vectors.device)].cpu().float()


def _exact(q: torch.Tensor, gallery: Embeddings | Stored, index: torch.Tensor) -> torch.Tensor:
    """Exact scores of candidates `(Q, M)`; of a stored gallery only these rows are read."""
    if isinstance(gallery, Embeddings):
        return pair_scores(q, gallery.vectors.detach().cpu(), index)
    score = torch.empty(index.shape)
    for start in range(0, len(q), 256):
        part = index[start : start + 256]
        rows, place = torch.unique(part.clamp(min=0), return_inverse=True)
        place = place.masked_fill(part < 0, -1)
        score[start : start + 256] = pair_scores(q[start : start + 256], gallery.take(rows), place)
    return score


def _dim(gallery: Embeddings | Stored) -> int:
    shape = gallery.shape if isinstance(gallery, Stored) else gallery.vectors.shape
    return int(shape[1])
