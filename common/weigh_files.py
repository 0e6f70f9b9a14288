"""Blend weights searched on out-of-fold files, written by whatever made the models.

    python -m common.weigh TRUTH.csv A.csv B.safetensors ... --metric auc [--method simplex]

TRUTH.csv has the columns id,target. A file of scores is a csv with id,score or id,CLASS,CLASS,...,
or a safetensors file of `save_scores`. With one score per id the target is 0 or 1 (metric auc or
average_precision), with one per class it is the name of a class (accuracy or map5).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.stats import rankdata

from common.lazy import Lazy
from common.paths import atomic
from common.types import decode_strings, encode_strings
from common.weigh import search_weights

metrics = Lazy("sklearn.metrics")

METRICS = {"auc": 1, "average_precision": 1, "accuracy": 2, "map5": 2}  # dimensions of scores


@dataclass
class Scores:
    """A model's scores of ids: `(N,)` strings, `(N,)` or `(N, C)` float64, `(C,)` strings."""

    ids: np.ndarray
    values: np.ndarray
    classes: np.ndarray


def save_scores(
    path: str | Path, ids: np.ndarray, values: np.ndarray, classes: np.ndarray | None = None
) -> None:
    """Write scores `(N,)` of pairs or rows, or `(N, C)` of classes, as a safetensors file.

    Raises:
        ValueError: lengths that do not fit.
    """
    values = np.asarray(values)
    names = np.asarray([] if classes is None else classes, np.str_)
    if len(ids) != len(values) or (values.ndim == 2) != (classes is not None) or values.ndim > 2:
        raise ValueError(
            f"save_scores: {len(ids)} ids for {values.shape} scores; only (N, C) needs classes."
        )
    if values.ndim == 2 and len(names) != values.shape[1]:
        raise ValueError(f"save_scores: {len(names)} classes for {values.shape} scores.")
    tensors = {"ids": encode_strings(ids), "scores": torch.from_numpy(values).contiguous()}
    if classes is not None:
        tensors["classes"] = encode_strings(names)
    with atomic(path) as temporary:
        save_file(tensors, temporary)


def load_scores(path: str | Path) -> Scores:
    """A file of scores, csv or safetensors by its name.

    Raises:
        ValueError: not such a file, a repeated id, a score that is no number; names the place.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}.")
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt") as file:
                ids = decode_strings(file.get_tensor("ids"))
                values = file.get_tensor("scores").double().numpy()
                named = "classes" in file.keys()  # noqa: SIM118 - not a mapping
                classes = decode_strings(file.get_tensor("classes")) if named else np.array([])
        except SafetensorError as error:
            raise ValueError(f"{path} is not a file of save_scores ({error}).") from None
    else:
        frame = _csv(path)
        ids, names = frame["id"].to_numpy(np.str_), [c for c in frame.columns if c != "id"]
        try:
            values = frame[names].to_numpy(np.float64)
        except ValueError as error:
            raise ValueError(f"{path} has a score that is no number ({error}).") from None
        classes = np.array(names, np.str_) if names != ["score"] else np.array([])
        values = values[:, 0] if names == ["score"] else values
    if pd.Index(ids).has_duplicates:
        raise ValueError(f"{path} has id {str(ids[pd.Index(ids).duplicated().argmax()])!r} twice.")
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))
        raise ValueError(f"{path}: a score of id {str(ids[row])!r} is NaN or infinite.")
    return Scores(ids, values, classes)


def weigh_files(
    truth: str | Path,
    paths: Sequence[str | Path],
    metric: str,
    *,
    by: str = "scores",
    method: str = "coordinate",
    steps: int = 10,
    seed: int = 0,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Best weights `(M,)`, the metric with them, and the metric of each file alone `(M,)`.

    The weights are fitted: their metric is optimistic. Files may be in any order of ids, but must
    hold the same ones.

    Args:
        truth: csv with the columns id,target.
        paths: files of scores.
        metric: `auc`, `average_precision`, `accuracy` or `map5`.
        by: `scores` as they are, or `ranks` of each file's scores among themselves.
        method: `coordinate` or `simplex`, see `search_weights`.
        steps: how fine, see `search_weights`.
        seed: of the order in which `coordinate` moves.

    Raises:
        ValueError: an unknown setting, files that do not fit together or the metric.
        FileNotFoundError: a file is not there.
    """
    if metric not in METRICS or by not in ("scores", "ranks"):
        raise ValueError(
            f"metric must be one of {', '.join(METRICS)}, by scores or ranks; got {metric}, {by}."
        )
    if not paths:
        raise ValueError("Nothing to weigh: give at least one file of scores.")
    target = _csv(Path(truth), "target")
    files = [load_scores(path) for path in paths]
    ids, first = target["id"].to_numpy(np.str_), files[0]
    values = np.stack(
        [_aligned(file, path, ids, first) for file, path in zip(files, paths, strict=True)]
    )
    if values.ndim != METRICS[metric] + 1:
        kind = "one score per class" if METRICS[metric] == 2 else "one score per id"
        raise ValueError(f"{metric} needs {kind}; the files hold scores {values.shape[1:]}.")
    if by == "ranks":
        flat = values.reshape(len(values), -1)
        values = np.stack([rankdata(row) / row.size for row in flat]).reshape(values.shape)
    measure = _measure(metric, target["target"].to_numpy(np.str_), first.classes, truth)

    def score(weights: np.ndarray) -> float:
        return measure(np.tensordot(weights, values, 1))

    weights, best = search_weights(score, len(files), method=method, steps=steps, seed=seed)
    return weights, best, np.array([measure(part) for part in values])


def _measure(
    metric: str, target: np.ndarray, classes: np.ndarray, path: str | Path
) -> Callable[[np.ndarray], float]:
    if METRICS[metric] == 1:
        if set(target.tolist()) != {"0", "1"}:
            found = ", ".join(sorted(set(target.tolist()))[:4])
            raise ValueError(f"{path}: targets must be 0 and 1, both of them, found {found}.")
        same = target == "1"
        function = metrics.roc_auc_score if metric == "auc" else metrics.average_precision_score
        return lambda values: float(function(same, values))
    place = pd.Index(classes).get_indexer(target)
    if (place < 0).any():
        raise ValueError(f"{path}: no file has a score for class {str(target[place.argmin()])!r}.")
    most = 1 if metric == "accuracy" else 5

    def mean_precision(values: np.ndarray) -> float:
        own = values[np.arange(len(values)), place][:, None]
        # Ties: the class that comes first in the file.
        before = (values == own) & (np.arange(values.shape[1]) < place[:, None])
        rank = (values > own).sum(1) + before.sum(1)
        return float(np.where(rank < most, 1 / (rank + 1), 0.0).mean())

    return mean_precision


def _aligned(file: Scores, path: str | Path, ids: np.ndarray, first: Scores) -> np.ndarray:
    place = pd.Index(file.ids).get_indexer(ids)
    if (place < 0).any() or len(file.ids) != len(ids):
        absent = ids[place < 0]
        example = f", {str(absent[0])!r} is missing" if len(absent) else ""
        raise ValueError(f"{path} has {len(file.ids)} ids, the truth {len(ids)}{example}.")
    values = file.values[place]
    if file.values.ndim != first.values.ndim or set(file.classes) != set(first.classes):
        raise ValueError(f"{path} scores other classes than the first file.")
    if values.ndim == 2:
        values = values[:, pd.Index(file.classes).get_indexer(first.classes)]
    return np.asarray(values)


def _csv(path: Path, column: str | None = None) -> pd.DataFrame:
    """A csv with a column `id` (as text) and at least one more, or exactly `column`."""
    try:
        kept = {"id": str} | ({column: str} if column else {})
        frame = pd.read_csv(path, dtype=kept, keep_default_na=False, na_values=["nan", "NaN"])
    except FileNotFoundError:
        raise FileNotFoundError(f"No file at {path}.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a csv file ({error}).") from None
    names = list(frame.columns)
    if "id" not in names or len(names) < 2 or (column and sorted(names) != sorted(["id", column])):
        raise ValueError(
            f"{path}: needs the columns id,{column or 'score'}, has {','.join(names)}."
        )
    if not len(frame):
        raise ValueError(f"{path} has no rows.")
    return frame


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the best weights of out-of-fold files."""
    parser = argparse.ArgumentParser(
        prog="python -m common.weigh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("truth", metavar="TRUTH.csv")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--metric", choices=list(METRICS), required=True)
    parser.add_argument("--by", choices=["scores", "ranks"], default="scores")
    parser.add_argument("--method", choices=["coordinate", "simplex"], default="coordinate")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args(arguments)
    try:
        weights, best, alone = weigh_files(
            options.truth,
            options.files,
            options.metric,
            by=options.by,
            method=options.method,
            steps=options.steps,
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    for path, weight, value in zip(options.files, weights, alone, strict=True):
        print(f"{weight:.3f}  {path}  ({options.metric} alone {value:.5f})")
    print(f"{options.metric} {best:.5f}   --weights {','.join(f'{w:.3f}' for w in weights)}")
