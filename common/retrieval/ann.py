"""Approximate nearest neighbors as a step: `{name: ann, k: 100, kind: ivf, nprobe: 32}`."""

from __future__ import annotations

import torch

from common.notes import Notes
from common.retrieval.index import build
from common.retrieval.search import search
from common.types import Embeddings, Neighbors


def ann(
    queries: Embeddings,
    gallery: Embeddings,
    notes: Notes,
    *,
    k: int = 100,
    kind: str = "auto",
    recall: float = 0.95,
    nlist: int | None = None,
    nprobe: int | None = None,
    pq: int | None = None,
    links: int = 32,
    ef: int | None = None,
    exclude_self: bool = False,
    device: torch.device | None = None,
) -> Neighbors:
    """The `k` nearest gallery images by the index that pays (`kind: auto`) or is named, re-scored.

    What was picked and why goes to `notes.remarks`, its recall against the exact search on a sample
    of the queries to `notes.numbers`. Arguments as in `build`.
    """
    index = build(
        gallery,
        kind=kind,
        k=k,
        recall=recall,
        nlist=nlist,
        nprobe=nprobe,
        pq=pq,
        links=links,
        ef=ef,
        queries=queries,
        device=device,
    )
    notes.remarks.append(index.why)
    notes.numbers[f"ann recall@{k} ({index.kind})"] = index.recall
    if index.kind == "flat":
        return search(queries, gallery, k, exclude_self=exclude_self, device=device)
    return index.search(queries, k, exclude_self=exclude_self)
