"""A layer's synapses as fast engines see them: 2x2 pooling taken out, a common factor taken out, sums bounded."""

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
        layer: whose.
        weight: (outputs, channels, kh, kw) int32 over the whole map that arrives (dense) or a window of it, groups filled
            with zeros, divided by `unit`.
        unit: largest power of two that divides every weight.
        pooled: 2x2 sum pooling was taken out of the kernel; what it sees are counts 0..4.
        planes: bits of what it sees.
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
        return isinstance(self.layer, Dense)

    @property
    def payload(self) -> int:
        """Largest value that it sees."""
        return 4 if self.pooled else 2**self.planes - 1

    @property
    def kernel(self) -> Pair:
        """(kh, kw)."""
        return int(self.weight.shape[2]), int(self.weight.shape[3])

    @property
    def seen(self) -> Pair:
        """(height, width) of the map after pooling."""
        _, h, w = self.entering
        return (-(-h // 2), -(-w // 2)) if self.pooled else (h, w)

    @property
    def out(self) -> tuple[int, int, int]:
        """(outputs, height, width)."""
        shape = self.layer.output_shape
        return shape if len(shape) == 3 else (shape[0], 1, 1)


def synapse_view(layer: Layer, entering: tuple[int, ...], bits: int) -> SynapseView | str:
    """Look at a layer, or say why time cannot be taken out of its synapses.

    Args:
        layer: of a chip network.
        entering: shape of what arrives, (features,) or (C, H, W).
        bits: of what arrives.
    """
    if not isinstance(layer, (Dense, Conv)):
        return "its spikes come back to it"
    if isinstance(layer, Dense) and layer.delay_int is not None:
        return "it has delays"
    shape = entering if len(entering) == 3 else (entering[0], 1, 1)
    kernel = layer.weight_int
    whole = _ungrouped(layer) if isinstance(layer, Conv) else kernel.reshape(len(kernel), *shape)
    pooled = bits == 1 and _can_pool(layer, whole)
    seen = whole[:, :, ::2, ::2] if pooled else whole
    if pooled and isinstance(layer, Dense):
        seen = _with_edge(whole, seen)
    unit = _unit(seen)
    small = seen // unit
    sides = small.reshape(len(small), -1).astype(np.int64)
    most = max(int(np.maximum(sides, 0).sum(1).max()), int(np.maximum(-sides, 0).sum(1).max()))
    step = 2 if pooled else 1
    stride, padding, dilation = (
        (_halved(layer.stride, step), _halved(layer.padding, step), layer.dilation)
        if isinstance(layer, Conv)
        else ((1, 1), (0, 0), (1, 1))
    )
    return SynapseView(
        layer, small, unit, pooled, 3 if pooled else bits, shape, stride, padding, dilation,
        (4 if pooled else 2**bits - 1) * most,
    )  # fmt: skip


def _halved(pair: tuple[int, int], step: int) -> tuple[int, int]:
    return pair[0] // step, pair[1] // step


def _ungrouped(layer: Conv) -> Int32:
    kernel = layer.weight_int
    if layer.groups == 1:
        return kernel
    outputs, inner = kernel.shape[:2]
    whole = np.zeros((outputs, inner * layer.groups, *kernel.shape[2:]), dtype=np.int32)
    each = outputs // layer.groups
    for group in range(layer.groups):
        rows = slice(group * each, (group + 1) * each)
        whole[rows, group * inner : (group + 1) * inner] = kernel[rows]
    return whole


def _can_pool(layer: Dense | Conv, whole: Int32) -> bool:
    """Whether weights are those of a sum over 2x2 pixels and something after it."""
    high, wide = whole.shape[2:]
    if isinstance(layer, Conv):
        even = all(n % 2 == 0 for n in (high, wide, *layer.stride, *layer.padding))
        if not even or layer.dilation != (1, 1):
            return False
    elif high < 2 or wide < 2:
        return False
    inner = whole[:, :, : high // 2 * 2, : wide // 2 * 2]
    corner = inner[:, :, ::2, ::2]
    same = all(np.array_equal(corner, inner[:, :, i::2, j::2]) for i, j in ((0, 1), (1, 0), (1, 1)))
    rest = whole[:, :, high // 2 * 2 :].any() or whole[:, :, :, wide // 2 * 2 :].any()
    return bool(same and not rest)


def _with_edge(whole: Int32, seen: Int32) -> Int32:
    """Weights of the pooled map; its cut last row and column weigh nothing."""
    edged: Int32 = seen.copy()
    if whole.shape[2] % 2:
        edged[:, :, -1] = 0
    if whole.shape[3] % 2:
        edged[:, :, :, -1] = 0
    return edged


def _unit(weight: Int32) -> int:
    bits = int(np.bitwise_or.reduce(np.abs(weight), axis=None))
    return bits & -bits if bits else 1
