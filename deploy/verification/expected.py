"""Arrays that a user's own tool computed, laid beside what a graph does, layer by layer.

Samples and time steps are told apart by the inputs' shape: an array may have either first, and
where both would fit, it is refused. What is compared are spikes of neurons that fire, exactly, and
voltages of neurons that do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.verification.result import Side
from knarr.hw_sim.arrays import Array

if TYPE_CHECKING:
    import nir

    from knarr.export import Trace

OUTPUT = "output"
"""Name of the comparison of a graph's output, where no single neuron gives it."""
READOUT_TOLERANCE = 1e-4
"""Share of a readout's largest voltage by which two tools may differ: they sum float32 products in
other orders, over up to some thousand steps. Spikes have no tolerance."""

Expected = npt.ArrayLike | Mapping[str, npt.ArrayLike]
"""The output, (samples, timesteps, *features), or such an array for each of some neurons."""


@dataclass(eq=False)
class PlainView:
    """Arrays without the states behind them.

    Args:
        name: name of the stage.
        spikes, v: layer -> (samples, timesteps, *features).
        output: what left the graph, None where it was not given.
    """

    name: str
    spikes: dict[str, Array] = field(default_factory=dict)
    v: dict[str, Array] = field(default_factory=dict)
    output: Array | None = None

    @property
    def u(self) -> dict[str, Array]:
        """Return no currents: no tool hands them over."""
        return {}

    def side(self, layer: str, value: float, at: tuple[int, ...]) -> Side:
        """Return the value alone."""
        del layer, at
        return Side(value)


def expected_view(expected: Expected, graph: nir.NIRGraph, trace: Trace, dt_s: float) -> PlainView:
    """Return what another tool computed in the names and the order of axes of a graph's trace.

    Args:
        expected: array of the output, or arrays by the name of the node; "output" is the output.
        graph: the graph.
        trace: what it did on the same inputs.
        dt_s: time step, seconds.

    Raises:
        DeployError: an array of another shape, one whose axes cannot be told apart, a node that is
            no neuron of the graph, or values that are no spikes where a neuron fires.
    """
    arrays = expected if isinstance(expected, Mapping) else {OUTPUT: expected}
    if not arrays:
        raise DeployError("expected: holds no array; give the spikes of the output, or of nodes")
    view = PlainView("expected")
    for name, given in arrays.items():
        neuron = _output_neuron(graph, dt_s) if name == OUTPUT and name not in trace.v else name
        if neuron is None:
            view.output = _aligned(name, given, trace.output)
            view.v[OUTPUT] = view.output
            continue
        if neuron not in trace.v and neuron not in trace.spikes:
            known = ", ".join(dict.fromkeys((*trace.v, *trace.spikes, OUTPUT)))
            raise DeployError(f"expected: '{name}' is no neuron of the graph; compared are {known}")
        fires = neuron in trace.spikes
        array = _aligned(name, given, (trace.spikes if fires else trace.v)[neuron])
        if fires and not np.array_equal(array, np.rint(array)):
            odd = array[array != np.rint(array)].flat[0]
            raise DeployError(
                f"expected: '{name}' holds {odd:g}, and node '{neuron}' fires: its spikes are "
                "compared, not its voltages; give the spikes"
            )
        (view.spikes if fires else view.v)[neuron] = array
        if neuron == _output_neuron(graph, dt_s):
            view.output = array
    return view


def _output_neuron(graph: nir.NIRGraph, dt_s: float) -> str | None:
    """Return the neuron that alone feeds the output, None where something else does."""
    from knarr.export.graph.topology import NEURONS, inline, topology

    nodes, edges = inline(graph)
    order = topology(nodes, edges, dt_s)
    sources = order.sources[order.output]
    alone = len(sources) == 1 and not order.looping[order.output]
    return sources[0] if alone and isinstance(nodes[sources[0]], NEURONS) else None


def _aligned(name: str, given: npt.ArrayLike, ours: Array) -> Array:
    """Return an array with samples first and time second, as `ours` has them."""
    array: Any = np.asarray(given)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise DeployError(f"expected: '{name}' holds something else than finite numbers")
    samples, steps = ours.shape[:2]
    features = ours.shape[2:]
    # Tools differ in whether they show an axis of one sample.
    if samples == 1 and array.shape == (steps, *features):
        array = array[None]
    fits = array.shape == ours.shape
    swapped = array.shape == (steps, samples, *features)
    if not fits and not swapped:
        sizes = ", ".join(map(str, (samples, steps, *features)))
        raise DeployError(
            f"expected: '{name}' has shape {array.shape}, the graph gives ({sizes}); give "
            "(samples, timesteps, *features), or time first"
        )
    if fits and swapped and samples > 1:
        raise DeployError(
            f"expected: '{name}' has shape {array.shape}: {samples} samples of {steps} steps, whose "
            "axes cannot be told apart; give another number of samples"
        )
    array = array if fits else np.swapaxes(array, 0, 1)
    return np.asarray(array, dtype=np.float64)
