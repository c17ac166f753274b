"""The fast engine: chains of layers through a compiled kernel (csrc/cuba.c), samples over threads.

`load` finds the kernel, `FastEngine` runs chains of layers that `native_layer` laid out.

Sums are exact whatever the input: 16 bits are carried into 32 before they could overflow. States
are exact while every |sum| stays within `MAX_SUM`; the kernel reports the largest it met, and a
chain that passed it is laid out again in 64 bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from knarr.hw_sim.arrays import Array, IntArray, UInt8
from knarr.hw_sim.engines.base import (
    MAX_SUM,
    LayerRequest,
    LayerResult,
    LayerState,
    RunRequest,
    cores,
)
from knarr.hw_sim.engines.kept import KeptMemory, give_threads, take_threads
from knarr.hw_sim.engines.native_layer import (
    LANES,
    FastLayer,
    LayerStruct,
    StageStruct,
    address,
    lay_out,
    register_lanes,
)
from knarr.hw_sim.engines.native_tally import KernelTally
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import Layer, Neuron

CONV_DOTS_ABOVE, COLUMN_DOTS_ABOVE, DENSE_DOTS_ABOVE = 120, 420, 500
"""Activity in per mille from which dot products pay in convolutions, in those that go by columns of
the window, and in dense layers; as measured on benchmark networks W2s and W1.
"""
SHORT = 10**7
"""Steps of neurons below which a run on one thread is the caller's own: it cannot hear Ctrl-C for some
milliseconds.
"""
LEVELS = ("portable vectors", "AVX2", "AVX-512")


class Kernel:
    """The loaded library.

    Args:
        library: as ctypes opened it.

    Attributes:
        level: index into `LEVELS` of the best instructions of this processor.
        team, run, driven: functions of the library. The interpreter is free for other threads while
            one runs.
        memory: what teams of threads work in.

    Raises:
        OSError: the library was built from other sources.
    """

    def __init__(self, library: Any) -> None:
        if library.knarr_structures() != ctypes.sizeof(LayerStruct) << 16 | ctypes.sizeof(
            StageStruct
        ):
            raise OSError("built from other sources than these")
        library.knarr_start()
        stages, pointer, number = ctypes.POINTER(StageStruct), ctypes.c_void_p, ctypes.c_int32
        # Without these, ctypes would cut pointers to 32 bits.
        size = ctypes.c_size_t
        library.knarr_team.argtypes = [pointer, stages, number, size, number, number]
        library.knarr_team.restype = pointer
        library.knarr_team_free.argtypes = [pointer]
        library.knarr_team_bytes.argtypes = [pointer]
        library.knarr_team_bytes.restype = size
        sizes = [number] * 6
        library.knarr_run.argtypes = [
            *(pointer, number, stages, number, pointer, *sizes),
            *(pointer, number, pointer),
        ]
        library.knarr_driven.argtypes = [pointer, number, number, *[pointer] * 4]
        library.knarr_driven.restype = None
        self.driven = library.knarr_driven
        self.team, self.run = library.knarr_team, library.knarr_run
        self.memory = KeptMemory(library.knarr_team_free, library.knarr_team_bytes)
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
        large: bool = False,
    ) -> FastLayer | str:
        """Lay out a layer, see `Engine.lay_out`."""
        dots_above = CONV_DOTS_ABOVE, COLUMN_DOTS_ABOVE, DENSE_DOTS_ABOVE
        return lay_out(layer, entering, bits, signed, large, dots_above)

    def bytes_per_step(self, laid_out: FastLayer) -> int:
        """Estimate words in and out, and lists of what is set."""
        view, struct = laid_out.view, laid_out.struct
        channels, height, width = view.entering
        _, out_h, out_w = view.out
        lists = channels * struct.planes * (4 if view.dense else 1)
        arriving = height * width * (channels + lists + 16)
        # Words go out in blocks of 32 outputs, and a thread sums a block of one pixel at a time; a
        # layer with a loop keeps the sums of all blocks.
        sums = 4 * LANES * (struct.blocks if struct.back else 1)
        return arriving + out_h * out_w * struct.blocks * 8 + sums

    def run(self, request: RunRequest) -> list[LayerResult] | None:
        """Run consecutive layers on a block, see `Engine.run`."""
        layers: list[FastLayer] = request.chain
        threads, states = request.threads, request.states
        samples, steps = request.events.shape[:2]
        inputs, planes = _payloads(request)
        channels, height, width = layers[0].entering
        records = [
            _Record(layer, samples, steps, want)
            for layer, want in zip(layers, request.wanted, strict=True)
        ]
        for i, layer in enumerate(layers):
            if request.carry and states[i] is None:
                states[i] = FastState.at_rest(layer, samples)
        # Every thread has samples of its own, or all share each sample where there are fewer of
        # them.
        members = 1 if samples >= threads else threads
        parts = max(1, threads // members)
        words = layers[0].words * planes * steps
        # Threads have structures of their own: the kernel fills in pointers, and peaks are not
        # shared.
        peaks = np.zeros((threads, len(layers)), dtype=np.int64)
        chains = [(StageStruct * len(layers))() for _ in range(threads)]
        tallies = [
            KernelTally(layer, wanted, i == 0, (samples, steps), threads)
            for i, (layer, wanted) in enumerate(zip(layers, request.tally or [], strict=False))
        ]
        for thread, (stages, found) in enumerate(zip(chains, peaks, strict=True)):
            for i, record in enumerate(records):
                record.fill(stages[i], found[i:], states[i])
            for i, tally in enumerate(tallies):
                tally.fill(stages[i], thread)
        sizes = (len(layers), words, steps, members)
        stop, following = ctypes.c_int32(0), ctypes.c_int32(0)
        teams: list[int | None] = []
        # The kernel sees addresses alone; a thread that outlives us after a second Ctrl-C must not
        # find them gone.
        held = (inputs, chains, records, peaks, states, layers, tallies)

        def part(index: int) -> bool:
            inputs, chains, *_ = held
            failed: int = self.kernel.run(
                teams[index // members],
                index % members,
                chains[index],
                len(layers),
                address(inputs),
                inputs.itemsize,
                channels,
                height * width,
                planes,
                steps,
                samples,
                ctypes.addressof(following),
                self.level,
                ctypes.addressof(stop),
            )
            return failed != 0

        working = False
        try:
            for _ in range(parts):
                teams.append(self.kernel.team(self.kernel.memory.take(), chains[0], *sizes))
            if not all(teams):
                raise ChipError(
                    "simulate: out of memory in the kernel; give fewer time steps at once"
                )
            if threads == 1 and samples * steps * sum(map(_neurons, layers)) < SHORT:
                part(0)
            else:
                working = True
                _together(part, threads, stop)
                working = False
        finally:
            # After a second Ctrl-C some may still run, for a row: what they write in is left to
            # them.
            if not working:
                for team in teams:
                    if team:
                        self.kernel.memory.give(team)
        highest = peaks.max(axis=0)
        results = [record.result(peak) for record, peak in zip(records, highest, strict=True)]
        before = None
        for result, tally in zip(results, tallies, strict=False):
            result.tally = tally.result(before)
            before = result.counts.astype(np.int64)
        large = any(
            result.peak > MAX_SUM and not layer.wide
            for layer, result in zip(layers, results, strict=True)
        )
        return None if large else results

    def drive(self, neuron: Neuron, bias: IntArray, state: LayerState) -> LayerResult:
        """Run neurons that are driven by bias, see `ReferenceEngine.drive`."""
        samples, steps, *features = bias.shape
        neurons = prod(features)
        registers = register_lanes(neuron, (neurons, 1, 1))
        mantissas = np.ascontiguousarray(bias, dtype=np.int16)
        # Lanes that are filled up never fire: their bias is 0.
        lanes = np.zeros((samples, 2, len(registers[0]) * LANES), dtype=np.int64)
        lanes[:, :, :neurons] = np.stack([state.u, state.v], axis=1).reshape(samples, 2, -1)
        blocks = np.ascontiguousarray(lanes.reshape(samples, 2, -1, LANES).transpose(0, 2, 1, 3))
        spikes = np.empty(bias.shape, dtype=np.uint8)
        v = np.empty(bias.shape, dtype=np.int64)
        for s in range(samples):
            arrays = (registers, blocks[s], spikes[s], v[s])
            self.kernel.driven(address(mantissas[s]), neurons, steps, *map(address, arrays))
        after = blocks.transpose(0, 2, 1, 3).reshape(samples, 2, -1)[:, :, :neurons]
        state.u, state.v = (
            np.ascontiguousarray(after[:, i]).reshape(samples, *features) for i in range(2)
        )
        counts = spikes.reshape(samples, steps, -1).sum(axis=2, dtype=np.int64)
        return LayerResult(counts, 0, spikes, np.zeros_like(v), v)

    def read_state(self, laid_out: FastLayer, state: FastState) -> LayerState:
        """Return a layer's state in the order of features, see `Engine.read_state`."""
        return state.read(laid_out)

    def write_state(self, laid_out: FastLayer, state: LayerState) -> FastState:
        """Return a state as `run` takes it, see `Engine.write_state`."""
        return FastState.written(laid_out, state)


def _neurons(layer: FastLayer) -> int:
    return prod(layer.view.out)


def _together(part: Callable[[int], bool], threads: int, stop: ctypes.c_int32) -> None:
    """Call `part` for 0, 1, ... in as many threads, none of them the caller's own, which could not
    hear Ctrl-C inside the kernel.
    """
    pool = take_threads(threads)
    futures: list[Future[bool]] = []
    try:
        futures += [pool.submit(part, i) for i in range(threads)]
        for future in futures:
            future.result()
    except BaseException:
        stop.value = 1  # the kernel looks at it in every row
        pool.shutdown(wait=True)
        raise
    give_threads(threads, pool)


def _payloads(request: RunRequest) -> tuple[Array, int]:
    """Return events as the kernel packs them, and how many bits of them it takes."""
    events, bits = request.events, request.bits
    if not request.signed:
        return np.ascontiguousarray(events, dtype=np.uint8 if bits <= 8 else np.uint16), bits
    # What is below 0 has bits of its own, above the others.
    signed = events.astype(np.int64)
    coded = np.where(signed < 0, -signed << bits, signed)
    dtype = np.uint8 if bits <= 4 else np.uint16 if bits <= 8 else np.uint32
    return np.ascontiguousarray(coded, dtype=dtype), 2 * bits


@dataclass(eq=False)
class FastState:
    """Hold what the kernel keeps of a layer from block to block.

    Args:
        registers: (samples, pixels, blocks, u and v, lanes) float32, int64 of a wide layer.
        fired: (samples, blocks) uint32, spikes of the last step; of layers with a loop.
        sent: (samples, words, planes, steps) uint32, what arrived last; of layers with delays.
    """

    registers: Array
    fired: Array
    sent: Array

    @staticmethod
    def at_rest(layer: FastLayer, samples: int) -> FastState:
        """Return zeros."""
        struct = layer.struct
        _, height, width = layer.view.out
        shape = (samples, height * width, struct.blocks, 2, LANES)
        loop = (samples, struct.blocks if struct.back else 0)
        sent = (samples, layer.words if struct.history else 0, struct.planes, struct.history)
        return FastState(
            np.zeros(shape, dtype=np.int64 if layer.wide else np.float32),
            np.zeros(loop, dtype=np.uint32),
            np.zeros(sent, dtype=np.uint32),
        )

    @staticmethod
    def written(layer: FastLayer, state: LayerState) -> FastState:
        """Return a state as the kernel keeps it."""
        samples = len(state.u)
        found = FastState.at_rest(layer, samples)
        outputs, height, width = layer.view.out
        lanes = found.registers.transpose(0, 1, 3, 2, 4)
        for index, values in enumerate((state.u, state.v)):
            by_pixel = values.reshape(samples, outputs, height * width).transpose(0, 2, 1)
            wide = np.zeros((samples, height * width, layer.struct.blocks * LANES))
            wide = wide.astype(found.registers.dtype)
            wide[:, :, :outputs] = by_pixel
            lanes[:, :, index] = wide.reshape(samples, height * width, -1, LANES)
        if found.fired.size:
            bits = np.zeros((samples, layer.struct.blocks * LANES), dtype=np.uint8)
            bits[:, :outputs] = state.fired
            found.fired[...] = np.packbits(bits, axis=1, bitorder="little").view("<u4")
        if found.sent.size:
            found.sent[...] = _packed(layer, state.sent)
        return found

    def read(self, layer: FastLayer) -> LayerState:
        """Return the state in the order of features."""
        samples = len(self.registers)
        outputs, height, width = layer.view.out
        shape = (samples, *layer.layer.output_shape)
        lanes = self.registers.transpose(3, 0, 2, 4, 1)
        whole = lanes.reshape(2, samples, -1, height * width)[:, :, :outputs]
        u, v = whole.astype(np.int64).reshape(2, *shape)
        fired = np.zeros((samples, 0), dtype=np.uint8)
        if self.fired.size:
            octets = self.fired.astype("<u4").view(np.uint8)
            fired = np.unpackbits(octets, axis=1, bitorder="little")[:, :outputs]
        return LayerState(u, v, fired, _unpacked(layer, self.sent))


def _packed(layer: FastLayer, sent: IntArray) -> Array:
    """Turn (samples, steps, features) payloads into words (samples, words, planes, steps)."""
    channels, height, width = layer.entering
    samples, steps, _ = sent.shape
    planes, positive = layer.struct.planes, layer.struct.negative
    signed = sent.astype(np.int64)
    coded = np.where(signed < 0, -signed << positive, signed)
    by_pixel = coded.reshape(samples, steps, channels, height * width)
    wide = np.zeros((samples, steps, -(-channels // 32) * 32, height * width), dtype=np.int64)
    wide[:, :, :channels] = by_pixel
    # (samples, pixels, groups, planes, steps, lanes)
    grouped = wide.reshape(samples, steps, -1, 32, height * width).transpose(0, 4, 2, 1, 3)
    bits = (grouped[:, :, :, None] >> np.arange(planes)[:, None, None]) & 1
    words = (bits << np.arange(32)).sum(axis=-1)
    return words.astype(np.uint32).reshape(samples, layer.words, planes, steps)


def _unpacked(layer: FastLayer, sent: Array) -> IntArray:
    """Do the reverse of `_packed`."""
    channels, height, width = layer.entering
    samples, _, planes, steps = sent.shape
    if not steps:
        delayed = getattr(layer.layer, "delay_int", None) is not None
        features = channels * height * width if delayed else 0
        return np.zeros((samples, 0, features), dtype=np.int64)
    positive = layer.struct.negative
    worth = [1 << p if p < positive else -(1 << (p - positive)) for p in range(planes)]
    bits = (sent[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    values = np.tensordot(bits.astype(np.int64), np.array(worth), axes=([2], [0]))
    # (samples, pixels, groups, steps, lanes)
    by_pixel = values.reshape(samples, height * width, -1, steps, 32).transpose(0, 3, 2, 4, 1)
    whole = by_pixel.reshape(samples, steps, -1, height * width)[:, :, :channels]
    return whole.reshape(samples, steps, -1)


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
        self.states: list[Array] = []
        _, height, width = layer.view.out
        if want.spikes:
            shape = (samples, steps, *layer.layer.output_shape)
            self.spikes = np.empty(shape, dtype=np.uint8)
        if want.states:
            wide = (samples, height * width, steps, layer.struct.blocks * LANES)
            dtype = np.int64 if layer.wide else np.int32
            self.states = list(np.empty((2, *wide), dtype=dtype))

    def fill(self, stage: StageStruct, peak: Array, state: FastState | None) -> None:
        """Write the layer and the addresses of these arrays into the kernel's structure."""
        view = self.layer.view
        stage.layer, stage.shift = self.layer.struct, self.layer.shift  # copies
        stage.layer.steps = self.counts.shape[1]
        if state is not None:
            stage.layer.state = address(state.registers)
            if state.fired.size:
                stage.layer.fired = address(state.fired)
            if state.sent.size:
                stage.layer.sent = address(state.sent)
        stage.pool = view.pooled
        stage.arriving = self.layer.entering[0]
        _, stage.map_h, stage.map_w = view.entering
        stage.counts = address(self.counts)
        stage.peak = address(peak)
        if self.spikes is not None:
            stage.spikes = address(self.spikes)
        if self.states:
            stage.u, stage.v = map(address, self.states)

    def result(self, peak: int) -> LayerResult:
        """Return what was written, in the order of features; the peak is in units of weights."""
        largest = int(peak) * self.layer.view.unit
        result = LayerResult(self.counts, largest, self.spikes)
        if self.states:
            result.u, result.v = map(self._in_order, self.states)
        return result

    def _in_order(self, array: Array) -> Array:
        view = self.layer.view
        outputs, height, width = view.out
        samples, steps = self.counts.shape
        # The last block is filled up with outputs that do not exist.
        images = array.reshape(samples, height, width, steps, -1)[..., :outputs]
        ordered = images.transpose(0, 3, 4, 1, 2)
        return ordered.reshape(samples, steps, *self.layer.layer.output_shape)
