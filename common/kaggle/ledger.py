"""`submissions/ledger.csv`: one line for each submission, with the scores that came back.

python -m common.kaggle record competition=whale run=runs/whale/baseline public=0.93 private=0.92
"""

from __future__ import annotations

import csv
import datetime
import io
import math
from pathlib import Path

from common.environment import git_state
from common.kaggle.kernel import SUBMISSIONS
from common.kaggle.pack import home
from common.paths import write_text

COLUMNS = ("date", "competition", "run", "commit", "cv", "public", "private", "note")


def record(
    *,
    competition: str,
    run: str,
    cv: float | None = None,
    public: float | None = None,
    private: float | None = None,
    note: str = "",
    date: str | None = None,
    ledger: str | None = None,
) -> dict[str, str]:
    """The line that was added to the ledger.

    Args:
        competition: folder below competitions/.
        run: what was submitted.
        cv: its own score on held-out data.
        public: score of the public board.
        private: score of the private board.
        note: one line.
        date: as 2026-11-25; None: today.
        ledger: the file (submissions/ledger.csv).

    Raises:
        ValueError: a score that is no finite number, a malformed date, a file of other columns.
    """
    home(competition)
    path = Path(ledger) if ledger else SUBMISSIONS / "ledger.csv"
    day = datetime.date.fromisoformat(date) if date else datetime.date.today()
    scores = {"cv": cv, "public": public, "private": private}
    for name, score in scores.items():
        if score is not None and not math.isfinite(float(score)):
            raise ValueError(f"{name}={score}: a finite number, or leave it out.")
    state = git_state()
    line = {
        "date": day.isoformat(),
        "competition": competition,
        "run": run,
        "commit": state.get("commit", "")[:12] + ("+" if state.get("dirty") else ""),
        **{name: "" if score is None else repr(float(score)) for name, score in scores.items()},
        "note": " ".join(note.split()),
    }
    text = path.read_text(encoding="utf-8") if path.is_file() else ",".join(COLUMNS) + "\n"
    if text.splitlines()[0] != ",".join(COLUMNS):
        raise ValueError(f"{path} does not begin with {','.join(COLUMNS)}: move it elsewhere.")
    added = io.StringIO()
    csv.DictWriter(added, COLUMNS, lineterminator="\n").writerow(line)
    write_text(path, text.rstrip("\n") + "\n" + added.getvalue())
    return line
