"""What several processes need to train as one: counts, batch statistics, who speaks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce

from common.lazy import Lazy
from common.losses.processes import joined as joined
from common.losses.processes import summed as summed

timm = Lazy("timm")


def rank() -> int:
    """Number of this process, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """The process group for the time of the block, when torchrun started several processes."""
    started = world() > 1 and not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        if started:
            dist.destroy_process_group()


def wait() -> None:
    """Until every process is here."""
    if joined():
        dist.barrier()


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with statistics over all processes, on any backend (torch's own needs CUDA).

    The gradient goes through the statistics too, so two processes with half a batch each get what
    one process with the whole batch gets.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least (B, C), got {tuple(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise `(B, C, ...)`; in eval mode, or alone, exactly torch's BatchNorm."""
        if not (self.training and joined()):
            return super().forward(input)
        x = input.float()
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.new_tensor([x.numel() / x.shape[1]])
        # Two passes: E[x^2] - E[x]^2 would cancel in float32.
        n = summed(count)
        mean: torch.Tensor = all_reduce(x.sum(axes)) / n  # type: ignore[no-untyped-call]
        centred = x - mean.view(shape)
        squares = all_reduce(centred.square().sum(axes))  # type: ignore[no-untyped-call]
        variance: torch.Tensor = squares / n
        if (
            self.track_running_stats
            and self.running_mean is not None
            and self.running_var is not None
        ):
            momentum = 0.1 if self.momentum is None else self.momentum
            with torch.no_grad():
                unbiased = variance * (n / (n - 1).clamp_min(1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        result: torch.Tensor = out.to(input.dtype)
        return result


class SyncBatchNormAct(SyncBatchNorm):
    """The same for timm's BatchNormAct2d, which fuses dropout and activation into the norm."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise `(B, C, ...)`, then drop and activate."""
        out: torch.Tensor = self.act(self.drop(super().forward(input)))  # type: ignore[operator]
        return out


def synchronise_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with every BatchNorm made global; torch's kernel on CUDA, ours elsewhere.

    Names and tensors of the state stay the same. torch's own converter would drop the activation
    that timm fuses into its norms, so timm's is used.
    """
    if device.type == "cuda":
        converted: nn.Module = timm.layers.convert_sync_batchnorm(module)
        return converted
    for child in module.modules():
        if isinstance(child, timm.layers.BatchNormAct2d):
            child.__class__ = SyncBatchNormAct
        elif type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
            child.__class__ = SyncBatchNorm
    return module
