"""Images per second of embedding on the CPU with and without `common.entry.keep_pages`.

    python -m tests.bench.keep_pages

Each setting runs in its own process, in turns; prints both and the ratio.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch

from common.entry import keep_pages
from common.environment import machine
from common.models.embedder import Embedder, ModelConfig

ROUNDS, BATCHES, BATCH, SIZE = 3, 8, 16, 224


def measure() -> float:
    """Images per second of this process."""
    model = Embedder(ModelConfig(weights="none")).eval()
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.inference_mode():
        model.embed(images)
        start = time.perf_counter()
        for _ in range(BATCHES):
            model.embed(images)
    return BATCH * BATCHES / (time.perf_counter() - start)


def main() -> None:
    """Print the median of both settings."""
    if len(sys.argv) > 1:
        if sys.argv[1] == "keep":
            keep_pages()
        print(measure())
        return
    found: dict[str, list[float]] = {"plain": [], "keep": []}
    for _ in range(ROUNDS):
        for setting, values in found.items():
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.keep_pages", setting],
                capture_output=True,
                text=True,
                check=True,
            )
            values.append(float(done.stdout))
    plain, keep = (statistics.median(values) for values in found.values())
    print(f"plain {plain:.1f} images/s, keep_pages {keep:.1f} images/s, ratio {keep / plain:.2f}")
    print(f"{machine()['cpu']}, {machine()['cores']} cores, torch {torch.__version__}")


if __name__ == "__main__":
    main()
