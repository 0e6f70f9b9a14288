"""Started by test_fit under torchrun: three steps of SGD, on one process or two."""

import sys
from pathlib import Path

from torch.utils.data import DataLoader

from common.engine import distributed
from common.engine.checkpoint import save_tree
from common.engine.fit import fit
from common.engine.settings import FitConfig, Stage
from tests.test_fit import Batches, Model, Pictures, joint


def main(folder: Path) -> None:
    """Train with uneven shards: one label in the data is ignored."""
    config = FitConfig(
        stages=[Stage(epochs=1, size=8)],
        batch_size=16,
        optimizer="sgd",
        lr=0.1,
        head_lr=0.1,
        swa=1,  # the weights as they are, with BatchNorm statistics counted once more
    )
    model = Model()
    model.neck[1].p = 0.0  # dropout differs between one process and two, as it must
    with distributed.processes():
        sampler = Batches(16, distributed.rank(), distributed.world())
        fit(
            model,
            joint(),
            config,
            folder,
            loader=lambda stage: DataLoader(Pictures(), batch_sampler=sampler),
            validate=lambda model, stage: {"valid/score": 1.0},
            log=lambda step, metrics: save_tree(folder / f"rank_{distributed.rank()}", metrics),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
