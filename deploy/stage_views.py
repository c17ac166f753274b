"""What each stage recorded, in one shape, and the state of a single neuron in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.verification import Side
from knarr.export import ExportError, Trace, step_nir
from knarr.export.topology import inline, topology
from knarr.hw_sim import ChipNetwork, Neuron, Recording
from knarr.hw_sim.arithmetic import STATE_MAX, STATE_SHIFT, decay
from knarr.hw_sim.recording import INPUT_LAYER

Array = npt.NDArray[Any]
At = tuple[int, ...]
"""(sample, time step, *index of the neuron)"""


class View(Protocol):
    """A stage: its name, its arrays (samples, timesteps, *features) by layer, and its neurons."""

    @property
    def name(self) -> str: ...
    @property
    def spikes(self) -> Mapping[str, Array]: ...
    @property
    def v(self) -> Mapping[str, Array]: ...
    @property
    def u(self) -> Mapping[str, Array]: ...

    def side(self, layer: str, value: float, at: At) -> Side: ...


@dataclass(frozen=True, eq=False)
class FloatView:
    """Norse or NIR; layers are the graph's neuron nodes.

    `graph`, `inputs` and `dt_s` are those of NIR's trace: they tell thresholds, and let it step one sample again.
    """

    name: str
    trace: Trace
    graph: nir.NIRGraph | None = None
    inputs: Array = field(default_factory=lambda: np.zeros(0))
    dt_s: float = 0.0
    u: Mapping[str, Array] = field(default_factory=dict)

    @property
    def spikes(self) -> Mapping[str, Array]:
        return self.trace.spikes

    @property
    def v(self) -> Mapping[str, Array]:
        return self.trace.v

    def side(self, layer: str, value: float, at: At) -> Side:
        v, currents = float(self.v[layer][at]), self.trace.i.get(layer)
        u = None if currents is None else float(currents[at])
        fired = layer in self.spikes and bool(self.spikes[layer][at])
        if self.graph is None:
            return Side(value, u, v, None if fired else v)
        node = inline(self.graph)[0][layer]
        threshold = None
        if hasattr(node, "v_threshold"):
            threshold = _of_neuron(node.v_threshold, self.v[layer].shape[2:], at[2:])
        return Side(value, u, v, self._before_reset(self.graph, layer, node, at) if fired else v, threshold)

    def _before_reset(self, graph: nir.NIRGraph, layer: str, node: Any, at: At) -> float | None:
        """Voltage that crossed the threshold, rounded as float64 does; None for nodes that are not looked into."""
        features = self.v[layer].shape[2:]

        def of(field_: str) -> float:
            return _of_neuron(getattr(node, field_), features, at[2:])

        before = (at[0], at[1] - 1, *at[2:])
        if isinstance(node, nir.CubaLIF) and layer in self.trace.i:
            v = float(self.v[layer][before]) if at[1] else of("v_leak")
            arriving = of("r") * float(self.trace.i[layer][at])
            return v + self.dt_s / of("tau_mem") * (of("v_leak") - v + arriving)
        if isinstance(node, nir.LIF):
            x = self._arriving(graph, layer, node, at)
            v = float(self.v[layer][before]) if at[1] else of("v_leak")
            return None if x is None else v + self.dt_s / of("tau") * (of("r") * x + of("v_leak") - v)
        return None

    def _arriving(self, graph: nir.NIRGraph, layer: str, node: nir.LIF, at: At) -> float | None:
        """What the neuron's synapses give in this step: the voltage of a leak that forgets within one step."""
        if layer not in graph.nodes or any(topology(*inline(graph), self.dt_s).looping.values()):
            return None  # inside a nested graph, or in a loop that would carry voltages instead of spikes
        ones = np.ones_like(np.asarray(node.tau, dtype=np.float64))
        probe = nir.LI(tau=self.dt_s * ones, r=ones, v_leak=0 * ones)
        probed = nir.NIRGraph({**graph.nodes, layer: probe}, graph.edges)
        try:
            trace = step_nir(probed, self.inputs[at[0] : at[0] + 1, : at[1] + 1], self.dt_s)
        except ExportError:  # what follows the probe may not take voltages
            return None
        probed_at = (0, *at[1:])
        return float(trace.v[layer][probed_at])


@dataclass(frozen=True, eq=False)
class ChipView:
    """The simulator or Lava; layers are the chip network's. `inputs` are what it was fed."""

    name: str
    recording: Recording
    network: ChipNetwork
    inputs: Array

    @property
    def spikes(self) -> Mapping[str, Array]:
        """Of layers that fire by their nature."""
        never = {layer.name for layer in self.network.layers if not layer.neuron.spikes}
        return {name: spikes for name, spikes in self.recording.spikes.items() if name not in never}

    @property
    def v(self) -> Mapping[str, Array]:
        return self.recording.v

    @property
    def u(self) -> Mapping[str, Array]:
        return self.recording.u

    def side(self, layer: str, value: float, at: At) -> Side:
        neuron, bias = self._neuron(layer, at)
        before = (at[0], at[1] - 1, *at[2:])
        v = np.asarray(self.v[layer][before] if at[1] else 0, dtype=np.int64)
        reached = int(decay(v, neuron.v_decay)) + int(self.u[layer][at]) + (bias << STATE_SHIFT)
        return Side(
            value=value,
            u=int(self.u[layer][at]),
            v=int(self.v[layer][at]),
            v_reached=max(min(reached, STATE_MAX - 1), 1 - STATE_MAX),
            threshold=neuron.vth_int << STATE_SHIFT if neuron.spikes else None,
        )

    def _neuron(self, layer: str, at: At) -> tuple[Neuron, int]:
        """Registers of the layer, and the neuron's bias in this step."""
        if self.network.input.neuron is not None and layer == INPUT_LAYER:
            return self.network.input.neuron, int(self.inputs[at])
        found = next(one for one in self.network.layers if one.name == layer)
        return found.neuron, 0 if found.bias_int is None else int(found.bias_int.reshape(-1)[at[2]])


def _of_neuron(parameter: object, features: tuple[int, ...], index: tuple[int, ...]) -> float:
    return float(np.broadcast_to(np.asarray(parameter, dtype=np.float64), features)[index])
