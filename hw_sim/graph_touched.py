"""Which neurons of a graph an event or a bias reaches in a step: what event-driven hardware would update."""

from __future__ import annotations

from collections.abc import Sequence

import nir
import numpy as np
import numpy.typing as npt
import torch

from knarr.export.step import Stepper
from knarr.export.step_synapses import DelayLine
from knarr.hw_sim.graph_plan import Plan, Site
from knarr.hw_sim.graph_reach import pool_reach
from knarr.hw_sim.graph_ways import POOLS, GraphWays

Mask = npt.NDArray[np.bool_]


class Touched:
    """Masks of one batch, step after step.

    Args:
        plan, ways: of the graph.
        run: of the batch.
    """

    def __init__(self, plan: Plan, ways: GraphWays, run: Stepper) -> None:
        self.ways = ways
        sites = {site.name: site for site in plan.sites}
        self.feeders = {
            name: [(sites[one], lag, passed) for one, lag, passed in ways.feeders(name) if one in sites]
            + [(site, 0, ()) for site in plan.sites if site.node == name != site.name]
            for name in plan.owner
        }
        self.always = {
            name for name, feeders in self.feeders.items() if any(site.bias for site, _, _ in feeders)
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
            (name, at): [DelayLine(run.delays[node].steps.numpy()) for node in passed if node in run.delays]
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
            masks = [route.reach.touched(one) for route, one in zip(site.routes, active, strict=True)]
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
                mask = np.zeros((len(alive), int(np.prod(site.routes[0].reach.outputs))), dtype=np.bool_)
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
