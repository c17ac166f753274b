"""The torch engine: synapses as float matrix products that are exact, on the CPU without a compiler
or on a CUDA device.

A product of integers in floats is exact in whatever order it is summed as long as no partial sum
passes 2**24 (float32) or 2**53 (float64), which the weights and the largest payload bound. That
leaves out what rounds on the way: TF32 is switched off, and on a device convolutions are unfolded
into matrix products, since cuDNN may take Winograd's algorithm, whose intermediate values are no
integers. Channels come last in memory, which is several times faster where they are few.
Neurons are integers in float64: compiled by numba on the CPU where it is installed, else torch, some
ten times slower on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from knarr.extras import MissingExtraError
from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.arrays import Array, Float64, Int64
from knarr.hw_sim.engines.base import (
    MAX_SUM,
    LayerRequest,
    LayerResult,
    LayerState,
    RunRequest,
)
from knarr.hw_sim.engines.synapse_view import SynapseView, synapse_view
from knarr.hw_sim.network import DECAY_UNITY, Layer, register_array

try:
    from knarr.hw_sim.engines.numba_cuba import add_rows, advance
except MissingExtraError:
    HAS_NUMBA = False
else:
    HAS_NUMBA = True

FLOAT32_EXACT, FLOAT64_EXACT = 2**24, 2**53
MAX_BIAS = 2**23
SUM_BYTES = 2**23
"""Bytes of sums at a time, per thread: they stay in the cache between product and neurons."""
DEVICE_SUM_BYTES = 2**28
ROWS_BELOW = 0.25
"""Share of active inputs of a dense layer below which adding rows event by event is faster than a
product.
"""


@dataclass(frozen=True, eq=False)
class TorchLayer:
    """A layer as the torch engine takes it.

    Args:
        view: its synapses.
        weight: on the device: (outputs, inputs) of a dense layer, a kernel of a convolution.
        bias: (features,) in units of v, channels last.
        rows: (inputs, outputs) weights of a dense layer where numba adds them, else None.
        registers: (features,) each, channels last: shares of u and v that a step keeps, and the
            threshold in units of v.
    """

    view: SynapseView
    weight: Tensor
    bias: Float64
    rows: Array | None
    registers: tuple[Float64, Float64, Float64]


class TorchEngine:
    """The engine on one device.

    Args:
        device: torch's name of it; "cpu" takes the paths that are made for the CPU.
    """

    name = "torch"

    def __init__(self, device: str) -> None:
        self.device = device
        self.compiled = device == "cpu" and HAS_NUMBA
        self.description = f"on {device}"

    def lay_out(
        self,
        layer: Layer,
        entering: tuple[int, ...],
        bits: int,
        signed: bool = False,
        large: bool = False,
    ) -> TorchLayer | str:
        """Lay out a layer, see `Engine.lay_out`."""
        if large:
            return f"sums beyond {MAX_SUM} need more bits"
        view = synapse_view(layer, entering, bits, signed)
        if isinstance(view, str):
            return view
        bias = np.zeros(len(view.weight))
        if layer.bias_int is not None:
            # In float64 |-2**31| is a positive number.
            bias = layer.bias_int.astype(np.float64)
        largest = view.bound * view.unit
        if largest >= FLOAT64_EXACT or np.abs(bias).max() >= MAX_BIAS:
            return f"sums up to {largest} or its biases need more bits"
        exact = torch.float32 if view.bound < FLOAT32_EXACT else torch.float64
        weight = torch.tensor(view.weight, dtype=exact, device=self.device)
        rows = None
        if view.dense:
            # Features of an image arrive with channels last.
            weight = weight.permute(0, 2, 3, 1).flatten(1)
            if self.compiled:
                rows = weight.T.contiguous().numpy()
        elif self.device == "cpu":
            weight = weight.contiguous(memory_format=torch.channels_last)
        _, high, wide = view.out
        neuron = layer.neuron
        i_decay, v_decay, vth_int = (
            # Features of an image lie with channels last here.
            np.moveaxis(register_array(register, view.out), 0, -1).flatten().astype(np.float64)
            for register in (neuron.i_decay, neuron.v_decay, neuron.vth_int)
        )
        registers = (1 - i_decay / DECAY_UNITY, 1 - v_decay / DECAY_UNITY, 64 * vth_int)
        biases = np.tile(64.0 * bias, high * wide)
        return TorchLayer(view, weight, biases, rows, registers)

    def bytes_per_step(self, laid_out: TorchLayer) -> int:
        """Count events as floats of 8 bytes."""
        return 8 * prod(laid_out.view.entering)

    def run(self, request: RunRequest) -> list[LayerResult] | None:
        """Run consecutive layers on a block, see `Engine.run`."""
        chain, threads = request.chain, request.threads
        # Rows of dense layers are added by threads of ours: those of torch stay as many as they are.
        dense = all(layer.view.dense for layer in chain)
        of_torch = torch.get_num_threads() if dense else threads
        with torch.inference_mode(), _exact_floats(self.device, of_torch):
            dtype = np.uint8 if request.bits <= 8 and not request.signed else np.int32
            block = np.ascontiguousarray(request.events, dtype=dtype)
            # torch warns of arrays that it could not write to.
            flow = torch.from_numpy(block if block.flags.writeable else block.copy())
            shape = (*flow.shape[:2], *chain[0].view.entering)
            arriving = flow.to(self.device).reshape(shape)
            arriving = arriving.permute(0, 1, 3, 4, 2).contiguous()
            results = []
            for i, (layer, want) in enumerate(zip(chain, request.wanted, strict=True)):
                if request.states[i] is None:
                    rest = np.zeros((2, len(arriving), len(layer.bias)))
                    request.states[i] = list(torch.from_numpy(rest).to(self.device))
                state = request.states[i]
                result, arriving = self._layer(layer, arriving, want, state, threads)
                # One wrap may not bring u back, nor 24 bits hold the sum of a convolution.
                if result.peak > MAX_SUM:
                    return None
                results.append(result)
            return results

    def read_state(self, laid_out: TorchLayer, state: list[Tensor]) -> LayerState:
        """Return u and v in the order of features, see `Engine.read_state`."""
        channels, high, wide = laid_out.view.out
        samples = len(state[0])
        u, v = (
            tensor.reshape(samples, high, wide, channels)
            .permute(0, 3, 1, 2)
            .cpu()
            .numpy()
            .astype(np.int64)
            .reshape(samples, *laid_out.view.layer.output_shape)
            for tensor in state
        )
        nothing = np.zeros((samples, 0), dtype=np.uint8)
        return LayerState(u, v, nothing, nothing[:, :, None])

    def write_state(self, laid_out: TorchLayer, state: LayerState) -> list[Tensor]:
        """Return u and v with channels last, see `Engine.write_state`."""
        samples = len(state.u)
        shape = (samples, *laid_out.view.out)
        return [
            torch.from_numpy(values.astype(np.float64).reshape(shape))
            .permute(0, 2, 3, 1)
            .reshape(samples, -1)
            .to(self.device)
            for values in (state.u, state.v)
        ]

    def _layer(
        self,
        layer: TorchLayer,
        arriving: Tensor,
        want: LayerRequest,
        state: list[Tensor],
        threads: int,
    ) -> tuple[LayerResult, Tensor]:
        """Return what a layer did, and its spikes as (samples, timesteps, H, W, C) for the next
        one.
        """
        samples, steps = arriving.shape[:2]
        view, features = layer.view, len(layer.bias)
        channels, high, wide = view.out
        shape = (samples, steps, features)
        spikes = torch.empty(shape, dtype=torch.uint8, device=self.device)
        state_shape = shape if want.states else (0, 0, 0)
        u = torch.empty(state_shape, dtype=torch.int32, device=self.device)
        v = torch.empty_like(u)
        counts = np.zeros((samples, steps), dtype=np.int64)
        peak = 0
        on_cpu = self.device == "cpu"
        per_step = samples * features * layer.weight.element_size()
        block = max(1, (SUM_BYTES * threads if on_cpu else DEVICE_SUM_BYTES) // per_step)
        for start in range(0, steps, block):
            now = slice(start, start + block)
            sums = self._sums(layer, arriving[:, now], threads)
            sums = sums.reshape(samples, -1, features)
            low, top = torch.aminmax(sums)
            peak = max(peak, -int(low), int(top))
            into = (spikes[:, now], u[:, now], v[:, now])
            if self.compiled:
                counts[:, now] = _neurons_compiled(layer, sums, state, into, threads)
            else:
                counts[:, now] = _neurons_by_torch(layer, sums, state, into)
        images = (samples, steps, high, wide, channels)

        def in_order(array: Tensor) -> Array:
            features_first = array.reshape(images).permute(0, 1, 4, 2, 3)
            return features_first.cpu().numpy().reshape(samples, steps, *view.layer.output_shape)

        result = LayerResult(counts, peak * view.unit)
        if want.spikes:
            result.spikes = in_order(spikes)
        if want.states:
            result.u, result.v = in_order(u), in_order(v)
        return result, spikes.reshape(images)

    def _sums(self, layer: TorchLayer, arriving: Tensor, threads: int) -> Tensor:
        """Turn (samples, timesteps, H, W, C) into (frames, H, W, C) sums, divided by the unit."""
        view = layer.view
        frames = arriving.reshape(-1, *arriving.shape[2:])
        if view.pooled:
            # Counts of 2x2 pixels; an odd last row or column is filled up with silence.
            _, high, wide, _ = frames.shape
            frames = F.pad(frames, (0, 0, 0, wide % 2, 0, high % 2))
            rows = frames[:, ::2] + frames[:, 1::2]
            frames = rows[:, :, ::2] + rows[:, :, 1::2]
        if view.dense:
            flat = frames.reshape(len(frames), -1)
            if layer.rows is not None and np.count_nonzero(flat) < ROWS_BELOW * flat.numel():
                return _sums_of_rows(layer.rows, flat, threads)
            return flat.to(layer.weight.dtype) @ layer.weight.T
        image = frames.to(layer.weight.dtype).permute(0, 3, 1, 2)
        channels, high, wide = view.out
        if self.device == "cpu":
            padding = view.padding
            axes = zip(padding, view.kernel, view.dilation, strict=True)
            # oneDNN of torch 2.3 dies of a signal where a window sees nothing but padding.
            if any(zeros > step * (taps - 1) for zeros, taps, step in axes):
                image = F.pad(image, (padding[1], padding[1], padding[0], padding[0]))
                padding = (0, 0)
            sums = F.conv2d(image, layer.weight, None, view.stride, padding, view.dilation)
        else:
            columns = F.unfold(image, view.kernel, view.dilation, view.padding, view.stride)
            product = layer.weight.reshape(channels, -1) @ columns
            reach = view.dilation[1] * (view.kernel[1] - 1) + 1
            padded = image.shape[3] + 2 * view.padding[1]
            across = (padded - reach) // view.stride[1] + 1
            sums = product.reshape(len(image), channels, -1, across)
        # An odd last row or column, filled up for pooling, may give outputs that the layer does not
        # have.
        return sums[:, :, :high, :wide].permute(0, 2, 3, 1)


def _neurons_compiled(
    layer: TorchLayer,
    sums: Tensor,
    state: list[Tensor],
    into: tuple[Tensor, ...],
    threads: int,
) -> Int64:
    """Run all steps of a block, features divided among threads.

    Args:
        layer: whose neurons run.
        sums: (samples, timesteps, features) floats that hold integers.
        state: u and v, moved on.
        into: spikes, and u and v or arrays without elements, all (samples, timesteps, features);
            written.
        threads: at most so many.

    Returns:
        (samples, timesteps) spikes.
    """
    arriving = sums.contiguous().numpy()
    samples, steps, features = arriving.shape
    u, v = (tensor.numpy() for tensor in state)
    spikes, currents, voltages = (tensor.numpy() for tensor in into)
    no_peaks = np.zeros((0, 0, 0), dtype=np.float32)

    def part(first: int, last: int) -> Int64:
        # Each thread counts for itself: they share samples and steps.
        counts = np.zeros((samples, steps), dtype=np.int64)
        advance(
            arriving,
            64.0 * layer.view.unit,
            layer.bias,
            *layer.registers,
            u,
            v,
            spikes,
            counts,
            no_peaks,
            currents,
            voltages,
            0,
            steps,
            first,
            last,
        )
        return counts

    return np.sum(_shared(part, features, threads), axis=0)


def _neurons_by_torch(
    layer: TorchLayer,
    sums: Tensor,
    state: list[Tensor],
    into: tuple[Tensor, ...],
) -> Int64:
    """Do the same as `_neurons_compiled` with `torch_step`."""
    bias = torch.tensor(layer.bias, device=sums.device)
    registers = [torch.tensor(register, device=sums.device) for register in layer.registers]
    spikes, currents, voltages = into
    u, v = state
    for t in range(sums.shape[1]):
        arriving = sums[:, t].double() * (64 * layer.view.unit)
        u, peak, fired = torch_step(u, v, arriving, bias, *registers)
        v = peak.masked_fill(fired, 0)
        spikes[:, t] = fired
        if currents.numel():
            currents[:, t], voltages[:, t] = u, v
    state[:] = u, v
    return spikes.sum(dim=2, dtype=torch.int64).cpu().numpy()


def torch_step(
    u: Tensor,
    v: Tensor,
    arriving: Tensor,
    bias: Tensor,
    keep_u: Tensor | float,
    keep_v: Tensor | float,
    threshold: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do one step of `arithmetic.step` in float64, which holds every product of a state and a
    decay.

    Args:
        u, v: float64 of one shape.
        arriving: sums in units of u, float64.
        bias: in units of v, broadcast against v.
        keep_u, keep_v: 1 - decay / 4096, float64 of every feature or one for all.
        threshold: in units of v, likewise.

    Returns:
        (u, peak, fired): u after the step, v before its reset, and where it passed the threshold.
    """
    u = torch.trunc(u * keep_u) + arriving
    u = torch.where(u > STATE_MAX, u - 2 * STATE_MAX, u)
    u = torch.where(u <= -STATE_MAX, u + 2 * STATE_MAX, u)
    peak = torch.trunc(v * keep_v) + u + bias
    peak = peak.clamp(1 - STATE_MAX, STATE_MAX - 1)
    return u, peak, peak > threshold


def _sums_of_rows(rows: Array, frames: Tensor, threads: int) -> Tensor:
    """Multiply (frames, inputs) counts by (inputs, outputs) weights, event by event."""
    x = frames.contiguous().numpy()
    sums = np.empty((len(x), rows.shape[1]), dtype=rows.dtype)
    _shared(lambda first, last: add_rows(x, rows, sums, first, last), len(x), threads)
    return torch.from_numpy(sums)


def _shared(
    part: Callable[[int, int], Any],
    n: int,
    threads: int,
) -> list[Any]:
    """Call `part` on ranges first..last that cover n, by several threads where that pays."""
    # Below 32 items a thread costs more than it does.
    threads = min(threads, max(1, n // 32))
    if threads == 1:
        return [part(0, n)]
    bounds = np.linspace(0, n, threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(part, bounds[:-1], bounds[1:]))


@contextmanager
def _exact_floats(device: str, threads: int) -> Iterator[None]:
    """Switch off what rounds: TF32, autocast to 16 bits, and NNPACK's transforms in convolutions.

    Args:
        device: torch's name of it.
        threads: torch's own while it lasts.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    before = torch.get_num_threads()
    # Setting them takes milliseconds, even to as many as there were.
    if threads != before:
        torch.set_num_threads(threads)
    try:
        with (
            torch.autocast(torch.device(device).type, enabled=False),
            torch.backends.nnpack.flags(enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if threads != before:
            torch.set_num_threads(before)
