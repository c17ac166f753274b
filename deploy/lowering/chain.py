"""Read a folded graph as a row of chip layers that still hold floats.

Between two neurons stand, in this order, delays and flattening, one synapse, delays. A neuron
without a synapse gets the identity. A neuron of a dense layer may hear itself, one step later,
directly or through one Linear or Affine.

All neurons are put into one normal form, in which they rest and reset at 0 and fire above 1 (a
readout has no threshold and keeps its volts):

    v[t] = (1 - v_decay/4096) v[t-1] + u[t] + bias
    u[t] = (1 - i_decay/4096) u[t-1] + sum(weight * input)

The change of v to (v - v_reset) / (v_threshold - v_reset) changes no spike. It scales the gain, and
leaves a_mem * (v_leak - v_reset) as a bias, with a_mem = dt/tau_mem. The chip starts at 0 and NIR
at v_leak (IF: at v_reset), so that leak is exact only where the two are equal. Gains are

    LIF, LI  r*dt/tau     CubaLIF, CubaLI  r*w_in*(dt/tau_mem)*(dt/tau_syn)     IF, I  r*dt
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import nir
import numpy as np

from knarr.deploy.errors import DeployError
from knarr.export.graph.parameters import delay_steps, float64, ints
from knarr.export.graph.shapes import Shape, infer
from knarr.export.graph.topology import CONVS, LINEARS, NEURONS, Edge, Topology, topology
from knarr.hw_sim.arrays import Float64, Int32
from knarr.hw_sim.network import DECAY_UNITY, MAX_DELAY

SPIKING = (nir.LIF, nir.CubaLIF, nir.IF)


@dataclass(frozen=True, eq=False)
class FloatNeuron:
    """The neurons of a layer in the normal form.

    Args:
        name: name of the node.
        gain: per feature (or one for all): v per unit of synaptic input.
        i_decay, v_decay: registers, in 4096ths per step.
        i_share, v_share: dt/tau_syn and dt/tau_mem, from which the registers were rounded; None
            where there is no such state.
        fires: False for a readout.
        bias: per feature: added to v at every step.
        filtered: input passes a synaptic current of more than one step, a bias on the chip does
            not.
        volts: volts of one unit of v, None where they differ between neurons.
        rest: volts at which a readout rests, which the chip calls 0.
    """

    name: str
    gain: Float64
    i_decay: int
    v_decay: int
    i_share: float | None
    v_share: float | None
    fires: bool
    bias: Float64
    filtered: bool
    volts: float | None
    rest: float


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A synapse and its neurons.

    Args:
        name: name of the synapse's node.
        neuron: the neurons that it feeds.
        weight: (out, in), or (out, in / groups, height, width) of a convolution; the neurons' gain
            is in it.
        bias: (out,) per output or channel.
        recurrent: (out, out) from the layer's own spikes of the step before, or None.
        delay: (out, in) whole steps, or None.
        geometry: input_shape, stride, padding, dilation and groups of a `knarr.hw_sim.Conv`, None
            for a dense layer.
        units: integers per unit of what arrives: 1 for spikes, such as 255 for frames of 8 bits.
        bits: bits of what arrives, a sign aside.
        signed: it may be negative.
    """

    name: str
    neuron: FloatNeuron
    weight: Float64
    bias: Float64
    recurrent: Float64 | None = None
    delay: Int32 | None = None
    geometry: dict[str, Any] | None = None
    units: float = 1.0
    bits: int = 1
    signed: bool = False


@dataclass(frozen=True)
class Notes:
    """The changes that reading a graph made, a line each.

    Args:
        allowed: map what has no exact form as nearly as the chip can, instead of refusing it.
        rewrites: what was changed exactly.
        approximations: what was changed to something near.
        rounded: what a register rounds.
    """

    allowed: bool
    rewrites: list[str] = field(default_factory=list)
    approximations: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)

    def approximate(self, found: str, cure: str, instead: str) -> None:
        """Note what the chip does instead of what was found.

        Raises:
            DeployError: approximations are not allowed; says the cure.
        """
        if not self.allowed:
            raise DeployError(f"{found}; {cure} or allow approximation")
        self.approximations.append(f"{found}: {instead}")


@dataclass(frozen=True)
class Chain:
    """Layers from input to output, the shape of the graph's input, and what was changed."""

    layers: tuple[FloatLayer, ...]
    input_shape: Shape
    notes: Notes


def chip_shape(shape: Shape) -> Shape:
    """Return a shape as the chip has it: signals (channels, length) are images one pixel high."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def read_chain(graph: nir.NIRGraph, dt_s: float, *, approximate: bool) -> Chain:
    """Read the layers of a folded graph.

    Args:
        graph: a graph whose pooling and scales are folded into its synapses.
        dt_s: time step, seconds.
        approximate: map what has no exact form as nearly as the chip can, and say so.

    Raises:
        ExportError: the graph has no meaning.
        DeployError: its structure or a node is not what a row of chip layers can hold.
    """
    nodes, edges = dict(graph.nodes), list(graph.edges)
    order = topology(nodes, edges, dt_s)
    entering, leaving = infer(nodes, order)
    loops = _loops(nodes, edges, order)
    row = _row(nodes, edges, order, leaving, {source for source, _ in loops.values()})
    notes = Notes(approximate)
    layers: list[FloatLayer] = []
    # The nodes met since the last neuron: delays, a synapse, and delays behind it.
    before: list[Int32] = []
    synapse: str | None = None
    after: list[Int32] = []
    for name in row[1:-1]:  # without Input and Output
        node = nodes[name]
        if isinstance(node, nir.Flatten) and synapse is None:
            if len(leaving[name]) != 1:
                raise DeployError(
                    f"node '{name}': flattens only part of {entering[name]}; flatten all of it"
                )
            before = [steps.reshape(-1) for steps in before]
        elif isinstance(node, nir.Delay):
            steps = delay_steps(name, node, dt_s).astype(np.int32)
            delays = before if synapse is None else after
            delays.append(np.broadcast_to(steps, leaving[name]))
        elif isinstance(node, (*LINEARS, *CONVS)) and synapse is None:
            synapse = name
        elif isinstance(node, NEURONS):
            if layers and not layers[-1].neuron.fires:
                raise DeployError(
                    f"node '{layers[-1].neuron.name}': never fires, so nothing after it would hear "
                    "it; only the last may"
                )
            neuron = normalise(name, node, dt_s, notes)
            shape = entering[synapse or name]
            source = nodes[synapse] if synapse is not None else _identity(shape)
            layer_name = synapse or f"{name}_identity"
            layer = _float_layer(layer_name, source, shape, leaving[name], neuron, notes)
            layer = _delayed(layer, before, after)
            if name in loops:
                layer = _recurrent(layer, *loops[name], notes)
            layers.append(layer)
            before, synapse, after = [], None, []
        else:
            raise DeployError(
                f"node '{name}': {type(node).__name__} cannot stand here; a chip layer is Linear, "
                "Affine, Conv1d or Conv2d, then LIF, CubaLIF, LI, CubaLI, IF or I; pooling, Scale, "
                "Flatten and Delay between layers"
            )
    if synapse is not None:
        raise DeployError(
            f"node '{synapse}': no neuron follows it; a chip layer is a synapse and its neurons, "
            "end with LI or a spiking neuron"
        )
    if not layers or before:
        raise DeployError(
            "graph: ends without a neuron behind its last node, or holds none; end with a synapse "
            "and neurons"
        )
    return Chain(tuple(layers), leaving[order.input], notes)


def _row(
    nodes: dict[str, Any],
    edges: list[Edge],
    order: Topology,
    leaving: dict[str, Shape],
    back: set[str],
) -> list[str]:
    """Return the nodes from Input to Output, edge by edge, without those that close loops."""
    row: Any = nx.DiGraph()
    row.add_nodes_from(name for name in nodes if name not in back)
    for source, target in edges:
        if source not in back and target not in back and source != target:
            row.add_edge(source, target)
    for name in row:
        node = nodes[name]
        into, out = row.in_degree(name), row.out_degree(name)
        # One edge in and one out, but for the two ends.
        if (into, out) != (not isinstance(node, nir.Input), not isinstance(node, nir.Output)):
            raise DeployError(
                f"node '{name}': {into} edges in, {out} out; only plain chains "
                "are lowered, netx adds no branches"
            )
        if len(leaving[name]) not in (1, 2, 3):
            raise DeployError(
                f"node '{name}': shape {leaving[name]}; a chip layer has (features,), (channels, "
                "length) or (C, H, W), flatten it"
            )
    return list(nx.dfs_preorder_nodes(row, order.input))


def _loops(nodes: dict[str, Any], edges: list[Edge], order: Topology) -> dict[str, tuple[str, Any]]:
    """Map a neuron to the name and node through which it hears itself.

    A bare edge has no name and None for a node.
    """
    found: dict[str, tuple[str, Any]] = {}
    for target, sources in order.looping.items():
        for source in sources:
            bare = source == target
            plain = isinstance(nodes[source], LINEARS) and order.sources[source] == (target,)
            # Whatever else hears the synapse of a loop would hear it in the same step.
            alone = bare or [end for start, end in edges if start == source] == [target]
            single = isinstance(nodes[target], SPIKING) and len(sources) == 1
            if not ((bare or plain) and alone and single):
                raise DeployError(
                    f"node '{source}': closes a loop into '{target}' that a chip layer does not "
                    "have; let one LIF, CubaLIF or IF hear itself through one Linear or Affine"
                )
            found[target] = ("", None) if bare else (source, nodes[source])
    return found


# --- neurons


def normalise(name: str, node: Any, dt_s: float, notes: Notes) -> FloatNeuron:
    """Put a neuron node into the normal form.

    Args:
        name: name of the node, for messages.
        node: LIF, CubaLIF, LI, CubaLI, IF or I.
        dt_s: time step, seconds.
        notes: receive what was changed, and tell what may be.

    Raises:
        DeployError: a parameter that the chip cannot hold; names node, reason and cure.
    """
    integrates = isinstance(node, (nir.IF, nir.I))
    filtered = isinstance(node, (nir.CubaLIF, nir.CubaLI))
    v_share = None if integrates else _share(name, node, "tau_mem" if filtered else "tau", dt_s)
    i_share = _share(name, node, "tau_syn", dt_s) if filtered else None
    # Without a leak nothing is forgotten, without a synaptic current everything is.
    v_decay, i_decay = 0, DECAY_UNITY
    gain_per_r: Float64 | float = dt_s
    if v_share is not None:
        v_decay = _register(name, "voltage", v_share, 0, notes)
        gain_per_r = v_share
    gain = float64(node.r) * gain_per_r
    if i_share is not None:
        i_decay = _register(name, "current", i_share, 1, notes)
        gain = gain * float64(node.w_in) * i_share
    leak = np.zeros(1) if integrates else float64(node.v_leak)
    if v_decay == DECAY_UNITY:
        v_decay -= 1
        notes.rounded.append(
            f"'{name}': forgets within a step; keeps 1/4096 of v, the shortest memory in hardware"
        )
    fires = hasattr(node, "v_threshold")
    height, bias, rest = np.ones(1), np.zeros(1), 0.0
    if fires:
        reset = float64(node.v_reset)
        height = float64(node.v_threshold) - reset
        if (height <= 0).any():
            raise DeployError(
                f"node '{name}': v_threshold lies {height.min():g} above v_reset; a neuron needs "
                "it above the voltage it resets to"
            )
        if reset.any():
            notes.rewrites.append(f"'{name}': voltages moved by v_reset, {_span(reset)} V")
        if not integrates:
            leak = leak - reset
        if leak.any():
            notes.approximate(
                f"node '{name}': rests at v_leak, {_span(leak)} V above v_reset, and starts there",
                "the chip starts at v_reset, set both equal",
                "the chip starts at v_reset and climbs by a bias",
            )
        # An integrator has no leak, so its bias is 0 whatever it would be a share of.
        bias = gain_per_r * leak / height
    elif leak.any():
        # A readout that starts at v_leak and rests there: the same voltages, moved by a constant.
        if np.ptp(leak):
            raise DeployError(
                f"node '{name}': v_leak differs between readouts, {_span(leak)} V, and the chip's "
                "all start at 0; use one v_leak"
            )
        notes.rewrites.append(f"'{name}': voltages read {_span(leak)} V lower, all of them")
        rest = float(leak.flat[0])
    if np.ptp(height) or np.ptp(gain):
        notes.rewrites.append(
            f"'{name}': its own thresholds and gains multiplied into the rows of weights"
        )
    return FloatNeuron(
        name=name,
        gain=gain / height,
        i_decay=i_decay,
        v_decay=v_decay,
        i_share=None if i_share is None else float(np.mean(i_share)),
        v_share=None if v_share is None else float(np.mean(v_share)),
        fires=fires,
        bias=bias,
        filtered=i_decay < DECAY_UNITY,
        volts=None if np.ptp(height) else float(height.flat[0]),
        rest=rest,
    )


def _share(name: str, node: Any, field: str, dt_s: float) -> Float64:
    """Return dt/tau of each neuron."""
    tau_s = float64(getattr(node, field))
    if (tau_s <= 0).any():
        raise DeployError(
            f"node '{name}': {field} is {tau_s.min():g} s; a time constant is above 0"
        )
    return dt_s / tau_s


def _register(name: str, which: str, share: Float64, low: int, notes: Notes) -> int:
    """Return the decay register of all neurons, the mean of them where they need several."""
    # A layer of a .net file has one register, whatever its neurons would need.
    registers = np.rint(DECAY_UNITY * share).astype(np.int64)
    least, most = int(registers.min()), int(registers.max())
    if least < low or most > DECAY_UNITY:
        raise DeployError(
            f"node '{name}': {which} decay register {least}..{most}, allowed {low}..{DECAY_UNITY}; "
            f"time constants of {1 / share.max():.3g}..{1 / share.min():.3g} steps do not fit, "
            "change tau or dt"
        )
    if least == most:
        return least
    middle = round(float(registers.mean()))
    notes.approximate(
        f"node '{name}': {which} decays differ between neurons, registers {least}..{most}",
        "a layer of a .net file has one, use one tau",
        f"all take {middle}",
    )
    return middle


def _span(values: Float64) -> str:
    return f"{values.min():g}..{values.max():g}" if np.ptp(values) else f"{values.min():g}"


# --- synapses


def _identity(shape: Shape) -> Any:
    """Return the synapse that hands every feature to the neuron of the same place."""
    if len(shape) == 1:
        return nir.Linear(np.eye(shape[0]))
    # One kernel per channel, of a single weight of 1.
    channels, axes = shape[0], len(shape) - 1
    weight, bias = np.ones((channels, 1, *[1] * axes)), np.zeros(channels)
    if axes == 1:
        return nir.Conv1d(shape[1], weight, 1, 0, 1, channels, bias)
    one = np.ones(2, dtype=np.int64)
    return nir.Conv2d(shape[1:], weight, one, 0 * one, one, channels, bias)


def _float_layer(
    name: str, node: Any, shape: Shape, out: Shape, neuron: FloatNeuron, notes: Notes
) -> FloatLayer:
    weight, bias = _values(node)
    gain = _rows(neuron.name, "gain or threshold", neuron.gain, out)
    rest = _rows(neuron.name, "v_leak", neuron.bias, out)
    bias = gain * _unfiltered_bias(name, neuron, bias, notes) + rest
    # Neurons with thresholds or gains of their own get them as a factor of their row of weights.
    weight = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    geometry: dict[str, Any] | None = None
    if isinstance(node, CONVS):
        if isinstance(node, nir.Conv1d):
            weight = weight[:, :, None, :]
        geometry = {"input_shape": chip_shape(shape), "groups": int(node.groups)}
        # A signal is one pixel high, on which a kernel takes one step without padding.
        for key, high in (("stride", 1), ("padding", 0), ("dilation", 1)):
            geometry[key] = (high, *ints(getattr(node, key), len(shape) - 1))[-2:]
    return FloatLayer(name, neuron, weight, bias, geometry=geometry)


def _values(node: Any) -> tuple[Float64, Float64]:
    """Return weights and bias of a synapse's node, 0 where it has no bias."""
    weight = float64(node.weight)
    return weight, float64(node.bias) if hasattr(node, "bias") else np.zeros(len(weight))


def _rows(name: str, what: str, values: Float64, out: Shape) -> Float64:
    """Return one value per output or channel of the values of all neurons."""
    if values.size == 1:
        values = values.reshape(-1)
    rows = np.broadcast_to(values, out).reshape(out[0], -1)
    if (rows != rows[:, :1]).any():
        raise DeployError(
            f"node '{name}': {what} differs inside a channel, whose neurons share one kernel; use "
            "one value per channel"
        )
    return rows[:, 0].copy()


def _unfiltered_bias(name: str, neuron: FloatNeuron, bias: Float64, notes: Notes) -> Float64:
    """Return a synapse's bias as the chip adds it, to the voltage.

    Behind a synaptic current the bias of the graph climbs to its end value bias / i_share; the
    chip's has that value from the first step.
    """
    if not neuron.filtered or not bias.any():
        return bias
    assert neuron.i_share is not None  # a filtered neuron has a synaptic current
    notes.approximate(
        f"node '{name}': its bias passes the synaptic filter of '{neuron.name}', the chip's bias "
        "does not",
        "train without bias, use LIF neurons,",
        "it acts in full from the first step",
    )
    return bias / neuron.i_share


def _delayed(layer: FloatLayer, before: list[Int32], after: list[Int32]) -> FloatLayer:
    """Return a layer whose synapses hold the delays before and behind it, in steps per feature."""
    inputs = np.reshape(sum(before), (1, -1))
    outputs = np.reshape(sum(after), (-1, 1))
    if not np.any(inputs) and not np.any(outputs):
        return layer
    if layer.geometry is not None:
        raise DeployError(
            f"node '{layer.name}': netx ignores delays at a convolution; put them before or behind "
            "a Linear"
        )
    if np.any(outputs) and layer.bias.any():
        raise DeployError(
            f"node '{layer.name}': its bias is delayed and the chip's is not; put the delay before "
            "it"
        )
    steps = np.broadcast_to(inputs + outputs, layer.weight.shape).astype(np.int32)
    if steps.max() > MAX_DELAY:
        raise DeployError(
            f"node '{layer.name}': delays up to {steps.max()} steps, netx has 0..{MAX_DELAY}; use "
            "a longer dt or shorter delays"
        )
    return replace(layer, delay=steps)


def _recurrent(layer: FloatLayer, source: str, node: Any, notes: Notes) -> FloatLayer:
    """Return a layer that hears itself through a node, or directly where that is None."""
    name = source or layer.neuron.name
    if layer.geometry is not None:
        raise DeployError(
            f"node '{layer.neuron.name}': hears itself behind a convolution; netx has loops in "
            "dense layers alone"
        )
    if layer.delay is not None:
        raise DeployError(
            f"node '{layer.name}': delays in a layer with a loop, which netx drops; remove them"
        )
    outputs = (len(layer.weight),)
    weight, bias = _values(_identity(outputs) if node is None else node)
    # Spikes that come back reach the neuron through the same gain as those that arrive.
    gain = _rows(layer.neuron.name, "gain", layer.neuron.gain, outputs)
    bias = layer.bias + gain * _unfiltered_bias(name, layer.neuron, bias, notes)
    return replace(layer, recurrent=weight * gain.reshape(-1, 1), bias=bias)
