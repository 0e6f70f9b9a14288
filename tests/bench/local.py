"""Local re-ranking of 100 candidates per query, and LightGlue beside kornia's own call.

    python -m tests.bench.local [--features rootsift] [--keypoints 1000] [--queries 6]
    python -m tests.bench.local --lightglue [--features aliked] [--keypoints 512] [data.root=PATH]

First: pictures of 800 x 600 with more corners than keypoints are kept, through the same cache as a
pipeline; seconds of a query with its features cached. Bars on 2 cores: SIFT-1000 .4 s, XFeat-1024
.5 s. Second: pairs of one landmark and of two, from the landmarks train.csv at PATH (unset: the
bundled sample). Kornia is called on the same features for every pair; here the pairs without votes
are left out first, and recall says what share of the right pairs that LightGlue verifies are kept.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from common.rerank.features import extract, load
from common.rerank.geometry import Settings, compare, estimate
from common.rerank.inliers import count_inliers
from common.rerank.networks import lightglue
from common.types import Neighbors
from tests.bench.verification import labelled_pairs

WIDTH, HEIGHT, TOP = 800, 600, 100


def picture(seed):
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    for _ in range(1900):
        x, y, r = (int(v) for v in rng.integers(0, (WIDTH, HEIGHT, 16)))
        cv2.circle(image, (x, y), r + 2, tuple(int(c) for c in rng.integers(0, 256, 3)), -1)
    return cv2.GaussianBlur(image, (0, 0), 0.8)


def rerank(given):
    settings = Settings(given.features, given.matcher, given.keypoints, size=WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i in range(TOP + given.queries):
            paths.append(str(Path(folder) / f"{i}.jpg"))
            cv2.imwrite(paths[-1], picture(i))
        paths = np.array(paths, dtype="S")
        cache = Path(folder) / "cache"

        def seconds(queries, gallery):
            index = torch.arange(len(gallery)).expand(len(queries), -1)
            near = Neighbors(index, torch.zeros(index.shape))
            wall, cpu = time.perf_counter(), time.process_time()
            count_inliers(near, queries, gallery, cache, settings, top=TOP, workers=given.workers)
            return np.array([time.perf_counter() - wall, time.process_time() - cpu])

        everything = len(paths)
        first = seconds(paths, paths[:1]) / everything  # an image and a pair each
        gallery, queries = paths[:TOP], paths[TOP:]
        whole = seconds(queries, gallery) / len(queries)
        again = seconds(queries, gallery) / len(queries)
    print(f"{settings}\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"extract  {first[0] * 1000:8.1f} ms an image, {first[1] * 1000:.1f} of CPU")
    print(f"re-rank  {whole[0]:8.3f} s a query of {TOP}, {whole[1]:.3f} of CPU")
    print(f"read     {again[0]:8.3f} s a query whose result is cached")


def glue(given):
    settings = Settings(given.features, "lightglue", given.keypoints, size=WIDTH)
    always = Settings(given.features, "lightglue", given.keypoints, size=WIDTH, votes=0)
    paths, a, b, same = labelled_pairs(given.root, given.pairs, seed=0)
    used = np.unique(np.concatenate([a, b]))
    features = {
        int(i): extract(load(paths[i], WIDTH), given.features, keypoints=given.keypoints)
        for i in used
    }
    net = lightglue(given.features, "cpu")

    def plain(one, two):
        """Kornia's own call, and the same geometry behind it."""
        data = {
            f"image{side}": {
                "keypoints": torch.from_numpy(f.points)[None],
                "descriptors": torch.from_numpy(f.unit())[None],
                "image_size": torch.tensor([f.size]),
            }
            for side, f in enumerate((one, two))
        }
        with torch.inference_mode():
            pairs = net(data)["matches"][0].numpy()
        return estimate(one.points[pairs[:, 0]], two.points[pairs[:, 1]], always)[1].sum()

    calls = {
        "kornia": plain,
        "here, no votes": lambda one, two: compare(one, two, always).inlying.sum(),
        f"here, votes {settings.votes}": lambda one, two: compare(one, two, settings).inlying.sum(),
    }
    print(f"{settings}\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{same.sum()} pairs of one landmark, {(~same).sum()} of two, "
          f"{np.mean([len(f) for f in features.values()]):.0f} keypoints an image")  # fmt: skip
    counts = {}
    for name, call in calls.items():
        call(features[int(a[0])], features[int(b[0])])
        start = time.perf_counter()
        counts[name] = np.array(
            [call(features[i], features[j]) for i, j in zip(a.tolist(), b.tolist(), strict=True)]
        )
        spent = (time.perf_counter() - start) / len(a)
        print(f"{name:16} {spent * 1000:8.1f} ms a pair")
    full, ours = counts["kornia"], counts[f"here, votes {settings.votes}"]
    for least in (8, 12, 20):
        for kind, rows in (("right", same), ("false", ~same)):
            found = rows & (full >= least)
            kept = f"{found.sum():4}, kept {(ours[found] >= least).sum():4}"
            print(f"{kind} pairs that LightGlue gives {least:2} inliers: {kept}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", default="rootsift")
    parser.add_argument("--matcher", default="mutual")
    parser.add_argument("--keypoints", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=6)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--lightglue", action="store_true")
    parser.add_argument("root", nargs="?", default=None, metavar="data.root=PATH")
    given = parser.parse_args()
    given.root = given.root and given.root.removeprefix("data.root=")
    (glue if given.lightglue else rerank)(given)


if __name__ == "__main__":
    main()
