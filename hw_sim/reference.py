"""The reference engine: numpy int64, layer by layer, written to be read. Every faster engine must equal it.

All layers act in the same time step: layer l sees in step t what layer l-1 sent in step t. Lava needs one more step
per layer, which is only a shift when state is reset layer by layer (`knarr.deploy.run_on_lava` removes it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from knarr.hw_sim.arithmetic import Int64, step, wrap_synapse
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.layers import Conv, Dense, Layer, Neuron, Recurrent


def synaptic_sum(layer: Layer, events: npt.NDArray[np.integer[Any]]) -> Int64:
    """What a layer's synapses deliver for frames of events.

    Args:
        layer: Dense (its delays aside), Recurrent (what arrives alone) or Conv.
        events: (frames, *input features) integers.

    Returns:
        (frames, *output features) int64, exact.
    """
    frames = events.shape[0]
    if isinstance(layer, Conv):
        return wrap_synapse(_convolve(layer, events))
    return _exact_matmul(events.reshape(frames, -1), layer.weight_int.T, layer.name)


def _convolve(layer: Conv, events: npt.NDArray[np.integer[Any]]) -> Int64:
    (pad_y, pad_x), (kernel_y, kernel_x) = layer.padding, layer.weight_int.shape[2:]
    padded = np.pad(events, ((0, 0), (0, 0), (pad_y, pad_y), (pad_x, pad_x)))
    reach = (layer.dilation[0] * (kernel_y - 1) + 1, layer.dilation[1] * (kernel_x - 1) + 1)
    # numpy 1.26's stub forgets that several axes may be named.
    windows: npt.NDArray[Any] = sliding_window_view(  # type: ignore[call-overload]
        padded, reach, axis=(2, 3)
    )  # (frames, C, H_out*stride, W_out*stride, reach, reach)
    windows = windows[
        :, :, :: layer.stride[0], :: layer.stride[1], :: layer.dilation[0], :: layer.dilation[1]
    ]
    frames, (outputs, height, width) = events.shape[0], layer.output_shape
    sums = np.empty((frames, outputs, height, width), dtype=np.int64)
    in_group, out_group = layer.input_shape[0] // layer.groups, outputs // layer.groups
    for group in range(layer.groups):
        taps = windows[:, group * in_group : (group + 1) * in_group].transpose(0, 2, 3, 1, 4, 5)
        kernel = layer.weight_int[group * out_group : (group + 1) * out_group].reshape(out_group, -1)
        product = _exact_matmul(taps.reshape(frames * height * width, -1), kernel.T, layer.name)
        block = product.reshape(frames, height, width, out_group).transpose(0, 3, 1, 2)
        sums[:, group * out_group : (group + 1) * out_group] = block
    return sums


def _exact_matmul(x: npt.NDArray[np.integer[Any]], weight: npt.NDArray[np.integer[Any]], name: str) -> Int64:
    """x @ weight in float64, where integers are exact below 2**53; numpy's int64 product is thirty times slower."""
    largest = int(np.abs(x).max(initial=0)) * int(np.abs(weight.astype(np.int64)).sum(axis=0).max(initial=0))
    if largest >= 2**53:
        raise ChipError(
            f"layer '{name}': sums up to {largest} are not exact; the chip's accumulator ends at 2**15"
        )
    return np.asarray(x.astype(np.float64) @ weight.astype(np.float64)).astype(np.int64)


def delayed_sums(layer: Dense, events: npt.NDArray[np.integer[Any]]) -> Int64:
    """What a Dense layer with delays receives: a[t] = sum over synapses of W * s[t - delay], silence before the first step.

    Args:
        layer: with `delay_int`.
        events: (timesteps, features) integers.

    Returns:
        (timesteps, out) int64.
    """
    assert layer.delay_int is not None  # the caller looked
    events = events.reshape(len(events), -1)
    sums = np.zeros((len(events), len(layer.weight_int)), dtype=np.int64)
    for delay in np.unique(layer.delay_int[layer.delay_int < len(events)]):
        weight = np.where(layer.delay_int == delay, layer.weight_int, 0)
        sums[delay:] += _exact_matmul(events[: len(events) - delay], weight.T, layer.name)
    return sums


def run_neurons(
    neuron: Neuron,
    sums: Int64,
    bias: Int64 | int,
    *,
    feedback: npt.NDArray[np.int32] | None = None,
    name: str = "",
) -> tuple[npt.NDArray[np.bool_], Int64, Int64, int]:
    """All steps of one sample, from rest.

    Args:
        neuron: the registers.
        sums: (timesteps, *features) what the synapses deliver.
        bias: bias mantissas, broadcast against one step, or (timesteps, *features) of their own.
        feedback: (features, features) weights of the layer's own spikes of the step before, or None.
        name: for messages.

    Returns:
        (spikes, u, v, peak): (timesteps, *features) each, v after reset; peak is the largest |sum|, feedback included.
    """
    spikes = np.empty(sums.shape, dtype=np.bool_)
    currents, voltages = np.empty(sums.shape, dtype=np.int64), np.empty(sums.shape, dtype=np.int64)
    u, v = np.zeros(sums.shape[1:], dtype=np.int64), np.zeros(sums.shape[1:], dtype=np.int64)
    per_step = isinstance(bias, np.ndarray) and bias.ndim == sums.ndim
    back = np.zeros(sums.shape[1:], dtype=np.int64)
    peak = 0
    for t in range(len(sums)):
        arriving = sums[t] + back
        peak = max(peak, int(np.abs(arriving).max(initial=0)))
        u, v, spike = step(u, v, arriving, bias[t] if per_step else bias, neuron)  # type: ignore[index]
        spikes[t], currents[t], voltages[t] = spike, u, v
        if feedback is not None:
            back = _exact_matmul(spike[None].astype(np.int64), feedback.T, name)[0]
    return spikes, currents, voltages, peak


def run_layer(
    layer: Layer, events: npt.NDArray[np.integer[Any]], *, reset: bool
) -> tuple[npt.NDArray[np.bool_], Int64, Int64, int]:
    """All time steps of one layer.

    Args:
        layer: Dense, Recurrent or Conv.
        events: (samples, timesteps, *input features) integers.
        reset: every sample starts at rest: u = v = 0, nothing under way in delays and loops; otherwise samples follow
            each other in time.

    Returns:
        (spikes, u, v, peak): (samples, timesteps, *output features) each, v after the reset of neurons that fired; peak
        is the largest |synaptic sum| that occurred.
    """
    samples, timesteps = events.shape[:2]
    shape = layer.output_shape
    runs = events if reset else events.reshape(1, samples * timesteps, *events.shape[2:])
    bias: Int64 | int = 0
    if layer.bias_int is not None:
        bias = layer.bias_int.astype(np.int64).reshape(-1, *[1] * (len(shape) - 1))
    feedback = layer.recurrent_int if isinstance(layer, Recurrent) else None
    parts = []
    for run in runs:
        delayed = isinstance(layer, Dense) and layer.delay_int is not None
        sums = delayed_sums(layer, run) if delayed else synaptic_sum(layer, run)  # type: ignore[arg-type]
        parts.append(run_neurons(layer.neuron, sums, bias, feedback=feedback, name=layer.name))
    spikes, u, v = (
        np.stack([part[i] for part in parts]).reshape(samples, timesteps, *shape) for i in range(3)
    )
    return spikes, u, v, max(part[3] for part in parts)
