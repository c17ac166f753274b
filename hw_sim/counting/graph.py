"""Count a NIR graph while `step_nir`'s stepper runs it, with one time step in memory.

`EventPaths` finds the paths of events through a graph, `CountingPlan` the synapses they meet and what
every other node costs, and `GraphCounter` counts step by step.

A site is a synapse node, or a bare edge into a neuron (an identity synapse of fan-out 1). Under the
folded policy each path from an event source (input, neuron, Threshold, Delay, or a synapse whose
currents go on) to a site is a route of its own, with the pools on it folded into the synapse. Under
the float policy a site hears the sum of all that arrives, as it is.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import prod
from typing import Any, NamedTuple

import nir
import numpy as np
import torch

from knarr.export.arguments import as_inputs
from knarr.export.graph.convolutions import restore_groups
from knarr.export.graph.parameters import ints
from knarr.export.graph.step import Stepper, plain_arithmetic
from knarr.export.graph.step_synapses import DelayLine
from knarr.export.graph.topology import NEURONS
from knarr.hw_sim.arrays import Array, Int64, Mask
from knarr.hw_sim.counting.counts import LayerSizes, LedgerRow, OperationCounts, Status
from knarr.hw_sim.counting.fan_out import Axis, AxisWindow, FanOut, compose_axis, own_fan_out
from knarr.hw_sim.counting.tally import Tallies
from knarr.hw_sim.errors import CountError

CONVS = (nir.Conv1d, nir.Conv2d)
MATRICES = (nir.Linear, nir.Affine)
POOLS = (nir.AvgPool2d, nir.SumPool2d)
STATES = {nir.Threshold: 0, nir.CubaLIF: 2, nir.CubaLI: 2}
"""States of a neuron, 1 of every other kind; CUBA neurons hold a current besides the voltage."""
MAX_PATHS = 10_000

Edges = dict[str, list[tuple[str, int]]]
"""Node -> its neighbours on one side, each with the lag of the edge in steps: 1 where it closes a loop."""


class Path(NamedTuple):
    """A path to a node.

    Args:
        source: node at which it starts.
        lag: steps that what takes it waits on edges that close loops.
        passed: nodes on the way, source first.
    """

    source: str
    lag: int
    passed: tuple[str, ...] = ()


class EventPaths:
    """A graph's structure as its events see it.

    Args:
        run: a stepper of the graph.
        pooling: "folded" or "float".

    Attributes:
        names: all nodes, sources before targets.
        sources, targets: node -> everything that arrives at it, and where it goes.
        same_step: `targets` without the edges that close loops.
        synapses: nodes that hold weights.
        neurons: nodes that have neurons; a Threshold is one without a state.
        event_sources: neurons and the input.
        converters: nodes that give something else than what arrives: events become currents, or
            currents events.
        hearers: nodes at which what arrives goes no further.
        stops: nodes at which what arrives goes no further in the same step, Delays included.
        cutters: Scales with zeros, which cut some of what passes.
        behind: synapse -> pools and scales between it and its neurons that are folded into it.
    """

    def __init__(self, run: Stepper, pooling: str) -> None:
        self.order = run.order
        self.names = run.order.order
        self.delays = run.delays
        self.entering, self.leaving = run.entering, run.leaving
        self.folded = pooling == "folded"
        # A grouped convolution may have been written as one with zeros between its groups.
        self.nodes = {name: restore_groups(node) for name, node in run.nodes.items()}
        self.sources: Edges = {}
        self.targets: Edges = {name: [] for name in self.nodes}
        self.same_step: Edges = {name: [] for name in self.nodes}
        for name in self.names:
            direct = [(source, 0) for source in self.order.sources[name]]
            looping = [(source, 1) for source in self.order.looping[name]]
            self.sources[name] = direct + looping
            for source, _ in direct:
                self.same_step[source].append((name, 0))
            for source, lag in self.sources[name]:
                self.targets[source].append((name, lag))
        self.synapses = self._of_kind(*MATRICES, *CONVS)
        self.neurons = self._of_kind(*NEURONS, nir.Threshold)
        self.pools = self._of_kind(*POOLS)
        self.scales = self._of_kind(nir.Scale)
        whole = {name for name in self.scales if np.all(self.nodes[name].scale)}
        self.cutters = self.scales - whole
        self.event_sources = self.neurons | {self.order.input}
        self.converters = self.synapses | self.event_sources
        self.hearers = self.synapses | self.neurons | {self.order.output}
        self.stops = self.hearers | self.delays.keys()
        self.behind = {name: self._folded_behind(name) for name in self.synapses}
        self.folded_behind = {node for passed in self.behind.values() for node in passed}

    def _of_kind(self, *kinds: type) -> set[str]:
        return {name for name, node in self.nodes.items() if isinstance(node, kinds)}

    def delay(self, name: str) -> int:
        """Return the shortest delay of a node in steps, 0 where it is no Delay."""
        return int(self.delays[name].steps.min()) if name in self.delays else 0

    def carries(self, name: str) -> set[str]:
        """Return whether a node passes on "events", "currents" or both, from however far."""
        origins = {name}
        if name not in self.converters:
            origins = self.reach(name, self.sources, self.converters)
        kinds = {"currents" for origin in origins & self.synapses}
        return kinds | {"events" for origin in origins & self.event_sources}

    def reach(
        self,
        name: str,
        edges: Edges,
        opaque: set[str],
    ) -> set[str]:
        """Return all nodes in one direction, up to and with the first opaque one on each path."""
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            for node, _ in edges[waiting.pop()]:
                if node not in reached:
                    reached.add(node)
                    if node not in opaque:
                        waiting.append(node)
        return reached

    def paths(self, name: str, starts: set[str]) -> Iterator[Path]:
        """Yield every path to a node from the first of `starts` on each, seen from the node.

        Raises:
            CountError: there are more than `MAX_PATHS`.
        """
        waiting = self._edges_to(name)
        for _ in range(MAX_PATHS):
            if not waiting:
                return
            path = waiting.pop(0)
            if path.source in starts:
                yield path
            elif path.source not in path.passed:  # a loop through a Delay is taken once
                passed = (path.source, *path.passed)
                for source, lag in self.sources[path.source]:
                    waiting.append(Path(source, path.lag + lag, passed))
        raise CountError(
            f"node '{name}': more than {MAX_PATHS} paths of events lead here; put neurons between"
        )

    def arrivals(self, name: str) -> list[Path]:
        """Return the paths that this policy tells apart: all with pools folded, else the edges.

        They start at an event source, a synapse or a Delay.
        """
        if self.folded:
            return list(self.paths(name, self.converters | self.delays.keys()))
        return self._edges_to(name)

    def _edges_to(self, name: str) -> list[Path]:
        return [Path(source, lag) for source, lag in self.sources[name]]

    def bare_events(self, name: str) -> list[Path]:
        """Return the arrivals of events that no synapse turns into currents."""
        arrivals = self.arrivals(name)
        return [path for path in arrivals if "currents" not in self.carries(path.source)]

    def _chain(self, name: str, edges: Edges) -> Iterator[tuple[str, int]]:
        """Walk in one direction as long as there is one neighbour; lags are those of each edge."""
        # More steps than there are nodes would go round a loop.
        for _ in self.nodes:
            if len(edges[name]) != 1:
                return
            ((name, lag),) = edges[name]
            yield name, lag

    def _folded_behind(self, name: str) -> list[str]:
        """Return pools and scales between a synapse and its neurons alone, which it takes in."""
        if not self.folded:
            return []
        passed = []
        for target, lag in self._chain(name, self.targets):
            shared = len(self.sources[target]) != 1
            if lag or shared or target in self.stops | self.cutters:
                break
            passed.append(target)
        last = [name, *passed][-1]
        if self.synapses.intersection(end for end, _ in self.targets[last]):
            return []  # what lies before a synapse folds into that one
        # Outputs of other synapses have no two axes that a pool could slide over.
        if self.pools.intersection(passed) and not isinstance(self.nodes[name], nir.Conv2d):
            return []
        return [node for node in passed if node in self.pools | self.scales]

    def wait(self, name: str) -> int:
        """Return the fewest steps, in loops and Delays, between a synapse and what hears it.

        What acts later than the inference lasts is not paid.
        """
        heard: list[int] = []
        waiting = [(0, name)]
        met: set[str] = set()
        while waiting:
            steps, here = heappop(waiting)
            for target, lag in self.targets[here]:
                after = steps + lag + self.delay(target)
                if target in self.hearers:
                    heard.append(after)
                elif target not in met:
                    met.add(target)
                    heappush(waiting, (after, target))
        return min(heard, default=0)

    def waits(self, name: str) -> Int64 | None:
        """Return the steps until each output of a synapse is heard, None where all wait alike."""
        steps = np.zeros(prod(self.leaving[name]), dtype=np.int64)
        for node, lag in self._chain(name, self.targets):
            steps += lag
            if node in self.delays:
                each = self.delays[node].steps.expand(self.leaving[node])
                steps += each.reshape(-1).numpy()
            elif node in self.hearers | self.pools:
                break
        return None if (steps == steps[0]).all() else steps

    def own_loop(self, name: str) -> str | None:
        """Return the neuron that a synapse joins with itself alone, one step later or more."""
        node = self.nodes[name]
        # Only a square matrix can join neurons with themselves.
        if not isinstance(node, MATRICES) or len(set(np.shape(node.weight))) != 1:
            return None
        before = self._end_of_chain(name, self.sources)
        behind = self._end_of_chain(name, self.targets)
        if before is None or behind is None:
            return None
        sender, lag, delay = before
        closed = sender == behind[0] and sender in self.neurons
        # The edge that closes the loop must lie behind the synapse, where its wait counts it.
        later = lag == 0 and self.wait(name) + delay > 0
        return sender if closed and later else None

    def _end_of_chain(self, name: str, edges: Edges) -> tuple[str, int, int] | None:
        """Return the end of a path without forks, its loop edges, and the steps of its Delays."""
        lags = delays = 0
        for node, lag in self._chain(name, edges):
            lags += lag
            if node in self.converters | self.hearers:
                return node, lags, delays
            delays += self.delay(node)
            folded = self.folded and node in self.scales - self.cutters
            # The ends of a nested graph stay as nodes of the opened one.
            passive = (nir.Input, nir.Output, nir.Flatten, nir.Delay)
            if not folded and not isinstance(self.nodes[node], passive):
                return None
        return None


def site_fan_out(
    paths: EventPaths,
    name: str,
    passed: Sequence[str],
) -> FanOut | str:
    """Return the synapses of a site for events that pass these nodes, or why they cannot be folded.

    Args:
        paths: the graph.
        name: synapse, or neuron that a bare edge enters.
        passed: nodes on the way, source first; empty under the float policy.
    """
    node = paths.nodes[name]
    pools = [passing for passing in passed if passing in paths.pools]
    flattened = False
    partial = False
    for passing in passed:
        if passing in paths.cutters:
            return f"scale '{passing}' holds zeros; multiply it into the weights, or use pooling='float'"
        flattened |= isinstance(paths.nodes[passing], nir.Flatten)
        # A pool or a kernel behind a Flatten slides over axes that are no longer those of the pools
        # before.
        partial |= flattened and passing in pools
    if pools and (partial or (flattened and isinstance(node, CONVS))):
        return (
            f"pooling '{pools[0]}' beside a partial flatten cannot be folded; use pooling='float'"
        )
    before = [axis_windows(paths, pool) for pool in pools]
    if isinstance(node, CONVS):
        folded = [pool for pool in paths.behind[name] if pool in paths.pools]
        behind = [axis_windows(paths, pool) for pool in folded]
        axes = _axes(axis_windows(paths, name), before, behind)
        return FanOut(np.asarray(node.weight), axes, int(node.groups))
    # Without pools the axes of what arrives make no difference.
    shape = paths.leaving[pools[-1]] if pools else (prod(paths.entering[name]),)
    if not isinstance(node, MATRICES):
        return _identity(shape, before)
    # Each output of a matrix reads every position that the pools give: a kernel as large as they
    # are.
    weight = np.asarray(node.weight)
    whole = [AxisWindow(size, 1, size) for size in shape[1:]]
    return FanOut(weight.reshape(len(weight), *shape), _axes(whole, before))


def axis_windows(paths: EventPaths, name: str) -> list[AxisWindow]:
    """Return the window of a convolution or pool along each axis."""
    node = paths.nodes[name]
    kernel = ints(node.kernel_size) if name in paths.pools else np.shape(node.weight)[2:]
    axes = len(kernel)
    stride = ints(node.stride, axes)
    dilation = ints(getattr(node, "dilation", 1), axes)
    padding = (0,) * axes
    if not isinstance(node.padding, str):
        padding = ints(node.padding, axes)
    elif node.padding == "same":
        # torch puts the odd zero behind.
        pairs = zip(dilation, kernel, strict=True)
        padding = tuple(spacing * (taps - 1) // 2 for spacing, taps in pairs)
    shapes = paths.entering[name][1:], paths.leaving[name][1:]
    geometry = zip(*shapes, kernel, stride, padding, dilation, strict=True)
    return [AxisWindow(*(int(value) for value in axis)) for axis in geometry]


def pool_fan_out(paths: EventPaths, name: str) -> FanOut:
    """Return the windows of a pool that is no part of a synapse."""
    return _identity(paths.leaving[name], [axis_windows(paths, name)])


def _identity(shape: Sequence[int], before: Sequence[Sequence[AxisWindow]]) -> FanOut:
    """Join each channel and position with itself, behind pools."""
    channels, *sizes = shape
    ones = np.ones((channels, 1, *(1 for _ in sizes)))
    windows = [AxisWindow(size, size, 1) for size in sizes]
    return FanOut(ones, _axes(windows, before), channels)


def _axes(
    synapse: Sequence[AxisWindow],
    before: Sequence[Sequence[AxisWindow]],
    behind: Sequence[Sequence[AxisWindow]] = (),
) -> tuple[Axis, ...]:
    """Compose axis by axis; pools come as one window for each axis."""
    found = []
    for at, window in enumerate(synapse):
        pools_before = [pool[at] for pool in before]
        found.append(compose_axis(window, pools_before, [pool[at] for pool in behind]))
    return tuple(found)


@dataclass(frozen=True)
class Route:
    """One path of events to a site.

    Args:
        source: node whose value they are; None: the sum of everything that arrives.
        lag: steps they wait in loops.
        fan_out: the synapses they take.
        wait: steps until what they do is heard, in loops and Delays: what would act after the
            inference is not paid.
        repeated: the same events take other synapses too, with a shorter wait, and are counted
            there.
    """

    source: str | None
    lag: int
    fan_out: FanOut
    wait: int = 0
    repeated: bool = False


@dataclass(frozen=True)
class Site:
    """A place where events meet synapses.

    Args:
        name: name of the synapse's node, or "source->neuron" of a bare edge.
        node: node whose arriving value it is under the float policy.
        row: layer it is counted in.
        routes: one or more.
        bias: neurons that get a bias from it.
        own_spikes: it is the synapse of a neuron with itself.
    """

    name: str
    node: str
    row: str
    routes: tuple[Route, ...]
    bias: int = 0
    own_spikes: bool = False

    @property
    def is_bare(self) -> bool:
        """True for an edge into a neuron, without a synapse of its own."""
        return self.name != self.node


class CountingPlan:
    """Lists what has to be counted in a graph.

    Attributes:
        sites: where events meet synapses, in the order of the graph.
        rows: names of layers.
        owner: neuron -> layer that its updates and spikes are counted in: that of the first synapse
            that feeds it.
        pools: node that adds up under this policy -> windows that each of its inputs lies in.
        scales, merges: nodes that cost multiplications or additions of their own under this policy.
        passing: node that is neither synapse nor neuron -> its ledger row.
        refused: synapse or neuron -> why it cannot be counted under this policy.
    """

    def __init__(self, paths: EventPaths) -> None:
        self.paths = paths
        self.sites: list[Site] = []
        self.rows: list[str] = []
        self.owner: dict[str, str] = {}
        self.pools: dict[str, Int64] = {}
        self.scales: list[str] = []
        self.merges: list[str] = []
        self.passing: dict[str, LedgerRow] = {}
        self.refused: dict[str, str] = {}
        # Pool or scale -> the synapses it is folded into.
        self._absorbed: dict[str, list[str]] = defaultdict(list)
        for name in paths.names:
            if name in paths.synapses:
                self._add_synapse(name)
            elif name in paths.neurons:
                self._add_neuron(name)
        # What a pool costs depends on all the synapses that could take it in.
        for name in paths.names:
            if name not in paths.synapses | paths.neurons:
                self._add_passing(name)
        place = {name: at for at, name in enumerate(paths.names)}
        bare = {site.row: place[site.node] for site in self.sites}
        # A row named like a node stands where the node does, whatever other sites count in it.
        self.rows = sorted(dict.fromkeys(self.rows), key=(bare | place).__getitem__)
        self.sites = [site for site in self.sites if site.name not in self.refused]

    def _add_synapse(self, name: str) -> None:
        paths = self.paths
        neuron = paths.own_loop(name)
        row = name if neuron is None else self.owner.get(neuron, name)
        self.rows.append(row)
        routes = self._routes(name)
        waits = paths.waits(name)
        # Only the rows of a matrix can be parted by how long their outputs wait.
        whole = neuron is not None or isinstance(paths.nodes[name], CONVS)
        if waits is not None and whole:
            what = "behind a convolution" if neuron is None else "in a neuron's own loop"
            self.refused[name] = (
                f"delays that differ between outputs {what} have no rule; give all the same delay"
            )
            routes = []
        if neuron is not None:
            itself = own_fan_out(np.asarray(paths.nodes[name].weight))
            routes = [replace(route, fan_out=itself) for route in routes]
        found: list[Route] = []
        for route in routes:
            found += _by_wait(route, waits, paths.wait(name))
        bias = self._biased(name)
        self.sites.append(Site(name, name, row, tuple(found), bias, neuron is not None))
        if not paths.folded and len(paths.sources[name]) > 1:
            self.merges.append(name)
        # Neurons fed by several synapses are counted with the first of them.
        fed = paths.reach(name, paths.same_step, paths.converters)
        for target in fed & paths.neurons:
            self.owner.setdefault(target, row)

    def _routes(self, name: str) -> list[Route]:
        """Return the routes to a synapse, none for a path that cannot be folded."""
        paths = self.paths
        if not paths.folded:
            fan_out = site_fan_out(paths, name, ())
            assert isinstance(fan_out, FanOut)  # only what is passed can be refused
            return [Route(None, 0, fan_out)]
        found = (self._route(name, path) for path in paths.arrivals(name))
        routes = [route for route in found if route is not None]
        for node in paths.behind[name]:
            self._absorbed[node].append(name)
        return routes

    def _route(self, name: str, path: Path) -> Route | None:
        fan_out = site_fan_out(self.paths, name, path.passed)
        if isinstance(fan_out, str):
            # The first reason is the one that the ledger shows.
            self.refused.setdefault(name, fan_out)
            return None
        for node in path.passed:
            self._absorbed[node].append(name)
        return Route(path.source, path.lag, fan_out)

    def _add_neuron(self, name: str) -> None:
        """Add the bare edges into a neuron, which are synapses of their own."""
        for path in self.paths.arrivals(name):
            if len(self.paths.carries(path.source)) > 1:
                self.refused[name] = (
                    f"'{path.source}' mixes currents of synapses and bare events; put a synapse between"
                )
                break
        for path in self.paths.bare_events(name):
            label = "->".join([path.source, *path.passed, name])
            route = self._route(name, path)
            if route is not None:
                self.rows.append(label)
                self.sites.append(Site(label, name, label, (route,)))
                self.owner.setdefault(name, label)
        if name not in self.owner:  # only a loop of later synapses feeds it
            self.owner[name] = name
            self.rows.append(name)

    def _biased(self, name: str) -> int:
        """Count the neurons that a synapse biases; NIR stores zeros where there is no bias."""
        bias = getattr(self.paths.nodes[name], "bias", None)
        if bias is None or not np.asarray(bias).any():
            return 0
        last = [name, *self.paths.behind[name]][-1]
        return prod(self.paths.leaving[last])

    def _add_passing(self, name: str) -> None:
        """Decide what a node that is neither synapse nor neuron costs under this policy."""
        paths = self.paths
        node = paths.nodes[name]
        merging = len(paths.sources[name]) > 1 and paths.carries(name) == {"events"}
        if merging and not paths.folded and name != paths.order.output:
            self.merges.append(name)
            self.rows.append(name)
        if name in paths.pools | paths.scales:
            self._add_pool_or_scale(name)
            return
        status: Status = "counted" if name in self.merges else "free"
        notes = {
            nir.Input: "what arrives",
            nir.Output: "readout: what is done with it over time costs nothing here",
            nir.Flatten: "moves no data",
            nir.Delay: "keeps what passes for some steps; no operation",
        }
        note = notes.get(type(node), "passes on what it gets")
        if name in paths.delays and paths.folded:
            # A Delay is a source of events for what comes after it, so nothing before it can be
            # folded.
            passed = [node for path in paths.bare_events(name) for node in path.passed]
            pools = [node for node in passed if node in paths.pools]
            if pools:
                status = "unsupported"
                note = f"pooling '{pools[0]}' before a Delay cannot be folded; delay first, or use pooling='float'"
        self._pass(name, status, note)

    def _add_pool_or_scale(self, name: str) -> None:
        paths = self.paths
        synapses = self._absorbed[name]
        into = ", ".join(dict.fromkeys(synapses))
        # Behind the synapse it is folded into, neurons hear it, as they should.
        unfolded: set[str] = set()
        if name not in paths.folded_behind:
            unfolded = paths.reach(name, paths.targets, paths.stops) & paths.stops
        if into and unfolded <= set(synapses):
            self._pass(name, "folded", f"into {into}")
            return
        if name in paths.pools:
            self.pools[name] = pool_fan_out(paths, name).stored
            note = "pool_adds: one per event inside a window"
        else:
            self.scales.append(name)
            note = "elementwise: one multiplication per element that is not 0"
        self.rows.append(name)
        if into:
            note += f"; folded into {into}, yet others hear it as it is"
        self._pass(name, "counted", note)

    def _pass(
        self,
        name: str,
        status: Status,
        note: str,
    ) -> None:
        operation = type(self.paths.nodes[name]).__name__
        self.passing[name] = LedgerRow(name, operation, status, note)


def _by_wait(
    route: Route,
    steps: Int64 | None,
    least: int,
) -> list[Route]:
    """Return one route for each number of steps that outputs of a dense synapse wait.

    Args:
        route: to the synapse.
        steps: each output's, None where all wait alike.
        least: steps until the first output is heard, which is all that other synapses have.
    """
    fan_out = route.fan_out
    if steps is None or fan_out.axes or fan_out.no_autapses:
        return [replace(route, wait=least)]
    weight = fan_out.weight
    found = []
    for delay in np.unique(steps).tolist():
        present = np.broadcast_to((steps == delay)[:, None], weight.shape)
        part = FanOut(weight, present=present)
        # Events are counted with the outputs that wait least, which they reach before the inference
        # ends if any.
        repeated = bool(delay > steps.min())
        found.append(replace(route, fan_out=part, wait=delay, repeated=repeated))
    return found


Values = dict[str, torch.Tensor]
"""Node -> (samples, *features) what it gives in a step."""


class GraphCounter:
    """Adds up batch after batch of one graph.

    Args:
        graph: nir.NIRGraph that `step_nir` runs.
        dt_s: time step, seconds.
        pooling: "folded" or "float".

    Raises:
        knarr.export.ExportError: a graph that `step_nir` refuses.
    """

    def __init__(
        self,
        graph: Any,
        dt_s: float,
        pooling: str,
    ) -> None:
        self.graph, self.dt_s = graph, dt_s
        self.pooling = pooling
        self.paths = EventPaths(Stepper(graph, dt_s, 1, keep=False), pooling)
        self.plan = CountingPlan(self.paths)
        self.tallies = Tallies(self.plan.rows)
        # The values of nodes in this step of the batch and in those before it, the latest first.
        self.past: deque[Values] = deque()

    def feed(self, inputs: Array, lengths: Int64) -> None:
        """Run and count one batch.

        Args:
            inputs: (samples, timesteps, *features).
            lengths: (samples,) steps of each; later ones are padding that nobody pays.
        """
        run = Stepper(self.graph, self.dt_s, len(inputs), keep=False)
        x = run.check(torch.as_tensor(as_inputs(inputs)))
        self.tallies.begin(lengths)
        self.touched = _Touched(self.plan)
        lags = [route.lag for site in self.plan.sites for route in site.routes]
        # Merges look one step back. Before the first step every neuron was silent.
        length = 1 + max([1, *lags])
        self.past = deque([run.rest] * length, maxlen=length)
        with plain_arithmetic():
            for t in range(x.shape[1]):
                self.past.appendleft(run.step(x[:, t]))
                self._step(t, lengths)

    def _step(self, t: int, lengths: Int64) -> None:
        """Count a step of a batch that ran."""
        alive = t < lengths
        paid = int(alive.sum())
        for site in self.plan.sites:
            tally = self.tallies[site.row]
            active = []
            for route in site.routes:
                if route.source is None:
                    frames = self._arriving(site.node)
                else:
                    frames = self.past[route.lag][route.source].numpy()
                frames = frames.reshape(len(frames), 1, -1)
                # An event that would act after the inference is not paid.
                delivered = (t + route.wait < lengths)[:, None]
                tally.deliver(
                    route.fan_out,
                    frames,
                    delivered,
                    t,
                    own_spikes=site.own_spikes,
                    repeated=route.repeated,
                )
                tally.dense(route.fan_out, paid)
                active.append(frames[:, 0] != 0)
            tally.add("bias_adds", paid * site.bias)
            self.touched.now[site.name] = active
        for name in self.plan.owner:
            self._count_neuron(name, alive)
        self._count_passing(alive)
        self.touched.step_done()

    def _count_neuron(self, name: str, alive: Mask) -> None:
        node = self.paths.nodes[name]
        tally = self.tallies[self.plan.owner[name]]
        updates = int(alive.sum()) * prod(self.paths.leaving[name])
        stateless = isinstance(node, nir.Threshold)
        if stateless or hasattr(node, "v_threshold"):
            out = self.past[0][name].numpy()
            tally.add("spikes", np.count_nonzero(out[alive]))
        if stateless:
            # It compares what arrives and updates nothing.
            tally.add("comparisons", updates)
            return
        tally.add("neuron_updates", updates)
        tally.add("touched_updates", self.touched.count(name, alive))

    def _count_passing(self, alive: Mask) -> None:
        """Count pools, scales and merges that are not folded."""
        for name in self.plan.merges:
            active = [part.numpy() != 0 for part in self._parts(name)]
            # The first of the branches that meet at a position costs nothing.
            adds = np.maximum(np.sum(active, axis=0) - 1, 0)
            self.tallies[name].add("merge_adds", adds[alive].sum())
        for name in self.plan.scales:
            # A multiplication with 0 is skipped, as that of a silent synapse is.
            scaled = np.count_nonzero(self._arriving(name)[alive])
            self.tallies[name].add("elementwise", scaled)
        for name, windows in self.plan.pools.items():
            events = self._arriving(name)[alive] != 0
            self.tallies[name].add("pool_adds", (events * windows).sum())

    def _parts(self, name: str) -> list[torch.Tensor]:
        """Return what each source of a node gives it in this step."""
        return [self.past[lag][source] for source, lag in self.paths.sources[name]]

    def _arriving(self, name: str) -> Array:
        # One after another, as the stepper adds them: floats depend on the order.
        first, *others = self._parts(name)
        return sum(others, start=first).numpy()

    def bytes_per_sample(self, inputs: Array) -> int:
        """Return about how much a sample takes while it is counted."""
        values = sum(prod(self.paths.leaving[name]) for name in self.paths.names)
        # The stepper computes in float32.
        return 4 * values + inputs[:1].nbytes

    def finish(self) -> OperationCounts:
        """Return the means over everything that was fed."""
        sizes = {name: self._sizes(name) for name in self.tallies if name not in self.plan.refused}
        counts = self.tallies.counts(self._ledger(), sizes, self.pooling)
        # The stepper computes in float32.
        return replace(counts, precision=dict.fromkeys(counts.layers, "fp32"))

    def _ledger(self) -> list[LedgerRow]:
        rows: list[LedgerRow] = []
        for name in self.paths.names:
            if name in self.plan.passing:
                rows.append(self.plan.passing[name])
                continue
            operation = type(self.paths.nodes[name]).__name__
            sites = [site for site in self.plan.sites if site.node == name]
            bare = [site for site in sites if site.is_bare]
            for site in bare:
                note = self.tallies[site.row].note
                rows.append(LedgerRow(site.name, "Identity", "counted", note))
            if name in self.plan.refused:
                rows.append(LedgerRow(name, operation, "unsupported", self.plan.refused[name]))
            elif name in self.paths.synapses:
                rows += self._synapse_rows(sites[0], operation)
            else:
                what = "neuron_updates (clocked), touched_updates and spikes"
                if operation == "Threshold":
                    what = "comparisons and spikes"
                note = f"{what}, in layer '{self.plan.owner[name]}'"
                rows.append(LedgerRow(name, operation, "counted", note))
        return rows

    def _synapse_rows(self, site: Site, operation: str) -> list[LedgerRow]:
        note = self.tallies[site.row].note
        if site.own_spikes:
            what = "no autapses" if site.routes[0].fan_out.no_autapses else "autapses included"
            note = f"in layer '{site.row}'; its spikes come back a step later, those of the last step never ({what})"
        rows = [LedgerRow(site.name, operation, "counted", note)]
        # Rows have names of their own, whatever the graph calls its nodes.
        bias = f"{site.name}.bias"
        while bias in self.paths.nodes:
            bias += " of it"
        if site.bias:
            note = "bias_adds: every step, silent ones too"
            rows.append(LedgerRow(bias, "Bias", "counted", note))
        elif hasattr(self.paths.nodes[site.name], "bias"):
            rows.append(LedgerRow(bias, "Bias", "free", "all zeros: there is no bias"))
        return rows

    def _sizes(self, row: str) -> LayerSizes:
        nodes = self.paths.nodes
        sites = [site for site in self.plan.sites if site.row == row]
        every = [route.fan_out for site in sites for route in site.routes]
        # A layer's own spikes are no inputs of it.
        arriving = [site for site in sites if not site.own_spikes]
        forward = [route.fan_out for site in arriving for route in site.routes]
        neurons = [name for name, owner in self.plan.owner.items() if owner == row]
        outputs = states = 0
        for name in neurons:
            size = prod(self.paths.leaving[name])
            outputs += size
            states += size * STATES.get(type(nodes[name]), 1)
        # A layer without synapses or neurons, such as a pool, is as large as what arrives.
        alone = prod(self.paths.entering[row]) if row in nodes else 0
        largest = max((prod(fan_out.outputs) for fan_out in forward), default=alone)
        return LayerSizes(
            inputs=sum(fan_out.stored.size for fan_out in forward) or alone,
            outputs=outputs or largest,
            weights=sum(fan_out.weight_words for fan_out in every),
            biases=sum(np.size(nodes[site.name].bias) for site in sites if site.bias),
            states=states,
            kernel=sum(fan_out.kernel_words for fan_out in forward),
            convolution=isinstance(nodes.get(row), CONVS),
            leaky=any(_is_leaky(nodes[name]) for name in neurons),
        )


def _is_leaky(node: Any) -> bool:
    return isinstance(node, NEURONS) and not isinstance(node, (nir.IF, nir.I))


@dataclass
class _Feed:
    """One path of currents from a site to a neuron.

    Args:
        site: where the currents come from.
        lag: steps that they wait in loops.
        changes: what pools that are not folded and Delays make of a mask, in order.
    """

    site: Site
    lag: int
    changes: list[Callable[[Mask], Mask]]


class _Touched:
    """Finds the neurons that event-driven hardware would update: those an event or bias reaches.

    Args:
        plan: what is counted in the graph.
    """

    def __init__(self, plan: CountingPlan) -> None:
        self.paths = plan.paths
        synapses = {site.name: site for site in plan.sites if not site.is_bare}
        self.feeds: dict[str, list[_Feed]] = {}
        for name in plan.owner:
            # Currents start at synapses, and Delays let them pass.
            self.feeds[name] = [
                _Feed(synapses[path.source], path.lag, self._changes(path.passed))
                for path in self.paths.paths(name, self.paths.converters)
                if path.source in synapses
            ]
        for site in plan.sites:
            if site.is_bare:
                self.feeds[site.node].append(_Feed(site, 0, []))
        # Site -> events (samples, features) of each of its routes, in this step and in the one
        # before.
        self.now: dict[str, list[Mask]] = {}
        self.before: dict[str, list[Mask]] = {}

    def _changes(self, passed: tuple[str, ...]) -> list[Callable[[Mask], Mask]]:
        found: list[Callable[[Mask], Mask]] = []
        for node in passed:
            if node in self.paths.pools - self.paths.folded_behind:
                found.append(pool_fan_out(self.paths, node).touched)
            elif node in self.paths.delays:
                found.append(self._delay_mask(node))
        return found

    def _delay_mask(self, node: str) -> Callable[[Mask], Mask]:
        # Each path needs a line of its own: the stepper's carries values.
        line = DelayLine(self.paths.delays[node].steps.numpy())
        shape = self.paths.leaving[node]

        def delayed(mask: Mask) -> Mask:
            frames = mask.reshape(len(mask), *shape).astype(np.float32)
            moved = line(torch.from_numpy(frames)).numpy()
            return moved.reshape(len(mask), -1) > 0

        return delayed

    def count(self, name: str, alive: Mask) -> int:
        """Count the neurons of a node that are reached in this step, in samples that are alive."""
        features = prod(self.paths.leaving[name])
        feeds = self.feeds[name]
        # A bias reaches its neurons in every step.
        if any(feed.site.bias for feed in feeds):
            return int(alive.sum()) * features
        found = np.zeros((len(alive), features), dtype=np.bool_)
        for feed in feeds:
            routes = feed.site.routes
            arriving = self.before if feed.lag else self.now
            if feed.site.name in arriving:
                events_of = zip(routes, arriving[feed.site.name], strict=True)
                masks = [route.fan_out.touched(events) for route, events in events_of]
                mask = np.logical_or.reduce(masks)
            else:
                # Before the first step nothing came round a loop; a Delay has to take that in too.
                outputs = prod(routes[0].fan_out.outputs)
                mask = np.zeros((len(alive), outputs), dtype=np.bool_)
            for change in feed.changes:
                mask = change(mask)
            found |= mask
        return int(np.count_nonzero(found[alive]))

    def step_done(self) -> None:
        """Keep the events of this step: what they reach over loops, they reach in the next."""
        self.before, self.now = self.now, {}
