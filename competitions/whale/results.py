"""What infer.py and ensemble.py do with answers: the submission, scores, analysis, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.clock import Clock
from common.entry import say
from common.notes import Notes
from common.pipeline import publish, runs
from common.pipeline.ranking import Question
from common.pipeline.scores import inline
from common.report import separation
from common.report.files import Analysis
from common.report.matches import show_matches
from common.report.queries import Queries, of_files
from common.rerank.curves import Curve
from common.track import Run
from common.types import Neighbors

from .config import BASE, Config
from .data import Whale
from .lists import write_lists
from .postprocess import Postprocess
from .ranking import Held, answer, average_precision, curve_of, threshold_of

EACH = 8  # queries of each group in the gallery
Find = Callable[[bool, Notes], tuple[Question, Neighbors]]
NAMES = {"map5": "MAP@5", "recall1": "recall@1, known"}
MARKED = {  # in the curve of held-out images
    "validation": "the best one, which the test has too",
    "share": "the one that gives so many of these images the unknown identity first",
    "quantile": "that quantile of these images' best scores",
    "threshold": "the given one",
}


def start_run(config: Config, folder: Path, data: Whale, job: str) -> Run:
    """The log of one script in the run folder."""
    return runs.start_run(config, folder, data, job, base=BASE, metrics=("map5", "recall1"))


def finish(
    config: Config,
    path: Path,
    data: Whale,
    held: Held | None,
    after: Postprocess,
    find: Find,
    folder: Path,
    run: Run,
    clock: Clock,
    joined: Sequence[str] = (),
) -> dict[str, float]:
    """Write and check the submission, score what can be scored, and write the report.

    Args:
        config: the script's.
        path: the submission.
        data: tables and sample.
        held: what is held out, or None.
        after: what is done to the answers.
        find: maps (whether held-out, notes) to the question and its individuals, best first.
        folder: the run or ensemble folder.
        run: where scores and tables are logged; it is finished here.
        clock: of the script.
        joined: run folders of an ensemble, whose scores are shown above its own.
    """
    scores: dict[str, float] = {}
    parts: dict[str, Queries] = {}
    analysis, notes = Analysis(), Notes()
    classes, curve = len(data.classes), None
    lists = []
    if held is not None:
        with clock("rank what is held out") as stage:
            asked, known = find(True, notes)
        stage.rows = len(known)
        clock.parts(notes.seconds)
        lists.append((asked.queries.ids, known))
        curve = curve_of(known, asked, config.unknown)
        scores |= analyse(config, asked, known, curve, data, after, analysis, run, parts)
    told = Notes() if held is not None else notes
    with clock("rank the test") as stage:
        question, found = find(False, told)
    stage.rows = len(found)
    clock.parts(told.seconds)
    write_lists(folder / "lists.csv", [(question.queries.ids, found), *lists], data)
    threshold = threshold_of(found, question, config.unknown, curve, classes)
    answers = answer(found, question, config.unknown, threshold, classes)
    answers = after.apply(answers, question.queries.ids, test=True)
    publish.submit("whale", question.queries.ids, named(answers, data), path, data.sample)
    first = float((answers.index[:, 0] == classes).float().mean())
    solution = data.solution()
    if solution is not None:
        parts["test/map5"] = of_files("map5", solution, path)
        scores["test/map5"] = parts["test/map5"].metric()
    for remark in after.remarks:
        say(remark)
    notes.remarks += after.remarks
    say(
        f"{path} passes the check; {first:.1%} {data.unknown} first, below {threshold:.4g}"
        + inline(scores, "map5", "MAP@5")
    )
    if held is not None:
        question, found = asked, known
    show_matches(notes, question)
    none = "" if held is None else data.unknown
    nearest = found.index[:, 0].numpy()
    publish.draw_map(folder, question, nearest, data.classes, clock, none=none)
    analysis.notes["whale"] = asdict(notes)
    publish.publish(folder, run, analysis, scores, NAMES, clock, parts=parts, joined=joined)
    return scores


def analyse(
    config: Config,
    asked: Question,
    found: Neighbors,
    curve: Curve,
    data: Whale,
    after: Postprocess,
    analysis: Analysis,
    run: Run,
    parts: dict[str, Queries],
) -> dict[str, float]:
    """Held-out scores; threshold curve, MAP@5 by number of images, queries with their answers.

    MAP@5 of each query goes into `parts`.
    """
    assert asked.truth is not None
    truth, classes = asked.truth, len(data.classes)
    threshold = threshold_of(found, asked, config.unknown, curve, classes)
    answers = answer(found, asked, config.unknown, threshold, classes)
    answers = after.apply(answers, asked.queries.ids, test=False)
    values = average_precision(answers, truth, classes)
    parts["held-out/map5"] = Queries(asked.queries.ids, values)
    known = truth >= 0
    right = found.index[:, 0].numpy() == truth
    analysis.words = wording(data.unknown)
    analysis.thresholds = [
        curve.report(
            f"MAP@5 by threshold of {data.unknown}",
            "held out",
            x_label="threshold",
            y_label="MAP@5",
            caption=f"{data.unknown} stands before the first individual that scores below the "
            f"threshold; marked: {MARKED[config.unknown.by]}, {curve.value:.4f} is the best.",
            chosen=threshold,
        )
    ]
    images = np.bincount(asked.gallery_labels.numpy(), minlength=classes)
    counts = np.where(known, images[truth], 0)
    analysis.retrieval = {"ap": values, "relevant": counts, "name": "MAP@5"}
    kinds = np.where(known, np.where(right, "right", "wrong"), "none")
    analysis.recognition = {
        "score": found.score[:, 0].numpy(),
        "kind": kinds.tolist(),
        "images": counts,
        "threshold": threshold,
    }
    labels = asked.gallery_labels.numpy()
    hits = (found.index.numpy() == truth[:, None]) & known[:, None]
    analysis.pairs = [
        separation.cosines(asked.queries, asked.gallery, truth, labels),
        separation.candidates(found, hits, threshold=threshold, what="individuals"),
    ]
    margins = found.score[:, 0].numpy() - threshold
    run.table("whale", _rows(asked, answers, values, margins, data), each=EACH)
    scores = {"held-out/map5": float(values.mean())}
    if known.any():
        scores["held-out/recall1"] = float(right[known].mean())
    return scores


def named(answers: Neighbors, data: Whale) -> list[list[str]]:
    """The Ids of each row; less than five where there are not as many individuals."""
    names = np.append(data.classes, data.unknown)
    return [[str(names[i]) for i in row if i >= 0] for row in answers.index.tolist()]


def wording(unknown: str) -> dict[str, str]:
    """How the report calls things, `common.report.files.WORDS`."""
    return {
        "thing": "individual",
        "things": "individuals",
        "none": unknown,
        "recognition": "The nearest individual",
        "recognition text": "Of held-out images: who is nearest, and how sure that is. On the left "
        f"of the threshold, if one is drawn, {unknown} comes first.",
        "retrieval": "MAP@5",
        "retrieval text": f"Of held-out images: five answers, {unknown} among them. Average "
        "precision is 1 / place of the right one, 0 without it.",
        "precision text": "Left: images whose identity is not among the five answers. Right: those "
        "where it comes first.",
        "relevant": "training images of the individual",
        "relevant title": "Few and many training images",
        "relevant text": f"MAP@5 by number of training images, with its standard error; 0: images "
        f"whose right answer is {unknown}.",
    }


def _rows(
    asked: Question, answers: Neighbors, values: np.ndarray, margins: np.ndarray, data: Whale
) -> list[dict[str, Any]]:
    """Each query with its answers, each by its individual's nearest image, for the gallery."""
    assert asked.truth is not None
    labels, unknown = asked.gallery_labels.numpy(), len(data.classes)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(unknown + 1))
    names = np.append(data.classes, data.unknown)  # label -1 is the last
    gallery, queries = asked.gallery.vectors.float(), asked.queries.vectors.float()

    def entry(q: int, label: int, score: float) -> dict[str, Any]:
        found = {"label": str(names[label]), "score": score, "known": label != unknown}
        found["right"] = label == (unknown if truths[q] < 0 else truths[q])
        mine = order[starts[label] : starts[label + 1]] if label != unknown else order[:0]
        if len(mine):
            near = int(mine[int((gallery[torch.from_numpy(mine)] @ queries[q]).argmax())])
            found |= {"id": str(asked.gallery.ids[near]), "path": asked.gallery_paths[near]}
        return found

    truths = asked.truth.tolist()
    rows = []
    for q, truth in enumerate(truths):
        told = zip(answers.index[q].tolist(), answers.score[q].tolist(), strict=True)
        query = {
            "id": str(asked.queries.ids[q]),
            "path": asked.query_paths[q],
            "label": str(names[truth]),
            "known": truth >= 0,
        }
        results = [entry(q, label, score) for label, score in told if label >= 0]
        row = {"query": query, "results": results, "ap": float(values[q])}
        if np.isfinite(margins[q]):
            row["margin"] = float(margins[q])
        rows.append(row)
    return rows
