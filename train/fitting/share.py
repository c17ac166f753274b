"""What a fit by several processes divides: batches, and the statistics of batch-norms over them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils.data import Dataset

from knarr.train.clips import Batch, Epoch
from knarr.train.settings import RecipeError


def part(clips: int, rank: int, processes: int) -> slice:
    """Which clips of a batch are a process's: in order, as equal as can be, none where there are fewer clips than processes."""
    first, end = (-(-clips * edge // processes) for edge in (rank, rank + 1))
    return slice(first, end)


class Share(Dataset[Batch]):
    """A process's part of each batch of an epoch.

    Each process makes the whole batch and takes its part, so that augmentation, drawn for a whole batch, is the same however many
    they are; making batches costs little next to learning from them.
    """

    def __init__(self, epoch: Epoch, rank: int, processes: int) -> None:
        self.epoch, self.rank, self.processes = epoch, rank, processes

    def __len__(self) -> int:
        return len(self.epoch)

    def __getitem__(self, number: int) -> Batch:
        whole = self.epoch[number]
        own = part(len(whole.labels), self.rank, self.processes)
        seen = tuple(tensor[own] for tensor in whole.teacher_inputs)
        return Batch(whole.inputs[own], seen, whole.labels[own])


class _Normalise(torch.autograd.Function):
    """x' = (x - m) / sqrt(v + eps), with m and v over the clips of all processes.

    With g = dL/dx', n values per channel, and means <.> over all processes:  dL/dx = (g - <g> - x' <g x'>) / sqrt(v + eps).
    Processes add up in the order of their ranks, so that all of them get the same bits.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
        dims = _all_but_channels(x)
        count = x.numel() // x.shape[1]
        own = torch.zeros(3, x.shape[1], dtype=torch.float64, device=x.device)
        if count:
            variance, mean = torch.var_mean(x, dims, correction=0)
            own[0], own[1], own[2] = count, mean, variance
        counts, means, variances = _gathered(own).unbind(1)
        # Variances are joined by Chan's formula: sums of squares would lose what is small beside a mean.
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        scale = (variance + eps).rsqrt()
        normal = (x - _per_channel(mean, x)) * _per_channel(scale, x)
        ctx.save_for_backward(normal, scale, total)
        ctx.mark_non_differentiable(mean, variance, total)
        return normal, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None]:
        normal, scale, total = ctx.saved_tensors
        slope, dims = slopes[0], _all_but_channels(normal)
        own = torch.stack(
            [slope.sum(dims, dtype=torch.float64), (slope * normal).sum(dims, dtype=torch.float64)]
        )
        plain, along = (_gathered(own).sum(0) / total).unbind(0)
        rest = slope - _per_channel(plain, normal) - normal * _per_channel(along, normal)
        return rest * _per_channel(scale, normal), None


def _all_but_channels(x: torch.Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))


def _gathered(own: torch.Tensor) -> torch.Tensor:
    """(processes, *shape) of what each process has."""
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return torch.stack(everyone)


class _JoinedBatchNorm(_BatchNorm):
    """A batch-norm over the clips of all processes while it trains: torch's SyncBatchNorm, which knows only GPUs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        normal, mean, variance, total = _Normalise.apply(x, self.eps)  # type: ignore[no-untyped-call]
        if float(total[0]) < 2 and self.training:
            raise ValueError(
                f"batch-norm: {float(total[0]):g} values per channel, needs 2 or more to train"
            )
        if self.training and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
                share = (
                    1 / float(self.num_batches_tracked or 1)
                    if self.momentum is None
                    else self.momentum
                )
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                unbiased = variance * total / (total - 1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        if self.affine:
            normal = normal * _per_channel(self.weight, normal) + _per_channel(self.bias, normal)
        return normal


class _Joined1d(_JoinedBatchNorm, nn.BatchNorm1d):
    pass


class _Joined2d(_JoinedBatchNorm, nn.BatchNorm2d):
    pass


class _Joined3d(_JoinedBatchNorm, nn.BatchNorm3d):
    pass


_JOINED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _Joined1d,
    nn.BatchNorm2d: _Joined2d,
    nn.BatchNorm3d: _Joined3d,
}


def join_batch_norms(network: nn.Module) -> None:
    """Make a network's batch-norms take their statistics over all processes, in place; names and values stay.

    Meant for a process of a fit, which has its own copy: classes change, so that whoever holds a layer holds the changed one.

    Raises:
        RecipeError: a layer of another kind whose statistics are over the batch.
    """
    for name, module in network.named_modules():
        if type(module) in _JOINED:
            module.__class__ = _JOINED[type(module)]
        elif isinstance(module, _NormBase) and (
            isinstance(module, _BatchNorm) or module.track_running_stats
        ):
            raise RecipeError(
                f"layer '{name}': {type(module).__name__} takes statistics over the batch, which several processes divide; "
                "use BatchNorm1d, 2d or 3d, or set processes to 1"
            )
