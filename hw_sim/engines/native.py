"""The compiled kernel: where it is, whether it runs here, and its structures as ctypes sees them (hw_sim/engines/csrc/cuba.c).

A layer as the compiled kernel takes it: weights laid out in blocks of 32 outputs, and the bounds that make 16 bits enough.

The fast engine: chains of layers through the compiled kernel, samples over threads; what it does not take, the reference runs.

Sums are exact whatever the input: 16 bits are carried into 32 before they could overflow. States are exact while every
|sum| stays within 2**17 (fast_layer.py); the kernel reports the largest it met, and a chain that passed it is run again by
the reference engine.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.arrays import Array, Int32, IntArray, UInt8
from knarr.hw_sim.engines.base import LayerResult, Wanted
from knarr.hw_sim.engines.synapse_view import SynapseView, synapse_view
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import DECAY_UNITY, Conv, Dense, Layer

_P, _I, _F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
WORDS, LISTS, TABLE = 0, 1, 2
LANES = 32
MAX_TAPS, MAX_LIST = 1024, 16384
MAX_SUM = 2**17
"""States are exact in float32 while 64 * |sum| stays within 2**23."""
LEVELS = ("portable vectors", "AVX2", "AVX-512")


class LayerStruct(ctypes.Structure):
    """`layer_t`."""

    _fields_ = (
        [(name, _P) for name in ("in_", "out", "weight", "dot", "bias", "state", "count", "u", "v", "peak", "windows", "bytes", "items", "begin", "events", "stop")]
        + [
            (name, _I)
            for name in (
                "mode", "steps", "channels", "groups", "planes", "blocks", "in_h", "in_w", "out_h", "out_w", "kh", "kw", "stride_y",
                "stride_x", "pad_y", "pad_x", "dil_y", "dil_x", "flush", "quads", "dot_flush", "dot_above",
                "narrow_weight", "may_wrap", "biased", "may_clip",
            )
        ]
        + [(name, _F) for name in ("keep_u", "keep_v", "threshold", "unit")]
    )  # fmt: skip


class StageStruct(ctypes.Structure):
    """`stage_t`."""

    _fields_ = (
        [("layer", LayerStruct)]
        + [(name, _I) for name in ("dense", "pool", "map_h", "map_w", "outputs")]
        + [(name, _P) for name in ("spikes", "counts", "u", "v", "peak")]
    )


class Kernel:
    """The loaded library.

    Args:
        library: as ctypes opened it.

    Attributes:
        level: index into `LEVELS` of the best instructions of this processor.
    """

    def __init__(self, library: Any) -> None:
        if library.knarr_sizes() != ctypes.sizeof(LayerStruct) << 16 | ctypes.sizeof(StageStruct):
            raise OSError("built from other sources than these")
        library.knarr_start()
        library.knarr_team.argtypes = [ctypes.POINTER(StageStruct), _I, ctypes.c_size_t, _I, _I]
        library.knarr_team.restype = _P
        library.knarr_team_free.argtypes = [_P]
        library.knarr_run.argtypes = [
            _P, _I, ctypes.POINTER(StageStruct), _I, _P, _I, _I, _I, _I, _I, _I, _I, _I, _P,
        ]  # fmt: skip
        self.team, self.free_team, self._run = (
            library.knarr_team,
            library.knarr_team_free,
            library.knarr_run,
        )
        self.level = int(library.knarr_level())

    def run(self, *arguments: Any) -> int:
        """`knarr_run`; the interpreter is free for other threads meanwhile."""
        return int(self._run(*arguments))


@cache
def load() -> Kernel | str:
    """The kernel, or why there is none."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_cuba{suffix}")
        if path.is_file():
            try:
                return Kernel(ctypes.CDLL(str(path)))
            except (OSError, AttributeError) as error:
                return f"{path.name} does not load ({error}); install knarr again"
    return "not built; a C compiler (cc) at install makes it"


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
    weight: IntArray
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


def _paired(weight: Array) -> UInt8:
    """Rows of 32 weights as 16 pairs of bytes: weight i plus 128, and weight 16 + i."""
    low, high = weight[..., : LANES // 2] + 128, weight[..., LANES // 2 :] & 255
    return np.ascontiguousarray(
        np.stack([low, high], axis=-1).reshape(weight.shape).astype(np.uint8)
    )


def _largest(values: Int32) -> int:
    return max(-int(values.min()), int(values.max()))


def _fits_bytes(values: Int32) -> bool:
    return int(values.min()) >= -128 and int(values.max()) <= 127


def _dots(small: Int32, payload: int, above: int) -> Dots | None:
    """Weights four channels by four, if every product of two channels fits 16 bits."""
    outputs, channels, high, wide = small.shape
    if (
        not (int(small.min()) >= -128 and int(small.max()) <= 127)
        or payload > 255
        or high * wide > MAX_TAPS
    ):
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
    weight = (
        padded.reshape(blocks, LANES, quads, 4, high * wide)
        .transpose(0, 4, 2, 1, 3)
        .astype(np.int8)
    )
    flush = 0 if in_all <= INT16 else INT16 // most
    return Dots(np.ascontiguousarray(weight), flush, above)


def _laid_out(view: SynapseView) -> tuple[int, Array]:
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
    rows[:, :, :channels] = lanes.reshape(blocks, LANES, channels, high * wide).transpose(
        0, 3, 2, 1
    )
    lists = (
        bound <= INT16
        and planes * groups * 32 <= 256
        and high * wide * planes * groups * 32 <= 2**16
        and high * wide * channels * planes <= MAX_LIST
    )
    if not view.dense and lists:
        return LISTS, np.concatenate([rows << plane for plane in range(planes)], axis=2)
    return WORDS, rows


class FastEngine:
    """The compiled kernel.

    Args:
        kernel: as `native.load` gives it.
        level: instructions to use, the best by default.
    """

    name = "fast"

    def __init__(self, kernel: Kernel, level: int | None = None) -> None:
        self.kernel, self.level = kernel, kernel.level if level is None else level

    def lay_out(self, layer: Layer, entering: tuple[int, ...], bits: int) -> FastLayer | str:
        """See `Engine.lay_out`."""
        return fast_layer(layer, entering, bits)

    def bytes_per_step(self, laid_out: FastLayer) -> int:
        """Words in and out, and lists of what is set."""
        channels, height, width = laid_out.entering
        _, out_h, out_w = laid_out.out
        lists = channels * laid_out.planes * (4 if laid_out.dense else 1)
        arriving = height * width * (channels + lists + 16)
        # Words go out in blocks of 32 outputs, and a thread sums a block of one pixel at a time.
        return arriving + out_h * out_w * laid_out.blocks * 8 + 4 * LANES

    def run(
        self,
        chain: list[Any],
        events: IntArray,
        bits: int,
        wanted: list[Wanted],
        states: list[Any],
        threads: int,
        *,
        carry: bool,
    ) -> list[LayerResult] | None:
        """See `Engine.run`."""
        layers: list[FastLayer] = chain
        samples, steps = events.shape[:2]
        inputs = np.ascontiguousarray(events, dtype=np.uint8 if bits <= 8 else np.uint16)
        channels, height, width = layers[0].entering
        records = [
            _Record(layer, samples, steps, want) for layer, want in zip(layers, wanted, strict=True)
        ]
        for i, layer in enumerate(layers):
            if carry and states[i] is None:
                _, high, wide = layer.out
                states[i] = np.zeros(
                    (samples, high * wide, layer.blocks, 2, LANES), dtype=np.float32
                )
        # Every thread has samples of its own, or all share each sample where there are fewer of them.
        members = 1 if samples >= threads else threads
        bounds = np.linspace(0, samples, max(1, threads // members) + 1).astype(int)
        words = height * width * -(-channels // 32) * bits * steps
        peaks = np.zeros((threads, len(layers)), dtype=np.int32)
        chains = [(StageStruct * len(layers))() for _ in range(threads)]
        for mine, found in zip(chains, peaks, strict=True):
            for i, (layer, record) in enumerate(zip(layers, records, strict=True)):
                record.fill(mine[i], layer, steps, found[i:], states[i])
        teams = [
            self.kernel.team(chains[0], len(layers), words, steps, members) for _ in bounds[1:]
        ]
        stop = ctypes.c_int32(0)

        # The kernel sees addresses alone; a thread that outlives us after a second Ctrl-C must not find them gone.
        held = (inputs, chains, records, peaks, states, layers)

        def part(index: int) -> int:
            team, (inputs, chains, *_) = index // members, held
            return self.kernel.run(
                teams[team], index % members, chains[index], len(layers), _at(inputs), inputs.itemsize, channels, height * width,
                bits, steps, int(bounds[team]), int(bounds[team + 1]), self.level, ctypes.addressof(stop),
            )  # fmt: skip

        futures: list[Future[int]] = []
        try:
            if not all(teams):
                raise ChipError(
                    "simulate: out of memory in the kernel; give fewer time steps at once"
                )
            # Even one thread is not the caller's own, which could not hear Ctrl-C inside the kernel.
            with ThreadPoolExecutor(threads) as pool:
                try:
                    futures += [pool.submit(part, i) for i in range(threads)]
                    failed = [future.result() for future in futures]
                except BaseException:
                    stop.value = 1  # the kernel looks at it in every row
                    raise
        finally:
            # After a second Ctrl-C some may still run, for a row: what they write in is left to them.
            if all(future.done() for future in futures):
                for team in teams:
                    self.kernel.free_team(team)
        if any(failed):
            raise ChipError("simulate: out of memory in the kernel; give fewer time steps at once")
        found_peaks = peaks.max(axis=0)
        units = np.array([layer.unit for layer in layers], dtype=np.int64)
        if (found_peaks * units > MAX_SUM).any():
            return None
        return [
            record.finished(layer, int(peak) * layer.unit)
            for layer, record, peak in zip(layers, records, found_peaks, strict=True)
        ]


class _Record:
    """What the kernel writes of one layer."""

    def __init__(self, layer: FastLayer, samples: int, steps: int, want: Wanted) -> None:
        _, height, width = layer.out
        self.counts = np.zeros((samples, steps), dtype=np.int32)
        self.spikes: UInt8 | None = None
        self.states: list[Int32] = []
        if want.spikes:
            self.spikes = np.empty((samples, steps, *layer.layer.output_shape), dtype=np.uint8)
        if want.states:
            shape = (samples, height * width, steps, layer.blocks * LANES)
            self.states = [np.empty(shape, dtype=np.int32) for _ in range(2)]

    def fill(
        self,
        stage: StageStruct,
        layer: FastLayer,
        steps: int,
        peak: Int32,
        state: npt.NDArray[np.float32] | None,
    ) -> None:
        """The kernel's view of a layer."""
        neuron, view, (seen_h, seen_w) = layer.layer.neuron, layer.view, layer.view.seen
        outputs, out_h, out_w = layer.out
        stage.layer = LayerStruct(
            weight=_at(layer.weight), bias=_at(layer.bias), mode=layer.mode, steps=steps, channels=view.entering[0],
            groups=-(-view.entering[0] // 32), planes=view.planes, blocks=layer.blocks, in_h=seen_h, in_w=seen_w, out_h=out_h,
            out_w=out_w, kh=view.kernel[0], kw=view.kernel[1], stride_y=view.stride[0], stride_x=view.stride[1],
            pad_y=view.padding[0], pad_x=view.padding[1], dil_y=view.dilation[0], dil_x=view.dilation[1], flush=layer.flush,
            narrow_weight=layer.weight.dtype == np.uint8, may_wrap=layer.may_wrap, biased=bool(layer.bias.any()),
            may_clip=layer.may_clip, keep_u=(4096 - neuron.i_decay) / 4096, keep_v=(4096 - neuron.v_decay) / 4096,
            threshold=64.0 * neuron.vth_int, unit=layer.unit,
        )  # fmt: skip
        if layer.dot is not None:
            stage.layer.dot, stage.layer.quads = _at(layer.dot.weight), layer.dot.quads
            stage.layer.dot_flush, stage.layer.dot_above = layer.dot.flush, layer.dot.above
        if state is not None:
            stage.layer.state = _at(state)
        stage.dense, stage.pool, stage.outputs = layer.dense, view.pooled, outputs
        _, stage.map_h, stage.map_w = view.entering
        stage.spikes = None if self.spikes is None else _at(self.spikes)
        stage.counts, stage.peak = _at(self.counts), _at(peak)
        if self.states:
            stage.u, stage.v = (_at(array) for array in self.states)

    def finished(self, layer: FastLayer, peak: int) -> LayerResult:
        """In the order of features."""
        outputs, height, width = layer.out
        samples, steps = self.counts.shape
        u, v = (
            array.reshape(samples, height, width, steps, -1)[..., :outputs]
            .transpose(0, 3, 4, 1, 2)
            .reshape(samples, steps, *layer.layer.output_shape)
            for array in self.states
        ) if self.states else (None, None)  # fmt: skip
        return LayerResult(self.counts, peak, self.spikes, u, v)


def _at(array: Array) -> int:
    return int(array.ctypes.data)
