"""A NIR graph as events see it: which ways they take through pools, scales and loops to the synapses that hear them.

The synapses of a graph that events take: kernels, pools folded into them, and what is counted beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import nir
import numpy as np

from knarr.export.graph.convolutions import restore_groups
from knarr.export.graph.step import Stepper
from knarr.export.graph.step_synapses import ints
from knarr.export.graph.topology import NEURONS
from knarr.hw_sim.counting.fan_out import Axis, AxisWindow, FanOut, Int64, axis
from knarr.hw_sim.errors import CountError

CONVS = (nir.Conv1d, nir.Conv2d)
SYNAPSES = (nir.Linear, nir.Affine, *CONVS)
POOLS = (nir.AvgPool2d, nir.SumPool2d)
MAX_ROUTES = 10_000


class EventPaths:
    """A graph's structure as its events see it.

    Args:
        run: of the graph.
        pooling: "folded" or "float".
    """

    def __init__(self, run: Stepper, pooling: str) -> None:
        self.run, self.order = run, run.order
        self.nodes = {name: restore_groups(node) for name, node in run.nodes.items()}
        self.folded = pooling == "folded"
        self.targets: dict[str, list[tuple[str, int]]] = {name: [] for name in self.nodes}
        for name in self.order.order:
            for source, lag in self.sources(name):
                self.targets[source].append((name, lag))
        self.behind = {
            name: self._folded_behind(name) for name in self.order.order if self.is_synapse(name)
        }
        self.folded_behind = {node for passed in self.behind.values() for node in passed}

    def entering(self, name: str) -> tuple[int, ...]:
        """Shape that arrives at a node in one step."""
        return self.run.entering[name]

    def leaving(self, name: str) -> tuple[int, ...]:
        """Shape that leaves it."""
        return self.run.leaving[name]

    def sources(self, name: str) -> list[tuple[str, int]]:
        """(node, steps it waits) of everything that arrives."""
        return [(source, 0) for source in self.order.sources[name]] + [
            (source, 1) for source in self.order.looping[name]
        ]

    def is_synapse(self, name: str) -> bool:
        return isinstance(self.nodes[name], SYNAPSES)

    def is_neuron(self, name: str) -> bool:
        return isinstance(self.nodes[name], (*NEURONS, nir.Threshold))

    def gives_events(self, name: str) -> bool:
        return name == self.order.input or self.is_neuron(name)

    def carries(self, name: str) -> set[str]:
        """ "events" and "currents" that a node passes on, seen through everything without synapses."""
        found: set[str] = set()
        waiting, met = [name], set[str]()
        while waiting:
            here = waiting.pop()
            if here in met:
                continue
            met.add(here)
            if self.is_synapse(here):
                found.add("currents")
            elif self.gives_events(here):
                found.add("events")
            else:
                waiting += [source for source, _ in self.sources(here)]
        return found

    def ways(self, name: str) -> Iterator[tuple[str, int, tuple[str, ...]]]:
        """(source, steps it waits, nodes passed) of every way from an event source or a synapse to a node."""
        waiting: list[tuple[str, int, tuple[str, ...]]] = [
            (s, lag, ()) for s, lag in self.sources(name)
        ]
        for _ in range(MAX_ROUTES):
            if not waiting:
                return
            here, lag, passed = waiting.pop(0)
            through = isinstance(self.nodes[here], nir.Delay)
            if self.is_synapse(here) or self.gives_events(here) or through:
                yield here, lag, passed
                continue
            waiting += [
                (source, lag + more, (here, *passed)) for source, more in self.sources(here)
            ]
        raise CountError(
            f"node '{name}': more than {MAX_ROUTES} ways of events lead here; put neurons between"
        )

    def passed_by(self, name: str) -> set[str]:
        """Nodes that bare events pass on their way to a node."""
        ways = [way for way in self.ways(name) if "currents" not in self.carries(way[0])]
        return {node for _, _, passed in ways for node in passed}

    def _folded_behind(self, name: str) -> list[str]:
        """Pools and scales between a synapse and its neurons that no other node feeds or hears: folded into it."""
        passed, here = [], name
        while self.folded and len(self.targets[here]) == 1:
            target, lag = self.targets[here][0]
            if (
                lag
                or len(self.sources(target)) != 1
                or self.stops(target)
                or self.holds_zeros(target)
            ):
                break
            passed.append(target)
            here = target
        ends = [target for target, _ in self.targets[here]]
        if any(self.is_synapse(end) for end in ends):
            return []  # what lies before a synapse folds into that one
        found = [node for node in passed if isinstance(self.nodes[node], (*POOLS, nir.Scale))]
        pools = [node for node in found if isinstance(self.nodes[node], POOLS)]
        return [] if pools and not isinstance(self.nodes[name], nir.Conv2d) else found

    def stops(self, name: str) -> bool:
        """Whether what a synapse gives goes no further as it is."""
        ends = self.is_synapse(name) or self.is_neuron(name) or name == self.order.output
        return ends or isinstance(self.nodes[name], nir.Delay)

    def holds_zeros(self, name: str) -> bool:
        """Whether a Scale cuts some of what passes it."""
        node = self.nodes[name]
        return isinstance(node, nir.Scale) and not np.all(np.asarray(node.scale))

    def wait(self, name: str) -> int:
        """Fewest steps between a synapse and what hears it, in loops and Delays: what acts later than that is not paid."""
        best: list[int] = []
        waiting, met = [(0, name)], set[str]()
        while waiting:
            waiting.sort()
            steps, here = waiting.pop(0)
            for target, lag in self.targets[here]:
                after = steps + lag
                if isinstance(self.nodes[target], nir.Delay):
                    after += int(self.run.delays[target].steps.min())
                elif self.stops(target):
                    best.append(after)
                    continue
                if target not in met:
                    met.add(target)
                    waiting.append((after, target))
        return min(best, default=0)

    def feeders(self, name: str) -> list[tuple[str, int, tuple[str, ...]]]:
        """(synapse, steps its currents wait in loops, nodes they pass) of every way from a synapse to a neuron."""
        waiting: list[tuple[str, int, tuple[str, ...]]] = [
            (s, lag, ()) for s, lag in self.sources(name)
        ]
        found: list[tuple[str, int, tuple[str, ...]]] = []
        for _ in range(MAX_ROUTES):
            if not waiting:
                return found
            here, lag, passed = waiting.pop(0)
            if self.is_synapse(here):
                found.append((here, lag, passed))
            elif not self.gives_events(here) and here not in passed:
                waiting += [
                    (source, lag + more, (here, *passed)) for source, more in self.sources(here)
                ]
        raise CountError(
            f"node '{name}': more than {MAX_ROUTES} ways of events lead here; put neurons between"
        )

    def delays_behind(self, name: str) -> Int64 | None:
        """(outputs,) steps until what each output of a synapse gives is heard; None where all wait alike."""
        here, steps = name, np.zeros(prod(self.run.leaving[name]), dtype=np.int64)
        while len(self.targets[here]) == 1:
            here, lag = self.targets[here][0]
            steps += lag
            if isinstance(self.nodes[here], nir.Delay):
                each = self.run.delays[here].steps.expand(self.run.leaving[here]).reshape(-1)
                steps += each.numpy()
            elif self.stops(here) or isinstance(self.nodes[here], POOLS):
                break
        return None if (steps == steps[0]).all() else steps

    def own_loop(self, name: str) -> str | None:
        """The neuron that a synapse joins with itself alone, one step later or more."""
        node = self.nodes[name]
        if not isinstance(node, (nir.Linear, nir.Affine)) or len(set(np.shape(node.weight))) != 1:
            return None
        before = self._alone(name, self.sources)
        behind = self._alone(name, self.targets.__getitem__)
        if (
            before is None
            or behind is None
            or before[0] != behind[0]
            or not self.is_neuron(before[0])
        ):
            return None
        later = self.wait(name) + before[2] > 0
        return before[0] if before[1] == 0 and later else None

    def _alone(
        self, name: str, neighbours: Callable[[str], list[tuple[str, int]]]
    ) -> tuple[str, int, int] | None:
        """The neuron or synapse at the end of a way without forks, the loop edges on it, and the steps of its Delays."""
        here, lags, steps = name, 0, 0
        for _ in range(len(self.nodes)):
            found = neighbours(here)
            if len(found) != 1:
                return None
            here, lags = found[0][0], lags + found[0][1]
            if (
                self.is_neuron(here)
                or self.is_synapse(here)
                or here in (self.order.input, self.order.output)
            ):
                return here, lags, steps
            if isinstance(self.nodes[here], nir.Delay):
                steps += int(self.run.delays[here].steps.min())
            folded = (
                isinstance(self.nodes[here], nir.Scale)
                and self.folded
                and not self.holds_zeros(here)
            )
            if not (
                folded
                or isinstance(self.nodes[here], (nir.Input, nir.Output, nir.Flatten, nir.Delay))
            ):
                return None
        return None


def reach_of(ways: EventPaths, name: str, passed: tuple[str, ...]) -> FanOut | str:
    """Synapses of a site for events that pass these nodes, or why they cannot be folded.

    Args:
        name: synapse, or neuron that a bare edge enters.
        passed: nodes on the way, source first; empty under the float policy.
    """
    node = ways.nodes[name]
    pools = [one for one in passed if isinstance(ways.nodes[one], POOLS)]
    for one in passed:
        if ways.holds_zeros(one):
            return (
                f"scale '{one}' holds zeros; multiply it into the weights, or use pooling='float'"
            )
    first = next(
        (at for at, one in enumerate(passed) if isinstance(ways.nodes[one], nir.Flatten)), None
    )
    flat_first = first is not None and any(one in pools for one in passed[first:])
    if pools and (flat_first or (first is not None and isinstance(node, (nir.Conv1d, nir.Conv2d)))):
        return (
            f"pooling '{pools[0]}' beside a partial flatten cannot be folded; use pooling='float'"
        )
    if isinstance(node, (nir.Conv1d, nir.Conv2d)):
        weight = np.asarray(node.weight)
        before = [windows(ways, one) for one in pools]
        behind = [
            windows(ways, one) for one in ways.behind[name] if isinstance(ways.nodes[one], POOLS)
        ]
        return FanOut(weight, _axes(conv_windows(ways, name), before, behind), int(node.groups))
    before = [windows(ways, one) for one in pools]
    if isinstance(node, (nir.Linear, nir.Affine)):
        weight = np.asarray(node.weight)
        if not pools:
            return FanOut(weight)
        channels, *sizes = ways.run.leaving[pools[-1]]
        whole = [AxisWindow(size, 1, size) for size in sizes]
        return FanOut(weight.reshape(len(weight), channels, *sizes), _axes(whole, before, []))
    channels, *sizes = ways.run.leaving[pools[-1]] if pools else (prod(ways.run.entering[name]),)
    ones = np.ones((channels, 1, *(1 for _ in sizes)))
    return FanOut(ones, _axes([AxisWindow(size, size, 1) for size in sizes], before, []), channels)


def conv_windows(ways: EventPaths, name: str) -> list[AxisWindow]:
    """Of a convolution, per axis."""
    node = ways.nodes[name]
    kernel = np.shape(node.weight)[2:]
    stride, dilation = ints(node.stride, len(kernel)), ints(node.dilation, len(kernel))
    padding = (0,) * len(kernel)
    if not isinstance(node.padding, str):
        padding = ints(node.padding, len(kernel))
    elif node.padding == "same":  # torch puts the odd zero behind
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    shape = ways.run.entering[name][1:], ways.run.leaving[name][1:]
    values = zip(*shape, kernel, stride, padding, dilation, strict=True)
    return [AxisWindow(*(int(value) for value in one)) for one in values]


def windows(ways: EventPaths, name: str) -> list[AxisWindow]:
    """Of a pool, per axis."""
    node = ways.nodes[name]
    geometry = (ints(value) for value in (node.kernel_size, node.stride, node.padding))
    shape = ways.run.entering[name][1:], ways.run.leaving[name][1:]
    return [AxisWindow(*one) for one in zip(*shape, *geometry, strict=True)]


def pool_reach(ways: EventPaths, name: str) -> FanOut:
    """Of a pool that is no part of a synapse: its windows."""
    channels, *sizes = ways.run.leaving[name]
    alone = [AxisWindow(size, size, 1) for size in sizes]
    return FanOut(np.ones((channels, 1, 1, 1)), _axes(alone, [windows(ways, name)], []), channels)


def bias(ways: EventPaths, name: str) -> int:
    """Neurons that get a bias; NIR stores zeros where there is none."""
    held = getattr(ways.nodes[name], "bias", None)
    if held is None or not np.asarray(held).any():
        return 0
    return prod(ways.run.leaving[ways.behind[name][-1] if ways.behind[name] else name])


def _axes(
    synapse: list[AxisWindow], before: list[list[AxisWindow]], behind: list[list[AxisWindow]]
) -> tuple[Axis, ...]:
    return tuple(
        axis(one, [windows[at] for windows in before], [windows[at] for windows in behind])
        for at, one in enumerate(synapse)
    )
