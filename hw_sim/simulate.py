"""`simulate`: check what comes in, choose an engine, hand back a Recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import ChipNetwork
from knarr.hw_sim.recording import Recording
from knarr.hw_sim.reference import run_layer

RECORDABLE = ("output", "spikes", "v")


def check_inputs(network: ChipNetwork, inputs: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Inputs as int64, or an error that says what does not fit.

    Args:
        network: what will be fed.
        inputs: (samples, timesteps, *network.input.shape) integers or booleans within the input coding's range.

    Raises:
        ChipError: wrong dtype, shape or range. Floats are never truncated, counts never clipped to spikes.
    """
    array = np.asarray(inputs)
    if array.dtype != np.bool_ and not np.issubdtype(array.dtype, np.integer):
        raise ChipError(
            f"inputs: dtype {array.dtype}, the chip takes integers; encode floats as spikes or integers first"
        )
    shape = network.input.shape
    if array.ndim != 2 + len(shape) or array.shape[2:] != shape:
        raise ChipError(
            f"inputs: shape {array.shape}, needs (samples, timesteps, {', '.join(map(str, shape))})"
        )
    if 0 in array.shape:
        raise ChipError(
            f"inputs: shape {array.shape} holds nothing; give at least one sample and one time step"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= 2**network.input.bits:
        raise ChipError(
            f"inputs: values {low}..{high}, {network.input.bits}-bit input takes 0..{2**network.input.bits - 1}; "
            "clip counts to spikes or lower the graph with more input_bits"
        )
    return array.astype(np.int64)


def simulate(
    network: ChipNetwork,
    inputs: npt.ArrayLike,
    *,
    timesteps: int | None = None,
    engine: Literal["auto", "reference"] = "auto",
    record: Sequence[str] = ("output",),
    reset: bool = True,
    threads: int | None = None,
) -> Recording:
    """Run a chip network on inputs, exactly as Lava's fixed_pt model does.

    Args:
        network: what to run.
        inputs: (samples, timesteps, *features) integers, 0/1 for binary input, 0..2**bits-1 for graded input.
        timesteps: must equal the inputs' time axis when given.
        engine: "reference" or "auto" (the fastest available that is exact; for now the reference).
        record: any of "output", "spikes" (every layer), "v" (every layer's voltage).
        reset: u = v = 0 before each sample; False runs the samples one after the other in time.
        threads: the reference engine runs on one thread; any other number is refused.

    Returns:
        Recording with `output` and what `record` names.

    Raises:
        ChipError: inputs that do not fit, or an unknown engine or recordable.
    """
    unknown = [name for name in record if name not in RECORDABLE]
    if unknown:
        raise ChipError(f"record: unknown {unknown}, choose from {list(RECORDABLE)}")
    if engine not in ("auto", "reference"):
        raise ChipError(f"engine: '{engine}' does not exist, choose auto or reference")
    if threads not in (None, 1):
        raise ChipError(f"threads: {threads} asked for, the reference engine has 1; leave threads out")
    events: npt.NDArray[np.integer[Any]] = check_inputs(network, inputs)
    if timesteps is not None and timesteps != events.shape[1]:
        raise ChipError(f"timesteps: {timesteps} asked for, the inputs have {events.shape[1]}")
    spikes_by_layer, voltage_by_layer, counts, peaks = {}, {}, {}, {}
    voltages: npt.NDArray[np.int64]
    for layer in network.layers:
        fired, voltages, peaks[layer.name] = run_layer(layer, events, reset=reset)
        events = spikes = fired.astype(np.uint8)
        if "spikes" in record:
            spikes_by_layer[layer.name] = spikes
            counts[layer.name] = events.sum(axis=tuple(range(2, events.ndim)), dtype=np.int64)
        if "v" in record:
            voltage_by_layer[layer.name] = voltages
    last = voltages if network.readout.kind == "voltage" else events.astype(np.int64)
    return Recording(
        output=last.reshape(*last.shape[:2], -1),
        spikes=spikes_by_layer,
        v=voltage_by_layer,
        event_counts=counts,
        peak_sum=peaks,
        engine="reference",
    )
