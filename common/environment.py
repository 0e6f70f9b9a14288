"""What a result depends on: commit, machine, library versions, command line, changed config."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from common.paths import REPOSITORY
from common.report.files import plain

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "numpy", "opencv-python", "wandb")


def git_state(folder: str | Path = REPOSITORY) -> dict[str, Any]:
    """`{commit, dirty}` of the repository that holds `folder`; `{}` without git or a commit."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def machine() -> dict[str, Any]:
    """Processor, cores, GPUs, Python and library versions of this machine; JSON values only."""
    facts: dict[str, Any] = {
        "cpu": _processor(),
        "cores": os.cpu_count() or 1,
        "gpu": _gpus(),
        "python": platform.python_version(),
    }
    for name in LIBRARIES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return facts


def command_line() -> str:
    """The command that started this process, to be run from the repository; empty in a notebook."""
    script = Path(sys.argv[0] or ".")
    if script.suffix != ".py":
        return ""
    with contextlib.suppress(ValueError):  # a copied folder elsewhere: as it was typed
        script = script.resolve().relative_to(REPOSITORY)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    start = f"torchrun --nproc-per-node {processes}" if processes > 1 else "python"
    return f"{start} {shlex.join([script.as_posix(), *sys.argv[1:]])}"


def tree(config: Any) -> Any:
    """A config dataclass as nested dicts; anything else as it is."""
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else config


def changes(config: Mapping[str, Any], default: Any) -> dict[str, list[Any]]:
    """`{key: [default, here]}` of the values that differ, without names of places."""
    if isinstance(default, str | Path):
        default = yaml.safe_load(Path(default).read_text(encoding="utf-8"))
    if not default:
        return {}
    before, after = _flat(plain(tree(default))), _flat(config)
    skipped = ("track.", "out", "run", "data.root")
    return {
        key: [before.get(key), after.get(key)]
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and not key.startswith(skipped)
    }


def _git(folder: str | Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")  # a process that computes has it
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
