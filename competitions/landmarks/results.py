"""What infer.py and ensemble.py do with embeddings: submissions, scores, analysis, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.clock import Clock
from common.entry import say
from common.metrics import map_at_k
from common.notes import Notes
from common.pipeline import publish, runs
from common.pipeline.ranking import Question
from common.pipeline.scores import inline
from common.report import separation
from common.report.files import Analysis
from common.report.matches import show_matches
from common.report.queries import Queries, of_files
from common.rerank.curves import unknown_curve
from common.retrieval.search import search
from common.track import Run
from common.types import Neighbors

from .config import BASE, Config
from .data import Landmarks
from .ranking import TOP, Held, score, top_label, top_names

EACH = 8  # queries of each group in the gallery
NOBODY = "no known landmark"
Answer = Callable[[str, bool, Notes], tuple[Question, Neighbors]]
METRICS = {"recognition": ("gap", "GAP"), "retrieval": ("map100", "mAP@100")}


def start_run(config: Config, folder: Path, data: Landmarks, job: str) -> Run:
    """The log of one script in the run folder."""
    return runs.start_run(config, folder, data, job, base=BASE, metrics=("gap", "map100"))


def outputs(config: Config, data: Landmarks, folder: Path) -> dict[str, Path]:
    """The submission of each task, for a check before long work: `out`, or files in it or `folder`.

    Raises:
        ValueError: retrieval without index images, or one file for two submissions.
    """
    tasks = [config.task]
    if config.task == "both":
        tasks = ["recognition", "retrieval"] if data.index is not None else ["recognition"]
    if "retrieval" in tasks and data.index is None:
        raise ValueError(
            f"No index images under {data.root}: retrieval needs them, set task=recognition."
        )
    if config.out and config.out.endswith(".csv"):
        if len(tasks) > 1:
            raise ValueError(
                f"out={config.out} is one file, but there are two submissions: give a folder, or "
                "set task=recognition or task=retrieval."
            )
        return {tasks[0]: Path(config.out)}
    return {task: Path(config.out or folder) / f"submission_{task}.csv" for task in tasks}


def finish(
    paths: dict[str, Path],
    data: Landmarks,
    held: Held | None,
    answer: Answer,
    folder: Path,
    run: Run,
    clock: Clock,
    joined: Sequence[str] = (),
) -> dict[str, float]:
    """Write and check the submissions, score what can be scored, and write the report.

    Args:
        paths: the submission of each task, from `outputs`.
        data: tables and samples.
        held: what is held out, or None.
        answer: maps (task, whether held-out, notes) to the question and its final neighbors, and
            adds to the notes.
        folder: the run or ensemble folder.
        run: where scores and tables are logged; it is finished here.
        clock: of the script.
        joined: run folders of an ensemble, whose scores are shown above its own.
    """
    scores: dict[str, float] = {}
    parts: dict[str, Queries] = {}
    analysis = Analysis()
    for place, (task, path) in enumerate(paths.items()):
        metric, name = METRICS[task]
        notes = Notes()
        with clock(f"{task}: rank the test") as stage:
            question, found = answer(task, False, notes)
        stage.rows = len(found)
        clock.parts(notes.seconds)
        submit(task, question, found, data, path)
        solution = data.solution(task)
        if solution is not None:
            parts[f"test/{metric}"] = of_files(metric, solution, path)
            scores[f"test/{metric}"] = parts[f"test/{metric}"].metric()
        if held is not None:
            notes = Notes()  # of images whose truth is known
            with clock(f"{task}: rank what is held out") as stage:
                asked, known = answer(task, True, notes)
            stage.rows = len(known)
            clock.parts(notes.seconds)
            scores[f"held-out/{metric}"] = score(task, asked, known)
            part = recognition_analysis if task == "recognition" else retrieval_analysis
            parts[f"held-out/{metric}"] = part(asked, known, data, analysis, run)
            question, found = asked, known
        show_matches(notes, question)
        if place == 0:
            draw_map(task, folder, question, found, data, clock)
        analysis.notes[task] = asdict(notes)
        say(f"{task}: {path} passes the check" + inline(scores, metric, name))
    names = dict(METRICS.values())
    publish.publish(folder, run, analysis, scores, names, clock, parts=parts, joined=joined)
    return scores


def submit(task: str, question: Question, found: Neighbors, data: Landmarks, path: Path) -> None:
    """Write the submission and refuse to go on with one that Kaggle would reject."""
    if task == "recognition":
        best = top_label(found)
        rows: list[Any] = [b and (str(data.classes[b[0]]), b[1]) for b in best]
    else:
        rows = top_names(found, question.gallery.ids)
    publish.submit(f"landmarks-{task}", question.queries.ids, rows, path, data.samples[task])


def draw_map(
    task: str, folder: Path, asked: Question, found: Neighbors, data: Landmarks, clock: Clock
) -> None:
    """Write the map of a question's embeddings; a query is right if its first answer is."""
    first = found.index[:, 0].numpy()
    if task == "retrieval" and asked.relevant is not None:
        first = np.where(first >= 0, asked.relevant[first], -1)
    none = "" if asked.truth is None else NOBODY
    classes, labels = data.classes, asked.relevant
    publish.draw_map(folder, asked, first, classes, clock, none=none, labels=labels)


def recognition_analysis(
    asked: Question, found: Neighbors, data: Landmarks, analysis: Analysis, run: Run
) -> Queries:
    """The queries; scores of right, wrong and non-landmark predictions, the nearest images."""
    assert asked.truth is not None
    assert asked.relevant is not None
    best, labels = top_label(found), asked.gallery_labels.numpy()
    kinds, values, counts = [], [], []
    images = np.bincount(labels[labels >= 0], minlength=len(data.classes))
    for truth, guess in zip(asked.truth.tolist(), best, strict=True):
        if guess is None:
            continue
        kinds.append("none" if truth < 0 else "right" if guess[0] == truth else "wrong")
        values.append(guess[1])
        counts.append(int(images[truth]) if truth >= 0 else 0)
    positives = int((asked.truth >= 0).sum())
    analysis.recognition = {
        "score": values,
        "kind": kinds,
        "images": counts,
        "curve": "GAP",
        "positives": positives,
    }
    analysis.words = {"thing": "landmark", "things": "landmarks", "none": "non-landmark"}
    threshold = decisions(asked, found, analysis)
    hits = found.index.numpy() == asked.truth[:, None]
    analysis.pairs += [
        separation.cosines(asked.queries, asked.gallery, asked.truth, asked.relevant),
        separation.candidates(found, hits, threshold=threshold, what="landmarks"),
    ]
    near = search(asked.queries, asked.gallery, 5)
    rows = []
    for q, (truth, guess) in enumerate(zip(asked.truth.tolist(), best, strict=True)):
        name = data.classes[truth] if truth >= 0 else NOBODY
        note = "no prediction" if guess is None else f"predicts {data.classes[guess[0]]}"
        row = _row(asked, near, q, labels, data, name)
        right = guess is not None and guess[0] == truth
        row |= {"note": note, "score": None if guess is None else guess[1], "right": right}
        row["margin"] = None if guess is None or threshold is None else guess[1] - threshold
        rows.append(row)
    run.table("recognition", rows, each=EACH)
    return Queries(
        asked.queries.ids,
        np.array([row["right"] for row in rows]),
        np.array([row["score"] for row in rows], np.float64),  # None becomes NaN
        asked.truth >= 0,
    )


def decisions(asked: Question, found: Neighbors, analysis: Analysis) -> float | None:
    """The threshold that tells known landmarks from all else best; its curve into the analysis."""
    assert asked.truth is not None
    first = found.top(1)
    if not bool((first.index >= 0).any()):
        return None
    curve = unknown_curve(first.score.numpy(), first.index.numpy(), asked.truth, top=1)
    # Powers of votes span decades: points by rank, as evenly spaced ones would miss the low scores.
    rows = np.linspace(0, len(curve.x) - 1, 200).round().astype(np.int64)
    rows = np.unique(np.append(rows, curve.best))
    analysis.thresholds = [
        {
            "title": "Right decisions by threshold",
            "x": curve.x[rows],
            "series": {"held out": curve.y[rows]},
            "chosen": curve.threshold,
            "middle": separation.bins(curve.x, curve.x, 1)[1],
            "x_label": "threshold",
            "y_label": "share of the queries",
            "caption": "A decision is right where the landmark is and its score reaches the "
            "threshold, or where nothing known is seen and no score does. GAP needs no "
            "threshold; a service that answers or keeps silent does. "
            f"{curve.value:.4f} is the best.",
        }
    ]
    return curve.threshold


def retrieval_analysis(
    asked: Question, found: Neighbors, data: Landmarks, analysis: Analysis, run: Run
) -> Queries:
    """The queries with their average precision; their first results."""
    assert asked.truth is not None
    assert asked.relevant is not None
    names, rows, values, counts = asked.gallery.ids, [], [], []
    order = np.argsort(asked.relevant, kind="stable")
    starts = np.searchsorted(asked.relevant[order], np.arange(len(data.classes) + 1))
    for q, (truth, ranked) in enumerate(
        zip(asked.truth.tolist(), top_names(found, names), strict=True)
    ):
        wanted = set(names[order[starts[truth] : starts[truth + 1]]].tolist())
        values.append(map_at_k({str(q): wanted}, {str(q): ranked}, TOP))
        counts.append(len(wanted))
        row = _row(asked, found, q, asked.relevant, data, str(data.classes[truth]))
        rows.append(row | {"ap": values[-1]})
    analysis.retrieval = {"ap": values, "relevant": counts, "name": "AP@100"}
    run.table("retrieval", rows, each=EACH)
    if not analysis.pairs:  # recognition has shown the same embeddings
        pairs = separation.cosines(asked.queries, asked.gallery, asked.truth, asked.relevant)
        analysis.pairs.append(pairs)
    return Queries(asked.queries.ids, np.array(values))


def _row(
    asked: Question, found: Neighbors, q: int, labels: np.ndarray, data: Landmarks, name: str
) -> dict[str, Any]:
    """A query with its first results for the report's gallery."""
    assert asked.truth is not None
    truth = int(asked.truth[q])
    results = []
    for i, value in zip(found.index[q, :5].tolist(), found.score[q, :5].tolist(), strict=True):
        if i >= 0:
            label = int(labels[i])
            results.append(
                {
                    "id": str(asked.gallery.ids[i]),
                    "path": asked.gallery_paths[i],
                    "label": str(data.classes[label]),
                    "score": value,
                    "right": label == truth,
                }
            )
    query = {"id": str(asked.queries.ids[q]), "path": asked.query_paths[q], "label": name}
    return {"query": query, "results": results}
