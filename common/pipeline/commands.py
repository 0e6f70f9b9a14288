"""The command lines of a competition's scripts, read into its config and checked before any work.

A run folder keeps its resolved config; infer.py starts from that, ensemble.py from those of its
members.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from common import config
from common.config import ConfigError

C = TypeVar("C")

TRAINED = ("model", "loss", "train", "seed")  # sections that infer.py cannot change
SPLIT = ("fold", "folds", "unseen")  # keys of `data`, where it has them, of what training has seen


class Commands(Generic[C]):
    """How the scripts in one competition's folder read their command lines.

    Args:
        schema: dataclass of the whole config, with the keys `out`, `run`, `runs`, `seed`, `data`,
            `model`, `loss`, `train`, `ensemble`.
        home: the competition's folder, which holds config.yaml; it may be a copy of another.
        origin: the folder's first name, as the scripts' docstrings have it.
        check: returns the settings once every name in them is known to exist.
        steps: the part of `--help` about names in lists.
        trained: further sections that infer.py cannot change.
        shared: further keys of `data` in which the members of an ensemble must agree.
    """

    def __init__(
        self,
        schema: type[C],
        home: Path,
        origin: str,
        check: Callable[[C], C],
        steps: Callable[[], str],
        *,
        trained: Sequence[str] = (),
        shared: Sequence[str] = (),
    ) -> None:
        self.schema, self.base, self.check, self.steps = schema, home / "config.yaml", check, steps
        self.origin, self.script = origin, f"competitions/{home.name}"
        self.runs = Path("runs") / home.name
        keys = schema().data.__dataclass_fields__  # type: ignore[attr-defined]
        self.split = [key for key in SPLIT if key in keys]
        self.trained, self.shared = (*TRAINED, *trained), ("root", *self.split, *shared)

    def about(self, doc: str) -> str:
        """A script's help with the name of this folder."""
        renamed = doc.replace(f"competitions/{self.origin}", self.script)
        return renamed.replace(f"runs/{self.origin}", str(self.runs))

    def train(self, doc: str, arguments: list[str]) -> C:
        """The config of train.py; its run folder is named after the experiment files.

        The agent of a W&B sweep starts each trial with an id: that is then its folder.
        """
        settings = self.check(self._command(doc, arguments))
        names = [Path(word).stem for word in arguments if word.endswith((".yaml", ".yml"))]
        folder = self.runs / ("-".join(names) or "baseline")
        if sweep := os.environ.get("WANDB_SWEEP_ID"):
            folder = self.runs / f"sweep-{sweep}" / os.environ.get("WANDB_RUN_ID", "trial")
        out = settings.out or str(folder)  # type: ignore[attr-defined]
        return replace(settings, out=out)  # type: ignore[type-var]

    def infer(self, doc: str, arguments: list[str]) -> C:
        """The config of infer.py: that of the run it reads, changed by `arguments`.

        Raises:
            ConfigError: no trained run, or a key that the run was trained with is to change.
        """
        words = [word.lstrip("-") for word in arguments]
        named = [word.removeprefix("run=") for word in words if word.startswith("run=")]
        run = named[-1] if named else str(self.runs / "baseline")
        stored = Path(run) / "config.yaml"
        wanted = not {"-h", "--help"} & set(arguments)
        if wanted and not (stored.is_file() and (Path(run) / "weights.safetensors").is_file()):
            raise ConfigError(
                f"{run} is no trained run: python {self.script}/train.py out={run}, or name "
                "another run="
            )
        settings: Any = self._command(doc, arguments, stored if stored.is_file() else None)
        trained: Any = config.load(self.schema, self.base, stored=stored) if wanted else settings
        for section in self.trained:
            if getattr(settings, section) != getattr(trained, section):
                raise ConfigError(
                    f"{run} was trained with another {section}, which infer.py cannot change: "
                    "leave it out, or train again"
                )
        for key in self.split:
            here, there = getattr(settings.data, key), getattr(trained.data, key)
            if here != there and settings.data.fold >= 0:
                raise ConfigError(
                    f"{run} was trained with data.{key}={there}: with {here} it would be scored "
                    "on images it has seen; leave it out, or set data.fold=-1 to score nothing"
                )
        own = any(word.startswith("out=") for word in words)
        return replace(self.check(settings), run=run, out=settings.out if own else None)  # type: ignore[type-var]

    def ensemble(self, doc: str, arguments: list[str]) -> tuple[C, list[C]]:
        """The config of ensemble.py and those of its members.

        Members of different folds have no held-out images in common: they are joined with
        data.fold=-1, without validation.

        Raises:
            ConfigError: no members, members that were held to different data, weights that do not
                fit, a key of `data` other than root and fold=-1.
        """
        settings: Any = self.check(self._command(doc, arguments))
        if not settings.runs:
            raise ConfigError("runs= is empty: name the runs to join, runs=[runs/a,runs/b]")
        members: list[Any] = [self.infer(doc, [f"run={run}"]) for run in settings.runs]
        weights, lists = settings.ensemble.weights, getattr(settings.ensemble, "lists", [])
        if weights and len(weights) != len(members) + len(lists):
            more = f" and {len(lists)} lists" if lists else ""
            raise ConfigError(
                f"ensemble.weights has {len(weights)} numbers for {len(members)} runs{more}."
            )
        words = [word.lstrip("-") for word in arguments]
        blind = "data.fold=-1" in words
        for run, member in zip(settings.runs, members, strict=True):
            for key in self.shared:
                if key == "fold" and blind:
                    continue
                here, there = getattr(members[0].data, key), getattr(member.data, key)
                if here != there:
                    raise ConfigError(
                        f"{run} was trained with data.{key}={there}, {settings.runs[0]} with "
                        f"{here}: runs are only comparable on the same held-out images."
                        + (" Add data.fold=-1 to join folds unscored." if key == "fold" else "")
                    )
        for word in words:
            if word.startswith("data.") and not word.startswith(("data.root=", "data.fold=-1")):
                raise ConfigError(
                    f"{word}: the runs decide it; only data.root= and data.fold=-1 can be given."
                )
        data = replace(members[0].data, root=settings.data.root or members[0].data.root)
        if blind:
            data = replace(data, fold=-1)
        out = settings.out or str(self.runs / "ensemble")
        return replace(settings, data=data, seed=members[0].seed, out=out), members

    def _command(self, doc: str, arguments: list[str], stored: Path | None = None) -> Any:
        return config.command(
            self.schema,
            self.base,
            self.about(doc),
            arguments,
            steps=self.steps(),
            stored=stored,
        )
