"""The synapses of a graph that events take: kernels, pools folded into them, and what is counted beside them."""

from __future__ import annotations

from math import prod

import nir
import numpy as np

from knarr.export.step_synapses import ints
from knarr.hw_sim.axes import Axis, Window, axis
from knarr.hw_sim.graph_ways import POOLS, GraphWays
from knarr.hw_sim.reach import Reach


def reach_of(ways: GraphWays, name: str, passed: tuple[str, ...]) -> Reach | str:
    """Synapses of a site for events that pass these nodes, or why they cannot be folded.

    Args:
        name: synapse, or neuron that a bare edge enters.
        passed: nodes on the way, source first; empty under the float policy.
    """
    node = ways.nodes[name]
    pools = [one for one in passed if isinstance(ways.nodes[one], POOLS)]
    for one in passed:
        if ways.holds_zeros(one):
            return f"scale '{one}' holds zeros; multiply it into the weights, or use pooling='float'"
    first = next((at for at, one in enumerate(passed) if isinstance(ways.nodes[one], nir.Flatten)), None)
    flat_first = first is not None and any(one in pools for one in passed[first:])
    if pools and (flat_first or (first is not None and isinstance(node, (nir.Conv1d, nir.Conv2d)))):
        return f"pooling '{pools[0]}' beside a partial flatten cannot be folded; use pooling='float'"
    if isinstance(node, (nir.Conv1d, nir.Conv2d)):
        weight = np.asarray(node.weight)
        before = [windows(ways, one) for one in pools]
        behind = [windows(ways, one) for one in ways.behind[name] if isinstance(ways.nodes[one], POOLS)]
        return Reach(weight, _axes(conv_windows(ways, name), before, behind), int(node.groups))
    before = [windows(ways, one) for one in pools]
    if isinstance(node, (nir.Linear, nir.Affine)):
        weight = np.asarray(node.weight)
        if not pools:
            return Reach(weight)
        channels, *sizes = ways.run.leaving[pools[-1]]
        whole = [Window(size, 1, size) for size in sizes]
        return Reach(weight.reshape(len(weight), channels, *sizes), _axes(whole, before, []))
    channels, *sizes = ways.run.leaving[pools[-1]] if pools else (prod(ways.run.entering[name]),)
    ones = np.ones((channels, 1, *(1 for _ in sizes)))
    return Reach(ones, _axes([Window(size, size, 1) for size in sizes], before, []), channels)


def conv_windows(ways: GraphWays, name: str) -> list[Window]:
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
    return [Window(*(int(value) for value in one)) for one in values]


def windows(ways: GraphWays, name: str) -> list[Window]:
    """Of a pool, per axis."""
    node = ways.nodes[name]
    geometry = (ints(value) for value in (node.kernel_size, node.stride, node.padding))
    shape = ways.run.entering[name][1:], ways.run.leaving[name][1:]
    return [Window(*one) for one in zip(*shape, *geometry, strict=True)]


def pool_reach(ways: GraphWays, name: str) -> Reach:
    """Of a pool that is no part of a synapse: its windows."""
    channels, *sizes = ways.run.leaving[name]
    alone = [Window(size, size, 1) for size in sizes]
    return Reach(np.ones((channels, 1, 1, 1)), _axes(alone, [windows(ways, name)], []), channels)


def bias(ways: GraphWays, name: str) -> int:
    """Neurons that get a bias; NIR stores zeros where there is none."""
    held = getattr(ways.nodes[name], "bias", None)
    if held is None or not np.asarray(held).any():
        return 0
    return prod(ways.run.leaving[ways.behind[name][-1] if ways.behind[name] else name])


def _axes(synapse: list[Window], before: list[list[Window]], behind: list[list[Window]]) -> tuple[Axis, ...]:
    return tuple(
        axis(one, [windows[at] for windows in before], [windows[at] for windows in behind])
        for at, one in enumerate(synapse)
    )
