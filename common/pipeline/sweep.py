"""Run a W&B sweep file here, one trial after the other, without W&B.

    python -m common.pipeline.sweep competitions/whale/sweep.yaml --trials 20 --minutes 120
    python -m common.pipeline.sweep FILE --trials 20 data.root=PATH track.wandb=off

Each trial is the file's program with other values, in a folder of its own; trials.jsonl beside them
is what is known so far, and the same command goes on from there. Needs Optuna: pip install optuna.
With W&B the same file is `wandb sweep FILE`, then `wandb agent`.
"""

from __future__ import annotations

import argparse
import importlib
import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import ConfigError
from common.entry import entry, say
from common.pipeline.sweep_file import Sweep, check, read
from common.pipeline.sweep_space import combinations, grid_of
from common.report.files import read_json, read_lines, write_json

_POLL = 1.0  # seconds between two looks at a trial's metrics
_FAILURES = 5  # trials in a row without a value that end a sweep: the next would not have one
_GRACE = 120.0  # seconds that a trial may take to save its state when it is stopped


class Runner:
    """The trials of one sweep in one folder.

    Args:
        sweep: the checked file.
        folder: where trials go.
        extra: `key=value` of all trials.
        seed: of the search.

    Raises:
        ConfigError: Optuna is missing or too old, or the folder holds trials of another sweep.
    """

    def __init__(self, sweep: Sweep, folder: Path, extra: Sequence[str], seed: int = 0) -> None:
        self.sweep, self.folder, self.extra = sweep, folder, list(extra)
        optuna = _optuna()
        searched = {key: vars(one) for key, one in sweep.parameters.items()}
        what = {"method": sweep.method, "metric": sweep.metric, "maximize": sweep.maximize}
        what |= {"parameters": searched, "words": [*map(list, sweep.words)], "extra": self.extra}
        if sweep.method == "grid":  # its order, by which Optuna numbers the points
            what["seed"] = seed
        stored = read_json(folder / "sweep.json")
        if stored and stored != what:
            key = next(key for key in what if stored.get(key) != what[key])
            raise ConfigError(
                f"{folder} holds trials of a sweep with other {key}: choose another --out, or "
                "delete it to start again."
            )
        write_json(folder / "sweep.json", what)
        backend = optuna.storages.journal.JournalFileBackend(str(folder / "trials.jsonl"))
        self.study = optuna.create_study(
            study_name="sweep",
            storage=optuna.storages.JournalStorage(backend),
            direction="maximize" if sweep.maximize else "minimize",
            load_if_exists=True,
        )
        # A sampler that begins anew must not draw again what it drew before.
        later = seed + len(self.study.trials)
        samplers = {
            "grid": lambda: optuna.samplers.GridSampler(grid_of(sweep.parameters), seed=seed),
            "random": lambda: optuna.samplers.RandomSampler(seed=later),
            "bayes": lambda: optuna.samplers.TPESampler(seed=later),
        }
        self.study.sampler = samplers[sweep.method]()
        if sweep.method == "grid":  # it would end a loop of Optuna's own, and there is none here
            self.study.sampler.after_trial = lambda *_: None
        self.states = optuna.trial.TrialState

    def run(self, trials: int | None, minutes: float | None) -> None:
        """Trials until there are so many, time is up, the grid is done or the target is reached.

        Five failures in a row end it too.

        Args:
            trials: of the folder in all, those of earlier calls included; None: until time is up.
            minutes: no trial begins that would not end by then, if it takes as long as the longest.
        """
        started, longest = time.monotonic(), 0.0
        waiting = [one for one in self.study.trials if one.state == self.states.RUNNING]
        failures = 0
        while not self._reached():
            if not waiting and self._done(trials):
                return
            spent = time.monotonic() - started
            if minutes is not None and longest and spent + longest > 60 * minutes:
                say(f"{minutes:g} minutes would not do for another trial")
                return
            if waiting:  # of a call that was cut off: train.py goes on from its state
                trial = waiting.pop(0)
                number, words = trial.number, trial.user_attrs.get("words")
            else:
                asked = self.study.ask()
                drawn = {k: one.suggest(asked, k) for k, one in self.sweep.parameters.items()}
                number, words = asked.number, self.sweep.arguments(drawn)
                asked.set_user_attr("words", words)
            value = None if words is None else self._trial(number, words)
            if value is None:
                self.study.tell(number, state=self.states.FAIL)
            else:
                self.study.tell(number, value)
            failures = failures + 1 if value is None else 0
            if failures == _FAILURES:
                say(
                    f"{failures} trials in a row failed: stopped. Mend what the logs say and give "
                    "another --out, or go on behind them with the same command."
                )
                return
            longest = max(longest, time.monotonic() - started - spent)

    def best(self) -> list[Any]:
        """The trials that have a value, best first."""
        known = [one for one in self.study.trials if one.state == self.states.COMPLETE]
        return sorted(known, key=lambda one: one.value, reverse=self.sweep.maximize)

    def _done(self, trials: int | None) -> bool:
        sampler = self.study.sampler
        if self.sweep.method == "grid" and sampler.is_exhausted(self.study):
            say(f"all {combinations(self.sweep.parameters)} points of the grid are done")
            return True
        limits = [limit for limit in (trials, self.sweep.cap) if limit is not None]
        return bool(limits) and len(self.study.trials) >= min(limits)

    def _reached(self) -> bool:
        best, target = self.best(), self.sweep.target
        if target is None or not best:
            return False
        reached = best[0].value >= target if self.sweep.maximize else best[0].value <= target
        if reached:
            say(f"{self.sweep.metric} has reached {target:g} in trial {best[0].number}")
        return bool(reached)

    def _trial(self, number: int, words: Sequence[str]) -> float | None:
        """The metric of a trial; None, with a line that says why, when it failed."""
        for other in self.best():
            if other.user_attrs.get("words") == list(words):
                say(f"trial {number} is trial {other.number} again: not run")
                return float(other.value)
        place = self._place(number)
        log = place.with_name(f"{place.name}.log")
        command = [sys.executable, str(self.sweep.program), *words, *self.extra, f"out={place}"]
        say(f"trial {number}: {shlex.join(words)}")
        started = time.monotonic()
        with open(log, "ab") as stream:
            # Of a session of its own: Ctrl-C comes to it once, from here.
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                stopped = self._watch(process, place, number)
            finally:
                _interrupt(process)
        told = f"trial {number}: {(time.monotonic() - started) / 60:.1f} minutes"
        if process.returncode and not stopped:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
            say(f"{told}, failed with exit {process.returncode}: {last[:200]} (all of it: {log})")
            return None
        value = read_json(place / "summary.json").get(self.sweep.metric)
        if stopped:
            history = self._history(place)
            value = (max if self.sweep.maximize else min)(history) if history else None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            known = ", ".join(read_json(place / "summary.json")) or "nothing"
            say(f"{told}, failed: summary.json has no {self.sweep.metric}, it has {known}")
            return None
        say(f"{told}, {self.sweep.metric} {value:.4f}{', stopped early' if stopped else ''}")
        return float(value)

    def _watch(self, process: subprocess.Popen[bytes], place: Path, number: int) -> bool:
        """Wait for a trial to end; whether its metric was so low that it was not to go on."""
        bands, sign = self.sweep.bands, 1 if self.sweep.maximize else -1
        numbers = [one.number for one in self.study.trials if one.number != number]
        others = [[sign * y for y in self._history(self._place(n))] for n in numbers]
        looked = 0
        while True:
            try:
                process.wait(_POLL)
                return False
            except subprocess.TimeoutExpired:
                history = [sign * y for y in self._history(place)] if bands else []
            while bands and looked < len(history):
                looked += 1
                if bands.stops(history[:looked], others):
                    return True

    def _place(self, number: int) -> Path:
        return self.folder / f"trial-{number:03d}"

    def _history(self, place: Path) -> list[float]:
        rows = [line.get(self.sweep.metric) for line in read_lines(place / "metrics.jsonl")]
        return [float(value) for value in rows if isinstance(value, int | float)]


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """End a trial as Ctrl-C does: it saves its state."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _optuna() -> Any:
    try:
        optuna = importlib.import_module("optuna")
        importlib.import_module("optuna.storages.journal")
    except ImportError:
        raise ConfigError(
            "A local sweep needs Optuna 4 or newer, an extra: pip install 'optuna>=4'. With W&B "
            "the file runs as it is: wandb sweep FILE."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def main(arguments: list[str]) -> None:
    """Run what is left of a sweep and say what was best."""
    parser = argparse.ArgumentParser(
        prog="python -m common.pipeline.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="a sweep.yaml")
    parser.add_argument("extra", nargs="*", metavar="key=value", help="of all trials")
    parser.add_argument("--trials", type=int, metavar="N", help="so many in the folder, in all")
    parser.add_argument("--minutes", type=float, metavar="M", help="none begins that would exceed")
    parser.add_argument("--out", type=Path, help="of all trials; runs/COMPETITION/NAME OF THE FILE")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    options = parser.parse_intermixed_args(arguments)
    for name in ("trials", "minutes"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} {value:g}: above 0.")
    for word in options.extra:
        if word.startswith("out=") or ("=" not in word and not word.endswith((".yaml", ".yml"))):
            raise ConfigError(f"{word}: further words are key=value; --out says where trials go.")
    sweep = read(options.file)
    endless = sweep.method != "grid" and sweep.cap is None
    if endless and options.trials is None and options.minutes is None:
        raise ConfigError(f"{options.file} has no run_cap: say --trials or --minutes.")
    check(sweep, options.extra)
    home = sweep.program.resolve().parent.name
    folder = options.out or Path("runs") / home / sweep.path.stem
    runner = Runner(sweep, folder, options.extra, options.seed)
    runner.run(options.trials, options.minutes)
    best = runner.best()
    if not best:
        raise ConfigError(f"No trial in {folder} has a {sweep.metric}; the logs say why.")
    for one in best[:5]:
        say(f"{one.value:.4f}  trial {one.number}  {shlex.join(one.user_attrs.get('words', []))}")
    say(f"python -m common.report.compare {folder} --sort {sweep.metric}")


if __name__ == "__main__":
    entry(main)
