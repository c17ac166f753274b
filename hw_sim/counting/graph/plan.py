"""What has to be counted in a NIR graph: sites where events meet synapses, and what becomes of every other node.

A site is a synapse node, or a bare edge into a neuron (an identity synapse of fan-out 1). Under the folded policy each way
from an event source (input, neuron, Threshold, Delay, or a synapse whose currents go on) to a site is a route of its own,
with the pools on it folded into the synapse. Under the float policy a site hears the sum of all that arrives, as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import nir
import numpy as np

from knarr.hw_sim.counting.counts import LedgerRow, Status
from knarr.hw_sim.counting.fan_out import FanOut, returning
from knarr.hw_sim.counting.graph.event_paths import CONVS, POOLS, EventPaths, bias, reach_of


@dataclass(frozen=True)
class Route:
    """One way of events to a site.

    Args:
        source: node whose value they are; None: the sum of everything that arrives.
        lag: steps they wait in loops.
        reach: the synapses they take.
        wait: steps until what they do is heard, in loops and Delays: what would act after the inference is not paid.
        again: the same events take other synapses too, with a shorter wait, and are counted there.
    """

    source: str | None
    lag: int
    reach: FanOut
    wait: int = 0
    again: bool = False


@dataclass(frozen=True)
class Site:
    """Events meet synapses here.

    Args:
        name: of the synapse's node, or "source->neuron" of a bare edge.
        node: whose arriving value it is under the float policy.
        row: layer it is counted in.
        routes: one or more.
        bias: neurons that get a bias from it.
        returning: the synapse of a neuron with itself.
    """

    name: str
    node: str
    row: str
    routes: tuple[Route, ...]
    bias: int = 0
    returning: bool = False


@dataclass
class CountingPlan:
    """What to count.

    Args:
        sites: where events meet synapses, in the order of the graph.
        rows: names of layers.
        owner: neuron -> layer that its updates and spikes are counted in: that of the first synapse that feeds it.
        pools, scales, merges: nodes that cost additions or multiplications of their own under this policy.
        passing: ledger rows of nodes that are neither synapse nor neuron.
        refused: synapse or neuron -> why it cannot be counted under this policy.
        absorbed: pool or scale -> synapses it is folded into.
    """

    sites: list[Site] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    owner: dict[str, str] = field(default_factory=dict)
    pools: list[str] = field(default_factory=list)
    scales: list[str] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    passing: list[LedgerRow] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    absorbed: dict[str, list[str]] = field(default_factory=dict)


def plan(graph: EventPaths) -> CountingPlan:
    """Everything that has to be counted in a graph."""
    made = CountingPlan()
    for name in graph.order.order:
        if graph.is_synapse(name):
            _synapse(graph, made, name)
        elif graph.is_neuron(name):
            _neuron(graph, made, name)
    for name in graph.order.order:
        if not graph.is_synapse(name) and not graph.is_neuron(name):
            _passing(graph, made, name)
    place = {name: at for at, name in enumerate(graph.order.order)}
    heard = {site.row: site.node for site in made.sites}
    made.rows.sort(key=lambda row: place[row] if row in place else place[heard[row]])
    made.sites = [site for site in made.sites if site.name not in made.refused]
    return made


def _synapse(graph: EventPaths, made: CountingPlan, name: str) -> None:
    neuron = graph.own_loop(name)
    row = made.owner.get(neuron, name) if neuron is not None else name
    if row not in made.rows:
        made.rows.append(row)
    routes = _routes(graph, made, name)
    if graph.delays_behind(name) is not None and (
        neuron is not None or isinstance(graph.nodes[name], CONVS)
    ):
        what = "in a neuron's own loop" if neuron is not None else "behind a convolution"
        made.refused[name] = (
            f"delays that differ between outputs {what} have no rule; give all the same delay"
        )
        routes = []
    if neuron is not None:
        itself = returning(np.asarray(graph.nodes[name].weight))
        routes = [replace(route, reach=itself) for route in routes]
    routes = [late for route in routes for late in _by_wait(graph, name, route)]
    made.sites.append(Site(name, name, row, tuple(routes), bias(graph, name), neuron is not None))
    if not graph.folded and len(graph.sources(name)) > 1:
        made.merges.append(name)
    for target in _heard_by(graph, name):
        made.owner.setdefault(target, row)


def _by_wait(graph: EventPaths, name: str, route: Route) -> list[Route]:
    """One route for each number of steps that outputs of a dense synapse wait."""
    steps = graph.delays_behind(name)
    if steps is None or route.reach.axes or route.reach.loop:
        return [replace(route, wait=graph.wait(name))]
    weight = route.reach.weight
    return [
        replace(
            route,
            reach=FanOut(
                weight, present=np.repeat((steps == ago)[:, None], weight.shape[1], axis=1)
            ),
            wait=int(ago),
            again=bool(ago > steps.min()),
        )
        for ago in np.unique(steps)
    ]


def _routes(graph: EventPaths, made: CountingPlan, name: str) -> list[Route]:
    """Of a synapse; of none where some way to it cannot be folded."""
    if not graph.folded:
        found = reach_of(graph, name, ())
        assert isinstance(found, FanOut)
        return [Route(None, 0, found)]
    routes = []
    for source, lag, passed in graph.ways(name):
        reach = reach_of(graph, name, passed)
        if isinstance(reach, str):
            made.refused.setdefault(name, reach)
            continue
        for one in passed:
            made.absorbed.setdefault(one, []).append(name)
        routes.append(Route(source, lag, reach))
    for one in graph.behind[name]:
        made.absorbed.setdefault(one, []).append(name)
    return routes


def _neuron(graph: EventPaths, made: CountingPlan, name: str) -> None:
    """Bare edges into it are synapses of their own."""
    if graph.folded:
        ways = [way for way in graph.ways(name) if "currents" not in graph.carries(way[0])]
        mixed = [way[0] for way in graph.ways(name) if len(graph.carries(way[0])) > 1]
    else:
        into = [(source, lag, ()) for source, lag in graph.sources(name)]
        ways = [way for way in into if "currents" not in graph.carries(way[0])]
        mixed = [way[0] for way in into if len(graph.carries(way[0])) > 1]
    if mixed:
        made.refused[name] = (
            f"'{mixed[0]}' mixes currents of synapses and bare events; put a synapse between"
        )
    for source, lag, passed in ways:
        label = "->".join([source, *passed, name])
        reach = reach_of(graph, name, passed)
        if isinstance(reach, str):
            made.refused.setdefault(name, reach)
            continue
        for one in passed:
            made.absorbed.setdefault(one, []).append(name)
        if label not in made.rows:
            made.rows.append(label)
        made.sites.append(Site(label, name, label, (Route(source, lag, reach),)))
        made.owner.setdefault(name, label)
    if name not in made.owner:  # only a loop of later synapses feeds it
        made.owner[name] = name
        made.rows.append(name)


def _heard_by(graph: EventPaths, name: str) -> list[str]:
    """Neurons that a synapse feeds in the same step."""
    found, waiting, met = [], [name], set()
    while waiting:
        for target, lag in graph.targets[waiting.pop(0)]:
            if lag or target in met:
                continue
            met.add(target)
            if graph.is_neuron(target):
                found.append(target)
            elif not graph.is_synapse(target):
                waiting.append(target)
    return found


def _passing(graph: EventPaths, made: CountingPlan, name: str) -> None:
    """A node without synapses: what it costs under this policy."""
    node = graph.nodes[name]
    operation = type(node).__name__
    merged = (
        len(graph.sources(name)) > 1
        and graph.carries(name) == {"events"}
        and name != graph.order.output
    )
    if merged and not graph.folded:
        made.merges.append(name)
        made.rows.append(name)
    if isinstance(node, (*POOLS, nir.Scale)):
        into = ", ".join(dict.fromkeys(made.absorbed.get(name, ())))
        if into and not _heard_as_it_is(graph, made, name):
            made.passing.append(LedgerRow(name, operation, "folded", f"into {into}"))
            return
        pool = isinstance(node, POOLS)
        (made.pools if pool else made.scales).append(name)
        if name not in made.rows:
            made.rows.append(name)
        note = (
            "pool_adds: one per event inside a window"
            if pool
            else "elementwise: one multiplication per element that is not 0"
        )
        note += f"; folded into {into}, yet others hear it as it is" if into else ""
        made.passing.append(LedgerRow(name, operation, "counted", note))
        return
    if isinstance(node, nir.Delay) and graph.folded:
        pools = [one for one in graph.passed_by(name) if isinstance(graph.nodes[one], POOLS)]
        if pools:
            reason = f"pooling '{pools[0]}' before a Delay cannot be folded; delay first, or use pooling='float'"
            made.passing.append(LedgerRow(name, operation, "unsupported", reason))
            return
    notes = {
        nir.Input: "what arrives",
        nir.Output: "readout: what is done with it over time costs nothing here",
        nir.Flatten: "moves no data",
        nir.Delay: "keeps what passes for some steps; no operation",
    }
    status: Status = "counted" if name in made.merges else "free"
    made.passing.append(
        LedgerRow(name, operation, status, notes.get(type(node), "passes on what it gets"))
    )


def _heard_as_it_is(graph: EventPaths, made: CountingPlan, name: str) -> bool:
    """Whether something hears a pool or scale that it is not folded into."""
    waiting, met = [name], set()
    while waiting:
        here = waiting.pop()
        for target, _ in graph.targets[here]:
            if graph.stops(target):
                behind = any(
                    name in graph.behind[one] for one in made.absorbed[name] if one in graph.behind
                )
                if target not in made.absorbed[name] and not behind:
                    return True
            elif target not in met:
                met.add(target)
                waiting.append(target)
    return False
