"""What infer.py and ensemble.py do with scored pairs: the submission, scores, analysis, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from common.clock import Clock
from common.entry import say
from common.metrics import score as score_file
from common.notes import Notes
from common.pipeline import publish, runs
from common.pipeline.scores import inline, table
from common.report.files import Analysis
from common.report.queries import Queries, of_files
from common.rerank.graph import size_shares
from common.rerank.transfer import Choice, Cut, MatchConfig, choose_cut, kept
from common.submission import write
from common.track import Run
from common.types import Neighbors

from .alone import found_alone
from .analysis import analyse, draw_map, rule_rows, sections
from .config import BASE, Config
from .data import Shopee
from .matching import Memory, Pool

Find = Callable[[Pool, Memory, Notes], Neighbors]
NAMES = {"f1": "F1"}


def start_run(config: Config, folder: Path, data: Shopee, job: str) -> Run:
    """The log of one script in the run folder."""
    return runs.start_run(config, folder, data, job, base=BASE, metrics=("f1", "recall1"))


def finish(
    config: Config,
    path: Path,
    data: Shopee,
    pools: tuple[Pool | None, Pool],
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
        pools: held-out listings, if any, and the test's.
        find: maps (pool, memory, notes) to scored candidates; with held-out ones first.
        folder: the run or ensemble folder.
        run: where scores and tables are logged; it is finished here.
        clock: of the script.
        joined: run folders of an ensemble, whose scores are shown above its own.
    """
    held, test = pools
    memory: Memory = {}
    notes, analysis = Notes(), Analysis()
    known = None
    if held is not None:
        with clock("match what is held out", len(held.table)):
            known = find(held, memory, notes)
        clock.parts(notes.seconds)
    told = Notes() if held is not None else notes
    with clock("match the test", len(test.table)):
        found = find(test, memory, told)
    clock.parts(told.seconds)
    shares = size_shares(data.train.labels)
    choice = choose_cut(
        config.threshold, shares, found, known, None if held is None else held.truth
    )
    answer = kept(found, choice.cut, config.threshold.most)
    publish.submit("shopee", test.table.ids, rows_of(answer, test), path, data.sample)
    scores: dict[str, float] = {}
    parts: dict[str, Queries] = {}
    if choice.cut.f1 is not None:
        scores["held-out/f1"] = choice.cut.f1
    solution = data.solution()
    if solution is not None:
        parts["test/f1"] = of_files("f1", solution, path)
        scores["test/f1"] = parts["test/f1"].metric()
    singles = alone(pools, config.threshold, shares, solution, folder)
    say(decided(choice, path, answer) + inline(scores, "f1", "F1"))
    if held is not None and known is not None and held.truth is not None:
        best = kept(known, choice.cut, config.threshold.most)
        asked = held.table.ids[held.truth.asked]
        parts["held-out/f1"] = Queries(asked, held.truth.row_f1(best))
        analyse(analysis, held, known, choice, config.threshold, run, data)
        found_alone(held, {name: cut for name, cut, _ in singles}, notes, run, data)
    analysis.notes["shopee"] = asdict(notes)
    draw_map(folder, test if held is None else held, known, choice, config.threshold, data, clock)
    analysis.sections = sections(choice, config.threshold, found, shares, held, known)
    say(table(rule_rows(choice)))
    publish.publish(
        folder,
        run,
        analysis,
        scores,
        NAMES,
        clock,
        parts=parts,
        joined=joined,
        above=[row for _, _, row in singles],
    )
    return scores


def rows_of(answer: Neighbors, pool: Pool) -> list[list[str]]:
    """Each row's own posting_id, then its matches, best first."""
    ids = pool.table.ids
    return [
        [str(own), *(str(ids[i]) for i in row if i >= 0)]
        for own, row in zip(ids, answer.index.tolist(), strict=True)
    ]


def alone(
    pools: tuple[Pool | None, Pool],
    config: MatchConfig,
    shares: Sequence[float],
    solution: Path | None,
    folder: Path,
) -> list[tuple[str, Cut, dict[str, float]]]:
    """F1 of each single source with a threshold of its own, as rows of the score table."""
    held, test = pools
    rows = []
    by = config.by if config.by != "value" else "validation" if held else "sizes"
    for name in test.sources.parts:
        found = test.sources.near(name, config.most)
        known = None if held is None else held.sources.near(name, config.most)
        own = MatchConfig(
            by,
            false_weight=config.false_weight,
            at_least_two=config.at_least_two,
            most=config.most,
        )
        cut = choose_cut(own, shares, found, known, None if held is None else held.truth).cut
        row = {}
        if cut.f1 is not None:
            row["F1 (held-out)"] = cut.f1
        if solution is not None:
            file = folder / "alone" / f"{name}.csv"
            write("shopee", test.table.ids, rows_of(kept(found, cut, config.most), test), file)
            row["F1 (test)"] = score_file("f1", solution, file)
        note = "TF-IDF of titles" if name in test.sources.sparse else "nearest, own threshold"
        rows.append((name, cut, {"name": f"{name} only", **row, "note": note}))
    return rows  # type: ignore[return-value]


def decided(choice: Choice, path: Path, answer: Neighbors) -> str:
    """A line of what was decided."""
    count = 1 + (answer.index >= 0).sum(1).float()
    return (
        f"{path} passes the check; threshold {choice.cut.threshold:.4g} by {choice.by}, "
        f"{float(count.mean()) if len(count) else 0:.2f} listings in a row"
    )
