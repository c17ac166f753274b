"""Pass: a folded graph into the row of float layers that a netx file can hold.

Between two neurons stand, in this order, delays and flattening, one synapse, delays. A neuron without a synapse gets the
identity. A neuron of a dense layer may hear itself, one step later, directly or through one Linear or Affine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.float_layers import Float, FloatLayer, FloatNeuron, Geometry
from knarr.deploy.normalise import CHIP_NEURONS, normalise
from knarr.export.shapes import Shape, infer
from knarr.export.step_synapses import delay_steps, ints
from knarr.export.topology import Topology, topology
from knarr.hw_sim.layers import MAX_DELAY

Steps = npt.NDArray[np.int32]
DENSE, CONVS = (nir.Linear, nir.Affine), (nir.Conv1d, nir.Conv2d)


@dataclass(frozen=True)
class Chain:
    """Layers from input to output, and the input's shape on the chip."""

    layers: tuple[FloatLayer, ...]
    input_shape: Shape


def chip_shape(shape: Shape) -> Shape:
    """Signals (channels, length) are images one pixel high."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def read_chain(graph: nir.NIRGraph, dt_s: float, *, approximate: bool) -> Chain:
    """Layers of a folded graph.

    Raises:
        ExportError: the graph has no meaning.
        DeployError: its structure or a node is not what a row of chip layers can hold.
    """
    nodes, edges = dict(graph.nodes), list(graph.edges)
    order = topology(nodes, edges, dt_s)
    entering, leaving = infer(nodes, order)
    loops = _loops(nodes, edges, order)
    row = _row(nodes, edges, order, leaving, {source for source, _ in loops.values()})
    layers: list[FloatLayer] = []
    before: Steps | None = None
    synapse: str | None = None
    after: Steps | None = None
    for name in row[1:-1]:
        node = nodes[name]
        if isinstance(node, nir.Flatten) and synapse is None:
            if len(leaving[name]) != 1:
                raise DeployError(f"node '{name}': flattens only part of {entering[name]}; flatten all of it")
            before = None if before is None else before.reshape(-1)
        elif isinstance(node, nir.Delay):
            steps = np.broadcast_to(delay_steps(name, node, dt_s).astype(np.int32), leaving[name])
            if synapse is None:
                before = steps if before is None else before + steps
            else:
                after = steps if after is None else after + steps
        elif isinstance(node, (*DENSE, *CONVS)) and synapse is None:
            synapse = name
        elif isinstance(node, CHIP_NEURONS):
            if layers and not layers[-1].neuron.fires:
                raise DeployError(
                    f"node '{layers[-1].neuron.name}': never fires, so nothing after it would hear it; only the last may"
                )
            neuron = normalise(name, node, dt_s, approximate=approximate)
            source = nodes[synapse] if synapse is not None else _identity(entering[name])
            shape = entering[synapse] if synapse is not None else entering[name]
            layer = _layer(synapse or f"{name}_identity", source, shape, leaving[name], neuron, approximate)
            layer = _delayed(layer, before, after)
            if name in loops:
                layer = _recurrent(layer, *loops[name], approximate=approximate)
            layers.append(layer)
            before = synapse = after = None
        else:
            raise DeployError(
                f"node '{name}': {type(node).__name__} cannot stand here; a chip layer is Linear, Affine, Conv1d or Conv2d, then LIF, "
                "CubaLIF, LI, CubaLI, IF or I; pooling, Scale, Flatten and Delay between layers"
            )
    if synapse is not None:
        raise DeployError(
            f"node '{synapse}': no neuron follows it; a chip layer is a synapse and its neurons, end with LI or a spiking neuron"
        )
    if not layers or before is not None:
        raise DeployError(
            "graph: ends without a neuron behind its last node, or holds none; end with a synapse and neurons"
        )
    return Chain(tuple(layers), chip_shape(leaving[order.input]))


def _row(
    nodes: dict[str, Any],
    edges: list[tuple[str, str]],
    order: Topology,
    leaving: dict[str, Shape],
    back: set[str],
) -> list[str]:
    """Nodes from Input to Output, edge by edge, without those that close loops."""
    after: dict[str, list[str]] = {name: [] for name in nodes if name not in back}
    before = {name: 0 for name in after}
    for source, target in edges:
        if source not in back and target not in back and source != target:
            after[source].append(target)
            before[target] += 1
    for name, targets in after.items():
        ends = isinstance(nodes[name], nir.Input), isinstance(nodes[name], nir.Output)
        if (before[name], len(targets)) != (not ends[0], not ends[1]):
            raise DeployError(
                f"node '{name}': {before[name]} edges in, {len(targets)} out; only plain chains are lowered, netx adds no branches"
            )
        if len(leaving[name]) not in (1, 2, 3):
            raise DeployError(
                f"node '{name}': shape {leaving[name]}; a chip layer has (features,), (channels, length) or (C, H, W), flatten it"
            )
    row = [order.input]
    while after[row[-1]]:
        row += after[row[-1]]
    return row


def _loops(
    nodes: dict[str, Any], edges: list[tuple[str, str]], order: Topology
) -> dict[str, tuple[str, Any]]:
    """Neuron -> name and node through which it hears itself; no name and None for a bare edge."""
    found: dict[str, tuple[str, Any]] = {}
    for target, sources in order.looping.items():
        for source in sources:
            bare = source == target
            plain = isinstance(nodes[source], DENSE) and order.sources[source] == (target,)
            alone = [t for s, t in edges if s == source] == [target] or bare
            spiking = isinstance(nodes[target], (nir.LIF, nir.CubaLIF, nir.IF))
            if not ((bare or plain) and alone and spiking and len(sources) == 1):
                raise DeployError(
                    f"node '{source}': closes a loop into '{target}' that a chip layer does not have; let one LIF, CubaLIF or IF "
                    "hear itself through one Linear or Affine"
                )
            found[target] = ("" if bare else source, None if bare else nodes[source])
    return found


def _identity(shape: Shape) -> Any:
    if len(shape) == 1:
        return nir.Linear(np.eye(shape[0]))
    channels, axes = shape[0], len(shape) - 1
    ones = np.ones((channels, 1, *[1] * axes))
    kind: Any = nir.Conv1d if axes == 1 else nir.Conv2d
    one: Any = 1 if axes == 1 else np.ones(2, dtype=np.int64)
    return kind(shape[1] if axes == 1 else shape[1:], ones, one, 0 * one, one, channels, np.zeros(channels))


def _layer(
    name: str, node: Any, shape: Shape, out: Shape, neuron: FloatNeuron, approximate: bool
) -> FloatLayer:
    weight = np.asarray(node.weight, dtype=np.float64)
    bias = np.asarray(getattr(node, "bias", np.zeros(len(weight))), dtype=np.float64).reshape(-1)
    if not np.isfinite(weight).all() or not np.isfinite(bias).all():
        raise DeployError(f"node '{name}': holds weights or a bias that are not finite; repair it")
    gain = _rows(neuron.name, "gain or threshold", neuron.gain, out)
    rest = _rows(neuron.name, "v_leak", neuron.bias, out)
    bias, neuron = _through(name, neuron, bias, approximate)
    weight = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    geometry = None
    if isinstance(node, CONVS):
        if isinstance(node, nir.Conv1d):
            weight = weight[:, :, None, :]
        stride, padding, dilation = (
            ints(v) if isinstance(node, nir.Conv2d) else (low, ints(v, 1)[0])
            for v, low in ((node.stride, 1), (node.padding, 0), (node.dilation, 1))
        )
        c, h, w = chip_shape(shape)
        geometry = Geometry((c, h, w), _pair(stride), _pair(padding), _pair(dilation), int(node.groups))
    return FloatLayer(name, neuron, weight, gain * bias + rest, geometry=geometry)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _rows(name: str, what: str, values: Float, out: Shape) -> Float:
    """One value per output or channel."""
    whole = np.broadcast_to(values.reshape(-1) if values.size == 1 else values, out).reshape(out[0], -1)
    if (whole != whole[:, :1]).any():
        raise DeployError(
            f"node '{name}': {what} differs inside a channel, whose neurons share one kernel; use one value per channel"
        )
    return np.array(whole[:, 0])


def _through(name: str, neuron: FloatNeuron, bias: Float, approximate: bool) -> tuple[Float, FloatNeuron]:
    """A synapse's bias as the chip adds it: behind a synaptic current, at its end value from the first step."""
    if not neuron.filtered or not bias.any():
        return bias, neuron
    text = f"node '{name}': its bias passes the synaptic filter of '{neuron.name}', the chip's bias does not"
    if not approximate:
        raise DeployError(f"{text}; train without bias, use LIF neurons, or allow approximation")
    assert neuron.i_share is not None
    near = (*neuron.approximations, f"{text}: it acts in full from the first step")
    return bias / neuron.i_share, replace(neuron, approximations=near)


def _delayed(layer: FloatLayer, before: Steps | None, after: Steps | None) -> FloatLayer:
    if (before is None or not before.any()) and (after is None or not after.any()):
        return layer
    if layer.geometry is not None:
        raise DeployError(
            f"node '{layer.name}': netx ignores delays at a convolution; put them before or behind a Linear"
        )
    if after is not None and after.any() and layer.bias.any():
        raise DeployError(
            f"node '{layer.name}': its bias is delayed and the chip's is not; put the delay before it"
        )
    steps = np.zeros(layer.weight.shape, dtype=np.int32)
    if before is not None:
        steps += before.reshape(1, -1)
    if after is not None:
        steps += after.reshape(-1, 1)
    if steps.max() > MAX_DELAY:
        raise DeployError(
            f"node '{layer.name}': delays up to {steps.max()} steps, netx has 0..{MAX_DELAY}; use a longer dt or shorter delays"
        )
    return replace(layer, delay=steps)


def _recurrent(layer: FloatLayer, source: str, node: Any, *, approximate: bool) -> FloatLayer:
    name = source or layer.neuron.name
    if layer.geometry is not None:
        raise DeployError(
            f"node '{layer.neuron.name}': hears itself behind a convolution; netx has loops in dense layers alone"
        )
    if layer.delay is not None:
        raise DeployError(
            f"node '{layer.name}': delays in a layer with a loop, which netx drops; remove them"
        )
    outputs = len(layer.weight)
    weight = np.eye(outputs) if node is None else np.asarray(node.weight, dtype=np.float64)
    bias = np.asarray(getattr(node, "bias", np.zeros(outputs)), dtype=np.float64).reshape(-1)
    if not np.isfinite(weight).all() or not np.isfinite(bias).all():
        raise DeployError(f"node '{name}': holds weights or a bias that are not finite; repair it")
    gain = _rows(layer.neuron.name, "gain", layer.neuron.gain, (outputs,))
    bias, neuron = _through(name, layer.neuron, bias, approximate)
    return replace(
        layer, neuron=neuron, recurrent=weight * gain.reshape(-1, 1), bias=layer.bias + gain * bias
    )
