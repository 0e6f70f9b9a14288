"""How infer.py and ensemble.py end: a checked submission, then scores, analysis, map and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.clock import Clock
from common.entry import say
from common.pipeline.ranking import Question
from common.pipeline.scores import score_rows, table
from common.report.files import Analysis, save_analysis, write_json
from common.report.maps import Images, embedding_map
from common.report.page import write_report
from common.report.queries import Queries, save_queries
from common.submission import check, write
from common.track import Run


def submit(
    competition: str, ids: np.ndarray, rows: Sequence[Any], path: Path, sample: Path | None
) -> None:
    """Write the submission and refuse to go on with one that Kaggle would reject.

    Args:
        competition: as `common.submission` calls it.
        ids: `(Q,)`.
        rows: the answer to each.
        path: the file.
        sample: Kaggle's sample submission; None: nothing to check against.

    Raises:
        ValueError: what Kaggle would reject, with the rows.
    """
    write(competition, ids, rows, path)
    problems = check(competition, path, sample) if sample is not None else []
    if problems:
        raise ValueError(f"{path} would be rejected: {'; '.join(map(str, problems))}")


def publish(
    folder: Path,
    run: Run,
    analysis: Analysis,
    scores: Mapping[str, float],
    names: Mapping[str, str],
    clock: Clock,
    *,
    parts: Mapping[str, Queries],
    joined: Sequence[str | Path] = (),
    above: Sequence[dict[str, Any]] = (),
) -> None:
    """Log the scores, write `analysis.json` and `report.html`, close the log, say where all is.

    Args:
        folder: the run or ensemble folder.
        run: where scores are logged; it is finished here.
        analysis: filled but for scores and stages.
        scores: `{"test/gap": ..., "held-out/gap": ...}`.
        names: how each metric is called in print: `{"gap": "GAP"}`.
        clock: of the script.
        parts: what each query adds to the scores, for comparisons.
        joined: run folders of an ensemble, whose scores are shown above its own.
        above: further rows above them.
    """
    run.summary(**scores)
    save_queries(folder, parts)
    rows = score_rows(folder, scores, [Path(other) for other in joined], names)
    analysis.scores = [*above, *rows]
    analysis.stages = clock.rows()
    save_analysis(folder, analysis)
    page = write_report(folder)
    sync = run.finish()
    say(f"{table(analysis.scores)}\nreport: {page}" + (f"\nto W&B: {sync}" if sync else ""))


def draw_map(
    folder: Path,
    asked: Question,
    first: np.ndarray,
    classes: np.ndarray,
    clock: Clock,
    *,
    none: str = "",
    labels: np.ndarray | None = None,
) -> None:
    """Write `map.json`: a question's queries among its gallery, for the report.

    Args:
        folder: the run folder.
        asked: the question.
        first: `(Q,)` label of each query's answer.
        classes: `(C,)` names.
        clock: of the script.
        none: name of label -1.
        labels: `(G,)` of the gallery; unset, what the steps know of it.
    """
    truth, marks = np.full(len(first), -1), np.full(len(first), "unknown")
    if asked.truth is not None:
        truth = asked.truth
        marks = np.where(truth < 0, "none", np.where(first == truth, "right", "wrong"))
    known = asked.gallery_labels.numpy() if labels is None else labels
    queries = Images(asked.queries, asked.query_paths, truth, marks, asked.query_boxes)
    gallery = Images(
        asked.gallery,
        asked.gallery_paths,
        known,
        np.full(len(asked.gallery), "gallery"),
        asked.gallery_boxes,
    )
    with clock("map of the embeddings", len(queries.labels) + len(gallery.labels)):
        write_json(folder / "map.json", embedding_map(queries, gallery, classes, none=none))
