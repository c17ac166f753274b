"""Our operations frame by frame, so that they can be put together by our rule and by NeuroBench's.

Ours: whether an event is an ACC or a MAC is decided for each frame, one (sample, time step) of a layer's input. NeuroBench: for
each call of a layer, so for all the samples of a batch at one time step. Fan-out maps are the counter's own (`fan_out.py`);
what arrives comes from `step_nir`. Sums by our rule must be what `knarr.hw_sim.count` says, else nothing here explains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from knarr.export import Trace
from knarr.export.graph.topology import inline, topology
from knarr.hw_sim.arrays import Int64
from knarr.hw_sim.counting.fan_out import AxisWindow, FanOut, compose_axis

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Frames:
    """Operations of one layer, zero weights skipped.

    Args:
        operations: (samples, timesteps) int64.
        graded: (samples, timesteps), whether the frame holds anything but -1, 0 and 1.
        dense: taps that exist, of one frame; zero weights are stored ones too.
    """

    operations: Int64
    graded: npt.NDArray[np.bool_]
    dense: int

    def by_frame(self) -> tuple[Fraction, Fraction]:
        """ACC and MAC per inference, by our rule."""
        return self._split(self.graded)

    def by_call(self, batch: int) -> tuple[Fraction, Fraction]:
        """The same by NeuroBench's rule, `batch` samples in each call."""
        graded = np.zeros_like(self.graded)
        for first in range(0, len(graded), batch):
            graded[first : first + batch] = self.graded[first : first + batch].any(axis=0)
        return self._split(graded)

    def _split(self, graded: npt.NDArray[np.bool_]) -> tuple[Fraction, Fraction]:
        samples = len(self.operations)
        acc, mac = (int(self.operations[of].sum(dtype=np.int64)) for of in (~graded, graded))
        return Fraction(acc, samples), Fraction(mac, samples)


def frames(graph: nir.NIRGraph, inputs: Array, trace: Trace, dt_s: float) -> dict[str, Frames]:
    """Operations of every synapse of a chain, pools with the fractions that they give.

    Args:
        graph: a chain of Conv2d, Linear, Affine, LIF, AvgPool2d (whole windows), Flatten; a neuron may hear itself.
        inputs: (samples, timesteps, *features), float32.
        trace: of the same.
        dt_s: time step, seconds.
    """
    nodes, edges = inline(graph)
    order = topology(nodes, edges, dt_s)
    values: dict[str, Array] = {order.input: inputs}
    found: dict[str, Frames] = {}
    late = {source for sources in order.looping.values() for source in sources}
    for name in order.order:
        node = nodes[name]
        if name in trace.spikes:
            values[name] = trace.spikes[name]
            continue
        if isinstance(node, (nir.LI, nir.Input, nir.Output)):
            continue
        (source,) = order.sources[name]
        arriving = values[source]
        if (
            name in late
        ):  # what a neuron tells itself acts one step later, that of the last step never
            arriving = np.concatenate([np.zeros_like(arriving[:, :1]), arriving[:, :-1]], axis=1)
        if isinstance(node, nir.AvgPool2d):
            values[name] = _pooled(arriving, int(node.kernel_size[0]))
        elif isinstance(node, nir.Flatten):
            values[name] = arriving.reshape(*arriving.shape[:2], -1)
        else:
            found[name] = _frames(node, arriving)
    return found


def _frames(node: Any, arriving: Array) -> Frames:
    fan_out = _fan_out(node, arriving.shape[2:])
    axes = tuple(range(2, arriving.ndim))
    return Frames(
        operations=((arriving != 0) * fan_out.nonzero).sum(axis=axes, dtype=np.int64),
        graded=(~np.isin(arriving, (-1, 0, 1))).any(axis=axes),
        dense=fan_out.dense_valid,
    )


def _fan_out(node: Any, shape: tuple[int, ...]) -> FanOut:
    if not isinstance(node, nir.Conv2d):
        return FanOut(node.weight)
    stride, padding = (tuple(int(n) for n in np.ravel(of)) for of in (node.stride, node.padding))
    sides = zip(shape[1:], node.weight.shape[2:], stride, padding, strict=True)
    axes = tuple(
        compose_axis(AxisWindow(n, (n + 2 * p - k) // s + 1, k, s, p)) for n, k, s, p in sides
    )
    return FanOut(node.weight, axes, int(node.groups))


def _pooled(events: Array, size: int) -> Array:
    """Mean of whole windows; what is left over at the end is in none."""
    *leading, height, width = events.shape
    rows, columns = height // size, width // size
    cropped = events[..., : rows * size, : columns * size].astype(np.float64)
    return cropped.reshape(*leading, rows, size, columns, size).mean(axis=(-3, -1))
