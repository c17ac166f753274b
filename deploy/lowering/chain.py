"""Pass: a folded graph into the row of float layers that a netx file can hold.

Between two neurons stand, in this order, delays and flattening, one synapse, delays. A neuron without a synapse gets the
identity. A neuron of a dense layer may hear itself, one step later, directly or through one Linear or Affine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.float_layers import FloatLayer
from knarr.deploy.lowering.normalise import CHIP_NEURONS, normalise
from knarr.deploy.lowering.synapse import (
    CONVS,
    DENSE,
    Steps,
    delayed,
    float_layer,
    identity,
    recurrent,
)
from knarr.export.graph.shapes import Shape, infer
from knarr.export.graph.step_synapses import delay_steps
from knarr.export.graph.topology import Topology, topology


@dataclass(frozen=True)
class Chain:
    """Layers from input to output, and the shape of the graph's input."""

    layers: tuple[FloatLayer, ...]
    input_shape: Shape


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
                raise DeployError(
                    f"node '{name}': flattens only part of {entering[name]}; flatten all of it"
                )
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
            source = nodes[synapse] if synapse is not None else identity(entering[name])
            shape = entering[synapse] if synapse is not None else entering[name]
            layer = float_layer(
                synapse or f"{name}_identity", source, shape, leaving[name], neuron, approximate
            )
            layer = delayed(layer, before, after)
            if name in loops:
                layer = recurrent(layer, *loops[name], approximate=approximate)
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
    return Chain(tuple(layers), leaving[order.input])


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
