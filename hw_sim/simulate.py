"""`simulate`: check what comes in, choose an engine, hand back a Recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.coding import with_height
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import ChipNetwork, InputCoding, Neuron
from knarr.hw_sim.recording import Recording
from knarr.hw_sim.reference import run_layer, run_neurons

RECORDABLE = ("output", "spikes", "v", "u")
INPUT_LAYER = "input"
"""Name under which the spikes and voltages of an input layer with neurons are recorded."""
MAX_BIAS = 2**15 - 1
"""Lava holds a bias mantissa in int16 and wraps what is larger."""


def check_inputs(
    coding: InputCoding, inputs: npt.ArrayLike, timesteps: int | None = None
) -> npt.NDArray[np.int64]:
    """Inputs as int64, or an error that says what does not fit.

    Args:
        coding: of the network's input.
        inputs: (samples, timesteps, *coding.shape) integers or booleans within the input coding's range; (channels,
            length) signals may leave out the height of 1. Where the input layer has neurons: their bias mantissas, and
            without a time axis the same ones at every step.
        timesteps: how many steps; needed without a time axis, and must equal it otherwise.

    Raises:
        ChipError: wrong dtype, shape, range or number of steps. Floats are never truncated, counts never clipped to spikes.
    """
    array = np.asarray(inputs)
    if array.dtype != np.bool_ and not np.issubdtype(array.dtype, np.integer):
        raise ChipError(
            f"inputs: dtype {array.dtype}, the chip takes integers; encode floats as spikes or integers first"
        )
    shape = coding.shape
    driven = coding.neuron is not None
    if not driven and array.ndim == 4:
        array = with_height(shape, array)
    if driven and array.ndim == 1 + len(shape) and array.shape[1:] == shape:
        if timesteps is None or timesteps < 1:
            raise ChipError("inputs: bias without a time axis; say how many timesteps")
        array = np.repeat(array[:, None], timesteps, axis=1)
    if timesteps is not None and array.ndim == 2 + len(shape) and timesteps != array.shape[1]:
        raise ChipError(f"timesteps: {timesteps} asked for, the inputs have {array.shape[1]}")
    if array.ndim != 2 + len(shape) or array.shape[2:] != shape:
        raise ChipError(
            f"inputs: shape {array.shape}, needs (samples, timesteps, {', '.join(map(str, shape))})"
        )
    if 0 in array.shape:
        raise ChipError(
            f"inputs: shape {array.shape} holds nothing; give at least one sample and one time step"
        )
    low, high = int(array.min()), int(array.max())
    if driven:
        if max(-low, high) > MAX_BIAS:
            raise ChipError(f"inputs: bias mantissas {low}..{high}, allowed +-{MAX_BIAS}; scale them down")
        return array.astype(np.int64)
    if low < 0 or high >= 2**coding.bits:
        raise ChipError(
            f"inputs: values {low}..{high}, {coding.bits}-bit input takes 0..{2**coding.bits - 1}; "
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
            Driven by bias: see `check_inputs`.
        timesteps: must equal the inputs' time axis when given; says how many steps where they have none.
        engine: "reference" or "auto" (the fastest available that is exact; for now the reference).
        record: any of "output", "spikes" (every layer), "v" and "u" (every layer's voltage and current).
        reset: each sample starts at rest; False runs the samples one after the other in time.
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
    events: npt.NDArray[np.integer[Any]] = check_inputs(network.input, inputs, timesteps)
    spikes_by_layer: dict[str, npt.NDArray[np.uint8]] = {}
    voltage_by_layer: dict[str, npt.NDArray[np.int64]] = {}
    current_by_layer: dict[str, npt.NDArray[np.int64]] = {}
    counts: dict[str, npt.NDArray[np.int64]] = {}
    peaks: dict[str, int] = {}

    def keep(
        name: str, spikes: npt.NDArray[np.uint8], u: npt.NDArray[np.int64], v: npt.NDArray[np.int64]
    ) -> None:
        if "spikes" in record:
            spikes_by_layer[name] = spikes
            counts[name] = spikes.sum(axis=tuple(range(2, spikes.ndim)), dtype=np.int64)
        if "v" in record:
            voltage_by_layer[name] = v
        if "u" in record:
            current_by_layer[name] = u

    if network.input.neuron is not None:
        fired, u, v = _drive(network.input.neuron, events, reset=reset)
        events = fired.astype(np.uint8)
        keep(INPUT_LAYER, fired.astype(np.uint8), u, v)
    for layer in network.layers:
        fired, u, v, peaks[layer.name] = run_layer(layer, events, reset=reset)
        spikes = fired.astype(np.uint8)
        events = spikes
        keep(layer.name, spikes, u, v)
    last = v if network.readout.kind == "voltage" else events.astype(np.int64)
    return Recording(
        output=last.reshape(*last.shape[:2], -1),
        spikes=spikes_by_layer,
        v=voltage_by_layer,
        u=current_by_layer,
        event_counts=counts,
        peak_sum=peaks,
        engine="reference",
    )


def _drive(
    neuron: Neuron, bias: npt.NDArray[np.integer[Any]], *, reset: bool
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Spikes, u and v of input neurons that (samples, timesteps, *features) bias mantissas drive."""
    runs = bias if reset else bias.reshape(1, -1, *bias.shape[2:])
    parts = [run_neurons(neuron, np.zeros(run.shape, dtype=np.int64), run.astype(np.int64)) for run in runs]
    spikes, u, v = (np.stack([part[i] for part in parts]).reshape(bias.shape) for i in range(3))
    return spikes, u, v
