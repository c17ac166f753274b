"""Step the NIR nodes without neurons: synapses, pooling, Flatten, Threshold, and Delay, which remembers inputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import nir
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from knarr.export.errors import ExportError
from knarr.export.graph.parameters import Steps, ints
from knarr.export.graph.topology import CONVS, ENDS, LINEARS, POOLS

Step = Callable[[Tensor], Tensor]


def add_up(forward: Sequence[Tensor], looping: Sequence[Tensor] = ()) -> Tensor:
    """Sum what arrives at this step, and then what comes round a loop; one of the two may be missing."""
    if not forward or not looping:
        parts = forward or looping
        return sum(parts[1:], start=parts[0])
    # Two sums and not one: float32 rounds by the brackets, and Norse's recurrent cells have these.
    return add_up(forward) + add_up(looping)


def sum_pool2d(
    x: Tensor, size: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """Sum (B, C, H, W) over windows of `size`, with zeros around."""
    # A convolution with one kernel of ones per channel: exact for spikes, where torch's mean times the size rounds twice.
    channels = x.shape[1]
    ones = x.new_ones(channels, 1, *size)
    return F.conv2d(x, ones, None, stride, padding, groups=channels)


def synapse_step(name: str, node: Any, dtype: torch.dtype) -> Step:
    """Return the function of a stateless node on (B, *features).

    Raises:
        ExportError: a node type without a meaning here.
    """

    def tensor(array: object) -> Tensor:
        return torch.as_tensor(np.asarray(array)).to(dtype)

    if isinstance(node, ENDS):
        return lambda x: x
    if isinstance(node, LINEARS):
        weight = tensor(node.weight)
        bias = tensor(node.bias) if isinstance(node, nir.Affine) else None
        return lambda x: F.linear(x, weight, bias)
    if isinstance(node, nir.Scale):
        scale = tensor(node.scale)
        return lambda x: x * scale
    if isinstance(node, nir.Threshold):
        threshold = tensor(node.threshold)
        return lambda x: (x > threshold).to(dtype)
    if isinstance(node, CONVS):
        axes = np.asarray(node.weight).ndim - 2
        kernel, offset = tensor(node.weight), tensor(node.bias)
        stride, dilation = ints(node.stride, axes), ints(node.dilation, axes)
        # torch takes 'same' and 'valid' as NIR writes them.
        padding = node.padding if isinstance(node.padding, str) else ints(node.padding, axes)
        conv: Any = F.conv1d if axes == 1 else F.conv2d
        sides = list(kernel.shape[2:])
        spans = [d * (k - 1) for d, k in zip(dilation, sides, strict=True)]
        if padding == "same" and any(span % 2 for span in spans):
            # torch does the same with a warning: the odd zero stands behind the image. The last axis goes first.
            zeros = [side for span in reversed(spans) for side in (span // 2, span - span // 2)]
            return lambda x: conv(
                F.pad(x, zeros), kernel, offset, stride, 0, dilation, int(node.groups)
            )
        return lambda x: conv(x, kernel, offset, stride, padding, dilation, int(node.groups))
    if isinstance(node, POOLS):
        size, step, around = ints(node.kernel_size), ints(node.stride), ints(node.padding)
        pool: Any = F.avg_pool2d if isinstance(node, nir.AvgPool2d) else sum_pool2d
        return lambda x: pool(x, size, step, around)
    if isinstance(node, nir.Flatten):
        # +1: NIR counts dimensions without the batch.
        start, end = int(node.start_dim) + 1, int(node.end_dim)
        return lambda x: x.flatten(start, end if end < 0 else end + 1)
    raise ExportError(
        f"node '{name}': {type(node).__name__} has no stepper; supported are LIF, CubaLIF, LI, CubaLI, IF, I, Linear, Affine, "
        "Scale, Conv1d, Conv2d, AvgPool2d, SumPool2d, Flatten, Threshold, Delay"
    )


class DelayLine:
    """A delay per element: y[t] = x[t - steps], zero before the first input."""

    def __init__(self, steps: Steps) -> None:
        self.steps = torch.as_tensor(steps)
        # Only delays that occur are looked up, newest input last.
        self.agos = [int(ago) for ago in np.unique(steps) if ago > 0]
        self.past: deque[Tensor] = deque(maxlen=int(steps.max(initial=0)))

    def read(self, silence: Tensor) -> Tensor:
        """Return the output of this step when every delay is at least one; call before `push`."""
        out = silence.clone()
        steps = self.steps.expand(silence.shape[1:])
        for ago in self.agos:
            if ago <= len(self.past):
                out = torch.where(steps == ago, self.past[-ago], out)
        return out

    def push(self, x: Tensor) -> None:
        """Take in the input of this step; what is older than the longest delay is forgotten."""
        if self.past.maxlen:
            self.past.append(x)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output for the input of this step; delays of zero are allowed."""
        delayed = self.read(torch.zeros_like(x))
        at_once = self.steps.expand(x.shape[1:]) == 0
        out = torch.where(at_once, x, delayed)
        self.push(x)
        return out
