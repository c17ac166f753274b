"""The fast engine: chains of layers through a compiled kernel (csrc/cuba.c), samples over threads.

`load` finds the kernel. `FastEngine` lays out layers as the kernel takes them (weights in blocks of
32 outputs, and the bounds that make 16 bits enough), and runs chains of them. What it does not take,
the reference runs.

Sums are exact whatever the input: 16 bits are carried into 32 before they could overflow. States
are exact while every |sum| stays within `MAX_SUM`; the kernel reports the largest it met, and a
chain that passed it is run again by the reference engine.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.arrays import Array, Int32, UInt8
from knarr.hw_sim.engines.base import MAX_SUM, LayerRequest, LayerResult, RunRequest, cores
from knarr.hw_sim.engines.synapse_view import SynapseView, synapse_view
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import DECAY_UNITY, Conv, Layer

WORDS, LISTS, TABLE = 0, 1, 2
"""Ways in which the kernel finds the rows of weights to add: bits of words, lists of what is set, a
row per pattern of bits.
"""
LANES = 32
"""Outputs of a block, whose spikes are one word."""
MAX_TAPS, MAX_LIST = 1024, 16384
MAX_BIAS = 2**16
INT16 = 2**15 - 1
TABLE_BITS = 8
MAX_PAIRED = 256
"""Rows of bytes whose sums can be taken apart."""
CONV_DOTS_ABOVE, DENSE_DOTS_ABOVE = 120, 500
"""Activity in per mille from which dot products pay, as measured on benchmark networks W2s
(convolutions) and W1 (dense).
"""
OWN_REGISTERS = "its neurons have registers of their own"
SIGNED_INPUT = "its inputs have a sign"
LEVELS = ("portable vectors", "AVX2", "AVX-512")

_P, _I, _F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


# Order and types are those of the structures in csrc; `Kernel` compares their sizes.
class LayerStruct(ctypes.Structure):
    """`layer_t` of csrc/cuba.c."""

    _fields_ = (
        *_fields(_P, "in_ out weight dot bias state count u v peak"),
        *_fields(_P, "windows bytes items begin events stop"),
        *_fields(_I, "mode steps channels groups planes blocks"),
        # Of each pair csrc has two members, height or y first.
        *_fields(_I * 2, "seen out_size kernel stride padding dilation"),
        *_fields(_I, "flush quads dot_flush dot_above narrow_weight may_wrap biased may_clip"),
        *_fields(_F, "keep_u keep_v threshold unit"),
    )


class StageStruct(ctypes.Structure):
    """`stage_t` of csrc/cuba_run.h."""

    _fields_ = (
        ("layer", LayerStruct),
        *_fields(_I, "dense pool map_h map_w outputs"),
        *_fields(_P, "spikes counts u v peak"),
    )


class Kernel:
    """The loaded library.

    Args:
        library: as ctypes opened it.

    Attributes:
        level: index into `LEVELS` of the best instructions of this processor.
        team, free_team, run: functions of the library. The interpreter is free for other threads
            while one runs.

    Raises:
        OSError: the library was built from other sources.
    """

    def __init__(self, library: Any) -> None:
        if library.knarr_sizes() != ctypes.sizeof(LayerStruct) << 16 | ctypes.sizeof(StageStruct):
            raise OSError("built from other sources than these")
        library.knarr_start()
        stages = ctypes.POINTER(StageStruct)
        # Without these, ctypes would cut pointers to 32 bits.
        library.knarr_team.argtypes = [stages, _I, ctypes.c_size_t, _I, _I]
        library.knarr_team.restype = _P
        library.knarr_team_free.argtypes = [_P]
        library.knarr_run.argtypes = [_P, _I, stages, _I, _P, *[_I] * 8, _P]
        self.team, self.free_team = library.knarr_team, library.knarr_team_free
        self.run = library.knarr_run
        self.level = int(library.knarr_level())


@cache
def load() -> Kernel | str:
    """Return the kernel, or say why there is none."""
    path = Path(__file__).with_name("_cuba.abi3.so")  # the same file for every version of Python
    if not path.is_file():
        return "not built; a C compiler (cc) at install makes it"
    try:
        return Kernel(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        return f"{path.name} does not load ({error}); install knarr again"


@dataclass(frozen=True, eq=False)
class FastLayer:
    """One layer as the kernel takes it.

    Args:
        view: its synapses.
        struct: the kernel's view of it; steps and arrays of a run are left out.
        arrays: weights, biases and weights for dot products, whose addresses `struct` holds.
    """

    view: SynapseView
    struct: LayerStruct
    arrays: list[Array]


def _address(array: Array) -> int:
    return int(array.ctypes.data)


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
    pairs = np.stack([low, high], axis=-1).reshape(weight.shape)
    return np.ascontiguousarray(pairs.astype(np.uint8))


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
    return np.ascontiguousarray(blocked.transpose(0, 4, 2, 1, 3)), flush


def _laid_out(view: SynapseView) -> tuple[int, Array]:
    """Choose the mode, and return it with weights as (blocks, taps, rows, lanes)."""
    small, planes = view.weight, view.planes
    outputs, channels, high, wide = small.shape
    groups = -(-channels // 32)
    blocks = -(-outputs // LANES)
    lanes = np.zeros((blocks * LANES, channels, high, wide), dtype=np.int32)
    lanes[:outputs] = small
    # Tables and lists add in 16 bits without carrying.
    short = not view.dense and view.bound <= INT16
    if short and planes == 1 and channels * wide <= TABLE_BITS:
        patterns = np.arange(1 << (channels * wide))
        table = np.zeros((blocks, high, len(patterns), LANES), dtype=np.int32)
        for x in range(wide):
            for c in range(channels):
                on = (patterns >> (x * channels + c)) & 1
                column = lanes[:, c, :, x].reshape(blocks, LANES, high)
                column = column.transpose(0, 2, 1)
                table += on[:, None] * column[:, :, None, :]
        return TABLE, table
    rows = np.zeros((blocks, high * wide, groups * 32, LANES), dtype=np.int16)
    taps = lanes.reshape(blocks, LANES, channels, high * wide)
    rows[:, :, :channels] = taps.transpose(0, 3, 2, 1)
    # A list names the rows of a pixel in 8 bits, and an offset into all rows has 16.
    width = planes * groups * 32
    listed = width <= 256 and high * wide * width <= 2**16
    if short and listed and high * wide * channels * planes <= MAX_LIST:
        return LISTS, np.concatenate([rows << plane for plane in range(planes)], axis=2)
    return WORDS, rows


class FastEngine:
    """The engine on a compiled kernel.

    Args:
        kernel: the kernel that `load` gives.
        level: index into `LEVELS` of the instructions to use.
    """

    name = "fast"

    def __init__(self, kernel: Kernel, level: int) -> None:
        self.kernel = kernel
        self.level = level
        self.description = f"with {LEVELS[level]} on {cores()} cores"

    def lay_out(
        self,
        layer: Layer,
        entering: tuple[int, ...],
        bits: int,
        signed: bool = False,
    ) -> FastLayer | str:
        """Lay out a layer, see `Engine.lay_out`."""
        neuron = layer.neuron
        i_decay, v_decay, vth_int = neuron.i_decay, neuron.v_decay, neuron.vth_int
        if not (isinstance(i_decay, int) and isinstance(v_decay, int) and isinstance(vth_int, int)):
            return OWN_REGISTERS
        if signed:
            return SIGNED_INPUT
        view = synapse_view(layer, entering, bits)
        if isinstance(view, str):
            return view
        small, unit = view.weight, view.unit
        bias = layer.bias_int
        if bias is None:
            bias = np.zeros(len(small), np.int32)
        largest, largest_bias = _largest(small), _largest(bias)
        if largest_bias > MAX_BIAS:
            return "its bias passes 16 bits"
        # At least 32 rows have to fit before 16 bits are carried into 32.
        if largest * 32 > INT16:
            return f"weights up to {largest * unit} need more than 16 bits"
        if view.bound * unit >= 2**31:
            return f"sums up to {view.bound * unit} need more than 32 bits"
        if isinstance(layer, Conv) and small[0, 0].size > MAX_TAPS:
            return f"a window of {small.shape[2:]} has too many taps"
        mode, weight = _laid_out(view)
        flush = max(1, INT16 // max(largest, 1))
        narrow = view.dense and _fits_bytes(small)
        if narrow:
            weight = _paired(weight)
            flush = min(MAX_PAIRED, flush)
        else:
            weight = np.ascontiguousarray(weight, dtype=np.int16)
        blocks = -(-len(small) // LANES)
        lanes = np.zeros(blocks * LANES, dtype=np.float32)
        lanes[: len(bias)] = 64.0 * bias
        keep_u = 1 - i_decay / DECAY_UNITY
        keep_v = 1 - v_decay / DECAY_UNITY
        # A geometric series bounds u; v starts a step below the threshold. Where they stay inside,
        # nothing has to be checked.
        worst_u = 64 * view.bound * unit / (1 - keep_u) if keep_u < 1 else inf
        worst_v = 64 * vth_int * keep_v + min(worst_u, STATE_MAX) + 64 * largest_bias
        channels = view.entering[0]
        struct = LayerStruct(
            weight=_address(weight),
            bias=_address(lanes),
            mode=mode,
            channels=channels,
            groups=-(-channels // 32),
            planes=view.planes,
            blocks=blocks,
            seen=view.seen,
            out_size=view.out[1:],
            kernel=view.kernel,
            stride=view.stride,
            padding=view.padding,
            dilation=view.dilation,
            flush=flush,
            narrow_weight=narrow,
            may_wrap=worst_u >= STATE_MAX,
            biased=bool(bias.any()),
            may_clip=worst_v >= STATE_MAX - 1,
            keep_u=keep_u,
            keep_v=keep_v,
            threshold=64.0 * vth_int,
            unit=unit,
        )
        arrays = [weight, lanes]
        found = None if mode == TABLE else _dots(small, view.payload)
        if found is not None:
            dot, struct.dot_flush = found
            struct.dot = _address(dot)
            struct.quads = dot.shape[2]
            struct.dot_above = DENSE_DOTS_ABOVE if view.dense else CONV_DOTS_ABOVE
            arrays.append(dot)
        return FastLayer(view, struct, arrays)

    def bytes_per_step(self, laid_out: FastLayer) -> int:
        """Estimate words in and out, and lists of what is set."""
        view = laid_out.view
        channels, height, width = view.entering
        _, out_h, out_w = view.out
        lists = channels * view.planes * (4 if view.dense else 1)
        arriving = height * width * (channels + lists + 16)
        # Words go out in blocks of 32 outputs, and a thread sums a block of one pixel at a time.
        return arriving + out_h * out_w * laid_out.struct.blocks * 8 + 4 * LANES

    def run(self, request: RunRequest) -> list[LayerResult] | None:
        """Run consecutive layers on a block, see `Engine.run`."""
        layers: list[FastLayer] = request.chain
        threads, states = request.threads, request.states
        samples, steps = request.events.shape[:2]
        bits = request.bits
        dtype = np.uint8 if bits <= 8 else np.uint16
        inputs = np.ascontiguousarray(request.events, dtype=dtype)
        channels, height, width = layers[0].view.entering
        records = [
            _Record(layer, samples, steps, want)
            for layer, want in zip(layers, request.wanted, strict=True)
        ]
        for i, layer in enumerate(layers):
            if request.carry and states[i] is None:
                _, high, wide = layer.view.out
                shape = (samples, high * wide, layer.struct.blocks, 2, LANES)
                states[i] = np.zeros(shape, dtype=np.float32)
        # Every thread has samples of its own, or all share each sample where there are fewer of
        # them.
        members = 1 if samples >= threads else threads
        parts = max(1, threads // members)
        bounds = np.linspace(0, samples, parts + 1).astype(int).tolist()
        words = height * width * -(-channels // 32) * bits * steps
        # Threads have structures of their own: the kernel fills in pointers, and peaks are not
        # shared.
        peaks = np.zeros((threads, len(layers)), dtype=np.int32)
        chains = [(StageStruct * len(layers))() for _ in range(threads)]
        for stages, found in zip(chains, peaks, strict=True):
            for i, record in enumerate(records):
                record.fill(stages[i], found[i:], states[i])
        sizes = (len(layers), words, steps, members)
        teams = [self.kernel.team(chains[0], *sizes) for _ in range(parts)]
        stop = ctypes.c_int32(0)

        # The kernel sees addresses alone; a thread that outlives us after a second Ctrl-C must not
        # find them gone.
        held = (inputs, chains, records, peaks, states, layers)

        def part(index: int) -> int:
            inputs, chains, *_ = held
            team = index // members
            failed: int = self.kernel.run(
                teams[team],
                index % members,
                chains[index],
                len(layers),
                _address(inputs),
                inputs.itemsize,
                channels,
                height * width,
                bits,
                steps,
                bounds[team],
                bounds[team + 1],
                self.level,
                ctypes.addressof(stop),
            )
            return failed

        futures: list[Future[int]] = []
        failed = not all(teams)
        try:
            if not failed:
                # Even one thread is not the caller's own, which could not hear Ctrl-C inside the
                # kernel.
                with ThreadPoolExecutor(threads) as pool:
                    try:
                        futures += [pool.submit(part, i) for i in range(threads)]
                        failed = any(future.result() for future in futures)
                    except BaseException:
                        stop.value = 1  # the kernel looks at it in every row
                        raise
        finally:
            # After a second Ctrl-C some may still run, for a row: what they write in is left to
            # them.
            if all(future.done() for future in futures):
                for team in teams:
                    self.kernel.free_team(team)
        if failed:
            raise ChipError("simulate: out of memory in the kernel; give fewer time steps at once")
        highest = peaks.max(axis=0)
        results = [record.result(peak) for record, peak in zip(records, highest, strict=True)]
        return None if any(result.peak > MAX_SUM for result in results) else results


class _Record:
    """Arrays that the kernel writes for one layer."""

    def __init__(
        self,
        layer: FastLayer,
        samples: int,
        steps: int,
        want: LayerRequest,
    ) -> None:
        self.layer = layer
        self.counts = np.zeros((samples, steps), dtype=np.int32)
        self.spikes: UInt8 | None = None
        self.states: list[Int32] = []
        _, height, width = layer.view.out
        if want.spikes:
            shape = (samples, steps, *layer.view.layer.output_shape)
            self.spikes = np.empty(shape, dtype=np.uint8)
        if want.states:
            wide = (samples, height * width, steps, layer.struct.blocks * LANES)
            self.states = list(np.empty((2, *wide), dtype=np.int32))

    def fill(self, stage: StageStruct, peak: Int32, state: Array | None) -> None:
        """Write the layer and the addresses of these arrays into the kernel's structure."""
        view = self.layer.view
        stage.layer = self.layer.struct  # a copy
        stage.layer.steps = self.counts.shape[1]
        if state is not None:
            stage.layer.state = _address(state)
        stage.dense = view.dense
        stage.pool = view.pooled
        stage.outputs = view.out[0]
        _, stage.map_h, stage.map_w = view.entering
        stage.counts = _address(self.counts)
        stage.peak = _address(peak)
        if self.spikes is not None:
            stage.spikes = _address(self.spikes)
        if self.states:
            stage.u, stage.v = map(_address, self.states)

    def result(self, peak: int) -> LayerResult:
        """Return what was written, in the order of features; the peak is in units of weights."""
        largest = int(peak) * self.layer.view.unit
        result = LayerResult(self.counts, largest, self.spikes)
        if self.states:
            result.u, result.v = map(self._in_order, self.states)
        return result

    def _in_order(self, array: Int32) -> Int32:
        view = self.layer.view
        outputs, height, width = view.out
        samples, steps = self.counts.shape
        # The last block is filled up with outputs that do not exist.
        images = array.reshape(samples, height, width, steps, -1)[..., :outputs]
        ordered = images.transpose(0, 3, 4, 1, 2)
        return ordered.reshape(samples, steps, *view.layer.output_shape)
