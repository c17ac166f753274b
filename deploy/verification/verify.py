"""Run the same inputs through Norse, NIR, our simulator and Lava, and find where two of them part.

`verify` compares a graph and its `.net` file, `verify_network` a `.net` file alone. Every stage is
a view: its arrays (samples, timesteps, *features) by layer, and the state of any single neuron.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isclose, prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.lava.run import Progress, run_on_lava
from knarr.deploy.lowering.places import node_places
from knarr.deploy.netx.files import read_net
from knarr.deploy.verification.expected import (
    OUTPUT,
    READOUT_TOLERANCE,
    Expected,
    PlainView,
    expected_view,
)
from knarr.deploy.verification.result import (
    Comparison,
    FirstDivergence,
    Raster,
    Side,
    Verification,
)
from knarr.hw_sim import ChipError, ChipNetwork, Recording, simulate
from knarr.hw_sim.arithmetic import STATE_MAX, STATE_SHIFT, decay
from knarr.hw_sim.arrays import Array, IntArray
from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.labels import check_labels
from knarr.hw_sim.network import NON_SPIKING_VTH, register_array
from knarr.hw_sim.recording import INPUT_LAYER, RECORDABLE, first_difference

if TYPE_CHECKING:
    import nir
    import norse.torch as snn

    from knarr.export import Trace

At = tuple[int, ...]
"""Place of a value in an array: (sample, time step, *index of the neuron)."""
SHOWN_NEURONS = 30
"""Neurons of a raster that a page can show."""


def verify(
    graph_or_module: nir.NIRGraph | snn.SequentialState,
    path: str | Path | None,
    inputs: npt.ArrayLike,
    dt_s: float,
    *,
    expected: Expected | None = None,
    module: snn.SequentialState | None = None,
    labels: npt.ArrayLike | None = None,
    timeout_s: float | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run inputs through every stage and compare neighbours layer by layer.

    Norse and NIR must agree in spikes and voltages, simulator and Lava in spikes, voltages and
    currents. NIR and the simulator are compared in spikes: what integers cost is measured, not
    forbidden.

    Args:
        graph_or_module: the certified graph, or a Norse module (which is exported first and
            compared too).
        path: the `.net` file that was lowered from it; None compares without a chip.
        inputs: (samples, timesteps, *features) integers as the chip takes them. Norse and NIR are
            fed the floats they stand for, inputs / network.input.units; 0 and 1 stay what they are.
            Without a `.net` file: the graph's own inputs.
        dt_s: time step, seconds.
        expected: what another tool computed on the same inputs: an array of the output's spikes,
            or of its voltages where it does not fire, (samples, timesteps, *features) or time
            first; or such arrays by the names of the graph's neurons. It must be what NIR gives.
        module: the Norse module beside a graph, to be compared with it.
        labels: (samples,) true classes, to count what each stage decides rightly. The readout of
            the `.net` file decides, of float stages by the same reduction of the graph's output.
        timeout_s: limit of the Lava run, seconds.
        progress: called with (Lava steps done, in all).

    Raises:
        DeployError: the file was not lowered from this graph, its input is driven by bias, what is
            expected or the labels do not fit, or there is nothing to compare with.
        ExportError, ChipError, LavaError: whatever else keeps a stage from running.
    """
    # Not at the top: a network by itself is verified without graphs, and without torch.
    import nir

    from knarr.deploy.lowering.read import chip_shape
    from knarr.export import graph_hash, graph_input_shape, step_nir, to_nir, trace_module

    if path is None:
        return _verify_graph(graph_or_module, inputs, dt_s, expected, module, labels)
    path = Path(path)
    network = read_net(path)
    if network.input.neuron is not None:
        raise DeployError(
            f"{path}: its input is driven by bias, which no graph is lowered to; use "
            "verify_network for it"
        )
    events = check_inputs(network.input, inputs)
    floats = events / network.input.units
    graph = graph_or_module
    sizes = graph_input_shape(graph) if isinstance(graph, nir.NIRGraph) else np.shape(inputs)[2:]
    # Signals are images one pixel high on the chip.
    if chip_shape(sizes) == network.input.shape:
        floats = floats.reshape(*events.shape[:2], *sizes)
    if not isinstance(graph, nir.NIRGraph):
        # Export certifies the graph on the very samples that are compared.
        module = graph
        graph = to_nir(module, tuple(floats.shape[2:]), dt_s, samples=floats)
    if network.lowered_from is not None and network.lowered_from != graph_hash(graph):
        raise DeployError(
            f"{path}: was lowered from another graph than this one; lower this graph again"
        )
    if network.dt_s is not None and not isclose(network.dt_s, dt_s, rel_tol=1e-9):
        raise DeployError(
            f"{path}: was lowered with steps of {network.dt_s:g} s, not {dt_s:g} s; use its own or "
            "lower again"
        )
    true = None
    if labels is not None:
        classes = prod(network.output_shape) // network.readout.votes
        true = _classes(labels, len(events), classes)
    stepped = FloatView("NIR", step_nir(graph, floats, dt_s), graph, floats, dt_s)
    for name in node_places(network):
        if name not in stepped.v:
            raise DeployError(
                f"{path}: its neuron '{name}' is not in the graph; lower this graph again"
            )
    found = Comparisons()
    live = None if module is None else FloatView("Norse", trace_module(module, floats))
    theirs = None if expected is None else expected_view(expected, graph, stepped.record, dt_s)
    notes = _compare_floats(found, graph, stepped, live, theirs, dt_s)
    views = [stepped] if live is None else [live, stepped]
    on_lava = partial(run_on_lava, path, timeout_s=timeout_s, progress=progress)
    result = _verification(network, events, on_lava, found, views, true)
    return replace(result, notes=notes)


def _verify_graph(
    graph_or_module: nir.NIRGraph | snn.SequentialState,
    inputs: npt.ArrayLike,
    dt_s: float,
    expected: Expected | None,
    module: snn.SequentialState | None,
    labels: npt.ArrayLike | None,
) -> Verification:
    """Compare a graph with what another tool or a module does, without a chip."""
    import nir

    from knarr.export import as_inputs, step_nir, to_nir, trace_module

    values = as_inputs(inputs)
    graph = graph_or_module
    if not isinstance(graph, nir.NIRGraph):
        module = graph
        graph = to_nir(module, values.shape[2:], dt_s, samples=values)
    if expected is None and module is None:
        raise DeployError(
            "verify: nothing to compare the graph with; give expected, a module or a .net file"
        )
    stepped = FloatView("NIR", step_nir(graph, values, dt_s), graph, values, dt_s)
    live = None if module is None else FloatView("Norse", trace_module(module, values))
    theirs = None if expected is None else expected_view(expected, graph, stepped.record, dt_s)
    found = Comparisons()
    notes = _compare_floats(found, graph, stepped, live, theirs, dt_s)
    if expected is not None and notes and _agree_time_first(graph, values, dt_s, expected):
        notes = (
            *notes,
            (
                "read with time first both arrays agree: exchange axes 0 and 1 of both "
                "(numpy.swapaxes), knarr takes samples first"
            ),
        )
    classes = int(np.prod(stepped.record.output.shape[2:]))
    labelled = None if labels is None else _classes(labels, len(values), classes)
    outputs = {view.name: view.record.output for view in (live, stepped) if view is not None}
    if theirs is not None and theirs.output is not None:
        outputs = {"expected": theirs.output, **outputs}
    # A graph names no readout: the outputs of all steps are added up, as most tools do.
    decisions = {
        name: tuple(output.reshape(*output.shape[:2], -1).sum(1, np.float64).argmax(1).tolist())
        for name, output in outputs.items()
    }
    samples, timesteps = values.shape[:2]
    raster = found.raster()
    return Verification(tuple(found.rows), samples, timesteps, decisions, labelled, raster, notes)


def _agree_time_first(graph: nir.NIRGraph, values: Array, dt_s: float, expected: Expected) -> bool:
    """Tell whether inputs and what is expected are the same as the graph's with time first."""
    from knarr.export import step_nir

    swapped = np.ascontiguousarray(np.swapaxes(values, 0, 1))
    stepped = FloatView("NIR", step_nir(graph, swapped, dt_s), graph, swapped, dt_s)
    try:
        theirs = expected_view(expected, graph, stepped.record, dt_s)
    except DeployError:  # shapes that fit one order need not fit the other
        return False
    found = Comparisons()
    _compare_floats(found, graph, stepped, None, theirs, dt_s)
    return all(row.mismatches == 0 for row in found.rows)


def _compare_floats(
    found: Comparisons,
    graph: nir.NIRGraph,
    stepped: FloatView,
    live: FloatView | None,
    theirs: PlainView | None,
    dt_s: float,
) -> tuple[str, ...]:
    """Compare NIR with another tool and with Norse; return what may explain a difference."""
    notes: tuple[str, ...] = ()
    if theirs is not None:
        for name in (*stepped.v, *stepped.spikes):
            if name in theirs.spikes and name in stepped.spikes:
                found.add(theirs, stepped, (name, name), "spikes", "=")
                theirs.spikes.pop(name)
            elif name in theirs.v:
                found.add(theirs, stepped, (name, name), "v", "=", READOUT_TOLERANCE)
        if OUTPUT in theirs.v and OUTPUT not in stepped.v:
            ours = PlainView("NIR", v={OUTPUT: np.asarray(stepped.record.output)})
            found.add(theirs, ours, (OUTPUT, OUTPUT), "v", "=", READOUT_TOLERANCE)
        if any(row.mismatches for row in found.rows):
            notes = _explanations(graph, found.rows, dt_s)
    if live is not None:
        _same_neurons(live, stepped)
        for name in live.v:
            found.add_all(live, stepped, name, ("spikes", "v"))
    return notes


def _explanations(graph: nir.NIRGraph, rows: list[Comparison], dt_s: float) -> tuple[str, ...]:
    """Return where another tool and the graph part, and what may be the reason."""
    from knarr.export import lost_in_file, proposed_steps

    # Layers are in order of execution: what comes later may only follow from the first.
    row = next(row for row in rows if row.mismatches)
    notes = [
        f"the first layer that differs is '{row.layer}': {row.mismatches:,} of {row.compared:,}"
    ]
    steps = proposed_steps(graph)
    if steps and all(not isclose(one.dt_s, dt_s, rel_tol=1e-4) for one in steps):
        shown = " or ".join(str(one) for one in steps)
        notes.append(f"compared at steps of {dt_s:g} s; the constants of the graph fit {shown}")
    lost = lost_in_file(graph, dt_s)
    notes += [f"the file does not say all that its tool may do: {line}" for line in lost]
    if lost:
        notes.append("`knarr finetune` fits the network as the chip runs it, whatever was lost")
    return tuple(notes)


def verify_network(
    path: str | Path,
    inputs: npt.ArrayLike,
    *,
    timesteps: int | None = None,
    input_bits: int | None = None,
    timeout_s: float | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run a `.net` file, ours or not, in the simulator and in Lava, and compare every integer.

    Args:
        path: the `.net` file.
        inputs: (samples, timesteps, *features) integers, or bias mantissas, as
            `knarr.hw_sim.simulate` takes them.
        timesteps: how many, where the inputs are a bias without a time axis.
        input_bits: as for `read_net`.
        timeout_s: limit of the Lava run, seconds.
        progress: called with (Lava steps done, in all).

    Raises:
        DeployError, ChipError, LavaError: whatever keeps the simulator or Lava from running.
    """
    path = Path(path)
    network = read_net(path, input_bits=input_bits)
    events = check_inputs(network.input, inputs, timesteps)
    on_lava = partial(
        run_on_lava, path, timeout_s=timeout_s, progress=progress, input_bits=input_bits
    )
    return _verification(network, events, on_lava, Comparisons())


def _classes(labels: npt.ArrayLike, samples: int, classes: int) -> tuple[int, ...]:
    try:
        return tuple(check_labels(labels, samples, classes).tolist())
    except ChipError as error:
        raise DeployError(str(error)) from error


def _same_neurons(live: FloatView, stepped: FloatView) -> None:
    for name in live.v:
        if name not in stepped.v:
            raise DeployError(
                f"module: its neuron '{name}' is not in the graph; export this module again"
            )
    for name in stepped.v:
        if name not in live.v:
            raise DeployError(
                f"module: has no neuron '{name}', which the graph has; give the whole module"
            )


def _verification(
    network: ChipNetwork,
    events: IntArray,
    on_lava: Callable[..., Recording],
    found: Comparisons,
    floats: Sequence[FloatView] = (),
    labels: tuple[int, ...] | None = None,
) -> Verification:
    """Run the simulator and Lava, compare them, and sum up what was found.

    Args:
        network: what is in the `.net` file.
        events: (samples, timesteps, *features) integers.
        on_lava: `run_on_lava` of that file.
        found: comparisons of the float stages.
        floats: the float stages, NIR the last of them, if there is a graph.
        labels: as in `Verification`.
    """
    ours = ChipView("hw_sim", simulate(network, events, record=RECORDABLE), network, events)
    lava = ChipView("Lava", on_lava(events, record=RECORDABLE), network, events)
    for stepped in floats[-1:]:
        nodes = NodeView(ours)
        for name, shown in nodes.names.items():
            if shown in nodes.spikes:
                found.add(stepped, nodes, (name, shown), "spikes", "~")
    for name in ours.v:
        found.add_all(ours, lava, name, ("spikes", "v", "u"))
    views: list[FloatView | ChipView] = [*floats, ours, lava]
    decisions = {view.name: _decide(network, view) for view in views}
    samples, timesteps = events.shape[:2]
    return Verification(tuple(found.rows), samples, timesteps, decisions, labels, found.raster())


def _decide(network: ChipNetwork, view: FloatView | ChipView) -> tuple[int, ...]:
    output = view.record.output
    flat = output.reshape(*output.shape[:2], -1)
    width = prod(network.output_shape)
    if flat.shape[2] != width:
        raise DeployError(
            f"{view.name}: {flat.shape[2]} outputs, the chip network has {width}; they are not the "
            "same network"
        )
    # float32 sums of a readout would depend on their order.
    # With int64 numpy takes float64 for floats of any width.
    wide = flat.astype(np.result_type(flat, np.int64))
    return tuple(network.readout.decide(wide).tolist())


# --- stages


@dataclass(eq=False)
class FloatView:
    """Norse or NIR; its layers are the graph's neuron nodes.

    Args:
        name: name of the stage.
        record: what was recorded.
        graph, inputs, dt_s: those of NIR's trace; they tell thresholds, and let it step one sample
            again.
    """

    name: str
    record: Trace
    graph: nir.NIRGraph | None = None
    inputs: Array | None = None
    dt_s: float = 0.0

    def __post_init__(self) -> None:
        self.spikes, self.v, self.u = self.record.spikes, self.record.v, self.record.i

    def side(self, layer: str, value: float, at: At) -> Side:
        """Return the state of one neuron; `value` is what was compared there."""
        import nir

        from knarr.export.graph.topology import inline

        v = float(self.v[layer][at])
        u = float(self.u[layer][at]) if layer in self.u else None
        fired = layer in self.spikes and bool(self.spikes[layer][at])
        if self.graph is None:
            return Side(value, u, v, None if fired else v)
        node = inline(self.graph)[0][layer]

        def parameter(name: str) -> float:
            values = np.asarray(getattr(node, name), dtype=np.float64)
            return float(np.broadcast_to(values, self.v[layer].shape[2:])[at[2:]])

        threshold = parameter("v_threshold") if hasattr(node, "v_threshold") else None
        if not fired:
            # Without a spike nothing was reset.
            return Side(value, u, v, v, threshold)
        arriving = u
        if isinstance(node, nir.LIF):
            arriving = self._arriving(self.graph, layer, node, at)
        if arriving is None or not isinstance(node, nir.LIF | nir.CubaLIF):
            return Side(value, u, v, None, threshold)
        # The voltage that crossed the threshold, rounded as float64 does.
        leak, driven = parameter("v_leak"), parameter("r") * arriving
        step_before = (at[0], at[1] - 1, *at[2:])
        before = float(self.v[layer][step_before]) if at[1] else leak
        # The sums keep the order that the stepper adds in, down to the last bit.
        if isinstance(node, nir.LIF):
            climb, tau = driven + leak - before, parameter("tau")
        else:
            climb, tau = leak - before + driven, parameter("tau_mem")
        return Side(value, u, v, before + self.dt_s / tau * climb, threshold)

    def _arriving(self, graph: nir.NIRGraph, layer: str, node: nir.LIF, at: At) -> float | None:
        """Return what the neuron's synapses give in this step.

        It is the voltage of a leak in the neuron's place that forgets within one step.
        """
        import nir

        from knarr.export import ExportError, step_nir
        from knarr.export.graph.topology import inline, topology

        if self.inputs is None or layer not in graph.nodes:
            return None  # inside a nested graph the node has another name
        # A loop would carry the voltages of the leak instead of spikes.
        if any(topology(*inline(graph), self.dt_s).looping.values()):
            return None
        ones = np.ones_like(np.asarray(node.tau, dtype=np.float64))
        leak = nir.LI(tau=self.dt_s * ones, r=ones, v_leak=0 * ones)
        probed = nir.NIRGraph({**graph.nodes, layer: leak}, graph.edges)
        sample, timestep = at[:2]
        inputs = self.inputs[sample : sample + 1, : timestep + 1]
        try:
            trace = step_nir(probed, inputs, self.dt_s)
        except ExportError:  # what follows the leak may not take voltages
            return None
        probed_at = (0, *at[1:])
        return float(trace.v[layer][probed_at])


@dataclass(eq=False)
class ChipView:
    """The simulator or Lava; its layers are the chip network's.

    Args:
        name: name of the stage.
        record: what was recorded.
        network: the chip network.
        inputs: what it was fed.
    """

    name: str
    record: Recording
    network: ChipNetwork
    inputs: Array

    def __post_init__(self) -> None:
        self.v, self.u = self.record.v, self.record.u
        self.spikes = dict(self.record.spikes)
        for layer in self.network.layers:
            # Layers that never fire by their nature have no spikes to compare.
            if not layer.neuron.spikes:
                self.spikes.pop(layer.name, None)

    def side(self, layer: str, value: float, at: At) -> Side:
        """Return the state of one neuron; `value` is what was compared there."""
        if self.network.input.neuron is not None and layer == INPUT_LAYER:
            neuron, bias = self.network.input.neuron, int(self.inputs[at])
            shape = self.network.input.shape
        else:
            found = next(one for one in self.network.layers if one.name == layer)
            # at[2] is the channel of a convolution, whose neurons share one bias.
            bias = 0 if found.bias_int is None else int(found.bias_int[at[2]])
            neuron, shape = found.neuron, found.output_shape
        before = (at[0], at[1] - 1, *at[2:])
        u = int(self.u[layer][at])
        v = np.asarray(self.v[layer][before] if at[1] else 0, dtype=np.int64)
        # The step of `knarr.hw_sim.arithmetic` as far as the threshold.
        v_decay = int(register_array(neuron.v_decay, shape)[at[2:]])
        vth_int = int(register_array(neuron.vth_int, shape)[at[2:]])
        reached = int(decay(v, v_decay)) + u + (bias << STATE_SHIFT)
        return Side(
            value=value,
            u=u,
            v=int(self.v[layer][at]),
            v_reached=max(min(reached, STATE_MAX - 1), 1 - STATE_MAX),
            threshold=vth_int << STATE_SHIFT if vth_int < NON_SPIKING_VTH else None,
        )


class NodeView:
    """The nodes of a graph in the simulator: a chip layer may hold several of them.

    Args:
        chip: the simulator's layers.

    Attributes:
        names: node -> what it is called here: its layer, or itself where it shares one.
        spikes, v, u: by that name.
    """

    def __init__(self, chip: ChipView) -> None:
        self.chip, self.name, self.record = chip, chip.name, chip.record
        self.places = node_places(chip.network)
        crowded = [
            layer
            for layer, count in Counter(l for l, _ in self.places.values()).items()
            if count > 1
        ]
        self.names = {
            node: layer if layer not in crowded and seat.plain else node
            for node, (layer, seat) in self.places.items()
        }
        self._seats = {self.names[node]: place for node, place in self.places.items()}
        self.spikes, self.v, self.u = (
            {
                name: seat.take(arrays[layer])
                for name, (layer, seat) in self._seats.items()
                if layer in arrays
            }
            for arrays in (chip.spikes, chip.v, chip.u)
        )

    def side(self, layer: str, value: float, at: At) -> Side:
        """Return the state of one neuron; `value` is what was compared there."""
        own, seat = self._seats[layer]
        found = next(one for one in self.chip.network.layers if one.name == own)
        place = np.unravel_index(int(seat.index()[at[2:]]), found.output_shape)
        return self.chip.side(own, value, (*at[:2], *(int(i) for i in place)))


View = FloatView | ChipView | NodeView | PlainView
Quantity = Literal["spikes", "v", "u"]


# --- comparisons


class Comparisons:
    """Collects one row for every quantity of every layer of every pair."""

    def __init__(self) -> None:
        self.rows: list[Comparison] = []
        self._spikes: dict[tuple[str, str], tuple[Array, Array]] = {}

    def add_all(self, left: View, right: View, layer: str, what: tuple[Quantity, ...]) -> None:
        """Compare quantities of a layer that must be equal, its spikes only where it fires."""
        for quantity in what:
            if quantity != "spikes" or layer in left.spikes:
                self.add(left, right, (layer, layer), quantity, "=")

    def add(
        self,
        left: View,
        right: View,
        layers: tuple[str, str],
        what: Quantity,
        sign: Literal["=", "~"],
        tolerance: float = 0.0,
    ) -> None:
        """Compare one quantity of one layer, exactly but for float readouts of other tools.

        Args:
            left, right: the stages.
            layers: what each of them calls the layer; the right one's name is kept.
            what: which of their arrays.
            sign: "=" where they must be equal, "~" where the difference is measured.
            tolerance: share of the right one's largest value that may lie between them.

        Raises:
            DeployError: the arrays have different shapes, so that equality would not mean anything.
        """
        a, b = getattr(left, what)[layers[0]], getattr(right, what)[layers[1]]
        pair = f"{left.name} {sign} {right.name}"
        left_features = a.shape[2:]
        # The chip has rows where a graph has one, and vectors where it has maps.
        if sign == "~" and a.shape[:2] == b.shape[:2] and a.size == b.size:
            a = a.reshape(b.shape)
        if a.shape != b.shape:
            raise DeployError(
                f"layer '{layers[1]}': {pair}: shapes {a.shape} and {b.shape}; they are not the "
                "same network"
            )
        differs = a != b
        if tolerance:
            differs = np.abs(a - b) > tolerance * np.abs(b).max()
        first = None
        if differs.any():
            at = first_difference(differs)
            flat = int(np.ravel_multi_index(at[2:], b.shape[2:]))
            left_index = (int(i) for i in np.unravel_index(flat, left_features))
            left_at = (*at[:2], *left_index)
            first = FirstDivergence(
                sample=at[0],
                timestep=at[1],
                index=at[2:],
                left=left.side(layers[0], a[at].item(), left_at),
                right=right.side(layers[1], b[at].item(), at),
            )
        by_step = differs.sum(axis=(0, *range(2, differs.ndim)))
        self.rows.append(
            Comparison(
                pair=pair,
                layer=layers[1],
                what=what,
                compared=int(a.size),
                mismatches=int(differs.sum()),
                active=(int(np.count_nonzero(a)), int(np.count_nonzero(b))),
                by_step=tuple(by_step.tolist()),
                first=first,
            )
        )
        if what == "spikes":
            self._spikes[pair, layers[1]] = a, b

    def raster(self) -> Raster | None:
        """Return a raster of the sample with the first divergence.

        A pair that had to be equal goes before one that is measured. The raster shows the neurons
        that part first, then the busiest.

        Returns:
            None where no layer fires.
        """
        candidates = [row for row in self.rows if (row.pair, row.layer) in self._spikes]
        if not candidates:
            return None
        row = min(candidates, key=_urgency)
        return _raster(row, *self._spikes[row.pair, row.layer])


def _urgency(row: Comparison) -> tuple[bool, bool, int]:
    """Order rows for the raster.

    Diverging rows come first, of these the pairs that must be equal, of these the earliest; if none
    diverges, what is measured comes first.
    """
    if row.first is None:
        return True, row.required, 0
    return False, not row.required, row.first.timestep


def _raster(row: Comparison, a: Array, b: Array) -> Raster:
    sample = row.first.sample if row.first else 0
    left, right = (side[sample].reshape(side.shape[1], -1) != 0 for side in (a, b))
    differs = left != right
    # The step in which each neuron parts; those that never do come last.
    parted = np.where(differs.any(axis=0), differs.argmax(axis=0), len(left))
    first = None
    if row.first is not None:
        neuron = int(np.ravel_multi_index(row.first.index, a.shape[2:]))
        first = row.first.timestep, neuron
        parted[neuron] = -1  # also where only its voltage differs
    busiest = -(left.sum(axis=0) + right.sum(axis=0))
    neurons = np.sort(np.lexsort((busiest, parted))[:SHOWN_NEURONS])
    return Raster(
        pair=row.pair,
        layer=row.layer,
        sample=sample,
        neurons=tuple(neurons.tolist()),
        left=_spike_steps(left[:, neurons]),
        right=_spike_steps(right[:, neurons]),
        first=first,
    )


def _spike_steps(fired: Array) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(np.flatnonzero(neuron).tolist()) for neuron in fired.T)
