"""Norse -> NIR: layers to nodes, what they receive to edges. Nothing is proved here; `to_nir` does that."""

from __future__ import annotations

from typing import Any

import nir
import norse.torch as snn
import numpy as np

from knarr.export.arguments import as_dt, as_shape
from knarr.export.convert_neurons import Shape, array, neuron
from knarr.export.convert_synapses import synapse
from knarr.export.errors import ExportError
from knarr.export.layers import NEURON_CELLS, Layer, Layers
from knarr.export.modules import INPUT, OUTPUT
from knarr.export.step import METADATA
from knarr.export.topology import NEURONS, Edge, bare_delays


def convert(layers: Layers, input_shape: Shape, dt_s: float) -> nir.NIRGraph:
    """Build the graph of plain layers (`rewrite` makes them plain).

    Args:
        layers: of a one-step module in eval mode.
        input_shape: feature shape of one time step, without batch: (features,), (C, L) or (C, H, W).
        dt_s: time step, seconds; must equal every neuron's own dt.

    Raises:
        ExportError: names the module that cannot be exported, why, and what to do.
    """
    input_shape, dt_s = as_shape(input_shape), as_dt(dt_s)
    build = _Build(
        {INPUT: nir.Input(input_type={"input": np.array(input_shape)})}, [], {INPUT: tuple(input_shape)}
    )
    for layer in layers.leaves:
        build.add(layer, dt_s)
    build.nodes[OUTPUT] = nir.Output(
        output_type={"output": np.array(build.arriving("output", layers.output))}
    )
    build.edges += [(source, OUTPUT) for source in layers.output]
    # Each StepGraph knows its own loops alone, so each decides alone how its delays are written.
    for owner in dict.fromkeys(leaf.owner for leaf in layers.leaves if leaf.delayed):
        mine = [
            (source, leaf.name) for leaf in layers.leaves if leaf.owner == owner for source in leaf.delayed
        ]
        build.delay(mine, dt_s)
    return nir.NIRGraph(
        nodes=build.nodes,
        edges=build.edges,
        metadata={"dt_s": dt_s, **METADATA},
        type_check=False,
    )


class _Build:
    def __init__(self, nodes: dict[str, Any], edges: list[Edge], shapes: dict[str, Shape]) -> None:
        self.nodes, self.edges, self.shapes = nodes, edges, shapes
        self.arrives_at: dict[str, Shape] = {}

    def arriving(self, path: str, sources: tuple[str, ...]) -> Shape:
        shapes = {self.shapes[source] for source in sources}
        if len(shapes) != 1:
            raise ExportError(
                f"module '{path}': receives {sorted(shapes)}, which do not add up; bring them to one shape"
            )
        return shapes.pop()

    def add(self, layer: Layer, dt_s: float) -> None:
        name, module = layer.name, layer.module
        if isinstance(module, snn.LIFRecurrentCell):
            self._recurrent(layer, dt_s)
            return
        if not layer.sources:  # StepGraph lets only a Linear live on delayed inputs alone
            shape: Shape = (int(module.in_features),)
        else:
            shape = self.arriving(layer.path, layer.sources)
        self.arrives_at[name] = shape
        if isinstance(module, NEURON_CELLS):
            self.nodes[name], self.shapes[name] = neuron(layer, shape, dt_s), shape
        else:
            self.nodes[name], self.shapes[name] = synapse(layer, shape)
        self.edges += [(source, name) for source in layer.sources]

    def _recurrent(self, layer: Layer, dt_s: float) -> None:
        """LIFRecurrentCell: Linear(W_in) -> CubaLIF, and CubaLIF -> Linear(W_rec) -> CubaLIF."""
        cell: Any = layer.module
        name, shape = layer.name, self.arriving(layer.path, layer.sources)
        w_in, w_rec = array(cell.input_weights), array(cell.recurrent_weights)
        if shape != (w_in.shape[1],):
            raise ExportError(
                f"module '{layer.path}': receives {shape}, needs ({w_in.shape[1]},); flatten before it"
            )
        for which, weight in (("input_weights", w_in), ("recurrent_weights", w_rec)):
            if not np.isfinite(weight).all():
                raise ExportError(
                    f"module '{layer.path}': {which} holds NaN or infinity; retrain or reload it"
                )
        if layer.delayed:
            raise ExportError(
                f"module '{layer.path}': a recurrent edge into a cell that is recurrent itself; use LIFCell and StepGraph"
            )
        self.nodes[f"{name}_in"], self.nodes[f"{name}_rec"] = nir.Linear(w_in), nir.Linear(w_rec)
        self.nodes[name] = neuron(layer, (len(w_in),), dt_s)
        self.shapes[name] = (len(w_in),)
        self.edges += [(source, f"{name}_in") for source in layer.sources]
        self.edges += [(f"{name}_in", name), (name, f"{name}_rec"), (f"{name}_rec", name)]

    def delay(self, delayed: list[Edge], dt_s: float) -> None:
        """Add edges that wait one step: as bare edges where NIR's reader delays just these, as Delay nodes elsewhere."""
        stateful = {name for name, node in self.nodes.items() if isinstance(node, NEURONS)}
        if bare_delays(list(self.nodes), self.edges, delayed, INPUT, stateful, OUTPUT) is not None:
            self.edges += delayed
            return
        for source, target in delayed:
            name = f"{source}_to_{target}_delay"
            if self.shapes[source] != self.arrives_at[target]:
                raise ExportError(
                    f"module: recurrent edge '{source}' -> '{target}' brings {self.shapes[source]}, needs "
                    f"{self.arrives_at[target]}; correct one of the two"
                )
            self.nodes[name] = nir.Delay(np.full(self.shapes[source], dt_s))
            self.edges += [(source, name), (name, target)]
