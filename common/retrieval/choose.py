"""Which index, and its sizes: the rules behind `kind: auto` and the defaults.

They follow "Guidelines to choose an index" (facebookresearch/faiss wiki): few searches (1,000 to
10,000) or exact results: flat; nlist from 4 sqrt(N) to 16 sqrt(N), trained on 30 to 256 rows per
list; an HNSW coarse quantiser for the largest; PQ of at most 64 bytes when memory is short. HNSW is
quick for single queries but slow to build, so it is taken only by name.
"""

from __future__ import annotations

import math
import os

KINDS = ("auto", "flat", "ivf", "ivf_pq", "hnsw")
FLAT_ROWS = 200_000  # up to here an exact search answers one query in some 20 ms on two cores
PER_LIST = 64  # training rows per list, between the guidelines' 30 and 256
TRAIN_ROWS = 65_536  # at least, when there are as many
_FEWEST = 39  # faiss' own least number of training rows per centroid
_ROUNDS = 10  # of k-means, faiss' default for IVF
_SCAN = 8  # a row scanned in a list costs as much as 8 in a matrix product: tests/bench/index.py


def lists(count: int) -> int:
    """Default nlist for `count` rows."""
    return max(1, min(int(4 * math.sqrt(count)), count // _FEWEST))


def pq_bytes(dim: int) -> int:
    """Default bytes per row of a product quantiser: the largest divisor of D up to 64 and D / 4.

    Below four dimensions per byte training takes minutes and gains nothing.
    """
    return next(m for m in range(max(1, min(64, dim // 4)), 0, -1) if dim % m == 0)


def kind(
    count: int, dim: int, nlist: int, nprobe: int | None, asked: int | None
) -> tuple[str, str]:
    """The kind of index that `auto` takes for `asked` queries (None: many), and the reason."""
    if asked is None:
        if count <= FLAT_ROWS:
            return "flat", f"exact search is quick for {count} rows (up to {FLAT_ROWS})"
    else:
        # In rows multiplied: exact search against k-means, assignment and the scan of the lists.
        exact = asked * count
        sample = min(count, max(PER_LIST * nlist, TRAIN_ROWS))
        train = (_ROUNDS * sample + count) * nlist
        scan = asked * (nlist + _SCAN * count * (nprobe or max(1, nlist // 16)) / max(nlist, 1))
        if exact <= train + scan or count < 4 * _FEWEST:
            return "flat", f"{asked} queries of {count} rows cost less than building an index"
    if 4 * count * dim > memory() / 2 and count >= _FEWEST * 256:
        return "ivf_pq", f"{count} x {dim} floats are more than half of the memory"
    return "ivf", f"{count} rows are many, and they fit in memory"


def memory() -> int:
    """Bytes of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_sizes(
    name: str, count: int, dim: int, nlist: int, nprobe: int | None, pq: int, links: int
) -> None:
    """Raise ValueError for sizes that the gallery does not fit, saying what would."""
    if name == "hnsw":
        if not 4 <= links <= 64 or not count:
            raise ValueError(f"hnsw needs rows and 4 to 64 links, got {count} rows, {links} links.")
        return
    if nlist < 1 or count < _FEWEST * nlist or not 1 <= (nprobe or 1) <= nlist:
        raise ValueError(
            f"{name} needs {_FEWEST} rows per list and nprobe from 1 to nlist: got {count} rows, "
            f"nlist={nlist}, nprobe={nprobe}. Set a smaller nlist, or take kind=flat."
        )
    if name == "ivf_pq" and (dim % pq or count < _FEWEST * 256):
        raise ValueError(
            f"ivf_pq needs pq that divides D and {_FEWEST * 256} rows to train on: got pq={pq}, "
            f"D={dim}, {count} rows. Take kind=flat or kind=ivf."
        )
