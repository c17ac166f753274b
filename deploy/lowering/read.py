"""Read a graph as neurons that hear each other, through one linear map for each that is heard.

What lies between two neurons (synapses, pools, scales, Flatten, delays) is one map: a convolution
where one is exact (`knarr.export.graph.paths`), else a matrix. Where only a padded convolution
behind a pool is in the way, and its source sends spikes, relay neurons hand on the windows of the
pool, one for each pixel of a window: padding then adds windows of silence, as the graph has them.

A neuron may hear itself, one step later. A synapse's bias in front of a synaptic current is heard
from a neuron that fires at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import networkx as nx
import nir
import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.neurons import SPIKING, FloatNeuron, Notes, normalise
from knarr.export.graph.convolutions import restore_groups
from knarr.export.graph.parameters import delay_steps, float64
from knarr.export.graph.paths import (
    Convolution,
    LinearPaths,
    SourcePath,
    as_image,
    identity,
    plus,
    then,
)
from knarr.export.graph.shapes import Shape, infer, spread
from knarr.export.graph.topology import CONVS, LINEARS, NEURONS, POOLS, inline, topology
from knarr.hw_sim.arrays import Float64, Int32
from knarr.hw_sim.network import DECAY_UNITY, MAX_DELAY

CONSTANT = ""
"""Name under which a neuron that fires at every step is heard."""
SMALL_MATRIX = 2**16
"""Weights up to which a dense layer is cheaper than relay neurons."""

chip_shape = as_image
"""Return a shape as the chip has it: signals (channels, length) are images one pixel high."""


@dataclass(frozen=True, eq=False)
class Hearing:
    """One source that a node hears, and the map on the way.

    Args:
        source: name of the input, of a node, or `CONSTANT`.
        convolution: of the source's image, None where only a matrix is exact.
        matrix: returns it as (features out, features in).
        delay: (features out, features in) whole steps, or one number that all have.
    """

    source: str
    convolution: Convolution | None
    matrix: Callable[[], Float64]
    delay: Int32 | int = 0


@dataclass(frozen=True, eq=False)
class FloatNode:
    """Neurons that hear others.

    Args:
        name: name of the node.
        synapse: name of what feeds it, which its chip layer gets.
        shape: (features,) or (C, H, W).
        neuron: its neurons; None for relay neurons, which hand spikes on.
        hearings: one for each source.
        bias: `shape`: added to v at every step, in units of the normal form.
        gain: `shape`: v per unit of what it hears.
        recurrent: (features, features) from its own spikes of the step before, or None.
    """

    name: str
    synapse: str
    shape: Shape
    neuron: FloatNeuron | None
    hearings: tuple[Hearing, ...]
    bias: Float64
    gain: Float64
    recurrent: Float64 | None = None

    @property
    def convolves(self) -> bool:
        """Tell whether a convolution holds it: one kernel and one bias per channel."""
        plain = all(
            heard.convolution is not None and not np.any(heard.delay) for heard in self.hearings
        )
        return plain and self.recurrent is None and _uniform(self.bias) and self._shares_kernels

    @property
    def _shares_kernels(self) -> bool:
        # A gain of its own can be a threshold of its own instead, where there is one and it keeps
        # its sign.
        fires = self.neuron is None or self.neuron.fires
        return _uniform(self.gain) or (fires and bool((self.gain > 0).all()))


@dataclass(frozen=True, eq=False)
class FloatNetwork:
    """All nodes of a graph that reach its output, and what was changed.

    Args:
        nodes: by name, sources first.
        output: name of the last.
        input: name of the input.
        input_shape: as the chip has it.
        graph_shape: as the graph has it.
        notes: what was changed.
    """

    nodes: dict[str, FloatNode]
    output: str
    input: str
    input_shape: Shape
    graph_shape: Shape
    notes: Notes


def _uniform(values: Float64) -> bool:
    """Tell whether every channel has one value."""
    rows = values.reshape(len(values), -1)
    return bool((rows == rows[:, :1]).all())


def read_network(
    graph: nir.NIRGraph,
    dt_s: float,
    *,
    approximate: bool,
    graded: bool = False,
    outlined: bool = False,
) -> FloatNetwork:
    """Read a graph.

    Args:
        graph: any that `step_nir` runs.
        dt_s: time step, seconds.
        approximate: map what has no exact form as nearly as the chip can, and say so.
        graded: the input is more than spikes, which relay neurons cannot hand on.
        outlined: every weight counts as 1, so that a map is 0 just where no synapse is.

    Raises:
        ExportError: the graph has no meaning.
        DeployError: its structure or a node is not what chip layers can hold.
    """
    opened, edges = inline(graph)
    # A file may hold groups as one dense kernel with zeros, which are no synapses.
    nodes = {name: restore_groups(node) for name, node in opened.items()}
    if outlined:
        nodes = {name: _outline(node) for name, node in nodes.items()}
    order = topology(nodes, edges, dt_s)
    entering, leaving = infer(nodes, order)
    paths = LinearPaths(nodes, order, entering, leaving)
    return _Reader(paths, dt_s, Notes(approximate), graded).network()


def _outline(node: Any) -> Any:
    """Return a node with weights of 1, and scales without a sign, so that nothing cancels."""
    field = "scale" if isinstance(node, nir.Scale) else "weight"
    if not isinstance(node, (*LINEARS, *CONVS, nir.Scale)):
        return node
    changed = copy(node)
    values = np.asarray(getattr(node, field))
    setattr(changed, field, np.abs(values) if field == "scale" else np.ones(values.shape))
    return changed


class _Reader:
    """A graph that is read; nodes are those of the paths, and relay neurons among them."""

    def __init__(self, paths: LinearPaths, dt_s: float, notes: Notes, graded: bool) -> None:
        self.paths, self.dt_s, self.notes, self.graded = paths, dt_s, notes, graded
        self.input = paths.order.input
        self.into = {
            name: paths.into(name)
            for name in paths.order.order
            if isinstance(paths.nodes[name], NEURONS)
        }
        self.imaged = {
            path.source
            for each in self.into.values()
            for path in each
            if all(link is not None for link in self._links(path))
        }
        """Sources that somebody hears as an image."""
        self.relays: dict[str, FloatNode] = {}
        self.named: set[str] = set()

    def network(self) -> FloatNetwork:
        """Return the nodes that reach the output."""
        output = self._output()
        graph: Any = nx.DiGraph()
        for name, each in self.into.items():
            graph.add_node(name)
            graph.add_edges_from(
                (path.source, name) for path in each if path.source != name and not path.lag
            )
        if not nx.is_directed_acyclic_graph(graph):
            loop = sorted({source for source, _ in nx.find_cycle(graph)})
            raise DeployError(
                f"nodes {loop}: form a loop that a chip layer does not have; let each neuron hear "
                "itself alone"
            )
        wanted = nx.ancestors(graph, output) | {output}
        idle = [name for name in self.into if name not in wanted]
        if idle:
            self.notes.rewrites.append(f"{idle}: left out, nothing of them reaches the output")
        found: dict[str, FloatNode] = {}
        for name in nx.lexicographical_topological_sort(graph):
            if name in wanted and name != self.input:
                node = self._node(name)
                found |= self.relays
                found[name] = node
        for name in list(found)[:-1]:
            neuron = found[name].neuron
            if neuron is not None and not neuron.fires:
                raise DeployError(
                    f"node '{name}': never fires, so nothing after it would hear it; only the last "
                    "may"
                )
        shape = self.paths.leaving[self.input]
        self._check_shape(self.input, shape)
        return FloatNetwork(found, output, self.input, as_image(shape), shape, self.notes)

    def _output(self) -> str:
        """Return the neuron that the output shows."""
        paths, end = self.paths, self.paths.order.output
        arriving = paths.into(end)
        for path in arriving:
            for name in reversed(path.passed):
                node = paths.nodes[name]
                if isinstance(node, (*LINEARS, *CONVS)):
                    raise DeployError(
                        f"node '{name}': no neuron follows it; a chip layer is a synapse and its "
                        "neurons, end with LI or a spiking neuron"
                    )
                if not isinstance(node, nir.Flatten):
                    raise DeployError(
                        "graph: ends without a neuron behind its last node, or holds none; end "
                        "with a synapse and neurons"
                    )
        if len(arriving) != 1:
            raise DeployError(
                f"graph: its output is the sum of {[path.source for path in arriving]}; let one "
                "neuron give it"
            )
        (path,) = arriving
        self._refuse_threshold(path.source)
        if path.source == self.input or path.lag:
            raise DeployError(
                "graph: ends without a neuron behind its last node, or holds none; end with a "
                "synapse and neurons"
            )
        return path.source

    def _check_shape(self, name: str, shape: Shape) -> None:
        if len(shape) not in (1, 2, 3):
            raise DeployError(
                f"node '{name}': shape {shape}; a chip layer has (features,), (channels, length) "
                "or (C, H, W), flatten it"
            )

    def _refuse_threshold(self, name: str) -> None:
        if isinstance(self.paths.nodes[name], nir.Threshold):
            raise DeployError(
                f"node '{name}': Threshold cannot stand here; chip neurons are LIF, CubaLIF, LI, "
                "CubaLI, IF and I, use a LIF with tau = dt, which forgets in the step"
            )

    # --- one node

    def _node(self, name: str) -> FloatNode:
        paths = self.paths
        shape = paths.leaving[name]
        self._check_shape(name, shape)
        neuron = normalise(name, paths.nodes[name], self.dt_s, self.notes)
        hearings: dict[str, Hearing] = {}
        recurrent: Float64 | None = None
        synapses: list[str] = []
        for path in self.into[name]:
            self._refuse_threshold(path.source)
            if path.source == name or path.lag:
                looped = self._looped(name, path)
                recurrent = looped if recurrent is None else recurrent + looped
                continue
            synapse = self._synapse(path) or f"{name}_identity"
            self._note_folds(path, synapse)
            synapses += [] if synapse in synapses else [synapse]
            heard = self._hearing(path, name)
            known = hearings.get(heard.source)
            hearings[heard.source] = heard if known is None else self._both(name, known, heard)
        seen = as_image(shape)
        gain, leak = spread(neuron.gain, shape), spread(neuron.bias, shape)
        bias = gain * paths.offset(name)
        if neuron.filtered and bias.any():
            bias = self._filtered(neuron, bias, hearings, seen)
        if not hearings:
            raise DeployError(f"node '{name}': hears nothing but itself; let something feed it")
        node = FloatNode(
            name, self._own_name(synapses, name), seen, _spread(neuron, shape),
            tuple(hearings.values()), (bias + leak).reshape(seen), gain.reshape(seen), recurrent,
        )  # fmt: skip
        if len(seen) == 3 and not node.convolves:
            weights = sum(prod(seen) * self._features(heard) for heard in node.hearings)
            self.notes.rewrites.append(
                f"'{name}': {weights:,} weights as a dense layer, no convolution is exact"
            )
        return node

    def _own_name(self, synapses: list[str], name: str) -> str:
        """Return a name for the layer that no other has: one synapse may feed several neurons."""
        made = "+".join(synapses)
        made = made if made not in self.named else f"{made}_{name}"
        self.named.add(made)
        return made

    def _features(self, heard: Hearing) -> int:
        if heard.source == CONSTANT:
            return 1
        if heard.source in self.relays:
            return prod(self.relays[heard.source].shape)
        return prod(self.paths.leaving[heard.source])

    def _filtered(
        self, neuron: FloatNeuron, bias: Float64, hearings: dict[str, Hearing], shape: Shape
    ) -> Float64:
        """Return what is left of a bias that passes a synaptic current, and add how it is heard.

        Behind a synaptic current the bias of the graph climbs to its end value bias / i_share; the
        chip's has that value from the first step.
        """
        graded = self.graded and self.input in hearings
        if self.notes.allowed or graded:
            named = [
                name
                for path in self.into[neuron.name]
                for name in path.passed
                if np.any(getattr(self.paths.nodes[name], "bias", 0))
            ]
            self.notes.approximate(
                f"node '{named[0]}': its bias passes the synaptic filter of '{neuron.name}', the "
                "chip's bias does not",
                "train without bias, use LIF neurons,",
                "it acts in full from the first step",
            )
            return bias / spread(float64(neuron.i_decay) / DECAY_UNITY, bias.shape)
        column = bias.reshape(-1, 1) / self._gain_of(neuron, bias.shape).reshape(-1, 1)
        hearings[CONSTANT] = Hearing(CONSTANT, None, lambda: column)
        if len(shape) == 3 and _uniform(bias.reshape(shape)):
            one = Convolution(
                column.reshape(shape[0], -1)[:, :1, None, None], (1, 1), (0, 0), (1, *shape[1:]),
                shape,
            )  # fmt: skip
            hearings[CONSTANT] = replace(hearings[CONSTANT], convolution=one)
        self.notes.rewrites.append(
            f"'{neuron.name}': hears its bias, which its current filters, from a neuron that fires "
            "at every step"
        )
        return np.zeros_like(bias)

    def _gain_of(self, neuron: FloatNeuron, shape: Shape) -> Float64:
        gain = spread(neuron.gain, shape)
        # Without a gain nothing arrives, whatever the weight.
        return np.where(gain == 0, 1.0, gain)

    def _looped(self, name: str, path: SourcePath) -> Float64:
        """Return the matrix through which a neuron hears itself one step later.

        Raises:
            DeployError: it is another neuron, or another number of steps.
        """
        steps = path.lag
        for passed in path.passed:
            node = self.paths.nodes[passed]
            if isinstance(node, nir.Delay):
                delays = delay_steps(passed, node, self.dt_s)
                steps += int(delays.max()) if not np.ptp(delays) else MAX_DELAY
        fires = isinstance(self.paths.nodes[name], SPIKING)
        if path.source != name or steps != 1 or not fires:
            closing = (*path.passed, path.source)[0]
            raise DeployError(
                f"node '{closing}': closes a loop into '{name}' that a chip layer does not have; "
                "let a LIF, CubaLIF or IF hear itself, one step later"
            )
        return self.paths.matrix(path)

    def _both(self, name: str, one: Hearing, other: Hearing) -> Hearing:
        """Return two maps of one source as their sum."""
        if not np.array_equal(one.delay, other.delay):
            raise DeployError(
                f"node '{name}': hears '{one.source}' twice, with delays that differ, and a pair "
                "of neurons has one synapse; use one delay"
            )
        joined = None
        if one.convolution is not None and other.convolution is not None:
            joined = plus(one.convolution, other.convolution)
        return Hearing(one.source, joined, lambda: one.matrix() + other.matrix(), one.delay)

    def _synapse(self, path: SourcePath) -> str | None:
        """Return the name that a layer gets from a path: of its last synapse, else of a pool."""
        for kinds in ((*LINEARS, *CONVS), (*POOLS, nir.Scale)):
            for name in reversed(path.passed):
                if isinstance(self.paths.nodes[name], kinds):
                    return name
        return None

    def _note_folds(self, path: SourcePath, synapse: str) -> None:
        notes = self.notes.folded
        for name in path.passed:
            node = self.paths.nodes[name]
            line = ""
            if isinstance(node, POOLS):
                line = f"pooling '{name}' into '{synapse}'"
                if name == synapse:
                    line = f"pooling '{name}' as a convolution of its own"
            elif isinstance(node, nir.Scale):
                line = f"scale '{name}' into '{synapse}'"
            elif name != synapse and isinstance(node, (*LINEARS, *CONVS)):
                line = f"synapse '{name}' into '{synapse}'"
            if line and line not in notes:
                notes.append(line)

    # --- one path

    def _links(self, path: SourcePath) -> list[Convolution | None]:
        """Return the nodes of a path as convolutions, delays left out."""
        links = self.paths.links(path)
        named = zip(path.passed, links, strict=True)
        found = [link for name, link in named if not isinstance(self.paths.nodes[name], nir.Delay)]
        if not found:
            shape = self.paths.leaving[path.source]
            found = [identity(as_image(shape)) if len(shape) in (2, 3) else None]
        return found

    def _hearing(self, path: SourcePath, target: str) -> Hearing:
        """Return what a path hands on."""
        delay = self._delay(path)
        links = self._links(path)
        if any(link is None for link in links):
            return Hearing(path.source, None, lambda: self.paths.matrix(path), delay)
        found: Convolution = links[0]  # type: ignore[assignment]  # none is None
        for position, link in enumerate(links[1:], start=1):
            assert link is not None
            both = then(found, link)
            if both is not None:
                found = both
                continue
            size = prod(self.paths.leaving[target]) * prod(self.paths.leaving[path.source])
            spikes = path.source != self.input or not self.graded
            small = size <= SMALL_MATRIX and target not in self.imaged
            if small or not spikes or np.any(delay):
                return Hearing(path.source, None, lambda: self.paths.matrix(path), delay)
            return self._windows(path, found, links[position:], path.passed[position - 1])
        return Hearing(path.source, found, lambda: self.paths.matrix(path), delay)

    def _windows(
        self, path: SourcePath, window: Convolution, rest: list[Convolution | None], at: str
    ) -> Hearing:
        """Return what a path hands on by way of relay neurons, one for each pixel of a window."""
        name = f"{at}_windows"
        plain = window.plain().dense()
        pixels = np.argwhere(plain.weight.any(axis=0))  # (input channel, row, column)
        one_each = np.zeros((len(pixels), *plain.weight.shape[1:]))
        one_each[(np.arange(len(pixels)), *pixels.T)] = 1
        shape = (len(pixels), *plain.leaving[1:])
        copies = replace(plain, weight=one_each, leaving=shape)
        if name not in self.relays:
            self.relays[name] = relay(name, path.source, copies)
            self.notes.rewrites.append(
                f"'{name}': {prod(shape)} relay neurons hand on the windows of '{at}', whose "
                "padding no convolution would see"
            )
        summed = plain.weight[:, pixels[:, 0], pixels[:, 1], pixels[:, 2]]
        found = Convolution(summed[:, :, None, None], (1, 1), (0, 0), shape, plain.leaving)
        for position, link in enumerate(rest):
            assert link is not None
            both = then(found, link)
            if both is None:
                # Relay neurons send spikes, so that the same can be done with them.
                return self._windows(SourcePath(name, path.passed), found, rest[position:], name)
            found = both
        return Hearing(name, found, lambda: as_matrix(found))

    def _delay(self, path: SourcePath) -> Int32 | int:
        """Return the delays of a path per synapse.

        Raises:
            DeployError: delays that differ between features in the middle of a path, or too long.
        """
        nodes = self.paths.nodes
        found: Any = 0
        synapses = [not isinstance(nodes[name], (nir.Flatten, nir.Delay)) for name in path.passed]
        for position, name in enumerate(path.passed):
            node = nodes[name]
            if not isinstance(node, nir.Delay):
                continue
            steps = delay_steps(name, node, self.dt_s).astype(np.int32)
            if not np.ptp(steps):
                found = found + int(steps.flat[0])
                continue
            each = np.broadcast_to(steps, self.paths.leaving[name]).reshape(-1)
            if not any(synapses[:position]):
                found = found + each[None, :]
            elif not any(synapses[position:]):
                found = found + each[:, None]
            else:
                raise DeployError(
                    f"node '{name}': delays that differ lie between two synapses; put them before "
                    "the first or behind the last"
                )
        if np.max(found) > MAX_DELAY:
            raise DeployError(
                f"node '{self._synapse(path) or path.source}': delays up to {np.max(found)} steps, "
                f"netx has 0..{MAX_DELAY}; use a longer dt or shorter delays"
            )
        return found if np.ndim(found) else int(found)


def _spread(neuron: FloatNeuron, shape: Shape) -> FloatNeuron:
    """Return neurons whose parameters have one value per feature, in the chip's order, or one for all."""

    def each(values: Any) -> Any:
        if np.ndim(values) == 0:
            return values
        return spread(np.asarray(values), shape).reshape(as_image(shape))

    return replace(
        neuron,
        height=each(neuron.height),
        i_decay=each(neuron.i_decay),
        v_decay=each(neuron.v_decay),
    )


def relay(name: str, source: str, copies: Convolution) -> FloatNode:
    """Return relay neurons that hand on pixels of a source."""
    heard = Hearing(source, copies, lambda: as_matrix(copies))
    return FloatNode(
        name,
        name,
        copies.leaving,
        None,
        (heard,),
        np.zeros(copies.leaving),
        np.ones(copies.leaving),
    )


def as_matrix(convolution: Convolution) -> Float64:
    """Return a convolution as (features out, features in)."""
    size = prod(convolution.leaving)
    rows = np.eye(size).reshape(size, *convolution.leaving)
    return convolution.adjoint(rows).reshape(size, -1)
