"""The reference engine: numpy int64, layer by layer, written to be read. Every faster engine must
equal it.

All layers act in the same time step: layer l sees in step t what layer l-1 sent in step t. Lava
needs one more step per layer, which is only a shift when state is reset layer by layer
(`knarr.deploy.run_on_lava` removes it).
"""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from knarr.hw_sim.arithmetic import step, wrap_synapse
from knarr.hw_sim.arrays import Array, Int64, IntArray
from knarr.hw_sim.engines.base import LayerResult, LayerState, RunRequest
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import Conv, Dense, Layer, Neuron, Recurrent

Spikes = npt.NDArray[np.bool_]
WINDOW_BYTES = 2**26
"""Bytes of a convolution's windows that are laid out at once."""


def synaptic_sum(layer: Layer, events: IntArray) -> Int64:
    """Compute what a layer's synapses deliver for frames of events.

    Args:
        layer: Dense (its delays aside), Recurrent (what arrives alone) or Conv.
        events: (frames, *input features) integers.

    Returns:
        (frames, *output features) int64, exact.
    """
    frames = events.shape[0]
    if isinstance(layer, Conv):
        positions = prod(layer.output_shape[1:])
        per_frame = 8 * positions * prod(layer.weight_int.shape[1:])
        at_once = max(1, WINDOW_BYTES // per_frame)
        parts = [_convolve(layer, events[at : at + at_once]) for at in range(0, frames, at_once)]
        return wrap_synapse(np.concatenate(parts))
    return _exact_matmul(events.reshape(frames, -1), layer.weight_int.T, layer.name)


def _convolve(layer: Conv, events: IntArray) -> Int64:
    pad_y, pad_x = layer.padding
    kernel_y, kernel_x = layer.weight_int.shape[2:]
    stride_y, stride_x = layer.stride
    dilation_y, dilation_x = layer.dilation
    border = ((0, 0), (0, 0), (pad_y, pad_y), (pad_x, pad_x))
    padded = np.pad(events, border)
    reach = (dilation_y * (kernel_y - 1) + 1, dilation_x * (kernel_x - 1) + 1)
    # numpy 1.26's stub forgets that several axes may be named.
    windows: Array = sliding_window_view(padded, reach, axis=(2, 3))
    # (frames, C, height, width, kernel height, kernel width) of every position and, in it, every
    # tap.
    windows = windows[:, :, ::stride_y, ::stride_x, ::dilation_y, ::dilation_x]
    frames, (outputs, height, width) = events.shape[0], layer.output_shape
    sums = np.empty((frames, outputs, height, width), dtype=np.int64)
    in_group = layer.input_shape[0] // layer.groups
    out_group = outputs // layer.groups
    for group in range(layer.groups):
        arriving = slice(group * in_group, (group + 1) * in_group)
        leaving = slice(group * out_group, (group + 1) * out_group)
        # Taps in the order of the kernel's axes, so that both flatten alike.
        taps = windows[:, arriving].transpose(0, 2, 3, 1, 4, 5)
        kernel = layer.weight_int[leaving].reshape(out_group, -1)
        rows = taps.reshape(frames * height * width, -1)
        product = _exact_matmul(rows, kernel.T, layer.name)
        block = product.reshape(frames, height, width, out_group)
        sums[:, leaving] = block.transpose(0, 3, 1, 2)
    return sums


def _exact_matmul(x: IntArray, weight: IntArray, name: str) -> Int64:
    """Multiply in float64, where integers are exact below 2**53; numpy's int64 product is thirty
    times slower.
    """
    # No partial sum passes the largest input times the heaviest column, whatever the order of
    # summation.
    magnitudes = np.abs(weight.astype(np.int64))
    heaviest = int(magnitudes.sum(axis=0).max(initial=0))
    largest = int(np.abs(x).max(initial=0)) * heaviest
    if largest >= 2**53:
        raise ChipError(
            f"layer '{name}': sums up to {largest} are not exact; the chip's accumulator ends at 2**15"
        )
    return np.asarray(x.astype(np.float64) @ weight.astype(np.float64)).astype(np.int64)


def delayed_sums(layer: Dense, events: IntArray) -> Int64:
    """Compute what a Dense layer with delays receives: a[t] = sum over synapses of W * s[t -
    delay].

    Before the first step there was silence.

    Args:
        layer: with `delay_int`.
        events: (samples, timesteps, features) integers.

    Returns:
        (samples, timesteps, out) int64.
    """
    assert layer.delay_int is not None  # the caller looked
    samples, steps, features = events.shape
    sums = np.zeros((samples, steps, len(layer.weight_int)), dtype=np.int64)
    # One product per delay that occurs; longer ones than the run deliver nothing within it.
    for delay in np.unique(layer.delay_int[layer.delay_int < steps]):
        weight = np.where(layer.delay_int == delay, layer.weight_int, 0)
        sent = events[:, : steps - delay]
        arriving = _exact_matmul(sent.reshape(-1, features), weight.T, layer.name)
        sums[:, delay:] += arriving.reshape(samples, steps - delay, -1)
    return sums


def at_rest(layer: Layer, samples: int) -> LayerState:
    """Return a state without current or voltage, and with nothing under way."""
    zeros = np.zeros((samples, *layer.output_shape), dtype=np.int64)
    delayed = isinstance(layer, Dense) and layer.delay_int is not None
    longest = int(layer.delay_int.max()) if delayed else 0  # type: ignore[union-attr]  # Dense then
    features = layer.in_features if delayed else 0  # type: ignore[union-attr]  # Dense then
    sent = np.zeros((samples, longest, features), dtype=np.uint8)
    loop = len(layer.recurrent_int) if isinstance(layer, Recurrent) else 0
    return LayerState(zeros, zeros, np.zeros((samples, loop), dtype=np.uint8), sent)


def run_neurons(
    neuron: Neuron,
    sums: Int64,
    bias: Int64 | int,
    state: LayerState,
    recurrent: Recurrent | None = None,
) -> tuple[Spikes, Int64, Int64, int]:
    """Run all steps of neurons; `state` is moved on.

    Args:
        neuron: the registers.
        sums: (samples, timesteps, *features) what the synapses deliver.
        bias: bias mantissas, broadcast against one step, or (samples, timesteps, *features) of
            their own.
        state: before the first step, then after the last.
        recurrent: layer whose own spikes of the step before arrive too, or None.

    Returns:
        (spikes, u, v, peak): (samples, timesteps, *features) each, v after reset; peak is the
            largest |sum|, feedback
        included.
    """
    spikes = np.empty(sums.shape, dtype=np.bool_)
    currents = np.empty(sums.shape, dtype=np.int64)
    voltages = np.empty(sums.shape, dtype=np.int64)
    per_step = isinstance(bias, np.ndarray) and bias.ndim == sums.ndim
    peak = 0
    for t in range(sums.shape[1]):
        arriving = sums[:, t]
        if recurrent is not None:
            # Delivered one step later: a spike does not reach its own step.
            fed_back = _exact_matmul(state.fired, recurrent.recurrent_int.T, recurrent.name)
            arriving = arriving + fed_back
        peak = max(peak, int(np.abs(arriving).max(initial=0)))
        now = bias[:, t] if per_step else bias  # type: ignore[index]  # an array where it has steps
        state.u, state.v, spike = step(state.u, state.v, arriving, now, neuron)
        spikes[:, t] = spike
        currents[:, t] = state.u
        voltages[:, t] = state.v
        if recurrent is not None:
            state.fired = spike.view(np.uint8)
    return spikes, currents, voltages, peak


def run_layer(
    layer: Layer, events: IntArray, state: LayerState
) -> tuple[Spikes, Int64, Int64, int]:
    """Run all time steps of one layer; `state` is moved on.

    Args:
        layer: Dense, Recurrent or Conv.
        events: (samples, timesteps, *input features) integers.
        state: `at_rest` before the first step of samples, what it became otherwise.

    Returns:
        (spikes, u, v, peak): (samples, timesteps, *output features) each, v after the reset of
            neurons that fired; peak
        is the largest |synaptic sum| that occurred.
    """
    samples, timesteps = events.shape[:2]
    shape = layer.output_shape
    bias: Int64 | int = 0
    if layer.bias_int is not None:
        # One bias per channel, the same at every pixel.
        pixels = [1] * (len(shape) - 1)
        bias = layer.bias_int.astype(np.int64).reshape(-1, *pixels)
    if isinstance(layer, Dense) and layer.delay_int is not None:
        # Events of the block before that are still under way come first, and leave with it.
        before = state.sent.shape[1]
        arriving = events.reshape(samples, timesteps, -1)
        flow = np.concatenate([state.sent, arriving], axis=1)
        state.sent = flow[:, flow.shape[1] - before :]
        sums = delayed_sums(layer, flow)[:, before:]
    else:
        sums = synaptic_sum(layer, events.reshape(-1, *events.shape[2:]))
    recurrent = layer if isinstance(layer, Recurrent) else None
    return run_neurons(
        layer.neuron, sums.reshape(samples, timesteps, *shape), bias, state, recurrent
    )


class ReferenceEngine:
    """The oracle as an engine: every layer, no conditions."""

    name = "reference"
    description = "in numpy"

    def lay_out(
        self,
        layer: Layer,
        entering: tuple[int, ...],
        bits: int,
        signed: bool = False,
        large: bool = False,
    ) -> Layer:
        """Return the layer as it is."""
        return layer

    def bytes_per_step(self, laid_out: Layer) -> int:
        """Estimate sums, u and v and what numpy makes on the way, at 8 bytes."""
        return 64 * prod(laid_out.output_shape)

    def run(self, request: RunRequest) -> list[LayerResult]:
        """Run consecutive layers on a block, see `Engine.run`."""
        results = []
        events = request.events
        for i, (layer, want) in enumerate(zip(request.chain, request.wanted, strict=True)):
            if request.states[i] is None:
                request.states[i] = at_rest(layer, len(events))
            result = layer_result(*run_layer(layer, events, request.states[i]))
            assert result.spikes is not None  # the reference always gives them
            events = result.spikes
            # A block is sized for what is wanted: the rest is let go at once.
            if not want.states:
                result.u = result.v = None
            results.append(result)
        return results

    def drive(self, neuron: Neuron, bias: IntArray, state: LayerState) -> LayerResult:
        """Run neurons without synapses.

        Args:
            neuron: the registers.
            bias: (samples, timesteps, *features) mantissas.
            state: moved on.
        """
        wide = bias.astype(np.int64)
        return layer_result(*run_neurons(neuron, np.zeros_like(wide), wide, state))

    def read_state(self, laid_out: Layer, state: LayerState) -> LayerState:
        """Return the state as it is, see `Engine.read_state`."""
        return state

    def write_state(self, laid_out: Layer, state: LayerState) -> LayerState:
        """Return the state as it is, see `Engine.write_state`."""
        return state


def layer_result(fired: Spikes, u: Int64, v: Int64, peak: int) -> LayerResult:
    """Return what the reference's neurons did, spikes counted."""
    spikes = fired.view(np.uint8)
    features = tuple(range(2, spikes.ndim))
    counts = spikes.sum(axis=features, dtype=np.int64)
    return LayerResult(counts, peak, spikes, u, v)
