"""Layers as the compiled kernel (csrc/cuba.c) takes them: weights in blocks of 32 outputs, and the
bounds that make 16 bits enough.

Layers whose weights or sums may need more are laid out `wide`: 64 bits everywhere, in the kernel's
plain C, some ten times slower than the rest of it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np

from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.arrays import Array, Int32, Int64, UInt8
from knarr.hw_sim.engines.base import MAX_SUM
from knarr.hw_sim.engines.synapse_view import (
    SynapseView,
    heaviest,
    power_of_two,
    synapse_view,
)
from knarr.hw_sim.network import (
    DECAY_UNITY,
    Conv,
    Dense,
    Layer,
    Neuron,
    Recurrent,
    register_array,
    register_range,
)

WORDS, LISTS, TABLE = 0, 1, 2
"""Ways in which the kernel finds the rows of weights to add: bits of words, lists of what is set, a
row per pattern of bits.
"""
LANES = 32
"""Outputs of a block, whose spikes are one word."""
MAX_TAPS, MAX_LIST, COLUMN_LIST = 1024, 16384, 8192
INT16 = 2**15 - 1
TABLE_BITS = 8
MAX_PAIRED = 256
"""Rows of bytes whose sums can be taken apart."""
CONV_DOTS_ABOVE, DENSE_DOTS_ABOVE = 120, 500
"""Activity in per mille from which dot products pay, as measured on benchmark networks W2s
(convolutions) and W1 (dense).
"""
PAIRS_PER_INPUT = 4
"""Delays of an input up to which every pair of both becomes an input of its own."""
MOST_WIDE_BYTES = 2**30
"""Size of weights in 32 bits beyond which a layer with delays is not laid out."""
FLOAT64_EXACT = 2**53
"""Sums from here on are what the reference refuses."""

_P, _I, _F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


# Order and types are those of the structures in csrc; `Kernel` compares their sizes.
class LayerStruct(ctypes.Structure):
    """`layer_t` of csrc/cuba.c."""

    _fields_ = (
        *_fields(_P, "in_ out weight dot bias registers back delays state fired sent count"),
        *_fields(_P, "u v peak windows bytes items begin events stop"),
        *_fields(_I, "mode steps channels groups planes blocks outputs dense wide"),
        *_fields(_I, "negative back_flush history"),
        # Of each pair csrc has two members, height or y first.
        *_fields(_I * 2, "seen out_size kernel stride padding dilation"),
        *_fields(_I, "flush quads dot_flush dot_above narrow_weight biased"),
        *_fields(_I, "bound calm_below low_below"),
        *_fields(_F, "keep_u keep_v threshold unit"),
    )


class ShiftStruct(ctypes.Structure):
    """`shift_t` of csrc/cuba_delays.h."""

    _fields_ = (
        *_fields(_P, "input delay"),
        *_fields(_I, "pairs words planes history"),
        *_fields(_P, "sent"),
    )


class TallyStruct(ctypes.Structure):
    """`tally_t` of csrc/cuba.c."""

    _fields_ = (
        *_fields(_P, "heard reached touched sent own nonzero late paid edge reach within delay"),
        *_fields(_I, "edges history"),
        *_fields(_I * 2, "in_size out_size kernel stride padding dilation"),
    )


class StageStruct(ctypes.Structure):
    """`stage_t` of csrc/cuba_run.h."""

    _fields_ = (
        ("layer", LayerStruct),
        ("shift", ShiftStruct),
        *_fields(_I, "pool map_h map_w arriving"),
        *_fields(_P, "spikes counts u v peak tally"),
    )


@dataclass(frozen=True, eq=False)
class FastLayer:
    """One layer as the kernel takes it.

    Args:
        layer: the layer itself.
        view: its synapses, those of a loop and delays aside.
        struct: the kernel's view of it; steps and arrays of a run are left out.
        shift: how bits are moved in time before it.
        arrays: weights, biases and whatever else `struct` and `shift` hold addresses of.
        entering: (C, H, W) of what arrives, before it is moved in time or pooled.
        derived: arrays that counting made from its geometry or delays, for the next run.
    """

    layer: Layer
    view: SynapseView
    struct: LayerStruct
    shift: ShiftStruct
    arrays: list[Array]
    entering: tuple[int, int, int]
    derived: dict[str, Array] = field(default_factory=dict)

    @property
    def words(self) -> int:
        """Count words of what arrives in one step, planes aside."""
        channels, height, width = self.entering
        return -(-channels // 32) * height * width

    @property
    def wide(self) -> bool:
        """Tell whether everything in it has 64 bits."""
        return bool(self.struct.wide)


def address(array: Array) -> int:
    """Return where an array lies."""
    return int(array.ctypes.data)


def _aligned(array: Array) -> Array:
    """Copy to a multiple of 64 bytes, in C order: no row lies in more cache lines than it fills."""
    whole = np.empty(array.nbytes + 64, dtype=np.uint8)
    start = -address(whole) % 64
    copy: Array = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _largest(values: Int32) -> int:
    # Not by abs, which leaves the lowest of 32 bits negative.
    return max(-int(values.min()), int(values.max()))


def _fits_bytes(values: Int32) -> bool:
    return int(values.min()) >= -128 and int(values.max()) <= 127


def _paired(weight: Array) -> UInt8:
    """Turn rows of 32 weights into 16 pairs of bytes: weight i plus 128, and weight 16 + i."""
    # One 16-bit addition then adds two weights; with the offset, low bytes need no sign.
    low = weight[..., : LANES // 2] + 128
    high = weight[..., LANES // 2 :] & 255
    rows = np.stack([low, high], axis=-1).reshape(len(weight), -1, LANES).astype(np.uint8)
    # Rows of two blocks lie beside each other; an odd last block is alone.
    even = len(rows) // 2 * 2
    beside = rows[:even].reshape(even // 2, 2, rows.shape[1], LANES).swapaxes(1, 2)
    return np.concatenate([beside.reshape(-1), rows[even:].reshape(-1)])


def _in_pairs(rows: Array) -> Array:
    """Reorder rows of 32 outputs: two neighbours are an output and the one 16 behind it."""
    return rows.reshape(*rows.shape[:-1], 2, LANES // 2).swapaxes(-1, -2).reshape(rows.shape)


def _dots(small: Int32, payload: int) -> tuple[Array, int] | None:
    """Return weights four channels by four, if every product of two channels fits 16 bits.

    Returns:
        (blocks, taps, quads, 32, 4) int8 weights for dot products of four channels at a time, and
        how many quads of them 16 bits take, 0 for all; None where 8 bits do not hold the weights.
    """
    outputs, channels, high, wide = small.shape
    taps = high * wide
    if not _fits_bytes(small) or payload > 255 or taps > MAX_TAPS:
        return None
    quads = -(-channels // 4)
    blocks = -(-outputs // LANES)
    padded = np.zeros((blocks * LANES, quads * 4, taps), dtype=np.int32)
    padded[:outputs, :channels] = small.reshape(outputs, channels, -1)
    pairs = padded.reshape(blocks * LANES, quads, 2, 2, taps)
    # The instructions add two products in 16 bits; weights of one sign are the worst that events
    # can choose.
    positive = np.maximum(pairs, 0).sum(axis=3)
    negative = np.maximum(-pairs, 0).sum(axis=3)
    sides = payload * np.stack([positive, negative])
    most = int(sides.max())
    if most > INT16:
        return None
    in_all = int(sides.sum(axis=(2, 4)).max())
    flush = 0 if in_all <= INT16 else INT16 // most
    blocked = padded.astype(np.int8).reshape(blocks, LANES, quads, 4, taps)
    return _aligned(blocked.transpose(0, 4, 2, 1, 3)), flush


def _rows(values: Array, dtype: Any) -> Array:
    """Turn (outputs, channels, kh, kw) into rows of 32 outputs, (blocks, taps, channels in groups
    of 32, lanes); filled up with zeros.
    """
    outputs, channels, high, wide = values.shape
    blocks, groups = -(-outputs // LANES), -(-channels // 32)
    lanes = np.zeros((blocks * LANES, channels, high * wide), dtype=dtype)
    lanes[:outputs] = values.reshape(outputs, channels, -1)
    rows = np.zeros((blocks, high * wide, groups * 32, LANES), dtype=dtype)
    taps = lanes.reshape(blocks, LANES, channels, high * wide)
    rows[:, :, :channels] = taps.transpose(0, 3, 2, 1)
    return rows


def _laid_out(view: SynapseView, signed: bool) -> tuple[int, Array]:
    """Choose the mode, and return it with weights as (blocks, taps, rows, lanes)."""
    small, planes = view.weight, view.planes
    outputs, channels, high, wide = small.shape
    groups = -(-channels // 32)
    # Tables and lists add in 16 bits without carrying.
    short = not view.dense and view.bound <= INT16
    if signed:
        planes *= 2
    if short and planes == 1 and channels * wide <= TABLE_BITS:
        blocks = -(-outputs // LANES)
        lanes = np.zeros((blocks * LANES, channels, high, wide), dtype=np.int32)
        lanes[:outputs] = small
        patterns = np.arange(1 << (channels * wide))
        table = np.zeros((blocks, high, len(patterns), LANES), dtype=np.int32)
        for x in range(wide):
            for c in range(channels):
                on = (patterns >> (x * channels + c)) & 1
                column = lanes[:, c, :, x].reshape(blocks, LANES, high)
                column = column.transpose(0, 2, 1)
                table += on[:, None] * column[:, :, None, :]
        return TABLE, _in_pairs(table)
    rows = _rows(small, np.int16)
    # A list names the rows of a pixel in 8 bits, and an offset into all rows has 16.
    width = planes * groups * 32
    listed = width <= 256 and high * wide * width <= 2**16
    if short and listed and high * wide * channels * planes <= MAX_LIST:
        worth = [rows << plane for plane in range(view.planes)]
        worth += [-plane for plane in worth] if signed else []
        # Of every group of 32 channels all planes, as words of spikes have them.
        grouped = [plane.reshape(*plane.shape[:2], groups, 1, 32, LANES) for plane in worth]
        whole = np.concatenate(grouped, axis=3).reshape(*rows.shape[:2], -1, LANES)
        return LISTS, _in_pairs(whole)
    return WORDS, rows


def _fits_columns(struct: LayerStruct) -> bool:
    """Do as `fits_columns` of csrc/cuba.c."""
    (high, wide), (_, pad) = struct.kernel, struct.padding
    steps = (struct.stride[1], struct.dilation[1]) == (1, 1)
    rows = high * struct.groups * struct.planes * 32
    return bool(wide == 3 and steps and pad <= 2 and rows <= COLUMN_LIST)


def register_lanes(neuron: Neuron, shape: tuple[int, int, int]) -> Int64:
    """Return decays taken from 4096 and thresholds times 64, (pixels, blocks, 3, lanes).

    Args:
        neuron: the registers.
        shape: (C, H, W) of the neurons.
    """
    outputs, height, width = shape
    blocks = -(-outputs // LANES)
    found = np.zeros((3, height * width, blocks * LANES), dtype=np.int64)
    registers = (neuron.i_decay, neuron.v_decay, neuron.vth_int)
    for to, register in zip(found, registers, strict=True):
        to[:, :outputs] = register_array(register, (outputs, height * width)).T
    found[:2] = DECAY_UNITY - found[:2]
    found[2] *= 64
    by_block = found.reshape(3, height * width, blocks, LANES)
    return np.ascontiguousarray(by_block.transpose(1, 2, 0, 3))


@dataclass(frozen=True, eq=False)
class _Delays:
    """Delays of a layer, as the kernel wants them.

    Args:
        twin: the layer without delays; its inputs are pairs of an input and a delay, or all inputs.
        pairs: (2, pairs) int32, bit of the words that arrive and steps of delay; None where every
            synapse keeps its own.
    """

    twin: Dense
    pairs: Int32 | None


def _without_delays(layer: Dense, entering: tuple[int, int, int], *, wide: bool) -> _Delays:
    """Return a layer whose delays are taken out of its synapses."""
    assert layer.delay_int is not None  # the caller looked
    delay, weight = layer.delay_int, layer.weight_int
    plain = replace(layer, delay_int=None)
    # A synapse of weight 0 delivers nothing, whenever.
    occurs = np.zeros((layer.in_features, int(delay.max()) + 1), dtype=np.bool_)
    used = weight != 0
    occurs[np.nonzero(used)[1], delay[used]] = True
    inputs, delays = np.nonzero(occurs)
    if not len(inputs):
        inputs = delays = np.zeros(1, dtype=np.int64)
    if len(inputs) > PAIRS_PER_INPUT * layer.in_features and not wide:
        return _Delays(plain, None)
    moved = np.where(delay[:, inputs] == delays, weight[:, inputs], 0)
    channels, height, width = entering
    channel, pixel = np.divmod(inputs, height * width)
    word = pixel * -(-channels // 32) + channel // 32
    pairs = np.stack([word * 32 + channel % 32, delays]).astype(np.int32)
    return _Delays(replace(plain, weight_int=moved), pairs)


def lay_out(
    layer: Layer,
    shape: tuple[int, ...],
    bits: int,
    signed: bool,
    large: bool,
    dots_above: tuple[int, int, int],
) -> FastLayer | str:
    """Lay out a layer, or say why it is not taken.

    Args:
        layer: a layer of a chip network.
        shape: of what arrives, (features,) or (C, H, W).
        bits: width of what arrives, a sign aside.
        signed: it may be negative.
        large: a run met sums that floats do not hold.
        dots_above: activity per mille from which dot products pay, of convolutions, those by columns
            and dense layers.
    """
    entering = (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)
    wide = False
    while True:
        draft = _SplitLayer(layer, entering, bits, signed, wide)
        if wide:
            return draft.wide_layer()
        # Loops and delays are bounded with the rest, so a layer that stays below cannot be large.
        if draft.fits and not (large and draft.bound * draft.view.unit > MAX_SUM):
            return draft.fast_layer(dots_above)
        wide = True


class _SplitLayer:
    """A layer with its loop and delays taken apart from its synapses.

    Args:
        layer, entering, bits, signed: see `lay_out`.
        wide: it gets 64 bits.
    """

    def __init__(
        self, layer: Layer, entering: tuple[int, int, int], bits: int, signed: bool, wide: bool
    ) -> None:
        self.layer, self.entering, self.signed = layer, entering, signed
        self.delays: _Delays | None = None
        plain = layer
        if isinstance(layer, Recurrent):
            plain = Dense(layer.name, layer.weight_int, layer.neuron, layer.bias_int)
        elif isinstance(layer, Dense) and layer.delay_int is not None:
            self.delays = _without_delays(layer, entering, wide=wide)
            plain = self.delays.twin
        seen = entering
        if self.delays is not None and self.delays.pairs is not None:
            seen = (self.delays.pairs.shape[1], 1, 1)
        pool = self.delays is None and not wide
        view = synapse_view(plain, seen, bits, signed, pool=pool)
        assert not isinstance(view, str)  # neither a loop nor delays are left
        self.view = view
        self.back: Int32 | None = None
        self.bound = view.bound
        """No |sum| is larger, in the view's units."""
        if isinstance(layer, Recurrent):
            unit = min(view.unit, power_of_two(layer.recurrent_int))
            more = view.unit // unit
            self.back = layer.recurrent_int // unit
            self.bound = view.bound * more + heaviest(self.back)
            self.view = replace(view, weight=view.weight * more, unit=unit, bound=view.bound * more)

    @property
    def fits(self) -> bool:
        """Tell whether 16 bits hold 32 rows of weights, and 32 bits all sums."""
        view = self.view
        weights = [view.weight] if self.back is None else [view.weight, self.back]
        # At least 32 rows have to fit before 16 bits are carried into 32.
        small = max(map(_largest, weights)) * 32 <= INT16
        conv = isinstance(self.layer, Conv)
        return (
            small
            and self.bound * view.unit < 2**31
            and not (conv and view.weight[0, 0].size > MAX_TAPS)
        )

    def _struct(self) -> LayerStruct:
        view = self.view
        channels = view.entering[0]
        history = 0
        if self.delays is not None:
            history = int(self.layer.delay_int.max())  # type: ignore[union-attr]  # Dense then
        return LayerStruct(
            channels=channels,
            groups=-(-channels // 32),
            planes=view.planes * (2 if self.signed else 1),
            negative=view.planes,
            blocks=-(-view.out[0] // LANES),
            outputs=view.out[0],
            dense=view.dense,
            history=history,
            seen=view.seen,
            out_size=view.out[1:],
            kernel=view.kernel,
            stride=view.stride,
            padding=view.padding,
            dilation=view.dilation,
            unit=view.unit,
            bound=min(self.bound, 2**31 - 1),
        )

    def _finished(self, struct: LayerStruct, arrays: list[Array]) -> FastLayer:
        shift = ShiftStruct()
        found = FastLayer(self.layer, self.view, struct, shift, arrays, self.entering)
        if self.delays is not None and self.delays.pairs is not None:
            pairs = self.delays.pairs
            arrays.append(pairs)
            shift.input, shift.delay = map(address, pairs)
            shift.pairs = pairs.shape[1]
            shift.words, shift.planes = found.words, struct.planes
            shift.history = struct.history
        return found

    def _bias(self) -> Int64:
        lanes = np.zeros(-(-self.view.out[0] // LANES) * LANES, dtype=np.int64)
        if self.layer.bias_int is not None:
            lanes[: len(self.layer.bias_int)] = self.layer.bias_int.astype(np.int64)
        return 64 * lanes

    def fast_layer(self, dots_above: tuple[int, int, int]) -> FastLayer:
        """Lay it out in 16 bits and floats."""
        view, struct = self.view, self._struct()
        small = view.weight
        mode, weight = _laid_out(view, self.signed)
        if self.back is not None or self.delays is not None:
            mode, weight = WORDS, _rows(small, np.int16)
        struct.mode = mode
        struct.flush = max(1, INT16 // max(_largest(small), 1))
        scatters = self.delays is not None and self.delays.pairs is None
        if view.dense and not scatters and _fits_bytes(small):
            weight = _paired(weight)
            struct.flush = min(MAX_PAIRED, struct.flush)
            struct.narrow_weight = 1
        weight = _aligned(weight if struct.narrow_weight else weight.astype(np.int16))
        bias = self._bias().astype(np.float32)
        struct.weight, struct.bias = address(weight), address(bias)
        arrays = [weight, bias]
        neuron = self.layer.neuron
        if neuron.shared:
            self._bound_states(struct)
        else:
            registers = register_lanes(self.layer.neuron, view.out).astype(np.float32)
            registers[:, :, :2] /= DECAY_UNITY
            struct.registers = address(registers)
            arrays.append(registers)
        if self.back is not None:
            back = _aligned(_in_pairs(_rows(self.back[:, :, None, None], np.int16)))
            struct.back = address(back)
            struct.back_flush = max(1, INT16 // max(_largest(self.back), 1))
            arrays.append(back)
        if scatters:
            delay = self.layer.delay_int.reshape(small.shape)  # type: ignore[union-attr]
            places = _rows(delay, np.uint16) * LANES + np.arange(LANES)
            delays = _aligned(places.astype(np.uint16))
            struct.delays = address(delays)
            arrays.append(delays)
        plain = self.back is None and self.delays is None and not self.signed
        found = _dots(small, view.payload) if plain and mode != TABLE else None
        if found is not None:
            dot, struct.dot_flush = found
            struct.dot = address(dot)
            struct.quads = dot.shape[2]
            by_columns = mode == LISTS and _fits_columns(struct)
            struct.dot_above = dots_above[2 if view.dense else by_columns]
            arrays.append(dot)
        return self._finished(struct, arrays)

    def _bound_states(self, struct: LayerStruct) -> None:
        """Write the registers that all neurons share, and what cannot happen with them."""
        neuron = self.layer.neuron
        i_decay, _ = register_range(neuron.i_decay)
        v_decay, _ = register_range(neuron.v_decay)
        vth_int, _ = register_range(neuron.vth_int)
        keep_u, keep_v = 1 - i_decay / DECAY_UNITY, 1 - v_decay / DECAY_UNITY
        bias = self.layer.bias_int
        largest_bias = 0 if bias is None else _largest(bias)
        struct.biased = largest_bias > 0
        struct.keep_u, struct.keep_v, struct.threshold = keep_u, keep_v, 64.0 * vth_int
        # A geometric series bounds u, and without a threshold v; with one, v starts a step below
        # it. Where u stays below these, neither it wraps nor v is clipped.
        wrap, leak, pushed = STATE_MAX, 1 - keep_v, 64 * largest_bias
        slow = (STATE_MAX - 1) * leak - pushed - 1
        top = max(STATE_MAX - 1 - 64 * vth_int * keep_v - pushed, slow)
        low = min(wrap, top)
        per_sum = 64 * self.view.unit
        struct.low_below, struct.calm_below = (
            max(-1, ceil(most * (1 - keep_u) / per_sum) - 2) for most in (low, min(low, slow))
        )

    def wide_layer(self) -> FastLayer | str:
        """Lay it out in 64 bits."""
        view, struct = self.view, self._struct()
        # Units are taken out for the sake of 16 bits.
        largest = self.bound * view.unit
        if largest >= FLOAT64_EXACT:
            return f"sums up to {largest} may pass 2**53"
        outputs, channels, high, width = view.weight.shape
        if 4 * outputs * channels * high * width > MOST_WIDE_BYTES and self.delays is not None:
            return f"its delays make {channels} inputs of {self.layer.in_features}"  # type: ignore[union-attr]
        struct.wide, struct.unit = 1, 1
        weight = _aligned(_rows(view.weight * view.unit, np.int32))
        bias, registers = self._bias(), register_lanes(self.layer.neuron, view.out)
        struct.weight, struct.bias, struct.registers = map(address, (weight, bias, registers))
        arrays: list[Array] = [weight, bias, registers]
        if self.back is not None:
            back = _aligned(_rows((self.back * view.unit)[:, :, None, None], np.int32))
            struct.back = address(back)
            arrays.append(back)
        self.view = replace(view, unit=1)
        return self._finished(struct, arrays)
