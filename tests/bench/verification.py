"""How well each local matcher tells pairs of one landmark from pairs of two.

    python -m tests.bench.verification [data.root=PATH] [pairs=600] [size=512] [keypoints=1000]
                                       [matchers=sift,rootsift,...] [cache=FOLDER] [out=FOLDER]

Pairs of train.csv, in Kaggle's layout at PATH (unset: the bundled sample): for each of one landmark
one of two. Inliers become probabilities, by classes that the calibration has not seen; a pair is
called right from .5 on. With `out` a page with reliability diagrams and pictures is written there.
"""

import sys
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from common.notes import Notes
from common.paths import REPOSITORY
from common.pipeline.ranking import Question
from common.report.files import Analysis, save_analysis
from common.report.matches import show_matches
from common.report.page import write_report
from common.rerank.calibrate import Isotonic, out_of_fold, reliability
from common.rerank.inliers import verify_pairs
from common.rerank.matching import matcher_settings
from common.rerank.plausible import fit_plausible
from common.rerank.shortlist import TrainingPairs, note_matches
from common.types import Embeddings, Neighbors
from competitions.landmarks.data import DataConfig, read

SAMPLE = REPOSITORY / "competitions" / "landmarks" / "sample"
MATCHERS = "sift,rootsift,xfeat,xfeat+lightglue,aliked,aliked+lightglue,disk,disk+lightglue"


def labelled_pairs(root, most, seed=0):
    """Files `(N,)`, rows a and b of them `(P,)`, and whether the pair is of one landmark.

    As many pairs of one landmark as of two; no pair twice.
    """
    data = read(DataConfig(root=str(root or SAMPLE)))
    labels = data.train.labels
    rng = np.random.default_rng(seed)
    n = len(labels)
    first, second = np.triu_indices(n, 1) if n <= 4000 else rng.integers(0, n, (2, 4_000_000))
    same = (labels[first] == labels[second]) & (first != second)
    chosen = [
        rng.permutation(np.flatnonzero(kind))[: most // 2]
        for kind in (same, labels[first] != labels[second])
    ]
    rows = np.concatenate(chosen)
    return data.train.paths, first[rows], second[rows], same[rows]


def table(given):
    paths, a, b, same = labelled_pairs(given.get("data.root"), int(given.get("pairs", 600)))
    labels = read(DataConfig(root=str(given.get("data.root") or SAMPLE))).train.labels
    groups = np.column_stack([labels[a], labels[b]])
    print(f"{same.sum()} pairs of one landmark, {(~same).sum()} of two, {len(np.unique(groups))} "
          f"landmarks")  # fmt: skip
    print(f"{'matcher':22}{'AP':>7}{'ECE':>7}{'inliers':>9}{'precision':>11}{'recall':>8}"
          f"{'AP trees':>10}{'ms a pair':>11}")  # fmt: skip
    notes = Notes()
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(given.get("cache") or scratch)
        for name in given.get("matchers", MATCHERS).split(","):
            settings = matcher_settings(
                name, size=int(given.get("size", 512)), keypoints=int(given.get("keypoints", 1000))
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an image that cannot be read has no inliers
                used = np.union1d(a, b)
                plain = replace(settings, matcher="mutual")
                verify_pairs(paths, used, paths, used, cache, plain)  # extracts, cheaply
                verify_pairs(paths, a[:1], paths, b[:1], cache, settings)  # loads the nets
                start = time.perf_counter()
                found = verify_pairs(paths, a, paths, b, cache, settings)
                spent = (time.perf_counter() - start) / len(a) * 1000
            score = np.log1p(found.inliers + 0.5 * found.ratio)
            likely = out_of_fold(score, same, groups, "isotonic")
            known = ~np.isnan(likely)
            judged = reliability(likely[known], same[known])
            notes.calibration[settings.name] = judged.note()
            called = likely >= 0.5
            # The number of inliers from which on a calibration on everything says .5.
            each = np.arange(400)
            half = Isotonic().fit(score, same).transform(np.log1p(each + 0.25)) >= 0.5
            pairs = TrainingPairs(a, b, groups, np.zeros(len(a), np.float32))
            trees = fit_plausible(found, pairs, rounds=60, min_leaf=max(len(a) // 60, 5))
            notes.importances[f"plausible homography ({settings.name})"] = trees.importances()
            print(
                f"{settings.name:22}{average_precision_score(same, found.inliers):7.3f}"
                f"{judged.ece:7.3f}{str(each[half][0]) if half.any() else '-':>9}"
                f"{(same[called].mean() if called.any() else np.nan):11.3f}"
                f"{called[same].mean():8.3f}"
                f"{trees.average_precision_:10.3f}{spent:11.2f}"
            )
            near = Neighbors(*_one_column(b))
            row, column = np.arange(len(a)), np.zeros(len(a), int)
            note_matches(notes, near, row, column, found, settings)
    if out := given.get("out"):
        Path(out).mkdir(parents=True, exist_ok=True)
        ids = np.array([Path(path.decode()).stem for path in paths.tolist()])
        none = torch.zeros(len(ids), 1)
        queries = Embeddings(ids[a], none[a])
        show_matches(
            notes,
            Question(
                queries,
                Embeddings(ids, none),
                torch.from_numpy(labels),
                None,
                paths[a],
                paths,
                labels[a],
                labels,
            ),
        )
        save_analysis(out, Analysis(notes={"verification": asdict(notes)}))
        print(write_report(out, title="Verification by local features"))


def _one_column(b):
    index = torch.from_numpy(b.astype(np.int64))[:, None]
    return index, torch.zeros(index.shape)


def main(arguments):
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    given = dict(word.partition("=")[::2] for word in arguments)
    unknown = set(given) - {"data.root", "pairs", "size", "keypoints", "matchers", "cache", "out"}
    if unknown:
        raise SystemExit(f"unknown {sorted(unknown)}\n{__doc__}")
    table(given)


if __name__ == "__main__":
    main(sys.argv[1:])
