"""Count a NIR graph while `step_nir`'s stepper runs it, with one time step in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import nir
import numpy as np
import torch

from knarr.export.arguments import as_inputs
from knarr.export.graph.step import Stepper, plain_arithmetic
from knarr.export.graph.step_synapses import DelayLine
from knarr.export.graph.topology import NEURONS
from knarr.hw_sim.arrays import Array, Int64, Mask
from knarr.hw_sim.counting.counts import LayerSizes, LedgerRow, OperationCounts
from knarr.hw_sim.counting.graph.plan import (
    CONVS,
    CountingPlan,
    EventPaths,
    Route,
    Site,
    pool_fan_out,
)
from knarr.hw_sim.counting.tally import LayerTally, assemble

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
        self.graph, self.dt_s, self.pooling = graph, dt_s, pooling
        self.paths = EventPaths(Stepper(graph, dt_s, 1, keep=False), pooling)
        self.plan = CountingPlan(self.paths)
        self.tallies = {name: LayerTally(name) for name in self.plan.rows}
        self.samples = self.steps = 0

    def feed(self, inputs: Array, lengths: Int64) -> None:
        """Run and count one batch.

        Args:
            inputs: (samples, timesteps, *features).
            lengths: (samples,) steps of each; later ones are padding that nobody pays.
        """
        run = Stepper(self.graph, self.dt_s, len(inputs), keep=False)
        x = run.check(torch.as_tensor(as_inputs(inputs)))
        batch = _Batch(self, run, lengths)
        self.samples += len(inputs)
        self.steps += int(lengths.sum())
        with plain_arithmetic():
            for t in range(x.shape[1]):
                batch.step(t, x[:, t])

    def bytes_per_sample(self, inputs: Array) -> int:
        """Return about how much a sample takes while it is counted."""
        values = sum(prod(self.paths.leaving[name]) for name in self.paths.names)
        # The stepper computes in float32.
        return 4 * values + inputs[:1].nbytes

    def finish(self) -> OperationCounts:
        """Return the means over everything that was fed."""
        counted = {
            name: tally for name, tally in self.tallies.items() if name not in self.plan.refused
        }
        sizes = {name: self._sizes(name) for name in counted}
        return assemble(
            counted,
            self._ledger(),
            sizes,
            self.samples,
            self.steps,
            self.pooling,
        )

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
        outputs = sum(prod(self.paths.leaving[name]) for name in neurons)
        # A layer without synapses or neurons, such as a pool, is as large as what arrives.
        alone = prod(self.paths.entering[row]) if row in nodes else 0
        largest = max((prod(fan_out.outputs) for fan_out in forward), default=alone)
        return LayerSizes(
            inputs=sum(fan_out.stored.size for fan_out in forward) or alone,
            outputs=outputs or largest,
            weights=sum(fan_out.weight_words for fan_out in every),
            biases=sum(np.size(nodes[site.name].bias) for site in sites if site.bias),
            states=sum(
                _states_per_neuron(nodes[name]) * prod(self.paths.leaving[name]) for name in neurons
            ),
            kernel=sum(fan_out.kernel_words for fan_out in forward),
            convolution=isinstance(nodes.get(row), CONVS),
            leaky=any(_is_leaky(nodes[name]) for name in neurons),
        )


def _states_per_neuron(node: Any) -> int:
    if isinstance(node, nir.Threshold):
        return 0
    # These hold a current besides the voltage.
    return 2 if isinstance(node, (nir.CubaLIF, nir.CubaLI)) else 1


def _is_leaky(node: Any) -> bool:
    return isinstance(node, NEURONS) and not isinstance(node, (nir.IF, nir.I))


class _Batch:
    """One batch on its way through time."""

    def __init__(
        self,
        counter: GraphCounter,
        run: Stepper,
        lengths: Int64,
    ) -> None:
        self.run, self.lengths = run, lengths
        self.plan, self.paths, self.tallies = counter.plan, counter.paths, counter.tallies
        for tally in self.tallies.values():
            tally.begin(run.samples)
        lags = [route.lag for site in self.plan.sites for route in site.routes]
        # What nodes gave in this step and those before it, the latest first; merges look one step
        # back.
        self.past: deque[Values] = deque(maxlen=1 + max([1, *lags]))
        self.touched = _Touched(self.plan)
        self.pool_windows = {
            name: pool_fan_out(self.paths, name).stored for name in self.plan.pools
        }

    def step(self, t: int, x: torch.Tensor) -> None:
        """Run one step and count it."""
        value = self.run.step(x)
        self.past.appendleft(value)
        alive = t < self.lengths
        paid = int(alive.sum())
        for site in self.plan.sites:
            tally = self.tallies[site.row]
            active = []
            for route in site.routes:
                frames = self._frames(site, route)
                frames = frames.reshape(len(frames), 1, -1)
                # What would act after the inference is not paid.
                delivered = (t + route.wait < self.lengths)[:, None]
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
        for name, row in self.plan.owner.items():
            self._count_neuron(name, self.tallies[row], value[name].numpy(), alive)
        self._count_passing(alive)
        self.touched.step_done()

    def _count_neuron(
        self,
        name: str,
        tally: LayerTally,
        out: Array,
        alive: Mask,
    ) -> None:
        node = self.paths.nodes[name]
        updates = int(alive.sum()) * prod(self.paths.leaving[name])
        stateless = isinstance(node, nir.Threshold)
        if stateless or hasattr(node, "v_threshold"):
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
        for name, windows in self.pool_windows.items():
            events = self._arriving(name)[alive] != 0
            self.tallies[name].add("pool_adds", (events * windows).sum())

    def _parts(self, name: str) -> list[torch.Tensor]:
        """Return what each source of a node gives it in this step."""
        return [self._given(source, lag) for source, lag in self.paths.sources(name)]

    def _given(self, source: str, lag: int) -> torch.Tensor:
        if lag < len(self.past):
            return self.past[lag][source]
        # Before the first step every neuron was silent.
        return self.run.rest[source]

    def _arriving(self, name: str) -> Array:
        # One after another, as the stepper adds them: floats depend on the order.
        first, *others = self._parts(name)
        return sum(others, start=first).numpy()

    def _frames(self, site: Site, route: Route) -> Array:
        if route.source is None:
            return self._arriving(site.node)
        return self._given(route.source, route.lag).numpy()


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
        synapses = {site.name: site for site in plan.sites}
        self.feeds: dict[str, list[_Feed]] = {}
        for name in plan.owner:
            feeds = [
                _Feed(synapses[path.source], path.lag, self._changes(path.passed))
                for path in self.paths.current_paths(name)
                if path.source in synapses
            ]
            bare = [site for site in plan.sites if site.is_bare and site.node == name]
            self.feeds[name] = feeds + [_Feed(site, 0, []) for site in bare]
        self.always: set[str] = set()
        self.direct: dict[str, Site] = {}
        for name, feeds in self.feeds.items():
            # A bias reaches its neurons in every step.
            if any(feed.site.bias for feed in feeds):
                self.always.add(name)
            # Where events take one path alone, its outputs can be counted without making their
            # masks.
            alone = len(feeds) == 1 and len(feeds[0].site.routes) == 1
            if alone and feeds[0].lag == 0 and not feeds[0].changes:
                self.direct[name] = feeds[0].site
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
        if name in self.always:
            return int(alive.sum()) * features
        if name in self.direct:
            site = self.direct[name]
            events = self.now[site.name][0][alive]
            return int(site.routes[0].fan_out.touched_count(events).sum())
        found = np.zeros((len(alive), features), dtype=np.bool_)
        for feed in self.feeds[name]:
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
