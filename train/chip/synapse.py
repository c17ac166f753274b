"""Synapses that learn: float weights, the integers they become, exact sums of all time steps at
once, and their cost.

Pooling that lowering folded into weights is found again. `knarr.deploy.lower` turns a p x p pooling
and the synapse behind it into one synapse whose every weight stands p x p times. Summing the spikes
first gives the same integers with p * p times fewer products, and keeps one trained weight where
the student had one.

A product of integers in floats is exact in whatever order it is summed as long as no partial sum
passes 2**24 (float32) or 2**53 (float64); the largest payload and the weights bound it. Whatever
would round on the way is switched off: TF32, autocast to 16 bits, NNPACK's transforms, and on a
device cuDNN's choice of algorithms: there a convolution is an unfolded product.

An event of an input costs one accumulate for each output in its fan-out, which no training changes:
weights of 0 are stored and counted (`LayerCounts.acc`). So the synaptic accumulates (ACC) are
linear in the spikes, and their gradient by a spike is that spike's fan-out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd, prod

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knarr.hw_sim import ChipError, Conv, Dense
from knarr.hw_sim.arithmetic import SYNAPSE_BITS
from knarr.hw_sim.arrays import Mask
from knarr.hw_sim.counting.fan_out import layer_fan_outs
from knarr.hw_sim.network import Layer
from knarr.train.chip.quantiser import QuantisationGrid, rounded

Int32 = npt.NDArray[np.int32]
Pair = tuple[int, int]
FLOAT32_SUMS = 2**23
"""Below it float32 holds every sum, and no convolution wraps to its 24 bits."""
LARGEST_SUM = 2**40
"""Beyond it 64 times the sum, kept with 12 more bits, is no float64."""


def conv_pool(layer: Conv) -> Pair:
    """Return (height, width) of the largest pooling that a kernel, its stride and its padding hold."""
    found = []
    for axis in (0, 1):
        # Windows that the convolution moves by whole ones, and pads by whole ones.
        kernel = layer.weight_int.shape[2 + axis]
        size = gcd(kernel, layer.stride[axis], layer.padding[axis])
        if layer.dilation[axis] != 1:
            # Taps with gaps between them are no windows.
            size = 1
        divisors = (p for p in range(size, 0, -1) if size % p == 0)
        # 1 always fits.
        found.append(next(p for p in divisors if _repeats(layer.weight_int, 2 + axis, p)))
    return found[0], found[1]


def dense_pool(weight: Int32, entering: tuple[int, ...]) -> Pair:
    """Return (height, width) of the largest pooling in a dense layer's (outputs, C * H * W)
    weights.
    """
    if len(entering) != 3:
        return 1, 1
    image = weight.reshape(len(weight), *entering)
    found = []
    for axis in (2, 3):
        sizes = range(image.shape[axis], 0, -1)
        found.append(next(p for p in sizes if _pools(image, axis, p)))
    return found[0], found[1]


def _pools(image: Int32, axis: int, p: int) -> bool:
    # Rows or columns that no window fills weigh nothing.
    full = image.shape[axis] // p * p
    windows, rest = np.split(image, [full], axis)
    return not rest.any() and _repeats(windows, axis, p)


def _repeats(weight: Int32, axis: int, p: int) -> bool:
    """Tell whether every p neighbours along an axis are equal."""
    cut = np.moveaxis(weight, axis, -1)
    cut = cut.reshape(*cut.shape[:-1], -1, p)
    return bool((cut == cut[..., :1]).all())


def unpooled(weight: Int32, pool: Pair, side: Pair) -> Int32:
    """Repeat every weight p x p times; zeros fill up to `side`."""
    rows = weight.repeat(pool[0], axis=-2)
    copies = rows.repeat(pool[1], axis=-1)
    *others, high, wide = copies.shape
    whole = np.zeros((*others, *side), dtype=np.int32)
    whole[..., :high, :wide] = copies
    return whole


@contextmanager
def exact_floats(device: torch.device) -> Iterator[None]:
    """Switch off whatever rounds where integers are summed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        no_autocast = torch.autocast(device.type, enabled=False)
        with no_autocast, torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Synapse(nn.Module):
    """A layer's weights and the sums they make of what arrives.

    Args:
        layer: the layer they belong to.
        entering: shape of what arrives.
        start: float weights, as the layer has them; of pooled ones one of every copy is kept.
        grid: legal integers of the weights.
    """

    def __init__(
        self,
        layer: Layer,
        entering: tuple[int, ...],
        start: npt.NDArray[np.float64],
        grid: QuantisationGrid,
    ) -> None:
        super().__init__()
        self.name = layer.name
        self.grid = grid
        self.shape = layer.output_shape
        self.unfolds = False
        """True where convolutions are unfolded on the CPU too, as they are on a device."""
        self.entering = entering
        self.conv = layer if isinstance(layer, Conv) else None
        delay = layer.delay_int if isinstance(layer, Dense) else None
        self.delay: Tensor | None
        self.register_buffer(
            "delay", None if delay is None else torch.from_numpy(delay.astype(np.int64))
        )
        self.whole: tuple[int, ...]
        """Shape of the weights with every copy; of a dense layer (outputs, C, H, W)."""
        if isinstance(layer, Conv):
            self.pool = high_p, wide_p = conv_pool(layer)
            self.whole = layer.weight_int.shape
            start = start[..., ::high_p, ::wide_p]
        else:
            # A delay belongs to one synapse: copies that arrive at different times cannot be summed
            # first.
            self.pool = (1, 1) if delay is not None else dense_pool(layer.weight_int, entering)
            high_p, wide_p = self.pool
            image = entering if len(entering) == 3 else (*entering, 1, 1)
            self.whole = (len(start), *image)
            # Rows and columns that no window fills weigh nothing and are cut off.
            high = image[1] // high_p * high_p
            wide = image[2] // wide_p * wide_p
            start = start.reshape(self.whole)[..., :high:high_p, :wide:wide_p]
            start = start.reshape(len(start), -1)
        contiguous = np.ascontiguousarray(start)
        self.weight = nn.Parameter(torch.from_numpy(contiguous).float())

    def integers(self, step: Tensor) -> Tensor:
        """Return the weights as integers, one of every pooled copy."""
        return rounded(self.weight, step, self.grid)

    def bound(self, integers: Tensor, arriving: tuple[int, int]) -> int:
        """Return a bound of every |sum|, whole or part of one, whatever arrives within its limits."""
        low, high = arriving
        # What arrives with both signs can turn all weights to one side.
        most = one_side(integers.abs() if low < 0 else integers)
        return most * prod(self.pool) * max(-low, high)

    def forward(self, x: Tensor, integers: Tensor, bound: int) -> Tensor:
        """Sum what arrives in all steps.

        Args:
            x: (B, T, *entering) integers as floats.
            integers: weights, from this module's `integers`.
            bound: from this module's `bound`, and the bound of all that is added to the sums later.

        Returns:
            (B, T, *output shape) integers: float32 where the bound allows it, else float64; a
            convolution's wrapped to 24 bits.

        Raises:
            ChipError: sums that no float holds.
        """
        if bound >= LARGEST_SUM:
            raise ChipError(
                f"layer '{self.name}': sums up to {bound} are not exact; the chip's accumulator ends at 2**15"
            )
        # Weights of a grid past 2**24 come as float64, whatever the sums.
        narrow = bound < FLOAT32_SUMS and integers.dtype == torch.float32
        dtype = torch.float32 if narrow else torch.float64
        x = x.to(dtype)
        weight = integers.to(dtype)
        with exact_floats(x.device):
            if self.delay is not None:
                return self._delayed(x.flatten(2), weight, self.delay)
            frames = x.flatten(0, 1)
            if self.conv is not None:
                sums = self._convolved(frames, weight, self.conv)
            else:
                pooled = self._pooled(frames, edges=False)
                sums = F.linear(pooled.flatten(1), weight)
        clips, steps = x.shape[:2]
        sums = sums.reshape(clips, steps, *sums.shape[1:])
        # Lava wraps the sums of convolutions, and of no other layer.
        return sums if self.conv is None or bound < FLOAT32_SUMS else wrapped(sums)

    def _pooled(self, frames: Tensor, *, edges: bool) -> Tensor:
        """Sum over the pooling's windows; `edges`: also over those that are cut."""
        if self.pool == (1, 1):
            return frames
        image = frames.reshape(-1, *self.entering)
        # A divisor of 1 makes the average a sum.
        return F.avg_pool2d(image, self.pool, self.pool, ceil_mode=edges, divisor_override=1)

    def _convolved(self, frames: Tensor, weight: Tensor, layer: Conv) -> Tensor:
        image = self._pooled(frames, edges=True)
        high_p, wide_p = self.pool
        stride = layer.stride[0] // high_p, layer.stride[1] // wide_p
        padding = layer.padding[0] // high_p, layer.padding[1] // wide_p
        if not (image.is_cuda or self.unfolds):
            sums = F.conv2d(
                image,
                weight,
                None,
                stride,
                padding,
                layer.dilation,
                layer.groups,
            )
        else:
            kernel = (weight.shape[2], weight.shape[3])
            groups = layer.groups
            # (frames, channels * taps, places), then apart by group.
            columns = F.unfold(image, kernel, layer.dilation, padding, stride)
            columns = columns.reshape(
                len(columns),
                groups,
                -1,
                columns.shape[-1],
            )
            by_group = weight.reshape(groups, len(weight) // groups, -1)
            sums = torch.matmul(by_group, columns)
            # unfold gives places in a row; their width is that of a convolution's output.
            reach = layer.dilation[1] * (kernel[1] - 1) + 1
            across = (image.shape[3] + 2 * padding[1] - reach) // stride[1] + 1
            sums = sums.reshape(len(image), len(weight), -1, across)
        # A cut window at the edge may give outputs that the layer does not have.
        _, high, wide = self.shape
        if sums.shape[2:] == (high, wide):
            return sums
        return sums[:, :, :high, :wide]

    def _delayed(self, x: Tensor, weight: Tensor, delay: Tensor) -> Tensor:
        """Sum a[t] = sum over synapses of W x[t - delay], silence before the first step."""
        steps = x.shape[1]
        sums = x.new_zeros((*x.shape[:2], len(weight)))
        for late in torch.unique(delay).tolist():
            if late < steps:
                own = weight * (delay == late)
                arriving = F.linear(x[:, : steps - late], own)
                # The pairs of pad count from the last axis: nothing for outputs, silence before
                # time.
                sums = sums + F.pad(arriving, (0, 0, late, 0))
        return sums

    def copied(self, integers: Tensor) -> Int32:
        """Return integers as the chip network holds them: int32, pooled ones as often as they stand
        there.
        """
        weight = integers.detach().cpu().numpy().astype(np.int32)
        side = self.whole[2], self.whole[3]
        if self.conv is not None:
            return unpooled(weight, self.pool, side)
        high = side[0] // self.pool[0]
        wide = side[1] // self.pool[1]
        small = weight.reshape(len(weight), self.whole[1], high, wide)
        return unpooled(small, self.pool, side).reshape(len(weight), -1)


def wrapped(sums: Tensor) -> Tensor:
    """Wrap sums to 24 signed bits; a wrap is a shift, so gradients pass."""
    half = float(1 << (SYNAPSE_BITS - 1))
    turns = torch.floor((sums.detach() + half) / (2 * half))
    return sums - turns * (2 * half)


def one_side(weight: Tensor) -> int:
    """Return the largest sum of an output's weights of one sign."""
    # Any part of a sum lies between that of its negative and that of its positive weights.
    rows = weight.detach().double().flatten(1)
    up = rows.clamp(min=0).sum(1).max()
    down = (-rows).clamp(min=0).sum(1).max()
    return int(max(up, down))


class Accumulates(nn.Module):
    """Fan-out of a layer's inputs, and the synaptic accumulates that it makes them cost.

    Args:
        layer: the layer whose inputs they are.
        unit: magnitude of a spike among them, at least 1: more where inputs are integers of 8 bits.
        synapses: which of its stored weights are synapses; None: all.
    """

    def __init__(self, layer: Layer, unit: int = 1, synapses: Mask | None = None) -> None:
        super().__init__()
        self.unit = unit
        fan_outs = layer_fan_outs(layer, synapses)
        self.delays = tuple(fan_outs)
        stored = np.stack([fan_out.stored.reshape(-1) for fan_out in fan_outs.values()])
        self.reach: Tensor
        # It follows from the network, so checkpoints need not hold it.
        self.register_buffer("reach", torch.from_numpy(stored).double(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the accumulates of each clip, (B,) float64.

        Args:
            x: (B, T, *entering) what arrives. Frames that hold more than -unit, 0 and unit multiply
                and cost no accumulates.
        """
        flat = x.flatten(2)
        steps = x.shape[1]
        with torch.no_grad():
            # Of inputs with a sign, -1 is an accumulate too; spikes of layers have none.
            if bool((flat < 0).any()):
                flat = flat.abs()
            if self.unit == 1:
                graded = flat.amax(2, keepdim=True) > 1
            else:
                flat = flat / self.unit
                graded = ((flat != 0) & (flat != 1)).any(2, keepdim=True)
        # Frames of spikes are the rule, and for them there is nothing to copy.
        if bool(graded.any()):
            flat = flat * ~graded
        total = flat.new_zeros(len(flat), dtype=torch.float64)
        for ago, reach in zip(self.delays, self.reach, strict=True):
            # An event that would act after the inference is not paid.
            in_time = flat[:, : max(0, steps - ago)]
            total = total + in_time.sum(1).double() @ reach
        return total


def returned(spikes: Tensor, recurrent: Tensor) -> Tensor:
    """Return the accumulates of a layer's own spikes in each clip, (B,) float64.

    Args:
        spikes: (B, T, neurons); those of the last step come back too late.
        recurrent: (neurons, neurons) integers.
    """
    # Where no neuron feeds itself the diagonal is no synapses at all.
    autapses = bool(torch.diagonal(recurrent).any())
    fan_out = len(recurrent) - (not autapses)
    in_time = spikes[:, :-1].flatten(1)
    return fan_out * in_time.sum(1).double()
