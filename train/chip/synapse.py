"""Pooling that lowering folded into weights, found again: train the weights behind it, not their copies.

`knarr.deploy.lower` turns a p x p pooling and the synapse behind it into one synapse whose every weight stands p x p times. Summing
the spikes first gives the same integers with p * p times fewer products, and keeps one trained weight where the student had one.

Synapses: float weights, the integers they become, and sums of all time steps at once that are exact.

A product of integers in floats is exact in whatever order it is summed as long as no partial sum passes 2**24 (float32) or 2**53
(float64); the largest payload and the weights bound it. What would round on the way is switched off: TF32, autocast to 16
bits, NNPACK's transforms, and on a device cuDNN's choice of algorithms: there a convolution is an unfolded product.

Synaptic accumulates that a layer costs, as a sum over spikes: a goal of training, and the count that reports give.

An event of an input costs as many accumulates as outputs hear it, which no training changes: weights of 0 are stored and counted
(`LayerCounts.acc`). So ACC is linear in the spikes, and its gradient by a spike is that spike's fan-out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from knarr.hw_sim import ChipError, Conv, Dense
from knarr.hw_sim.arithmetic import SYNAPSE_BITS
from knarr.hw_sim.counting.fan_out import delayed_reach, layer_reach
from knarr.hw_sim.network import Layer
from knarr.train.chip.quantiser import QuantisationGrid, rounded

Int32 = npt.NDArray[np.int32]
Pair = tuple[int, int]


def conv_pool(layer: Conv) -> Pair:
    """(height, width) of the largest pooling that a kernel, its stride and its padding hold."""
    found = []
    for axis in (0, 1):
        size = gcd(layer.weight_int.shape[2 + axis], layer.stride[axis], layer.padding[axis])
        fits = [
            p
            for p in range(size, 1, -1)
            if size % p == 0 and _repeats(layer.weight_int, 2 + axis, p)
        ]
        found.append(fits[0] if fits and layer.dilation[axis] == 1 else 1)
    return found[0], found[1]


def dense_pool(weight: Int32, entering: tuple[int, ...]) -> Pair:
    """The same of a dense layer's (outputs, C * H * W) weights; rows or columns that no window fills weigh nothing."""
    if len(entering) != 3:
        return 1, 1
    whole = weight.reshape(len(weight), *entering)
    found = []
    for axis in (2, 3):
        side = whole.shape[axis]
        fits = (p for p in range(side, 1, -1) if _pools(whole, axis, p))
        found.append(next(fits, 1))
    return found[0], found[1]


def _pools(whole: Int32, axis: int, p: int) -> bool:
    full = whole.shape[axis] // p * p
    first = np.take(whole, range(full), axis)
    rest = np.take(whole, range(full, whole.shape[axis]), axis)
    return not rest.any() and _repeats(first, axis, p)


def _repeats(weight: Int32, axis: int, p: int) -> bool:
    """Whether every p neighbours along an axis are equal."""
    cut = np.moveaxis(weight, axis, -1)
    cut = cut.reshape(*cut.shape[:-1], -1, p)
    return bool((cut == cut[..., :1]).all())


def pooled(whole: npt.NDArray[Any], pool: Pair) -> npt.NDArray[Any]:
    """One of every p x p copies, of (..., H, W); sides are cut to multiples."""
    high, wide = (side // p * p for side, p in zip(whole.shape[-2:], pool, strict=True))
    return np.ascontiguousarray(whole[..., : high : pool[0], : wide : pool[1]])


def unpooled(weight: Int32, pool: Pair, side: Pair) -> Int32:
    """Every weight p x p times; zeros fill up to `side`."""
    copies = weight.repeat(pool[0], axis=-2).repeat(pool[1], axis=-1)
    whole = np.zeros((*copies.shape[:-2], *side), dtype=np.int32)
    whole[..., : copies.shape[-2], : copies.shape[-1]] = copies
    return whole


FLOAT32_SUMS = 2**23
"""Below it float32 holds every sum, and no convolution wraps to its 24 bits."""
LARGEST_SUM = 2**40
"""Beyond it 64 times the sum, kept with 12 more bits, is no float64."""


@contextmanager
def exact_floats(device: torch.device) -> Iterator[None]:
    """Nothing that rounds where integers are summed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Synapse(nn.Module):
    """A layer's weights and what they make of what arrives.

    Args:
        layer: whose.
        entering: shape of what arrives.
        start: float weights, as the layer has them; of pooled ones one of every copy is kept.
        grid: of its integers.
    """

    def __init__(
        self,
        layer: Layer,
        entering: tuple[int, ...],
        start: npt.NDArray[np.float64],
        grid: QuantisationGrid,
    ) -> None:
        super().__init__()
        self.name, self.grid, self.shape = layer.name, grid, layer.output_shape
        self.unfolds = False
        """Whether convolutions are unfolded on the CPU too, as on a device."""
        self.entering = entering
        self.conv = layer if isinstance(layer, Conv) else None
        self.delay: torch.Tensor | None
        self.register_buffer("delay", None)
        if isinstance(layer, Conv):
            self.pool = conv_pool(layer)
            self.whole: tuple[int, ...] = layer.weight_int.shape
            start = start[..., :: self.pool[0], :: self.pool[1]]
        else:
            delayed = isinstance(layer, Dense) and layer.delay_int is not None
            self.pool = (1, 1) if delayed else dense_pool(layer.weight_int, entering)
            image = entering if len(entering) == 3 else (*entering, 1, 1)
            self.whole = (len(start), *image)
            start = pooled(start.reshape(self.whole), self.pool)
            start = start.reshape(len(start), -1)
            if delayed:
                self.register_buffer("delay", torch.from_numpy(layer.delay_int.astype(np.int64)))  # type: ignore[union-attr]
        self.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(start)).float())

    def integers(self, step: torch.Tensor) -> torch.Tensor:
        """Weights as integers, one of every pooled copy."""
        return rounded(self.weight, step, self.grid)

    def bound(self, integers: torch.Tensor, payload: int) -> int:
        """No |sum|, whole or part of one, is larger, whatever arrives up to the payload."""
        return one_side(integers) * prod(self.pool) * payload

    def forward(self, x: torch.Tensor, integers: torch.Tensor, bound: int) -> torch.Tensor:
        """Sums of all steps.

        Args:
            x: (B, T, *entering) integers as floats.
            integers, bound: of this module's functions of these names; bound of all that is added to the sums too.

        Returns:
            (B, T, *output shape) integers: float32 where the bound allows it, else float64; a convolution's wrapped to 24 bits.

        Raises:
            ChipError: sums that no float holds.
        """
        if bound >= LARGEST_SUM:
            raise ChipError(
                f"layer '{self.name}': sums up to {bound} are not exact; the chip's accumulator ends at 2**15"
            )
        dtype = (
            torch.float32
            if bound < FLOAT32_SUMS and integers.dtype == torch.float32
            else torch.float64
        )
        x, weight = x.to(dtype), integers.to(dtype)
        with exact_floats(x.device):
            if self.conv is not None:
                sums = self._convolved(x.flatten(0, 1), weight, self.conv)
            elif self.delay is not None:
                return self._delayed(x.flatten(2), weight, self.delay)
            else:
                sums = F.linear(self._pooled(x.flatten(0, 1), edges=False).flatten(1), weight)
        sums = sums.reshape(*x.shape[:2], *sums.shape[1:])
        return sums if self.conv is None or bound < FLOAT32_SUMS else wrapped(sums)

    def _pooled(self, frames: torch.Tensor, *, edges: bool) -> torch.Tensor:
        """Sums over the pooling's windows; `edges`: also of those that are cut."""
        if self.pool == (1, 1):
            return frames
        image = frames.reshape(-1, *self.entering)
        return F.avg_pool2d(image, self.pool, self.pool, ceil_mode=edges, divisor_override=1)

    def _convolved(self, frames: torch.Tensor, weight: torch.Tensor, layer: Conv) -> torch.Tensor:
        image = self._pooled(frames, edges=True)
        stride, padding = (
            (pair[0] // self.pool[0], pair[1] // self.pool[1])
            for pair in (layer.stride, layer.padding)
        )
        if not (image.is_cuda or self.unfolds):
            sums = F.conv2d(image, weight, None, stride, padding, layer.dilation, layer.groups)
        else:
            kernel, groups = (weight.shape[2], weight.shape[3]), layer.groups
            columns = F.unfold(image, kernel, layer.dilation, padding, stride)
            columns = columns.reshape(len(columns), groups, -1, columns.shape[-1])
            sums = torch.matmul(weight.reshape(groups, len(weight) // groups, -1), columns)
            reach = layer.dilation[1] * (kernel[1] - 1) + 1
            across = (image.shape[3] + 2 * padding[1] - reach) // stride[1] + 1
            sums = sums.reshape(len(image), len(weight), -1, across)
        # A cut window at the edge may give outputs that the layer does not have.
        _, high, wide = self.shape
        return sums if sums.shape[2:] == (high, wide) else sums[:, :, :high, :wide]

    def _delayed(self, x: torch.Tensor, weight: torch.Tensor, delay: torch.Tensor) -> torch.Tensor:
        """a[t] = sum over synapses of W x[t - delay], silence before the first step."""
        steps = x.shape[1]
        sums = x.new_zeros((*x.shape[:2], len(weight)))
        for late in torch.unique(delay).tolist():
            if late < steps:
                arriving = F.linear(x[:, : steps - late], weight * (delay == late))
                sums = sums + F.pad(arriving, (0, 0, late, 0))
        return sums

    def copied(self, integers: torch.Tensor) -> Int32:
        """Integers as the chip network holds them: int32, pooled ones as often as they stand there."""
        weight = integers.detach().cpu().numpy().astype(np.int32)
        if self.conv is not None:
            return unpooled(weight, self.pool, (self.whole[2], self.whole[3]))
        if self.pool == (1, 1):
            return weight
        channels, high, wide = self.whole[1:]
        small = weight.reshape(len(weight), channels, high // self.pool[0], wide // self.pool[1])
        return unpooled(small, self.pool, (high, wide)).reshape(len(weight), -1)


def wrapped(sums: torch.Tensor) -> torch.Tensor:
    """Sums wrapped to 24 signed bits; a wrap is a shift, so gradients pass."""
    half = float(1 << (SYNAPSE_BITS - 1))
    turns = torch.floor((sums.detach() + half) / (2 * half))
    return sums - turns * (2 * half)


def one_side(weight: torch.Tensor) -> int:
    """Largest sum of an output's weights of one sign."""
    rows = weight.detach().double().flatten(1)
    return int(max(rows.clamp(min=0).sum(1).max(), (-rows).clamp(min=0).sum(1).max()))


class Accumulates(nn.Module):
    """Fan-out of a layer's inputs.

    Args:
        layer: whose.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        reaches = delayed_reach(layer) if isinstance(layer, Dense) else {0: layer_reach(layer)}
        self.delays = tuple(reaches)
        for number, reach in enumerate(reaches.values()):
            stored = torch.from_numpy(reach.stored.reshape(-1)).double()
            # It follows from the network, so checkpoints need not hold it.
            self.register_buffer(f"reach_{number}", stored, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Accumulates of each clip, (B,) float64.

        Args:
            x: (B, T, *entering) what arrives. Frames that hold more than 0 and 1 multiply and cost no accumulates.
        """
        flat, steps = x.flatten(2), x.shape[1]
        with torch.no_grad():
            graded = flat.amax(2, keepdim=True) > 1
        if bool(graded.any()):
            flat = flat * ~graded
        total = flat.new_zeros(len(flat), dtype=torch.float64)
        for number, ago in enumerate(self.delays):
            # What would act after the inference is not paid.
            total = total + flat[:, : max(0, steps - ago)].sum(1).double() @ getattr(
                self, f"reach_{number}"
            )
        return total


def returned(spikes: torch.Tensor, recurrent: torch.Tensor) -> torch.Tensor:
    """Accumulates of a layer's own spikes in each clip, (B,) float64; those of the last step come back too late.

    Args:
        spikes: (B, T, neurons).
        recurrent: (neurons, neurons) integers; where no neuron hears itself there are no such synapses.
    """
    autapses = bool(torch.diagonal(recurrent).any())
    return (len(recurrent) - (not autapses)) * spikes[:, :-1].flatten(1).sum(1).double()
