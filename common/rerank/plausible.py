"""Whether a homography is one that a camera could have made: boosted trees on its eight values.

Any four matches fit some homography, and many of those flip, fold or shrink the image to a point.
A model trained on labelled pairs tells the real ones by their values and by their inliers. Origin:
humpback whale identification 4th place, which decided most of its answers so.
"""

from __future__ import annotations

import numpy as np

from common.rerank.boosted import PairModel
from common.rerank.evidence import NAMES, Evidence
from common.rerank.shortlist import TrainingPairs


def fit_plausible(
    evidence: Evidence,
    pairs: TrainingPairs,
    *,
    rounds: int = 100,
    folds: int = 5,
    min_leaf: int = 20,
    seed: int = 0,
    threads: int = 0,
) -> PairModel:
    """A `PairModel` of the columns of `evidence.NAMES`; `model.save(folder)` writes text.

    Args:
        evidence: of P pairs.
        pairs: the same pairs with their labels; a fold sees no image of the labels it scores.
        rounds: trees per fold.
        folds: parts of the labels; fewer where there are not as many.
        min_leaf: fewest pairs in a leaf.
        seed: of the folds.
        threads: LightGBM's; 0: all cores.

    Raises:
        ValueError: only one kind of pair, or pairs of one label.
    """
    folds = min(folds, max(2, len(np.unique(pairs.labels))))
    model = PairModel(folds, rounds, min_leaf=min_leaf, share=1.0, seed=seed, threads=threads)
    return model.fit(evidence.values(), pairs.same, pairs.labels, NAMES)


def plausibility(model: PairModel, evidence: Evidence) -> np.ndarray:
    """Probability that each pair shows one thing, `(P,)` float32; 0 where nothing was matched.

    Raises:
        ValueError: a model of other columns.
    """
    if tuple(model.names_) != NAMES:
        raise ValueError(
            f"This model looks at {', '.join(model.names_)}, not at homographies: train it again."
        )
    found = model.predict(evidence.values())
    return np.where(evidence.inliers > 0, found, np.float32(0))
