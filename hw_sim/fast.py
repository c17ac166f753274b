"""The fast engine: chains of layers through the compiled kernel, samples over threads; what it does not take, the reference runs.

Sums are exact whatever the input: 16 bits are carried into 32 before they could overflow. States are exact while every
|sum| stays within 2**17 (fast_layer.py); the kernel reports the largest it met, and a chain that passed it is run again by
the reference engine.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.engine import Events, Ran, Wanted
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.fast_layer import FastLayer, fast_layer
from knarr.hw_sim.layers import Layer
from knarr.hw_sim.native import LANES, MAX_SUM, Kernel, LayerStruct, StageStruct


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
        events: Events,
        bits: int,
        wanted: list[Wanted],
        states: list[Any],
        threads: int,
        *,
        carry: bool,
    ) -> list[Ran] | None:
        """See `Engine.run`."""
        layers: list[FastLayer] = chain
        samples, steps = events.shape[:2]
        inputs = np.ascontiguousarray(events, dtype=np.uint8 if bits <= 8 else np.uint16)
        channels, height, width = layers[0].entering
        records = [_Record(layer, samples, steps, want) for layer, want in zip(layers, wanted, strict=True)]
        for i, layer in enumerate(layers):
            if carry and states[i] is None:
                _, high, wide = layer.out
                states[i] = np.zeros((samples, high * wide, layer.blocks, 2, LANES), dtype=np.float32)
        # Every thread has samples of its own, or all share each sample where there are fewer of them.
        members = 1 if samples >= threads else threads
        bounds = np.linspace(0, samples, max(1, threads // members) + 1).astype(int)
        words = height * width * -(-channels // 32) * bits * steps
        peaks = np.zeros((threads, len(layers)), dtype=np.int32)
        chains = [(StageStruct * len(layers))() for _ in range(threads)]
        for mine, found in zip(chains, peaks, strict=True):
            for i, (layer, record) in enumerate(zip(layers, records, strict=True)):
                record.fill(mine[i], layer, steps, found[i:], states[i])
        teams = [self.kernel.team(chains[0], len(layers), words, steps, members) for _ in bounds[1:]]
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
                raise ChipError("simulate: out of memory in the kernel; give fewer time steps at once")
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
        self.spikes: npt.NDArray[np.uint8] | None = None
        self.states: list[npt.NDArray[np.int32]] = []
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
        peak: npt.NDArray[np.int32],
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

    def finished(self, layer: FastLayer, peak: int) -> Ran:
        """In the order of features."""
        outputs, height, width = layer.out
        samples, steps = self.counts.shape
        u, v = (
            array.reshape(samples, height, width, steps, -1)[..., :outputs]
            .transpose(0, 3, 4, 1, 2)
            .reshape(samples, steps, *layer.layer.output_shape)
            for array in self.states
        ) if self.states else (None, None)  # fmt: skip
        return Ran(self.counts, peak, self.spikes, u, v)


def _at(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data)
