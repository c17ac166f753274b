"""`simulate`: check what comes in, choose an engine, hand back a Recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.coding import with_height
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.fast import Ran, cores, plans, run_chain
from knarr.hw_sim.fast_layer import FastLayer
from knarr.hw_sim.layers import Layer
from knarr.hw_sim.native import load
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
    engine: Literal["auto", "fast", "reference"] = "auto",
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
        engine: "reference", "fast" (the compiled kernel; layers it does not take run in the reference), or "auto": fast
            where it is built. All give the same integers.
        record: any of "output", "spikes" (every layer), "v" and "u" (every layer's voltage and current). Event counts and
            peak sums are always there.
        reset: each sample starts at rest; False runs the samples one after the other in time.
        threads: samples are divided among; all cores of the process by default. The reference engine has one.

    Returns:
        Recording with `output`, `event_counts`, `peak_sum` and what `record` names.

    Raises:
        ChipError: inputs that do not fit, an unknown engine or recordable, or no kernel where "fast" asks for it.
    """
    unknown = [name for name in record if name not in RECORDABLE]
    if unknown:
        raise ChipError(f"record: unknown {unknown}, choose from {list(RECORDABLE)}")
    if engine not in ("auto", "fast", "reference"):
        raise ChipError(f"engine: '{engine}' does not exist, choose auto, fast or reference")
    if threads is not None and (isinstance(threads, bool) or threads < 1):
        raise ChipError(f"threads: {threads}, needs at least 1")
    kernel = load() if engine != "reference" else "not asked for"
    if isinstance(kernel, str):
        if engine == "fast":
            raise ChipError(f"engine: no compiled kernel, {kernel}; use auto or reference")
        if threads not in (None, 1):
            raise ChipError(f"threads: {threads} asked for, the reference engine has 1; leave threads out")
    events: npt.NDArray[np.integer[Any]] = check_inputs(network.input, inputs, timesteps)
    keep = _Keep(network, tuple(record))
    if network.input.neuron is not None:
        fired, u, v = _drive(network.input.neuron, events, reset=reset)
        events = spikes = fired.astype(np.uint8)
        keep.add(INPUT_LAYER, spikes, u, v)
    planned = {} if isinstance(kernel, str) else dict(enumerate(plans(network)))
    at = 0
    while at < len(network.layers):
        chain: list[FastLayer] = []
        while isinstance(found := planned.get(at + len(chain)), FastLayer):
            chain.append(found)
        ran = None
        if chain and not isinstance(kernel, str):
            bits = network.input.bits if at == 0 else 1
            flow = events if reset else events.reshape(1, -1, *events.shape[2:])
            ran = run_chain(kernel, chain, flow, bits, keep.wanted, threads or cores())
        if ran is None:
            layer = network.layers[at]
            fired, u, v, peak = run_layer(layer, events, reset=reset)
            events = spikes = fired.astype(np.uint8)
            keep.add(layer.name, spikes, u, v, peak)
            at += 1
            continue
        for fast, one in zip(chain, ran, strict=True):
            keep.add_ran(fast.layer.name, one, events.shape[:2])
        at += len(chain)
        if ran[-1].spikes is not None:
            events = ran[-1].spikes.reshape(*events.shape[:2], *chain[-1].layer.output_shape)
    return keep.recording("reference" if isinstance(kernel, str) else "fast")


class _Keep:
    """What is recorded of each layer, as it comes."""

    def __init__(self, network: ChipNetwork, record: tuple[str, ...]) -> None:
        self.network, self.record = network, record
        self.spikes: dict[str, npt.NDArray[np.uint8]] = {}
        self.states: dict[str, dict[str, npt.NDArray[np.int64]]] = {"u": {}, "v": {}}
        self.counts: dict[str, npt.NDArray[np.int64]] = {}
        self.peaks: dict[str, int] = {}
        self.output: npt.NDArray[np.int64] | None = None

    def wanted(self, layer: Layer) -> tuple[bool, bool]:
        """Whether the kernel hands out spikes and states of a layer: those recorded, and what the next engine or the readout needs."""
        layers = self.network.layers
        place = next(i for i, one in enumerate(layers) if one is layer)
        last = place == len(layers) - 1
        hands_on = not last and not isinstance(plans(self.network)[place + 1], FastLayer)
        voltage = last and self.network.readout.kind == "voltage"
        spikes = "spikes" in self.record or hands_on or (last and not voltage)
        return spikes, voltage or "u" in self.record or "v" in self.record

    def add(
        self,
        name: str,
        spikes: npt.NDArray[np.uint8],
        u: npt.NDArray[np.int64],
        v: npt.NDArray[np.int64],
        peak: int | None = None,
    ) -> None:
        if "spikes" in self.record:
            self.spikes[name] = spikes
        for state, values in (("u", u), ("v", v)):
            if state in self.record:
                self.states[state][name] = values
        self.counts[name] = spikes.sum(axis=tuple(range(2, spikes.ndim)), dtype=np.int64)
        if peak is not None:
            self.peaks[name] = peak
        self._last(name, spikes, v)

    def add_ran(self, name: str, ran: Ran, shape: tuple[int, ...]) -> None:
        """Of the kernel; `shape` is (samples, timesteps), which a run without resets lays end to end."""
        if ran.spikes is not None and "spikes" in self.record:
            self.spikes[name] = ran.spikes.reshape(*shape, *ran.spikes.shape[2:])
        for state, values in (("u", ran.u), ("v", ran.v)):
            if state in self.record and values is not None:
                self.states[state][name] = values.reshape(*shape, *values.shape[2:])
        self.counts[name], self.peaks[name] = ran.counts.reshape(shape).astype(np.int64), ran.peak
        spikes = None if ran.spikes is None else ran.spikes.reshape(*shape, *ran.spikes.shape[2:])
        voltage = None if ran.v is None else ran.v.reshape(*shape, *ran.v.shape[2:])
        self._last(name, spikes, voltage)

    def _last(self, name: str, spikes: npt.NDArray[Any] | None, v: npt.NDArray[Any] | None) -> None:
        if name == self.network.layers[-1].name:
            last = v if self.network.readout.kind == "voltage" else spikes
            assert last is not None  # `wanted` asked for it
            self.output = last.astype(np.int64).reshape(*last.shape[:2], -1)

    def recording(self, engine: str) -> Recording:
        assert self.output is not None  # a network has a last layer
        return Recording(
            output=self.output,
            spikes=self.spikes,
            v=self.states["v"],
            u=self.states["u"],
            event_counts=self.counts,
            peak_sum=self.peaks,
            engine=engine,
        )


def _drive(
    neuron: Neuron, bias: npt.NDArray[np.integer[Any]], *, reset: bool
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Spikes, u and v of input neurons that (samples, timesteps, *features) bias mantissas drive."""
    runs = bias if reset else bias.reshape(1, -1, *bias.shape[2:])
    parts = [run_neurons(neuron, np.zeros(run.shape, dtype=np.int64), run.astype(np.int64)) for run in runs]
    spikes, u, v = (np.stack([part[i] for part in parts]).reshape(bias.shape) for i in range(3))
    return spikes, u, v
