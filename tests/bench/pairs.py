"""Miners and tuple losses against the distance matrix alone and the peer, in one run.

    python -m tests.bench.pairs [ROW ...]

A row is one loss: wall time of forward and backward from (B, D) float32 embeddings of any length,
fours of a class, best of several rounds that take turns. `matrix` is what any of them must pay:
rows to length 1, all distances, and the way back of their sum, the fastest of the kit's, plain
autograd's and `torch.cdist`. MB are the largest sum of what is allocated at one time, and the
largest single allocation of ours. The peer is pytorch-metric-learning. Ratios are what to read.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning import losses as peer
from pytorch_metric_learning import miners as peer_miners
from pytorch_metric_learning import reducers
from pytorch_metric_learning.distances import CosineSimilarity
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from common.losses import pair, quadruplet, rank
from common.losses import tuple as tuples
from common.losses.batch import distances
from common.losses.cosine import unit_rows

D = 512
MEAN = {"reducer": reducers.MeanReducer()}


def matrix(x, labels):
    """All distances as the losses here take them."""
    return distances(unit_rows(x)).sum()


def plain(x, labels):
    """The same by plain torch and autograd."""
    unit = F.normalize(x)
    return (2 - 2 * unit @ unit.T).clamp_min(1e-12).sqrt().sum()


def cdist(x, labels):
    """The same by torch's own function."""
    unit = F.normalize(x)
    return torch.cdist(unit, unit).sum()


MATRICES = {"kit": matrix, "plain": plain, "cdist": cdist}


def mined(loss, miner):
    """Their loss over what their miner finds."""
    return lambda x, labels: loss(x, labels, miner(x, labels))


def triplet(miner, theirs):
    # One mean over all mined triplets, as ours: their default leaves out those without a loss.
    ours = pair.TripletLoss(0.2, miner=miner)
    return ours, mined(peer.TripletMarginLoss(0.2, **MEAN), theirs)


BAND = peer_miners.TripletMarginMiner(0.2, type_of_triplets="semihard")
EASY = peer_miners.BatchEasyHardMiner
ROWS = {  # name: B, (ours, theirs or None)
    "batch hard": (1024, triplet("batch_hard", peer_miners.BatchHardMiner())),
    "semi-hard band": (512, triplet("semi_hard_band", BAND)),
    "semi-hard pair": (512, (pair.TripletLoss(miner="semi_hard_pair"), None)),
    "semi-hard anchor": (512, triplet("semi_hard_anchor", EASY("hard", "semihard"))),
    "easy positive": (512, triplet("easy_positive", EASY("easy", "hard"))),
    "n hard, 3 x 10": (
        512,
        (
            pair.TripletLoss(miner={"name": "n_hard", "positives": [1, 3], "negatives": [1, 10]}),
            None,
        ),
    ),
    "batch OHNM": (512, triplet("batch_ohnm", EASY("all", "hard"))),
    "all triplets": (
        512,
        (pair.TripletLoss(miner="all_triplets"), peer.TripletMarginLoss(0.2, **MEAN)),
    ),
    "lifted": (512, (tuples.LiftedStructureLoss(), peer.LiftedStructureLoss(1, 0))),
    "contrastive": (1024, (pair.ContrastiveLoss(), peer.ContrastiveLoss(0, 1))),
    "cosine contrastive": (
        1024,
        (pair.CosineContrastiveLoss(), peer.ContrastiveLoss(1, 0.5, distance=CosineSimilarity())),
    ),
    "multi-similarity": (
        1024,
        (
            pair.MultiSimilarityLoss(),
            mined(peer.MultiSimilarityLoss(2, 50, 0.5), peer_miners.MultiSimilarityMiner(0.1)),
        ),
    ),
    "circle": (1024, (pair.CircleLoss(), peer.CircleLoss(0.4, 80))),
    "sup con": (1024, (tuples.SupConLoss(), peer.SupConLoss(0.1))),
    # Theirs holds positive pairs x negative pairs: 12 GB at 1024.
    "info NCE": (256, (tuples.InfoNCELoss(), peer.NTXentLoss(0.07))),
    "info NCE, 1024": (1024, (tuples.InfoNCELoss(), None)),
    "NCE": (1024, (tuples.NCELoss(), None)),
    "N-pair": (1024, (tuples.NPairLoss(), peer.NPairsLoss())),
    "quadruplet": (512, (quadruplet.QuadrupletLoss(), None)),
    "facility location": (128, (tuples.FacilityLocationLoss(), None)),
    "smooth AP": (512, (rank.SmoothAPLoss(), peer.SmoothAPLoss(0.01))),
    "recall at k": (512, (rank.RecallAtKLoss(), None)),
}


def batch(size):
    x = torch.randn(size, D, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(size) // 4
    # Half way to their class: some triplets are hard, some semi-hard, some easy.
    x = x + x[labels * 4]
    return x.requires_grad_(), labels


def step(loss, x, labels):
    x.grad = None
    loss(x, labels).backward()


def seconds(*call):
    start = time.perf_counter()
    step(*call)
    return time.perf_counter() - start


def memory(*call):
    """Peak and largest single allocation in MB, temporaries inside operators included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step(*call)
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    sizes = np.array([e.nbytes() for e in events]) / 2**20
    return sizes.cumsum().max(), sizes.max()


def machine():
    cpu = "unknown CPU"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    return f"{cpu}; torch {torch.__version__}, {torch.get_num_threads()} threads"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    chosen = {name: ROWS[name] for name in options.rows or ROWS}
    print(f"{machine()}; D={D} float32, best of {options.rounds}; ms, ratios, MB")
    heads = ("matrix", "ours", "/matrix", "peer", "/peer", "peer MB", "our MB", "tensor MB")
    print(f"{'':20}{'B':>5}" + "".join(f"{head:>10}" for head in heads))
    for name, (size, (ours, theirs)) in chosen.items():
        x, labels = batch(size)
        ways = {**MATRICES, "ours": ours, "peer": theirs}
        times = {way: [] for way, loss in ways.items() if loss}
        for i in range(options.rounds + 1):
            for way in times:
                if i > 1 and times[way][0] > 2000:  # seconds a step: once is enough
                    continue
                took = seconds(ways[way], x, labels)
                if i:  # the first warms up
                    times[way].append(took * 1e3)
        best = {way: min(took) for way, took in times.items()}
        base = min(best[way] for way in MATRICES)
        peak, tensor = memory(ours, x, labels)
        cells = [f"{base:.1f}", f"{best['ours']:.1f}", f"{best['ours'] / base:.2f}"]
        if theirs:
            above = memory(theirs, x, labels)[0]
            cells += [f"{best['peer']:.1f}", f"{best['ours'] / best['peer']:.3f}", f"{above:.0f}"]
        else:
            cells += ["-"] * 3
        cells += [f"{peak:.0f}", f"{tensor:.0f}"]
        print(f"{name:20}{size:>5}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
