"""What infer.py and ensemble.py do with answers: the submission, scores, analysis, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.config import load
from common.engine import distributed
from common.entry import say
from common.metrics import score as score_file
from common.notes import Notes
from common.pipeline.ranking import Question
from common.pipeline.scores import inline, score_rows, table
from common.report.files import Analysis, save_analysis
from common.report.matches import show_matches
from common.report.page import write_report
from common.rerank.curves import Curve
from common.retrieval.search import search
from common.submission import check, write
from common.track import Run
from common.types import Neighbors

from .config import BASE, Config
from .data import Whale
from .lists import write_lists
from .postprocess import Postprocess
from .ranking import TOP, Held, answer, average_precision, curve_of

Find = Callable[[bool, Notes], tuple[Question, Neighbors]]
NAMES = {"map5": "MAP@5", "recall1": "recall@1, known"}


def start_run(config: Config, folder: Path, data: Whale, job: str) -> Run:
    """The log of one script in the run folder."""
    best = [f"valid/{metric}" for metric in ("score", "map5", "recall1")]
    return Run(
        folder,
        asdict(config),
        config.track,
        job_type=job,
        rank=distributed.rank(),
        best=best if job == "train" else (),
        default=asdict(load(Config, BASE)),
        data=data.fingerprint(),
    )


def output(config: Config, folder: Path) -> Path:
    """The submission file: `out` when it is one, else submission.csv in it or in `folder`."""
    out = Path(config.out) if config.out else folder
    return out if out.suffix == ".csv" else out / "submission.csv"


def finish(
    config: Config,
    path: Path,
    data: Whale,
    held: Held | None,
    after: Postprocess,
    find: Find,
    folder: Path,
    run: Run,
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
        joined: run folders of an ensemble, whose scores are shown above its own.
    """
    scores: dict[str, float] = {}
    analysis, notes = Analysis(), Notes()
    classes, curve = len(data.classes), None
    lists = []
    if held is not None:
        asked, known = find(True, notes)
        lists.append((asked.queries.ids, known))
        curve = curve_of(known, asked, config.unknown)
        scores |= analyse(config, asked, known, curve, data, after, analysis, run)
    question, found = find(False, Notes() if held is not None else notes)
    write_lists(folder / "lists.csv", [(question.queries.ids, found), *lists], data)
    answers = answer(found, question, config.unknown, curve, classes)
    answers = after.apply(answers, question.queries.ids, test=True)
    write("whale", question.queries.ids, named(answers, data), path)
    problems = check("whale", path, data.sample) if data.sample is not None else []
    if problems:
        raise ValueError(f"{path} would be rejected: {'; '.join(map(str, problems))}")
    first = float((answers.index[:, 0] == classes).float().mean())
    solution = data.solution()
    if solution is not None:
        scores["test/map5"] = score_file("map5", solution, path)
    for remark in after.remarks:
        say(remark)
    notes.remarks += after.remarks
    say(
        f"{path} passes the check; {first:.1%} {data.unknown} first"
        + inline(scores, "map5", "MAP@5")
    )
    show_matches(notes, question if held is None else asked)
    analysis.notes["whale"] = asdict(notes)
    run.summary(**scores)
    analysis.scores = score_rows(folder, scores, [Path(other) for other in joined], NAMES)
    save_analysis(folder, analysis)
    page = write_report(folder)
    sync = run.finish()
    say(f"{table(analysis.scores)}\nreport: {page}" + (f"\nto W&B: {sync}" if sync else ""))
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
) -> dict[str, float]:
    """Held-out scores; threshold curve, MAP@5 by number of images, queries with their answers."""
    assert asked.truth is not None
    truth, classes = asked.truth, len(data.classes)
    answers = answer(found, asked, config.unknown, curve, classes)
    answers = after.apply(answers, asked.queries.ids, test=False)
    values = average_precision(answers, truth, classes)
    known = truth >= 0
    right = found.index[:, 0].numpy() == truth
    analysis.thresholds = [curve.report("MAP@5 by threshold", "held out")]
    images = np.bincount(asked.gallery_labels.numpy(), minlength=classes)
    counts = np.where(known, images[truth], 0)
    analysis.retrieval = {"ap": values, "relevant": counts, "name": "MAP@5"}
    kinds = np.where(known, np.where(right, "right", "wrong"), "non-landmark")
    analysis.recognition = {
        "score": found.score[:, 0].numpy(),
        "kind": kinds.tolist(),
        "images": counts,
        "positives": int(known.sum()),
    }
    run.table("whale", _rows(asked, answers, values, data))
    scores = {"held-out/map5": float(values.mean())}
    if known.any():
        scores["held-out/recall1"] = float(right[known].mean())
    return scores


def named(answers: Neighbors, data: Whale) -> list[list[str]]:
    """The Ids of each row; less than five where there are not as many individuals."""
    names = np.append(data.classes, data.unknown)
    return [[str(names[i]) for i in row if i >= 0] for row in answers.index.tolist()]


def _rows(
    asked: Question, answers: Neighbors, values: np.ndarray, data: Whale
) -> list[dict[str, Any]]:
    """Each query with its nearest images, for the report's gallery."""
    assert asked.truth is not None
    near = search(asked.queries, asked.gallery, TOP)
    labels = asked.gallery_labels.numpy()
    names, told = np.append(data.classes, data.unknown), named(answers, data)
    rows = []
    for q, truth in enumerate(asked.truth.tolist()):
        results = [
            {
                "id": str(asked.gallery.ids[i]),
                "path": asked.gallery_paths[i],
                "label": str(names[labels[i]]),
                "score": value,
                "right": int(labels[i]) == truth,
            }
            for i, value in zip(near.index[q].tolist(), near.score[q].tolist(), strict=True)
            if i >= 0
        ]
        query = {
            "id": str(asked.queries.ids[q]),
            "path": asked.query_paths[q],
            "label": str(names[truth]),
        }
        note = "answers " + ", ".join(told[q])
        rows.append({"query": query, "results": results, "note": note, "ap": float(values[q])})
    return rows
