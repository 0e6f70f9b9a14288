"""Compare experiments: what differs, scores with their spread, cost, and who is really better.

    python -m common.report.compare RUN RUN ...          # run folders
    python -m common.report.compare runs/whale           # or a folder of them
    python -m common.report.compare RUN... --md          # the table of a README
    python -m common.report.compare RUN... --html        # a page with curves: compare.html
    python -m common.report.compare wandb/offline-run-*  # what W&B stored
    python -m common.report.compare wandb:ENTITY/PROJECT # what W&B's server has

Runs that differ only in seed, data.fold and where they went are one experiment: its scores are the
mean and the standard deviation over its runs. Significance is a paired bootstrap over the queries
that infer.py and ensemble.py leave in queries.json; GAP is ranked anew in each draw.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from common.entry import entry
from common.report import compare_text
from common.report.bootstrap import DRAWS
from common.report.comparison import build, gather


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparison, and write the page where it is asked for."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    if options.draws < 1:
        raise ValueError(f"--draws {options.draws}: at least 1.")
    if options.into is not None and not options.into.is_file():
        raise ValueError(f"--into {options.into}: there is no such file.")
    records, remarks = gather(options.runs)
    metrics = [name for name in options.metrics.split(",") if name]
    found = build(records, metrics=metrics, sort=options.sort, draws=options.draws, remarks=remarks)
    if options.into is not None:
        command = f"python -m common.report.compare {shlex.join(given)}"
        compare_text.put_into(options.into, compare_text.markdown(found, command))
        print(f"table in {options.into}")
    elif options.md:
        print(compare_text.markdown(found))
    elif options.csv:
        print(compare_text.table(found))
    else:
        print(compare_text.text(found))
    if options.html:
        from common.report.compare_page import write_page  # matplotlib and jinja2 only when needed

        path = write_page(found, options.out or _beside(found.records[0].source) / "compare.html")
        print(f"page: {path}", file=sys.stderr if options.md or options.csv else sys.stdout)


def _beside(source: str) -> Path:
    """The folder that holds the first run; the present one for a run of W&B's server."""
    place = Path(source).parent
    return place if place.is_dir() and os.access(place, os.W_OK) else Path()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m common.report.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="see above; the first is held to")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--md", action="store_true", help="print a Markdown table")
    form.add_argument("--csv", action="store_true", help="print CSV, a run a row")
    form.add_argument(
        "--into",
        type=Path,
        metavar="FILE",
        help=f"put the Markdown table between {' and '.join(compare_text.MARKERS)} in FILE",
    )
    parser.add_argument("--html", action="store_true", help="also write a page with curves")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="of the page; compare.html beside the first run"
    )
    parser.add_argument(
        "--metrics", default="", metavar="A,B", help="to show, as in summary.json: test/map5,..."
    )
    parser.add_argument("--sort", metavar="METRIC", help="order the experiments, best first")
    parser.add_argument(
        "--draws", type=int, default=DRAWS, help=f"of the bootstrap; {DRAWS} unless told"
    )
    return parser


if __name__ == "__main__":
    entry(main)
