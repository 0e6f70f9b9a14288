"""The Weights & Biases run beside the files: quiet, offline first, and never in the way.

Read from W&B's own documentation: runs, `wandb sync`, environment variables (docs.wandb.ai).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import netrc
import os
import shlex
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

_log = logging.getLogger(__name__)
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # W&B's own; another by WANDB_BASE_URL
# Names differ between releases: what a release does not know is left out.
_SETTINGS = {
    "silent": True,
    "console": "off",  # prints stay with the caller
    "disable_git": True,  # the state of the repository is in the config already
    "save_code": False,
    "x_disable_meta": True,
    "init_timeout": 20,  # seconds that an online start may take; then offline
    "finish_timeout": 120,
}


def mode(word: str) -> str:
    """`online`, `offline` or `off` for `track.wandb`.

    `auto` follows WANDB_MODE where it is set; else it is offline on Kaggle and without an API key.
    """
    if word != "auto":
        return word
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("disabled", "dryrun", "offline", "online"):
        return {"disabled": "off", "dryrun": "offline"}.get(asked, asked)
    if os.environ.get("WANDB_SWEEP_ID"):  # started by a sweep's agent, which has logged in
        return "online"
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "offline"
    return "online" if _has_key() else "offline"


class Remote:
    """A W&B run that turns itself off, with one warning, when anything about it fails."""

    def __init__(
        self,
        how: str,
        folder: Path,
        *,
        run_id: str,
        config: Mapping[str, Any],
        best: Sequence[str] = (),
        **about: Any,
    ) -> None:
        """Start the run.

        Args:
            how: `online`, `offline` or `off`; an online start that fails goes on offline.
            folder: the run folder, which gets `wandb/`.
            run_id: an equal id continues a run.
            config: what W&B shows as config.
            best: metrics whose summary is their maximum.
            about: `project, group, name, tags, job_type` of `wandb.init`.
        """
        self._folder, self._run, self._sync = folder, None, ""
        self._warned = False
        self._about = {**about, "id": run_id, "config": dict(config), "dir": str(folder)}
        if how == "online":
            self._start(how)
        if how == "offline" or (how == "online" and self._run is None):
            self._start("offline")
        if self._run is not None:
            self.send(lambda run: _define(run, best))

    def send(self, action: Callable[[Any], object]) -> None:
        """Do something with the W&B run, if there is one."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # a logger never stops a training
            self._run = None
            self._warn(f"W&B failed ({_line(error)}): metrics go on in {self._folder}.")

    def log_table(self, table: Mapping[str, Any]) -> None:
        """Log a table of `common.report.gallery.collect`, and contact sheets of its groups."""
        if self._run is None:
            return
        from common.report.sheets import sheet, tile, verdict

        def action(run: Any) -> None:
            wandb = importlib.import_module("wandb")
            thumbs, rows = table["thumbs"], [row for g in table["groups"] for row in g["rows"]]
            width = max((len(row["results"]) for row in rows), default=0)
            columns = ["group", "id", "query", "label", "ap", "verdict", "note"]
            columns += [f"result_{place + 1}" for place in range(width)]
            data = []
            for group in table["groups"]:
                for row in group["rows"]:
                    query, results = row["query"], row["results"]
                    cells = [
                        wandb.Image(tile(e, thumbs), caption=f"{e.get('label')} {e.get('score')}")
                        for e in results
                    ]
                    first = verdict(results[0]) if results else "none"
                    head = [group["title"], str(query.get("id")), wandb.Image(tile(query, thumbs))]
                    head += [str(query.get("label")), row.get("ap"), first, row.get("note") or ""]
                    data.append([*head, *cells, *[None] * (width - len(cells))])
            # One key each: W&B warns about lists of images of several sizes.
            sheets = {
                f"{table['name']}/{group['title']}": wandb.Image(sheet(group["rows"], thumbs))
                for group in table["groups"]
            }
            # Images of a table are kept in W&B's data folder and would be lost with a Kaggle
            # session; the sheets lie in the run's own files.
            with _environment(WANDB_DATA_DIR=str(self._folder / "wandb" / "data")):
                run.log({table["name"]: wandb.Table(columns=columns, data=data)})
                run.log(sheets)

        self.send(action)

    def finish(self) -> str:
        """Close the run; the command that uploads it later, or an empty text."""
        self.send(lambda run: run.finish())
        self._run = None
        if self._warned:  # or W&B's own end prints a traceback once more
            _teardown()
        return self._sync

    def _start(self, how: str) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        if how == "offline":  # or W&B looks for its error collector
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            wandb = importlib.import_module("wandb")
            known = getattr(wandb.Settings, "model_fields", {})
            settings = {key: value for key, value in _SETTINGS.items() if key in known}
            # The daily use of its samples is GPU load; without a GPU they only cost time.
            settings["x_disable_stats"] = not Path("/proc/driver/nvidia").exists()
            with _no_launch():
                self._run = wandb.init(
                    mode=how,
                    resume="allow",
                    reinit="finish_previous",
                    settings=wandb.Settings(**settings),
                    **self._about,
                )
        except Exception as error:
            fallback = "logging offline" if how == "online" else f"metrics are in {self._folder}"
            self._warn(f"W&B did not start ({_line(error)}): {fallback}.")
            _teardown()  # else the id stays in use
            return
        if how == "offline":
            place = shlex.quote(str(self._folder / "wandb"))
            self._sync = f"wandb sync {place}/offline-run-*-{self._about['id']}"

    def _warn(self, text: str) -> None:
        if not self._warned:
            _log.warning(text)
        self._warned = True


@contextlib.contextmanager
def _no_launch() -> Iterator[None]:
    """Keep W&B from importing its launch agent, which takes half as long as all of the kit.

    Each start imports it to apply inputs that only a job of W&B Launch has staged.
    """
    name = "wandb.sdk.launch.inputs.internal"
    if name in sys.modules or os.environ.get("WANDB_LAUNCH"):
        yield
        return
    stub: Any = types.ModuleType(name)
    stub.StagedLaunchInputs = lambda: types.SimpleNamespace(apply=lambda run: None)
    sys.modules[name] = stub
    try:
        yield
    finally:
        sys.modules.pop(name, None)


def _teardown() -> None:
    with contextlib.suppress(Exception):
        importlib.import_module("wandb").teardown()


def _define(run: Any, best: Sequence[str]) -> None:
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    for name in best:
        run.define_metric(name, step_metric="step", summary="max")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    own = urlparse(os.environ.get("WANDB_BASE_URL", "")).hostname
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        stored = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any(host in stored for host in ([own] if own else _HOSTS))


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables for the time of a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
