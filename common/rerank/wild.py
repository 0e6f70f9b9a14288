"""Global and local matchers on one scale: calibrated on training pairs, averaged on a shortlist.

    search:
      - {name: knn, k: 100}
      - {name: wild_fusion, matchers: [rootsift, xfeat + lightglue], top: 50}

WildFusion (Cermak et al., ECCVW 2024, arXiv 2408.12934), where it adds 8.5 points to the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.notes import Notes
from common.rerank.calibrate import calibration as make_calibration
from common.rerank.calibrate import out_of_fold, reliability
from common.rerank.evidence import Evidence
from common.rerank.fusion import fusion
from common.rerank.inliers import verify_neighbors, verify_pairs
from common.rerank.matching import Settings, matcher_settings
from common.rerank.pairs import pair_cosine
from common.rerank.shortlist import note_matches, resolve_device, training_pairs
from common.types import Embeddings, Neighbors

_GLOBAL = "cosine"


def wild_fusion(
    neighbors: Neighbors,
    queries: Embeddings,
    gallery: Embeddings,
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
    matchers: Sequence[str | dict[str, Any]] = ("rootsift",),
    top: int = 50,
    calibration: str = "isotonic",
    weights: Sequence[float] | str = (),
    pairs: int = 2000,
    size: int = 512,
    keypoints: int = 1000,
    seed: int = 0,
    workers: int = 0,
    device: str = "auto",
) -> Neighbors:
    """The first `top` neighbors by the mean probability of cosine and local matchers.

    Each score (the cosine of the embeddings, the inliers of each matcher) becomes a probability
    that both images show the same thing, learnt from pairs of training images. The others follow
    behind with their calibrated cosine - 1, so all scores are comparable over queries. Cosines are
    those of the embeddings at this point of the list: put expansions of queries or gallery behind,
    or they are judged by a calibration that knows nothing of them. Between images that a net was
    trained on they are too good: then give `weights` that trust the matchers more.

    A matcher that can tell little (photos of 256 pixels, far viewpoints) spoils the mean;
    `weights: learned` weighs log odds by how much each matcher adds on the training pairs.

    Args:
        neighbors: `(Q, K)` rows of the gallery, the shortlist first.
        queries: embeddings of the queries.
        gallery: embeddings of the gallery.
        query_paths: `(Q,)` bytes array of files.
        gallery_paths: `(G,)` bytes array of files.
        train: images whose pairs calibrate.
        train_labels: `(N,)` their labels.
        train_paths: `(N,)` bytes array of their files.
        cache: folder for features and results.
        notes: gets the reliability of each matcher and the pairs that the report shows.
        query_boxes: `(Q, 4)` what to look at in each image, as `Table.boxes`; the pipeline's.
        gallery_boxes: `(G, 4)`.
        train_boxes: `(N, 4)`.
        matchers: `sift`, `xfeat`, `aliked + lightglue`, ..., or the settings of `local` as a
            dictionary, `{features: xfeat, threshold: 3.0}`.
        top: candidates per query that are fused.
        calibration: `isotonic`, or `logistic` when there are few pairs.
        weights: of the cosine and of each matcher, or `learned`; unset: equal.
        pairs: at most so many training pairs.
        size: the long side that images are shrunk to, where a matcher does not say.
        keypoints: at most so many per image, where a matcher does not say.
        seed: of the choice of pairs.
        workers: threads; 0: one per core.
        device: where networks run; `auto` is a GPU when there is one.

    Raises:
        ValueError: an unknown matcher or calibration, weights that do not fit, no or too few pairs.
        FileNotFoundError: weights are not installed, or not given.
    """
    chosen = [matcher_settings(one, size=size, keypoints=keypoints) for one in matchers]
    mix = fusion(weights, len(chosen) + 1)
    make_calibration(calibration)
    options: Any = {"workers": workers, "device": resolve_device(device)}
    known = training_pairs(train, train_labels, train_paths, pairs, top, seed)
    names = _names(chosen)
    learnt: dict[str, np.ndarray] = {_GLOBAL: known.cosine.astype(np.float64)}
    for name, settings in zip(names[1:], chosen, strict=True):
        found = verify_pairs(
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
        learnt[name] = _raw(found)
    honest = {
        name: out_of_fold(scores, known.same, known.labels, calibration)
        for name, scores in learnt.items()
    }
    known_all = np.stack(list(honest.values()))
    judged = np.isfinite(known_all).all(0)
    if not judged.any():
        raise ValueError(
            f"wild_fusion: the {len(known)} training pairs are of too few classes to be judged by "
            "others: more labelled classes, or more pairs."
        )
    mix.fit(known_all[:, judged], known.same[judged])  # so few weights that none is overfitted
    honest["fused"] = np.full(len(known), np.nan)
    honest["fused"][judged] = mix.transform(known_all[:, judged])
    for name, probability in honest.items():
        scored = np.isfinite(probability)
        if scored.any():
            note = reliability(probability[scored], known.same[scored]).note()
            notes.calibration[name] = note
    notes.numbers["calibration pairs"] = len(known)
    notes.numbers["calibration pairs of one class"] = int(known.same.sum())
    for name, weight in zip(names, mix.weights_, strict=True):
        notes.numbers[f"weight of {name}"] = float(weight)

    fits = {
        name: make_calibration(calibration).fit(scores, known.same)
        for name, scores in learnt.items()
    }
    index = neighbors.index.cpu().numpy()
    cosine = pair_cosine(neighbors, queries, gallery).cpu().numpy()
    likely = fits[_GLOBAL].transform(cosine)
    said = np.repeat(likely[None, :, :top], len(names), axis=0)
    for place, (name, settings) in enumerate(zip(names[1:], chosen, strict=True), 1):
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
        said[place, row, column] = fits[name].transform(_raw(found))
    score = np.concatenate([mix.transform(said), likely[:, top:] - 1], axis=1)
    score[index < 0] = -np.inf
    return Neighbors(
        neighbors.index, torch.from_numpy(score).to(neighbors.score.device, torch.float32)
    ).sorted()


def _names(chosen: Sequence[Settings]) -> list[str]:
    """Each matcher's name, numbered where two of them share one."""
    names = [_GLOBAL]
    for settings in chosen:
        same = sum(name.partition(" #")[0] == settings.name for name in names)
        names.append(f"{settings.name} #{same + 1}" if same else settings.name)
    return names


def _raw(found: Evidence) -> np.ndarray:
    """The score of a pair: inliers, in steps that shrink; by their share where equally many."""
    return np.log1p(found.inliers + 0.5 * found.ratio.astype(np.float64))
