"""A layer's synapses as fast engines see them: 2x2 pooling taken out, a common factor taken out,
sums bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knarr.hw_sim.arrays import Int32
from knarr.hw_sim.network import Conv, Dense, Layer

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class SynapseView:
    """One layer's synapses.

    Args:
        layer: the layer that is seen.
        weight: (outputs, channels, kh, kw) int32 over the whole map that arrives (dense) or a
            window of it, groups filled with zeros, divided by `unit`.
        unit: largest power of two that divides every weight.
        pooled: 2x2 sum pooling was taken out of the kernel; what it sees are counts 0..4.
        planes: bits of what it sees, a sign aside.
        entering: (C, H, W) of what arrives, before pooling.
        stride, padding, dilation: over what it sees, (y, x).
        bound: no |sum| of weight times what it sees is larger.
    """

    layer: Dense | Conv
    weight: Int32
    unit: int
    pooled: bool
    planes: int
    entering: tuple[int, int, int]
    stride: Pair
    padding: Pair
    dilation: Pair
    bound: int

    @property
    def dense(self) -> bool:
        """Tell whether every output sees the whole map."""
        return isinstance(self.layer, Dense)

    @property
    def payload(self) -> int:
        """Largest value that it sees."""
        # Counts of four pixels take three bits, but never fill them.
        return 4 if self.pooled else 2**self.planes - 1

    @property
    def kernel(self) -> Pair:
        """Size of the kernel, (height, width)."""
        high, wide = self.weight.shape[2:]
        return high, wide

    @property
    def seen(self) -> Pair:
        """Size of the map after pooling, (height, width)."""
        _, h, w = self.entering
        if self.pooled:
            h, w = -(-h // 2), -(-w // 2)
        return h, w

    @property
    def out(self) -> tuple[int, int, int]:
        """Size of what the layer sends, (outputs, height, width)."""
        shape = self.layer.output_shape
        return shape if len(shape) == 3 else (shape[0], 1, 1)


def synapse_view(
    layer: Layer,
    entering: tuple[int, ...],
    bits: int,
    signed: bool = False,
    *,
    pool: bool = True,
) -> SynapseView | str:
    """Look at a layer, or say why time cannot be taken out of its synapses.

    Args:
        layer: a layer of a chip network.
        entering: shape of what arrives, (features,) or (C, H, W).
        bits: width of what arrives.
        signed: its sign comes on top.
        pool: take 2x2 sum pooling out where there is some.
    """
    if not isinstance(layer, (Dense, Conv)):
        return "its spikes come back to it"
    if isinstance(layer, Dense) and layer.delay_int is not None:
        return "it has delays"
    shape = entering if len(entering) == 3 else (entering[0], 1, 1)
    stride, padding, dilation = (1, 1), (0, 0), (1, 1)
    if isinstance(layer, Conv):
        whole = _ungrouped(layer)
        stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    else:
        whole = layer.weight_int.reshape(-1, *shape)
    # Sums of graded payloads would need more bits than one plane more.
    pooled = pool and bits == 1 and not signed and _can_pool(layer, whole)
    seen = whole
    if pooled:
        stride = stride[0] // 2, stride[1] // 2
        padding = padding[0] // 2, padding[1] // 2
        # One weight for 2x2 pixels. An odd last row or column, alone in its pixels, weighs nothing.
        seen = whole[:, :, ::2, ::2]
    unit = power_of_two(seen)
    small = seen // unit
    planes = 3 if pooled else bits
    payload = 4 if pooled else 2**bits - 1
    return SynapseView(
        layer,
        small,
        unit,
        pooled,
        planes,
        shape,
        stride,
        padding,
        dilation,
        payload * heaviest(small, signed=signed),
    )


def power_of_two(weight: Int32) -> int:
    """Return the largest power of two that divides every weight; 1 where all are 0."""
    # The lowest bit that is set in any weight; two's complement finds it.
    set_bits = int(np.bitwise_or.reduce(weight, axis=None))
    return set_bits & -set_bits or 1


def heaviest(weight: Int32, *, signed: bool = False) -> int:
    """Return the largest |sum| that events of 0 and 1 make at one output, or of -1 to 1 where
    `signed`.

    Args:
        weight: (outputs, ...).
        signed: events may be negative.
    """
    flat = weight.reshape(len(weight), -1).astype(np.int64)
    positive = np.maximum(flat, 0).sum(axis=1)
    negative = np.maximum(-flat, 0).sum(axis=1)
    if signed:
        return int((positive + negative).max())
    # Events are at least 0: weights of one sign alone make the largest sums.
    return max(int(positive.max()), int(negative.max()))


def _ungrouped(layer: Conv) -> Int32:
    """Return the kernel over all channels, zeros where a group does not see them."""
    kernel, groups = layer.weight_int, layer.groups
    outputs, inner, *size = kernel.shape
    each = outputs // groups
    whole = np.zeros((groups, each, groups, inner, *size), dtype=np.int32)
    # Outputs of a group meet the channels of the same group.
    group = np.arange(groups)
    whole[group, :, group] = kernel.reshape(groups, each, inner, *size)
    return whole.reshape(outputs, groups * inner, *size)


def _can_pool(layer: Dense | Conv, whole: Int32) -> bool:
    """Tell whether weights are those of a sum over 2x2 pixels and something after it."""
    high, wide = whole.shape[2:]
    if isinstance(layer, Conv):
        # Windows have to begin and end at the edges of 2x2 pixels.
        even = all(n % 2 == 0 for n in (high, wide, *layer.stride, *layer.padding))
        if not even or layer.dilation != (1, 1):
            return False
    elif high < 2 or wide < 2:
        return False
    corners = whole[:, :, : high - 1 : 2, : wide - 1 : 2]
    pooled = corners.repeat(2, axis=2).repeat(2, axis=3)
    # Nothing may come from an odd last row or column, alone in its pixels.
    odd = [(0, 0), (0, 0), (0, high % 2), (0, wide % 2)]
    return np.array_equal(whole, np.pad(pooled, odd))
