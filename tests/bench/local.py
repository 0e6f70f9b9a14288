"""Local verification: images and pairs per second, through the same cache as a pipeline.

    python -m tests.bench.local [--features sift] [--matcher mutual] [--keypoints 1000]

Pictures are synthetic, 640 x 480, with more corners than keypoints are kept. CPU milliseconds (of
all threads) say what a pair costs; wall time also says how busy the machine is with other things.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from common.rerank.geometry import Settings
from common.rerank.inliers import count_inliers
from common.types import Neighbors


def picture(seed, height=480, width=640):
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120, np.uint8)
    for _ in range(1200):
        x, y, r = (int(v) for v in rng.integers(0, (width, height, 16)))
        cv2.circle(image, (x, y), r + 2, tuple(int(c) for c in rng.integers(0, 256, 3)), -1)
    return cv2.GaussianBlur(image, (0, 0), 0.8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", default="sift")
    parser.add_argument("--matcher", default="mutual")
    parser.add_argument("--keypoints", type=int, default=1000)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    settings = Settings(given.features, given.matcher, given.keypoints)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i in range(given.images):
            paths.append(str(Path(folder) / f"{i}.jpg"))
            cv2.imwrite(paths[-1], picture(i))
        paths = np.array(paths, dtype="S")
        n = len(paths)

        def seconds(columns):
            index = (torch.arange(n)[:, None] + torch.arange(columns)) % n
            wall, cpu = time.perf_counter(), time.process_time()
            count_inliers(
                Neighbors(index, torch.zeros(index.shape)),
                paths,
                paths,
                Path(folder) / "cache",
                settings,
                top=columns,
                workers=given.workers,
            )
            return np.array([time.perf_counter() - wall, time.process_time() - cpu])

        first = seconds(1)  # n images, n pairs
        rest = seconds(n)  # n * (n - 1) more pairs, no image
        again = seconds(n)
    pair = rest / (n * (n - 1))
    rows = {"extract": first / n - pair, "match": pair, "cached": again / n**2}
    print(f"{settings}\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, (wall, cpu) in rows.items():
        print(f"{name:8} {1 / max(wall, 1e-9):10.1f} per s {cpu * 1000:10.4f} CPU ms each")


if __name__ == "__main__":
    main()
