"""The fast engine: chains of layers through the compiled kernel, samples over threads; what it does not take, the reference runs.

Sums are exact whatever the input: 16 bits are carried into 32 before they could overflow. States are exact while every
|sum| stays within 2**17 (fast_layer.py); the kernel reports the largest it met, and a chain that passed it is run again by
the reference engine.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.fast_layer import MAX_SUM, FastLayer, fast_layer
from knarr.hw_sim.layers import Layer
from knarr.hw_sim.native import LANES, Kernel, LayerStruct, StageStruct
from knarr.hw_sim.network import ChipNetwork

Bytes = npt.NDArray[np.uint8]


@dataclass(eq=False)
class Ran:
    """What one layer did: arrays over (samples, timesteps, ...), None where it was not asked for."""

    counts: npt.NDArray[np.integer[Any]]
    peak: int
    spikes: Bytes | None = None
    u: npt.NDArray[np.int64] | None = None
    v: npt.NDArray[np.int64] | None = None
    kept: list[Any] = field(default_factory=list)


_PLANS: dict[int, tuple[weakref.ref[ChipNetwork], list[FastLayer | str]]] = {}
"""By identity, since networks hold arrays and have no hash; an entry goes with its network."""


def plans(network: ChipNetwork) -> list[FastLayer | str]:
    """Every layer laid out for the kernel, or why not; laid out once for a network."""
    key = id(network)
    known = _PLANS.get(key)
    if known is not None and known[0]() is network:
        return known[1]
    shape, bits = network.input.shape, network.input.bits
    found = []
    for layer in network.layers:
        found.append(fast_layer(layer, shape, bits))
        shape, bits = layer.output_shape, 1
    _PLANS[key] = (weakref.ref(network, lambda _: _PLANS.pop(key, None)), found)
    return found


def run_chain(
    kernel: Kernel,
    layers: list[FastLayer],
    events: npt.NDArray[np.integer[Any]],
    bits: int,
    wanted: Callable[[Layer], tuple[bool, bool]],
    threads: int,
    level: int | None = None,
) -> list[Ran] | None:
    """Consecutive layers on all samples.

    Args:
        kernel: the compiled one.
        layers: as `plan` laid them out.
        events: (samples, timesteps, *features) of 0..2**bits-1.
        bits: of them.
        wanted: layer -> whether its spikes and its states are recorded.
        threads: samples are divided among.
        level: instructions to use, the best by default.

    Returns:
        What every layer did; None when a sum was too large for the kernel's states.
    """
    samples, steps = events.shape[:2]
    inputs = np.ascontiguousarray(events, dtype=np.uint8 if bits <= 8 else np.uint16)
    channels, height, width = layers[0].entering
    records = [_record(layer, samples, steps, *wanted(layer.layer)) for layer in layers]
    stop = ctypes.c_int32(0)
    threads = max(1, min(threads, samples))
    bounds = np.linspace(0, samples, threads + 1).astype(int)

    def part(index: int) -> tuple[int, npt.NDArray[np.int32]]:
        peaks = np.zeros(len(layers), dtype=np.int32)
        stages = (StageStruct * len(layers))()
        for i, (layer, record) in enumerate(zip(layers, records, strict=True)):
            _fill(stages[i], layer, record, steps, peaks[i:])
        failed = kernel.run(
            stages, len(layers), _at(inputs), inputs.itemsize, channels, height * width, bits, steps,
            int(bounds[index]), int(bounds[index + 1]), kernel.level if level is None else level, ctypes.addressof(stop),
        )  # fmt: skip
        return failed, peaks

    # Even one thread is not the caller's own, which could not hear Ctrl-C inside the kernel.
    with ThreadPoolExecutor(threads) as pool:
        try:
            results = list(pool.map(part, range(threads)))
        except BaseException:
            stop.value = 1  # the threads look at it after every sample
            raise
    if any(failed == 1 for failed, _ in results):
        raise ChipError("simulate: out of memory in the kernel; give fewer samples at once")
    peaks = np.max([peaks for _, peaks in results], axis=0)
    units = np.array([layer.unit for layer in layers], dtype=np.int64)
    if (peaks * units > MAX_SUM).any():
        return None
    return [
        _finished(layer, record, int(peak) * layer.unit, steps)
        for layer, record, peak in zip(layers, records, peaks, strict=True)
    ]


def _record(layer: FastLayer, samples: int, steps: int, spikes: bool, states: bool) -> Ran:
    _, height, width = layer.out
    ran = Ran(np.zeros((samples, steps), dtype=np.int32), 0)
    if spikes:
        ran.spikes = np.empty((samples, steps, *layer.layer.output_shape), dtype=np.uint8)
    if states:
        shape = (samples, height * width, steps, layer.blocks * LANES)
        ran.kept = [np.empty(shape, dtype=np.int32) for _ in range(2)]
    return ran


def _fill(stage: StageStruct, layer: FastLayer, record: Ran, steps: int, peak: npt.NDArray[np.int32]) -> None:
    neuron, (seen_h, seen_w) = layer.layer.neuron, layer.seen
    outputs, out_h, out_w = layer.out
    window, stride, padding, dilation = layer.window
    stage.layer = LayerStruct(
        weight=_at(layer.weight), bias=_at(layer.bias), mode=layer.mode, steps=steps, channels=layer.entering[0],
        groups=-(-layer.entering[0] // 32), planes=layer.planes, blocks=layer.blocks, in_h=seen_h, in_w=seen_w, out_h=out_h,
        out_w=out_w, kh=window[0], kw=window[1], stride_y=stride[0], stride_x=stride[1], pad_y=padding[0], pad_x=padding[1],
        dil_y=dilation[0], dil_x=dilation[1], flush=layer.flush, narrow_weight=layer.weight.dtype == np.int8,
        may_wrap=layer.may_wrap, biased=bool(layer.bias.any()), may_clip=layer.may_clip, keep_u=(4096 - neuron.i_decay) / 4096, keep_v=(4096 - neuron.v_decay) / 4096,
        threshold=64.0 * neuron.vth_int, unit=layer.unit,
    )  # fmt: skip
    if layer.dot is not None:
        stage.layer.dot, stage.layer.quads = _at(layer.dot.weight), layer.dot.quads
        stage.layer.dot_flush, stage.layer.dot_above = layer.dot.flush, layer.dot.above
    stage.dense, stage.pool, stage.outputs = layer.dense, layer.pooled, outputs
    _, stage.map_h, stage.map_w = layer.entering
    stage.spikes = None if record.spikes is None else _at(record.spikes)
    stage.counts, stage.peak = _at(record.counts), _at(peak)
    if record.kept:
        stage.u, stage.v = (_at(array) for array in record.kept)


def _finished(layer: FastLayer, record: Ran, peak: int, steps: int) -> Ran:
    outputs, height, width = layer.out
    record.counts, record.peak = record.counts.astype(np.int64), peak
    if record.kept:
        record.u, record.v = (
            array.reshape(len(array), height, width, steps, -1)[..., :outputs]
            .transpose(0, 3, 4, 1, 2)
            .astype(np.int64)
            .reshape(len(array), steps, *layer.layer.output_shape)
            for array in record.kept
        )
        record.kept = []
    return record


def _at(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data)


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
