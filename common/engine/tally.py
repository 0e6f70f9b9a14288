"""What an epoch adds up to, summed on the device and read once; an interrupted one goes on.

It moves nothing that trains: no random number is drawn, and the device is not waited for.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.engine import distributed


class Tally:
    """Sums over the batches of an epoch, and the gradient norms of its steps.

    Args:
        device: where the sums are kept.
        saved: `state` of an epoch that was interrupted; None is a new one.

    Attributes:
        norms: of the gradient before clipping, of the steps since the last `state` or `metrics`.
    """

    def __init__(self, device: torch.device, saved: Mapping[str, Any] | None = None) -> None:
        sums, steps = (saved or {}).get("sums", {}), (saved or {}).get("steps", {})
        # Float64: millions of angles are added up. By names, so that a step adds one tensor.
        self.sums: dict[tuple[str, ...], Tensor] = {}
        if sums:
            kept = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
            self.sums[tuple(sums)] = kept
        self.steps = {"sum": 0.0, "largest": 0.0, "finite": 0, "overflowed": 0, **steps}
        self.norms: list[Tensor] = []

    def add(self, loss: Tensor, watched: Mapping[str, Tensor]) -> None:
        """Take a batch in; all processes call it, and all get the sums over all.

        Args:
            loss: scalar of this process, whose mean over processes is that over all rows.
            watched: (2,) sum and number for each name, the same names on all processes.
        """
        names = ("train/loss", *watched)
        pairs = [torch.stack([loss, torch.ones_like(loss)]), *watched.values()]
        block = distributed.summed(torch.stack([pair.double() for pair in pairs]))
        self.sums[names] = self.sums[names] + block if names in self.sums else block

    def finite(self) -> bool:
        """Whether all losses have been; waits for the device."""
        return all(bool(block[0, 0].isfinite()) for block in self.sums.values())

    def state(self) -> dict[str, Any]:
        """What `saved` may be, JSON values only."""
        self._read_norms()
        return {"sums": self._totals(), "steps": self.steps}

    def metrics(self) -> dict[str, float]:
        """Means over what each name counts, and the mean and the largest norm of a gradient.

        A gradient that overflowed (fp16, whose scaler then skips the step) is counted, in no norm.
        """
        self._read_norms()
        steps = self.steps
        found = {name: total / number for name, (total, number) in self._totals().items() if number}
        if steps["finite"]:
            found["train/gradient_norm"] = steps["sum"] / steps["finite"]
            found["train/gradient_norm_max"] = steps["largest"]
        if steps["overflowed"]:
            found["train/overflowed_steps"] = steps["overflowed"]
        return found

    def _totals(self) -> dict[str, list[float]]:
        totals: dict[str, list[float]] = {}
        for names, block in self.sums.items():
            for name, pair in zip(names, block.tolist(), strict=True):
                before = totals.get(name, [0.0, 0.0])
                totals[name] = [a + b for a, b in zip(before, pair, strict=True)]
        return totals

    def _read_norms(self) -> None:
        for norm in torch.stack(self.norms).tolist() if self.norms else []:
            if math.isfinite(norm):
                self.steps["sum"] += norm
                self.steps["largest"] = max(self.steps["largest"], norm)
                self.steps["finite"] += 1
            else:
                self.steps["overflowed"] += 1
        self.norms = []


def memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held so far, in GiB: RAM, and that of its GPU.

    Loader processes are not in it.
    """
    peak = peak_memory()
    found = {} if peak is None else {"train/memory_gb": peak / 2**30}
    if device.type == "cuda":
        found["train/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def peak_memory() -> int | None:
    """Largest resident set of this process, in bytes; None where the system does not say."""
    try:  # getrusage also remembers the process that this one was forked from
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        resource = importlib.import_module("resource")  # not on Windows
    except ImportError:
        return None
    most = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return most if sys.platform == "darwin" else most * 1024
