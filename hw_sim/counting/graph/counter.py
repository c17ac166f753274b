"""Which neurons of a graph an event or a bias reaches in a step: what event-driven hardware would update.

Counting a NIR graph while `step_nir`'s stepper runs it: one time step in memory, whatever the length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import prod
from typing import Any

import nir
import numpy as np
import numpy.typing as npt
import torch

from knarr.export.arguments import as_inputs
from knarr.export.graph.step import Stepper, plain_arithmetic
from knarr.export.graph.step_synapses import DelayLine
from knarr.export.graph.topology import NEURONS
from knarr.hw_sim.counting.chip import Lengths, assemble
from knarr.hw_sim.counting.counts import LayerSizes, LedgerRow, OperationCounts
from knarr.hw_sim.counting.graph.event_paths import POOLS, EventPaths, pool_reach
from knarr.hw_sim.counting.graph.plan import CountingPlan, Site, plan
from knarr.hw_sim.counting.tally import LayerTally

Mask = npt.NDArray[np.bool_]


class Touched:
    """Masks of one batch, step after step.

    Args:
        plan, ways: of the graph.
        run: of the batch.
    """

    def __init__(self, plan: CountingPlan, ways: EventPaths, run: Stepper) -> None:
        self.ways = ways
        sites = {site.name: site for site in plan.sites}
        self.feeders = {
            name: [
                (sites[one], lag, passed) for one, lag, passed in ways.feeders(name) if one in sites
            ]
            + [(site, 0, ()) for site in plan.sites if site.node == name != site.name]
            for name in plan.owner
        }
        self.always = {
            name
            for name, feeders in self.feeders.items()
            if any(site.bias for site, _, _ in feeders)
        }
        self.simple = {
            name: feeders[0][0]
            for name, feeders in self.feeders.items()
            if len(feeders) == 1 and feeders[0][1:] == (0, ()) and len(feeders[0][0].routes) == 1
        }
        needed = {
            site.name
            for name, feeders in self.feeders.items()
            if name not in self.always and name not in self.simple
            for site, _, _ in feeders
        }
        self.full = needed
        self.lines = {
            (name, at): [
                DelayLine(run.delays[node].steps.numpy()) for node in passed if node in run.delays
            ]
            for name, feeders in self.feeders.items()
            for at, (_, _, passed) in enumerate(feeders)
        }
        self.active: dict[str, list[Mask]] = {}
        self.now: dict[str, Mask] = {}
        self.before: dict[str, Mask] = {}

    def sites(self, site: Site, active: Sequence[Mask]) -> None:
        """Events (samples, features) of each route of a site in this step."""
        self.active[site.name] = list(active)
        if site.name in self.full:
            masks = [
                route.reach.touched(one) for route, one in zip(site.routes, active, strict=True)
            ]
            self.now[site.name] = np.logical_or.reduce(masks)

    def count(self, name: str, alive: Mask) -> int:
        """Neurons of a node reached in this step, in the samples that are alive."""
        features = int(np.prod(self.ways.leaving(name)))
        if name in self.always:
            return int(alive.sum()) * features
        if name in self.simple:
            site = self.simple[name]
            return int(site.routes[0].reach.touched_count(self.active[site.name][0][alive]).sum())
        found = np.zeros((len(alive), features), dtype=np.bool_)
        for at, (site, lag, passed) in enumerate(self.feeders[name]):
            mask = (self.before if lag else self.now).get(site.name)
            if mask is None:
                mask = np.zeros(
                    (len(alive), int(np.prod(site.routes[0].reach.outputs))), dtype=np.bool_
                )
            found |= self._onward(mask, passed, self.lines[name, at])
        return int(found[alive].sum())

    def _onward(self, mask: Mask, passed: Sequence[str], lines: Sequence[DelayLine]) -> Mask:
        """Through pools that are not folded, and delays."""
        waiting = list(lines)
        for node in passed:
            if isinstance(self.ways.nodes[node], POOLS) and node not in self.ways.folded_behind:
                mask = pool_reach(self.ways, node).touched(mask)
            elif isinstance(self.ways.nodes[node], nir.Delay):
                shape = self.ways.leaving(node)
                moved = torch.from_numpy(mask.reshape(len(mask), *shape).astype(np.float32))
                mask = waiting.pop(0)(moved).numpy().reshape(len(mask), -1) > 0
        return mask

    def step_done(self) -> None:
        """What was reached in this step arrives over loops in the next."""
        self.before, self.now = self.now, {}


Array = npt.NDArray[np.generic]


class GraphCounter:
    """Adds up batch after batch of one graph.

    Args:
        graph: nir.NIRGraph that `step_nir` runs.
        dt_s: time step, seconds.
        pooling: "folded" or "float".

    Raises:
        knarr.export.ExportError: a graph that `step_nir` refuses.
    """

    def __init__(self, graph: Any, dt_s: float, pooling: str) -> None:
        self.graph, self.dt_s, self.pooling = graph, dt_s, pooling
        self.ways = EventPaths(Stepper(graph, dt_s, 1, keep=False), pooling)
        self.plan: CountingPlan = plan(self.ways)
        self.tallies = {name: LayerTally(name) for name in self.plan.rows}
        self.samples = self.steps = 0

    def feed(self, inputs: Array, lengths: Lengths) -> None:
        """One batch.

        Args:
            inputs: (samples, timesteps, *features).
            lengths: (samples,) steps of each; later ones are padding that nobody pays.
        """
        run = Stepper(self.graph, self.dt_s, len(inputs), keep=False)
        x = run.check(torch.as_tensor(as_inputs(inputs)))
        batch = _Batch(self, run, lengths)
        self.samples, self.steps = self.samples + len(inputs), self.steps + int(lengths.sum())
        with plain_arithmetic():
            for t in range(x.shape[1]):
                batch.step(t, x[:, t])

    def bytes_per_sample(self, inputs: Array) -> int:
        """That a sample takes while it is counted."""
        values = sum(prod(self.ways.leaving(name)) for name in self.ways.order.order)
        return 4 * values + inputs[:1].nbytes

    def finish(self) -> OperationCounts:
        """Means over everything that was fed."""
        whole = {
            name: tally for name, tally in self.tallies.items() if name not in self.plan.refused
        }
        sizes = {name: size for name, size in self._sizes().items() if name in whole}
        return assemble(whole, tuple(self._ledger()), sizes, self.samples, self.steps, self.pooling)

    def _ledger(self) -> list[LedgerRow]:
        rows, by_name = [], {row.name: row for row in self.plan.passing}
        sites = {site.name: site for site in self.plan.sites}
        for name in self.ways.order.order:
            operation = type(self.ways.nodes[name]).__name__
            if name in by_name:
                rows.append(by_name[name])
                continue
            bare = [site for site in self.plan.sites if site.node == name != site.name]
            rows += [
                LedgerRow(one.name, "Identity", "counted", self.tallies[one.row].note)
                for one in bare
            ]
            if name in self.plan.refused:
                rows.append(LedgerRow(name, operation, "unsupported", self.plan.refused[name]))
            elif name in sites:
                rows += self._synapse_rows(sites[name], operation)
            else:
                what = "neuron_updates (clocked), touched_updates and spikes"
                what = "comparisons and spikes" if operation == "Threshold" else what
                note = f"{what}, in layer '{self.plan.owner[name]}'"
                rows.append(LedgerRow(name, operation, "counted", note))
        return rows

    def _synapse_rows(self, site: Site, operation: str) -> list[LedgerRow]:
        if site.returning:
            what = "no autapses" if site.routes[0].reach.loop else "autapses included"
            note = f"in layer '{site.row}'; its spikes come back a step later, those of the last step never ({what})"
        else:
            note = self.tallies[site.row].note
        rows = [LedgerRow(site.name, operation, "counted", note)]
        bias = f"{site.name}.bias"
        while bias in self.ways.nodes:
            bias += " of it"
        if site.bias:
            rows.append(
                LedgerRow(bias, "Bias", "counted", "bias_adds: every step, silent ones too")
            )
        elif hasattr(self.ways.nodes[site.name], "bias"):
            rows.append(LedgerRow(bias, "Bias", "free", "all zeros: there is no bias"))
        return rows

    def _sizes(self) -> dict[str, LayerSizes]:
        found = {}
        for row in self.tallies:
            sites = [site for site in self.plan.sites if site.row == row]
            neurons = [name for name, owner in self.plan.owner.items() if owner == row]
            nodes = [self.ways.nodes[name] for name in neurons]
            words = [prod(self.ways.leaving(name)) for name in neurons]
            reaches = [route.reach for site in sites for route in site.routes]
            forward = [route.reach for site in sites if not site.returning for route in site.routes]
            kernel = sum(one.kernel_words for one in forward)
            held = [_states(node, size) for node, size in zip(nodes, words, strict=True)]
            alone = prod(self.ways.entering(row)) if row in self.ways.nodes else 0
            found[row] = LayerSizes(
                inputs=sum(one.inputs for one in forward) or alone,
                outputs=sum(words) or max((prod(one.outputs) for one in forward), default=alone),
                weights=sum(one.weight_words for one in reaches),
                biases=sum(self._biases(site) for site in sites),
                states=sum(held),
                kernel=kernel,
                convolution=any(
                    isinstance(self.ways.nodes.get(row), kind) for kind in (nir.Conv1d, nir.Conv2d)
                ),
                leaky=any(
                    isinstance(node, NEURONS) and not isinstance(node, (nir.IF, nir.I))
                    for node in nodes
                ),
            )
        return found

    def _biases(self, site: Site) -> int:
        return np.size(self.ways.nodes[site.name].bias) if site.bias else 0


def _states(node: Any, neurons: int) -> int:
    if isinstance(node, nir.Threshold):
        return 0
    return neurons * (2 if isinstance(node, (nir.CubaLIF, nir.CubaLI)) else 1)


class _Batch:
    """One batch on its way through time."""

    def __init__(self, counter: GraphCounter, run: Stepper, lengths: Lengths) -> None:
        self.counter, self.run, self.lengths = counter, run, lengths
        self.plan, self.ways, self.tallies = counter.plan, counter.ways, counter.tallies
        for tally in self.tallies.values():
            tally.begin(run.samples)
        longest = max((route.lag for site in self.plan.sites for route in site.routes), default=0)
        self.past: deque[dict[str, torch.Tensor]] = deque(maxlen=longest + 1)
        self.touched = Touched(self.plan, self.ways, self.run)

    def step(self, t: int, x: torch.Tensor) -> None:
        """Run one step and count it."""
        before = dict(self.run.before)
        value = self.run.step(x)
        self.past.appendleft(value)
        paid = int((t < self.lengths).sum())
        for site in self.plan.sites:
            tally = self.tallies[site.row]
            active = []
            for route in site.routes:
                frames = self._frames(site, route.source, route.lag, value, before)
                flat = frames.reshape(len(frames), 1, -1)
                alive = (t + route.wait < self.lengths)[:, None]
                tally.deliver(
                    route.reach, flat, alive, t, returning=site.returning, again=route.again
                )
                tally.dense(route.reach, paid)
                active.append(flat[:, 0] != 0)
            tally.add("bias_adds", paid * site.bias)
            self.touched.sites(site, active)
        for name, row in self.plan.owner.items():
            self._neuron(name, self.tallies[row], value[name].numpy(), t < self.lengths, paid)
        self._others(value, before, t < self.lengths)
        self.touched.step_done()

    def _neuron(
        self, name: str, tally: LayerTally, out: Array, alive: npt.NDArray[np.bool_], paid: int
    ) -> None:
        node = self.ways.nodes[name]
        if isinstance(node, nir.Threshold) or hasattr(node, "v_threshold"):
            tally.add("spikes", np.count_nonzero(out if alive.all() else out[alive]))
        if isinstance(node, nir.Threshold):  # no state: it compares what arrives
            tally.add("comparisons", paid * prod(self.ways.leaving(name)))
            return
        tally.add("neuron_updates", paid * prod(self.ways.leaving(name)))
        tally.add("touched_updates", self.touched.count(name, alive))

    def _others(
        self,
        value: dict[str, torch.Tensor],
        before: dict[str, torch.Tensor],
        alive: npt.NDArray[np.bool_],
    ) -> None:
        """Pools, scales and merges that are not folded."""
        for name in self.plan.merges:
            active = torch.stack([part != 0 for part in self._parts(name, value, before)])
            extra = (active.sum(dim=0) - 1).clamp(min=0)
            self.tallies[name].add("merge_adds", int(extra[torch.from_numpy(alive)].sum()))
        for names, column in ((self.plan.pools, "pool_adds"), (self.plan.scales, "elementwise")):
            for name in names:
                arriving = _sum(self._parts(name, value, before))
                events = arriving.numpy()[alive].reshape(int(alive.sum()), -1) != 0
                windows = (
                    pool_reach(self.ways, name).stored.reshape(-1) if column == "pool_adds" else 1
                )
                self.tallies[name].add(column, (events * windows).sum(dtype=np.int64))

    def _parts(
        self, name: str, value: dict[str, torch.Tensor], before: dict[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        return [(before if lag else value)[source] for source, lag in self.ways.sources(name)]

    def _frames(
        self,
        site: Site,
        source: str | None,
        lag: int,
        value: dict[str, torch.Tensor],
        before: dict[str, torch.Tensor],
    ) -> Array:
        if source is None:
            return np.asarray(_sum(self._parts(site.node, value, before)).numpy())
        if lag < len(self.past):
            return np.asarray(self.past[lag][source].numpy())
        return np.asarray(self.run.rest[source].numpy())  # before the first step


def _sum(parts: list[torch.Tensor]) -> torch.Tensor:
    return sum(parts[1:], start=parts[0])
