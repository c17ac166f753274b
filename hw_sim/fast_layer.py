"""A layer as the compiled kernel takes it: weights laid out in blocks of 32 outputs, and the bounds that make 16 bits enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.layers import DECAY_UNITY, Conv, Dense, Layer
from knarr.hw_sim.native import LANES, LISTS, MAX_LIST, MAX_TAPS, TABLE, WORDS
from knarr.hw_sim.synapse_view import Int32, SynapseView, synapse_view

INT16 = 2**15 - 1
MAX_BIAS = 2**16
TABLE_BITS = 8
MAX_PAIRED = 256
"""Rows of bytes whose sums can be taken apart."""
CONV_DOTS_ABOVE, DENSE_DOTS_ABOVE = 120, 500
"""Per mille of what arrives that is not 0: where W2s (convolutions) and W1 (dense) take as long with dot products as with events."""


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
        view: of its synapses.
        mode: WORDS, LISTS or TABLE of native.py.
        weight: int16 in the kernel's layout, or bytes in pairs.
        bias: (blocks * 32,) float32, times 64.
        flush: rows after which 16 bits are carried.
        may_wrap: u can pass 2**23.
        may_clip: v can reach 2**23 from below.
        dot: weights for dot products, None where 8 bits do not hold them.
    """

    view: SynapseView
    mode: int
    weight: npt.NDArray[np.integer[Any]]
    bias: npt.NDArray[np.float32]
    flush: int
    may_wrap: bool
    may_clip: bool
    dot: Dots | None

    @property
    def layer(self) -> Dense | Conv:
        return self.view.layer

    @property
    def unit(self) -> int:
        return self.view.unit

    @property
    def planes(self) -> int:
        return self.view.planes

    @property
    def entering(self) -> tuple[int, int, int]:
        return self.view.entering

    @property
    def dense(self) -> bool:
        return self.view.dense

    @property
    def out(self) -> tuple[int, int, int]:
        return self.view.out

    @property
    def blocks(self) -> int:
        return len(self.bias) // LANES


def fast_layer(layer: Layer, entering: tuple[int, ...], bits: int) -> FastLayer | str:
    """Lay out a layer, or say why the kernel does not take it.

    Args:
        layer: of a chip network.
        entering: shape of what arrives, (features,) or (C, H, W).
        bits: of what arrives.
    """
    view = synapse_view(layer, entering, bits)
    if isinstance(view, str):
        return view
    layer, small = view.layer, view.weight
    bias = np.zeros(len(small), np.int32) if layer.bias_int is None else layer.bias_int
    if _largest(bias) > MAX_BIAS:
        return "its bias passes 16 bits"
    largest = _largest(small)
    if largest * 32 > INT16:
        return f"weights up to {largest * view.unit} need more than 16 bits"
    if view.bound * view.unit >= 2**31:
        return f"sums up to {view.bound * view.unit} need more than 32 bits"
    if isinstance(layer, Conv) and small[0, 0].size > MAX_TAPS:
        return f"a window of {small.shape[2:]} has too many taps"
    mode, weight = _laid_out(view)
    decay = layer.neuron.i_decay
    worst_u = 64 * view.bound * view.unit * DECAY_UNITY / decay if decay else np.inf
    keep_v = 1 - layer.neuron.v_decay / DECAY_UNITY
    worst_v = 64 * layer.neuron.vth_int * keep_v + min(worst_u, STATE_MAX) + 64 * _largest(bias)
    lanes = np.zeros(-(-len(small) // LANES) * LANES, dtype=np.float32)
    lanes[: len(bias)] = 64.0 * bias
    narrow = view.dense and _fits_bytes(small)
    most = max(1, INT16 // max(largest, 1))
    return FastLayer(
        view,
        mode,
        _paired(weight) if narrow else np.ascontiguousarray(weight, dtype=np.int16),
        lanes,
        min(MAX_PAIRED, most) if narrow else most,
        bool(worst_u >= STATE_MAX),
        bool(worst_v >= STATE_MAX - 1),
        _dots(small, view.payload, DENSE_DOTS_ABOVE if view.dense else CONV_DOTS_ABOVE)
        if mode != TABLE
        else None,
    )


def _paired(weight: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Rows of 32 weights as 16 pairs of bytes: weight i plus 128, and weight 16 + i."""
    low, high = weight[..., : LANES // 2] + 128, weight[..., LANES // 2 :] & 255
    return np.ascontiguousarray(np.stack([low, high], axis=-1).reshape(weight.shape).astype(np.uint8))


def _largest(values: Int32) -> int:
    return max(-int(values.min()), int(values.max()))


def _fits_bytes(values: Int32) -> bool:
    return int(values.min()) >= -128 and int(values.max()) <= 127


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


def _laid_out(view: SynapseView) -> tuple[int, npt.NDArray[Any]]:
    """Mode, and weights as (blocks, taps, rows, lanes) of it."""
    small, planes, bound = view.weight, view.planes, view.bound
    outputs, channels, high, wide = small.shape
    groups, blocks = -(-channels // 32), -(-outputs // LANES)
    lanes = np.zeros((blocks * LANES, channels, high, wide), dtype=np.int32)
    lanes[:outputs] = small
    if not view.dense and bound <= INT16 and planes == 1 and channels * wide <= TABLE_BITS:
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
    if not view.dense and lists:
        return LISTS, np.concatenate([rows << plane for plane in range(planes)], axis=2)
    return WORDS, rows
