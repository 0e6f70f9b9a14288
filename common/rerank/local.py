"""Candidates re-ranked by matching local features, or by a function of your own.

    search:
      - {name: knn, k: 100}
      - {name: local, features: sift, top: 50, cap: 70}
      - {name: hook, function: "my_package.my_module:rerank"}

`verify(image_a, image_b)` does one pair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.rerank.geometry import Settings
from common.rerank.geometry import Verification as Verification
from common.rerank.geometry import verify as verify
from common.rerank.hooks import load_hook as load_hook
from common.rerank.inliers import count_inliers
from common.rerank.voting import check_rows
from common.types import Embeddings, Neighbors


def local(
    neighbors: Neighbors,
    query_paths: np.ndarray,
    gallery_paths: np.ndarray,
    cache: Path,
    *,
    features: str = "sift",
    matcher: str = "mutual",
    top: int = 50,
    cap: int = 70,
    weight: float = 1.0,
    floor: int = 8,
    size: int = 512,
    keypoints: int = 1000,
    model: str = "homography",
    threshold: float = 4.0,
    ratio: float = 0.0,
    workers: int = 0,
    device: str = "auto",
) -> Neighbors:
    """The first `top` neighbors gain weight * min(inliers, cap) / cap; all are sorted again.

    Origins: landmark recognition 2019 3rd place (top 3, cap 70, weight 1, then `vote` with top 3,
    power 1), 2020 2nd place (cap 90), landmark retrieval 2021 2nd place (top 10, cap 90, weight
    .15). Unverified neighbors keep their score, and stay behind as long as `weight` is not
    negative. Resumable: features and inliers are kept in `cache`, by settings and file.

    Args:
        neighbors: `(Q, K)` rows of the gallery.
        query_paths: `(Q,)` bytes array of files.
        gallery_paths: `(G,)` bytes array of files.
        cache: folder for features and results.
        features: `sift`, `disk`, `aliked` or `xfeat`.
        matcher: `mutual` or `lightglue`.
        top: neighbors per query that are verified.
        cap: inliers from which on more do not count. Kinds of features differ: calibrate.
        weight: what `cap` inliers are worth beside the similarity.
        floor: fewer inliers count as 0: any four matches fit some homography. Winners had none.
        size: the long side that images are shrunk to.
        keypoints: at most so many per image.
        model: `homography` or `fundamental`.
        threshold: largest error of an inlier in pixels of the shrunk images.
        ratio: largest ratio of the distances to the nearest and the second; 0: the features' own.
        workers: threads; 0: one per core.
        device: where networks run; `auto` is a GPU when there is one.

    Raises:
        ValueError: an unknown setting, or paths that do not cover the queries or the gallery.
        FileNotFoundError: weights are not installed.
    """
    if cap < 1 or top < 0 or floor < 0:
        raise ValueError(
            f"local: cap must be above 0, top and floor at least 0, got {cap}, {top}, {floor}."
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings(features, matcher, keypoints, size, model, threshold, ratio)
    inliers, _ = count_inliers(
        neighbors,
        query_paths,
        gallery_paths,
        cache,
        settings,
        top=top,
        workers=workers,
        device=device,
    )
    counted = torch.where(inliers < floor, 0, inliers).clamp(max=cap).to(neighbors.score.dtype)
    score = neighbors.score.clone()
    score[:, : inliers.shape[1]] += weight * counted / cap
    return Neighbors(neighbors.index, score).sorted()


def hook(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
    query_paths: np.ndarray,
    gallery_paths: np.ndarray,
    *,
    function: str = "",
    arguments: dict[str, Any] | None = None,
) -> Neighbors:
    """Neighbors from your own function, `package.module:callable`.

    It is called with `arguments` and with those of neighbors, queries, gallery, query_paths and
    gallery_paths that it names, and returns `Neighbors` for the same queries and gallery. Call
    `load_hook` when a pipeline starts, so that a typing error does not wait for the search.

    Raises:
        ValueError: nothing to import there, arguments it does not take, another kind of result.
    """
    call = load_hook(function, arguments)
    state = {
        "neighbors": neighbors,
        "queries": queries,
        "gallery": gallery,
        "query_paths": query_paths,
        "gallery_paths": gallery_paths,
    }
    result = call(state)
    if not isinstance(result, Neighbors) or len(result) != len(neighbors):
        got = f"{len(result)}" if isinstance(result, Neighbors) else type(result).__name__
        raise ValueError(
            f"hook: {function} must return Neighbors for {len(neighbors)} queries, got {got}."
        )
    check_rows(result.index, len(gallery), f"hook {function}", "the gallery")
    return result
