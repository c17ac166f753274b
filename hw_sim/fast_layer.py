"""A layer as the compiled kernel takes it: weights laid out in blocks of 32 outputs, and the bounds that make 16 bits enough."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.layers import DECAY_UNITY, Conv, Dense, Layer
from knarr.hw_sim.native import LANES, LISTS, MAX_LIST, MAX_TAPS, TABLE, WORDS

Int32 = npt.NDArray[np.int32]
INT16 = 2**15 - 1
MAX_SUM = 2**17
"""States are exact in float32 while 64 * |sum| stays within 2**23."""
MAX_BIAS = 2**16
TABLE_BITS = 8
CONV_DOTS_ABOVE, DENSE_DOTS_ABOVE = 150, 250
"""Per mille of what arrives that is not 0; benchmarks/hw_sim/scaling.py finds the crossings."""


@dataclass(frozen=True, eq=False)
class Dots:
    """Weights for dot products of four channels at a time.

    Args:
        weight: (blocks, taps, quads, 32, 4) int8.
        flush: quads whose products 16 bits hold, 0 when they hold all.
        above: activity per mille from which they are faster than events.
    """

    weight: npt.NDArray[np.int8]
    flush: int
    above: int

    @property
    def quads(self) -> int:
        return int(self.weight.shape[2])


@dataclass(frozen=True, eq=False)
class FastLayer:
    """One layer.

    Args:
        layer: what it computes.
        mode: WORDS, LISTS or TABLE of native.py.
        weight: int16 in the kernel's layout, divided by `unit`.
        bias: (blocks * 32,) float32, times 64.
        unit: largest power of two that divides every weight.
        pooled: 2x2 sum pooling was taken out of the kernel; planes become 3.
        planes: bits of what arrives, after pooling.
        entering: (C, H, W) of what arrives, before pooling.
        window: (kh, kw), and of what it slides over: (stride_y, stride_x), (pad_y, pad_x), (dil_y, dil_x).
        flush: rows after which 16 bits are carried.
        may_wrap: u can pass 2**23.
        may_clip: v can reach 2**23 from below.
        dot: weights for dot products, None where 8 bits do not hold them.
    """

    layer: Dense | Conv
    mode: int
    weight: npt.NDArray[np.int8] | npt.NDArray[np.int16]
    bias: npt.NDArray[np.float32]
    unit: int
    pooled: bool
    planes: int
    entering: tuple[int, int, int]
    window: tuple[tuple[int, int], ...]
    flush: int
    may_wrap: bool
    may_clip: bool
    dot: Dots | None

    @property
    def dense(self) -> bool:
        return isinstance(self.layer, Dense)

    @property
    def blocks(self) -> int:
        return len(self.bias) // LANES

    @property
    def out(self) -> tuple[int, int, int]:
        """(outputs, height, width)."""
        shape = self.layer.output_shape
        return shape if len(shape) == 3 else (shape[0], 1, 1)

    @property
    def seen(self) -> tuple[int, int]:
        """(height, width) of the map after pooling."""
        _, h, w = self.entering
        return (-(-h // 2), -(-w // 2)) if self.pooled else (h, w)


def fast_layer(layer: Layer, entering: tuple[int, ...], bits: int) -> FastLayer | str:
    """Lay out a layer, or say why the kernel does not take it.

    Args:
        layer: of a chip network.
        entering: shape of what arrives, (features,) or (C, H, W).
        bits: of what arrives.
    """
    if not isinstance(layer, (Dense, Conv)):
        return "its spikes come back to it"
    if isinstance(layer, Dense) and layer.delay_int is not None:
        return "it has delays"
    bias = np.zeros(layer.weight_int.shape[0], np.int32) if layer.bias_int is None else layer.bias_int
    if _largest(bias) > MAX_BIAS:
        return "its bias passes 16 bits"
    shape = entering if len(entering) == 3 else (entering[0], 1, 1)
    kernel = layer.weight_int
    if _largest(kernel) > 2**15:
        return f"weights up to {_largest(kernel)} need more than 16 bits"
    whole = _dense_groups(layer, kernel) if isinstance(layer, Conv) else kernel.reshape(len(kernel), *shape)
    pooled = bits == 1 and _can_pool(layer, whole)
    seen = whole[:, :, ::2, ::2] if pooled else whole
    if pooled and isinstance(layer, Dense):
        seen = _with_edge(whole, seen)
    planes = 3 if pooled else bits
    unit = _unit(seen)
    small = seen // unit
    largest = _largest(small)
    if largest * 32 > INT16:
        return f"weights up to {largest * unit} need more than 16 bits"
    payload = 4 if pooled else 2**bits - 1
    sides = small.reshape(len(small), -1)
    bound = payload * max(int(np.maximum(sides, 0).sum(1).max()), int(np.maximum(-sides, 0).sum(1).max()))
    if bound * unit >= 2**31:
        return f"sums up to {bound * unit} need more than 32 bits"
    mode, weight = _laid_out(layer, small, planes, bound)
    if isinstance(layer, Conv) and prod(small.shape[2:]) > MAX_TAPS:
        return f"a window of {small.shape[2:]} has too many taps"
    decay = layer.neuron.i_decay
    worst_u = 64 * bound * unit * DECAY_UNITY / decay if decay else np.inf
    blocks = -(-len(small) // LANES)
    lanes = np.zeros(blocks * LANES, dtype=np.float32)
    lanes[: len(bias)] = 64.0 * bias
    step = 2 if pooled else 1
    dense = isinstance(layer, Dense)
    narrow = dense and int(small.min()) >= -128 and int(small.max()) <= 127
    keep_v = 1 - layer.neuron.v_decay / DECAY_UNITY
    worst_v = 64 * layer.neuron.vth_int * keep_v + min(worst_u, STATE_MAX) + 64 * _largest(bias)
    window = (
        tuple(small.shape[2:]),
        *(
            (_halved(layer.stride, step), _halved(layer.padding, step), layer.dilation)
            if isinstance(layer, Conv)
            else ((1, 1), (0, 0), (1, 1))
        ),
    )
    return FastLayer(
        layer,
        mode,
        np.ascontiguousarray(weight, dtype=np.int8 if narrow else np.int16),
        lanes,
        unit,
        pooled,
        planes,
        shape,
        window,  # type: ignore[arg-type]
        max(1, INT16 // max(largest, 1)),
        bool(worst_u >= STATE_MAX),
        bool(worst_v >= STATE_MAX - 1),
        _dots(small, payload, DENSE_DOTS_ABOVE if dense else CONV_DOTS_ABOVE) if mode != TABLE else None,
    )


def _dots(small: Int32, payload: int, above: int) -> Dots | None:
    """Weights four channels by four, if every product of two channels fits 16 bits."""
    outputs, channels, high, wide = small.shape
    if not (int(small.min()) >= -128 and int(small.max()) <= 127) or payload > 255 or high * wide > MAX_TAPS:
        return None
    quads, blocks = -(-channels // 4), -(-outputs // LANES)
    padded = np.zeros((blocks * LANES, quads * 4, high * wide), dtype=np.int32)
    padded[:outputs, :channels] = small.reshape(outputs, channels, -1)
    pairs = padded.reshape(blocks * LANES, quads, 2, 2, high * wide)
    sides = [payload * np.maximum(sign * pairs, 0).sum(axis=3) for sign in (1, -1)]
    most = max(int(side.max()) for side in sides)
    if most > INT16:
        return None
    in_all = max(int(side.sum(axis=(1, 3)).max()) for side in sides)
    weight = padded.reshape(blocks, LANES, quads, 4, high * wide).transpose(0, 4, 2, 1, 3).astype(np.int8)
    flush = 0 if in_all <= INT16 else INT16 // most
    return Dots(np.ascontiguousarray(weight), flush, above)


def _largest(values: Int32) -> int:
    return max(-int(values.min()), int(values.max()))


def _halved(pair: tuple[int, int], step: int) -> tuple[int, int]:
    return pair[0] // step, pair[1] // step


def _dense_groups(layer: Conv, kernel: Int32) -> Int32:
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


def _laid_out(layer: Dense | Conv, small: Int32, planes: int, bound: int) -> tuple[int, npt.NDArray[Any]]:
    """Mode, and weights as (blocks, taps, rows, lanes) of it."""
    outputs, channels, high, wide = small.shape
    groups, blocks = -(-channels // 32), -(-outputs // LANES)
    lanes = np.zeros((blocks * LANES, channels, high, wide), dtype=np.int32)
    lanes[:outputs] = small
    if isinstance(layer, Conv) and bound <= INT16 and planes == 1 and channels * wide <= TABLE_BITS:
        bits = np.arange(1 << (channels * wide))
        table = np.zeros((blocks, high, len(bits), LANES), dtype=np.int32)
        for x in range(wide):
            for c in range(channels):
                on = (bits >> (x * channels + c)) & 1
                rows = lanes[:, c, :, x].reshape(blocks, LANES, high).transpose(0, 2, 1)
                table += on[None, None, :, None] * rows[:, :, None, :]
        return TABLE, table
    rows = np.zeros((blocks, high * wide, groups * 32, LANES), dtype=np.int16)
    rows[:, :, :channels] = lanes.reshape(blocks, LANES, channels, high * wide).transpose(0, 3, 2, 1)
    lists = (
        bound <= INT16
        and planes * groups * 32 <= 256
        and high * wide * planes * groups * 32 <= 2**16
        and high * wide * channels * planes <= MAX_LIST
    )
    if isinstance(layer, Conv) and lists:
        return LISTS, np.concatenate([rows << plane for plane in range(planes)], axis=2)
    return WORDS, rows
