"""Model and criterion as the one module that is wrapped, saved and averaged."""

from __future__ import annotations

import torch
from torch import nn

from common.engine.inputs import Inputs
from common.engine.momentum import MomentumCopy


class Trained(nn.Module):
    """Model and criterion as one module, so that DDP sees every parameter.

    A criterion with a `momentum` also gets keys, of a copy of the model that follows it.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion
        momentum = getattr(criterion, "momentum", None)
        self.copy = None if momentum is None else MomentumCopy(model, momentum)

    def forward(
        self,
        inputs: Inputs,
        labels: torch.Tensor,
        shares: torch.Tensor | None = None,
        second: Inputs | None = None,
    ) -> torch.Tensor:
        """Loss of the model's inputs with `(B,)` labels; scalar, mean over the valid ones.

        `second` is what the momentum copy sees, a second view of the images; None is the first.
        """
        embeddings = self.model(*inputs)
        extra = {} if shares is None else {"shares": shares}
        if self.copy is not None:
            extra["keys"] = self.copy(*(inputs if second is None else second))
        loss: torch.Tensor = self.criterion(embeddings, labels, **extra)
        return loss
