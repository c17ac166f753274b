"""What each stage recorded, in one shape, and the state of a single neuron in it.

Two stages side by side: counts of what differs, the first divergence, and a raster to look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.verification.result import Comparison, FirstDivergence, Raster, Side
from knarr.export import ExportError, Trace, step_nir
from knarr.export.graph.topology import inline, topology
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
        return Side(
            value, u, v, self._before_reset(self.graph, layer, node, at) if fired else v, threshold
        )

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
            return (
                None if x is None else v + self.dt_s / of("tau") * (of("r") * x + of("v_leak") - v)
            )
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


SHOWN_NEURONS = 30


class Comparisons:
    """Collects one row for every quantity of every layer of every pair."""

    def __init__(self) -> None:
        self.rows: list[Comparison] = []
        self._spikes: dict[tuple[str, str], tuple[Array, Array]] = {}

    def add(
        self,
        left: View,
        right: View,
        layers: tuple[str, str],
        what: Literal["spikes", "v", "u"],
        sign: Literal["=", "~"],
    ) -> None:
        """Compare one quantity of one layer, exactly.

        Args:
            left, right: the stages.
            layers: what each of them calls the layer; the right one's name is kept.
            what: which of their arrays.
            sign: "=" where they must be equal, "~" where the difference is measured.

        Raises:
            DeployError: the arrays have different shapes, so that equality would not mean anything.
        """
        a, b = getattr(left, what)[layers[0]], getattr(right, what)[layers[1]]
        pair = f"{left.name} {sign} {right.name}"
        features = a.shape[2:]
        if sign == "~" and a.shape[:2] == b.shape[:2] and a.size == b.size:
            a = a.reshape(
                b.shape
            )  # the chip has rows where a graph has one, and vectors where it has maps
        if a.shape != b.shape:
            raise DeployError(
                f"layer '{layers[1]}': {pair}: shapes {a.shape} and {b.shape}; they are not the same network"
            )
        differs = a != b
        count = int(differs.sum())
        self.rows.append(
            Comparison(
                pair=pair,
                layer=layers[1],
                what=what,
                compared=int(a.size),
                mismatches=count,
                active=(int(np.count_nonzero(a)), int(np.count_nonzero(b))),
                by_step=tuple(int(n) for n in differs.sum(axis=(0, *range(2, differs.ndim)))),
                first=_first(left, right, layers, differs, a, b, features) if count else None,
            )
        )
        if what == "spikes":
            self._spikes[pair, layers[1]] = a, b

    def raster(self, shown: int = SHOWN_NEURONS) -> Raster | None:
        """The sample with the first divergence, of a pair that had to be equal before one that is measured.

        Args:
            shown: neurons at most: those that part first, then the busiest.

        Returns:
            None where no layer fires.
        """
        candidates = [row for row in self.rows if (row.pair, row.layer) in self._spikes]
        if not candidates:
            return None
        row = min(candidates, key=_urgency)
        return _raster(row, *self._spikes[row.pair, row.layer], shown)


def _urgency(row: Comparison) -> tuple[bool, bool, int]:
    """Diverging rows first, of these the pairs that must be equal, of these the earliest; else what is measured."""
    if row.first is None:
        return True, row.required, 0
    return False, not row.required, row.first.timestep


def _first(
    left: View,
    right: View,
    layers: tuple[str, str],
    differs: Array,
    a: Array,
    b: Array,
    left_features: tuple[int, ...],
) -> FirstDivergence:
    timestep = int(differs.any(axis=(0, *range(2, differs.ndim))).argmax())
    step = differs[:, timestep]
    sample, *index = (int(i) for i in np.unravel_index(int(step.argmax()), step.shape))
    at = (sample, timestep, *index)
    flat = int(np.ravel_multi_index(index, b.shape[2:]))
    left_at = (sample, timestep, *(int(i) for i in np.unravel_index(flat, left_features)))
    return FirstDivergence(
        sample=sample,
        timestep=timestep,
        index=tuple(index),
        left=left.side(layers[0], a[at].item(), left_at),
        right=right.side(layers[1], b[at].item(), at),
    )


def _raster(row: Comparison, a: Array, b: Array, shown: int) -> Raster:
    sample = row.first.sample if row.first else 0
    left, right = (side[sample].reshape(side.shape[1], -1) != 0 for side in (a, b))
    differs = left != right
    parted = np.where(differs.any(axis=0), differs.argmax(axis=0), len(left))
    first = None
    if row.first is not None:
        first = row.first.timestep, int(np.ravel_multi_index(row.first.index, a.shape[2:]))
        parted[first[1]] = -1  # also where only its voltage differs
    busiest = -(left.sum(axis=0) + right.sum(axis=0))
    neurons = np.sort(np.lexsort((busiest, parted))[:shown])
    return Raster(
        pair=row.pair,
        layer=row.layer,
        sample=sample,
        neurons=tuple(int(n) for n in neurons),
        left=_steps(left[:, neurons]),
        right=_steps(right[:, neurons]),
        first=first,
    )


def _steps(fired: Array) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(t) for t in np.flatnonzero(neuron)) for neuron in fired.T)
